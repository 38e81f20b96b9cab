//! HIGH_FREQUENCY: more payments of the account than usual in the window that ends with this one, by event time.

use sluice_proto::decision::Reason;

use super::Rule;
use crate::config::Thresholds;
use crate::features::Features;

pub(super) const ID: &str = "HIGH_FREQUENCY";
pub(super) const VERSION: &str = "1";

#[derive(Clone, Debug)]
pub(super) struct HighFrequency {
    rule: Rule,
    max_payments: usize,
    window_s: u32,
}

impl HighFrequency {
    pub(super) fn new(thresholds: &Thresholds) -> Self {
        Self {
            rule: Rule::new(ID, VERSION, thresholds.high_frequency_contribution),
            max_payments: thresholds.high_frequency_max as usize,
            window_s: thresholds.high_frequency_window_s,
        }
    }

    pub(super) fn check(&self, features: &Features) -> Option<Reason> {
        let Self {
            max_payments, window_s, ..
        } = self;
        (features.recent_payments > *max_payments).then(|| {
            self.rule.reason(format!(
                "{} payments in {window_s} s, more than {max_payments}",
                features.recent_payments
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sixth_payment_fires() {
        let rule = HighFrequency::new(&Thresholds::default());
        let check = |recent_payments| {
            rule.check(&Features {
                recent_payments,
                ..Features::default()
            })
        };
        assert_eq!(check(5), None);
        assert_eq!(check(6).expect("fires").detail, "6 payments in 60 s, more than 5");
    }
}
