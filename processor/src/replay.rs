//! Owns how a partition's state is rebuilt: by reading its records again, up to where the group has committed, without
//! writing anything.
//!
//! Comes last in [`crate::takeover`]. A state that was kept from before, or in a snapshot, is read on from where it stands.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::error::KafkaError;
use sluice_kafka::config::Isolation;
use sluice_kafka::endings::Endings;
use sluice_kafka::error;

use crate::decode::{Decoder, Failure, Record};
use crate::rules::RuleSet;
use crate::state::State;
use crate::world::{Reader, World};

/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);
/// How often the caller is asked whether to go on.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Records between two looks at the clock.
const RECORDS_PER_LOOK: u64 = 1_000;
/// How often a long replay says how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How long a state is remembered that no lane needs. Snapshots are made much more often.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// How long the end of a partition may take to read.
const ENDS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the log may give nothing before the replay is given up, to be tried again.
const STALL: Duration = Duration::from_secs(30);

/// A partition's state, and the offset of the first record that is not in it.
pub(crate) struct Replayed {
    pub(crate) state: State,
    pub(crate) next: i64,
}

impl Replayed {
    /// The state before the record at this offset, as if nothing came before it.
    pub(crate) fn empty(lateness_us: i64, rules: Arc<RuleSet>, next: i64) -> Self {
        Self {
            state: State::new(lateness_us, rules),
            next,
        }
    }
}

/// States that lanes of this process had to give up, by partition, and those that were read beforehand. A rebalance often
/// moves a partition to another lane, or to none: what was rebuilt once need not be rebuilt again. It never holds more than
/// one state for each partition, and none that nobody asked for within [`KEPT_FOR`].
#[derive(Default)]
pub(crate) struct Kept(Mutex<BTreeMap<i32, (Instant, Replayed)>>);

impl Kept {
    pub(crate) fn put(&self, now: Instant, partition: i32, replayed: Replayed) {
        self.lock().insert(partition, (now, replayed));
    }

    /// Each without the offset that it was to be brought up to.
    pub(crate) fn put_all(&self, now: Instant, states: BTreeMap<i32, (Replayed, i64)>) {
        let states = states
            .into_iter()
            .map(|(partition, (replayed, _))| (partition, (now, replayed)));
        self.lock().extend(states);
    }

    pub(crate) fn take(&self, partition: i32) -> Option<Replayed> {
        let (_since, replayed) = self.lock().remove(&partition)?;
        Some(replayed)
    }

    /// Somebody will ask for these partitions, when it can.
    pub(crate) fn need(&self, now: Instant, partitions: &[i32]) {
        let mut kept = self.lock();
        for partition in partitions {
            if let Some((since, _)) = kept.get_mut(partition) {
                *since = now;
            }
        }
    }

    /// Gives up what has been here for long: its partition is another process's for good.
    pub(crate) fn forget(&self, now: Instant) {
        let is_old = |(since, _): &(Instant, Replayed)| now.saturating_duration_since(*since) > KEPT_FOR;
        let old: Vec<_> = self.lock().extract_if(.., |_, kept| is_old(kept)).collect();
        // It takes a while to free, and nobody waits for the lock meanwhile.
        drop(old);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, (Instant, Replayed)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a replay was given up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka.
    #[error(transparent)]
    Consumer(#[from] error::Consumer),
    /// The schema of a record has to be fetched, and cannot be.
    #[error(transparent)]
    Registry(#[from] error::Registry),
    /// The log gave nothing for too long.
    #[error("nothing came for {} s of replay", STALL.as_secs())]
    Stalled,
    /// The caller said so.
    #[error("the assignment changed, or the process ends")]
    Cancelled,
}

/// Brings each state up to the offset that comes with it. Says how many records were read; meanwhile `progress` is told how
/// many offsets are left.
///
/// # Errors
/// See [`Error`]; each state is then as of some offset before its target, and can be read on from there.
pub(crate) fn rebuild<W: World>(
    world: &W,
    topic: &str,
    decoder: &mut Decoder,
    states: &mut BTreeMap<i32, (Replayed, i64)>,
    progress: impl Fn(i64),
    goes_on: impl FnMut() -> bool,
) -> Result<u64, Error> {
    if !states.values().any(is_behind) {
        return Ok(0);
    }
    let reader = world.reader(topic, Isolation::ReadCommitted)?;
    read(&reader, || world.now(), decoder, states, progress, goes_on)
}

/// The same with a reader of the topic and a clock.
fn read(
    reader: &impl Reader,
    now: impl Fn() -> Instant,
    decoder: &mut Decoder,
    states: &mut BTreeMap<i32, (Replayed, i64)>,
    progress: impl Fn(i64),
    mut goes_on: impl FnMut() -> bool,
) -> Result<u64, Error> {
    let mut reading = Reading::new(reader, states);
    reading.start()?;
    let mut records = 0;
    let [mut last_record, mut last_ask, mut last_told] = [now(); 3];
    while reading.open > 0 {
        let polled = reader.poll(POLL);
        let is_record = matches!(polled, Some(Ok(_)));
        match polled {
            Some(Ok(message)) => {
                records += 1;
                if records % RECORDS_PER_LOOK == 1 {
                    last_record = now();
                }
                reading.apply(&message, decoder)?;
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => reading.end(partition)?,
            Some(Err(source)) => {
                let error = error::Consumer::Poll(source);
                if !error.is_retriable() {
                    return Err(error.into());
                }
                tracing::warn!(%error, "replay goes on");
            }
            None => reading.ask_ends()?,
        }
        if is_record && records % RECORDS_PER_LOOK != 0 {
            continue;
        }
        let now = now();
        if now.duration_since(last_ask) > ASK_EVERY {
            last_ask = now;
            let left = reading.left();
            progress(left);
            if now.duration_since(last_told) > TELL_EVERY {
                last_told = now;
                tracing::info!(records, left, "replaying");
            }
            if !goes_on() {
                return Err(Error::Cancelled);
            }
            if now.duration_since(last_record) > STALL {
                return Err(Error::Stalled);
            }
        }
    }
    progress(0);
    Ok(records)
}

/// Whether a state is not at its target yet.
fn is_behind((replayed, target): &(Replayed, i64)) -> bool {
    replayed.next < *target
}

/// The offsets of a partition that are to be read yet, if any are.
fn wanted(states: &BTreeMap<i32, (Replayed, i64)>, partition: i32) -> Option<Range<i64>> {
    let it = states.get(&partition).filter(|it| is_behind(it));
    it.map(|(replayed, target)| replayed.next..*target)
}

/// The partitions that are read, each up to its target.
struct Reading<'s, R> {
    reader: &'s R,
    states: &'s mut BTreeMap<i32, (Replayed, i64)>,
    /// How many of them are behind.
    open: usize,
    /// What is known of their ends. A lane may have been given more than a new leader gives.
    endings: Endings,
}

impl<'s, R: Reader> Reading<'s, R> {
    fn new(reader: &'s R, states: &'s mut BTreeMap<i32, (Replayed, i64)>) -> Self {
        let open = states.values().filter(|it| is_behind(it)).count();
        Self {
            reader,
            states,
            open,
            endings: Endings::default(),
        }
    }

    /// Reads whatever is behind from where it is.
    fn start(&self) -> Result<(), error::Consumer> {
        let behind = self.states.iter().filter(|(_, it)| is_behind(it));
        let from = behind.map(|(partition, (replayed, _))| (*partition, replayed.next));
        self.reader.read_from(from)
    }

    /// Takes one record in.
    fn apply(&mut self, message: &impl Message, decoder: &mut Decoder) -> Result<(), Error> {
        let partition = message.partition();
        let Some((replayed, target)) = self.states.get_mut(&partition) else {
            return Ok(());
        };
        if replayed.next >= *target {
            return Ok(());
        }
        if message.offset() < *target {
            match decoder.decode(message) {
                Ok(Record::Payment(input)) => {
                    replayed.state.observe(&input.payment, input.appended_at);
                    replayed.state.merge();
                }
                Ok(Record::Rules(rules)) => {
                    replayed.state.apply(rules);
                    replayed.state.merge();
                }
                Err(Failure::Letter { .. }) => {}
                Err(Failure::Registry(error)) => return Err(error.into()),
            }
        }
        if message.offset() + 1 >= *target {
            self.finish(partition)?;
        } else {
            replayed.next = message.offset() + 1;
        }
        Ok(())
    }

    /// Nothing more of a partition comes before its target.
    fn finish(&mut self, partition: i32) -> Result<(), error::Consumer> {
        let Some((replayed, target)) = self.states.get_mut(&partition) else {
            return Ok(());
        };
        // Offsets may be missing before the target, but nothing is after it in the state.
        replayed.next = *target;
        self.open -= 1;
        self.reader.pause(partition)
    }

    /// Takes in that a partition is said to end where it has been read up to. What is left before the target when it really
    /// does are no records.
    fn end(&mut self, partition: i32) -> Result<(), error::Consumer> {
        if let Some(left) = wanted(self.states, partition)
            && self.endings.said(partition, left.start)
        {
            self.finish(partition)?;
        }
        Ok(())
    }

    /// When nothing comes, asks where those end that were said to end before their target.
    fn ask_ends(&mut self) -> Result<(), error::Consumer> {
        let end = |partition| Ok(self.reader.ends(partition, ENDS_TIMEOUT)?.1);
        let asked = self.endings.ask(|partition| wanted(self.states, partition), end);
        for partition in asked.short {
            tracing::warn!(partition, "the log ends before what was committed");
            self.finish(partition)?;
        }
        if asked.more {
            self.start()?;
        }
        Ok(())
    }

    /// How many offsets are to be read yet.
    fn left(&self) -> i64 {
        let left = |(replayed, target): &(Replayed, i64)| target - replayed.next;
        self.states.values().map(left).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rdkafka::error::RDKafkaErrorCode as Code;
    use rdkafka::message::OwnedMessage;
    use sluice_proto::event::PaymentRecord;

    use super::*;
    use crate::decode::tests::{decoder, record};
    use crate::testing::{event_id, payment};

    const LATENESS_US: i64 = 600_000_000;
    const SECOND: Duration = Duration::from_secs(1);

    /// A partition with payments, and nothing but markers behind them.
    struct Log {
        payments: i64,
        /// Up to where its leader gives records away.
        given: Cell<i64>,
        /// What the leader answers who asks for the end, once it is sure of it; nothing where it never is.
        end: Option<i64>,
        position: Cell<i64>,
        told: Cell<bool>,
    }

    impl Log {
        fn new(payments: i64, given: i64, end: Option<i64>) -> Self {
            Self {
                payments,
                given: Cell::new(given),
                end,
                position: Cell::new(0),
                told: Cell::new(false),
            }
        }
    }

    impl Reader for Log {
        type Record<'r> = OwnedMessage;

        fn read_from(&self, offsets: impl IntoIterator<Item = (i32, i64)>) -> Result<(), error::Consumer> {
            for (_partition, offset) in offsets {
                self.position.set(offset);
                self.told.set(false);
            }
            Ok(())
        }

        fn pause(&self, _partition: i32) -> Result<(), error::Consumer> {
            Ok(())
        }

        fn poll(&self, _wait: Duration) -> Option<Result<OwnedMessage, KafkaError>> {
            let offset = self.position.get();
            if offset < self.payments.min(self.given.get()) {
                self.position.set(offset + 1);
                self.told.set(false);
                let event_id = event_id(u32::try_from(offset).expect("a few"));
                return Some(Ok(record(&PaymentRecord { event_id, ..payment() }, offset)));
            }
            (!self.told.replace(true)).then_some(Err(KafkaError::PartitionEOF(0)))
        }

        fn ends(&self, _partition: i32, _timeout: Duration) -> Result<(i64, i64), error::Consumer> {
            let end = self.end.ok_or(error::Consumer::Offsets {
                what: "the ends of a partition",
                cause: KafkaError::Global(Code::OffsetNotAvailable),
            })?;
            self.given.set(end);
            Ok((0, end))
        }
    }

    /// Brings an empty state up to offset 10 of this log, while each look at the clock finds a second gone. Says how many
    /// payments are in the state then, and where it stands.
    fn replayed(log: &Log) -> (Result<u64, Error>, usize, i64) {
        let empty = Replayed::empty(LATENESS_US, RuleSet::built_in(), 0);
        let mut states = BTreeMap::from([(0, (empty, 10))]);
        let clock = Cell::new(Instant::now());
        let now = || {
            clock.set(clock.get() + SECOND);
            clock.get()
        };
        let read = read(log, now, &mut decoder(), &mut states, |_left| {}, || true);
        let (replayed, _target) = &states[&0];
        (read, replayed.state.sizes().payments, replayed.next)
    }

    #[test]
    fn a_state_that_nobody_needs_is_forgotten_after_a_while() {
        let (kept, start) = (Kept::default(), Instant::now());
        let empty = || Replayed::empty(LATENESS_US, RuleSet::built_in(), 0);
        kept.put(start, 1, empty());
        kept.put(start + SECOND, 2, empty());
        kept.put(start, 3, empty());
        kept.need(start + SECOND, &[3, 4]);
        kept.forget(start + KEPT_FOR + SECOND);
        assert!(kept.take(1).is_none() && kept.take(2).is_some() && kept.take(3).is_some());
    }

    #[test]
    fn a_leader_that_does_not_know_its_end_yet_is_waited_for() {
        let (read, payments, next) = replayed(&Log::new(10, 4, Some(10)));
        assert_eq!((read.expect("replayed"), payments, next), (10, 10, 10));
    }

    #[test]
    fn what_is_no_record_is_not_waited_for() {
        let (read, payments, next) = replayed(&Log::new(6, 10, Some(10)));
        assert_eq!((read.expect("replayed"), payments, next), (6, 6, 10));
    }

    #[test]
    fn a_log_that_ends_before_the_target_is_read_to_its_end() {
        let (read, payments, next) = replayed(&Log::new(6, 6, Some(6)));
        assert_eq!((read.expect("replayed"), payments, next), (6, 6, 10));
    }

    #[test]
    fn a_replay_whose_end_is_never_told_can_be_gone_on_with() {
        let (read, payments, next) = replayed(&Log::new(10, 4, None));
        assert!(matches!(read, Err(Error::Stalled)), "{read:?}");
        assert_eq!((payments, next), (4, 4));
    }
}
