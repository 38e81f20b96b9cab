//! The account of a run: what became of every event, across reconnects and restarts of the server.
//!
//! Written by the workers and by `follow`; what is wrong in it fails the run.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Lost connections beyond this number are counted and not listed.
const MAX_OUTAGES: usize = 1_000;
/// Different messages beyond this number are counted under `other`.
const MAX_MESSAGES: usize = 100;
const OTHER: &str = "other";

/// A worker without a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outage {
    /// Which worker.
    pub worker: String,
    /// When it was lost, in seconds since the start.
    pub from_s: f64,
    /// When the session was resumed; absent when it never was.
    pub to_s: Option<f64>,
    /// Why it was lost.
    pub cause: String,
}

/// The counts, as the workers write them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) sent: AtomicU64,
    pub(crate) resent: AtomicU64,
    pub(crate) stored: AtomicU64,
    pub(crate) settled: AtomicU64,
    pub(crate) acknowledged_as_duplicate: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) unsent: AtomicU64,
    pub(crate) ignored: AtomicU64,
    pub(crate) duplicates: AtomicU64,
    pub(crate) reordered: AtomicU64,
    pub(crate) decided: AtomicU64,
    pub(crate) poison_sent: AtomicU64,
    pub(crate) poison_refused: AtomicU64,
    pub(crate) copies_sent: AtomicU64,
    pub(crate) resumes: AtomicU64,
    pub(crate) throttles: AtomicU64,
    pub(crate) drains: AtomicU64,
    errors: Mutex<BTreeMap<String, u64>>,
    messages: Mutex<BTreeMap<String, u64>>,
    outages: Mutex<Vec<Outage>>,
}

/// Adds to a count.
pub(crate) fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

impl Ledger {
    /// An error by its code, with the server's words.
    pub(crate) fn error(&self, code: &str, message: &str, count: u64) {
        *self.errors.lock().entry(code.to_owned()).or_default() += count;
        let mut messages = self.messages.lock();
        let key = if messages.len() < MAX_MESSAGES || messages.contains_key(message) {
            message
        } else {
            OTHER
        };
        *messages.entry(key.to_owned()).or_default() += count;
    }

    /// A connection was lost; returns where to note its end.
    pub(crate) fn lost_connection(&self, worker: String, from_s: f64, cause: String) -> Option<usize> {
        let mut outages = self.outages.lock();
        if outages.len() >= MAX_OUTAGES {
            return None;
        }
        outages.push(Outage {
            worker,
            from_s,
            to_s: None,
            cause,
        });
        Some(outages.len() - 1)
    }

    /// A session goes on.
    pub(crate) fn resumed(&self, outage: Option<usize>, to_s: f64) {
        add(&self.resumes, 1);
        if let Some(outage) = outage {
            self.outages.lock()[outage].to_s = Some(to_s);
        }
    }

    /// Errors so far.
    pub(crate) fn error_count(&self) -> u64 {
        self.errors.lock().values().sum()
    }

    /// The counts as they are now.
    pub(crate) fn account(&self) -> Account {
        let poison_refused = read(&self.poison_refused);
        Account {
            sent: read(&self.sent),
            resent: read(&self.resent),
            stored: read(&self.stored),
            settled_while_away: read(&self.settled),
            acknowledged_as_duplicate: read(&self.acknowledged_as_duplicate),
            decided: read(&self.decided),
            lost: read(&self.lost),
            unsent: read(&self.unsent),
            ignored: read(&self.ignored),
            duplicates: read(&self.duplicates),
            reordered: read(&self.reordered),
            poison_sent: read(&self.poison_sent),
            poison_refused,
            copies_sent: read(&self.copies_sent),
            resumes: read(&self.resumes),
            throttles: read(&self.throttles),
            drains: read(&self.drains),
            errors: self.errors.lock().clone(),
            messages: self.messages.lock().clone(),
            outages: self.outages.lock().clone(),
        }
    }
}

/// The account, as a report has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// Events sent, each counted once.
    pub sent: u64,
    /// Events sent again after a lost connection.
    pub resent: u64,
    /// Acknowledged as stored.
    pub stored: u64,
    /// Settled by the server while the connection was lost, so that their answer was lost with it.
    pub settled_while_away: u64,
    /// Sequence numbers that the server had before, and did not store again.
    pub acknowledged_as_duplicate: u64,
    /// Events with a decision, or decisions received.
    pub decided: u64,
    /// Events without the answer that they should have had.
    pub lost: u64,
    /// Events that were due and never sent.
    pub unsent: u64,
    /// Events whose answer was not waited for, as `--duration-stop ignore` asks.
    pub ignored: u64,
    /// Answers beyond an event's one.
    pub duplicates: u64,
    /// Decisions of an account that came in another order than its payments were published.
    pub reordered: u64,
    /// Unreadable or invalid events sent on purpose.
    pub poison_sent: u64,
    /// Those of them that were refused, as they should be.
    pub poison_refused: u64,
    /// Events published a second time on purpose.
    pub copies_sent: u64,
    /// Sessions resumed after a lost connection.
    pub resumes: u64,
    /// How often a quota held a session back.
    pub throttles: u64,
    /// How often the server asked to go elsewhere.
    pub drains: u64,
    /// Errors by code.
    pub errors: BTreeMap<String, u64>,
    /// Errors by what the server said.
    pub messages: BTreeMap<String, u64>,
    /// Lost connections.
    pub outages: Vec<Outage>,
}

impl Account {
    /// Errors of all codes.
    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Poison that was not refused, nor is waited for any more.
    pub fn poison_taken(&self) -> u64 {
        self.poison_sent.saturating_sub(self.poison_refused)
    }

    /// Adds another run's account.
    pub fn merge(&mut self, other: &Self) {
        let pairs = [
            (&mut self.sent, other.sent),
            (&mut self.resent, other.resent),
            (&mut self.stored, other.stored),
            (&mut self.settled_while_away, other.settled_while_away),
            (&mut self.acknowledged_as_duplicate, other.acknowledged_as_duplicate),
            (&mut self.decided, other.decided),
            (&mut self.lost, other.lost),
            (&mut self.unsent, other.unsent),
            (&mut self.ignored, other.ignored),
            (&mut self.duplicates, other.duplicates),
            (&mut self.reordered, other.reordered),
            (&mut self.poison_sent, other.poison_sent),
            (&mut self.poison_refused, other.poison_refused),
            (&mut self.copies_sent, other.copies_sent),
            (&mut self.resumes, other.resumes),
            (&mut self.throttles, other.throttles),
            (&mut self.drains, other.drains),
        ];
        for (sum, more) in pairs {
            *sum += more;
        }
        for (sums, more) in [(&mut self.errors, &other.errors), (&mut self.messages, &other.messages)] {
            for (key, count) in more {
                *sums.entry(key.clone()).or_default() += count;
            }
        }
        self.outages.extend(other.outages.iter().cloned());
    }
}
