//! Owns what goes wrong in a trial, and how often: the seed chooses some kinds of faults and their rates. After a while
//! nothing more goes wrong, so that everything has to come right by itself.
//!
//! Asked by [`super::wire`] for each request and at each point of the lane's code.

use std::time::Duration;

use fastrand::Rng;

use super::kafka::{Request, Topic};
use super::postgres::{LOSABLE, Statement};
use super::wire::{MS, Sent};

/// How long a process may be silent before the group gives its members up.
const SESSION: u64 = 2_000 * MS;
/// How long a transaction may be open.
pub(super) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(3);
/// The coordinator looks for transactions to abort every ten seconds.
const TIMEOUT_SCAN: u64 = 10_000 * MS;
/// How long members have to join a generation.
const AGREEMENT: u64 = 6_000 * MS;
/// When the last fault happens.
pub(super) const CALM: u64 = 5_000 * MS;
/// The longest that a request is on its way before it arrives all the same.
const LONGEST_WAY: u64 = 4_000 * MS;
/// When a client notices that a connection is gone, and when it gives an answer up, at most.
const RESET: u64 = 300 * MS;
const GIVES_UP: u64 = 2_500 * MS;
/// Entries that a new leader gives less away, and for how long, at most.
const UNKNOWN_ENTRIES: usize = 12;
const UNSURE: u64 = 3_000 * MS;
/// What the answer to the end of a transaction takes longer: a lane can no longer be sure that it asked once.
const SLOW_END: u64 = 300 * MS;

/// A fault that comes at its time, to the process in this slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timed {
    Kill(usize),
    Stand(usize, u64),
    /// Postgres fails over and loses this many transactions.
    FailOver(usize),
    /// It is asked to end, and started again.
    Leave(usize),
    /// A partition of a topic gets a new leader, which gives so many entries less away for this long.
    Elect(Topic, i32, usize, u64),
}

/// What becomes of one request. Waits are in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Way {
    /// When it arrives; `None`: never.
    pub(super) there: Option<u64>,
    /// When the client goes on.
    pub(super) wait: u64,
    /// The client has the answer by then.
    pub(super) answered: bool,
    pub(super) fault: Option<&'static str>,
}

/// The rates of one trial, from 0 to 1.
#[derive(Debug)]
pub(super) struct Faults {
    points: f64,
    kafka: f64,
    ends: f64,
    postgres: f64,
    produce: f64,
    slow: f64,
    markers: f64,
    /// The coordinator takes long to end any transaction, from first to last.
    slow_ends: bool,
    pub(super) timed: Vec<(u64, Timed)>,
    pub(super) snapshots: f64,
}

impl Faults {
    /// What this seed brings to so many processes and partitions.
    pub(super) fn draw(rng: &mut Rng, processes: usize, partitions: i32) -> Self {
        let mut rate = |often: f64, most: f64| if rng.f64() < often { rng.f64() * most } else { 0.0 };
        let mut faults = Self {
            points: rate(0.4, 0.03),
            kafka: rate(0.5, 0.08),
            ends: rate(0.3, 0.4),
            postgres: rate(0.4, 0.1),
            produce: rate(0.4, 0.2),
            slow: rate(0.5, 0.05),
            markers: rate(0.4, 0.3),
            timed: Vec::new(),
            snapshots: rate(0.5, 0.5),
            slow_ends: false,
        };
        for _ in 0..rng.usize(0..4) {
            let slot = rng.usize(0..processes);
            let fault = match rng.u8(0..4) {
                0 => Timed::Kill(slot),
                1 => Timed::Stand(slot, rng.u64(10..6_000) * MS),
                2 => Timed::FailOver(rng.usize(0..=LOSABLE)),
                _ => Timed::Leave(slot),
            };
            faults.timed.push((rng.u64(100 * MS..CALM), fault));
        }
        let elections = if rng.bool() { rng.usize(1..8) } else { 0 };
        for _ in 0..elections {
            let topic = [Topic::Payments, Topic::Decisions][rng.usize(0..2)];
            let unknown = rng.usize(0..=UNKNOWN_ENTRIES);
            let fault = Timed::Elect(topic, rng.i32(0..partitions), unknown, rng.u64(1..UNSURE));
            faults.timed.push((rng.u64(100 * MS..CALM), fault));
        }
        faults.slow_ends = rng.u8(0..20) == 0;
        faults
    }

    /// What becomes of a request that a client waits for.
    pub(super) fn way(&self, rng: &mut Rng, now: u64, sent: &Sent) -> Way {
        let there = self.latency(rng);
        let mut back = self.latency(rng);
        if self.slow_ends && matches!(sent, Sent::Kafka(Request::End { .. })) {
            back += SLOW_END;
        }
        let rate = match sent {
            Sent::Kafka(Request::End { .. }) => self.ends.max(self.kafka),
            Sent::Kafka(_) => self.kafka,
            Sent::Postgres(..) => self.postgres,
        };
        if now > CALM || rng.f64() >= rate {
            return Way {
                there: Some(there),
                wait: there + back,
                answered: true,
                fault: None,
            };
        }
        let notice = if rng.bool() {
            rng.u64(1..RESET)
        } else {
            rng.u64(RESET..GIVES_UP)
        };
        let (there, fault) = match rng.u8(0..3) {
            0 => (None, "requests lost"),
            1 => (Some(there), "answers lost"),
            _ => (Some(notice + rng.u64(0..LONGEST_WAY)), delayed(sent)),
        };
        Way {
            there,
            wait: notice,
            answered: false,
            fault: Some(fault),
        }
    }

    /// When records that are sent arrive, after as many attempts as it takes; and whether they arrive once more later.
    pub(super) fn delivery(&self, rng: &mut Rng, now: u64) -> (u64, Option<u64>) {
        let there = self.latency(rng) * 2;
        if now > CALM || rng.f64() >= self.produce {
            return (there, None);
        }
        let late = there + rng.u64(0..LONGEST_WAY);
        (late, rng.bool().then(|| late + rng.u64(0..LONGEST_WAY)))
    }

    /// What happens at a point of the lane's code, if anything does.
    pub(super) fn at_point(&self, rng: &mut Rng, now: u64) -> Option<Timed> {
        (now <= CALM && rng.f64() < self.points).then(|| match rng.u8(0..3) {
            0 => Timed::Kill(0),
            1 => Timed::Stand(0, rng.u64(10..6_000) * MS),
            _ => Timed::FailOver(0),
        })
    }

    pub(super) fn latency(&self, rng: &mut Rng) -> u64 {
        let usual = rng.u64(200..1_500);
        if rng.f64() < self.slow { usual * 200 } else { usual }
    }

    pub(super) fn marker(&self, rng: &mut Rng) -> u64 {
        let usual = rng.u64(100..1_000);
        if rng.f64() < self.markers { usual * 700 } else { usual }
    }

    pub(super) fn transaction_timeout(&self, rng: &mut Rng) -> u64 {
        TRANSACTION_TIMEOUT.as_micros() as u64 + rng.u64(0..TIMEOUT_SCAN)
    }

    pub(super) const fn session(&self) -> u64 {
        SESSION
    }

    pub(super) const fn agreement(&self) -> u64 {
        AGREEMENT
    }

    pub(super) fn restart(&self, rng: &mut Rng) -> u64 {
        rng.u64(50..2_500) * MS
    }
}

/// The name under which a delayed request is counted.
fn delayed(sent: &Sent) -> &'static str {
    match sent {
        Sent::Kafka(Request::End { commit: true, .. }) => "commits delayed",
        Sent::Kafka(Request::End { commit: false, .. }) => "aborts delayed",
        Sent::Kafka(_) => "requests to Kafka delayed",
        Sent::Postgres(_, Statement::Prepare(..)) => "prepared batches delayed",
        Sent::Postgres(..) => "statements delayed",
    }
}
