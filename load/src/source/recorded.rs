//! Events from a file, with their own times: card transactions as CSV, or events as lines of JSON; gzipped or not.
//!
//! Times are shifted by one distance, so that the newest is now.

use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Read};
use std::path::Path;

use anyhow::Context;
use flate2::read::MultiGzDecoder;
use sluice_proto::pb;

use super::Raw;
use super::data::Json;
use crate::card_file::CardFile;
use crate::generate::{Generated, timestamp};
use crate::now_micros;

type Events = Box<dyn Iterator<Item = anyhow::Result<pb::Event>> + Send>;

/// A file that is being read.
pub(super) struct Recorded {
    events: Events,
    /// When the first event happened.
    first_micros: Option<i64>,
}

impl Recorded {
    /// Card transactions.
    pub(super) fn cards(path: &Path) -> anyhow::Result<Self> {
        let summary = CardFile::open(path)?.summarize(u64::MAX, now_micros())?;
        let payments = CardFile::open(path)?.payments(summary.shift_micros, fastrand::u64(..));
        let event = |payment: anyhow::Result<Generated>| payment.map(|payment| payment.event);
        Ok(Self {
            events: Box::new(payments.map(event)),
            first_micros: None,
        })
    }

    /// One event a line.
    pub(super) fn lines(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        // Once through, to know the newest time and that every line can be read.
        let mut newest = i64::MIN;
        for event in read(path)? {
            newest = newest.max(micros(&event.with_context(|| format!("cannot use {name}"))?));
        }
        anyhow::ensure!(newest > i64::MIN, "cannot use {name}: it has no event");
        let shift = now_micros() - newest;
        let shifted = move |event: anyhow::Result<pb::Event>| {
            event.map(|mut event| {
                event.occurred_at = Some(timestamp(micros(&event) + shift));
                event
            })
        };
        Ok(Self {
            events: Box::new(read(path)?.map(shifted)),
            first_micros: None,
        })
    }

    pub(super) fn next(&mut self) -> anyhow::Result<Option<Raw>> {
        let Some(event) = self.events.next().transpose()? else {
            return Ok(None);
        };
        let at_micros = micros(&event);
        let first_micros = *self.first_micros.get_or_insert(at_micros);
        Ok(Some(Raw {
            event,
            injected: None,
            offset_micros: Some(at_micros - first_micros),
        }))
    }
}

fn micros(event: &pb::Event) -> i64 {
    let at = event.occurred_at.unwrap_or_default();
    at.seconds * 1_000_000 + i64::from(at.nanos) / 1_000
}

fn read(path: &Path) -> anyhow::Result<Events> {
    let open = || format!("cannot open {}", path.display());
    let file = File::open(path).with_context(open)?;
    let gzipped = path.extension().is_some_and(|extension| extension == "gz");
    let input: Box<dyn Read + Send> = if gzipped {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let json = Json::new()?;
    let lines: Lines<_> = BufReader::new(input).lines();
    let parse = move |(index, line): (usize, std::io::Result<String>)| {
        let line = match line {
            Ok(line) if line.trim().is_empty() => return None,
            line => line,
        };
        let event = line
            .map_err(anyhow::Error::from)
            .and_then(|line| serde_json::from_str(&line).context("not JSON"))
            .and_then(|value| json.event(value));
        Some(event.with_context(|| format!("line {}", index + 1)))
    };
    Ok(Box::new(lines.enumerate().filter_map(parse)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_distances_and_end_now() {
        let path = std::env::temp_dir().join(format!("sluice-recorded-{}.jsonl", fastrand::u64(..)));
        let line =
            |second: u8| format!(r#"{{"occurredAt":"2024-01-01T00:00:0{second}Z","payment":{{"accountId":"a"}}}}"#);
        std::fs::write(&path, [line(1), String::new(), line(4)].join("\n")).unwrap();
        let before = now_micros();
        let mut file = Recorded::lines(&path).unwrap();
        let events = [file.next().unwrap().unwrap(), file.next().unwrap().unwrap()];
        assert!(file.next().unwrap().is_none());
        assert_eq!(
            events.each_ref().map(|raw| raw.offset_micros),
            [Some(0), Some(3_000_000)]
        );
        assert!(micros(&events[1].event) >= before);
        std::fs::write(&path, "{}\nnonsense\n").unwrap();
        let bad = format!("{:#}", Recorded::lines(&path).err().unwrap());
        assert!(bad.contains("line 2"), "{bad}");
        std::fs::remove_file(path).unwrap();
    }
}
