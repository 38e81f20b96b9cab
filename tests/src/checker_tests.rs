//! What the checker finds in histories that were spoilt by hand.

use sluice_proto::avro::Encoder;
use sluice_proto::decision::Outcome;
use sluice_proto::event::EventId;
use sluice_proto::money::Amount;

use super::*;
use crate::history::Letter;
use crate::ledger::{Compensation, Owner};
use crate::schemas::Schemas;

const NOW_US: i64 = 1_700_000_000_000_000;

fn id(offset: i64) -> String {
    uuid::Uuid::from_u128(offset as u128 + 1).to_string()
}

fn payment(offset: i64) -> (Record, PaymentRecord) {
    let payment = PaymentRecord {
        event_id: EventId::new(uuid::Uuid::from_u128(offset as u128 + 1)),
        tenant: "acme".to_owned(),
        account_id: "a".to_owned(),
        amount: Amount::from_ten_thousandths(120_000),
        currency: "EUR".to_owned(),
        occurred_at: NOW_US + offset * 60_000_000,
        merchant_id: "m".to_owned(),
        merchant_category: None,
        terminal_id: None,
        method: "CARD_PRESENT".to_owned(),
        device_id: None,
        country: None,
        place: None,
        latitude: None,
        longitude: None,
        traceparent: None,
    };
    let mut payload = Vec::new();
    let encoder = Encoder::<PaymentRecord>::new(1).expect("the schema is ours");
    encoder.encode(&payment, &mut payload).expect("a payment");
    (record(offset, payload, payment.occurred_at / 1_000), payment)
}

fn record(offset: i64, payload: Vec<u8>, stored_at_ms: i64) -> Record {
    Record {
        partition: 0,
        offset,
        key: "acme/a".to_owned(),
        payload,
        stored_at_ms,
        headers: Default::default(),
    }
}

fn decision(offset: i64) -> (Record, Decision) {
    let (_, payment) = payment(offset);
    let decision = Decision {
        event_id: payment.event_id,
        tenant: payment.tenant,
        account_id: payment.account_id,
        amount: payment.amount,
        currency: payment.currency,
        occurred_at: payment.occurred_at,
        outcome: Outcome::Approve,
        score: 0.0,
        reasons: Vec::new(),
        rule_set_version: "built-in-1-0".into(),
        model_version: None,
        source_partition: 0,
        source_offset: offset,
        late: false,
    };
    (record(offset, Vec::new(), 0), decision)
}

fn row(offset: i64) -> Entry {
    Entry {
        partition: 0,
        offset,
        tenant: "acme".to_owned(),
        event_id: id(offset),
        account: "a".to_owned(),
        amount: "12".to_owned(),
        currency: "EUR".to_owned(),
        outcome: "APPROVE".to_owned(),
        score: 0.0,
        reasons: Vec::new(),
        rule_set_version: "built-in-1-0".to_owned(),
        late: false,
        occurred_at: NOW_US + offset * 60_000_000,
        epoch: 2,
        committed: true,
    }
}

/// Three payments, all as it should be.
fn good() -> (History, Expected, Vec<pb::FraudDecision>) {
    let payments: Vec<_> = (0..3).map(payment).collect();
    let decisions: Vec<_> = (0..3).map(decision).collect();
    let owner = Owner {
        partition: 0,
        epoch: 2,
        watermark: 3,
        instance: "lane".to_owned(),
        taken_over_at: 0,
    };
    let mut expected = Expected::of("acme");
    expected.published = (0..3).map(id).collect();
    expected.acked = (0..3).map(|offset| (id(offset), None)).collect();
    let received = decisions.iter().map(|(_, decision)| decision.to_pb(0, "")).collect();
    let history = History {
        records: payments.iter().map(|(record, _)| record.clone()).collect(),
        payments,
        attempts: decisions.clone(),
        decisions,
        rows: (0..3).map(row).collect(),
        owners: vec![owner],
        schemas: Schemas::one::<PaymentRecord>(1),
        ..History::default()
    };
    (history, expected, received)
}

/// The invariants that are violated once the good history was spoilt.
fn found(spoil: impl FnOnce(&mut History, &mut Expected, &mut Vec<pb::FraudDecision>)) -> Vec<Invariant> {
    let (mut history, mut expected, mut received) = good();
    spoil(&mut history, &mut expected, &mut received);
    let mut violations = Violations::default();
    let visible = visible(&history, 0, &mut violations);
    once(&history, &visible, &expected, &mut violations);
    delivery(&received, "acme", &[], &visible, &mut violations);
    ledger_rows(&history, &visible, "acme", &mut violations);
    let fates = crate::oracle::replay(&history.records, &history.schemas);
    replay(&history, &visible, &fates, &mut violations);
    epochs(&history, &mut violations);
    let all = violations.into_vec().into_iter().map(|violation| violation.invariant);
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn a_good_history_is_found_good() {
    assert_eq!(found(|_, _, _| {}), []);
}

#[test]
fn what_is_lost_or_doubled_is_found() {
    use Invariant::{Delivery, Ledger, Once, Replay};
    let acknowledged = found(|_, expected, _| {
        expected.acked.insert(id(9), None);
    });
    assert_eq!(acknowledged, [Once]);
    let absent = found(|_, expected, _| {
        expected.absent.insert(id(1));
    });
    assert_eq!(absent, [Once]);
    let undecided = found(|history, _, received| {
        history.decisions.remove(1);
        history.attempts.remove(1);
        history.rows.remove(1);
        received.remove(1);
    });
    assert_eq!(undecided, [Once, Replay]);
    let twice_in_the_topic = found(|history, _, _| history.decisions.push(decision(1)));
    assert_eq!(twice_in_the_topic, [Once]);
    let dead_and_decided = found(|history, _, _| {
        history.letters.push(Letter {
            source: (0, 1),
            kind: "CONFLICT".to_owned(),
        });
    });
    assert_eq!(dead_and_decided, [Once, Replay]);
    assert_eq!(found(|_, _, received| received.push(received[2].clone())), [Delivery]);
    assert_eq!(found(|_, _, received| received.swap(0, 1)), [Delivery]);
    assert_eq!(found(|_, _, received| drop(received.pop())), [Delivery]);
    assert_eq!(found(|history, _, _| drop(history.rows.pop())), [Ledger]);
}

#[test]
fn what_differs_is_found() {
    use Invariant::{Delivery, Epochs, Ledger, Replay};
    assert_eq!(found(|_, _, received| received[0].score = 0.5), [Delivery]);
    assert_eq!(found(|history, _, _| history.rows[1].committed = false), [Ledger]);
    assert_eq!(
        found(|history, _, _| history.rows[1].outcome = "REVIEW".to_owned()),
        [Ledger]
    );
    let attempt = found(|history, _, _| history.attempts[0].1.outcome = Outcome::Decline);
    assert_eq!(attempt, [Replay]);
    let decided = found(|history, _, received| {
        for decisions in [&mut history.decisions, &mut history.attempts] {
            decisions[0].1.outcome = Outcome::Review;
        }
        history.rows[0].outcome = "REVIEW".to_owned();
        received[0] = history.decisions[0].1.to_pb(0, "");
    });
    assert_eq!(decided, [Replay]);
    assert_eq!(found(|history, _, _| history.rows[2].epoch = 1), [Epochs]);
    assert_eq!(found(|history, _, _| history.owners[0].epoch = 1), [Epochs]);
    let survived = found(|history, _, _| {
        history.compensations.push(Compensation {
            partition: 0,
            epoch: 3,
            first: 1,
            last: 2,
            rows: 2,
        });
    });
    assert_eq!(survived, [Epochs]);
}
