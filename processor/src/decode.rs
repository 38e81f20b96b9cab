//! Owns the step from a Kafka record to a checked payment, or to the reason why there is none.
//!
//! Comes after [`crate::consume`], before [`crate::state`]. Replay reads the same way, so that the same records are left
//! out; [`crate::refill`] reads decisions with the same care for versions.

use std::sync::Arc;

use rdkafka::Message;
use rdkafka::message::BorrowedMessage;
use sluice_kafka::error;
use sluice_kafka::registry::Registry;
use sluice_proto::avro;
use sluice_proto::event::PaymentRecord;
use sluice_proto::{headers, validate};

use crate::dead_letter::Kind;

const MICROS_PER_MILLI: i64 = 1_000;

/// A payment with what its record says about it.
#[derive(Debug)]
pub(crate) struct Input<'m> {
    pub(crate) payment: PaymentRecord,
    /// The record's timestamp, in microseconds since the Unix epoch.
    pub(crate) appended_at: i64,
    pub(crate) traceparent: Option<&'m str>,
}

/// Why a record cannot be decided.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It never can: it is a dead letter.
    Letter { kind: Kind, error: String },
    /// The schema registry cannot be asked now.
    Registry(error::Registry),
}

/// Reads records of one type, of any version of their schema.
pub(crate) struct Versions<T> {
    avro: avro::Decoder<T>,
    registry: Arc<Registry>,
}

impl<T: avro::Record> Versions<T> {
    /// A reader that knows this version's schema under its id. `registry` is asked for the others, and should not be
    /// patient: the lane has its own way of waiting.
    pub(crate) fn new(schema_id: i32, registry: Arc<Registry>) -> Result<Self, avro::DecodeError> {
        Ok(Self {
            avro: avro::Decoder::new(schema_id)?,
            registry,
        })
    }

    /// Reads one record, which is not checked.
    pub(crate) fn read(&mut self, message: &BorrowedMessage<'_>) -> Result<T, Failure> {
        let bytes = message.payload().ok_or_else(|| unreadable("the record has no value"))?;
        let record = match self.avro.decode(bytes) {
            Err(avro::DecodeError::UnknownSchema(id)) => {
                self.learn(id)?;
                self.avro.decode(bytes)
            }
            decoded => decoded,
        };
        record.map_err(unreadable)
    }

    fn learn(&mut self, id: i32) -> Result<(), Failure> {
        let number = u32::try_from(id).map_err(|_| unreadable(format!("schema id {id} is negative")))?;
        match self.registry.schema_by_id(number) {
            Ok(schema) => self.avro.learn(id, &schema).map_err(unreadable),
            Err(error) if error.is_retriable() => Err(Failure::Registry(error)),
            Err(error) => Err(unreadable(error)),
        }
    }
}

/// Reads payments.
pub(crate) struct Decoder(Versions<PaymentRecord>);

impl Decoder {
    /// See [`Versions::new`].
    pub(crate) fn new(schema_id: i32, registry: Arc<Registry>) -> Result<Self, avro::DecodeError> {
        Versions::new(schema_id, registry).map(Self)
    }

    /// Reads and checks one record.
    pub(crate) fn decode<'m>(&mut self, message: &'m BorrowedMessage<'_>) -> Result<Input<'m>, Failure> {
        let record = self.0.read(message)?;
        let [traceparent] =
            sluice_kafka::headers::read(message.headers(), [headers::TRACEPARENT]).map_err(unreadable)?;
        let occurred_at = record.occurred_at;
        let appended_at = message
            .timestamp()
            .to_millis()
            .map_or(occurred_at, |millis| millis.saturating_mul(MICROS_PER_MILLI));
        let payment = validate::payment(record, appended_at).map_err(|violation| Failure::Letter {
            kind: Kind::Validation,
            error: violation.to_string(),
        })?;
        Ok(Input {
            payment: payment.into_record(),
            appended_at,
            traceparent: sluice_kafka::headers::text(traceparent),
        })
    }
}

fn unreadable(error: impl ToString) -> Failure {
    Failure::Letter {
        kind: Kind::Deserialization,
        error: error.to_string(),
    }
}
