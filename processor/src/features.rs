//! Owns what a payment looks like next to its account's and its merchant's past: the only thing that the rules with
//! history see. `docs/rules.md` has the formula and the unit of each.
//!
//! Made by [`crate::state`], read by [`crate::rules`].

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
    /// Whether the payment counts as odd for its merchant's risk. It does not depend on the rules, or every rule would
    /// make the merchant riskier for itself.
    pub(crate) fn is_odd(&self, amount: f64) -> bool {
        let large = self
            .usual_amount
            .is_some_and(|usual| amount >= ODD_AMOUNT_TIMES * usual);
        self.new_device || self.new_country || self.unusual_hour || large
    }
}
