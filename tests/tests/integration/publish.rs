//! The main way: a payment goes in, is stored, decided once, and its decision comes out.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use sluice_client::{Publisher, Start, Target};
use sluice_proto::pb::event::Payload;
use sluice_proto::{headers, pb, topics};
use sluice_tests::checker::{self, Expected};
use sluice_tests::events;
use sluice_tests::run::on_shared;
use sluice_tests::session::{Session, publish_one};
use sluice_tests::stack::{self, Stack};
use sluice_tests::subscription::Subscription;
use sluice_tests::topics::{Record, read};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn payments_over_a_session_are_stored_and_decided_once() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let mut session = Session::open(&url, &tenant.key, "checkout").await?;
        assert_eq!(session.ready.next_sequence, 1);
        let payments = events::payments("a", 500);
        session.store(&payments).await?;
        subscription.decided(&events::ids(&payments)).await?;
        assert!(
            session.repeated.is_empty(),
            "acknowledged twice: {:?}",
            session.repeated
        );

        let mut expected = Expected::all(&tenant.name, &payments);
        for (payment, (_sequence, fate)) in payments.iter().zip(&session.fates) {
            expected.acked.insert(payment.event_id.clone(), fate.position);
            ensure!(fate.position.is_some(), "no position, and it was asked for");
            let decision = &subscription.decisions[&payment.event_id];
            assert_eq!(decision.source, fate.position, "the decision is of another record");
            assert_eq!((decision.outcome(), decision.score), (pb::Outcome::Approve, 0.0));
            assert_eq!((decision.occurred_at, decision.late), (cut(payment.occurred_at), false));
            assert_eq!(decision.amount, Some(events::euros(12, 340_000_000)));
            assert!(decision.decided_at.is_some() && !decision.rule_set_version.is_empty());
        }
        session.close().await?;
        let found = checker::check(stack, &expected).await?;
        assert_eq!(found.decisions.len(), payments.len());
        Ok(())
    });
}

/// Time is kept in microseconds.
fn cut(time: Option<prost_types::Timestamp>) -> Option<prost_types::Timestamp> {
    time.map(|time| prost_types::Timestamp {
        nanos: time.nanos / 1_000 * 1_000,
        ..time
    })
}

#[test]
fn one_payment_by_a_unary_call_is_stored_and_decided() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let payment = events::payment("unary");
        let position = publish_one(&url, &tenant.key, payment.clone()).await??;
        let decision = subscription.decision(&payment).await?;
        assert_eq!(decision.source, Some(position));
        checker::check(stack, &Expected::all(&tenant.name, &[payment])).await?;
        Ok(())
    });
}

#[test]
fn other_events_are_stored_in_their_topics() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let attributes = HashMap::from([("browser".to_owned(), "firefox".to_owned())]);
        let mut others = vec![events::payment("x"), events::payment("x"), events::payment("x")];
        others[0].payload = Some(Payload::UserAction(pb::UserActionEvent {
            user_id: "user-1".to_owned(),
            action: "login".to_owned(),
            device_id: String::new(),
            attributes: attributes.clone(),
        }));
        others[1].payload = Some(Payload::System(pb::SystemEvent {
            source: "checkout".to_owned(),
            kind: "deploy".to_owned(),
            severity: pb::Severity::Info.into(),
            message: "version 2".to_owned(),
            attributes: attributes.clone(),
        }));
        others[2].payload = Some(Payload::Metric(pb::MetricEvent {
            name: "queue.length".to_owned(),
            value: 12.5,
            unit: "1".to_owned(),
            attributes,
        }));
        let mut session = Session::open(&stack.gateway_url(), &tenant.key, "others").await?;
        session.store(&others).await?;
        let places = [
            (topics::USER_ACTIONS, "user-1"),
            (topics::SYSTEM_EVENTS, "checkout"),
            (topics::METRIC_EVENTS, "queue.length"),
        ];
        for (event, (topic, subject)) in others.iter().zip(places) {
            let records = read(stack, topic).await?;
            let record = find(&records, &event.event_id).with_context(|| format!("nothing in {topic}"))?;
            assert_eq!(record.key, topics::key(&tenant.name, subject));
            let (version, instance) = record
                .header(headers::GATEWAY)?
                .split_once('/')
                .context("no instance")?;
            ensure!(!version.is_empty() && !instance.is_empty(), "{version}/{instance}");
            let received_at: i64 = record.header(headers::RECEIVED_AT)?.parse()?;
            // Stored by a broker on the same machine, soon after.
            let before_ms = record.stored_at_ms - received_at / 1_000;
            ensure!(
                (-1_000..60_000).contains(&before_ms),
                "received {before_ms} ms before it was stored"
            );
            let value = generic(stack, record).await?;
            assert_eq!(text(&value, "event_id"), event.event_id);
            assert_eq!(text(&value, "tenant"), tenant.name);
        }
        Ok(())
    });
}

#[test]
fn the_trace_context_travels_from_the_call_to_the_decision() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let target = Target::new(&url, &tenant.key)?.with_traceparent(TRACEPARENT)?;
        let publisher = Publisher::builder(target, "traced", 1).connect().await?;
        let payment = events::payment("traced");
        publisher.publish(payment.clone()).await?.await?;
        let decision = subscription.decision(&payment).await?;
        assert_eq!(trace(&decision.traceparent), trace(TRACEPARENT));
        for topic in [topics::PAYMENTS, topics::DECISIONS] {
            let records = read(stack, topic).await?;
            let record = records
                .iter()
                .find(|record| record.is_of(&tenant.name))
                .context("no record")?;
            assert_eq!(
                trace(record.header(headers::TRACEPARENT)?),
                trace(TRACEPARENT),
                "{topic}"
            );
        }
        Ok(())
    });
}

/// A trace's id and whether it is sampled. The parent in between is the newest span's.
fn trace(traceparent: &str) -> (&str, &str) {
    let mut parts = traceparent.split('-').skip(1);
    let id = parts.next().unwrap_or_default();
    (id, parts.nth(1).unwrap_or_default())
}

#[test]
fn any_avro_consumer_reads_both_topics_through_the_registry() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let payment = events::at(events::payment("avro"), "DE", "Berlin", 52.52, 13.405);
        let mut session = Session::open(&url, &tenant.key, "avro-1").await?;
        session.store(std::slice::from_ref(&payment)).await?;
        subscription.decision(&payment).await?;

        let records = read(stack, topics::PAYMENTS).await?;
        let record = find(&records, &payment.event_id).context("no payment")?;
        let value = generic(stack, record).await?;
        assert_eq!(text(&value, "account_id"), "avro");
        assert_eq!(text(&value, "currency"), "EUR");
        assert_eq!(text(&value, "method"), "CARD_PRESENT");
        assert_eq!(text(&value, "place"), "Berlin");
        let told: BTreeMap<&str, &str> = [
            (headers::EVENT_ID, payment.event_id.as_str()),
            (headers::TENANT, &tenant.name),
            (headers::PRODUCER_ID, "avro-1"),
            (headers::PRODUCER_EPOCH, "1"),
            (headers::SEQUENCE, "1"),
            (headers::SCHEMA, "sluice.v1.PaymentEvent"),
        ]
        .into();
        for (name, expected) in told {
            assert_eq!(record.header(name)?, expected, "header {name}");
        }

        let records = read(stack, topics::DECISIONS).await?;
        // A decision carries no header but the trace, if there is one: its key tells the account and its value the rest.
        let key = format!("{}/avro", tenant.name);
        let record = records.iter().find(|record| record.key == key).context("no decision")?;
        let value = generic(stack, record).await?;
        assert_eq!(text(&value, "event_id"), payment.event_id);
        assert_eq!(text(&value, "outcome"), "APPROVE");
        Ok(())
    });
}

fn find<'a>(records: &'a [Record], event_id: &str) -> Option<&'a Record> {
    records
        .iter()
        .find(|record| record.header(headers::EVENT_ID).is_ok_and(|id| id == event_id))
}

/// Reads a record as a program does that knows nothing but the registry.
async fn generic(stack: &Stack, record: &Record) -> Result<Value> {
    let (prefix, mut datum) = record
        .payload
        .split_first_chunk::<5>()
        .context("shorter than the prefix")?;
    ensure!(prefix[0] == 0, "not the registry's wire format");
    let id = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    let url = format!("{}/schemas/ids/{id}", stack.servers().registry);
    let answer = stack::fetch(&url).await?;
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    let schema = Schema::parse_str(answer["schema"].as_str().context("no schema")?)?;
    let value = GenericDatumReader::builder(&schema).build()?.read_value(&mut datum)?;
    ensure!(datum.is_empty(), "bytes are left after the record");
    Ok(value)
}

/// A field as text; of a union, what it holds.
fn text(value: &Value, field: &str) -> String {
    let Value::Record(fields) = value else {
        return String::new();
    };
    match fields.iter().find(|(name, _)| name == field).map(|(_, value)| value) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Uuid(uuid)) => uuid.to_string(),
        Some(Value::Union(_, inner)) => match &**inner {
            Value::String(text) => text.clone(),
            other => format!("{other:?}"),
        },
        other => format!("{other:?}"),
    }
}

#[test]
fn payments_of_an_account_are_decided_in_the_order_in_which_they_were_published() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let accounts = 7;
        let payments: Vec<_> = (0..700)
            .map(|number| events::payment(&format!("ordered-{}", number % accounts)))
            .collect();
        let mut session = Session::open(&url, &tenant.key, "ordered").await?;
        // Batches that share no factor with the number of accounts begin with another account each time.
        session.publish(&payments, 13).await?;
        session.settle().await?;
        subscription.decided(&events::ids(&payments)).await?;
        for account in 0..accounts {
            let published = payments
                .iter()
                .skip(account)
                .step_by(accounts)
                .map(|event| &event.event_id);
            let name = format!("ordered-{account}");
            let decided = subscription
                .order
                .iter()
                .filter(|id| subscription.decisions[*id].account_id == name);
            assert!(published.eq(decided), "the decisions of {name} are in another order");
        }
        checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        Ok(())
    });
}

#[test]
fn a_subscription_may_begin_earlier_and_go_on_from_a_token() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let payments = events::payments("early", 40);
        let mut session = Session::open(&url, &tenant.key, "early").await?;
        session.store(&payments[..20]).await?;
        let mut from_start = Subscription::open_from(&url, &tenant.key, Start::Earliest).await?;
        from_start.decided(&events::ids(&payments[..20])).await?;
        let token = from_start.token();
        drop(from_start);
        session.store(&payments[20..]).await?;
        let mut going_on = Subscription::open_from(&url, &tenant.key, Start::Token(token)).await?;
        going_on.decided(&events::ids(&payments[20..])).await?;
        assert_eq!(going_on.decisions.len(), 20, "what was delivered before came again");
        Ok(())
    });
}
