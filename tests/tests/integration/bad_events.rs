//! Events that must be refused, through a real client: each gets its own error with field, reason and remedy, and the
//! good events around it are stored.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use prost::Message;
use sluice_proto::bounds;
use sluice_proto::error_code;
use sluice_proto::google_type::Money;
use sluice_proto::pb;
use sluice_proto::pb::event::Payload;
use sluice_proto::pb::{AckStatus, ErrorCode};
use sluice_tests::checker::{self, Expected};
use sluice_tests::events::{self, payment, with};
use sluice_tests::run::on_shared;
use sluice_tests::session::{self, Session};
use sluice_tests::subscription::Subscription;
use sluice_tests::wait;
use tonic::Code;
use tonic_types::StatusExt;

/// A bad event, what is wrong with it, and what the gateway must say.
struct Case {
    name: &'static str,
    event: Bytes,
    code: ErrorCode,
    field: &'static str,
}

fn invalid(name: &'static str, field: &'static str, event: &pb::Event) -> Case {
    Case {
        name,
        event: events::encoded(event),
        code: ErrorCode::EventInvalid,
        field,
    }
}

fn with_id(event_id: &str) -> pb::Event {
    pb::Event {
        event_id: event_id.to_owned(),
        ..payment("bad")
    }
}

fn at_time(time: Option<prost_types::Timestamp>) -> pb::Event {
    pb::Event {
        occurred_at: time,
        ..payment("bad")
    }
}

fn from_now(seconds: i64) -> pb::Event {
    let mut now = prost_types::Timestamp::from(SystemTime::now());
    now.seconds += seconds;
    at_time(Some(now))
}

fn of_money(currency: &str, units: i64, nanos: i32) -> pb::Event {
    with(payment("bad"), |payment| {
        payment.amount = Some(Money {
            currency_code: currency.to_owned(),
            units,
            nanos,
        });
    })
}

fn somewhere(country: &str, latitude: Option<f64>, longitude: Option<f64>) -> pb::Event {
    with(payment("bad"), |payment| {
        payment.location = Some(pb::Location {
            country_code: country.to_owned(),
            place: String::new(),
            latitude,
            longitude,
        });
    })
}

fn identity_and_time() -> Vec<Case> {
    let too_far = bounds::MAX_FUTURE.as_secs() as i64 + 60;
    let too_old = bounds::MAX_AGE.as_secs() as i64 + 3_600;
    let nameless = pb::Event {
        payload: None,
        ..payment("bad")
    };
    let bad_nanos = prost_types::Timestamp {
        nanos: 1_000_000_000,
        ..SystemTime::now().into()
    };
    vec![
        invalid("no event_id", "event_id", &with_id("")),
        invalid("an event_id that is no UUID", "event_id", &with_id("payment-1")),
        invalid(
            "an event_id without hyphens",
            "event_id",
            &with_id("0190163d8694739baea5966c26f8ad91"),
        ),
        invalid(
            "the nil event_id",
            "event_id",
            &with_id("00000000-0000-0000-0000-000000000000"),
        ),
        invalid("no time", "occurred_at", &at_time(None)),
        invalid("a time far in the future", "occurred_at", &from_now(too_far)),
        invalid("a time far in the past", "occurred_at", &from_now(-too_old)),
        invalid("a time in milliseconds", "occurred_at", &from_now(1_700_000_000_000)),
        invalid(
            "a whole second in nanos",
            "occurred_at.nanos",
            &at_time(Some(bad_nanos)),
        ),
        invalid("no payload", "payload", &nameless),
    ]
}

fn money() -> Vec<Case> {
    let nothing = with(payment("bad"), |payment| payment.amount = None);
    vec![
        invalid("no amount", "payment.amount", &nothing),
        invalid("no currency", "payment.amount.currency_code", &of_money("", 1, 0)),
        invalid(
            "an unknown currency",
            "payment.amount.currency_code",
            &of_money("XQZ", 1, 0),
        ),
        invalid(
            "a currency in small letters",
            "payment.amount.currency_code",
            &of_money("eur", 1, 0),
        ),
        invalid("a negative amount", "payment.amount", &of_money("EUR", -1, 0)),
        invalid("nothing", "payment.amount", &of_money("EUR", 0, 0)),
        invalid(
            "parts of different sign",
            "payment.amount",
            &of_money("EUR", 1, -10_000_000),
        ),
        invalid("half a yen", "payment.amount.nanos", &of_money("JPY", 1, 500_000_000)),
        invalid(
            "a tenth of a cent",
            "payment.amount.nanos",
            &of_money("EUR", 1, 1_000_000),
        ),
        invalid("a billionth", "payment.amount", &of_money("EUR", 1, 1)),
        invalid(
            "a billion in nanos",
            "payment.amount",
            &of_money("EUR", 1, 1_000_000_000),
        ),
        invalid(
            "a trillion",
            "payment.amount.units",
            &of_money("EUR", 1_000_000_000_000, 0),
        ),
        invalid("more than fits", "payment.amount", &of_money("EUR", i64::MAX, 0)),
    ]
}

fn names_and_places() -> Vec<Case> {
    let long = "x".repeat(bounds::MAX_ID_BYTES + 1);
    let account = |text: &str| payment(text);
    let merchant = |text: &str| with(payment("bad"), |payment| text.clone_into(&mut payment.merchant_id));
    let terminal = |text: &str| with(payment("bad"), |payment| text.clone_into(&mut payment.terminal_id));
    let device = |text: &str| with(payment("bad"), |payment| text.clone_into(&mut payment.device_id));
    let category = |text: &str| {
        with(payment("bad"), |payment| {
            text.clone_into(&mut payment.merchant_category)
        })
    };
    let method = with(payment("bad"), |payment| payment.method = 99);
    vec![
        invalid("an empty account", "payment.account_id", &account("")),
        invalid("an oversized account", "payment.account_id", &account(&long)),
        invalid("an account with a space", "payment.account_id", &account("account 1")),
        invalid(
            "an account with a control character",
            "payment.account_id",
            &account("account\u{7}"),
        ),
        invalid("an account beyond ASCII", "payment.account_id", &account("kontó")),
        invalid("an empty merchant", "payment.merchant_id", &merchant("")),
        invalid("an oversized merchant", "payment.merchant_id", &merchant(&long)),
        invalid("an oversized terminal", "payment.terminal_id", &terminal(&long)),
        invalid("an oversized device", "payment.device_id", &device(&long)),
        invalid("a category of letters", "payment.merchant_category", &category("shop")),
        invalid("an unknown method", "payment.method", &method),
        invalid(
            "a country of three letters",
            "payment.location.country_code",
            &somewhere("DEU", None, None),
        ),
        invalid("one coordinate", "payment.location", &somewhere("DE", Some(1.0), None)),
        invalid(
            "a latitude of 91",
            "payment.location",
            &somewhere("DE", Some(91.0), Some(0.0)),
        ),
        invalid(
            "a longitude that is no number",
            "payment.location",
            &somewhere("DE", Some(0.0), Some(f64::NAN)),
        ),
    ]
}

fn others() -> Vec<Case> {
    let other = |payload| pb::Event {
        payload: Some(payload),
        ..payment("bad")
    };
    let metric = |name: &str, value| {
        other(Payload::Metric(pb::MetricEvent {
            name: name.to_owned(),
            value,
            ..pb::MetricEvent::default()
        }))
    };
    let action = other(Payload::UserAction(pb::UserActionEvent {
        user_id: "user".to_owned(),
        ..pb::UserActionEvent::default()
    }));
    let talkative = other(Payload::System(pb::SystemEvent {
        source: "source".to_owned(),
        kind: "kind".to_owned(),
        message: "x".repeat(bounds::MAX_MESSAGE_BYTES + 1),
        ..pb::SystemEvent::default()
    }));
    let attributes = (0..=bounds::MAX_ATTRIBUTES)
        .map(|number| (number.to_string(), String::new()))
        .collect();
    let attributed = other(Payload::UserAction(pb::UserActionEvent {
        user_id: "user".to_owned(),
        action: "login".to_owned(),
        device_id: String::new(),
        attributes,
    }));
    vec![
        invalid("an infinite metric", "metric.value", &metric("m", f64::INFINITY)),
        invalid("a metric without name", "metric.name", &metric("", 1.0)),
        invalid("no action", "user_action.action", &action),
        invalid("a long message", "system.message", &talkative),
        invalid("too many attributes", "user_action.attributes", &attributed),
    ]
}

/// Bytes that are no event at all.
fn unreadable() -> Vec<Case> {
    let mut account = events::encoded(&payment("not-utf-8")).to_vec();
    let place = account
        .windows(9)
        .position(|window| window == b"not-utf-8")
        .unwrap_or_default();
    account[place + 4] = 0xff;
    let unreadable = |name, event: Vec<u8>| Case {
        name,
        event: event.into(),
        code: ErrorCode::EventUnreadable,
        field: "",
    };
    let mut cut_short = events::encoded(&payment("bad")).to_vec();
    cut_short.truncate(cut_short.len() - 3);
    let huge = with(payment("bad"), |payment| {
        payment.device_id = "x".repeat(bounds::MAX_EVENT_BYTES)
    });
    vec![
        unreadable("text that is not UTF-8", account),
        unreadable("garbage", vec![0xff; 40]),
        unreadable("an event cut short", cut_short),
        Case {
            name: "an event over the size bound",
            event: events::encoded(&huge),
            code: ErrorCode::EventTooLarge,
            field: "",
        },
    ]
}

fn cases() -> Vec<Case> {
    let all = [identity_and_time(), money(), names_and_places(), others(), unreadable()];
    all.into_iter().flatten().collect()
}

#[test]
fn each_bad_event_of_a_batch_is_one_error_and_the_others_are_stored() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let mut session = Session::open(&url, &tenant.key, "bad-events").await?;
        let cases = cases();
        // One batch: good, bad, good, bad, …, good.
        let good = events::payments("good", cases.len() + 1);
        let mut batch = vec![events::encoded(&good[0])];
        for (case, event) in cases.iter().zip(&good[1..]) {
            batch.push(case.event.clone());
            batch.push(events::encoded(event));
        }
        let first = session.send_batch(batch).await?;
        session.settle().await?;
        for (index, case) in cases.iter().enumerate() {
            let fate = session.fate(first + 1 + 2 * index as u64).await?;
            assert_eq!(fate.status, AckStatus::Error, "{}: {fate:?}", case.name);
            let error = fate.error.with_context(|| format!("{}: no error", case.name))?;
            check_error(case, &error)?;
        }
        for index in 0..good.len() {
            let fate = session.fate(first + 2 * index as u64).await?;
            assert_eq!(
                fate.status,
                AckStatus::Stored,
                "a good event beside a bad one: {fate:?}"
            );
        }
        // The session goes on, and no credit was lost.
        let more = events::payments("more", 10);
        session.store(&more).await?;
        let good = [good, more].concat();
        subscription.decided(&events::ids(&good)).await?;
        session.close().await?;
        checker::check(stack, &Expected::all(&tenant.name, &good)).await?;
        Ok(())
    });
}

fn check_error(case: &Case, error: &pb::EventError) -> Result<()> {
    let name = case.name;
    ensure!(error.code() == case.code, "{name}: {error:?}");
    ensure!(
        error.field == case.field,
        "{name}: the field is {:?}, not {:?}",
        error.field,
        case.field
    );
    ensure!(
        !error.reason.is_empty() && !error.remedy.is_empty(),
        "{name}: no reason or no remedy: {error:?}"
    );
    let facts = error_code::facts(case.code);
    ensure!(
        (error.retriable, error.certainly_not_stored) == (facts.retriable, facts.certainly_not_stored),
        "{name}: the facts are not those of the code: {error:?}"
    );
    Ok(())
}

/// `PublishOneRequest` with an event of any bytes.
#[derive(Clone, PartialEq, prost::Message)]
struct AnyPublishOne {
    #[prost(bytes = "bytes", tag = "1")]
    event: Bytes,
}

#[test]
fn the_unary_call_refuses_each_bad_event_with_its_field() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let mut client = tonic::client::Grpc::new(session::connect(&stack.gateway_url()).await?);
        for case in cases() {
            let message = AnyPublishOne {
                event: case.event.clone(),
            };
            let request = session::authorized(message, &tenant.key);
            let path = "/sluice.v1.IngestService/PublishOne".parse()?;
            let codec = tonic_prost::ProstCodec::<AnyPublishOne, pb::PublishOneResponse>::default();
            client.ready().await?;
            let answer = wait::soon("PublishOne answers", client.unary(request, path, codec)).await?;
            let name = case.name;
            let Err(status) = answer else {
                anyhow::bail!("{name}: was stored");
            };
            ensure!(status.code() == Code::InvalidArgument, "{name}: {status:?}");
            let details = status.get_error_details();
            let info = details
                .error_info()
                .with_context(|| format!("{name}: no ErrorInfo: {status:?}"))?;
            ensure!(info.domain == "sluice.v1", "{name}: {info:?}");
            // What the transport cannot decode is no event yet, but a request that makes no sense.
            if case.code == ErrorCode::EventUnreadable {
                ensure!(
                    ["EVENT_UNREADABLE", "REQUEST_INVALID"].contains(&info.reason.as_str()),
                    "{name}: {info:?}"
                );
                continue;
            }
            ensure!(
                info.reason == case.code.as_str_name().trim_start_matches("ERROR_CODE_"),
                "{name}: {info:?}"
            );
            if !case.field.is_empty() {
                let bad = details
                    .bad_request()
                    .with_context(|| format!("{name}: no BadRequest"))?;
                ensure!(bad.field_violations[0].field == case.field, "{name}: {bad:?}");
            }
            let (reason, remedy) = status
                .message()
                .split_once(": ")
                .with_context(|| format!("{name}: {status:?}"))?;
            ensure!(!reason.is_empty() && !remedy.is_empty(), "{name}: {status:?}");
        }
        checker::check(stack, &Expected::of(&tenant.name)).await?;
        Ok(())
    });
}

#[test]
fn what_is_just_within_the_bounds_is_stored() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let mut session = Session::open(&stack.gateway_url(), &tenant.key, "bounds").await?;
        let longest = "x".repeat(bounds::MAX_ID_BYTES);
        let soon = bounds::MAX_FUTURE - Duration::from_secs(30);
        let good = [
            payment(&longest),
            from_now(soon.as_secs() as i64),
            of_money("EUR", bounds::MAX_AMOUNT_UNITS, 0),
            of_money("EUR", 0, 10_000_000),
            of_money("JPY", 1, 0),
            of_money("BHD", 1, 1_000_000),
            of_money("CLF", 1, 100_000),
            somewhere("", Some(-90.0), Some(180.0)),
            with_id("0190163D-8694-739B-AEA5-966C26F8AD91"),
        ];
        ensure!(
            good.iter().all(|event| event.encoded_len() < bounds::MAX_EVENT_BYTES),
            "a case is too large"
        );
        session.store(&good).await?;
        Ok(())
    });
}
