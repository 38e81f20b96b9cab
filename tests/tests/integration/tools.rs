//! The tools that operators have: grpcurl by reflection, kcat on the topics.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sluice_proto::{headers, topics};
use sluice_tests::run::on_shared;
use sluice_tests::session::Session;
use sluice_tests::stack::Stack;
use sluice_tests::subscription::Subscription;
use sluice_tests::{command, events};

/// Calls the gateway with nothing but its address and a key.
async fn grpcurl(program: &Path, stack: &Stack, key: &str, before: &[&str], after: &[&str]) -> Result<String> {
    let mut call = Command::new(program);
    call.arg("-plaintext")
        .args(["-H", &format!("authorization: Bearer {key}")])
        .args(before);
    call.arg(stack.gateway_address().to_string()).args(after);
    command::succeed(call).await
}

#[test]
fn grpcurl_lists_and_calls_the_services_by_reflection() {
    on_shared(async |stack| {
        let Some(program) = command::grpcurl().await? else {
            command::skipped("grpcurl", "Go is missing, which installs it");
            return Ok(());
        };
        let tenant = stack.tenant();
        let services = grpcurl(&program, stack, &tenant.key, &[], &["list"]).await?;
        let expected = [
            "grpc.health.v1.Health",
            "sluice.v1.DecisionService",
            "sluice.v1.IngestService",
            "sluice.v1.SchemaService",
        ];
        for service in expected {
            ensure!(
                services.lines().any(|line| line == service),
                "{service} is not listed:\n{services}"
            );
        }
        let described = grpcurl(
            &program,
            stack,
            &tenant.key,
            &[],
            &["describe", "sluice.v1.PaymentEvent"],
        )
        .await?;
        ensure!(described.contains("google.type.Money amount"), "{described}");

        let mut subscription = Subscription::open(&stack.gateway_url(), &tenant.key).await?;
        let event_id = uuid::Uuid::now_v7().to_string();
        let request = serde_json::json!({"event": {
            "event_id": event_id,
            "occurred_at": now()?,
            "payment": {
                "account_id": "grpcurl",
                "merchant_id": "merchant-1",
                "amount": {"currency_code": "EUR", "units": 12_000},
            },
        }});
        let data = request.to_string();
        let method = "sluice.v1.IngestService/PublishOne";
        let answer = grpcurl(&program, stack, &tenant.key, &["-d", &data], &[method]).await?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        ensure!(answer["position"].is_object(), "{answer}");
        subscription.decided(std::slice::from_ref(&event_id)).await?;
        assert_eq!(subscription.decisions[&event_id].reasons[0].rule_id, "LARGE_AMOUNT");

        let health = grpcurl(&program, stack, &tenant.key, &[], &["grpc.health.v1.Health/Check"]).await?;
        ensure!(health.contains("SERVING"), "{health}");
        Ok(())
    });
}

/// The time in the form that JSON has for it.
fn now() -> Result<String> {
    let now = prost_types::Timestamp::from(std::time::SystemTime::now());
    Ok(now.to_string())
}

#[test]
fn kcat_shows_the_headers() {
    on_shared(async |stack| {
        if !command::installed("kcat") {
            command::skipped("kcat", "it is not installed");
            return Ok(());
        }
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let payment = events::payment("kcat");
        Session::open(&url, &tenant.key, "kcat-1")
            .await?
            .store(std::slice::from_ref(&payment))
            .await?;
        subscription.decision(&payment).await?;
        let key = topics::key(&tenant.name, "kcat");
        let id = format!("{}={}", headers::EVENT_ID, payment.event_id);
        let own = format!("{}={}", headers::TENANT, tenant.name);
        let from = format!("{}=kcat-1", headers::PRODUCER_ID);
        for (topic, parts) in [
            (topics::PAYMENTS, vec![&id, &own, &from]),
            // A decision carries no header but its trace.
            (topics::DECISIONS, vec![]),
        ] {
            let mut show = Command::new("kcat");
            show.args([
                "-C",
                "-q",
                "-e",
                "-o",
                "beginning",
                "-X",
                "isolation.level=read_committed",
            ]);
            show.args([
                "-b",
                &stack.servers().kafka,
                "-t",
                &stack.topic(topic),
                "-f",
                "%k %h\\n",
            ]);
            let shown = command::succeed(show).await?;
            let line = shown
                .lines()
                .find(|line| line.starts_with(&key))
                .with_context(|| format!("{topic}: no {key}:\n{shown}"))?;
            ensure!(parts.iter().all(|part| line.contains(part.as_str())), "{topic}: {line}");
        }
        Ok(())
    });
}
