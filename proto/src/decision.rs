//! Decisions: what the processor writes, the gateway routes and subscribers receive.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::event::{EventId, PaymentRecord};
use crate::money::Amount;
use crate::pb;

/// What to do with a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE", into = "&'static str", try_from = "String")]
pub enum Outcome {
    /// Let it pass.
    Approve,
    /// Have a person look at it.
    Review,
    /// Refuse it.
    Decline,
}

impl Outcome {
    /// Every outcome, from the mildest to the strictest.
    pub const ALL: [Self; 3] = [Self::Approve, Self::Review, Self::Decline];

    /// The outcome's name in topics and the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "APPROVE",
            Self::Review => "REVIEW",
            Self::Decline => "DECLINE",
        }
    }
}

impl From<Outcome> for &'static str {
    fn from(outcome: Outcome) -> Self {
        outcome.as_str()
    }
}

impl TryFrom<String> for Outcome {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == name)
            .ok_or_else(|| format!("outcome {name:?} is none of APPROVE, REVIEW, DECLINE"))
    }
}

impl From<Outcome> for pb::Outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Approve => Self::Approve,
            Outcome::Review => Self::Review,
            Outcome::Decline => Self::Decline,
        }
    }
}

/// One rule that fired: the Avro record `sluice.v1.Reason`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// The rule.
    pub rule_id: Arc<str>,
    /// The rule's version.
    pub rule_version: Arc<str>,
    /// What the rule added on its own, from 0 to 1.
    pub contribution: f64,
    /// The facts that made it fire.
    pub detail: String,
}

/// What was decided about one payment: the Avro record `sluice.v1.FraudDecision`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename = "FraudDecision")]
#[allow(missing_docs, reason = "the Avro schema documents the fields")]
pub struct Decision {
    pub event_id: EventId,
    pub tenant: String,
    pub account_id: String,
    pub amount: Amount,
    pub currency: String,
    /// Microseconds since the Unix epoch.
    pub occurred_at: i64,
    pub outcome: Outcome,
    pub score: f64,
    #[serde(default)]
    pub reasons: Vec<Reason>,
    pub rule_set_version: Arc<str>,
    #[serde(default)]
    pub model_version: Option<String>,
    pub source_partition: i32,
    pub source_offset: i64,
    #[serde(default)]
    pub late: bool,
}

/// What judging a payment yields, before it is bound to the payment.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What to do.
    pub outcome: Outcome,
    /// How suspicious, from 0 to 1.
    pub score: f64,
    /// The rules that fired, in the order of the rule set.
    pub reasons: Vec<Reason>,
    /// Too late for the rules that need history.
    pub late: bool,
}

impl Decision {
    /// Binds a verdict to the payment at a place in the payments topic.
    pub fn new(
        payment: PaymentRecord,
        verdict: Verdict,
        rule_set_version: Arc<str>,
        partition: i32,
        offset: i64,
    ) -> Self {
        Self {
            event_id: payment.event_id,
            tenant: payment.tenant,
            account_id: payment.account_id,
            amount: payment.amount,
            currency: payment.currency,
            occurred_at: payment.occurred_at,
            outcome: verdict.outcome,
            score: verdict.score,
            reasons: verdict.reasons,
            rule_set_version,
            model_version: None,
            source_partition: partition,
            source_offset: offset,
            late: verdict.late,
        }
    }

    /// The decision as clients receive it. `decided_at_ms` is the Kafka record's timestamp, in milliseconds since the
    /// Unix epoch; it is not part of the decision, so that replay yields the same bytes.
    pub fn to_pb(&self, decided_at_ms: i64, traceparent: &str) -> pb::FraudDecision {
        pb::FraudDecision {
            event_id: self.event_id.to_string(),
            account_id: self.account_id.clone(),
            outcome: pb::Outcome::from(self.outcome).into(),
            score: self.score,
            reasons: self.reasons.iter().map(Reason::to_pb).collect(),
            rule_set_version: self.rule_set_version.to_string(),
            model_version: self.model_version.clone().unwrap_or_default(),
            amount: Some(self.amount.to_money(&self.currency)),
            occurred_at: Some(timestamp(self.occurred_at)),
            decided_at: Some(timestamp(decided_at_ms.saturating_mul(1_000))),
            source: Some(pb::Position {
                partition: self.source_partition,
                offset: self.source_offset,
            }),
            late: self.late,
            traceparent: traceparent.to_owned(),
        }
    }
}

impl Reason {
    fn to_pb(&self) -> pb::Reason {
        pb::Reason {
            rule_id: self.rule_id.to_string(),
            rule_version: self.rule_version.to_string(),
            contribution: self.contribution,
            detail: self.detail.clone(),
        }
    }
}

/// The wire's timestamp of so many microseconds since the Unix epoch.
pub fn timestamp(micros: i64) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: micros.rem_euclid(1_000_000) as i32 * 1_000,
    }
}
