//! Owns the way back into the ring for a subscription that is behind it: a consumer of its own, on a thread that may block,
//! which reads from the subscription's position until the ring has everything from there on.
//!
//! Comes between `route` and `subscribe` for as long as it lasts. What it reads waits in a short channel, so that a slow
//! subscriber slows its own reader down and nobody else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use sluice_kafka::error;
use sluice_proto::pb::ExpiredPosition;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::consume::Polled;
use super::cursor::Cursor;
use super::decode::{Entry, Reader};
use super::filter::Filter;
use super::{Shared, consume, start};
use crate::metrics::Counted;
use crate::status::Failure;

/// Steps that wait for the subscription.
pub const STEPS: usize = 2;
/// Records of a step.
pub const STEP_RECORDS: usize = 512;
/// How long a reader waits for a subscription that takes no step, for want of credit or because its client does not read,
/// before it leaves its room to others.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reader serves one subscription while all room is taken.
pub const TURN: Duration = Duration::from_secs(10);
/// How long a reader that finds nothing waits before it looks whether it is still wanted.
pub const POLL_TIMEOUT: Duration = Duration::from_millis(50);

/// A stretch of the topic.
#[derive(Debug)]
pub struct Step {
    /// What passed the filter.
    pub entries: Vec<Arc<Entry>>,
    /// The position after it.
    pub cursor: Cursor,
}

/// The way back, as long as it lasts: the channel closes when the ring is reached, when nothing was taken from it for
/// [`STEP_TIMEOUT`], and after [`TURN`] where all room is taken. The subscription goes on from the last step that it took, with
/// another reader where it is still behind.
pub type Steps = mpsc::Receiver<Result<Step, Failure>>;

struct CatchUp {
    shared: Arc<Shared>,
    consumer: Polled,
    reader: Reader,
    cursor: Cursor,
    filter: Filter,
    on_expired: ExpiredPosition,
    steps: mpsc::Sender<Result<Step, Failure>>,
    /// Where the rings began when the reader did.
    starts: Vec<i64>,
}

/// Starts a reader at the cursor. It ends when it reaches the ring, fails, is not listened to for [`STEP_TIMEOUT`], leaves its
/// room to others after [`TURN`], or the receiver is dropped.
pub fn begin(
    shared: Arc<Shared>,
    cursor: Cursor,
    filter: Filter,
    on_expired: ExpiredPosition,
    room: OwnedSemaphorePermit,
) -> Steps {
    let (steps, receiver) = mpsc::channel(STEPS);
    tokio::task::spawn_blocking(move || {
        let _room = room;
        let _reading = Counted::new(&shared.metrics.catch_ups);
        let failed = steps.clone();
        let result = CatchUp::build(shared, cursor, filter, on_expired, steps).and_then(CatchUp::run);
        if let Err(failure) = result {
            // Where the subscription is gone, nobody needs to know; one that takes no step meets the failure again.
            give(&failed, Err(failure));
        }
    });
    receiver
}

/// Hands the subscription a step, or why there are no more; `false` where there was no room in time. Blocks.
fn give(steps: &mpsc::Sender<Result<Step, Failure>>, step: Result<Step, Failure>) -> bool {
    Handle::current()
        .block_on(steps.send_timeout(step, STEP_TIMEOUT))
        .is_ok()
}

impl CatchUp {
    fn build(
        shared: Arc<Shared>,
        cursor: Cursor,
        filter: Filter,
        on_expired: ExpiredPosition,
        steps: mpsc::Sender<Result<Step, Failure>>,
    ) -> Result<Self, Failure> {
        let source = &shared.source;
        // Before the first fetch, so that the end of a partition, once it is met, lies behind.
        let starts = shared.router.starts();
        let built = Reader::new(source.schema_id, source.registry.clone())
            .map_err(|error| error.to_string())
            .and_then(|reader| {
                let consumer = source.small_consumer(&cursor.next).map_err(|error| error.to_string())?;
                Ok((reader, consumer))
            });
        let (reader, consumer) = built.map_err(|error| {
            tracing::error!(error, "a subscription cannot catch up");
            start::unavailable()
        })?;
        Ok(Self {
            shared,
            consumer,
            reader,
            cursor,
            filter,
            on_expired,
            steps,
            starts,
        })
    }

    fn run(mut self) -> Result<(), Failure> {
        let began = Instant::now();
        let mut entries = Vec::new();
        while !self.steps.is_closed() && !self.shared.draining.is_cancelled() {
            let mut timeout = POLL_TIMEOUT;
            for _ in 0..STEP_RECORDS {
                let Some(polled) = self.consumer.poll(timeout) else {
                    break;
                };
                timeout = Duration::ZERO;
                match polled {
                    Ok(message) => match consume::read(&mut self.reader, &message, &self.shared.draining) {
                        Ok(entry) => {
                            let partition = usize::try_from(entry.partition).unwrap_or_default();
                            let first = self.cursor.pass(partition, entry.offset, entry.decision.source_offset);
                            if first && self.filter.passes(&entry.decision) {
                                entries.push(Arc::new(entry));
                            }
                        }
                        // Counted and logged once, by the decision loop that met it first.
                        Err(error) => tracing::debug!(%error, "a decision cannot be read and is skipped"),
                    },
                    Err(KafkaError::PartitionEOF(partition)) => self.reached_end(partition),
                    Err(error) => {
                        self.failed(error)?;
                        break;
                    }
                }
            }
            let arrived = self.has_arrived();
            let step = Step {
                entries: std::mem::take(&mut entries),
                cursor: self.cursor.clone(),
            };
            let is_over = began.elapsed() >= TURN && self.shared.catch_ups.available_permits() == 0;
            if !give(&self.steps, Ok(step)) || arrived || is_over {
                return Ok(());
            }
        }
        Ok(())
    }

    /// There was nothing between the last record and where the ring began, whatever its offset.
    fn reached_end(&mut self, partition: i32) {
        let partition = usize::try_from(partition).unwrap_or_default();
        let next = &mut self.cursor.next[partition];
        *next = (*next).max(self.starts[partition]);
    }

    fn has_arrived(&self) -> bool {
        let starts = self.shared.router.starts();
        self.cursor.next.iter().zip(starts).all(|(next, start)| *next >= start)
    }

    fn failed(&mut self, error: KafkaError) -> Result<(), Failure> {
        let error = error::Consumer::Poll(error);
        self.shared.source.metrics.failed(&error);
        if consume::is_out_of_range(error.kafka()) {
            return self.expired();
        }
        if error.is_fatal() {
            tracing::error!(%error, "a subscription cannot catch up");
            return Err(start::unavailable());
        }
        // The client library goes on trying.
        tracing::debug!(%error, "reader of a subscription");
        Ok(())
    }

    /// Retention overtook the reader: goes on where the subscription chose.
    fn expired(&mut self) -> Result<(), Failure> {
        let unavailable = |error: error::Consumer| {
            tracing::warn!(%error, "a subscription's position expired, and no other can be found");
            start::unavailable()
        };
        let watermarks = self.shared.lookup.watermarks().map_err(unavailable)?;
        self.cursor = start::in_log(self.cursor.clone(), &watermarks, self.on_expired)?.cursor;
        self.starts = self.shared.router.starts();
        self.consumer = self
            .shared
            .source
            .small_consumer(&self.cursor.next)
            .map_err(unavailable)?;
        Ok(())
    }
}
