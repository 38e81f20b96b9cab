//! Owns what a partition remembers of one account, and what a payment looks like next to it.
//!
//! Comes below [`crate::state`], which decides when a batch is taken back and when an account is forgotten; made of
//! [`crate::windows`], [`crate::amounts`], [`crate::habits`] and [`crate::whereabouts`].

use serde::{Deserialize, Serialize};
use sluice_proto::event::PaymentRecord;
use sluice_proto::money::{Amount, TEN_THOUSANDTHS};

use crate::amounts::{Currency, Sums, Total};
use crate::calendar::{self, HISTORY_DAYS, HISTORY_US, MINUTE_US};
use crate::features::Features;
use crate::habits::Habits;
use crate::whereabouts::{self, Whereabouts};
use crate::windows::Window;

/// Longest window in which payments are counted by their exact times, in microseconds.
pub(crate) const LONGEST_WINDOW_US: i64 = 5 * MINUTE_US;
/// Minutes over which amounts are added up: the payment's own and those before it.
const AMOUNT_MINUTES: i32 = 60;
/// Minutes without a payment after which a session is over. It goes back no further than amounts by minute do.
const SESSION_GAP_MINUTES: i32 = 10;
/// Payments from which a mean is made at least.
const PAYMENTS_FOR_MEAN: u64 = 3;

/// How far back the rules in force look. What is remembered does not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Horizons {
    /// Length of HIGH_FREQUENCY's window in microseconds, at most [`LONGEST_WINDOW_US`].
    pub(crate) frequency_us: i64,
    /// How long a change of named place is remarkable, in microseconds.
    pub(crate) place_us: i64,
}

/// One account's recent past.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Account {
    /// The newest payment's time.
    newest: Option<i64>,
    window: Window,
    minutes: Sums,
    days: Sums,
    habits: Habits,
    whereabouts: Whereabouts,
}

/// What [`Account::revert`] needs to restore one [`Account::observe`].
#[derive(Debug)]
pub(crate) struct Visit {
    occurred_at: i64,
    amount: Amount,
    currency: Currency,
    newest: Option<i64>,
    habits: Habits,
    whereabouts: whereabouts::Visit,
}

impl Account {
    /// Takes a payment in, and tells what it looked like before that. No payment that is still to come is earlier than
    /// `settled`, not even when this one is taken back.
    pub(crate) fn observe(&mut self, payment: &PaymentRecord, settled: i64, horizons: Horizons) -> (Features, Visit) {
        self.forget(settled);
        let time = payment.occurred_at;
        let currency = payment.currency.as_bytes().try_into().unwrap_or_default();
        let (minute, day) = (calendar::minute(time), calendar::day(time));
        let usual = self.days.total(day.saturating_sub(HISTORY_DAYS)..=day, currency);
        let visit = Visit {
            occurred_at: time,
            amount: payment.amount,
            currency,
            newest: self.newest,
            habits: self.habits,
            whereabouts: whereabouts::Visit::default(),
        };
        let since_last_us = self.newest.map(|newest| newest.saturating_sub(time).saturating_abs());

        self.window.insert(time);
        self.minutes.add(minute, currency, payment.amount);
        self.days.add(day, currency, payment.amount);
        let device = payment.device_id.as_deref().map(|device| number(device.as_bytes()));
        let country = payment.country.as_deref().map(|country| number(country.as_bytes()));
        let unusual = self.habits.observe(time, device, country);
        self.newest = self.newest.max(Some(time));

        let count = |within_us: i64| self.window.count(time.saturating_sub(within_us), time);
        let oldest_minute = minute.saturating_sub(AMOUNT_MINUTES - 1);
        let hour = self.minutes.total(oldest_minute..=minute, currency);
        let this_hour = self
            .minutes
            .total(calendar::first_minute_of_hour(minute)..=minute, currency);
        let session = self
            .minutes
            .session(minute, SESSION_GAP_MINUTES, oldest_minute, currency);
        let today = self.days.total(day..=day, currency);
        let features = Features {
            recent_payments: count(horizons.frequency_us),
            payments_1m: count(MINUTE_US),
            payments_5m: count(LONGEST_WINDOW_US),
            amount_1h: units(hour.ten_thousandths),
            payments_this_hour: this_hour.payments,
            amount_this_hour: units(this_hour.ten_thousandths),
            payments_today: today.payments,
            amount_today: units(today.ten_thousandths),
            session_payments: session.total.payments,
            session_amount: units(session.total.ten_thousandths),
            session_minutes: minute.saturating_sub(session.first),
            usual_amount: mean(usual),
            unusual_hour: unusual.hour,
            new_device: unusual.device,
            new_country: unusual.country,
            merchant_risk: 0.0,
            since_last_us: since_last_us.filter(|elapsed_us| *elapsed_us <= HISTORY_US),
            moved: self.whereabouts.moved(payment, horizons.place_us),
            travelled: self.whereabouts.travelled(payment, HISTORY_US),
        };
        let whereabouts = self.whereabouts.visit(payment);
        (features, Visit { whereabouts, ..visit })
    }

    /// Takes a visit back. Visits are taken back in the reverse order.
    pub(crate) fn revert(&mut self, visit: Visit) {
        let time = visit.occurred_at;
        self.window.remove(time);
        self.minutes
            .remove(calendar::minute(time), visit.currency, visit.amount);
        self.days.remove(calendar::day(time), visit.currency, visit.amount);
        self.newest = visit.newest;
        self.habits = visit.habits;
        self.whereabouts.revert(visit.whereabouts);
    }

    /// The newest payment's time.
    pub(crate) fn newest(&self) -> Option<i64> {
        self.newest
    }

    fn forget(&mut self, settled: i64) {
        self.window.forget(settled.saturating_sub(LONGEST_WINDOW_US));
        self.minutes
            .forget(calendar::minute(settled).saturating_sub(AMOUNT_MINUTES - 1));
        self.days.forget(calendar::day(settled).saturating_sub(HISTORY_DAYS));
    }
}

/// An amount in the currency's major unit, as near as a floating-point number comes to it.
pub(crate) fn units(ten_thousandths: i128) -> f64 {
    ten_thousandths as f64 / TEN_THOUSANDTHS as f64
}

fn mean(total: Total) -> Option<f64> {
    (total.in_currency >= PAYMENTS_FOR_MEAN).then(|| units(total.ten_thousandths) / total.in_currency as f64)
}

/// A number that stands for a text, the same in every process.
fn number(text: &[u8]) -> u32 {
    let hash = fnv1a(text);
    (hash ^ (hash >> 32)) as u32
}

/// The FNV-1a hash: the same in every build, which neither the standard library's hasher nor ahash promise.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
