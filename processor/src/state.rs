//! Owns what one input partition remembers: its stream time, the payments it has seen, and each account's recent past.
//!
//! Comes after [`crate::decode`]; its features go on to [`crate::rules`]. It does no I/O and reads no clock: it is a
//! function of the partition's records up to an offset, so that replaying them rebuilds it. A batch is observed under an
//! undo log and then merged or taken back as a whole. Forgetting what can no longer matter changes no answer, whenever it
//! happens.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use ahash::RandomState;
use sluice_proto::event::PaymentRecord;

use crate::features::Features;
use crate::whereabouts::{Visit, Whereabouts};
use crate::windows::Window;

/// What is old is swept out each time the stream has advanced by this part of the time that it is kept for.
const SWEEPS_PER_RETENTION: i64 = 4;
/// Hashing is the same in every process, so that nothing about a replay differs.
const SEEDS: [u64; 4] = [
    0x736c_7569_6365_2e31,
    0x736c_7569_6365_2e32,
    0x736c_7569_6365_2e33,
    0x736c_7569_6365_2e34,
];

/// How far back the past matters, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Horizons {
    /// How far behind stream time a payment is still judged with its history.
    pub(crate) lateness_us: i64,
    /// Length of the window in which payments of an account are counted.
    pub(crate) frequency_us: i64,
    /// How long a change of named place is remarkable.
    pub(crate) place_us: i64,
    /// How long a position can matter to any rule.
    pub(crate) travel_us: i64,
}

/// What observing a payment yields.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Observed {
    /// The payment was seen before, within the allowed lateness.
    Duplicate,
    /// The payment is behind stream time by more than the allowed lateness. It left no trace.
    Late,
    /// The payment is now part of the state.
    Fresh(Features),
}

/// A payment's identity, with the tenant as its hash.
type Key = (u64, [u8; 16]);

#[derive(Debug, Default, PartialEq)]
struct Account {
    window: Window,
    whereabouts: Whereabouts,
}

/// The state of one partition.
#[derive(Debug)]
pub(crate) struct State {
    horizons: Horizons,
    hasher: RandomState,
    stream_time: i64,
    /// When each payment occurred that is not late by now.
    seen: HashMap<Key, i64, RandomState>,
    /// By `tenant/account`.
    accounts: HashMap<Box<str>, Account, RandomState>,
    swept_seen_at: i64,
    swept_accounts_at: i64,
    undo: Undo,
}

/// What was observed since the last merge.
#[derive(Debug, Default)]
struct Undo {
    stream_time: Option<i64>,
    steps: Vec<Step>,
    /// Keys of the accounts in `steps`, one after the other.
    keys: String,
}

#[derive(Debug)]
struct Step {
    event: Key,
    seen_before: Option<i64>,
    account: Range<usize>,
    account_is_new: bool,
    occurred_at: i64,
    visit: Visit,
}

impl State {
    /// The state before a partition's first record.
    pub(crate) fn new(horizons: Horizons) -> Self {
        let [a, b, c, d] = SEEDS;
        let hasher = RandomState::with_seeds(a, b, c, d);
        Self {
            horizons,
            stream_time: i64::MIN,
            seen: HashMap::with_hasher(hasher.clone()),
            accounts: HashMap::with_hasher(hasher.clone()),
            hasher,
            swept_seen_at: i64::MIN,
            swept_accounts_at: i64::MIN,
            undo: Undo::default(),
        }
    }

    /// Takes one payment in. `appended_at` is the Kafka record's timestamp, in microseconds since the Unix epoch: stream
    /// time follows the payments' own times but never runs ahead of the log's, or one client's fast clock would make
    /// everybody else's payments late.
    pub(crate) fn observe(&mut self, payment: &PaymentRecord, appended_at: i64) -> Observed {
        let time = payment.occurred_at;
        let oldest = self.stream_time.saturating_sub(self.horizons.lateness_us);
        if time < oldest {
            return Observed::Late;
        }
        let event = (
            self.hasher.hash_one(payment.tenant.as_str()),
            payment.event_id.uuid().into_bytes(),
        );
        let seen_before = match self.seen.entry(event) {
            Entry::Occupied(seen) if *seen.get() >= oldest => return Observed::Duplicate,
            Entry::Occupied(mut expired) => Some(expired.insert(time)),
            Entry::Vacant(free) => {
                free.insert(time);
                None
            }
        };
        let committed_stream_time = *self.undo.stream_time.get_or_insert(self.stream_time);
        self.stream_time = self.stream_time.max(time.min(appended_at));

        let start = self.undo.keys.len();
        self.undo.keys.push_str(&payment.tenant);
        self.undo.keys.push('/');
        self.undo.keys.push_str(&payment.account_id);
        let range = start..self.undo.keys.len();
        let key = &self.undo.keys[range.clone()];
        let account_is_new = !self.accounts.contains_key(key);
        if account_is_new {
            self.accounts.insert(key.into(), Account::default());
        }
        let Some(account) = self.accounts.get_mut(key) else {
            unreachable!("inserted just above");
        };

        // Measured from what is merged already, so that taking the batch back loses nothing that still matters.
        let settled = committed_stream_time.saturating_sub(self.horizons.lateness_us);
        account
            .window
            .forget(settled.saturating_sub(self.horizons.frequency_us));
        account.window.insert(time);
        let features = Features {
            recent_payments: account
                .window
                .count(time.saturating_sub(self.horizons.frequency_us), time),
            moved: account.whereabouts.moved(payment, self.horizons.place_us),
            travelled: account.whereabouts.travelled(payment),
        };
        let visit = account.whereabouts.visit(payment);
        self.undo.steps.push(Step {
            event,
            seen_before,
            account: range,
            account_is_new,
            occurred_at: time,
            visit,
        });
        Observed::Fresh(features)
    }

    /// Keeps what was observed since the last merge, and forgets what can no longer matter.
    pub(crate) fn merge(&mut self) {
        self.undo.steps.clear();
        self.undo.keys.clear();
        self.undo.stream_time = None;
        self.sweep();
    }

    /// Takes back what was observed since the last merge.
    pub(crate) fn revert(&mut self) {
        while let Some(step) = self.undo.steps.pop() {
            match step.seen_before {
                Some(before) => self.seen.insert(step.event, before),
                None => self.seen.remove(&step.event),
            };
            let key = &self.undo.keys[step.account];
            if step.account_is_new {
                self.accounts.remove(key);
            } else if let Some(account) = self.accounts.get_mut(key) {
                account.window.remove(step.occurred_at);
                account.whereabouts.revert(step.visit);
            }
        }
        self.undo.keys.clear();
        if let Some(before) = self.undo.stream_time.take() {
            self.stream_time = before;
        }
    }

    /// How many payments and accounts are remembered.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.seen.len(), self.accounts.len())
    }

    fn sweep(&mut self) {
        let oldest = self.stream_time.saturating_sub(self.horizons.lateness_us);
        let due =
            |swept_at: i64, kept_us: i64| self.stream_time >= swept_at.saturating_add(kept_us / SWEEPS_PER_RETENTION);
        let account_us = self.horizons.travel_us.max(self.horizons.frequency_us);
        let sweep_seen = due(self.swept_seen_at, self.horizons.lateness_us);
        let sweep_accounts = due(self.swept_accounts_at, account_us);
        if sweep_seen {
            self.seen.retain(|_, time| *time >= oldest);
            self.swept_seen_at = self.stream_time;
        }
        if sweep_accounts {
            let idle_since = oldest.saturating_sub(account_us);
            self.accounts
                .retain(|_, account| account.last_seen().is_some_and(|time| time > idle_since));
            self.swept_accounts_at = self.stream_time;
        }
    }
}

impl Account {
    /// The newest payment's time is in the window unless it was forgotten, and then the position is as new.
    fn last_seen(&self) -> Option<i64> {
        self.window.newest().max(self.whereabouts.latest())
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
