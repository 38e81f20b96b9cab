//! Owns the search for what a lost session had stored: it reads the tails of the topics since the token's time for the
//! session's producer_id, epoch and sequence numbers, which are in every record's headers.
//!
//! Comes after a token was read and before the session is ready. What it finds is stored, because it was read; what it
//! does not find is in doubt, and goes again.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use sluice_kafka::config::Isolation;
use sluice_kafka::{context, error, headers as record_headers};
use sluice_proto::bounds::MAX_IN_FLIGHT_EVENTS;
use sluice_proto::headers;
use tokio::sync::{Semaphore, oneshot};

/// How long a search may take, the wait for its turn included: a client waits for Ready meanwhile.
pub const SCAN_TIMEOUT: Duration = Duration::from_secs(3);
/// Records that a search looks at.
pub const SCAN_RECORDS: u64 = 1_000_000;
/// Bytes of their values.
pub const SCAN_BYTES: u64 = 256 * 1_024 * 1_024;
/// How much later than the token's time a session's last event can have been sent: a session whose events are not
/// acknowledged for the delivery timeout is told so, and two of these are generous. Nothing later is looked at.
pub const SCAN_SPAN: Duration = Duration::from_secs(60);
/// How much a broker's clock, which stamps the records, may be behind the clock of the gateway that made the token.
pub const CLOCK_SLACK: Duration = Duration::from_millis(500);
/// Searches that run at a time. Each has a consumer of its own.
pub const MAX_SCANS: usize = 4;
/// How long one poll waits.
const POLL_TIMEOUT: Duration = Duration::from_millis(20);
/// Most memory of records that a search fetches ahead, in KiB.
const QUEUE_KIB: u32 = 8 * 1_024;

type Reader = BaseConsumer<context::Consumer>;

/// What is searched for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The caller's tenant.
    pub tenant: Arc<str>,
    /// The session's producer.
    pub producer_id: String,
    /// Its epoch.
    pub epoch: u64,
    /// Numbers from here on are wanted.
    pub next: u64,
    /// But not those of these ranges, both ends included, which are known to be settled.
    pub known: Vec<(u64, u64)>,
    /// How many numbers are wanted, where that is known: the search ends when it has found as many.
    pub missing: Option<u64>,
    /// Nothing earlier is looked at, in milliseconds since the Unix epoch.
    pub since_ms: i64,
}

impl Wanted {
    fn wants(&self, sequence: u64) -> bool {
        // No session had more under way.
        let numbers = self.next..self.next.saturating_add(MAX_IN_FLIGHT_EVENTS.into());
        let is_known = |(first, last): &(u64, u64)| (first..=last).contains(&&sequence);
        numbers.contains(&sequence) && !self.known.iter().any(is_known)
    }
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Numbers that are stored.
    pub stored: BTreeSet<u64>,
    /// Something may have been overlooked: a bound was met, or Kafka did not answer.
    pub in_doubt: bool,
    /// A newer epoch of the producer has stored events.
    pub newer_epoch: Option<u64>,
}

/// Searches the topics that sessions write to.
pub struct Scanner {
    kafka: sluice_kafka::Config,
    /// With their numbers of partitions.
    topics: Vec<(String, i32)>,
    /// Asks for offsets.
    lookup: Reader,
    room: Arc<Semaphore>,
}

impl Scanner {
    /// A scanner of these topics, which have so many partitions each. Connects in the background.
    ///
    /// # Errors
    /// [`error::Consumer::Create`].
    pub fn new(kafka: sluice_kafka::Config, topics: Vec<(String, usize)>) -> Result<Self, error::Consumer> {
        let lookup = reader(&kafka)?;
        let count = |partitions| i32::try_from(partitions).unwrap_or(i32::MAX);
        let topics = topics.into_iter().map(|(topic, partitions)| (topic, count(partitions)));
        Ok(Self {
            kafka,
            topics: topics.collect(),
            lookup,
            room: Arc::new(Semaphore::new(MAX_SCANS)),
        })
    }

    /// Searches, for at most [`SCAN_TIMEOUT`]. Dropping the future ends the search soon.
    pub async fn find(self: &Arc<Self>, wanted: Wanted) -> Found {
        let deadline = Instant::now() + SCAN_TIMEOUT;
        let doubt = || Found {
            in_doubt: true,
            ..Found::default()
        };
        let turn = tokio::time::timeout(SCAN_TIMEOUT, self.room.clone().acquire_owned());
        let Ok(Ok(room)) = turn.await else {
            return doubt();
        };
        let (answer, found) = oneshot::channel();
        let scanner = self.clone();
        tokio::task::spawn_blocking(move || {
            let _room = room;
            let mut scan = Scan::new(&wanted, deadline);
            if let Err(error) = scan.run(&scanner, &answer) {
                tracing::warn!(%error, "a session's stored events cannot be searched for");
                scan.found.in_doubt = true;
            }
            // A client that went away does not wait any more.
            drop(answer.send(scan.found));
        });
        found.await.unwrap_or_else(|_| doubt())
    }

    /// Where each partition of a topic has the first record of this time or later. Those that have none are left out.
    fn since(
        &self,
        (topic, partitions): &(String, i32),
        millis: i64,
        timeout: Duration,
    ) -> Result<TopicPartitionList, error::Consumer> {
        let failed = |cause| error::Consumer::Offsets {
            what: "offsets of a time",
            cause,
        };
        let mut times = TopicPartitionList::new();
        for partition in 0..*partitions {
            times
                .add_partition_offset(topic, partition, Offset::Offset(millis))
                .map_err(failed)?;
        }
        let mut from = TopicPartitionList::new();
        for element in self
            .lookup
            .offsets_for_times(times, timeout)
            .map_err(failed)?
            .elements()
        {
            element.error().map_err(failed)?;
            if let Offset::Offset(_) = element.offset() {
                from.add_partition_offset(topic, element.partition(), element.offset())
                    .map_err(failed)?;
            }
        }
        Ok(from)
    }
}

fn reader(kafka: &sluice_kafka::Config) -> Result<Reader, error::Consumer> {
    // The gateways' records are in no transaction.
    let mut config = kafka.reader(Isolation::ReadUncommitted);
    config.set("queued.max.messages.kbytes", QUEUE_KIB.to_string());
    config
        .create_with_context(context::Consumer)
        .map_err(error::Consumer::Create)
}

struct Scan<'a> {
    wanted: &'a Wanted,
    deadline: Instant,
    last_ms: i64,
    records: u64,
    bytes: u64,
    found: Found,
}

impl<'a> Scan<'a> {
    fn new(wanted: &'a Wanted, deadline: Instant) -> Self {
        Self {
            wanted,
            deadline,
            last_ms: wanted.since_ms.saturating_add(SCAN_SPAN.as_millis() as i64),
            records: 0,
            bytes: 0,
            found: Found::default(),
        }
    }

    /// Reads one topic after the other until nothing more can be found or a bound is met. Blocks.
    fn run(&mut self, scanner: &Scanner, answer: &oneshot::Sender<Found>) -> Result<(), error::Consumer> {
        let mut consumer = None;
        for topic in &scanner.topics {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.found.in_doubt = true;
            }
            if self.is_over() || answer.is_closed() {
                break;
            }
            let since_ms = self.wanted.since_ms - CLOCK_SLACK.as_millis() as i64;
            let from = scanner.since(topic, since_ms, left)?;
            if from.count() > 0 {
                // Most topics have nothing so new, and then no consumer is made.
                let consumer = match &mut consumer {
                    Some(consumer) => consumer,
                    none => none.insert(reader(&scanner.kafka)?),
                };
                self.read(consumer, &from, answer)?;
            }
        }
        Ok(())
    }

    fn read(
        &mut self,
        consumer: &Reader,
        from: &TopicPartitionList,
        answer: &oneshot::Sender<Found>,
    ) -> Result<(), error::Consumer> {
        consumer
            .assign(from)
            .map_err(|cause| error::Consumer::Control { step: "assign", cause })?;
        let elements = from.elements();
        let mut open: HashSet<i32> = elements.iter().map(|element| element.partition()).collect();
        while !open.is_empty() && !self.is_over() && !answer.is_closed() {
            if self.records >= SCAN_RECORDS || self.bytes >= SCAN_BYTES || Instant::now() >= self.deadline {
                self.found.in_doubt = true;
                break;
            }
            match consumer.poll(POLL_TIMEOUT) {
                Some(Ok(message)) if self.look_at(&message) => {}
                Some(Ok(message)) => {
                    open.remove(&message.partition());
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(cause)) => return Err(error::Consumer::Poll(cause)),
                None => {}
            }
        }
        Ok(())
    }

    /// Whether nothing more is wanted, or may be looked for.
    fn is_over(&self) -> bool {
        self.found.in_doubt || self.is_complete()
    }

    fn is_complete(&self) -> bool {
        self.found.newer_epoch.is_some()
            || self
                .wanted
                .missing
                .is_some_and(|missing| self.found.stored.len() as u64 >= missing)
    }

    /// Takes one record in. False where its partition has nothing more to find.
    fn look_at(&mut self, message: &BorrowedMessage<'_>) -> bool {
        self.records += 1;
        self.bytes += message.payload_len() as u64;
        let names = [
            headers::PRODUCER_ID,
            headers::TENANT,
            headers::PRODUCER_EPOCH,
            headers::SEQUENCE,
        ];
        if let Ok([Some(producer_id), Some(tenant), epoch, sequence]) = record_headers::read(message.headers(), names)
            && producer_id == self.wanted.producer_id.as_bytes()
            && tenant == self.wanted.tenant.as_bytes()
            && let (Some(epoch), Some(sequence)) = (number(epoch), number(sequence))
        {
            if epoch > self.wanted.epoch {
                self.found.newer_epoch = Some(epoch);
            } else if epoch == self.wanted.epoch && self.wanted.wants(sequence) {
                self.found.stored.insert(sequence);
            }
        }
        message.timestamp().to_millis().unwrap_or_default() <= self.last_ms
    }
}

fn number(value: Option<&[u8]>) -> Option<u64> {
    record_headers::text(value)?.parse().ok()
}
