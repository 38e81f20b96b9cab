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
        let is_known = |(first, last): &(u64, u64)| (first..=last).contains(&&sequence);
        sequence >= self.next && !self.known.iter().any(is_known)
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
    records: u64,
    bytes: u64,
    found: Found,
}

impl<'a> Scan<'a> {
    fn new(wanted: &'a Wanted, deadline: Instant) -> Self {
        Self {
            wanted,
            deadline,
            records: 0,
            bytes: 0,
            found: Found::default(),
        }
    }

    /// Reads one topic after the other until nothing more can be found or a bound is met. Blocks.
    fn run(&mut self, scanner: &Scanner, answer: &oneshot::Sender<Found>) -> Result<(), error::Consumer> {
        let mut consumer = None;
        for topic in &scanner.topics {
            if self.is_complete() || self.is_spent() || answer.is_closed() {
                break;
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
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
        while !open.is_empty() && !self.is_complete() && !self.is_spent() && !answer.is_closed() {
            match consumer.poll(POLL_TIMEOUT) {
                Some(Ok(message)) => self.look_at(&message),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(cause)) => return Err(error::Consumer::Poll(cause)),
                None => {}
            }
        }
        Ok(())
    }

    /// Whether a bound is met, so that something may be overlooked.
    fn is_spent(&mut self) -> bool {
        let is_spent = self.records >= SCAN_RECORDS || self.bytes >= SCAN_BYTES || Instant::now() >= self.deadline;
        self.found.in_doubt |= is_spent;
        is_spent
    }

    fn is_complete(&self) -> bool {
        self.found.newer_epoch.is_some()
            || self
                .wanted
                .missing
                .is_some_and(|missing| self.found.stored.len() as u64 >= missing)
    }

    fn look_at(&mut self, message: &BorrowedMessage<'_>) {
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
            self.meet(epoch, sequence);
        }
    }

    /// Takes in that the producer has stored an event of this number.
    fn meet(&mut self, epoch: u64, sequence: u64) {
        if epoch > self.wanted.epoch {
            self.found.newer_epoch = Some(epoch);
        } else if epoch == self.wanted.epoch && self.wanted.wants(sequence) {
            // No more are under way at a time. But while one waits for its partition others are settled and followed by
            // more, and an answer with all of those would be too long.
            if sequence - self.wanted.next < u64::from(MAX_IN_FLIGHT_EVENTS) {
                self.found.stored.insert(sequence);
            } else {
                self.found.in_doubt = true;
            }
        }
    }
}

fn number(value: Option<&[u8]>) -> Option<u64> {
    record_headers::text(value)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders};
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
    use sluice_kafka::config::BURST_LINGER_MS;

    use super::*;

    const TOPIC: &str = "events";
    const MINUTE_MS: i64 = 60_000;

    fn wanted() -> Wanted {
        Wanted {
            tenant: "acme".into(),
            producer_id: "p".to_owned(),
            epoch: 3,
            next: 10,
            known: vec![(12, 13)],
            missing: None,
            since_ms: 1_800_000_000_000,
        }
    }

    #[test]
    fn numbers_that_are_too_far_on_leave_a_doubt_and_the_search_goes_on() {
        let wanted = wanted();
        let far = wanted.next + u64::from(MAX_IN_FLIGHT_EVENTS);
        let mut scan = Scan::new(&wanted, Instant::now() + SCAN_TIMEOUT);
        for (epoch, sequence) in [(3, 9), (3, 10), (2, 11), (3, 12), (3, far - 1), (2, far)] {
            scan.meet(epoch, sequence);
        }
        assert_eq!(scan.found.stored, BTreeSet::from([10, far - 1]));
        assert!(!scan.found.in_doubt);
        scan.meet(3, far);
        assert!(scan.found.in_doubt && !scan.is_complete() && !scan.is_spent());
        scan.meet(4, 1);
        assert!(scan.is_complete());
        assert_eq!(scan.found.newer_epoch, Some(4));
    }

    #[test]
    fn a_bound_that_is_met_leaves_a_doubt() {
        let wanted = wanted();
        let mut scan = Scan::new(&wanted, Instant::now() + SCAN_TIMEOUT);
        assert!(!scan.is_spent());
        scan.records = SCAN_RECORDS;
        assert!(scan.is_spent() && scan.found.in_doubt);
        let mut late = Scan::new(&wanted, Instant::now());
        assert!(late.is_spent() && late.found.in_doubt);
    }

    /// librdkafka's built-in broker does not look offsets up by time, but it keeps the time that a record comes with.
    #[test]
    fn what_was_stored_long_after_the_tokens_time_is_found() {
        let cluster = MockCluster::new(1).expect("a broker");
        cluster.create_topic(TOPIC, 1, 1).expect("a topic");
        let kafka = sluice_kafka::Config {
            bootstrap_servers: cluster.bootstrap_servers(),
            ..sluice_kafka::Config::default()
        };
        let config = kafka.idempotent_producer(BURST_LINGER_MS);
        let producer: BaseProducer = config.create().expect("a producer");
        let wanted = wanted();
        for (minutes, sequence) in [(0, "10"), (2, "11"), (60, "14"), (600, "15")] {
            let mut names = OwnedHeaders::new();
            for (key, value) in [
                (headers::PRODUCER_ID, "p"),
                (headers::TENANT, "acme"),
                (headers::PRODUCER_EPOCH, "3"),
                (headers::SEQUENCE, sequence),
            ] {
                let value = Some(value);
                names = names.insert(Header { key, value });
            }
            let stored_ms = wanted.since_ms + minutes * MINUTE_MS;
            let record = BaseRecord::to(TOPIC).partition(0).key("k").payload("x");
            let sent = producer.send(record.headers(names).timestamp(stored_ms));
            sent.map_err(|(error, _)| error).expect("queued");
        }
        producer.flush(SCAN_TIMEOUT * 10).expect("stored");
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(TOPIC, 0, Offset::Offset(0))
            .expect("a partition");
        let mut scan = Scan::new(&wanted, Instant::now() + SCAN_TIMEOUT * 10);
        let (answer, _waiting) = oneshot::channel();
        let consumer = reader(&kafka).expect("a consumer");
        scan.read(&consumer, &from, &answer).expect("read");
        assert_eq!(scan.found.stored, BTreeSet::from([10, 11, 14, 15]));
        assert!(!scan.found.in_doubt);
    }
}
