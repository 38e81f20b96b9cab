//! Owns the reading of verdicts, from the offsets that Postgres keeps: what follows from a verdict is stored in one
//! transaction with the offset after it, so that each is heeded exactly once without a transaction of Kafka's.
//!
//! Read by [`super::work`] at the beginning of each round.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};
use sluice_kafka::config::Isolation;
use sluice_kafka::registry::Registry;
use sluice_kafka::{context, error};
use sluice_proto::avro;
use sluice_proto::settlement::Verdict;

use crate::decode::{Failure, Versions};

/// Most verdicts of one round.
const MAX_VERDICTS: usize = 100;
/// How long the ends of a partition may take to read.
const ENDS_TIMEOUT: Duration = Duration::from_secs(10);

/// Why verdicts cannot be read now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Kafka.
    #[error(transparent)]
    Consumer(#[from] error::Consumer),
    /// The schema of a verdict has to be fetched, and cannot be.
    #[error(transparent)]
    Registry(#[from] error::Registry),
    /// This version's own schema cannot be read.
    #[error(transparent)]
    Schema(#[from] avro::DecodeError),
}

/// A verdict and where it stands; none where it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) part: i32,
    pub(crate) off: i64,
    pub(crate) verdict: Option<Verdict>,
}

/// A reader of verdicts.
pub(crate) struct Verdicts {
    topic: String,
    consumer: BaseConsumer<context::Consumer>,
    versions: Versions<Verdict>,
}

impl Verdicts {
    /// A reader of nothing yet.
    pub(crate) fn new(
        kafka: &sluice_kafka::Config,
        topic: &str,
        schema_id: i32,
        registry: Arc<Registry>,
    ) -> Result<Self, Error> {
        let consumer = kafka.reader(Isolation::ReadCommitted);
        Ok(Self {
            topic: topic.to_owned(),
            consumer: consumer
                .create_with_context(context::Consumer)
                .map_err(error::Consumer::Create)?,
            versions: Versions::new(schema_id, registry)?,
        })
    }

    /// Reads these partitions, from these offsets on.
    pub(crate) fn assign(&self, from: impl Iterator<Item = (i32, i64)>) -> Result<(), error::Consumer> {
        let control = |cause| error::Consumer::Control { step: "assign", cause };
        let mut list = TopicPartitionList::new();
        for (part, offset) in from {
            list.add_partition_offset(&self.topic, part, Offset::Offset(offset))
                .map_err(control)?;
        }
        self.consumer.assign(&list).map_err(control)
    }

    /// What came, without waiting.
    pub(crate) fn read(&mut self) -> Result<Vec<Heard>, Error> {
        let mut heard = Vec::new();
        while heard.len() < MAX_VERDICTS {
            match self.consumer.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    let (part, off) = (message.partition(), message.offset());
                    let verdict = match self.versions.read(&message) {
                        Ok(verdict) => Some(verdict),
                        Err(Failure::Registry(error)) => return Err(error.into()),
                        Err(Failure::Letter { error, .. }) => {
                            tracing::error!(partition = part, offset = off, error, "a verdict cannot be read");
                            None
                        }
                    };
                    heard.push(Heard { part, off, verdict });
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(cause)) if cause.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
                    self.pass_over_what_is_deleted()?;
                }
                Some(Err(cause)) => {
                    let error = error::Consumer::Poll(cause);
                    if !error.is_retriable() {
                        return Err(error.into());
                    }
                    tracing::debug!(%error, "reading verdicts goes on");
                }
            }
        }
        Ok(heard)
    }

    /// Nobody read verdicts for longer than they are kept, or none was ever read.
    fn pass_over_what_is_deleted(&self) -> Result<(), error::Consumer> {
        let offsets = |cause| error::Consumer::Offsets {
            what: "the ends of a partition of the verdicts",
            cause,
        };
        let assigned = self.consumer.assignment().map_err(offsets)?;
        let positions = self.consumer.position().map_err(offsets)?;
        let mut from = Vec::new();
        for element in assigned.elements() {
            let part = element.partition();
            let (low, high) = self
                .consumer
                .fetch_watermarks(&self.topic, part, ENDS_TIMEOUT)
                .map_err(offsets)?;
            let known = positions.find_partition(&self.topic, part).map(|found| found.offset());
            let at = match (known, element.offset()) {
                (Some(Offset::Offset(at)), _) | (_, Offset::Offset(at)) => at,
                _ => low,
            };
            if !(low..=high).contains(&at) {
                tracing::warn!(
                    partition = part,
                    from = at,
                    to = low,
                    "verdicts were deleted before they were read"
                );
            }
            from.push((part, if (low..=high).contains(&at) { at } else { low }));
        }
        self.assign(from.into_iter())
    }
}
