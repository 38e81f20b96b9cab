//! Owns the first stage of a decision: from a Kafka record to an entry that subscriptions can share.
//!
//! Comes after a consumer's poll, in the decision loop and in the readers that catch up; before `route`.

use std::sync::Arc;

use rdkafka::message::{BorrowedMessage, Message};
use sluice_kafka::error::Registry as RegistryError;
use sluice_kafka::registry::Registry;
use sluice_proto::avro::{DecodeError, Decoder};
use sluice_proto::decision::Decision;
use sluice_proto::{headers, pb};

/// One decision as it stands in the topic.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The partition, of the decision and of its payment.
    pub partition: i32,
    /// The decision's own offset.
    pub offset: i64,
    /// When the decision was written, in milliseconds since the Unix epoch.
    pub decided_at_ms: i64,
    /// W3C trace context, or empty.
    pub traceparent: Box<str>,
    /// The decision.
    pub decision: Decision,
}

impl Entry {
    /// The decision as clients receive it.
    pub fn to_pb(&self) -> pb::FraudDecision {
        self.decision.to_pb(self.decided_at_ms, &self.traceparent)
    }
}

#[cfg(test)]
impl Entry {
    /// A decision at a place, for tests.
    pub(crate) fn at(partition: i32, offset: i64, decision: Decision) -> Self {
        Self {
            partition,
            offset,
            decided_at_ms: 0,
            traceparent: Box::default(),
            decision,
        }
    }
}

/// Why a record is no entry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has no value.
    #[error("the record has no value")]
    NoValue,
    /// Not a decision.
    #[error(transparent)]
    Avro(#[from] DecodeError),
    /// Written with a schema that the registry does not give.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl Error {
    /// Whether reading the same record later may succeed: a registry that refuses, for whatever reason, may be mended.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Registry(error) if !error.is_not_found())
    }
}

/// Reads decisions, whatever version of the schema they were written with.
pub struct Reader {
    decoder: Decoder<Decision>,
    registry: Arc<Registry>,
}

impl Reader {
    /// A reader that knows this version's schema.
    ///
    /// # Errors
    /// When the schema cannot be resolved.
    pub fn new(schema_id: i32, registry: Arc<Registry>) -> Result<Self, DecodeError> {
        Ok(Self {
            decoder: Decoder::new(schema_id)?,
            registry,
        })
    }

    /// Reads one record. Blocks where its schema has to be asked for.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn read(&mut self, message: &BorrowedMessage<'_>) -> Result<Entry, Error> {
        let value = message.payload().ok_or(Error::NoValue)?;
        let decision = match self.decoder.decode(value) {
            Err(DecodeError::UnknownSchema(id)) => {
                let schema = self.registry.schema_by_id(u32::try_from(id).unwrap_or(0))?;
                self.decoder.learn(id, &schema)?;
                self.decoder.decode(value)?
            }
            other => other?,
        };
        // Headers that cannot be read are as good as none: the decision itself is in the value.
        let [traceparent] = sluice_kafka::headers::read(message.headers(), [headers::TRACEPARENT]).unwrap_or_default();
        Ok(Entry {
            partition: message.partition(),
            offset: message.offset(),
            decided_at_ms: message.timestamp().to_millis().unwrap_or_default(),
            traceparent: sluice_kafka::headers::text(traceparent).unwrap_or_default().into(),
            decision,
        })
    }
}
