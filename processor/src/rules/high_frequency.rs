//! HIGH_FREQUENCY: more payments of the account than usual in the window that ends with this one, by event time.

use super::{Rule, document};
use crate::features::Features;

pub(super) const ID: &str = "HIGH_FREQUENCY";
pub(super) const VERSION: &str = "1";

#[derive(Debug)]
pub(super) struct HighFrequency {
    pub(super) rule: Rule,
    max_payments: usize,
    window_s: u32,
}

impl HighFrequency {
    pub(super) fn new(given: &document::HighFrequency) -> Self {
        Self {
            rule: Rule::new(ID, VERSION, given.contribution, given.shadow),
            max_payments: given.more_than_payments as usize,
            window_s: given.window_s,
        }
    }

    /// The facts, where it fires.
    pub(super) fn check(&self, features: &Features) -> Option<String> {
        let Self {
            max_payments, window_s, ..
        } = self;
        let recent = features.recent_payments;
        (recent > *max_payments).then(|| format!("{recent} payments in {window_s} s, more than {max_payments}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sixth_payment_fires() {
        let rule = HighFrequency::new(&document::HighFrequency {
            more_than_payments: 5,
            window_s: 60,
            contribution: 0.5,
            shadow: false,
        });
        let check = |recent_payments| {
            rule.check(&Features {
                recent_payments,
                ..Features::default()
            })
        };
        assert_eq!(check(5), None);
        assert_eq!(check(6).expect("fires"), "6 payments in 60 s, more than 5");
    }
}
