//! Owns the third stage of an event: from a checked event to the key and the bytes of its Kafka record.
//!
//! Comes after `decode`, before `publish`.

use sluice_proto::avro::{EncodeError, Encoder, Record as _};
use sluice_proto::event::{Checked, EventId, MetricRecord, PaymentRecord, SystemRecord, UserActionRecord};
use sluice_proto::shape::Shape;

use super::decode::Event;
use super::route::TopicId;

/// The ids that the registry gave to the schemas.
#[derive(Clone, Copy, Debug)]
pub struct SchemaIds {
    /// Of payments.
    pub payments: i32,
    /// Of user actions.
    pub user_actions: i32,
    /// Of system events.
    pub system_events: i32,
    /// Of metric events.
    pub metric_events: i32,
}

/// The encoders of all types of the contract.
pub struct Encoders {
    payments: Encoder<PaymentRecord>,
    user_actions: Encoder<UserActionRecord>,
    systems: Encoder<SystemRecord>,
    metrics: Encoder<MetricRecord>,
}

/// Buffers that one session uses for every event.
#[derive(Debug, Default)]
pub struct Scratch {
    key: String,
    payload: Vec<u8>,
}

/// One record, in the session's buffers.
#[derive(Debug)]
pub struct Record<'a> {
    /// Where it goes.
    pub topic: TopicId,
    /// The value of the `schema` header.
    pub schema: &'a str,
    /// When it happened, in microseconds since the Unix epoch, where the payload need not tell.
    pub occurred_at: Option<i64>,
    /// The event's identity.
    pub event_id: EventId,
    /// `tenant/subject`.
    pub key: &'a str,
    /// Avro in the registry's wire format.
    pub payload: &'a [u8],
}

impl Encoders {
    /// Encoders that write the registry's ids.
    ///
    /// # Errors
    /// When a schema cannot be resolved.
    pub fn new(ids: SchemaIds) -> Result<Self, EncodeError> {
        Ok(Self {
            payments: Encoder::new(ids.payments)?,
            user_actions: Encoder::new(ids.user_actions)?,
            systems: Encoder::new(ids.system_events)?,
            metrics: Encoder::new(ids.metric_events)?,
        })
    }

    /// Writes an event into the buffers.
    ///
    /// # Errors
    /// When the event does not fit its schema, which is a defect of ours.
    pub fn encode<'a>(
        &self,
        event: &'a Event,
        tenant: &str,
        scratch: &'a mut Scratch,
    ) -> Result<Record<'a>, EncodeError> {
        scratch.key.clear();
        scratch.key.push_str(tenant);
        scratch.key.push('/');
        scratch.key.push_str(event.checked.subject());
        scratch.payload.clear();
        let (payload, mut occurred_at) = (&mut scratch.payload, None);
        let schema = match &event.checked {
            Checked::Payment(payment) => {
                self.payments.encode(payment, payload)?;
                PaymentRecord::SCHEMA_NAME
            }
            Checked::UserAction(record) => {
                self.user_actions.encode(record, payload)?;
                UserActionRecord::SCHEMA_NAME
            }
            Checked::System(record) => {
                self.systems.encode(record, payload)?;
                SystemRecord::SCHEMA_NAME
            }
            Checked::Metric(record) => {
                self.metrics.encode(record, payload)?;
                MetricRecord::SCHEMA_NAME
            }
            Checked::Custom(record) => {
                occurred_at = Some(record.occurred_at);
                payload.extend_from_slice(&record.record);
                event.shape.as_deref().map_or("", Shape::name)
            }
        };
        Ok(Record {
            topic: event.topic,
            schema,
            occurred_at,
            event_id: event.checked.event_id(),
            key: &scratch.key,
            payload: &scratch.payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sluice_proto::avro::Decoder;
    use sluice_proto::event::CustomRecord;

    use super::*;

    #[test]
    fn a_record_has_its_key_its_id_and_its_content() {
        let ids = SchemaIds {
            payments: 1,
            user_actions: 2,
            system_events: 3,
            metric_events: 4,
        };
        let encoders = Encoders::new(ids).expect("schemas");
        let record = UserActionRecord {
            event_id: EventId::new(uuid::Uuid::from_u128(7)),
            tenant: "acme".to_owned(),
            occurred_at: 1,
            user_id: "u-1".to_owned(),
            action: "login".to_owned(),
            device_id: None,
            attributes: BTreeMap::new(),
        };
        let event = Event {
            checked: Checked::UserAction(record.clone()),
            topic: TopicId::PAYMENTS,
            shape: None,
        };
        let mut scratch = Scratch::default();
        for _ in 0..2 {
            let encoded = encoders.encode(&event, "acme", &mut scratch).expect("encodes");
            assert_eq!(
                (encoded.schema, encoded.key),
                (UserActionRecord::SCHEMA_NAME, "acme/u-1")
            );
            let decoder = Decoder::<UserActionRecord>::new(2).expect("schema");
            assert_eq!(decoder.decode(encoded.payload).expect("decodes"), record);
        }
    }

    #[test]
    fn a_custom_record_is_stored_as_it_came() {
        let ids = SchemaIds {
            payments: 1,
            user_actions: 2,
            system_events: 3,
            metric_events: 4,
        };
        let encoders = Encoders::new(ids).expect("schemas");
        let schema = r#"{"type": "record", "name": "a.B", "fields": []}"#;
        let event = Event {
            checked: Checked::Custom(CustomRecord {
                event_id: EventId::new(uuid::Uuid::from_u128(7)),
                occurred_at: 5,
                type_name: "b".to_owned(),
                subject: "s".to_owned(),
                record: vec![0, 0, 0, 0, 9].into(),
            }),
            topic: TopicId::PAYMENTS,
            shape: Some(Shape::parse(schema).expect("schema").into()),
        };
        let mut scratch = Scratch::default();
        let encoded = encoders.encode(&event, "acme", &mut scratch).expect("encodes");
        assert_eq!(
            (encoded.schema, encoded.key, encoded.occurred_at),
            ("a.B", "acme/s", Some(5))
        );
        assert_eq!(encoded.payload, [0, 0, 0, 0, 9]);
    }
}
