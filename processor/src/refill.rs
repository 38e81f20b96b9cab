//! Owns how a takeover finds ledger rows that Postgres lost after they were committed, as in a failover or with an older
//! backup, and how it fills them in again from `decisions`.
//!
//! A step of [`crate::takeover`]: after the group has confirmed the lane's partitions, so that nobody else writes rows
//! below the committed offset, and before the watermark is set to that offset, so that a gap is found again if the lane
//! dies in here.
//!
//! Postgres loses its newest transactions and no others, and the batch that sets a watermark writes the rows that follow
//! it. So the rows below the watermark that Postgres remembers are whole, and those from there to the committed offset are
//! whole if the last of them is there. That is asked first, and a lane that flushed its watermark is not even asked.

use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::error::KafkaError;
use sluice_kafka::config::Isolation;
use sluice_kafka::endings::Endings;
use sluice_kafka::error;
use sluice_proto::avro;
use sluice_proto::decision::Decision;

use crate::decode::{Failure, Versions};
use crate::lane::Settings;
use crate::ledger::{self, Owner, Rows};
use crate::world::{Books, Reader, World};

/// How many offsets before the end of `decisions` are looked at first; each further step goes back twice as far.
const FIRST_STEP: i64 = 256;
/// Rows written in one transaction.
const CHUNK_ROWS: usize = 5_000;
/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);
/// How often the caller is asked whether to go on.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long the ends of a partition may take to read.
const ENDS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the log may give nothing before the refill is given up, to be tried again.
const STALL: Duration = Duration::from_secs(30);

/// Why rows could not be looked for, or filled in. What is filled in stays so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka.
    #[error(transparent)]
    Consumer(#[from] error::Consumer),
    /// The schema of a decision has to be fetched, and cannot be.
    #[error(transparent)]
    Registry(#[from] error::Registry),
    /// This version's own schema cannot be read.
    #[error(transparent)]
    Schema(#[from] avro::DecodeError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The log gave nothing for too long.
    #[error("nothing came for {} s of decisions", STALL.as_secs())]
    Stalled,
    /// Somebody's transaction keeps the end of the log from being read.
    #[error("partition {0} of the decisions holds an open transaction for longer than one may be open")]
    Open(i32),
    /// The caller said so.
    #[error("the assignment changed, or the process ends")]
    Cancelled,
}

/// A partition whose rows are in doubt from the watermark that Postgres remembers up to the committed offset.
#[derive(Clone, Copy)]
pub(crate) struct Doubt {
    pub(crate) owner: Owner,
    pub(crate) committed: i64,
}

/// A partition that lacks rows, and where `decisions` ended when that was seen.
struct Gap {
    doubt: Doubt,
    end: i64,
}

/// Fills in what is missing. `open_for` is how long a transaction in `decisions` may stay open. Says how many rows were
/// missing.
///
/// # Errors
/// See [`Error`]; the next takeover goes on from the last chunk that was written.
pub(crate) fn fill<W: World>(
    world: &W,
    settings: &Settings,
    ledger: &mut W::Books,
    doubts: impl Iterator<Item = Doubt>,
    open_for: Duration,
    mut goes_on: impl FnMut() -> bool,
) -> Result<u64, Error> {
    let mut suspects = Vec::new();
    for doubt in doubts {
        // The last record is a decided payment as a rule, and its row was prepared before its offset was committed.
        if doubt.owner.watermark < doubt.committed && !ledger.holds(doubt.owner.part, doubt.committed - 1)? {
            suspects.push(doubt);
        }
    }
    if suspects.is_empty() {
        return Ok(0);
    }
    let gaps = find(world, settings, ledger, suspects, &mut goes_on)?;
    if gaps.is_empty() {
        return Ok(0);
    }
    let mut log = Log::open(world, settings, Isolation::ReadCommitted, &mut goes_on)?;
    let mut rows = 0;
    for gap in gaps {
        rows += fill_gap(settings, ledger, &mut log, &gap, open_for)?;
    }
    Ok(rows)
}

/// The suspects whose last decision has no row. What is not committed is read too: it is none of what is looked for,
/// because its offsets are not committed either, and the marker of a committed transaction may still be on its way.
fn find<W: World>(
    world: &W,
    settings: &Settings,
    ledger: &mut W::Books,
    suspects: Vec<Doubt>,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<Vec<Gap>, Error> {
    let mut log = Log::open(world, settings, Isolation::ReadUncommitted, goes_on)?;
    let mut gaps = Vec::new();
    for doubt in suspects {
        let Owner { part, watermark, .. } = doubt.owner;
        let (low, end) = log.ends(part)?;
        let start = log.walk_back(part, low, end, doubt.committed)?;
        log.seek(part, start)?;
        let mut last = None;
        while let Some(decision) = log.next(end)? {
            if decision.source_offset < doubt.committed {
                last = last.max(Some(decision.source_offset));
            }
        }
        if let Some(last) = last
            && last >= watermark
            && !ledger.holds(part, last)?
        {
            gaps.push(Gap { doubt, end });
        }
    }
    Ok(gaps)
}

fn fill_gap<W: World>(
    settings: &Settings,
    ledger: &mut W::Books,
    log: &mut Log<'_, W>,
    gap: &Gap,
    open_for: Duration,
) -> Result<u64, Error> {
    let Doubt { mut owner, committed } = gap.doubt;
    let (part, watermark) = (owner.part, owner.watermark);
    let low = log.wait_for(part, gap.end, open_for)?;
    let start = log.walk_back(part, low, gap.end, watermark)?;
    log.seek(part, start)?;
    let (mut rows, mut chunk, mut first, mut batch) = (0, Rows::default(), true, 0);
    loop {
        let decision = log.next(gap.end)?;
        if let Some(decision) = &decision {
            if std::mem::take(&mut first)
                && let Some((first, last)) = beyond_reach(low, start, decision.source_offset, watermark)
            {
                tracing::warn!(
                    partition = part,
                    first,
                    last,
                    "rows that postgres lost stay lost: their decisions are older than the topic keeps"
                );
            }
            if !(watermark..committed).contains(&decision.source_offset) {
                continue;
            }
            if chunk.is_empty() {
                batch = decision.source_offset;
            }
            chunk.push(decision, owner.epoch, settings.run, batch);
            owner.watermark = owner.watermark.max(decision.source_offset + 1);
        }
        if chunk.count() == CHUNK_ROWS || (decision.is_none() && !chunk.is_empty()) {
            if let Some(filled) = ledger.refill(owner, &mut chunk)? {
                let count = filled.rows.unsigned_abs();
                tracing::warn!(
                    partition = part,
                    rows = count,
                    first = filled.first_off,
                    last = filled.last_off,
                    "filled in rows that postgres had lost"
                );
                settings.metrics.refilled(count);
                rows += count;
            }
            chunk.clear();
        }
        if decision.is_none() {
            return Ok(rows);
        }
    }
}

/// The offsets from the watermark on whose decisions the topic may have deleted, when it is read from `start` and this is
/// the first that it gives.
fn beyond_reach(low: i64, start: i64, first_source: i64, watermark: i64) -> Option<(i64, i64)> {
    (low > 0 && start == low && first_source > watermark).then_some((watermark, first_source - 1))
}

/// Where to read from, ever further back from the end: to the lowest offset at last, and then no further.
fn steps_back(low: i64, end: i64) -> impl Iterator<Item = i64> {
    let further = move |start: &i64| (*start > low).then(|| end - 2 * (end - start));
    let starts = std::iter::successors((low < end).then_some(end - FIRST_STEP), further);
    starts.map(move |start| start.max(low))
}

/// Partitions of `decisions`, one at a time.
struct Log<'g, W: World> {
    world: &'g W,
    reader: W::Reader,
    decisions: Versions<Decision>,
    goes_on: &'g mut dyn FnMut() -> bool,
    asked: Instant,
    heard: Instant,
    /// The partition that is read, and the offset after the last record that came.
    position: (i32, i64),
    endings: Endings,
}

impl<'g, W: World> Log<'g, W> {
    fn open(
        world: &'g W,
        settings: &Settings,
        isolation: Isolation,
        goes_on: &'g mut dyn FnMut() -> bool,
    ) -> Result<Self, Error> {
        Ok(Self {
            world,
            reader: world.reader(&settings.topics.decisions, isolation)?,
            decisions: Versions::new(settings.decision_schema, settings.registry.clone())?,
            goes_on,
            asked: world.now(),
            heard: world.now(),
            position: (0, 0),
            endings: Endings::default(),
        })
    }

    /// The first offset, and the one after the last that can be read.
    fn ends(&self, part: i32) -> Result<(i64, i64), error::Consumer> {
        self.reader.ends(part, ENDS_TIMEOUT)
    }

    /// Waits until everything before `end` is committed or aborted. Gives the first offset.
    fn wait_for(&mut self, part: i32, end: i64, open_for: Duration) -> Result<i64, Error> {
        let deadline = self.world.now() + open_for;
        self.reader.read_from([])?;
        loop {
            let (low, readable) = self.ends(part)?;
            if readable >= end {
                return Ok(low);
            }
            if self.world.now() > deadline {
                return Err(Error::Open(part));
            }
            self.ask()?;
            // Nothing is assigned, so that this only waits.
            drop(self.reader.poll(POLL));
        }
    }

    /// An offset of the log from which all decisions of this source offset or a higher one can be read: source offsets rise
    /// with the offsets of the log.
    fn walk_back(&mut self, part: i32, low: i64, end: i64, source_offset: i64) -> Result<i64, Error> {
        for start in steps_back(low, end) {
            self.seek(part, start)?;
            if let Some(decision) = self.next(end)?
                && decision.source_offset < source_offset
            {
                return Ok(start);
            }
        }
        Ok(low)
    }

    fn seek(&mut self, part: i32, offset: i64) -> Result<(), error::Consumer> {
        self.heard = self.world.now();
        self.endings = Endings::default();
        self.position = (part, offset);
        self.reader.read_from([self.position])
    }

    /// The next decision before `end`.
    fn next(&mut self, end: i64) -> Result<Option<Decision>, Error> {
        loop {
            self.ask()?;
            match self.reader.poll(POLL) {
                Some(Ok(message)) => {
                    self.heard = self.world.now();
                    self.position.1 = message.offset() + 1;
                    if message.offset() >= end {
                        return Ok(None);
                    }
                    match self.decisions.read(&message) {
                        Ok(decision) => return Ok(Some(decision)),
                        Err(Failure::Registry(error)) => return Err(error.into()),
                        Err(Failure::Letter { error, .. }) => {
                            let (partition, offset) = (message.partition(), message.offset());
                            tracing::error!(partition, offset, error, "a decision cannot be read");
                        }
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    let (part, next) = self.position;
                    // Markers and what was aborted have offsets and give no record.
                    if self.endings.said(part, next) {
                        return Ok(None);
                    }
                }
                Some(Err(source)) => {
                    let error = error::Consumer::Poll(source);
                    if !error.is_retriable() {
                        return Err(error.into());
                    }
                    tracing::warn!(%error, "reading decisions goes on");
                }
                None => {
                    let (part, next) = self.position;
                    let ends = |part| Ok(self.reader.ends(part, ENDS_TIMEOUT)?.1);
                    let asked = self.endings.ask(|asked| (asked == part).then_some(next..end), ends);
                    if !asked.short.is_empty() {
                        tracing::warn!(part, "the decisions end before they did when they were looked for");
                        return Ok(None);
                    }
                    if asked.more {
                        self.reader.read_from([(part, next)])?;
                    }
                }
            }
            if self.world.now().duration_since(self.heard) > STALL {
                return Err(Error::Stalled);
            }
        }
    }

    fn ask(&mut self) -> Result<(), Error> {
        let now = self.world.now();
        if now.duration_since(self.asked) > ASK_EVERY {
            self.asked = now;
            if !(self.goes_on)() {
                return Err(Error::Cancelled);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_back_is_twice_as_long_and_the_last_one_ends_at_the_lowest_offset() {
        let steps = |low, end| steps_back(low, end).collect::<Vec<i64>>();
        assert_eq!(steps(0, 2_000), [1_744, 1_488, 976, 0]);
        assert_eq!(steps(1_000, 2_000), [1_744, 1_488, 1_000]);
        assert_eq!(steps(1_990, 2_000), [1_990], "no further than there is");
        assert_eq!(steps(1_744, 2_000), [1_744], "exactly one step");
        assert!(steps(2_000, 2_000).is_empty(), "an empty log is not read");
    }

    #[test]
    fn what_the_topic_deleted_is_told() {
        assert_eq!(beyond_reach(500, 500, 90, 40), Some((40, 89)));
        assert_eq!(beyond_reach(500, 500, 40, 40), None, "the first one needed is there");
        assert_eq!(beyond_reach(500, 700, 90, 40), None, "something lower came before");
        assert_eq!(
            beyond_reach(0, 0, 90, 40),
            None,
            "nothing was deleted: nothing was decided"
        );
    }
}
