//! The decision loop: the driver that reads the topic of decisions once for the whole gateway, on a thread of its own,
//! hands each record through `decode`, and the entries of a burst to `route`.
//!
//! It reads only what is committed, without a group, from the end that it found at its start.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sluice_kafka::config::Isolation;
use sluice_kafka::{context, error, fail};
use sluice_proto::avro::DecodeError;
use tokio_util::sync::CancellationToken;

use super::Source;
use super::cursor::Cursor;
use super::decode::{Entry, Reader};
use super::route::Router;
use crate::metrics::Metrics;

/// How long one poll waits, and so how late the end of the process may be noticed.
pub const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// Records taken in a row before subscriptions are woken.
pub const BURST_RECORDS: usize = 512;
/// How long asking for offsets may take.
pub const OFFSETS_TIMEOUT: Duration = Duration::from_secs(10);
/// Records before the end of each partition that the start reads, to learn the partition's high-watermark: as many as a
/// late copy of a decision could follow.
pub const LOOK_BACK_RECORDS: i64 = 64;
/// How long that may take; without an answer the filter begins with what it knows.
pub const LOOK_BACK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the loop rests before it tries to replace a consumer again.
pub const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Most memory of records that one subscription's consumer fetched ahead, in KiB.
pub const SMALL_QUEUE_KIB: u32 = 4 * 1_024;
/// Records of a partition that one subscription's consumer tries to have fetched ahead.
pub const SMALL_QUEUE_RECORDS: u32 = 5_000;

/// A consumer that is polled, and whose errors are seen there.
pub type Polled = BaseConsumer<context::Consumer>;

/// The decision loop cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] error::Consumer),
    /// The schema.
    #[error(transparent)]
    Schema(#[from] DecodeError),
}

impl Error {
    /// Whether the same try may succeed later.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Kafka(error) if error.is_retriable())
    }
}

/// The decision loop, at its place in every partition.
pub struct Consumer {
    source: Source,
    router: Arc<Router>,
    metrics: Metrics,
    consumer: Polled,
    reader: Reader,
}

impl Source {
    /// A consumer assigned to every partition at these offsets, for the whole gateway.
    ///
    /// # Errors
    /// [`error::Consumer`].
    pub fn consumer(&self, next: &[i64]) -> Result<Polled, error::Consumer> {
        self.assigned(self.kafka.reader(Isolation::ReadCommitted), next)
    }

    /// The same for one subscription, of which there may be many: it fetches less ahead.
    ///
    /// # Errors
    /// [`error::Consumer`].
    pub fn small_consumer(&self, next: &[i64]) -> Result<Polled, error::Consumer> {
        let mut config = self.kafka.reader(Isolation::ReadCommitted);
        config.set("queued.max.messages.kbytes", SMALL_QUEUE_KIB.to_string());
        config.set("queued.min.messages", SMALL_QUEUE_RECORDS.to_string());
        self.assigned(config, next)
    }

    fn assigned(&self, config: ClientConfig, next: &[i64]) -> Result<Polled, error::Consumer> {
        let consumer: Polled = config
            .create_with_context(context::Consumer)
            .map_err(error::Consumer::Create)?;
        let mut partitions = TopicPartitionList::with_capacity(next.len());
        for (partition, offset) in (0..).zip(next) {
            partitions
                .add_partition_offset(&self.topic, partition, Offset::Offset(*offset))
                .map_err(control)?;
        }
        consumer.assign(&partitions).map_err(control)?;
        Ok(consumer)
    }

    /// First and end offset of every partition; the end is that of what is committed. Blocks.
    ///
    /// # Errors
    /// [`error::Consumer::Offsets`].
    pub fn watermarks(&self, consumer: &Polled, timeout: Duration) -> Result<Vec<(i64, i64)>, error::Consumer> {
        let partitions = 0..i32::try_from(self.partitions).unwrap_or(i32::MAX);
        let watermarks = partitions.map(|partition| consumer.fetch_watermarks(&self.topic, partition, timeout));
        watermarks
            .collect::<Result<_, _>>()
            .map_err(|cause| error::Consumer::Offsets {
                what: "watermarks",
                cause,
            })
    }
}

const fn control(cause: KafkaError) -> error::Consumer {
    error::Consumer::Control { step: "assign", cause }
}

impl Consumer {
    /// Finds the ends of all partitions and begins there. Blocks.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn build(source: Source, metrics: Metrics) -> Result<Self, Error> {
        let mut reader = Reader::new(source.schema_id, source.registry.clone())?;
        let consumer = source.consumer(&[])?;
        let watermarks = source.watermarks(&consumer, OFFSETS_TIMEOUT)?;
        let start = look_back(&source, &mut reader, &watermarks)?;
        let consumer = source.consumer(&start.next)?;
        Ok(Self {
            source,
            router: Arc::new(Router::new(&start)),
            metrics,
            consumer,
            reader,
        })
    }

    /// The rings that the loop fills.
    pub fn router(&self) -> Arc<Router> {
        self.router.clone()
    }

    /// Reads until `stop` is cancelled. Blocks: give it a thread.
    pub fn run(mut self, stop: &CancellationToken) {
        let mut burst = Vec::with_capacity(BURST_RECORDS);
        while !stop.is_cancelled() {
            let mut timeout = POLL_TIMEOUT;
            while burst.len() < BURST_RECORDS {
                let Some(polled) = self.consumer.poll(timeout) else {
                    break;
                };
                timeout = Duration::ZERO;
                match polled {
                    Ok(message) => match read(&mut self.reader, &message, stop) {
                        Ok(entry) => burst.push(entry),
                        Err(error) => {
                            let (partition, offset) = (message.partition(), message.offset());
                            tracing::error!(partition, offset, %error, "a decision cannot be read and is skipped");
                            self.metrics.unreadable.inc();
                            self.append(&mut burst);
                            self.router.skip(partition, offset);
                        }
                    },
                    Err(KafkaError::PartitionEOF(partition)) => {
                        self.append(&mut burst);
                        self.router.reached_end(partition);
                    }
                    Err(error) => {
                        if self.failed(error).is_break() {
                            self.append(&mut burst);
                            self.restart(stop);
                        }
                        break;
                    }
                }
            }
            self.append(&mut burst);
        }
    }

    fn append(&self, burst: &mut Vec<Entry>) {
        if !burst.is_empty() {
            fail::pass("gateway.routing");
            self.source.metrics.consumed(burst.len() as u64);
            self.metrics.repeated.inc_by(self.router.append(burst.drain(..)));
        }
    }

    /// Whether the consumer has to be replaced.
    fn failed(&self, error: KafkaError) -> ControlFlow<()> {
        let error = error::Consumer::Poll(error);
        self.source.metrics.failed(&error);
        let lost = is_out_of_range(error.kafka());
        if lost || error.is_fatal() {
            tracing::error!(%error, "the consumer of decisions is replaced");
            return ControlFlow::Break(());
        }
        tracing::warn!(%error, "consumer of decisions");
        ControlFlow::Continue(())
    }

    /// Takes a new consumer, where the rings end or, where those offsets are gone, at the nearest that there are.
    fn restart(&mut self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            match self.replacement() {
                Ok(consumer) => {
                    self.consumer = consumer;
                    return;
                }
                Err(error) => tracing::error!(%error, "the consumer of decisions cannot be replaced yet"),
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "the bounded pause between two tries, on a thread of its own"
            )]
            std::thread::sleep(RESTART_PAUSE);
        }
    }

    fn replacement(&self) -> Result<Polled, error::Consumer> {
        let watermarks = self.source.watermarks(&self.source.consumer(&[])?, OFFSETS_TIMEOUT)?;
        let mut next = self.router.ends();
        for (partition, (next, (first, end))) in (0..).zip(next.iter_mut().zip(watermarks)) {
            let nearest = (*next).clamp(first, end.max(first));
            if nearest != *next {
                tracing::error!(
                    partition,
                    from = *next,
                    to = nearest,
                    "decisions are not there any more"
                );
                self.router.restart(partition, nearest);
                *next = nearest;
            }
        }
        self.source.consumer(&next)
    }
}

/// The ends of all partitions, with the high-watermarks that the last records before them tell.
fn look_back(source: &Source, reader: &mut Reader, watermarks: &[(i64, i64)]) -> Result<Cursor, Error> {
    let ends: Vec<i64> = watermarks.iter().map(|(_, end)| *end).collect();
    let from = watermarks
        .iter()
        .map(|(first, end)| (end - LOOK_BACK_RECORDS).max(*first));
    let consumer = source.small_consumer(&from.collect::<Vec<_>>())?;
    let deadline = Instant::now() + LOOK_BACK_TIMEOUT;
    let mut start = Cursor::new(ends.clone());
    let mut reached = vec![false; ends.len()];
    while !reached.iter().all(|reached| *reached) && Instant::now() < deadline {
        match consumer.poll(POLL_TIMEOUT) {
            Some(Ok(message)) => {
                let partition = usize::try_from(message.partition()).unwrap_or_default();
                if message.offset() >= ends[partition] {
                    reached[partition] = true;
                } else if let Ok(entry) = reader.read(&message) {
                    start.pass(partition, entry.offset, entry.decision.source_offset);
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                reached[usize::try_from(partition).unwrap_or_default()] = true;
            }
            Some(Err(error)) => tracing::debug!(%error, "looking back at the decisions"),
            None => {}
        }
    }
    Ok(start)
}

/// Reads one record, and goes on trying while the registry that knows its schema is away: a decision is not passed over
/// for that.
pub(super) fn read(
    reader: &mut Reader,
    message: &BorrowedMessage<'_>,
    stop: &CancellationToken,
) -> Result<Entry, super::decode::Error> {
    loop {
        match reader.read(message) {
            Err(error) if error.is_retriable() && !stop.is_cancelled() => {
                tracing::warn!(%error, "a decision's schema cannot be asked for yet");
            }
            read => return read,
        }
    }
}

/// Whether the position is not in the log: deleted by retention, or of a topic that was made again.
pub(super) fn is_out_of_range(error: &KafkaError) -> bool {
    matches!(
        error::code(error),
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::LogTruncation)
    )
}
