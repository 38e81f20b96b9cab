//! Owns the third stage of an event: from a checked event to the key and the bytes of its Kafka record.
//!
//! Comes after `decode`, before `publish`.

use sluice_kafka::{Topics, metrics};
use sluice_proto::avro::{EncodeError, Encoder, Record as AvroRecord};
use sluice_proto::event::{Checked, EventId, MetricRecord, PaymentRecord, SystemRecord, UserActionRecord};

/// What kind of event, which decides its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To be decided.
    Payment,
    /// Stored only.
    UserAction,
    /// Stored only.
    System,
    /// Stored only.
    Metric,
}

/// Where the events of one kind go.
pub struct Route {
    /// The topic, with the installation's prefix.
    pub topic: String,
    /// The value of the `schema` header.
    pub schema: &'static str,
    /// The topic's producer metrics.
    pub metrics: metrics::Producer,
}

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

/// The encoders and routes of all kinds.
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
    /// Decides the topic.
    pub kind: Kind,
    /// The event's identity.
    pub event_id: EventId,
    /// `tenant/subject`.
    pub key: &'a str,
    /// Avro in the registry's wire format.
    pub payload: &'a [u8],
}

/// The routes of all kinds.
pub struct Routes([Route; 4]);

impl Routes {
    /// The routes to an installation's topics.
    pub fn new(topics: &Topics, metrics: &sluice_kafka::Metrics) -> Self {
        fn route<T: AvroRecord>(topic: &str, metrics: &sluice_kafka::Metrics) -> Route {
            Route {
                topic: topic.to_owned(),
                schema: T::SCHEMA_NAME,
                metrics: metrics.producer(topic),
            }
        }
        Self([
            route::<PaymentRecord>(&topics.payments, metrics),
            route::<UserActionRecord>(&topics.user_actions, metrics),
            route::<SystemRecord>(&topics.system_events, metrics),
            route::<MetricRecord>(&topics.metric_events, metrics),
        ])
    }

    /// The route of a kind.
    pub const fn of(&self, kind: Kind) -> &Route {
        let Self([payments, user_actions, systems, metrics]) = self;
        match kind {
            Kind::Payment => payments,
            Kind::UserAction => user_actions,
            Kind::System => systems,
            Kind::Metric => metrics,
        }
    }
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
        event: &Checked,
        tenant: &str,
        scratch: &'a mut Scratch,
    ) -> Result<Record<'a>, EncodeError> {
        scratch.key.clear();
        scratch.key.push_str(tenant);
        scratch.key.push('/');
        scratch.key.push_str(event.subject());
        scratch.payload.clear();
        let kind = match event {
            Checked::Payment(payment) => {
                self.payments.encode(payment, &mut scratch.payload)?;
                Kind::Payment
            }
            Checked::UserAction(record) => {
                self.user_actions.encode(record, &mut scratch.payload)?;
                Kind::UserAction
            }
            Checked::System(record) => {
                self.systems.encode(record, &mut scratch.payload)?;
                Kind::System
            }
            Checked::Metric(record) => {
                self.metrics.encode(record, &mut scratch.payload)?;
                Kind::Metric
            }
        };
        Ok(Record {
            kind,
            event_id: event.event_id(),
            key: &scratch.key,
            payload: &scratch.payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sluice_proto::avro::Decoder;
    use sluice_proto::topics;

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
        let event = Checked::UserAction(record.clone());
        let mut scratch = Scratch::default();
        for _ in 0..2 {
            let encoded = encoders.encode(&event, "acme", &mut scratch).expect("encodes");
            assert_eq!((encoded.kind, encoded.key), (Kind::UserAction, "acme/u-1"));
            let decoder = Decoder::<UserActionRecord>::new(2).expect("schema");
            assert_eq!(decoder.decode(encoded.payload).expect("decodes"), record);
        }
        let routes = Routes::new(&Topics::new("x."), &sluice_kafka::Metrics::default());
        assert_eq!(routes.of(Kind::Metric).topic, format!("x.{}", topics::METRIC_EVENTS));
        assert_eq!(routes.of(Kind::Payment).schema, PaymentRecord::SCHEMA_NAME);
    }
}
