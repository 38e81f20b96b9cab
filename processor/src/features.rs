//! Owns what a payment looks like next to its account's and its merchant's past: the only thing that the rules with
//! history see. `docs/rules.md` has the formula and the unit of each.
//!
//! Made by [`crate::state`], read by [`crate::rules`]; where that is switched on, [`crate::publish`] writes it to a topic.

use sluice_proto::event::PaymentRecord;
use sluice_proto::features::AccountFeatures;

use crate::calendar::SECOND_US;

pub(crate) use crate::whereabouts::{Move, Trip};

/// Facts about one payment, from the state of its partition.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Features {
    /// Payments of the account in HIGH_FREQUENCY's window, which ends with this one; itself included.
    pub(crate) recent_payments: usize,
    /// The same within one minute.
    pub(crate) payments_1m: usize,
    /// The same within five minutes.
    pub(crate) payments_5m: usize,
    /// What the account paid in this currency in this payment's minute and the 59 before, itself included, in major units.
    pub(crate) amount_1h: f64,
    /// Payments of the account in the hour of the day that this payment falls into, up to its minute; itself included.
    pub(crate) payments_this_hour: u64,
    /// What those in this currency come to, in major units.
    pub(crate) amount_this_hour: f64,
    /// Payments of the account on this payment's day; itself included.
    pub(crate) payments_today: u64,
    /// What those in this currency come to, in major units.
    pub(crate) amount_today: f64,
    /// Payments of the account that followed each other closely, up to this one's minute; itself included.
    pub(crate) session_payments: u64,
    /// What those in this currency come to, in major units.
    pub(crate) session_amount: f64,
    /// From the minute of the session's first payment to this one's, in minutes.
    pub(crate) session_minutes: i32,
    /// Mean of the account's earlier payments in this currency on this day and the five before, in major units.
    pub(crate) usual_amount: Option<f64>,
    /// The account pays at this hour of the day for the first time in days.
    pub(crate) unusual_hour: bool,
    /// The account has other devices and not this one.
    pub(crate) new_device: bool,
    /// The account was in other countries and not in this one.
    pub(crate) new_country: bool,
    /// Share of odd payments at the merchant, from 0 to 1.
    pub(crate) merchant_risk: f64,
    /// Time between this payment and the account's newest one, in microseconds, whichever came first.
    pub(crate) since_last_us: Option<i64>,
    /// The account was somewhere else by name a short while ago.
    pub(crate) moved: Option<Move>,
    /// The way from the account's latest known coordinates.
    pub(crate) travelled: Option<Trip>,
}

/// How many times the usual amount is odd.
const ODD_AMOUNT_TIMES: f64 = 3.0;

impl Features {
    /// The record that tells models of the payment's account.
    pub(crate) fn record(&self, payment: &PaymentRecord, partition: i32, offset: i64) -> AccountFeatures {
        let whole = |payments: u64| i64::try_from(payments).unwrap_or(i64::MAX);
        let travelled = self.travelled.as_ref();
        AccountFeatures {
            tenant: payment.tenant.clone(),
            account_id: payment.account_id.clone(),
            event_id: payment.event_id,
            occurred_at: payment.occurred_at,
            currency: payment.currency.clone(),
            payments_1m: whole(self.payments_1m as u64),
            payments_5m: whole(self.payments_5m as u64),
            amount_1h: self.amount_1h,
            payments_this_hour: whole(self.payments_this_hour),
            amount_this_hour: self.amount_this_hour,
            payments_today: whole(self.payments_today),
            amount_today: self.amount_today,
            session_payments: whole(self.session_payments),
            session_amount: self.session_amount,
            session_minutes: self.session_minutes,
            usual_amount: self.usual_amount,
            unusual_hour: self.unusual_hour,
            new_device: self.new_device,
            new_country: self.new_country,
            seconds_since_last: self.since_last_us.map(seconds),
            km_since_last: travelled.map(|trip| trip.distance_km),
            seconds_of_trip: travelled.map(|trip| seconds(trip.elapsed_us)),
            merchant_risk: self.merchant_risk,
            source_partition: partition,
            source_offset: offset,
        }
    }

    /// Whether the payment counts as odd for its merchant's risk. It does not depend on the rules, or every rule would
    /// make the merchant riskier for itself.
    pub(crate) fn is_odd(&self, amount: f64) -> bool {
        let large = self
            .usual_amount
            .is_some_and(|usual| amount >= ODD_AMOUNT_TIMES * usual);
        self.new_device || self.new_country || self.unusual_hour || large
    }
}

/// Microseconds in seconds.
pub(crate) fn seconds(micros: i64) -> f64 {
    micros as f64 / SECOND_US as f64
}
