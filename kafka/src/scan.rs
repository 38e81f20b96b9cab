//! Reading stretches of a topic's partitions once, from one offset to another, without a group: for tools and for what a
//! process looks up when it starts.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::{Config, Isolation};
use crate::context;
use crate::endings::Endings;
use crate::error;

/// How long one poll waits.
const POLL: Duration = Duration::from_millis(20);
/// How long the ends of a partition may take to read.
const ENDS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the log may give nothing before a scan is given up.
pub const STALL: Duration = Duration::from_secs(30);

/// Why a scan was given up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka.
    #[error(transparent)]
    Consumer(#[from] error::Consumer),
    /// The log gave nothing for [`STALL`].
    #[error("nothing came of {topic} for {} s", STALL.as_secs())]
    Stalled {
        /// The topic.
        topic: String,
    },
}

/// What is read, by partition: from the first offset up to, and without, the second.
pub type Ranges = BTreeMap<i32, Range<i64>>;

/// A reader of stretches. Every call blocks.
pub struct Scanner {
    reader: BaseConsumer<context::Consumer>,
}

impl Scanner {
    /// A scanner; it connects in the background.
    ///
    /// # Errors
    /// [`error::Consumer::Create`].
    pub fn new(config: &Config, isolation: Isolation) -> Result<Self, error::Consumer> {
        let reader = config
            .leaders_reader(isolation)
            .create_with_context(context::Consumer)
            .map_err(error::Consumer::Create)?;
        Ok(Self { reader })
    }

    /// The first offset of a partition that is kept, and the one after the last that can be read.
    ///
    /// # Errors
    /// [`error::Consumer::Offsets`].
    pub fn ends(&self, topic: &str, partition: i32) -> Result<Range<i64>, error::Consumer> {
        let what = "the ends of a partition";
        let ends = self.reader.fetch_watermarks(topic, partition, ENDS_TIMEOUT);
        let (low, high) = ends.map_err(|cause| error::Consumer::Offsets { what, cause })?;
        Ok(low..high)
    }

    /// The first offset of a partition whose record was appended at this time or later, in milliseconds since the Unix
    /// epoch; `None` where there is none.
    ///
    /// # Errors
    /// [`error::Consumer::Offsets`].
    pub fn since(&self, topic: &str, partition: i32, time_ms: i64) -> Result<Option<i64>, error::Consumer> {
        let failed = |cause| error::Consumer::Offsets {
            what: "the offset of a time",
            cause,
        };
        let mut times = TopicPartitionList::new();
        times
            .add_partition_offset(topic, partition, Offset::Offset(time_ms))
            .map_err(failed)?;
        let found = self.reader.offsets_for_times(times, ENDS_TIMEOUT).map_err(failed)?;
        let Some(element) = found.find_partition(topic, partition) else {
            return Ok(None);
        };
        element.error().map_err(failed)?;
        Ok(match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        })
    }

    /// Gives every record of the ranges to `each`, in order by partition, until `each` breaks, and returns with what. Offsets
    /// without a record, such as the markers of transactions, are passed over; so is what was deleted or is beyond the end.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn read<B>(
        &self,
        topic: &str,
        ranges: &Ranges,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<B>,
    ) -> Result<Option<B>, Error> {
        let wanted = ranges.iter().filter(|(_, range)| !range.is_empty());
        let mut open: Ranges = wanted.map(|(partition, range)| (*partition, range.clone())).collect();
        self.assign(topic, &open)?;
        let mut endings = Endings::default();
        let mut heard = Instant::now();
        let mut broken = None;
        while !open.is_empty() {
            match self.reader.poll(POLL) {
                Some(Ok(message)) => {
                    let Some(left) = open.get_mut(&message.partition()) else {
                        // What is through is not read on, or the others would never be seen to be at their ends.
                        let mut done = TopicPartitionList::new();
                        done.add_partition(topic, message.partition());
                        let paused = self.reader.pause(&done);
                        paused.map_err(|cause| error::Consumer::Control { step: "pause", cause })?;
                        continue;
                    };
                    if message.offset() < left.end
                        && let ControlFlow::Break(value) = each(&message)
                    {
                        broken = Some(value);
                        break;
                    }
                    left.start = message.offset() + 1;
                    if left.is_empty() {
                        open.remove(&message.partition());
                    }
                    // The time that `each` took is not the log's.
                    heard = Instant::now();
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if open
                        .get(&partition)
                        .is_some_and(|left| endings.said(partition, left.start))
                    {
                        open.remove(&partition);
                    }
                }
                Some(Err(cause)) => {
                    let error = error::Consumer::Poll(cause);
                    if !error.is_retriable() {
                        return Err(error.into());
                    }
                    tracing::debug!(%error, topic, "reading goes on");
                }
                None => {
                    let end = |partition| Ok(self.ends(topic, partition)?.end);
                    let asked = endings.ask(|partition| open.get(&partition).cloned(), end);
                    for partition in asked.short {
                        open.remove(&partition);
                    }
                    if asked.more {
                        self.assign(topic, &open)?;
                    }
                }
            }
            if heard.elapsed() > STALL {
                return Err(Error::Stalled {
                    topic: topic.to_owned(),
                });
            }
        }
        // What is not wanted is not fetched any further.
        self.assign(topic, &Ranges::new())?;
        Ok(broken)
    }

    /// Reads these ranges from their starts on, and nothing else.
    fn assign(&self, topic: &str, ranges: &Ranges) -> Result<(), error::Consumer> {
        let control = |cause| error::Consumer::Control { step: "assign", cause };
        let mut list = TopicPartitionList::new();
        for (partition, range) in ranges {
            list.add_partition_offset(topic, *partition, Offset::Offset(range.start))
                .map_err(control)?;
        }
        self.reader.assign(&list).map_err(control)
    }
}
