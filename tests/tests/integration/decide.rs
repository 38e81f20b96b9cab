//! One call that publishes a payment and answers with its decision, within the caller's deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_client::{Target, Unary};
use sluice_proto::pb::event::Payload;
use sluice_proto::pb::ingest_service_client::IngestServiceClient;
use sluice_proto::{pb, topics};
use sluice_tests::checker::{self, Expected};
use sluice_tests::run::{on_own, on_shared};
use sluice_tests::session::{Session, authorized, connect};
use sluice_tests::stack::{Options, Stack};
use sluice_tests::subscription::Subscription;
use sluice_tests::{command, events, topics as log, wait};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Long enough for any decision on a busy machine.
const PATIENT: Duration = Duration::from_secs(14);

async fn decide(
    stack: &Stack,
    key: &str,
    event: &pb::Event,
    deadline: Duration,
) -> Result<Result<pb::FraudDecision, Status>> {
    let mut client = IngestServiceClient::new(connect(&stack.gateway_url()).await?);
    let mut request = authorized(
        pb::DecideRequest {
            event: Some(event.clone()),
        },
        key,
    );
    request.set_timeout(deadline);
    let answer = wait::soon("Decide answers", client.decide(request)).await?;
    Ok(match answer {
        Ok(answer) => Ok(answer.into_inner().decision.context("an answer without a decision")?),
        Err(status) => Err(status),
    })
}

#[test]
fn a_payment_is_decided_in_one_call_and_a_retry_gets_the_same_decision() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let mut subscription = Subscription::open(&stack.gateway_url(), &tenant.key).await?;
        let payment = events::with(events::payment("decide"), |payment| {
            payment.amount = Some(events::euros(12_000, 0));
        });
        let decision = decide(stack, &tenant.key, &payment, PATIENT).await??;
        assert_eq!(decision.event_id, payment.event_id);
        assert_eq!(decision.reasons[0].rule_id, "LARGE_AMOUNT");
        assert_eq!(decision, subscription.decision(&payment).await?);
        for _retry in 0..3 {
            let again = decide(stack, &tenant.key, &payment, PATIENT).await??;
            assert_eq!(again, decision);
        }
        // The same through the client, of which calls share a connection.
        let unary = Unary::connect(Target::new(&stack.gateway_url(), &tenant.key)?).await?;
        assert_eq!(unary.decide(payment.clone(), PATIENT).await?, decision);
        checker::check(stack, &Expected::all(&tenant.name, &[payment])).await?;
        Ok(())
    });
}

#[test]
fn many_calls_at_once_each_get_their_own_decision() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let unary = Unary::connect(Target::new(&stack.gateway_url(), &tenant.key)?).await?;
        let payments = events::payments("decide-many", 400);
        let calls = payments.iter().map(|payment| {
            let (unary, payment) = (unary.clone(), payment.clone());
            tokio::spawn(async move { unary.decide(payment, PATIENT).await })
        });
        for (call, payment) in calls.collect::<Vec<_>>().into_iter().zip(&payments) {
            assert_eq!(call.await??.event_id, payment.event_id);
        }
        checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        Ok(())
    });
}

#[test]
fn a_deadline_says_that_the_payment_is_stored_and_another_gateway_life_finds_the_decision() {
    let options = Options {
        processors: 1,
        ..Options::default()
    };
    on_own(options, async |stack| {
        let tenant = stack.tenant();
        stack.processor(0)?.terminate().await?;
        let payment = events::payment("pending");
        let status = decide(stack, &tenant.key, &payment, Duration::from_secs(2)).await?;
        let status = status.err().context("decided without a processor")?;
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        let details = status.get_error_details();
        let info = details
            .error_info()
            .with_context(|| format!("no ErrorInfo: {status:?}"))?;
        assert_eq!(info.reason, "DECISION_PENDING");
        for (fact, value) in [
            ("retriable", "true"),
            ("certainly_not_stored", "false"),
            ("stored", "true"),
        ] {
            assert_eq!(info.metadata[fact], value, "{fact}");
        }
        stack.start_processor(0)?;
        stack.ready().await?;
        let decision = decide(stack, &tenant.key, &payment, PATIENT).await??;
        let source = decision.source.unwrap_or_default();
        assert_eq!(
            info.metadata["offset"],
            source.offset.to_string(),
            "the retry was decided"
        );

        // A new life of the gateway has an empty ring: the decision comes from the topic.
        stack.gateway()?.kill_9()?;
        stack.start_gateway()?;
        stack.ready().await?;
        let again = decide(stack, &tenant.key, &payment, PATIENT).await??;
        assert_eq!(again, decision);
        checker::check(stack, &Expected::all(&tenant.name, &[payment])).await?;
        Ok(())
    });
}

#[test]
fn what_is_no_payment_is_refused_and_not_stored() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let mut event = events::payment("x");
        event.payload = Some(Payload::Metric(pb::MetricEvent {
            name: "queue.length".to_owned(),
            value: 1.0,
            ..pb::MetricEvent::default()
        }));
        let status = decide(stack, &tenant.key, &event, PATIENT).await?;
        let status = status.err().context("a metric was decided")?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let details = status.get_error_details();
        let field = &details.bad_request().context("no field")?.field_violations[0].field;
        assert_eq!(field, "event.payload");
        let stored = log::read(stack, topics::METRIC_EVENTS).await?;
        ensure!(!stored.iter().any(|record| record.is_of(&tenant.name)), "it was stored");
        Ok(())
    });
}

#[test]
fn a_tenant_never_gets_the_decision_of_another_by_the_same_event_id() {
    on_shared(async |stack| {
        let (one, other) = (stack.tenant(), stack.tenant());
        let payment = events::payment("shared-id");
        let (first, second) = tokio::join!(
            decide(stack, &one.key, &payment, PATIENT),
            decide(stack, &other.key, &payment, PATIENT)
        );
        let (first, second) = (first??, second??);
        let offsets: BTreeSet<_> = [first.source, second.source]
            .into_iter()
            .flatten()
            .map(|source| (source.partition, source.offset))
            .collect();
        assert_eq!(offsets.len(), 2, "one decision answered both tenants");
        // What was decided over a session is found as well.
        let mut session = Session::open(&stack.gateway_url(), &one.key, "shared-id").await?;
        session.store(std::slice::from_ref(&payment)).await?;
        assert_eq!(decide(stack, &one.key, &payment, PATIENT).await??, first);
        Ok(())
    });
}

#[test]
fn an_event_id_of_another_payment_is_refused_and_never_answered_with_its_decision() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let payment = events::payment("used-id");
        let decision = decide(stack, &tenant.key, &payment, PATIENT).await??;
        let more = events::with(payment.clone(), |payment| payment.amount = Some(events::euros(77, 0)));
        let later = events::ago(payment.clone(), Duration::ZERO);
        for other in [more, later] {
            is_used(decide(stack, &tenant.key, &other, PATIENT).await?)?;
        }
        assert_eq!(decide(stack, &tenant.key, &payment, PATIENT).await??, decision);
        checker::check(stack, &Expected::all(&tenant.name, &[payment])).await?;
        Ok(())
    });
}

#[test]
fn one_event_id_of_two_accounts_has_two_decisions_or_is_refused() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let mut accounts: BTreeMap<i32, Vec<String>> = BTreeMap::new();
        for number in 0..16 {
            let account = format!("two-{number}");
            let decision = decide(stack, &tenant.key, &events::payment(&account), PATIENT).await??;
            let partition = decision.source.context("no source")?.partition;
            accounts.entry(partition).or_default().push(account);
        }
        let of = |payment: &pb::Event, account: &str| {
            events::with(payment.clone(), |payment| payment.account_id = account.to_owned())
        };
        let partitions: Vec<_> = accounts.values().collect();
        let [one, other, ..] = &partitions[..] else {
            anyhow::bail!("all accounts are in one partition");
        };
        // In two partitions nothing knows of both, and each is decided.
        let first = events::payment(&one[0]);
        let second = of(&first, &other[0]);
        let (first, second) = tokio::join!(
            decide(stack, &tenant.key, &first, PATIENT),
            decide(stack, &tenant.key, &second, PATIENT)
        );
        let (first, second) = (first??, second??);
        assert_eq!((&first.account_id, &second.account_id), (&one[0], &other[0]));
        // In one, the second is a dead letter.
        let near = accounts.values().find(|accounts| accounts.len() > 1);
        let near = near.context("each account is in a partition of its own")?;
        let first = events::payment(&near[0]);
        decide(stack, &tenant.key, &first, PATIENT).await??;
        is_used(decide(stack, &tenant.key, &of(&first, &near[1]), PATIENT).await?)
    });
}

/// The refusal of an event_id that was used for another payment.
fn is_used(answer: Result<pb::FraudDecision, Status>) -> Result<()> {
    let status = answer.err().context("it was decided")?;
    ensure!(status.code() == Code::AlreadyExists, "{status:?}");
    let details = status.get_error_details();
    let field = &details.bad_request().context("no field")?.field_violations[0].field;
    let info = details.error_info().context("no ErrorInfo")?;
    ensure!(
        field == "event.event_id" && info.metadata["retriable"] == "false",
        "{status:?}"
    );
    Ok(())
}

#[test]
fn grpcurl_decides() {
    on_shared(async |stack| {
        let Some(program) = command::grpcurl().await? else {
            command::skipped("grpcurl", "Go is missing, which installs it");
            return Ok(());
        };
        let tenant = stack.tenant();
        let now = prost_types::Timestamp::from(std::time::SystemTime::now()).to_string();
        let request = serde_json::json!({"event": {
            "event_id": uuid::Uuid::now_v7().to_string(),
            "occurred_at": now,
            "payment": {
                "account_id": "grpcurl-decide",
                "merchant_id": "merchant-1",
                "amount": {"currency_code": "EUR", "units": 12_000},
            },
        }});
        let mut answers = Vec::new();
        for _call in 0..2 {
            let mut call = Command::new(&program);
            call.args(["-plaintext", "-max-time", "14", "-d", &request.to_string()]);
            call.args(["-H", &format!("authorization: Bearer {}", tenant.key)]);
            call.arg(stack.gateway_address().to_string());
            call.arg("sluice.v1.IngestService/Decide");
            let answer: serde_json::Value = serde_json::from_str(&command::succeed(call).await?)?;
            answers.push(answer);
        }
        assert_eq!(
            answers[0]["decision"]["reasons"][0]["ruleId"], "LARGE_AMOUNT",
            "{answers:?}"
        );
        assert_eq!(answers[0], answers[1]);
        Ok(())
    });
}
