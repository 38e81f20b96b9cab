//! Owns snapshots in Kafka's compacted topic: an image in chunks that fit a record, and the way back from the end of a
//! partition to the newest whole one. By it a machine restores what another one remembered.
//!
//! Used by [`super`]. Partition n holds the snapshots of partition n of the payments. Two slots take turns, so that
//! compaction keeps two snapshots; a writer that dies, or two that write at once, spoil one, which is found out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::{ClientContext, Message, Offset, TopicPartitionList};
use sluice_kafka::Config;
use sluice_kafka::config::{Isolation, LINGER_MS};
use sluice_kafka::{context, error};

/// Bytes of an image in one record: well below what a broker takes by default, 1 MiB.
const CHUNK_BYTES: usize = 512 * 1_024;
/// Records on their way at once, and so the memory that they take.
const IN_FLIGHT_CHUNKS: i32 = 8;
/// How long one poll waits.
const POLL: Duration = Duration::from_millis(20);
/// How long delivery of one more record may take.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(35);
/// How long reading snapshots of one partition may take before the lane does without.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the ends of a partition may take to read.
const ENDS_TIMEOUT: Duration = Duration::from_secs(10);
/// Snapshots looked at, from the newest on.
const TRIED: usize = 3;
/// Chunks of the largest image that is read: 4 GiB.
const MAX_CHUNKS: u32 = 8_192;

/// Where a chunk belongs, in front of its bytes: the image's offset, the chunk's number, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    next: i64,
    index: u32,
    count: u32,
}

const PLACE_BYTES: usize = 16;

impl Place {
    fn to_bytes(self) -> [u8; PLACE_BYTES] {
        let mut bytes = [0; PLACE_BYTES];
        bytes[..8].copy_from_slice(&self.next.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.index.to_be_bytes());
        bytes[12..].copy_from_slice(&self.count.to_be_bytes());
        bytes
    }

    fn split(value: &[u8]) -> Option<(Self, &[u8])> {
        let (next, rest) = value.split_first_chunk()?;
        let (index, rest) = rest.split_first_chunk()?;
        let (count, chunk) = rest.split_first_chunk()?;
        let place = Self {
            next: i64::from_be_bytes(*next),
            index: u32::from_be_bytes(*index),
            count: u32::from_be_bytes(*count),
        };
        (place.index < place.count && place.count <= MAX_CHUNKS).then_some((place, chunk))
    }
}

/// Notes that something was not delivered.
#[derive(Default)]
struct Reports {
    lost: AtomicBool,
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.lost.store(true, Ordering::Relaxed);
        }
    }
}

/// Writes snapshots.
pub(super) struct Writer {
    producer: BaseProducer<Reports>,
    topic: String,
}

impl Writer {
    pub(super) fn new(config: &Config, topic: &str) -> Result<Self, error::Producer> {
        let producer =
            BaseProducer::from_config_and_context(&config.idempotent_producer(LINGER_MS), Reports::default());
        Ok(Self {
            producer: producer.map_err(error::Producer::Create)?,
            topic: topic.to_owned(),
        })
    }

    /// Writes one image. Blocks until it is stored.
    pub(super) fn write(&self, partition: i32, next: i64, slot: u8, image: &[u8]) -> Result<(), error::Producer> {
        self.producer.context().lost.store(false, Ordering::Relaxed);
        let count = image.chunks(CHUNK_BYTES).len() as u32;
        let mut value = Vec::with_capacity(PLACE_BYTES + CHUNK_BYTES.min(image.len()));
        for (index, chunk) in (0_u32..).zip(image.chunks(CHUNK_BYTES)) {
            self.wait_until(IN_FLIGHT_CHUNKS - 1)?;
            let mut key = [slot; 5];
            key[1..].copy_from_slice(&index.to_be_bytes());
            value.clear();
            value.extend_from_slice(&Place { next, index, count }.to_bytes());
            value.extend_from_slice(chunk);
            let record = BaseRecord::<[u8], [u8]>::to(&self.topic)
                .partition(partition)
                .key(&key)
                .payload(&value);
            self.producer
                .send(record)
                .map_err(|(cause, _record)| error::Producer::Refused(cause))?;
        }
        self.wait_until(0)
    }

    /// Waits until no more than so many records are on their way.
    fn wait_until(&self, in_flight: i32) -> Result<(), error::Producer> {
        let deadline = Instant::now() + DELIVERY_TIMEOUT;
        loop {
            self.producer.poll(Duration::ZERO);
            if self.producer.context().lost.load(Ordering::Relaxed) || Instant::now() > deadline {
                let cause = KafkaError::MessageProduction(Code::MessageTimedOut);
                return Err(error::Producer::Undelivered(cause));
            }
            if self.producer.in_flight_count() <= in_flight {
                return Ok(());
            }
            self.producer.poll(POLL);
        }
    }
}

/// What snapshots are read with.
pub(super) type Consumer = BaseConsumer<context::Consumer>;

/// A consumer for [`Reader`]s, one after the other.
pub(super) fn consumer(config: &Config) -> Result<Consumer, error::Consumer> {
    // Nothing is written in transactions here, so that everything is committed.
    let config = config.reader(Isolation::ReadUncommitted);
    BaseConsumer::from_config_and_context(&config, context::Consumer).map_err(error::Consumer::Create)
}

/// Reads snapshots of one partition, from the newest back.
pub(super) struct Reader<'c> {
    consumer: &'c Consumer,
    topic: &'c str,
    partition: i32,
    low: i64,
    /// Where the snapshots end that were not read yet.
    end: i64,
    left: usize,
    deadline: Instant,
}

impl<'c> Reader<'c> {
    pub(super) fn open(consumer: &'c Consumer, topic: &'c str, partition: i32) -> Result<Self, error::Consumer> {
        let (low, end) = consumer
            .fetch_watermarks(topic, partition, ENDS_TIMEOUT)
            .map_err(|cause| error::Consumer::Offsets {
                what: "the ends of a partition of the snapshots",
                cause,
            })?;
        Ok(Self {
            consumer,
            topic,
            partition,
            low,
            end,
            left: TRIED,
            deadline: Instant::now() + READ_TIMEOUT,
        })
    }

    /// The offset of the next older snapshot, if its last chunk is there, and where its first one should be.
    pub(super) fn step_back(&mut self) -> Result<Option<Found>, error::Consumer> {
        while self.end > self.low && self.left > 0 {
            self.left -= 1;
            self.seek(self.end - 1)?;
            let last = self.next()?.filter(|(offset, _value)| *offset == self.end - 1);
            let Some((offset, value)) = last else { return Ok(None) };
            let Some((place, _chunk)) = Place::split(&value) else {
                return Ok(None);
            };
            let first = offset - i64::from(place.index);
            self.end = first;
            if place.index + 1 == place.count && first >= self.low {
                return Ok(Some(Found {
                    next: place.next,
                    count: place.count,
                    first,
                }));
            }
        }
        Ok(None)
    }

    /// The bytes of a snapshot, as whole as they are: its checksum tells.
    pub(super) fn read(&self, found: &Found) -> Result<Vec<u8>, error::Consumer> {
        let mut bytes = Vec::new();
        self.seek(found.first)?;
        for index in 0..found.count {
            let Some((_offset, value)) = self.next()? else { break };
            match Place::split(&value) {
                Some((place, chunk)) if place.index == index && place.next == found.next => {
                    bytes.extend_from_slice(chunk);
                }
                _ => break,
            }
        }
        Ok(bytes)
    }

    fn seek(&self, offset: i64) -> Result<(), error::Consumer> {
        let control = |cause| error::Consumer::Control { step: "assign", cause };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(self.topic, self.partition, Offset::Offset(offset))
            .map_err(control)?;
        self.consumer.assign(&list).map_err(control)
    }

    /// The next record, with its offset; `None` at the end, or when the time is up.
    fn next(&self) -> Result<Option<(i64, Vec<u8>)>, error::Consumer> {
        while Instant::now() < self.deadline {
            match self.consumer.poll(POLL) {
                Some(Ok(record)) => {
                    return Ok(Some((record.offset(), record.payload().unwrap_or_default().to_vec())));
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(None),
                Some(Err(cause)) => {
                    let error = error::Consumer::Poll(cause);
                    if !error.is_retriable() {
                        return Err(error);
                    }
                }
                None => {}
            }
        }
        Ok(None)
    }
}

/// A snapshot in the topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// The offset of the first record that is not in it.
    pub(super) next: i64,
    count: u32,
    first: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_tells_its_place() {
        let place = Place {
            next: 1 << 40,
            index: 2,
            count: 3,
        };
        let value = [&place.to_bytes()[..], b"chunk"].concat();
        assert_eq!(Place::split(&value), Some((place, &b"chunk"[..])));
        assert_eq!(Place::split(&value[..15]), None, "too short");
        let beyond = Place { index: 3, ..place };
        assert_eq!(Place::split(&beyond.to_bytes()), None, "not among them");
    }
}
