//! Owns virtual time: what happens when, which lane runs, and what becomes of each request on its way.
//!
//! One thread runs everything. A lane is a coroutine that gives control back wherever it would wait, so that a seed alone
//! decides in which order things happen. [`super::client`] asks through here; [`super::trial`] turns the wheel.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::rc::Rc;
use std::sync::Arc;

use corosensei::Yielder;
use fastrand::Rng;
use sluice_kafka::fail;

use super::faults::{Faults, Timed};
use super::kafka::{self, Kafka, Later, Reply, Stored};
use super::postgres::{Answer, Postgres, Statement};
use crate::lane::Signals;

/// Microseconds in a millisecond: virtual time is counted in microseconds.
pub(super) const MS: u64 = 1_000;

/// How a lane is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    On,
    /// Its process is killed: it runs no further.
    Die,
}

/// What a killed lane unwinds with.
pub(super) struct Killed;

/// A request on its way.
#[derive(Debug)]
pub(super) enum Sent {
    Kafka(kafka::Request),
    Postgres(u32, Statement),
}

/// An answer.
#[derive(Clone, Debug)]
pub(super) enum Got {
    Kafka(Reply),
    Postgres(Answer),
}

/// Something that happens at its time.
#[derive(Debug)]
pub(super) enum Event {
    /// A lane goes on, unless it was woken for another reason since.
    Wake {
        lane: usize,
        turn: u64,
    },
    Arrive {
        ticket: u64,
        sent: Sent,
    },
    Kafka(Later),
    /// The group's members have until now to join.
    Agree(u64),
    /// A member's session is over, if it was silent since.
    Expire(u64),
    Append(i32, Rc<Stored>),
    /// A leader knows how much the other replicas have.
    Agreed(kafka::Topic, i32),
    Fault(Timed),
    /// A process is started in a slot.
    Start(usize),
    /// The driver looks whether everything is done.
    Look,
}

/// One run of a processor.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) slot: usize,
    pub(super) alive: bool,
    pub(super) stands_until: u64,
    pub(super) signals: Arc<Signals>,
    /// Members of the group that it has.
    pub(super) members: BTreeSet<u64>,
}

/// A lane, as the scheduler sees it.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) process: usize,
    pub(super) turn: u64,
    pub(super) idle: bool,
}

/// The world of one trial.
pub(super) struct Core {
    pub(super) now: u64,
    pub(super) rng: Rng,
    pub(super) faults: Faults,
    pub(super) kafka: Kafka,
    pub(super) postgres: Postgres,
    pub(super) processes: Vec<Process>,
    pub(super) lanes: Vec<Lane>,
    /// The lane that runs.
    pub(super) running: usize,
    /// What was found wrong on the way.
    pub(super) violations: Vec<String>,
    /// What happened, if somebody wants to know.
    pub(super) story: Option<Vec<String>>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// Snapshots, the newest last, by partition.
    pub(super) snapshots: BTreeMap<i32, Vec<(i64, Vec<u8>)>>,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    tickets: u64,
    answers: BTreeMap<u64, Got>,
}

/// The world of one trial, for everybody in it.
pub(super) type Shared = Rc<RefCell<Core>>;

#[derive(Debug)]
struct Due(u64, u64, Event);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

impl Core {
    pub(super) fn new(rng: Rng, faults: Faults, partitions: i32, tells: bool) -> Self {
        Self {
            now: 0,
            rng,
            faults,
            kafka: Kafka::new(partitions),
            postgres: Postgres::default(),
            processes: Vec::new(),
            lanes: Vec::new(),
            running: 0,
            violations: Vec::new(),
            story: tells.then(Vec::new),
            counts: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            queue: BinaryHeap::new(),
            order: 0,
            tickets: 0,
            answers: BTreeMap::new(),
        }
    }

    /// Has something happen after a while, in microseconds.
    pub(super) fn after(&mut self, wait: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Due(self.now + wait, self.order, event)));
    }

    /// The next thing that happens. Time moves on to it.
    pub(super) fn next(&mut self) -> Option<Event> {
        let Reverse(Due(at, _, event)) = self.queue.pop()?;
        self.now = at;
        Some(event)
    }

    pub(super) fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            let line = format!("{:>10.3} ms  {}", self.now as f64 / MS as f64, what());
            story.push(line);
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Wakes a lane after a while, and not for any reason that was given before.
    pub(super) fn wake(&mut self, lane: usize, wait: u64) {
        self.lanes[lane].turn += 1;
        let turn = self.lanes[lane].turn;
        self.after(wait, Event::Wake { lane, turn });
    }

    /// Whoever waits for records or for the group looks again.
    pub(super) fn wake_idle(&mut self) {
        for lane in 0..self.lanes.len() {
            if std::mem::take(&mut self.lanes[lane].idle) {
                self.wake(lane, 0);
            }
        }
    }

    /// Lets a request arrive after a while. Its answer has this number.
    pub(super) fn post(&mut self, wait: u64, sent: Sent) -> u64 {
        self.tickets += 1;
        let ticket = self.tickets;
        self.after(wait, Event::Arrive { ticket, sent });
        ticket
    }

    pub(super) fn take(&mut self, ticket: u64) -> Option<Got> {
        self.answers.remove(&ticket)
    }

    /// A request arrives.
    pub(super) fn arrive(&mut self, ticket: u64, sent: Sent) {
        let told = self.story.is_some().then(|| format!("{sent:?}"));
        let got = match sent {
            Sent::Kafka(request) => Got::Kafka(self.kafka.answer(request)),
            Sent::Postgres(server, statement) => {
                let answer = self.postgres.run(server, statement);
                self.look_at_watermarks();
                Got::Postgres(answer)
            }
        };
        if let Some(told) = told {
            self.tell(|| format!("{told} -> {got:?}"));
        }
        self.answers.insert(ticket, got);
        self.schedule();
    }

    /// No row may count as committed whose decision does not.
    fn look_at_watermarks(&mut self) {
        let Self { kafka, postgres, .. } = self;
        let ahead = postgres.tables.owners.iter().find_map(|(part, (_, watermark))| {
            let decided = kafka.decided(*part);
            (*watermark > decided)
                .then(|| format!("3 ledger: watermark {watermark} of {part} is beyond {decided}, the committed offset"))
        });
        self.violations.extend(ahead);
    }

    /// Gives a time to what Kafka does by itself.
    pub(super) fn schedule(&mut self) {
        for later in std::mem::take(&mut self.kafka.later) {
            let wait = match later {
                Later::Marker { .. } => self.faults.marker(&mut self.rng),
                Later::Timeout { .. } => self.faults.transaction_timeout(&mut self.rng),
            };
            self.after(wait, Event::Kafka(later));
        }
        self.agree();
    }

    /// Goes on with the group's agreement, if there is any.
    pub(super) fn agree(&mut self) {
        if self.kafka.group.is_complete() {
            self.kafka.group.complete();
            self.tell(|| "the group has a new generation".to_owned());
            self.wake_idle();
        }
    }

    /// Begins an agreement's deadline, and has everybody who waits look.
    pub(super) fn group_changed(&mut self) {
        if let Some(round) = self.kafka.group.preparing {
            let wait = self.faults.agreement();
            self.after(wait, Event::Agree(round));
        }
        self.agree();
        self.wake_idle();
    }

    /// Ends a process as `kill -9` does: what it sent is on its way, and nothing follows.
    pub(super) fn kill(&mut self, process: usize) {
        if !std::mem::take(&mut self.processes[process].alive) {
            return;
        }
        self.count("kills");
        let slot = self.processes[process].slot;
        self.tell(|| format!("process {process} is killed"));
        let session = self.faults.session();
        for member in self.processes[process].members.clone() {
            self.after(session, Event::Expire(member));
        }
        let pause = self.faults.restart(&mut self.rng);
        self.after(pause, Event::Start(slot));
    }

    /// Has a process stand still, as SIGSTOP and SIGCONT do.
    pub(super) fn stand(&mut self, process: usize, wait: u64) {
        if !self.processes[process].alive {
            return;
        }
        self.count("stops");
        self.tell(|| format!("process {process} stands still for {} ms", wait / MS));
        let until = self.now + wait;
        self.processes[process].stands_until = until;
        let session = self.faults.session();
        if wait > session {
            for member in self.processes[process].members.clone() {
                self.after(session, Event::Expire(member));
            }
        }
    }
}

/// A lane's hold on the world.
#[derive(Clone)]
pub(super) struct Wire<'y> {
    pub(super) shared: Shared,
    pub(super) yielder: &'y Yielder<Go, ()>,
    pub(super) lane: usize,
    pub(super) process: usize,
}

/// Neither an answer nor the certainty that nothing happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silence;

impl Wire<'_> {
    /// Waits. What happens meanwhile happens.
    pub(super) fn wait(&self, wait: u64) {
        self.shared.borrow_mut().wake(self.lane, wait);
        self.give_way();
    }

    /// The same, for as long as nothing comes.
    pub(super) fn idle(&self, wait: u64) {
        {
            let mut core = self.shared.borrow_mut();
            core.wake(self.lane, wait);
            core.lanes[self.lane].idle = true;
        }
        self.give_way();
        self.shared.borrow_mut().lanes[self.lane].idle = false;
    }

    fn give_way(&self) {
        if self.yielder.suspend(()) == Go::Die {
            std::panic::resume_unwind(Box::new(Killed));
        }
    }

    /// Sends a request once and waits for its answer, or for the end of patience.
    pub(super) fn ask(&self, sent: Sent) -> Result<Got, Silence> {
        let (ticket, wait) = {
            let mut core = self.shared.borrow_mut();
            let core = &mut *core;
            let way = core.faults.way(&mut core.rng, core.now, &sent);
            if let Some(fault) = way.fault {
                core.count(fault);
                let told = core.story.is_some().then(|| format!("{fault}: {sent:?}"));
                core.tell(|| told.unwrap_or_default());
            }
            let ticket = way.there.map(|there| core.post(there, sent));
            (ticket.filter(|_| way.answered), way.wait)
        };
        self.wait(wait);
        let got = ticket.and_then(|ticket| self.shared.borrow_mut().take(ticket));
        got.ok_or(Silence)
    }
}

/// What decides about the points of this thread: the trial that runs on it.
pub(super) struct Points(pub(super) Shared, pub(super) &'static [&'static str]);

impl fail::Plan for Points {
    fn fails(&self, point: &'static str) -> bool {
        let mut borrowed = self.0.borrow_mut();
        let core = &mut *borrowed;
        let process = core.lanes[core.running].process;
        let Some(fault) = core.faults.at_point(&mut core.rng, core.now) else {
            return false;
        };
        core.tell(|| format!("at {point}:"));
        match fault {
            Timed::Kill(_) => {
                core.kill(process);
                drop(borrowed);
                std::panic::resume_unwind(Box::new(Killed));
            }
            Timed::Stand(_, wait) => {
                core.stand(process, wait);
                false
            }
            Timed::FailOver(_) | Timed::Leave(_) | Timed::Elect(..) => {
                core.count("errors");
                true
            }
        }
    }

    fn safeguard(&self, name: &'static str) -> bool {
        !self.1.contains(&name)
    }
}
