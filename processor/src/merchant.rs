//! Owns what a partition remembers of a merchant: by day, how many payments it had and how many of them were odd.
//!
//! Comes below [`crate::state`]. It is small and copied as a whole into the undo log. A merchant's payments in other
//! partitions are not known here: a feature must be a function of its own partition.

use crate::calendar::HISTORY_DAYS;
use serde::{Deserialize, Serialize};

/// This day and those before it, for the newest payment and for one that is up to two days behind: no payment that is in
/// time is further.
const DAYS: usize = HISTORY_DAYS as usize + 1 + 2;
/// So many further payments that were not odd are assumed, so that the first few do not make a merchant risky.
const ASSUMED_PAYMENTS: f64 = 20.0;

/// Counts of the newest day and the days before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Merchant {
    newest: i32,
    /// The newest day first.
    days: [Counts; DAYS],
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    payments: u32,
    odd: u32,
}

impl Merchant {
    /// The share of odd payments among those of this day and the days before, from 0 to 1.
    pub(crate) fn risk(&self, day: i32) -> f64 {
        let oldest = day.saturating_sub(HISTORY_DAYS);
        let (mut payments, mut odd) = (0_u64, 0_u64);
        for (back, counts) in (0..).zip(&self.days) {
            let of = self.newest.saturating_sub(back);
            if (oldest..=day).contains(&of) {
                payments += u64::from(counts.payments);
                odd += u64::from(counts.odd);
            }
        }
        odd as f64 / (payments as f64 + ASSUMED_PAYMENTS)
    }

    /// Takes a payment in.
    pub(crate) fn see(&mut self, day: i32, odd: bool) {
        let ahead = day.saturating_sub(self.newest);
        if ahead > 0 {
            let ahead = (ahead.unsigned_abs() as usize).min(DAYS);
            self.days.rotate_right(ahead);
            self.days[..ahead].fill(Counts::default());
            self.newest = day;
        }
        let back = self.newest.saturating_sub(day).unsigned_abs() as usize;
        if let Some(counts) = self.days.get_mut(back) {
            counts.payments = counts.payments.saturating_add(1);
            counts.odd = counts.odd.saturating_add(odd.into());
        }
    }

    /// The newest day on which it was paid.
    pub(crate) fn newest_day(&self) -> i32 {
        self.newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn risk_is_the_share_of_odd_payments_of_six_days() {
        let mut merchant = Merchant::default();
        assert_eq!(merchant.risk(100), 0.0);
        for number in 0..80 {
            merchant.see(100, number % 4 == 0);
        }
        assert_eq!(merchant.risk(100), 0.2, "20 of 80 and the 20 assumed ones");
        merchant.see(99, true);
        assert_eq!(merchant.risk(100), 21.0 / 101.0, "a day late");
        assert_eq!(merchant.risk(105), 0.2, "the day before is out");
        assert_eq!(merchant.risk(106), 0.0);
        merchant.see(103, false);
        assert_eq!(merchant.risk(103), 21.0 / 102.0);
        merchant.see(120, true);
        assert_eq!(merchant.risk(120), 1.0 / 21.0);
        merchant.see(122, true);
        merchant.see(115, true);
        assert_eq!(merchant.risk(120), 2.0 / 22.0, "five days before, though two are newer");
        assert_eq!(merchant.risk(122), 2.0 / 22.0);
    }

    #[test]
    fn a_later_day_does_not_count_for_an_earlier_payment() {
        let mut merchant = Merchant::default();
        merchant.see(100, true);
        assert_eq!(merchant.risk(99), 0.0);
    }
}
