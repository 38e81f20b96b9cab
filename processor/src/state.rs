//! Owns what one input partition remembers: its stream time, the payments it has seen, the recent past of each account
//! and each merchant, and the rule set in force.
//!
//! Comes after [`crate::decode`]; its features go on to [`crate::rules`]. It does no I/O and reads no clock: it is a
//! function of the partition's records up to an offset, so that replaying them rebuilds it. A batch is observed under an
//! undo log and then merged or taken back as a whole. Forgetting what can no longer matter changes no answer, whenever it
//! happens.

pub(crate) mod image;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use ahash::RandomState;
use serde::{Deserialize, Serialize};
use sluice_kafka::fail;
use sluice_proto::event::PaymentRecord;
use smallvec::SmallVec;

use crate::account::{self, Account, fnv1a, units};
use crate::calendar::{DAY_US, HISTORY_DAYS, day};
use crate::features::Features;
use crate::merchant::Merchant;
use crate::rules::RuleSet;

/// What is old is swept out each time the stream has advanced by this part of the time that it is kept for.
const SWEEPS_PER_RETENTION: i64 = 4;
/// Hashing is the same in every run of a build, so that nothing about a replay differs.
const SEEDS: [u64; 4] = [
    0x736c_7569_6365_2e31,
    0x736c_7569_6365_2e32,
    0x736c_7569_6365_2e33,
    0x736c_7569_6365_2e34,
];

/// How long an account or a merchant without payments is kept beyond the allowed lateness, in microseconds: then all of its
/// past lies before the days that a feature looks back on.
const IDLE_US: i64 = (HISTORY_DAYS as i64 + 1) * DAY_US;

/// What observing a payment yields.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Observed {
    /// The payment was seen before, within the allowed lateness.
    Duplicate,
    /// Another payment with the same id was. It left no trace.
    Conflict,
    /// The payment is behind stream time, by more than the allowed lateness. It left no trace.
    Late {
        /// By how much, in microseconds.
        behind_us: i64,
    },
    /// The payment is now part of the state.
    Fresh(Features),
}

/// The bytes of a `tenant/name`. Most have their place in the table's entry itself, so that comparing them needs no other
/// place in memory.
type Name = SmallVec<[u8; 24]>;

/// A payment's identity, with the tenant as its hash.
type Key = (u32, [u8; 16]);

/// What is remembered of a payment. The time is kept in halves, so that an entry needs no padding: with its key it takes 32
/// bytes, as many as without the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Seen {
    time: [u32; 2],
    /// By which another payment with the same id is known.
    content: u32,
}

impl Seen {
    const fn new(time: i64, content: u32) -> Self {
        let time = time as u64;
        Self {
            time: [(time >> 32) as u32, time as u32],
            content,
        }
    }

    /// When the payment occurred.
    const fn time(&self) -> i64 {
        ((self.time[0] as u64) << 32 | self.time[1] as u64) as i64
    }
}

/// What must be the same when a payment is published again, in 32 bits: who pays whom how much, and when. What the gateway
/// may mask or leave out is no part of it. The same in every build, because snapshots hold it.
fn content(payment: &PaymentRecord) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for text in [
        &payment.tenant,
        &payment.account_id,
        &payment.merchant_id,
        &payment.currency,
    ] {
        hasher.update(text.as_bytes());
        // No text contains it.
        hasher.update(&[0xff]);
    }
    hasher.update(&payment.amount.ten_thousandths().to_le_bytes());
    hasher.update(&payment.occurred_at.to_le_bytes());
    hasher.finalize()
}

/// The state of one partition.
#[derive(Debug)]
pub(crate) struct State {
    /// How far behind stream time a payment is still judged with its history, in microseconds.
    lateness_us: i64,
    /// The rule set in force.
    rules: Arc<RuleSet>,
    stream_time: i64,
    /// Each payment that is not late by now.
    seen: HashMap<Key, Seen, RandomState>,
    /// By `tenant/account`. Boxed, because a table that grows moves its entries.
    accounts: HashMap<Name, Box<Account>, RandomState>,
    /// By `tenant/merchant`.
    merchants: HashMap<Name, Merchant, RandomState>,
    swept_seen_at: i64,
    swept_past_at: i64,
    undo: Undo,
}

/// What was observed since the last merge.
#[derive(Debug, Default)]
struct Undo {
    stream_time: Option<i64>,
    rules: Option<Arc<RuleSet>>,
    steps: Vec<Step>,
    /// Keys of the accounts and merchants in `steps`, one after the other.
    keys: Vec<u8>,
}

#[derive(Debug)]
struct Step {
    event: Key,
    seen_before: Option<Seen>,
    account: Range<usize>,
    account_is_new: bool,
    visit: account::Visit,
    merchant: Range<usize>,
    merchant_before: Option<Merchant>,
}

impl Undo {
    /// Writes a key down, and says where.
    fn key(&mut self, tenant: &str, name: &str) -> Range<usize> {
        let start = self.keys.len();
        self.keys.extend_from_slice(tenant.as_bytes());
        self.keys.push(b'/');
        self.keys.extend_from_slice(name.as_bytes());
        start..self.keys.len()
    }
}

/// Both halves of a hash of 64 bits.
fn tenant_hash(tenant: &str) -> u32 {
    let hash = fnv1a(tenant.as_bytes());
    (hash >> 32) as u32 ^ hash as u32
}

impl State {
    /// The state before a partition's first record.
    pub(crate) fn new(lateness_us: i64, rules: Arc<RuleSet>) -> Self {
        let [a, b, c, d] = SEEDS;
        let hasher = RandomState::with_seeds(a, b, c, d);
        Self {
            lateness_us,
            rules,
            stream_time: i64::MIN,
            seen: HashMap::with_hasher(hasher.clone()),
            accounts: HashMap::with_hasher(hasher.clone()),
            merchants: HashMap::with_hasher(hasher),
            swept_seen_at: i64::MIN,
            swept_past_at: i64::MIN,
            undo: Undo::default(),
        }
    }

    /// Takes one payment in. `appended_at` is the Kafka record's timestamp, in microseconds since the Unix epoch: stream
    /// time follows the payments' own times but never runs ahead of the log's, or one client's fast clock would make
    /// everybody else's payments late.
    pub(crate) fn observe(&mut self, payment: &PaymentRecord, appended_at: i64) -> Observed {
        let time = payment.occurred_at;
        let oldest = self.oldest();
        if time < oldest {
            let behind_us = self.stream_time.saturating_sub(time);
            return Observed::Late { behind_us };
        }
        let event = (tenant_hash(&payment.tenant), payment.event_id.uuid().into_bytes());
        let now = Seen::new(time, content(payment));
        let seen_before = match self.seen.entry(event) {
            Entry::Occupied(seen) if seen.get().time() >= oldest && fail::safeguard("deduplication") => {
                if seen.get().content == now.content {
                    return Observed::Duplicate;
                }
                return Observed::Conflict;
            }
            Entry::Occupied(mut expired) => Some(expired.insert(now)),
            Entry::Vacant(free) => {
                free.insert(now);
                None
            }
        };
        let committed_stream_time = *self.undo.stream_time.get_or_insert(self.stream_time);
        self.stream_time = self.stream_time.max(time.min(appended_at));
        // Measured from what is merged already, so that taking the batch back loses nothing that still matters.
        let settled = committed_stream_time.saturating_sub(self.lateness_us);

        let account = self.undo.key(&payment.tenant, &payment.account_id);
        let key = &self.undo.keys[account.clone()];
        let horizons = self.rules.horizons();
        let (mut features, visit, account_is_new) = match self.accounts.get_mut(key) {
            Some(past) => {
                let (features, visit) = past.observe(payment, settled, horizons);
                (features, visit, false)
            }
            None => {
                let mut past = Box::<Account>::default();
                let (features, visit) = past.observe(payment, settled, horizons);
                self.accounts.insert(key.into(), past);
                (features, visit, true)
            }
        };

        let merchant = self.undo.key(&payment.tenant, &payment.merchant_id);
        let odd = features.is_odd(units(payment.amount.ten_thousandths().into()));
        let (risk, merchant_before) = self.pay(merchant.clone(), time, odd);
        features.merchant_risk = risk;
        self.undo.steps.push(Step {
            event,
            seen_before,
            account,
            account_is_new,
            visit,
            merchant,
            merchant_before,
        });
        Observed::Fresh(features)
    }

    /// Takes the payment into its merchant's past. Gives the risk before it, and what the merchant was before it.
    fn pay(&mut self, key: Range<usize>, time: i64, odd: bool) -> (f64, Option<Merchant>) {
        let key = &self.undo.keys[key];
        let day = day(time);
        if let Some(merchant) = self.merchants.get_mut(key) {
            let before = *merchant;
            merchant.see(day, odd);
            return (before.risk(day), Some(before));
        }
        let mut merchant = Merchant::default();
        merchant.see(day, odd);
        self.merchants.insert(key.into(), merchant);
        (Merchant::default().risk(day), None)
    }

    /// Puts a rule set in force, from the next payment on.
    pub(crate) fn apply(&mut self, rules: Arc<RuleSet>) {
        let before = std::mem::replace(&mut self.rules, rules);
        self.undo.rules.get_or_insert(before);
    }

    /// The rule set in force.
    pub(crate) fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// Keeps what was observed since the last merge, and forgets what can no longer matter.
    pub(crate) fn merge(&mut self) {
        self.undo.steps.clear();
        self.undo.keys.clear();
        self.undo.stream_time = None;
        self.undo.rules = None;
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
                account.revert(step.visit);
            }
            let key = &self.undo.keys[step.merchant];
            match step.merchant_before {
                None => {
                    self.merchants.remove(key);
                }
                Some(before) => {
                    if let Some(merchant) = self.merchants.get_mut(key) {
                        *merchant = before;
                    }
                }
            }
        }
        self.undo.keys.clear();
        if let Some(before) = self.undo.stream_time.take() {
            self.stream_time = before;
        }
        if let Some(before) = self.undo.rules.take() {
            self.rules = before;
        }
    }

    /// How much is remembered.
    pub(crate) fn sizes(&self) -> Sizes {
        Sizes {
            payments: self.seen.len(),
            accounts: self.accounts.len(),
            merchants: self.merchants.len(),
        }
    }

    /// What occurred before it is late.
    fn oldest(&self) -> i64 {
        self.stream_time.saturating_sub(self.lateness_us)
    }

    fn sweep(&mut self) {
        let oldest = self.oldest();
        let due =
            |swept_at: i64, kept_us: i64| self.stream_time >= swept_at.saturating_add(kept_us / SWEEPS_PER_RETENTION);
        let sweep_seen = due(self.swept_seen_at, self.lateness_us);
        let sweep_past = due(self.swept_past_at, IDLE_US);
        if sweep_seen {
            self.seen.retain(|_, seen| seen.time() >= oldest);
            self.swept_seen_at = self.stream_time;
        }
        if sweep_past {
            let idle_since = oldest.saturating_sub(IDLE_US);
            self.accounts
                .retain(|_, account| account.newest().is_some_and(|time| time > idle_since));
            let first_day = day(oldest).saturating_sub(HISTORY_DAYS);
            self.merchants.retain(|_, merchant| merchant.newest_day() >= first_day);
            self.swept_past_at = self.stream_time;
        }
    }
}

/// How much a state remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) payments: usize,
    pub(crate) accounts: usize,
    pub(crate) merchants: usize,
}

impl std::iter::Sum for Sizes {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::default(), |all, size| Self {
            payments: all.payments + size.payments,
            accounts: all.accounts + size.accounts,
            merchants: all.merchants + size.merchants,
        })
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
