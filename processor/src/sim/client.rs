//! Owns the clients of the model: what [`crate::world`] asks for, as librdkafka and the driver of Postgres do it, with their
//! repetitions and the doubt that they leave.
//!
//! Asks through [`super::wire`].

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rdkafka::Timestamp;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::OwnedMessage;
use sluice_kafka::config::Isolation;
use sluice_kafka::error;

use super::group::{Membership, Notice};
use super::kafka::{Fate, Reply, Request, Topic};
use super::postgres::{self, Answer, Statement};
use super::producer::Producers;
use super::wire::{Got, MS, Sent, Wire};
use crate::consume::Assignment;
use crate::lane::Settings;
use crate::ledger::{self, Compensated, Content, Key, Owner, Refilled, Rows};
use crate::publish;
use crate::replay::Replayed;
use crate::rule_archive;
use crate::rules::RuleSet;
use crate::snapshot::Due;
use crate::state::State;
use crate::state::image::Origin;
use crate::world::{Books, Member, Reader, World};

/// What virtual time counts from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// The backoff of a transactional producer, give or take a fifth.
const TRANSACTIONAL_BACKOFF: u64 = sluice_kafka::config::TRANSACTIONAL_RETRY_BACKOFF_MS as u64 * MS;
/// How long librdkafka waits before it sends offsets again.
const OFFSETS_AGAIN: u64 = 500 * MS;
/// How long it waits before it asks again what could not be answered yet, where it has a time of its own for that.
const ASK_AGAIN: u64 = 20 * MS;
/// The backoff of whatever is not a transactional producer: librdkafka's default.
const READER_BACKOFF: u64 = 100 * MS;
/// The longest backoff.
const LONGEST_BACKOFF: u64 = 1_000 * MS;
/// How long a lane without anything to do may wait at once. It would look up twenty times a second.
const LONGEST_IDLE: u64 = 1_000 * MS;
/// Lanes of a process.
pub(super) const LANES: usize = 2;
/// How long a statement may take.
const STATEMENT_TIMEOUT: u64 = 10_000 * MS;

impl Wire<'_> {
    /// Asks Kafka until there is an answer that is one, as librdkafka does by itself.
    pub(super) fn insist(&self, patience: u64, request: impl Fn() -> Request) -> Option<Reply> {
        let deadline = self.shared.borrow().now + patience;
        let mut attempts = 0;
        loop {
            let asked = request();
            let (usual, soon) = match &asked {
                Request::Offsets { .. } => (OFFSETS_AGAIN, OFFSETS_AGAIN),
                Request::Init { .. } => (TRANSACTIONAL_BACKOFF, ASK_AGAIN),
                Request::Add { parts, .. } if !parts.is_empty() => (TRANSACTIONAL_BACKOFF, ASK_AGAIN),
                Request::Add { .. } | Request::End { .. } | Request::Produce { .. } => {
                    (TRANSACTIONAL_BACKOFF, TRANSACTIONAL_BACKOFF)
                }
                Request::Committed { .. } | Request::CommitEarly { .. } | Request::Ends { .. } => {
                    (READER_BACKOFF, ASK_AGAIN)
                }
            };
            let wait = match self.ask(Sent::Kafka(asked)) {
                Ok(Got::Kafka(Reply::Concurrent | Reply::Unstable)) => soon,
                Ok(Got::Kafka(reply)) => return Some(reply),
                Ok(Got::Postgres(_)) => return None,
                Err(_silence) if usual == OFFSETS_AGAIN => usual,
                Err(_silence) => {
                    let jitter = self.shared.borrow_mut().rng.u64(80..120);
                    attempts += 1;
                    ((usual << (attempts - 1).min(4)) * jitter / 100).min(LONGEST_BACKOFF)
                }
            };
            if self.shared.borrow().now + wait > deadline {
                return None;
            }
            self.wait(wait);
        }
    }

    /// Has Postgres do something. It is not tried twice.
    fn run(&self, server: u32, what: &'static str, statement: Statement) -> Result<Answer, ledger::Error> {
        let began = self.shared.borrow().now;
        let lost = || ledger::Error::Database {
            what,
            source: sqlx::Error::WorkerCrashed,
        };
        match self.ask(Sent::Postgres(server, statement)) {
            Ok(Got::Postgres(Answer::Fenced)) => Err(ledger::Error::Fenced),
            Ok(Got::Postgres(Answer::Conflict)) => Err(ledger::Error::Conflict),
            Ok(Got::Postgres(Answer::Cut)) => Err(lost()),
            Ok(Got::Postgres(answer)) => Ok(answer),
            Ok(Got::Kafka(_)) | Err(_) if self.shared.borrow().now - began < STATEMENT_TIMEOUT => Err(lost()),
            Ok(Got::Kafka(_)) | Err(_) => Err(ledger::Error::Timeout(what)),
        }
    }
}

/// The lane's consumer, or a reader without a group.
pub(super) struct Consumer<'y> {
    wire: Wire<'y>,
    topic: Topic,
    isolation: Isolation,
    /// Where each partition is read on, and whether its end was told.
    positions: RefCell<BTreeMap<i32, (usize, bool)>>,
    place: Option<Place>,
    idle: Cell<u64>,
}

/// The lane's place in the group.
struct Place {
    id: Cell<u64>,
    change: Cell<u64>,
    assignment: RefCell<(Vec<i32>, Option<Arc<Membership>>)>,
}

impl Consumer<'_> {
    /// The next record of any partition, if there is one, or the first end that was not told.
    fn take(&self) -> Option<Result<OwnedMessage, KafkaError>> {
        let mut core = self.wire.shared.borrow_mut();
        let mut positions = self.positions.borrow_mut();
        let first = if positions.len() > 1 { core.rng.i32(0..4) } else { 0 };
        let (before, after): (Vec<_>, Vec<_>) = positions.iter_mut().partition(|(part, _)| **part < first);
        for (part, (position, told)) in after.into_iter().chain(before) {
            let log = core.kafka.log(self.topic, *part);
            let end = log.given(self.isolation);
            while *position < end {
                let (offset, entry) = (*position, &log.entries[*position]);
                *position += 1;
                *told = false;
                let readable = entry.fate != Fate::Aborted || self.isolation == Isolation::ReadUncommitted;
                if let Some(record) = entry.record.as_ref().filter(|_| readable) {
                    return Some(Ok(OwnedMessage::new(
                        record.payload.clone(),
                        record.key.clone(),
                        name(self.topic).to_owned(),
                        Timestamp::CreateTime(record.time_ms),
                        *part,
                        offset as i64,
                        record.headers.clone(),
                    )));
                }
            }
            if self.place.is_none() && !std::mem::replace(told, true) {
                return Some(Err(KafkaError::PartitionEOF(*part)));
            }
        }
        None
    }

    /// Serves the group. Whether there was anything to say.
    fn serve(&self, place: &Place) -> bool {
        let mut core = self.wire.shared.borrow_mut();
        let notice = core.kafka.group.poll(place.id.get());
        let noted = match notice {
            Some(Notice::Nothing) => {
                core.agree();
                return false;
            }
            Some(Notice::Assigned(parts, membership)) => (parts, Some(Arc::new(membership))),
            Some(Notice::Revoked) => (Vec::new(), None),
            None => {
                // It was given up, and begins anew.
                let id = core.kafka.group.join();
                core.processes[self.wire.process].members.insert(id);
                place.id.set(id);
                core.group_changed();
                (Vec::new(), None)
            }
        };
        let (lane, change) = (self.wire.lane, place.change.get() + 1);
        core.tell(|| format!("lane {lane} is told: {noted:?}"));
        place.change.set(change);
        place.assignment.replace(noted);
        self.positions.borrow_mut().clear();
        core.agree();
        true
    }
}

impl Drop for Consumer<'_> {
    fn drop(&mut self) {
        let Some(place) = &self.place else { return };
        let mut core = self.wire.shared.borrow_mut();
        if core.processes[self.wire.process].alive {
            core.kafka.group.remove(place.id.get());
            core.group_changed();
        }
    }
}

impl Reader for Consumer<'_> {
    type Record<'r>
        = OwnedMessage
    where
        Self: 'r;

    fn read_from(&self, offsets: impl IntoIterator<Item = (i32, i64)>) -> Result<(), error::Consumer> {
        let at = |(part, offset): (i32, i64)| (part, (usize::try_from(offset).unwrap_or(0), false));
        self.positions.replace(offsets.into_iter().map(at).collect());
        Ok(())
    }

    fn pause(&self, partition: i32) -> Result<(), error::Consumer> {
        self.positions.borrow_mut().remove(&partition);
        Ok(())
    }

    fn poll(&self, wait: Duration) -> Option<Result<OwnedMessage, KafkaError>> {
        let served = |place: &Place| self.serve(place);
        if self.place.as_ref().is_some_and(served) {
            return None;
        }
        if let Some(taken) = self.take() {
            self.idle.set(0);
            return Some(taken);
        }
        if wait.is_zero() {
            return None;
        }
        let idle = self.idle.get();
        self.idle.set((idle * 2).clamp(20 * MS, LONGEST_IDLE));
        self.wire.idle((wait.as_micros() as u64).max(idle));
        if self.place.as_ref().is_some_and(served) {
            return None;
        }
        self.take()
    }

    fn ends(&self, partition: i32, timeout: Duration) -> Result<(i64, i64), error::Consumer> {
        let request = || Request::Ends {
            of: (self.topic, partition),
            isolation: self.isolation,
        };
        match self.wire.insist(timeout.as_micros() as u64, request) {
            Some(Reply::Ends(low, end)) => Ok((low, end)),
            _ => Err(unanswered("the ends of a partition")),
        }
    }
}

impl Member for Consumer<'_> {
    type Membership = Membership;

    fn assignment(&self) -> Assignment<Membership> {
        let mut assignment = Assignment::none();
        if let Some(place) = &self.place {
            let (partitions, membership) = &*place.assignment.borrow();
            assignment.change = place.change.get();
            assignment.partitions.clone_from(partitions);
            assignment.membership.clone_from(membership);
        }
        assignment
    }

    fn is_current(&self, change: u64) -> bool {
        self.place.as_ref().is_some_and(|place| place.change.get() == change)
    }

    fn committed(&self, partitions: &[i32], timeout: Duration) -> Result<BTreeMap<i32, i64>, error::Consumer> {
        let request = || Request::Committed {
            parts: partitions.to_vec(),
        };
        match self.wire.insist(timeout.as_micros() as u64, request) {
            Some(Reply::Offsets(offsets)) => Ok(offsets),
            _ => Err(unanswered("committed offsets")),
        }
    }

    fn commit_early(&self, records: &[OwnedMessage]) -> Result<(), error::Consumer> {
        use rdkafka::Message as _;
        let offsets: BTreeMap<i32, i64> = records.iter().map(|it| (it.partition(), it.offset() + 1)).collect();
        let request = || Request::CommitEarly {
            offsets: offsets.clone().into_iter().collect(),
        };
        let done = self.wire.insist(STATEMENT_TIMEOUT, request);
        done.map(drop).ok_or_else(|| unanswered("an early commit"))
    }

    fn known_end(&self, _partition: i32) -> Option<i64> {
        None
    }

    fn warn(&self, _error: &error::Consumer) {}
}

fn unanswered(what: &'static str) -> error::Consumer {
    error::Consumer::Offsets {
        what,
        cause: KafkaError::Global(Code::OperationTimedOut),
    }
}

/// A topic's name in the settings of a trial.
pub(super) const fn name(topic: Topic) -> &'static str {
    match topic {
        Topic::Payments => "payments",
        Topic::Decisions => "decisions",
        Topic::DeadLetters => "payments.dlq",
        Topic::Late => "payments.late",
        Topic::RuleSets => "rule-sets",
    }
}

/// A connection to Postgres.
pub(super) struct Connection<'y> {
    wire: Wire<'y>,
    server: u32,
}

/// A batch under way.
pub(super) struct Preparing(Result<u64, u64>, Rows);

impl<'y> Books for Connection<'y> {
    type Preparing = Preparing;

    fn bump_epochs(&mut self, parts: &[i32], _instance: &str) -> Result<Vec<Owner>, ledger::Error> {
        match self
            .wire
            .run(self.server, "take ownership", Statement::Bump(parts.to_vec()))?
        {
            Answer::Owners(owners) => Ok(owners),
            _ => Err(ledger::Error::Busy),
        }
    }

    fn compensate(&mut self, owners: &[Owner], _reason: &str) -> Result<Vec<Compensated>, ledger::Error> {
        let statement = Statement::Compensate(owners.to_vec());
        match self.wire.run(self.server, "compensate", statement)? {
            Answer::Compensated(all) => Ok(all),
            _ => Err(ledger::Error::Busy),
        }
    }

    fn prepare(&mut self, owners: Vec<Owner>, mut rows: Rows) -> Result<Preparing, ledger::Error> {
        let written = if rows.is_empty() {
            Vec::new()
        } else {
            postgres::rows(rows.finish())
        };
        let sent = Sent::Postgres(self.server, Statement::Prepare(owners, written));
        let mut core = self.wire.shared.borrow_mut();
        let core = &mut *core;
        let way = core.faults.way(&mut core.rng, core.now, &sent);
        if let Some(fault) = way.fault {
            core.count(fault);
        }
        let ready = core.now + way.wait;
        let ticket = way.there.map(|there| core.post(there, sent));
        let ticket = ticket.filter(|_| way.answered);
        Ok(Preparing(ticket.ok_or(ready), rows))
    }

    fn finish(&mut self, Preparing(ticket, rows): Preparing) -> Result<Rows, ledger::Error> {
        let lost = || ledger::Error::Database {
            what: "prepare a batch",
            source: sqlx::Error::WorkerCrashed,
        };
        let ticket = match ticket {
            Ok(ticket) => ticket,
            Err(ready) => {
                let now = self.wire.shared.borrow().now;
                self.wire.wait(ready.saturating_sub(now));
                return Err(lost());
            }
        };
        loop {
            let got = self.wire.shared.borrow_mut().take(ticket);
            match got {
                Some(Got::Postgres(Answer::Fenced)) => return Err(ledger::Error::Fenced),
                Some(Got::Postgres(Answer::Conflict)) => return Err(ledger::Error::Conflict),
                Some(Got::Postgres(Answer::Done)) => return Ok(rows),
                Some(_) => return Err(lost()),
                None => self.wire.wait(MS),
            }
        }
    }

    fn flush(&mut self, owners: &[Owner]) -> Result<(), ledger::Error> {
        let statement = Statement::Prepare(owners.to_vec(), Vec::new());
        self.wire.run(self.server, "set a watermark", statement).map(drop)
    }

    fn confirm(&mut self, owners: &[Owner]) -> Result<(), ledger::Error> {
        match self.wire.run(
            self.server,
            "confirm what is written",
            Statement::Confirm(owners.to_vec()),
        )? {
            Answer::Holds(true) => Ok(()),
            _ => Err(ledger::Error::Forgotten),
        }
    }

    fn holds(&mut self, part: i32, off: i64) -> Result<bool, ledger::Error> {
        match self
            .wire
            .run(self.server, "look for a row", Statement::Holds(part, off))?
        {
            Answer::Holds(holds) => Ok(holds),
            _ => Err(ledger::Error::Busy),
        }
    }

    fn newest(&mut self, part: i32, below: i64) -> Result<Option<(i64, uuid::Uuid)>, ledger::Error> {
        match self
            .wire
            .run(self.server, "look for the newest row", Statement::Newest(part, below))?
        {
            Answer::Newest(newest) => Ok(newest),
            _ => Err(ledger::Error::Busy),
        }
    }

    fn refill(&mut self, owner: Owner, rows: &mut Rows) -> Result<Option<Refilled>, ledger::Error> {
        let statement = Statement::Refill(owner, postgres::rows(rows.finish()));
        match self.wire.run(self.server, "fill rows in", statement)? {
            Answer::Refilled(refilled) => Ok(refilled),
            _ => Err(ledger::Error::Busy),
        }
    }

    fn known(&mut self, keys: &[Key]) -> Result<HashMap<Key, Content>, ledger::Error> {
        match self
            .wire
            .run(self.server, "look payments up", Statement::Known(keys.to_vec()))?
        {
            Answer::Known(known) => Ok(known.into_iter().collect()),
            _ => Err(ledger::Error::Busy),
        }
    }
}

impl<'y> World for Wire<'y> {
    type Membership = Membership;
    type Member = Consumer<'y>;
    type Reader = Consumer<'y>;
    type Books = Connection<'y>;
    type Transactions = Producers<'y>;

    fn now(&self) -> Instant {
        *START + Duration::from_micros(self.shared.borrow().now)
    }

    fn unix_us(&self) -> i64 {
        super::input::T0 + self.shared.borrow().now as i64
    }

    fn join(&self, _settings: &Settings) -> Result<Consumer<'y>, error::Consumer> {
        let id = {
            let mut core = self.shared.borrow_mut();
            let id = core.kafka.group.join();
            core.processes[self.process].members.insert(id);
            core.group_changed();
            id
        };
        let place = Place {
            id: Cell::new(id),
            change: Cell::new(0),
            assignment: RefCell::new((Vec::new(), None)),
        };
        Ok(Consumer {
            wire: self.clone(),
            topic: Topic::Payments,
            isolation: Isolation::ReadCommitted,
            positions: RefCell::default(),
            place: Some(place),
            idle: Cell::new(0),
        })
    }

    fn reader(&self, topic: &str, isolation: Isolation) -> Result<Consumer<'y>, error::Consumer> {
        let all = [Topic::Payments, Topic::Decisions, Topic::DeadLetters, Topic::Late];
        let topic = all.into_iter().find(|it| name(*it) == topic).unwrap_or(Topic::RuleSets);
        Ok(Consumer {
            wire: self.clone(),
            topic,
            isolation,
            positions: RefCell::default(),
            place: None,
            idle: Cell::new(0),
        })
    }

    fn books(&self, _settings: &Settings) -> Result<Connection<'y>, ledger::Error> {
        self.wait(MS);
        let server = self.shared.borrow().postgres.server;
        Ok(Connection {
            wire: self.clone(),
            server,
        })
    }

    fn transactions(&self, settings: &Settings, lane: u16) -> Result<Producers<'y>, publish::Error> {
        Producers::new(self, settings, lane)
    }

    fn rules_at(
        &self,
        _settings: &Settings,
        partition: i32,
        offset: i64,
    ) -> Result<Option<Arc<RuleSet>>, rule_archive::Error> {
        let mut core = self.shared.borrow_mut();
        let log = core.kafka.log(Topic::RuleSets, partition);
        let end = log.end(Isolation::ReadCommitted);
        let committed = log.entries[..end].iter().filter(|entry| entry.fate == Fate::Committed);
        let documents = committed.filter_map(|entry| {
            let record = entry.record.as_ref()?;
            let from: i64 = std::str::from_utf8(record.key.as_ref()?).ok()?.parse().ok()?;
            Some((from, Rc::clone(record)))
        });
        let last = documents
            .filter(|(from, _)| *from <= offset)
            .max_by_key(|(from, _)| *from);
        Ok(last.and_then(|(_, record)| super::input::rules(record.payload.as_deref()?)))
    }

    fn due(&self, _partition: i32, _partitions: usize) -> Due {
        Due::first(self.now())
    }

    fn offer(&self, _due: &mut Due, partition: i32, next: i64, state: &State) {
        let mut core = self.shared.borrow_mut();
        let core = &mut *core;
        if core.rng.f64() < core.faults.snapshots
            && let Ok(image) = state.image(origin(partition), next, 0)
        {
            core.snapshots.entry(partition).or_default().push((next, image.seal()));
        }
    }

    fn leave(&self, due: &Due, partition: i32, next: i64, state: &State) {
        self.offer(&mut { *due }, partition, next, state);
    }

    fn restore(&self, settings: &Settings, wanted: &BTreeMap<i32, (i64, i64)>) -> BTreeMap<i32, Replayed> {
        let restored = wanted.iter().filter_map(|(partition, (low, committed))| {
            let image = {
                let core = self.shared.borrow();
                let images = core.snapshots.get(partition)?;
                images
                    .iter()
                    .filter(|(next, _)| (*low..=*committed).contains(next))
                    .max_by_key(|it| it.0)?
                    .1
                    .clone()
            };
            let told = |next| {
                let applied = self.rules_at(settings, *partition, next).ok()?;
                Some(applied.unwrap_or_else(|| settings.rules.clone()))
            };
            let (state, next) = State::from_image(&image, &origin(*partition), settings.lateness_us, told).ok()?;
            self.shared.borrow_mut().count("snapshots restored");
            Some((*partition, Replayed { state, next }))
        });
        restored.collect()
    }
}

fn origin(partition: i32) -> Origin {
    Origin {
        cluster: "model".to_owned(),
        topic: name(Topic::Payments).to_owned(),
        partition,
    }
}
