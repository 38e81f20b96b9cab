//! Owns the unary call that publishes one payment and answers with its decision.
//!
//! A driver like the session loop: it registers its interest, hands the payment over through `ingest::call`, waits for
//! the delivery report and then for the decision loop to meet the decision. Comes after `service`.

use std::sync::Arc;
use std::time::Duration;

use sluice_proto::decision::Decision;
use sluice_proto::event::{Checked, PaymentRecord};
use sluice_proto::money::Amount;
use sluice_proto::pb::{self, ErrorCode};
use tokio::time::{Instant, sleep_until};
use tonic::metadata::MetadataMap;

use crate::auth::Caller;
use crate::decisions::decode::Entry;
use crate::decisions::look_back::{self, Wanted};
use crate::ingest::ack::Fate;
use crate::ingest::call;
use crate::status::Failure;
use crate::{decisions, ingest};

/// How long a call without a deadline waits.
pub const DEFAULT_WAIT: Duration = Duration::from_secs(10);
/// How long any call waits: less than a drain takes, so that none is cut off by one.
pub const MAX_WAIT: Duration = Duration::from_secs(15);
/// The answer leaves at least so long before the client's deadline, or its own library would answer first and say less.
pub const ANSWER_MARGIN: Duration = Duration::from_millis(20);
/// A short deadline keeps more of its time: the margin is at most this part of it.
pub const MARGIN_PART: u32 = 10;
/// When a stored payment is not decided so long after, its decision may be an old one, and is searched for.
pub const LOOK_BACK_AFTER: Duration = Duration::from_millis(150);
/// The quota that is spent when too many calls wait for decisions.
pub const DECISIONS_AWAITED: &str = "gateway.decisions_awaited";

/// Publishes one payment and waits for its decision, at most until `timeout` has passed. When the call is cancelled the
/// payment may be stored.
///
/// # Errors
/// What a status is made of; `DECISION_PENDING` where the payment is stored and not decided in time, `EVENT_ID_USED` where
/// its event_id was used for another payment.
pub async fn decide(
    ingest: &ingest::Shared,
    decisions: &Arc<decisions::Shared>,
    caller: &Caller,
    traceparent: Option<&str>,
    timeout: Option<Duration>,
    event: Option<pb::Event>,
) -> Result<pb::FraudDecision, Failure> {
    let deadline = Instant::now() + patience(timeout);
    let submitted = call::submit(ingest, caller, traceparent, event, |checked| {
        let Checked::Payment(payment) = checked else {
            let remedy = "publish other events with Publish or PublishOne";
            return Err(Failure::new(ErrorCode::RequestInvalid, "is not a payment", remedy).field("event.payload"));
        };
        let interest = decisions
            .waiting
            .register(&caller.tenant, &payment.account_id, payment.event_id);
        Ok((interest.ok_or_else(busy)?, payment.event_id, Content::of(payment)))
    });
    let ((mut interest, event_id, content), report) = submitted.inspect_err(|failure| {
        ingest.metrics.rejected(failure.code());
    })?;
    let late = || sleep_until(deadline);
    let position = tokio::select! {
        biased;
        entry = interest.decided() => return content.answer(&entry),
        report = report => match report {
            Ok(Fate::Stored(position)) => position,
            Ok(Fate::Failed(failure)) => return Err(*failure),
            Err(_) => return Err(call::lost_report()),
        },
        () = late() => return Err(unreported()),
    };
    let look_back_at = deadline.min(Instant::now() + LOOK_BACK_AFTER);
    tokio::select! {
        biased;
        entry = interest.decided() => return content.answer(&entry),
        () = sleep_until(look_back_at) => {}
    }
    let wanted = Wanted {
        tenant: caller.tenant.clone(),
        event_id,
        partition: position.partition,
    };
    tokio::select! {
        biased;
        entry = interest.decided() => return content.answer(&entry),
        found = look_back::find(decisions, wanted) => if let Some(entry) = found {
            return content.answer(&entry);
        },
        () = late() => return Err(pending(position)),
    }
    tokio::select! {
        biased;
        entry = interest.decided() => content.answer(&entry),
        () = late() => Err(pending(position)),
    }
}

/// What a decision tells of its payment besides the event_id: by this, another payment with the same one is known.
struct Content {
    account_id: String,
    amount: Amount,
    currency: String,
    occurred_at: i64,
}

impl Content {
    fn of(payment: &PaymentRecord) -> Self {
        Self {
            account_id: payment.account_id.clone(),
            amount: payment.amount,
            currency: payment.currency.clone(),
            occurred_at: payment.occurred_at,
        }
    }

    fn is_of(&self, decision: &Decision) -> bool {
        self.account_id == decision.account_id
            && self.amount == decision.amount
            && self.currency == decision.currency
            && self.occurred_at == decision.occurred_at
    }

    /// The decision, if it is about this payment. Another one with the same event_id in the same partition came first, and
    /// then the processor makes a dead letter of this one.
    fn answer(&self, entry: &Entry) -> Result<pb::FraudDecision, Failure> {
        if self.is_of(&entry.decision) {
            Ok(entry.to_pb())
        } else {
            Err(used_before())
        }
    }
}

/// How long to wait for a client that waits so long.
fn patience(timeout: Option<Duration>) -> Duration {
    let Some(timeout) = timeout else { return DEFAULT_WAIT };
    let margin = ANSWER_MARGIN.min(timeout / MARGIN_PART);
    (timeout - margin).min(MAX_WAIT)
}

/// The call's deadline as gRPC sends it: up to eight digits and a unit. What is malformed is as good as none.
pub fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => amount.checked_mul(3_600).map(Duration::from_secs),
        "M" => amount.checked_mul(60).map(Duration::from_secs),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

fn pending(position: pb::Position) -> Failure {
    Failure::new(
        ErrorCode::DecisionPending,
        "the payment is stored and will be decided, but was not within the deadline",
        "call again with the same event, or subscribe",
    )
    .fact("stored", true)
    .fact("partition", position.partition)
    .fact("offset", position.offset)
}

fn unreported() -> Failure {
    Failure::new(
        ErrorCode::DeliveryUncertain,
        "kafka did not say within the deadline whether it stored the payment",
        "call again with the same event",
    )
}

fn used_before() -> Failure {
    Failure::new(
        ErrorCode::EventIdUsed,
        "was used for another payment, so that this one is not decided",
        "publish the payment with an event_id of its own",
    )
    .field("event.event_id")
}

fn busy() -> Failure {
    Failure::new(
        ErrorCode::QuotaExceeded,
        "too many calls wait for decisions",
        "wait, or publish over a session and subscribe",
    )
    .quota(DECISIONS_AWAITED)
    .retry_after(call::RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use sluice_proto::decision::{Outcome, Verdict};
    use sluice_proto::event::EventId;
    use tonic::Status;
    use tonic_types::StatusExt as _;

    use super::*;

    fn payment() -> PaymentRecord {
        PaymentRecord {
            event_id: EventId::new(uuid::Uuid::from_u128(1)),
            tenant: "acme".to_owned(),
            account_id: "a-1".to_owned(),
            amount: Amount::from_parts(12, 0).expect("an amount"),
            currency: "EUR".to_owned(),
            occurred_at: 1_000_000,
            merchant_id: "m-1".to_owned(),
            merchant_category: None,
            terminal_id: None,
            method: String::new(),
            device_id: None,
            country: None,
            place: None,
            latitude: None,
            longitude: None,
            traceparent: None,
        }
    }

    fn decided(payment: PaymentRecord) -> Entry {
        let verdict = Verdict {
            outcome: Outcome::Approve,
            score: 0.0,
            reasons: Vec::new(),
            late: false,
        };
        Entry::at(0, 0, Decision::new(payment, verdict, "1".into(), 0, 0))
    }

    #[test]
    fn a_payment_is_answered_with_its_own_decision_only() {
        let content = Content::of(&payment());
        assert!(content.answer(&decided(payment())).is_ok());
        let changes: [fn(&mut PaymentRecord); 4] = [
            |payment| payment.account_id = "a-2".to_owned(),
            |payment| payment.amount = Amount::from_parts(13, 0).expect("an amount"),
            |payment| payment.currency = "USD".to_owned(),
            |payment| payment.occurred_at += 1,
        ];
        for change in changes {
            let mut other = payment();
            change(&mut other);
            let failure = content.answer(&decided(other)).expect_err("another payment's");
            let status = Status::from(failure);
            assert_eq!(status.code(), tonic::Code::AlreadyExists);
            let info = status.get_details_error_info().expect("info");
            assert_eq!(info.metadata["retriable"], "false");
            assert_eq!(info.metadata["certainly_not_stored"], "false");
        }
    }

    fn parsed(text: &str) -> Option<Duration> {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", text.parse().expect("ascii"));
        timeout(&metadata)
    }

    #[test]
    fn deadlines_are_read_in_every_unit() {
        assert_eq!(parsed("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(parsed("1M"), Some(Duration::from_secs(60)));
        assert_eq!(parsed("3S"), Some(Duration::from_secs(3)));
        assert_eq!(parsed("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parsed("5u"), Some(Duration::from_micros(5)));
        assert_eq!(parsed("7n"), Some(Duration::from_nanos(7)));
        for malformed in ["", "S", "1", "1s", "-1S", "1 S"] {
            assert_eq!(parsed(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn the_answer_comes_before_the_deadline() {
        assert_eq!(patience(None), DEFAULT_WAIT);
        assert_eq!(patience(Some(Duration::from_secs(1))), Duration::from_millis(980));
        assert_eq!(patience(Some(Duration::from_millis(50))), Duration::from_millis(45));
        assert_eq!(patience(Some(Duration::from_secs(3_600))), MAX_WAIT);
        assert_eq!(patience(Some(Duration::ZERO)), Duration::ZERO);
    }
}
