//! What the checks refuse, and what they let pass.

use super::*;
use crate::google_type::Money;

const NOW: i64 = 1_800_000_000_000_000;

fn good() -> pb::Event {
    pb::Event {
        event_id: "0190163D-8694-739b-aea5-966c26f8ad91".into(),
        occurred_at: Some(Timestamp {
            seconds: NOW / 1_000_000,
            nanos: 999_999_999,
        }),
        payload: Some(pb::event::Payload::Payment(pb::PaymentEvent {
            account_id: "a-1".into(),
            amount: Some(Money {
                currency_code: "EUR".into(),
                units: 12,
                nanos: 340_000_000,
            }),
            merchant_id: "m-1".into(),
            method: pb::PaymentMethod::Wallet.into(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn refused(change: impl FnOnce(&mut pb::Event)) -> Violation {
    let mut changed = good();
    change(&mut changed);
    let violation = event(changed, "acme", NOW).expect_err("must be refused");
    assert!(!violation.reason.is_empty() && !violation.remedy.is_empty());
    violation
}

fn refused_payment(change: impl FnOnce(&mut pb::PaymentEvent)) -> Violation {
    refused(|event| match &mut event.payload {
        Some(pb::event::Payload::Payment(payment)) => change(payment),
        other => panic!("not a payment: {other:?}"),
    })
}

fn refused_amount(currency_code: &str, units: i64, nanos: i32) -> &'static str {
    refused_payment(|payment| {
        payment.amount = Some(Money {
            currency_code: currency_code.into(),
            units,
            nanos,
        });
    })
    .field
}

#[test]
fn a_good_payment_passes() {
    let Checked::Payment(payment) = event(good(), "acme", NOW).unwrap() else {
        panic!("must be a payment");
    };
    assert_eq!(payment.event_id.to_string(), "0190163d-8694-739b-aea5-966c26f8ad91");
    assert_eq!(payment.amount.ten_thousandths(), 123_400);
    assert_eq!(payment.occurred_at, NOW + 999_999);
    assert_eq!(payment.method, "WALLET");
    assert_eq!(payment.tenant, "acme");
}

#[test]
fn ids_are_checked() {
    for id in [
        "",
        "x",
        "00000000-0000-0000-0000-000000000000",
        "0190163d8694739baea5966c26f8ad91",
    ] {
        assert_eq!(refused(|event| event.event_id = id.into()).field, "event_id");
    }
    for id in ["", "a b", "ä", &"a".repeat(129)] {
        assert_eq!(
            refused_payment(|payment| payment.account_id = id.into()).field,
            "payment.account_id"
        );
    }
    assert_eq!(
        refused_payment(|payment| payment.merchant_id.clear()).field,
        "payment.merchant_id"
    );
    assert_eq!(
        refused_payment(|payment| payment.device_id = "\t".into()).field,
        "payment.device_id"
    );
}

#[test]
fn amounts_are_checked() {
    assert_eq!(refused_amount("EUR", 0, 0), "payment.amount");
    assert_eq!(refused_amount("EUR", -1, 0), "payment.amount");
    assert_eq!(refused_amount("EUR", 1, -1), "payment.amount");
    assert_eq!(refused_amount("EUR", 1, 1_000_000), "payment.amount.nanos");
    assert_eq!(refused_amount("JPY", 1, 500_000_000), "payment.amount.nanos");
    assert_eq!(refused_amount("EUR", 1_000_000_000_000, 0), "payment.amount.units");
    for code in ["", "eur", "EURO", "QQQ"] {
        assert_eq!(refused_amount(code, 1, 0), "payment.amount.currency_code");
    }
    assert_eq!(refused_payment(|payment| payment.amount = None).field, "payment.amount");
}

#[test]
fn times_are_checked() {
    let at = |seconds, nanos| refused(|event| event.occurred_at = Some(Timestamp { seconds, nanos })).field;
    assert_eq!(at(NOW / 1_000_000 + 901, 0), "occurred_at");
    assert_eq!(at(NOW / 1_000_000 - 3_653 * 86_400 - 1, 0), "occurred_at");
    assert_eq!(at(i64::MAX, 0), "occurred_at");
    assert_eq!(at(NOW / 1_000_000, -1), "occurred_at.nanos");
    assert_eq!(refused(|event| event.occurred_at = None).field, "occurred_at");
}

#[test]
fn places_are_checked() {
    let with = |location: pb::Location| refused_payment(|payment| payment.location = Some(location)).field;
    let half = pb::Location {
        latitude: Some(1.0),
        ..Default::default()
    };
    assert_eq!(with(half), "payment.location");
    let off = pb::Location {
        latitude: Some(90.1),
        longitude: Some(0.0),
        ..Default::default()
    };
    assert_eq!(with(off), "payment.location");
    let country = pb::Location {
        country_code: "be".into(),
        ..Default::default()
    };
    assert_eq!(with(country), "payment.location.country_code");
}

#[test]
fn other_events_are_checked() {
    let metric = |value| {
        refused(|event| {
            event.payload = Some(pb::event::Payload::Metric(pb::MetricEvent {
                name: "latency".into(),
                value,
                ..Default::default()
            }));
        })
        .field
    };
    assert_eq!(metric(f64::NAN), "metric.value");
    assert_eq!(refused(|event| event.payload = None).field, "payload");
}
