//! Owns the lane's consumer: what it is assigned, and how records become a batch.
//!
//! Comes first in the lane, before [`crate::decode`]. Kafka tells of a rebalance inside a poll, on the lane's own thread.
//! The callback only notes it, and assigns nothing: a partition is fetched from when its takeover is done, and from the
//! offset that the takeover found. So "paused" is the same as "assigned nothing", and the lane stays in its group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Message as _, TopicPartitionList};
use sluice_kafka::error;
use sluice_kafka::metrics;

use crate::world::Member;

/// How large a batch may get, and how long it may wait for more at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) max_events: usize,
    pub(crate) max_bytes: usize,
    pub(crate) linger: Duration,
}

/// What the group gave this lane.
pub(crate) struct Assignment<M> {
    /// Counts assignments and revocations.
    pub(crate) change: u64,
    /// In ascending order.
    pub(crate) partitions: Vec<i32>,
    /// The lane's place in the group's generation that made this assignment. `None` while there is no assignment.
    ///
    /// It is taken once, when the partitions are assigned, and not with each batch: librdkafka resets it when the group
    /// throws the lane out, and offsets sent without a generation are not checked against one.
    pub(crate) membership: Option<Arc<M>>,
}

impl<M> Assignment<M> {
    /// As it is before the first poll.
    pub(crate) const fn none() -> Self {
        Self {
            change: 0,
            partitions: Vec::new(),
            membership: None,
        }
    }
}

/// How often librdkafka tells where the partitions end, in milliseconds.
pub(crate) const STATISTICS_MS: u32 = 5_000;
/// How often an error of polling is logged: while no broker can be reached there are thousands.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Notes rebalances for the lane, and where the partitions end.
pub(crate) struct Context {
    change: AtomicU64,
    assignment: Mutex<Assignment<ConsumerGroupMetadata>>,
    /// By partition.
    ends: Mutex<BTreeMap<i32, i64>>,
    logged: Mutex<Option<Instant>>,
}

impl Context {
    pub(crate) const fn new() -> Self {
        Self {
            change: AtomicU64::new(0),
            assignment: Mutex::new(Assignment::none()),
            ends: Mutex::new(BTreeMap::new()),
            logged: Mutex::new(None),
        }
    }

    fn note(&self, partitions: Vec<i32>, membership: Option<ConsumerGroupMetadata>) {
        let change = self.change.fetch_add(1, Ordering::Relaxed) + 1;
        *self.lock() = Assignment {
            change,
            partitions,
            membership: membership.map(Arc::new),
        };
    }

    /// The assignment as of the last poll.
    pub(crate) fn assignment(&self) -> Assignment<ConsumerGroupMetadata> {
        let assignment = self.lock();
        Assignment {
            change: assignment.change,
            partitions: assignment.partitions.clone(),
            membership: assignment.membership.clone(),
        }
    }

    /// Whether the assignment is still the one with this count.
    pub(crate) fn is_current(&self, change: u64) -> bool {
        self.change.load(Ordering::Relaxed) == change
    }

    /// The offset after a partition's last record, by the newest statistics.
    pub(crate) fn known_end(&self, partition: i32) -> Option<i64> {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.get(&partition).copied()
    }

    /// Says in the log that polling goes on, not too often.
    pub(crate) fn warn(&self, error: &error::Consumer) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|last| last.elapsed() > LOG_EVERY) {
            *logged = Some(Instant::now());
            tracing::warn!(%error, "polling goes on");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Assignment<ConsumerGroupMetadata>> {
        self.assignment.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        let partitions = statistics.topics.values().flat_map(|topic| topic.partitions.values());
        // Of a partition that is not fetched it says something negative.
        let known = partitions.filter(|partition| partition.hi_offset >= 0);
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.extend(known.map(|partition| (partition.partition, partition.hi_offset)));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Polling returns the same error.
        tracing::debug!(%error, reason, "consumer");
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
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
pub(crate) enum Collected<R> {
    /// Records of the current assignment, at least one.
    Records(Vec<R>),
    /// Nothing came within the wait.
    Idle,
    /// The assignment changed. Records that were collected before are dropped: they belong to the old one.
    Rebalanced,
}

/// Waits for a first record, and collects what else is there up to the bounds. `now` tells the time.
///
/// # Errors
/// When the consumer can never be used again. Any other error is logged and counted here, because polling on is all that
/// there is to do.
pub(crate) fn collect<'c, M: Member>(
    consumer: &'c M,
    bounds: &Bounds,
    wait: Duration,
    change: u64,
    metrics: &metrics::Consumer,
    now: impl Fn() -> Instant,
) -> Result<Collected<M::Record<'c>>, error::Consumer> {
    let mut records = Vec::new();
    let mut bytes = 0;
    let mut deadline = None;
    loop {
        // The clock is asked only where there is something to wait for.
        let left = || deadline.map_or(wait, |deadline: Instant| deadline.saturating_duration_since(now()));
        let polled = consumer.poll(Duration::ZERO).or_else(|| consumer.poll(left()));
        if !consumer.is_current(change) {
            return Ok(Collected::Rebalanced);
        }
        match polled {
            Some(Ok(record)) => {
                bytes += record.payload().map_or(0, <[u8]>::len);
                records.push(record);
                if records.len() >= bounds.max_events || bytes >= bounds.max_bytes {
                    break;
                }
                deadline.get_or_insert_with(|| now() + bounds.linger);
            }
            Some(Err(source)) => {
                let error = error::Consumer::Poll(source);
                metrics.failed(&error);
                if error.is_fatal() {
                    return Err(error);
                }
                consumer.warn(&error);
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
