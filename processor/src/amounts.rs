//! Owns sums of an account's payments by bucket of time and currency, from which the sums over sliding, tumbling and
//! session windows are added up to the resolution of a bucket: windows share these slices and keep nothing of their own.
//!
//! Comes below [`crate::account`], which decides what a bucket is and when old ones can no longer matter.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::ops::RangeInclusive;

use sluice_proto::money::Amount;

/// The letters of an ISO 4217 code.
pub(crate) type Currency = [u8; 3];

/// Sums in ascending order of bucket and currency; no bucket is empty. Equal content has equal form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sums {
    /// One has its place in the account itself: another place in memory would cost as much as all that is done with it.
    sums: SmallVec<[Sum; 1]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sum {
    /// In ten-thousandths. Wide enough for any number of payments that a counter of them holds.
    total: i128,
    bucket: i32,
    currency: Currency,
    payments: u32,
}

/// Payments that were added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Total {
    /// Payments in any currency.
    pub(crate) payments: u64,
    /// Payments in the currency asked for.
    pub(crate) in_currency: u64,
    /// What these come to.
    pub(crate) ten_thousandths: i128,
}

impl Total {
    fn with(self, sum: &Sum, currency: Currency) -> Self {
        let is_asked_for = sum.currency == currency;
        Self {
            payments: self.payments + u64::from(sum.payments),
            in_currency: self.in_currency + if is_asked_for { sum.payments.into() } else { 0 },
            ten_thousandths: self.ten_thousandths + if is_asked_for { sum.total } else { 0 },
        }
    }
}

/// Payments that followed each other closely.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Session {
    /// The bucket of the first one.
    pub(crate) first: i32,
    pub(crate) total: Total,
}

impl Sums {
    /// Adds a payment.
    pub(crate) fn add(&mut self, bucket: i32, currency: Currency, amount: Amount) {
        match self.find(bucket, currency) {
            Ok(place) => {
                let sum = &mut self.sums[place];
                sum.payments += 1;
                sum.total += i128::from(amount.ten_thousandths());
            }
            Err(place) => {
                // Most accounts have one or two buckets, for which rounding up would be a waste.
                if self.sums.len() == self.sums.capacity() {
                    self.sums.reserve_exact(self.sums.len());
                }
                let sum = Sum {
                    total: amount.ten_thousandths().into(),
                    bucket,
                    currency,
                    payments: 1,
                };
                self.sums.insert(place, sum);
            }
        }
    }

    /// Takes a payment out that was added.
    pub(crate) fn remove(&mut self, bucket: i32, currency: Currency, amount: Amount) {
        if let Ok(place) = self.find(bucket, currency) {
            let sum = &mut self.sums[place];
            sum.payments -= 1;
            sum.total -= i128::from(amount.ten_thousandths());
            if sum.payments == 0 {
                self.sums.remove(place);
            }
        }
    }

    /// The payments in a span of buckets.
    pub(crate) fn total(&self, buckets: RangeInclusive<i32>, currency: Currency) -> Total {
        self.newest_first(*buckets.end())
            .take_while(|sum| sum.bucket >= *buckets.start())
            .fold(Total::default(), |all, sum| all.with(sum, currency))
    }

    /// The session that a bucket ends: going back from it, until there is nothing in the `gap` buckets before, and to the
    /// bucket `earliest` at most.
    pub(crate) fn session(&self, bucket: i32, gap: i32, earliest: i32, currency: Currency) -> Session {
        let none = Session {
            first: bucket,
            total: Total::default(),
        };
        self.newest_first(bucket)
            .take_while(|sum| sum.bucket >= earliest)
            .try_fold(none, |session, sum| {
                if session.first.saturating_sub(sum.bucket) > gap {
                    return Err(session);
                }
                Ok(Session {
                    first: sum.bucket,
                    total: session.total.with(sum, currency),
                })
            })
            .unwrap_or_else(|whole| whole)
    }

    fn newest_first(&self, from: i32) -> impl Iterator<Item = &Sum> {
        self.sums.iter().rev().skip_while(move |sum| sum.bucket > from)
    }

    /// Forgets the buckets before this one.
    pub(crate) fn forget(&mut self, before: i32) {
        if self.sums.first().is_some_and(|oldest| oldest.bucket < before) {
            self.sums.retain(|sum| sum.bucket >= before);
        }
    }

    /// Where the sum is, or belongs. Nearly every payment is of the newest bucket.
    fn find(&self, bucket: i32, currency: Currency) -> Result<usize, usize> {
        match self.sums.last() {
            Some(newest) if (newest.bucket, newest.currency) == (bucket, currency) => Ok(self.sums.len() - 1),
            Some(newest) if (newest.bucket, newest.currency) > (bucket, currency) => self
                .sums
                .binary_search_by_key(&(bucket, currency), |sum| (sum.bucket, sum.currency)),
            _ => Err(self.sums.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EUR: Currency = *b"EUR";
    const USD: Currency = *b"USD";

    fn amount(ten_thousandths: i64) -> Amount {
        Amount::from_ten_thousandths(ten_thousandths)
    }

    fn sums(payments: &[(i32, Currency, i64)]) -> Sums {
        let mut sums = Sums::default();
        for &(bucket, currency, value) in payments {
            sums.add(bucket, currency, amount(value));
        }
        sums
    }

    #[test]
    fn each_currency_is_added_up_over_its_span() {
        let sums = sums(&[(3, EUR, 10), (1, EUR, 1), (3, USD, 7), (2, EUR, 5), (3, EUR, 20)]);
        let total = |buckets, currency| {
            let Total {
                payments,
                in_currency,
                ten_thousandths,
            } = sums.total(buckets, currency);
            (payments, in_currency, ten_thousandths)
        };
        assert_eq!(total(1..=3, EUR), (5, 4, 36));
        assert_eq!(total(2..=2, EUR), (1, 1, 5));
        assert_eq!(total(2..=9, USD), (4, 1, 7));
        assert_eq!(total(4..=9, EUR), (0, 0, 0));
    }

    #[test]
    fn a_session_ends_where_nothing_was_paid_for_longer_than_the_gap() {
        let sums = sums(&[(1, EUR, 1), (8, EUR, 2), (10, USD, 3), (13, EUR, 4), (14, EUR, 5)]);
        let session = |bucket, earliest| {
            let Session { first, total } = sums.session(bucket, 3, earliest, EUR);
            (first, total.payments, total.in_currency, total.ten_thousandths)
        };
        assert_eq!(session(13, 0), (8, 3, 2, 6), "14 comes later, and 1 is too far");
        assert_eq!(session(14, 9), (10, 3, 2, 9), "8 is too early");
        assert_eq!(session(4, 0), (1, 1, 1, 1));
        assert_eq!(session(5, 0), (5, 0, 0, 0));
    }

    #[test]
    fn removing_undoes_adding() {
        let before = sums(&[(1, EUR, 1), (2, EUR, 2), (2, USD, 3)]);
        for (bucket, currency) in [(0, EUR), (1, EUR), (2, EUR), (2, USD), (1, USD), (3, EUR)] {
            let mut after = before.clone();
            after.add(bucket, currency, amount(i64::MAX));
            assert_ne!(after, before);
            after.remove(bucket, currency, amount(i64::MAX));
            assert_eq!(after, before, "{bucket} {currency:?}");
        }
    }

    #[test]
    fn forgets_the_old() {
        let mut some = sums(&[(1, EUR, 1), (2, USD, 2), (3, EUR, 3)]);
        some.forget(3);
        assert_eq!(some, sums(&[(3, EUR, 3)]));
    }
}
