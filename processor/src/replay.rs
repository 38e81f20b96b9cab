//! Owns how a partition's state is rebuilt: by reading its records again, up to where the group has committed, without
//! writing anything.
//!
//! Comes last in [`crate::takeover`]. A state that was kept from before, or in a snapshot, is read on from where it stands.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::Message;
use rdkafka::error::KafkaError;
use sluice_kafka::config::Isolation;
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
/// one state for each partition.
#[derive(Default)]
pub(crate) struct Kept(Mutex<BTreeMap<i32, Replayed>>);

impl Kept {
    pub(crate) fn put(&self, partition: i32, replayed: Replayed) {
        self.lock().insert(partition, replayed);
    }

    /// Each without the offset that it was to be brought up to.
    pub(crate) fn put_all(&self, states: BTreeMap<i32, (Replayed, i64)>) {
        let states = states
            .into_iter()
            .map(|(partition, (replayed, _))| (partition, replayed));
        self.lock().extend(states);
    }

    pub(crate) fn take(&self, partition: i32) -> Option<Replayed> {
        self.lock().remove(&partition)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Replayed>> {
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
    mut goes_on: impl FnMut() -> bool,
) -> Result<u64, Error> {
    let behind = |(_, (replayed, target)): &(&i32, &(Replayed, i64))| replayed.next < *target;
    let start: Vec<(i32, i64)> = states
        .iter()
        .filter(behind)
        .map(|(partition, (replayed, _))| (*partition, replayed.next))
        .collect();
    let mut open = start.len();
    if open == 0 {
        return Ok(0);
    }
    let reader = world.reader(topic, Isolation::ReadCommitted)?;
    reader.read_from(start)?;
    let mut records = 0;
    let [mut last_record, mut last_ask, mut last_told] = [world.now(); 3];
    while open > 0 {
        let polled = reader.poll(POLL);
        let quiet = polled.is_none();
        let ended = match polled {
            Some(Ok(message)) => {
                records += 1;
                if records % RECORDS_PER_LOOK == 1 {
                    last_record = world.now();
                }
                apply(&message, decoder, states)?
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => Some(partition),
            Some(Err(source)) => {
                let error = error::Consumer::Poll(source);
                if !error.is_retriable() {
                    return Err(error.into());
                }
                tracing::warn!(%error, "replay goes on");
                None
            }
            None => None,
        };
        if let Some(partition) = ended
            && let Some((replayed, target)) = states.get_mut(&partition)
            && replayed.next < *target
        {
            // Offsets may be missing before the target, but nothing is after it in the state.
            replayed.next = *target;
            open -= 1;
            reader.pause(partition)?;
        }
        if !quiet && records % RECORDS_PER_LOOK != 0 {
            continue;
        }
        let now = world.now();
        if now.duration_since(last_ask) > ASK_EVERY {
            last_ask = now;
            let left = left(states);
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

/// How many offsets are to be read yet.
fn left(states: &BTreeMap<i32, (Replayed, i64)>) -> i64 {
    states.values().map(|(replayed, target)| target - replayed.next).sum()
}

/// Takes one record in. Gives the partition when this was the last one before its target.
fn apply(
    message: &impl Message,
    decoder: &mut Decoder,
    states: &mut BTreeMap<i32, (Replayed, i64)>,
) -> Result<Option<i32>, Error> {
    let partition = message.partition();
    let Some((replayed, target)) = states.get_mut(&partition) else {
        return Ok(None);
    };
    if replayed.next >= *target {
        return Ok(None);
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
        return Ok(Some(partition));
    }
    replayed.next = message.offset() + 1;
    Ok(None)
}
