//! LARGE_AMOUNT: the amount is over a limit in the currency's major unit.

use sluice_proto::event::PaymentRecord;
use sluice_proto::money::{Amount, TEN_THOUSANDTHS};

use super::{Rule, document};

pub(super) const ID: &str = "LARGE_AMOUNT";
pub(super) const VERSION: &str = "1";

#[derive(Debug)]
pub(super) struct LargeAmount {
    pub(super) rule: Rule,
    limit: Amount,
}

impl LargeAmount {
    pub(super) fn new(given: &document::LargeAmount) -> Self {
        Self {
            rule: Rule::new(ID, VERSION, given.contribution, given.shadow),
            limit: Amount::from_ten_thousandths(i64::from(given.over_units) * TEN_THOUSANDTHS),
        }
    }

    /// The facts, where it fires.
    pub(super) fn check(&self, payment: &PaymentRecord) -> Option<String> {
        (payment.amount > self.limit).then(|| {
            let currency = &payment.currency;
            format!("{} {currency} is over {} {currency}", payment.amount, self.limit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::payment;

    #[test]
    fn only_what_is_over_the_limit_fires() {
        let rule = LargeAmount::new(&document::LargeAmount {
            over_units: 10_000,
            contribution: 0.6,
            shadow: false,
        });
        let check = |ten_thousandths| {
            rule.check(&PaymentRecord {
                amount: Amount::from_ten_thousandths(ten_thousandths),
                ..payment()
            })
        };
        assert_eq!(check(100_000_000), None, "10,000.00 is not over it");
        let detail = check(100_000_100).expect("over it");
        assert_eq!(detail, "10000.01 EUR is over 10000.00 EUR");
    }
}
