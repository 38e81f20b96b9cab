//! Owns the rule set: which rules there are, in which order they report, and its version.
//!
//! Comes after [`crate::state`], before [`crate::score`]. Rules are functions of a payment and its features, with their
//! thresholds; they do no I/O and read no clock.

mod high_frequency;
mod impossible_travel;
mod large_amount;
mod late_event;

use std::sync::Arc;

use sluice_proto::decision::{Reason, Verdict};
use sluice_proto::event::PaymentRecord;

use crate::account::{Horizons, fnv1a};
use crate::config::Thresholds;
use crate::features::Features;
use crate::score;

use high_frequency::HighFrequency;
use impossible_travel::ImpossibleTravel;
use large_amount::LargeAmount;
use late_event::LateEvent;

const MICROS_PER_SECOND: i64 = 1_000_000;

/// A rule's name and version, as they stand in reasons.
#[derive(Clone, Debug)]
struct Rule {
    id: Arc<str>,
    version: Arc<str>,
    contribution: f64,
}

impl Rule {
    fn new(id: &str, version: &str, contribution: f64) -> Self {
        Self {
            id: id.into(),
            version: version.into(),
            contribution,
        }
    }

    fn reason(&self, detail: String) -> Reason {
        Reason {
            rule_id: self.id.clone(),
            rule_version: self.version.clone(),
            contribution: self.contribution,
            detail,
        }
    }
}

/// Microseconds, shown as seconds with as many digits as a person wants to read.
struct Seconds(i64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} s", self.0 as f64 / 1e6)
    }
}

/// All rules with their thresholds. Clones share their names.
#[derive(Clone, Debug)]
pub(crate) struct RuleSet {
    large_amount: LargeAmount,
    high_frequency: HighFrequency,
    impossible_travel: ImpossibleTravel,
    late_event: LateEvent,
    bands: score::Bands,
    version: Arc<str>,
}

impl RuleSet {
    /// The rules with these thresholds.
    pub(crate) fn new(thresholds: &Thresholds) -> Self {
        Self {
            large_amount: LargeAmount::new(thresholds),
            high_frequency: HighFrequency::new(thresholds),
            impossible_travel: ImpossibleTravel::new(thresholds),
            late_event: LateEvent::new(thresholds),
            bands: score::Bands {
                review: thresholds.review_score,
                decline: thresholds.decline_score,
            },
            version: version(thresholds),
        }
    }

    /// The version: it changes when a rule's code, and so its version, or any threshold changes.
    pub(crate) fn version(&self) -> Arc<str> {
        self.version.clone()
    }

    /// Judges a payment that came in time.
    pub(crate) fn judge(&self, payment: &PaymentRecord, features: &Features) -> Verdict {
        let mut reasons = Vec::new();
        reasons.extend(self.large_amount.check(payment));
        reasons.extend(self.high_frequency.check(features));
        reasons.extend(self.impossible_travel.check(features));
        let score = score::combine(&reasons);
        Verdict {
            outcome: self.bands.outcome(score),
            score,
            reasons,
            late: false,
        }
    }

    /// Judges a payment that came too late for the rules that need history: conservatively, so that it is never approved.
    pub(crate) fn judge_late(&self, payment: &PaymentRecord, behind_us: i64) -> Verdict {
        let mut reasons = Vec::new();
        reasons.extend(self.large_amount.check(payment));
        reasons.push(self.late_event.reason(behind_us));
        let score = score::combine(&reasons);
        Verdict {
            outcome: self.bands.outcome(score).max(sluice_proto::decision::Outcome::Review),
            score,
            reasons,
            late: true,
        }
    }
}

/// How far back the past matters to the rules with these thresholds.
pub(crate) fn horizons(thresholds: &Thresholds) -> Horizons {
    let seconds = |count: u32| i64::from(count) * MICROS_PER_SECOND;
    Horizons {
        frequency_us: seconds(thresholds.high_frequency_window_s),
        place_us: seconds(thresholds.travel_place_window_s),
    }
}

fn version(thresholds: &Thresholds) -> Arc<str> {
    let rules = [
        (large_amount::ID, large_amount::VERSION),
        (high_frequency::ID, high_frequency::VERSION),
        (impossible_travel::ID, impossible_travel::VERSION),
        (late_event::ID, late_event::VERSION),
    ];
    let described = format!("{rules:?} {thresholds:?}");
    format!("1-{:08x}", fnv1a(described.as_bytes()) as u32).into()
}

#[cfg(test)]
mod tests {
    use sluice_proto::decision::Outcome;
    use sluice_proto::money::Amount;

    use super::*;
    use crate::testing::payment;
    use crate::whereabouts::Move;

    fn ids(verdict: &Verdict) -> Vec<&str> {
        verdict.reasons.iter().map(|reason| &*reason.rule_id).collect()
    }

    fn large() -> PaymentRecord {
        PaymentRecord {
            amount: Amount::from_ten_thousandths(200_000_000),
            ..payment()
        }
    }

    fn moved() -> Option<Move> {
        Some(Move {
            from: "Paris".to_owned(),
            to: "Tokyo".to_owned(),
            elapsed_us: 5_000_000,
        })
    }

    #[test]
    fn an_ordinary_payment_is_approved_without_reasons() {
        let rules = RuleSet::new(&Thresholds::default());
        let verdict = rules.judge(
            &payment(),
            &Features {
                recent_payments: 1,
                ..Features::default()
            },
        );
        assert_eq!((verdict.outcome, verdict.score), (Outcome::Approve, 0.0));
        assert!(verdict.reasons.is_empty() && !verdict.late);
    }

    #[test]
    fn one_rule_is_reviewed_and_several_are_declined() {
        let rules = RuleSet::new(&Thresholds::default());
        let one = rules.judge(&large(), &Features::default());
        assert_eq!((one.outcome, ids(&one)), (Outcome::Review, vec!["LARGE_AMOUNT"]));
        let features = Features {
            recent_payments: 6,
            moved: moved(),
            ..Features::default()
        };
        let all = rules.judge(&large(), &features);
        assert_eq!(ids(&all), ["LARGE_AMOUNT", "HIGH_FREQUENCY", "IMPOSSIBLE_TRAVEL"]);
        assert_eq!(all.outcome, Outcome::Decline);
        assert!((all.score - 0.96).abs() < 1e-9, "{}", all.score);
    }

    #[test]
    fn a_late_payment_is_at_least_reviewed() {
        let rules = RuleSet::new(&Thresholds {
            late_contribution: 0.1,
            ..Thresholds::default()
        });
        let verdict = rules.judge_late(&payment(), 1);
        assert_eq!((verdict.outcome, ids(&verdict)), (Outcome::Review, vec!["LATE_EVENT"]));
        assert!(verdict.late);
        let large = RuleSet::new(&Thresholds::default()).judge_late(&large(), 1);
        assert_eq!(large.outcome, Outcome::Decline);
    }

    #[test]
    fn the_version_follows_the_thresholds() {
        let version = |thresholds: &Thresholds| RuleSet::new(thresholds).version();
        let defaults = Thresholds::default();
        assert_eq!(version(&defaults), version(&defaults.clone()));
        let other = Thresholds {
            high_frequency_max: 6,
            ..Thresholds::default()
        };
        assert_ne!(version(&defaults), version(&other));
    }
}
