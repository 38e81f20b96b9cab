//! LARGE_AMOUNT: the amount is over a limit in the currency's major unit.

use sluice_proto::decision::Reason;
use sluice_proto::event::PaymentRecord;
use sluice_proto::money::{Amount, TEN_THOUSANDTHS};

use super::Rule;
use crate::config::Thresholds;

pub(super) const ID: &str = "LARGE_AMOUNT";
pub(super) const VERSION: &str = "1";

#[derive(Clone, Debug)]
pub(super) struct LargeAmount {
    rule: Rule,
    limit: Amount,
}

impl LargeAmount {
    pub(super) fn new(thresholds: &Thresholds) -> Self {
        Self {
            rule: Rule::new(ID, VERSION, thresholds.large_amount_contribution),
            limit: Amount::from_ten_thousandths(i64::from(thresholds.large_amount_units) * TEN_THOUSANDTHS),
        }
    }

    pub(super) fn check(&self, payment: &PaymentRecord) -> Option<Reason> {
        (payment.amount > self.limit).then(|| {
            let currency = &payment.currency;
            self.rule.reason(format!(
                "{} {currency} is over {} {currency}",
                payment.amount, self.limit
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::payment;

    #[test]
    fn only_what_is_over_the_limit_fires() {
        let rule = LargeAmount::new(&Thresholds::default());
        let check = |ten_thousandths| {
            rule.check(&PaymentRecord {
                amount: Amount::from_ten_thousandths(ten_thousandths),
                ..payment()
            })
        };
        assert_eq!(check(100_000_000), None, "10,000.00 is not over it");
        let reason = check(100_000_100).expect("over it");
        assert_eq!(reason.detail, "10000.01 EUR is over 10000.00 EUR");
    }
}
