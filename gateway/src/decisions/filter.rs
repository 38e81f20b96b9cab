//! Owns which decisions a subscription sees: always its tenant's only, and of those what the client asked for.

use std::collections::HashSet;
use std::sync::Arc;

use sluice_proto::decision::{Decision, Outcome};
use sluice_proto::pb::{self, ErrorCode};

use crate::status::Failure;

/// Most accounts of a filter.
pub const MAX_ACCOUNTS: usize = 1_024;
/// Most rules of a filter.
pub const MAX_RULES: usize = 64;

/// Which decisions pass.
#[derive(Clone, Debug)]
pub struct Filter {
    tenant: Arc<str>,
    accounts: HashSet<String>,
    outcomes: Vec<Outcome>,
    min_score: f64,
    rules: Vec<String>,
}

impl Filter {
    /// A tenant's filter.
    ///
    /// # Errors
    /// `REQUEST_INVALID`, with the field.
    pub fn new(tenant: Arc<str>, filter: pb::DecisionFilter) -> Result<Self, Failure> {
        let refused =
            |field, reason: String, remedy| Err(Failure::new(ErrorCode::RequestInvalid, reason, remedy).field(field));
        if filter.account_ids.len() > MAX_ACCOUNTS {
            let reason = format!("has {} entries, more than {MAX_ACCOUNTS}", filter.account_ids.len());
            return refused("filter.account_ids", reason, "subscribe to all, or in several streams");
        }
        if filter.rule_ids.len() > MAX_RULES {
            let reason = format!("has {} entries, more than {MAX_RULES}", filter.rule_ids.len());
            return refused("filter.rule_ids", reason, "name fewer rules");
        }
        if !(0.0..=1.0).contains(&filter.min_score) {
            let reason = format!("is {}", filter.min_score);
            return refused("filter.min_score", reason, "send a score from 0 to 1");
        }
        let mut outcomes = Vec::new();
        for number in filter.outcomes {
            outcomes.push(match pb::Outcome::try_from(number) {
                Ok(pb::Outcome::Approve) => Outcome::Approve,
                Ok(pb::Outcome::Review) => Outcome::Review,
                Ok(pb::Outcome::Decline) => Outcome::Decline,
                Ok(pb::Outcome::Unspecified) | Err(_) => {
                    let reason = format!("has {number}, which is no outcome");
                    return refused("filter.outcomes", reason, "name APPROVE, REVIEW or DECLINE");
                }
            });
        }
        Ok(Self {
            tenant,
            accounts: filter.account_ids.into_iter().collect(),
            outcomes,
            min_score: filter.min_score,
            rules: filter.rule_ids,
        })
    }

    /// Whose decisions pass.
    pub const fn tenant(&self) -> &Arc<str> {
        &self.tenant
    }

    /// The accounts that it names; none where it lets all of them pass.
    pub fn accounts(&self) -> Vec<String> {
        self.accounts.iter().cloned().collect()
    }

    /// Whether a decision passes.
    pub fn passes(&self, decision: &Decision) -> bool {
        *self.tenant == decision.tenant
            && decision.score >= self.min_score
            && (self.outcomes.is_empty() || self.outcomes.contains(&decision.outcome))
            && (self.accounts.is_empty() || self.accounts.contains(&decision.account_id))
            && (self.rules.is_empty() || decision.reasons.iter().any(|reason| self.names(&reason.rule_id)))
    }

    fn names(&self, rule: &str) -> bool {
        self.rules.iter().any(|named| named == rule)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use sluice_proto::decision::Reason;
    use sluice_proto::event::EventId;
    use sluice_proto::money::Amount;

    use super::*;

    pub(crate) fn decision(tenant: &str, account: &str, source_offset: i64) -> Decision {
        Decision {
            event_id: EventId::new(uuid::Uuid::from_u128(source_offset as u128 + 1)),
            tenant: tenant.to_owned(),
            account_id: account.to_owned(),
            amount: Amount::from_parts(1, 0).expect("amount"),
            currency: "EUR".to_owned(),
            occurred_at: 0,
            outcome: Outcome::Review,
            score: 0.5,
            reasons: vec![Reason {
                rule_id: "LARGE_AMOUNT".into(),
                rule_version: "1".into(),
                contribution: 0.5,
                detail: String::new(),
            }],
            rule_set_version: "1".into(),
            model_version: None,
            source_partition: 0,
            source_offset,
            late: false,
        }
    }

    fn passes(filter: pb::DecisionFilter) -> bool {
        let filter = Filter::new("acme".into(), filter).expect("valid");
        filter.passes(&decision("acme", "a-1", 0))
    }

    #[test]
    fn another_tenants_decision_never_passes() {
        let all = Filter::new("acme".into(), pb::DecisionFilter::default()).expect("valid");
        assert!(all.passes(&decision("acme", "a-1", 0)));
        assert!(!all.passes(&decision("evil", "a-1", 0)));
    }

    #[test]
    fn every_part_restricts() {
        let with = |change: fn(&mut pb::DecisionFilter)| {
            let mut filter = pb::DecisionFilter::default();
            change(&mut filter);
            passes(filter)
        };
        assert!(with(|filter| filter.account_ids = vec!["a-0".into(), "a-1".into()]));
        assert!(!with(|filter| filter.account_ids = vec!["a-0".into()]));
        assert!(with(|filter| filter.outcomes = vec![2, 3]));
        assert!(!with(|filter| filter.outcomes = vec![1]));
        assert!(with(|filter| filter.min_score = 0.5));
        assert!(!with(|filter| filter.min_score = 0.51));
        assert!(with(|filter| filter.rule_ids = vec!["LARGE_AMOUNT".into()]));
        assert!(!with(|filter| filter.rule_ids = vec!["HIGH_FREQUENCY".into()]));
    }

    #[test]
    fn senseless_filters_are_refused() {
        for filter in [
            pb::DecisionFilter {
                min_score: f64::NAN,
                ..Default::default()
            },
            pb::DecisionFilter {
                min_score: 1.5,
                ..Default::default()
            },
            pb::DecisionFilter {
                outcomes: vec![0],
                ..Default::default()
            },
            pb::DecisionFilter {
                outcomes: vec![9],
                ..Default::default()
            },
            pb::DecisionFilter {
                account_ids: vec![String::new(); MAX_ACCOUNTS + 1],
                ..Default::default()
            },
        ] {
            let failure = Filter::new("acme".into(), filter).expect_err("refused");
            assert_eq!(failure.code(), ErrorCode::RequestInvalid);
        }
    }
}
