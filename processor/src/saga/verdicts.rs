//! Owns the reading of verdicts, from the offsets that Postgres keeps: what follows from a verdict is stored in one
//! transaction with the offset after it, so that each is heeded exactly once without a transaction of Kafka's.
//!
//! Read by [`super::work`] at the beginning of each round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};
use sluice_kafka::config::Isolation;
use sluice_kafka::registry::Registry;
use sluice_kafka::{context, error};
use sluice_proto::settlement::{MAX_ACTOR_BYTES, MAX_REASON_BYTES, Verdict};
use sluice_proto::{avro, validate};

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
    /// The offset of the next verdict in each partition.
    next: BTreeMap<i32, i64>,
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
            next: BTreeMap::new(),
            versions: Versions::new(schema_id, registry)?,
        })
    }

    /// Reads these partitions, from these offsets on.
    pub(crate) fn assign(&mut self, from: impl Iterator<Item = (i32, i64)>) -> Result<(), error::Consumer> {
        self.next = from.collect();
        self.read_from_there()
    }

    /// What came, without waiting.
    pub(crate) fn read(&mut self) -> Result<Vec<Heard>, Error> {
        let (mut heard, mut deleted) = (Vec::new(), false);
        while heard.len() < MAX_VERDICTS {
            match self.consumer.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
                    let (part, off) = (message.partition(), message.offset());
                    let Some(next) = self.next.get_mut(&part).filter(|next| off >= **next) else {
                        continue;
                    };
                    let verdict = match self.versions.read(&message) {
                        Ok(verdict) if !is_acceptable(&verdict) => {
                            tracing::error!(
                                partition = part,
                                offset = off,
                                "a verdict has a field that no gateway writes"
                            );
                            None
                        }
                        Ok(verdict) => Some(verdict),
                        Err(Failure::Registry(error)) => return Err(error.into()),
                        Err(Failure::Letter { error, .. }) => {
                            tracing::error!(partition = part, offset = off, error, "a verdict cannot be read");
                            None
                        }
                    };
                    *next = off + 1;
                    heard.push(Heard { part, off, verdict });
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(cause)) if is_deleted(&cause) => {
                    deleted = true;
                    break;
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
        if deleted {
            self.pass_over_what_is_deleted()?;
        }
        Ok(heard)
    }

    /// Nobody read verdicts for longer than they are kept, or none was ever read.
    fn pass_over_what_is_deleted(&mut self) -> Result<(), error::Consumer> {
        for (part, next) in &mut self.next {
            let (low, high) = self
                .consumer
                .fetch_watermarks(&self.topic, *part, ENDS_TIMEOUT)
                .map_err(|cause| error::Consumer::Offsets {
                    what: "the ends of a partition of the verdicts",
                    cause,
                })?;
            if !(low..=high).contains(next) {
                tracing::warn!(
                    partition = part,
                    from = *next,
                    to = low,
                    "verdicts were deleted before they were read"
                );
                *next = low;
            }
        }
        self.read_from_there()
    }

    fn read_from_there(&self) -> Result<(), error::Consumer> {
        let control = |cause| error::Consumer::Control { step: "assign", cause };
        let mut list = TopicPartitionList::new();
        for (part, offset) in &self.next {
            list.add_partition_offset(&self.topic, *part, Offset::Offset(*offset))
                .map_err(control)?;
        }
        self.consumer.assign(&list).map_err(control)
    }
}

/// Whether the fields are within what gateways let through, and fit Postgres, which has no room for a NUL character. Whoever may
/// write to Kafka may write anything.
fn is_acceptable(verdict: &Verdict) -> bool {
    let Verdict {
        tenant, actor, reason, ..
    } = verdict;
    validate::tenant(tenant).is_ok()
        && (1..=MAX_ACTOR_BYTES).contains(&actor.len())
        && reason.len() <= MAX_REASON_BYTES
        && ![actor, reason].into_iter().any(|text| text.contains('\0'))
}

/// Whether a position is not among what is kept.
fn is_deleted(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(
        code,
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
    )
}
