//! Where events other than payments go: a routing table, types that only the table and the registry know, and callers who
//! may publish to some topics only.

use anyhow::{Context, Result, ensure};
use apache_avro::Schema;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use bytes::Bytes;
use sluice_proto::pb::event::Payload;
use sluice_proto::{headers, pb, topics};
use sluice_tests::credentials::hash;
use sluice_tests::run::on_prepared;
use sluice_tests::session::{Session, authorized, publish_one};
use sluice_tests::stack::{Options, Stack};
use sluice_tests::topics::{Record, create, read};
use sluice_tests::{events, wait};
use tonic::Code;
use tonic_types::StatusExt;

const TENANT: &str = "acme";
/// A key whose entry has no list of topics, and two whose entries have one.
const OPEN: &str = "a-key-of-acme-in-tests";
const SPARE: &str = "another-key-of-acme-in-tests";
const PAYMENTS: &str = "a-third-key-of-acme-in-tests";

const SCHEMA: &str = r#"{"type": "record", "name": "Chargeback", "namespace": "acme.v1", "fields": [
    {"name": "reason", "type": "string"}, {"name": "cents", "type": "long"}]}"#;
const NEWER: &str = r#"{"type": "record", "name": "Chargeback", "namespace": "acme.v1", "fields": [
    {"name": "reason", "type": "string"}, {"name": "cents", "type": "long"},
    {"name": "won", "type": ["null", "boolean"], "default": null}]}"#;

/// An event like a payment around another payload.
fn event(payload: Payload) -> pb::Event {
    pb::Event {
        payload: Some(payload),
        ..events::payment("routes")
    }
}

fn metric(topic: &str) -> pb::Event {
    let mut metric = event(Payload::Metric(pb::MetricEvent {
        name: "queue.length".to_owned(),
        value: 1.0,
        ..pb::MetricEvent::default()
    }));
    metric.topic = topic.to_owned();
    metric
}

fn custom(type_name: &str, record: Vec<u8>) -> pb::Event {
    event(Payload::Custom(pb::CustomEvent {
        r#type: type_name.to_owned(),
        subject: "order-17".to_owned(),
        record: record.into(),
    }))
}

/// A chargeback as a serializer of the registry writes it.
fn chargeback(schema: &str, id: u32, reason: &str) -> Result<Vec<u8>> {
    let mut fields = vec![
        ("reason".to_owned(), Value::String(reason.to_owned())),
        ("cents".to_owned(), Value::Long(1_234)),
    ];
    if schema == NEWER {
        fields.push(("won".to_owned(), Value::Union(1, Box::new(Value::Boolean(true)))));
    }
    let schema = Schema::parse_str(schema)?;
    let datum = GenericDatumWriter::builder(&schema)
        .build()?
        .write_value_to_vec(Value::Record(fields))?;
    Ok([&[0][..], &id.to_be_bytes(), &datum].concat())
}

/// Registers a schema, and returns its id.
async fn register(stack: &Stack, subject: &str, schema: &str) -> Result<u32> {
    let url = format!("{}/subjects/{subject}/versions", stack.servers().registry);
    let body = serde_json::json!({ "schema": schema }).to_string();
    let send = move || -> Result<String> {
        let agent: ureq::Agent = ureq::Agent::config_builder().proxy(None).build().into();
        let mut answer = agent
            .post(&url)
            .content_type("application/vnd.schemaregistry.v1+json")
            .send(body)?;
        Ok(answer.body_mut().read_to_string()?)
    };
    let answer: serde_json::Value = serde_json::from_str(&tokio::task::spawn_blocking(send).await??)?;
    Ok(u32::try_from(answer["id"].as_u64().context("no id")?)?)
}

/// Starts the gateway with a routing table, principals and a custom type; returns the id of its schema.
async fn start(stack: &mut Stack) -> Result<u32> {
    for topic in ["numbers", "chargebacks", "spare"] {
        create(stack, topic).await?;
    }
    let id = register(stack, &topics::value_subject(&stack.topic("chargebacks")), SCHEMA).await?;
    let files = [
        (
            "SLUICE_ROUTES",
            "topics = [\"spare\"]\n[[route]]\ntype = \"metric\"\ntopic = \"numbers\"\n\
             [[route]]\ntype = \"chargeback\"\ntopic = \"chargebacks\"\n"
                .to_owned(),
        ),
        (
            "SLUICE_API_KEYS",
            format!(
                "[[key]]\nsha256 = \"{}\"\ntenant = \"{TENANT}\"\nname = \"open\"\n\
                 [[key]]\nsha256 = \"{}\"\ntenant = \"{TENANT}\"\nname = \"spare\"\ntopics = [\"spare\", \"numbers\"]\n\
                 [[key]]\nsha256 = \"{}\"\ntenant = \"{TENANT}\"\nname = \"payments\"\ntopics = [\"payments\"]\n",
                hash(OPEN),
                hash(SPARE),
                hash(PAYMENTS)
            ),
        ),
        ("SLUICE_PRIVACY", "pan = \"mask\"\n".to_owned()),
    ];
    for (variable, text) in files {
        let path = stack.directory().join(variable);
        std::fs::write(&path, text)?;
        stack.set_env(variable, &path.display().to_string());
    }
    stack.set_env("SLUICE_INSTANCE", "gateway-in-tests");
    stack.start_gateway()?;
    stack.ready().await?;
    Ok(id)
}

/// The one record of an event.
async fn stored(stack: &Stack, topic: &str, event: &pb::Event) -> Result<Record> {
    let records = read(stack, topic).await?;
    let is_its = |record: &&Record| record.header(headers::EVENT_ID).is_ok_and(|id| id == event.event_id);
    let found: Vec<_> = records.iter().filter(is_its).collect();
    ensure!(
        found.len() == 1,
        "{} is {} times in {topic}",
        event.event_id,
        found.len()
    );
    Ok(found[0].clone())
}

/// Publishes one event, which must be refused; returns the gRPC code and the field.
async fn refused(stack: &Stack, key: &str, event: pb::Event) -> Result<(Code, String)> {
    let answer = publish_one(&stack.gateway_url(), key, event).await?;
    let status = answer.err().context("it was stored")?;
    let details = status.get_error_details();
    let field = details
        .bad_request()
        .and_then(|request| request.field_violations.first())
        .map(|violation| violation.field.clone());
    Ok((status.code(), field.unwrap_or_default()))
}

fn only_the_gateway() -> Options {
    Options {
        processors: 0,
        ..Options::default()
    }
}

#[test]
fn a_table_leads_types_to_topics_and_callers_to_those_of_their_list() {
    on_prepared(only_the_gateway(), async |stack| {
        start(stack).await?;
        let url = stack.gateway_url();
        let led = metric("");
        publish_one(&url, OPEN, led.clone()).await??;
        stored(stack, "numbers", &led).await?;
        let named = metric("spare");
        publish_one(&url, SPARE, named.clone()).await??;
        let record = stored(stack, "spare", &named).await?;
        assert_eq!(record.header(headers::SCHEMA)?, "sluice.v1.MetricEvent");
        assert_eq!(
            record.header(headers::GATEWAY)?.split_once('/').map(|(_, name)| name),
            Some("gateway-in-tests")
        );

        let mut payment = events::payment("routes");
        publish_one(&url, PAYMENTS, payment.clone()).await??;
        let denied = (Code::PermissionDenied, "topic".to_owned());
        let invalid = (Code::InvalidArgument, "topic".to_owned());
        assert_eq!(refused(stack, SPARE, payment.clone()).await?, denied);
        assert_eq!(refused(stack, PAYMENTS, metric("")).await?, denied);
        assert_eq!(refused(stack, PAYMENTS, metric("numbers")).await?, denied);
        assert_eq!(refused(stack, OPEN, metric("spare")).await?, denied);
        assert_eq!(refused(stack, PAYMENTS, metric("payments")).await?, invalid);
        assert_eq!(refused(stack, SPARE, metric("decisions")).await?, invalid);
        payment.topic = "spare".to_owned();
        assert_eq!(refused(stack, SPARE, payment).await?, invalid);

        // On a session one refusal is one error in an ack.
        let mut session = Session::open(&url, SPARE, "routes").await?;
        session
            .publish(&[metric("spare"), events::payment("routes"), metric("")], 3)
            .await?;
        session.settle().await?;
        let error = session.fate(2).await?.error.context("the payment was stored")?;
        assert_eq!(
            (error.code(), &*error.field),
            (pb::ErrorCode::PermissionDenied, "topic")
        );
        for sequence in [1, 3] {
            assert_eq!(session.fate(sequence).await?.status, pb::AckStatus::Stored);
        }
        session.close().await
    });
}

#[test]
fn a_type_of_the_table_is_checked_against_the_registry_and_stored_as_it_came() {
    on_prepared(only_the_gateway(), async |stack| {
        let id = start(stack).await?;
        let url = stack.gateway_url();
        let good = custom("chargeback", chargeback(SCHEMA, id, "not delivered")?);
        publish_one(&url, OPEN, good.clone()).await??;
        let record = stored(stack, "chargebacks", &good).await?;
        let Some(Payload::Custom(sent)) = &good.payload else {
            anyhow::bail!("no custom event");
        };
        assert_eq!(record.payload, sent.record);
        assert_eq!(record.key, topics::key(TENANT, "order-17"));
        assert_eq!(record.header(headers::SCHEMA)?, "acme.v1.Chargeback");
        assert_eq!(record.header(headers::TENANT)?, TENANT);
        let occurred_at: i64 = record.header(headers::OCCURRED_AT)?.parse()?;
        assert_eq!(Some(occurred_at / 1_000_000), good.occurred_at.map(|time| time.seconds));

        let card = custom("chargeback", chargeback(SCHEMA, id, "card 4111 1111 1111 1111")?);
        publish_one(&url, OPEN, card.clone()).await??;
        let masked = stored(stack, "chargebacks", &card).await?;
        assert_eq!(masked.payload, chargeback(SCHEMA, id, "card **** **** **** ****")?);

        let invalid = |field: &str| (Code::InvalidArgument, field.to_owned());
        let mut short = chargeback(SCHEMA, id, "x")?;
        short.pop();
        let of = |record| custom("chargeback", record);
        assert_eq!(refused(stack, OPEN, of(short)).await?, invalid("custom.record.cents"));
        assert_eq!(
            refused(stack, OPEN, of(chargeback(SCHEMA, 1 << 30, "x")?)).await?,
            invalid("custom.record")
        );
        assert_eq!(refused(stack, OPEN, of(Vec::new())).await?, invalid("custom.record"));
        let unknown = custom("refund", chargeback(SCHEMA, id, "x")?);
        assert_eq!(refused(stack, OPEN, unknown).await?, invalid("custom.type"));

        // A newer version of the schema needs nothing but to be registered.
        let newer = register(stack, &topics::value_subject(&stack.topic("chargebacks")), NEWER).await?;
        wait::until("the gateway learns of the newer schema", async || {
            let event = of(chargeback(NEWER, newer, "again")?);
            Ok(publish_one(&url, OPEN, event).await?.ok())
        })
        .await?;
        publish_one(&url, OPEN, of(chargeback(SCHEMA, id, "the older one")?)).await??;
        Ok(())
    });
}

#[test]
fn a_session_of_such_events_is_resumed_at_another_gateway() {
    on_prepared(only_the_gateway(), async |stack| {
        let id = start(stack).await?;
        let mut second = stack.another_gateway("gateway-b")?;
        second.ready().await?;
        let open = |resume_token: &Bytes| pb::PublishOpen {
            producer_id: "routes".to_owned(),
            epoch: 1,
            resume_token: resume_token.clone(),
            ..pb::PublishOpen::default()
        };
        let metadata = || authorized((), SPARE);
        let mut session = Session::open_with(metadata(), &stack.gateway_url(), open(&Bytes::new())).await?;
        // The token from before: nothing that follows is known to it.
        let token = session.token.clone();
        session.store(&[metric("spare"), metric(""), metric("spare")]).await?;
        stack.gateway()?.kill_9()?;
        let again = Session::open_with(metadata(), &second.url(), open(&token)).await?;
        assert_eq!((again.ready.next_sequence, again.ready.in_doubt), (4, false));

        let metadata = || authorized((), OPEN);
        let mut session = Session::open_with(
            metadata(),
            &second.url(),
            pb::PublishOpen {
                producer_id: "chargebacks".to_owned(),
                ..open(&Bytes::new())
            },
        )
        .await?;
        session
            .store(&[custom("chargeback", chargeback(SCHEMA, id, "x")?)])
            .await?;
        session.close().await
    });
}

#[test]
fn a_table_that_cannot_work_stops_the_start() {
    on_prepared(only_the_gateway(), async |stack| {
        let path = stack.directory().join("routes.toml");
        stack.set_env("SLUICE_ROUTES", &path.display().to_string());
        for (text, said) in [
            (
                "[[route]]\ntype = \"payment\"\ntopic = \"elsewhere\"\n",
                "payments are decided",
            ),
            ("topics = [\"decisions\"]\n", "decisions is not for such events"),
        ] {
            std::fs::write(&path, text)?;
            stack.start_gateway()?;
            wait::until("the gateway ends", async || Ok(stack.must_run().err())).await?;
            let log = stack.log_tails();
            ensure!(log.contains(said), "{log}");
        }
        Ok(())
    });
}
