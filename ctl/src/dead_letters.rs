//! `sluicectl dlq`: lists and shows dead letters, and writes them back to where they came from.
//!
//! A letter that is driven again goes to its source's partition with its own key, bytes and headers, and with a
//! `retry_count` that is one higher. How far the last redrive came is kept as the offsets of a consumer group that nobody
//! joins, and moved only when Kafka has acknowledged everything: one that dies in between repeats itself, and the
//! processor recognises payments that it has decided.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::str::FromStr;

use anyhow::{Context, bail};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::{BorrowedMessage, Header, Message as _, OwnedHeaders};
use rdkafka::{Offset, TopicPartitionList};
use sluice_kafka::config::Isolation;
use sluice_kafka::scan::{Ranges, Scanner};
use sluice_kafka::{Config, Topics, admin, context};
use sluice_proto::headers;

use crate::produce::{self, Record};
use crate::table::Table;

/// The group, before the prefix, whose offsets say how far the last redrive came.
const GROUP: &str = "dlq-redrive";
/// Most letters of one redrive.
const MAX_LETTERS: usize = 10_000;
/// Characters of an error that the list shows.
const ERROR_CHARS: usize = 60;
/// Bytes of a value that are shown.
const SHOWN_BYTES: usize = 1_024;
/// What a letter says beyond the record that it was.
const LETTER_HEADERS: [&str; 6] = [
    headers::ERROR_TYPE,
    headers::ERROR,
    headers::RETRY_COUNT,
    headers::SOURCE_TOPIC,
    headers::SOURCE_PARTITION,
    headers::SOURCE_OFFSET,
];

/// Where a letter stands in the topic of the dead letters: `PARTITION:OFFSET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    partition: i32,
    offset: i64,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = text.split_once(':').and_then(|(partition, offset)| {
            let (partition, offset) = (partition.parse().ok()?, offset.parse().ok()?);
            (partition >= 0 && offset >= 0).then_some(Self { partition, offset })
        });
        place.ok_or_else(|| "expected PARTITION:OFFSET".to_owned())
    }
}

/// A dead letter.
struct Letter {
    place: Place,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
    /// It has headers besides whose names are not UTF-8.
    has_unreadable: bool,
}

impl Letter {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = sluice_kafka::headers::all(message.headers());
        Self {
            place: Place {
                partition: message.partition(),
                offset: message.offset(),
            },
            key: message.key().map(<[u8]>::to_vec),
            payload: message.payload().map(<[u8]>::to_vec),
            has_unreadable: headers.iter().any(Result::is_err),
            headers: headers.into_iter().flatten().collect(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value).ok()
    }

    fn text(&self, name: &str) -> String {
        self.header(name).unwrap_or("-").to_owned()
    }

    fn retry_count(&self) -> u32 {
        self.header(headers::RETRY_COUNT)
            .and_then(|count| count.parse().ok())
            .unwrap_or(0)
    }

    /// The record to be written again, or why there is none.
    fn again(&self, topics: &Topics, max_retries: u32) -> Result<Record, String> {
        let count = self.retry_count();
        if count >= max_retries {
            return Err(format!("driven again {count} times already"));
        }
        if self.header(headers::SOURCE_TOPIC) != Some(&topics.payments) {
            return Err(format!("its source is {}", self.text(headers::SOURCE_TOPIC)));
        }
        let partition = self
            .header(headers::SOURCE_PARTITION)
            .and_then(|number| number.parse().ok());
        let partition = partition.ok_or("it does not say from which partition it is")?;
        if self.header(headers::CONTROL).is_some() {
            return Err("no payment: apply a rule set again instead".to_owned());
        }
        if self.has_unreadable {
            return Err("the name of one of its headers is not UTF-8".to_owned());
        }
        let Some(payload) = self.payload.clone() else {
            return Err("it has no value".to_owned());
        };
        let own = self
            .headers
            .iter()
            .filter(|(key, _)| !LETTER_HEADERS.contains(&key.as_str()));
        let header = |key, value| Header {
            key,
            value: Some(value),
        };
        let own = own.fold(OwnedHeaders::new(), |all, (key, value)| {
            all.insert(header(key, value.as_slice()))
        });
        Ok(Record {
            partition,
            key: self.key.clone(),
            payload: Some(payload),
            headers: own.insert(header(headers::RETRY_COUNT, (count + 1).to_string().as_bytes())),
        })
    }
}

/// The newest letters.
pub(crate) fn list(config: &Config, topics: &Topics, partitions: i32, limit: usize) -> anyhow::Result<String> {
    let scanner = Scanner::new(config, Isolation::ReadCommitted)?;
    let mut table = Table::new(&["LETTER", "TYPE", "RETRIES", "SOURCE", "KEY", "ERROR"]);
    let mut all = 0;
    for partition in 0..partitions {
        let ends = scanner.ends(&topics.dead_letters, partition)?;
        let mut newest = VecDeque::new();
        scanner.read(&topics.dead_letters, &Ranges::from([(partition, ends)]), |message| {
            all += 1;
            if newest.len() == limit {
                newest.pop_front();
            }
            newest.push_back(Letter::of(message));
            ControlFlow::<()>::Continue(())
        })?;
        for letter in newest {
            let Place { partition, offset } = letter.place;
            let error: String = letter.text(headers::ERROR).chars().take(ERROR_CHARS).collect();
            table.row([
                format!("{partition}:{offset}"),
                letter.text(headers::ERROR_TYPE),
                letter.retry_count().to_string(),
                format!(
                    "{}:{}",
                    letter.text(headers::SOURCE_PARTITION),
                    letter.text(headers::SOURCE_OFFSET)
                ),
                String::from_utf8_lossy(letter.key.as_deref().unwrap_or(b"-")).into_owned(),
                error,
            ]);
        }
    }
    Ok(format!("{table}{all} in all\n"))
}

/// Everything about one letter.
pub(crate) fn show(config: &Config, topics: &Topics, place: Place) -> anyhow::Result<String> {
    let scanner = Scanner::new(config, Isolation::ReadCommitted)?;
    let letter = find(&scanner, topics, place)?;
    let mut page = String::new();
    let key = String::from_utf8_lossy(letter.key.as_deref().unwrap_or(b"-")).into_owned();
    page.push_str(&format!("key: {key}\n"));
    for (name, value) in &letter.headers {
        page.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value)));
    }
    if letter.has_unreadable {
        page.push_str("and headers whose names are not UTF-8\n");
    }
    let value = letter.payload.as_deref().unwrap_or_default();
    page.push_str(&format!("value: {} bytes\n", value.len()));
    for line in value[..value.len().min(SHOWN_BYTES)].chunks(16) {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let plain = |byte: &u8| {
            if (b' '..=b'~').contains(byte) {
                char::from(*byte)
            } else {
                '.'
            }
        };
        let text: String = line.iter().map(plain).collect();
        page.push_str(&format!("  {:<47}  {text}\n", hex.join(" ")));
    }
    Ok(page)
}

fn find(scanner: &Scanner, topics: &Topics, place: Place) -> anyhow::Result<Letter> {
    let Place { partition, offset } = place;
    let one = Ranges::from([(partition, offset..offset + 1)]);
    let found = scanner
        .read(&topics.dead_letters, &one, |message| {
            ControlFlow::Break(Letter::of(message))
        })
        .with_context(|| format!("cannot read {partition}:{offset}"))?;
    found.with_context(|| format!("there is no letter {partition}:{offset}"))
}

/// Which letters are driven again, and how often at most.
pub(crate) struct Redrive<'r> {
    pub(crate) places: &'r [Place],
    pub(crate) max_retries: u32,
    pub(crate) dry_run: bool,
}

/// Drives letters again: the given ones, or all since the last time.
pub(crate) fn redrive(
    config: &Config,
    topics: &Topics,
    partitions: i32,
    redrive: &Redrive<'_>,
) -> anyhow::Result<String> {
    let scanner = Scanner::new(config, Isolation::ReadCommitted)?;
    let mark = Mark::new(config, topics)?;
    let (letters, reached) = if redrive.places.is_empty() {
        mark.unread(&scanner, partitions)?
    } else {
        let found = redrive.places.iter().map(|place| find(&scanner, topics, *place));
        (found.collect::<anyhow::Result<Vec<_>>>()?, Vec::new())
    };
    let mut table = Table::new(&["LETTER", "TYPE", "RESULT"]);
    let mut records = Vec::new();
    for letter in &letters {
        let result = match letter.again(topics, redrive.max_retries) {
            Ok(record) => {
                records.push(record);
                format!("retry {}", letter.retry_count() + 1)
            }
            Err(reason) => format!("left: {reason}"),
        };
        let Place { partition, offset } = letter.place;
        let row = [
            format!("{partition}:{offset}"),
            letter.text(headers::ERROR_TYPE),
            result,
        ];
        table.row(row);
    }
    if redrive.dry_run {
        return Ok(format!("{table}{} would be driven again\n", records.len()));
    }
    let written = produce::write(config, &topics.payments, &records)?;
    mark.set(&reached)?;
    let mut page = format!("{table}{} driven again\n", written.len());
    if letters.len() == MAX_LETTERS {
        page.push_str("there may be more: run it again\n");
    }
    Ok(page)
}

/// Letters, and where each partition is once they are driven again.
type Unread = (Vec<Letter>, Vec<(i32, i64)>);

/// How far the last redrive came.
struct Mark {
    consumer: BaseConsumer<context::Consumer>,
    topic: String,
}

impl Mark {
    fn new(config: &Config, topics: &Topics) -> anyhow::Result<Self> {
        let group = format!("{}{GROUP}", config.topic_prefix);
        let consumer = config
            .offsets_of(&group, Isolation::ReadCommitted)
            .create_with_context(context::Consumer)?;
        Ok(Self {
            consumer,
            topic: topics.dead_letters.clone(),
        })
    }

    /// The letters since then.
    fn unread(&self, scanner: &Scanner, partitions: i32) -> anyhow::Result<Unread> {
        let numbers: Vec<i32> = (0..partitions).collect();
        let reached = admin::committed(&self.consumer, &self.topic, &numbers, admin::TIMEOUT)?;
        let (mut letters, mut ends) = (Vec::new(), Vec::new());
        for partition in numbers {
            let mut range = scanner.ends(&self.topic, partition)?;
            range.start = reached
                .get(&partition)
                .map_or(range.start, |offset| (*offset).max(range.start));
            let mut next = range.end.max(range.start);
            scanner.read(&self.topic, &Ranges::from([(partition, range)]), |message| {
                if letters.len() == MAX_LETTERS {
                    next = message.offset();
                    return ControlFlow::Break(());
                }
                letters.push(Letter::of(message));
                ControlFlow::Continue(())
            })?;
            ends.push((partition, next));
        }
        Ok((letters, ends))
    }

    fn set(&self, reached: &[(i32, i64)]) -> anyhow::Result<()> {
        if reached.is_empty() {
            return Ok(());
        }
        let mut offsets = TopicPartitionList::with_capacity(reached.len());
        for (partition, offset) in reached {
            offsets.add_partition_offset(&self.topic, *partition, Offset::Offset(*offset))?;
        }
        match self.consumer.commit(&offsets, CommitMode::Sync) {
            Ok(()) => Ok(()),
            Err(error) => bail!("the letters were driven again, but that could not be noted: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers as _;

    use super::*;

    fn letter(headers: &[(&str, &str)]) -> Letter {
        Letter {
            place: Place {
                partition: 1,
                offset: 2,
            },
            key: Some(b"acme/account".to_vec()),
            payload: Some(b"bytes".to_vec()),
            headers: headers
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
                .collect(),
            has_unreadable: false,
        }
    }

    const SOURCE: [(&str, &str); 5] = [
        ("event-id", "7"),
        ("error_type", "VALIDATION_ERROR"),
        ("error", "no"),
        ("source_topic", "payments"),
        ("source_partition", "3"),
    ];

    #[test]
    fn a_record_goes_back_as_it_was_with_one_more_retry() {
        let with_count = [&SOURCE[..], &[("retry_count", "2")]].concat();
        let record = letter(&with_count).again(&Topics::new(""), 3).expect("may go");
        assert_eq!((record.partition, record.payload.as_deref()), (3, Some(&b"bytes"[..])));
        let headers: Vec<_> = record
            .headers
            .iter()
            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
            .collect();
        let expected = [("event-id", "7"), ("retry_count", "3")];
        let expected = expected.map(|(key, value)| (key.to_owned(), Some(value.as_bytes().to_vec())));
        assert_eq!(headers, expected);
    }

    #[test]
    fn what_must_not_go_back_stays() {
        let topics = Topics::new("");
        let others = Topics::new("other.");
        let refused = |letter: &Letter, topics: &Topics, max| letter.again(topics, max).err().expect("refused");
        let mine = letter(&SOURCE);
        assert_eq!(refused(&mine, &topics, 0), "driven again 0 times already");
        assert_eq!(refused(&mine, &others, 3), "its source is payments");
        assert!(refused(&letter(&[("source_topic", "payments")]), &topics, 3).contains("which partition"));
        let rules = [&SOURCE[..], &[("sluice-record", "rule-set")]].concat();
        assert!(refused(&letter(&rules), &topics, 3).contains("apply a rule set"));
        let empty = Letter {
            payload: None,
            ..letter(&SOURCE)
        };
        assert_eq!(refused(&empty, &topics, 3), "it has no value");
    }

    #[test]
    fn a_place_is_a_partition_and_an_offset() {
        let place = Place {
            partition: 3,
            offset: 70,
        };
        assert_eq!("3:70".parse(), Ok(place));
        for wrong in ["", "3", "3:", ":7", "-1:7", "3:-7", "3:7:1"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
