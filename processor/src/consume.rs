//! Owns the lane's consumer: what it is assigned, and how records become a batch.
//!
//! Comes first in the lane, before [`crate::decode`]. Kafka tells of a rebalance inside a poll, on the lane's own thread.
//! The callback only notes it, and assigns nothing: a partition is fetched from when its takeover is done, and from the
//! offset that the takeover found. So "paused" is the same as "assigned nothing", and the lane stays in its group.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sluice_kafka::error;
use sluice_kafka::metrics;

/// The lane's consumer.
pub(crate) type Consumer = BaseConsumer<Context>;

/// How large a batch may get, and how long it may wait for more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) max_events: usize,
    pub(crate) max_bytes: usize,
    pub(crate) linger: Duration,
}

/// What the group gave this lane.
#[derive(Clone, Default)]
pub(crate) struct Assignment {
    /// Counts assignments and revocations.
    pub(crate) change: u64,
    /// In ascending order.
    pub(crate) partitions: Vec<i32>,
    /// The lane's place in the group's generation that made this assignment. `None` while there is no assignment.
    ///
    /// It is taken once, when the partitions are assigned, and not with each batch: librdkafka resets it when the group
    /// throws the lane out, and offsets sent without a generation are not checked against one.
    pub(crate) membership: Option<Arc<ConsumerGroupMetadata>>,
}

/// How often an error of polling is logged: while no broker can be reached there are thousands.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Notes rebalances for the lane.
#[derive(Default)]
pub(crate) struct Context {
    change: AtomicU64,
    assignment: Mutex<Assignment>,
    logged: Mutex<Option<Instant>>,
}

impl Context {
    fn note(&self, partitions: Vec<i32>, membership: Option<ConsumerGroupMetadata>) {
        let change = self.change.fetch_add(1, Ordering::Relaxed) + 1;
        *self.lock() = Assignment {
            change,
            partitions,
            membership: membership.map(Arc::new),
        };
    }

    /// The assignment as of the last poll.
    pub(crate) fn assignment(&self) -> Assignment {
        self.lock().clone()
    }

    /// Whether the assignment is still the one with this count.
    pub(crate) fn is_current(&self, change: u64) -> bool {
        self.change.load(Ordering::Relaxed) == change
    }

    fn warn(&self, error: &error::Consumer) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|last| last.elapsed() > LOG_EVERY) {
            *logged = Some(Instant::now());
            tracing::warn!(%error, "polling goes on");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Assignment> {
        self.assignment.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        // Polling returns the same error.
        tracing::debug!(%error, reason, "consumer");
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &Consumer, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let assigned = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let mut partitions: Vec<i32> = partitions
                .elements()
                .iter()
                .map(|element| element.partition())
                .collect();
            partitions.sort_unstable();
            tracing::info!(?partitions, "assigned");
            self.note(partitions, consumer.group_metadata());
            consumer.assign(&TopicPartitionList::new())
        } else {
            tracing::info!("revoked");
            self.note(Vec::new(), None);
            consumer.unassign()
        };
        if let Err(error) = assigned {
            tracing::warn!(%error, "a rebalance could not be acknowledged");
        }
    }
}

/// What a lane is given to do.
pub(crate) enum Collected<'c> {
    /// Records of the current assignment, at least one.
    Records(Vec<BorrowedMessage<'c>>),
    /// Nothing came within the wait.
    Idle,
    /// The assignment changed. Records that were collected before are dropped: they belong to the old one.
    Rebalanced,
}

/// Joins the group. Nothing is fetched before [`fetch_from`].
///
/// # Errors
/// When the consumer cannot be created or the topic not be subscribed to.
pub(crate) fn join(config: &ClientConfig, topic: &str) -> Result<Consumer, error::Consumer> {
    let consumer =
        BaseConsumer::from_config_and_context(config, Context::default()).map_err(error::Consumer::Create)?;
    consumer.subscribe(&[topic]).map_err(|cause| error::Consumer::Control {
        step: "subscribe",
        cause,
    })?;
    Ok(consumer)
}

/// Fetches these partitions from these offsets on, and no others. None at all pauses the lane.
///
/// # Errors
/// When librdkafka refuses, which is for good.
pub(crate) fn fetch_from(
    consumer: &Consumer,
    topic: &str,
    offsets: impl IntoIterator<Item = (i32, i64)>,
) -> Result<(), error::Consumer> {
    let control = |cause| error::Consumer::Control { step: "assign", cause };
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        list.add_partition_offset(topic, partition, Offset::Offset(offset))
            .map_err(control)?;
    }
    consumer.assign(&list).map_err(control)
}

/// What a lane never does: commits offsets before anything is decided. Only where the safeguard `offsets-last` is taken out.
pub(crate) fn commit_early(consumer: &Consumer, records: &[BorrowedMessage<'_>]) -> Result<(), error::Consumer> {
    records.iter().try_for_each(|record| {
        let committed = consumer.commit_message(record, CommitMode::Sync);
        committed.map_err(|cause| error::Consumer::Control { step: "commit", cause })
    })
}

/// Waits for a first record, and collects what else is there up to the bounds.
///
/// # Errors
/// When the consumer can never be used again. Any other error is logged and counted here, because polling on is all that
/// there is to do.
pub(crate) fn collect<'c>(
    consumer: &'c Consumer,
    bounds: &Bounds,
    wait: Duration,
    change: u64,
    metrics: &metrics::Consumer,
) -> Result<Collected<'c>, error::Consumer> {
    let mut records = Vec::new();
    let mut bytes = 0;
    let mut deadline = None;
    loop {
        // The clock is asked only where there is something to wait for.
        let left = || {
            deadline.map_or(wait, |deadline: Instant| {
                deadline.saturating_duration_since(Instant::now())
            })
        };
        let polled = consumer.poll(Duration::ZERO).or_else(|| consumer.poll(left()));
        if !consumer.context().is_current(change) {
            return Ok(Collected::Rebalanced);
        }
        match polled {
            Some(Ok(record)) => {
                bytes += record.payload_len();
                records.push(record);
                if records.len() >= bounds.max_events || bytes >= bounds.max_bytes {
                    break;
                }
                deadline.get_or_insert_with(|| Instant::now() + bounds.linger);
            }
            Some(Err(source)) => {
                let error = error::Consumer::Poll(source);
                metrics.failed(&error);
                if error.is_fatal() {
                    return Err(error);
                }
                consumer.context().warn(&error);
                break;
            }
            None => break,
        }
    }
    if records.is_empty() {
        return Ok(Collected::Idle);
    }
    metrics.consumed(records.len() as u64);
    Ok(Collected::Records(records))
}
