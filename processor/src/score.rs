//! Owns how reasons become a score, and a score an outcome.
//!
//! Comes after [`crate::rules`], before [`crate::publish`].

use sluice_proto::decision::{Outcome, Reason};

/// From which scores on a payment is no longer approved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bands {
    /// At least this: REVIEW.
    pub(crate) review: f64,
    /// At least this: DECLINE.
    pub(crate) decline: f64,
}

impl Bands {
    pub(crate) fn outcome(&self, score: f64) -> Outcome {
        if score >= self.decline {
            Outcome::Decline
        } else if score >= self.review {
            Outcome::Review
        } else {
            Outcome::Approve
        }
    }
}

/// The probability that at least one of independent causes holds: never over 1, and no rule lowers it.
pub(crate) fn combine(reasons: &[Reason]) -> f64 {
    if reasons.is_empty() {
        return 0.0;
    }
    1.0 - reasons
        .iter()
        .fold(1.0, |rest, reason| rest * (1.0 - reason.contribution))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(contributions: &[f64]) -> Vec<Reason> {
        contributions
            .iter()
            .map(|&contribution| Reason {
                rule_id: "R".into(),
                rule_version: "1".into(),
                contribution,
                detail: String::new(),
            })
            .collect()
    }

    #[test]
    fn contributions_combine_like_independent_causes() {
        assert_eq!(combine(&[]), 0.0);
        assert_eq!(combine(&reasons(&[0.5])), 0.5);
        assert!((combine(&reasons(&[0.5, 0.6])) - 0.8).abs() < 1e-12);
        assert_eq!(combine(&reasons(&[1.0, 0.3])), 1.0);
    }

    #[test]
    fn bands_include_their_lower_bound() {
        let bands = Bands {
            review: 0.5,
            decline: 0.75,
        };
        assert_eq!(bands.outcome(0.499), Outcome::Approve);
        assert_eq!(bands.outcome(0.5), Outcome::Review);
        assert_eq!(bands.outcome(0.75), Outcome::Decline);
    }
}
