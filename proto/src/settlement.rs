//! What is said of a payment after its decision, and what became of its money: the records of the topics `verdicts` and
//! `settlements`.
//!
//! A verdict is written by the gateway or by `sluicectl` and read by the processor, which writes settlements.

use serde::{Deserialize, Serialize};

use crate::event::EventId;
use crate::money::Amount;

/// Longest name of whoever says something, in bytes.
pub const MAX_ACTOR_BYTES: usize = 128;
/// Longest reason, in bytes.
pub const MAX_REASON_BYTES: usize = 1_024;

/// What somebody wants to happen with a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE", into = "&'static str", try_from = "String")]
pub enum Action {
    /// End its review: capture it.
    Approve,
    /// End its review: release it.
    Decline,
    /// Take it back: release it where it is not captured, else refund it.
    Cancel,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 3] = [Self::Approve, Self::Decline, Self::Cancel];

    /// The action's name in topics and the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "APPROVE",
            Self::Decline => "DECLINE",
            Self::Cancel => "CANCEL",
        }
    }
}

impl From<Action> for &'static str {
    fn from(action: Action) -> Self {
        action.as_str()
    }
}

impl TryFrom<String> for Action {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|action| action.as_str() == name)
            .ok_or_else(|| format!("action {name:?} is none of APPROVE, DECLINE, CANCEL"))
    }
}

/// What somebody said of a payment: the Avro record `sluice.v1.Verdict`. Saying it twice is saying it once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the Avro schema documents the fields")]
pub struct Verdict {
    pub event_id: EventId,
    pub tenant: String,
    pub account_id: String,
    pub action: Action,
    pub actor: String,
    #[serde(default)]
    pub reason: String,
}

/// What became of a payment's money.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE", into = "&'static str", try_from = "String")]
pub enum Kind {
    /// It was moved.
    Captured,
    /// It never will be.
    Released,
    /// It was moved back.
    Refunded,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Captured, Self::Released, Self::Refunded];

    /// The kind's name in topics and the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Captured => "CAPTURED",
            Self::Released => "RELEASED",
            Self::Refunded => "REFUNDED",
        }
    }
}

impl From<Kind> for &'static str {
    fn from(kind: Kind) -> Self {
        kind.as_str()
    }
}

impl TryFrom<String> for Kind {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| format!("kind {name:?} is none of CAPTURED, RELEASED, REFUNDED"))
    }
}

/// What became of one payment's money: the Avro record `sluice.v1.Settlement`. It may be written more than once, with the
/// same id each time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the Avro schema documents the fields")]
pub struct Settlement {
    pub settlement_id: String,
    pub event_id: EventId,
    pub tenant: String,
    pub account_id: String,
    pub amount: Amount,
    pub currency: String,
    pub kind: Kind,
    pub source_partition: i32,
    pub source_offset: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::avro::{Decoder, Encoder};

    #[test]
    fn both_records_come_back_as_they_were_written() {
        let verdict = Verdict {
            event_id: EventId::new(uuid::Uuid::from_u128(7)),
            tenant: "acme".to_owned(),
            account_id: "a".to_owned(),
            action: Action::Cancel,
            actor: "desk".to_owned(),
            reason: String::new(),
        };
        let mut bytes = Vec::new();
        let encoder = Encoder::<Verdict>::new(1).expect("the schema is ours");
        encoder.encode(&verdict, &mut bytes).expect("it fits");
        let decoded = Decoder::<Verdict>::new(1).expect("the schema is ours").decode(&bytes);
        assert_eq!(decoded.expect("it can be read"), verdict);

        let settlement = Settlement {
            settlement_id: "7:REFUNDED".to_owned(),
            event_id: verdict.event_id,
            tenant: verdict.tenant,
            account_id: verdict.account_id,
            amount: Amount::from_ten_thousandths(123_400),
            currency: "EUR".to_owned(),
            kind: Kind::Refunded,
            source_partition: 3,
            source_offset: 9,
        };
        let mut bytes = Vec::new();
        let encoder = Encoder::<Settlement>::new(1).expect("the schema is ours");
        encoder.encode(&settlement, &mut bytes).expect("it fits");
        let decoded = Decoder::<Settlement>::new(1)
            .expect("the schema is ours")
            .decode(&bytes);
        assert_eq!(decoded.expect("it can be read"), settlement);
    }
}
