//! The audit log: who opened what, what was refused and why, in a file and in a topic, for those who may read it.

use anyhow::{Context, Result, ensure};
use sluice_proto::pb;
use sluice_proto::pb::audit_service_client::AuditServiceClient;
use sluice_tests::credentials::hash;
use sluice_tests::run::on_prepared;
use sluice_tests::session::{Session, authorized, connect, publish_one};
use sluice_tests::stack::{Options, Stack};
use sluice_tests::topics::create;
use sluice_tests::{events, wait};
use tonic::{Code, Status};

const AUDITOR: &str = "the-auditor-of-acme-in-tests";
const PUBLISHER: &str = "a-publisher-of-acme-in-tests";
const OTHER: &str = "somebody-else-in-tests";

fn only_the_gateway() -> Options {
    Options {
        processors: 0,
        ..Options::default()
    }
}

/// What an auditor reads.
async fn entries(url: &str, key: &str) -> Result<Result<Vec<pb::AuditEntry>, Status>> {
    let mut client = AuditServiceClient::new(connect(url).await?);
    let mut stream = match client
        .read_audit(authorized(pb::ReadAuditRequest::default(), key))
        .await
    {
        Ok(stream) => stream.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    let mut entries = Vec::new();
    while let Some(response) = wait::soon("the audit log is read", stream.message()).await?? {
        entries.push(response.entry.context("no entry")?);
    }
    Ok(Ok(entries))
}

async fn start(stack: &mut Stack) -> Result<()> {
    create(stack, "audit").await?;
    let keys = stack.directory().join("principals.toml");
    let entry = |key: &str, tenant: &str, name: &str, roles: &str| {
        format!(
            "[[key]]\nsha256 = \"{}\"\ntenant = \"{tenant}\"\nname = \"{name}\"\nroles = [{roles}]\n",
            hash(key)
        )
    };
    let text = entry(AUDITOR, "acme", "auditor", "\"audit\"")
        + &entry(PUBLISHER, "acme", "checkout", "\"publish\"")
        + "topics = [\"payments\"]\n"
        + &entry(OTHER, "other", "auditor", "\"audit\", \"publish\"");
    std::fs::write(&keys, text)?;
    stack.set_env("SLUICE_API_KEYS", &keys.display().to_string());
    stack.set_env("SLUICE_AUDIT_TOPIC", "audit");
    stack.set_env("SLUICE_INSTANCE", "gateway-a");
    stack.start_gateway()?;
    stack.ready().await
}

#[test]
fn an_auditor_reads_what_the_tenant_did_at_every_gateway_and_nobody_else_does() {
    on_prepared(only_the_gateway(), async |stack| {
        start(stack).await?;
        stack.set_env("SLUICE_INSTANCE", "gateway-b");
        let mut second = stack.another_gateway("gateway-b")?;
        second.ready().await?;
        let (first, second) = (stack.gateway_url(), second.url());

        Session::open(&first, PUBLISHER, "audited").await?.close().await?;
        // A token that nobody made, an event for a topic that is not on the list, a call without the role.
        let forged = pb::PublishOpen {
            producer_id: "audited".to_owned(),
            epoch: 2,
            resume_token: vec![1; 40].into(),
            ..pb::PublishOpen::default()
        };
        let refused = Session::open_with(authorized((), PUBLISHER), &second, forged).await;
        ensure!(refused.is_err(), "a forged token was accepted");
        let mut session = Session::open(&second, PUBLISHER, "audited-too").await?;
        let mut elsewhere = events::payment("audited");
        elsewhere.payload = Some(pb::event::Payload::Metric(pb::MetricEvent {
            name: "m".to_owned(),
            value: 1.0,
            ..pb::MetricEvent::default()
        }));
        session.publish(&[elsewhere.clone(), elsewhere], 1).await?;
        session.settle().await?;
        session.close().await?;
        let denied = entries(&first, PUBLISHER).await?;
        assert_eq!(
            denied.err().context("a publisher reads the audit log")?.code(),
            Code::PermissionDenied
        );
        publish_one(&first, OTHER, events::payment("other")).await??;
        Session::open(&first, OTHER, "other").await?.close().await?;

        let expected = [
            ("gateway-a", "opened", "Publish", "checkout", ""),
            ("gateway-b", "opened", "Publish", "checkout", ""),
            ("gateway-b", "ended", "Publish", "checkout", "InvalidArgument"),
            ("gateway-b", "opened", "Publish", "checkout", ""),
            ("gateway-b", "refused", "Publish", "checkout", "PermissionDenied"),
            ("gateway-a", "refused", "ReadAudit", "checkout", "PermissionDenied"),
        ];
        let all = wait::until("everything is in the topic", async || {
            let mut all = entries(&second, AUDITOR).await??;
            // The readings themselves are noted too.
            all.retain(|entry| entry.principal != "auditor");
            Ok((all.len() >= expected.len()).then_some(all))
        })
        .await?;
        let mut shown: Vec<_> = all
            .iter()
            .map(|entry| {
                let call = entry.call.rsplit('/').next().unwrap_or_default();
                (&*entry.gateway, &*entry.event, call, &*entry.principal, &*entry.code)
            })
            .collect();
        let mut expected = expected.to_vec();
        // Each gateway's lines are in order; between gateways there is none.
        shown.sort_by_key(|entry| entry.0);
        expected.sort_by_key(|entry| entry.0);
        assert_eq!(shown, expected);
        ensure!(
            all.iter()
                .all(|entry| entry.time.is_some() && (entry.code.is_empty() || !entry.reason.is_empty())),
            "{all:?}"
        );
        ensure!(
            all.iter()
                .any(|entry| entry.event == "refused" && entry.reason.starts_with("topic")),
            "{all:?}"
        );
        let others = entries(&first, OTHER).await??;
        ensure!(
            others.iter().all(|entry| entry.principal == "auditor") && !others.is_empty(),
            "{others:?}"
        );
        // From now on there is nothing yet.
        let mut client = AuditServiceClient::new(connect(&first).await?);
        let later = pb::ReadAuditRequest {
            since: Some((std::time::SystemTime::now() + std::time::Duration::from_secs(60)).into()),
        };
        let mut stream = client.read_audit(authorized(later, AUDITOR)).await?.into_inner();
        ensure!(stream.message().await?.is_none(), "an entry of the future");
        Ok(())
    });
}

#[test]
fn without_a_topic_there_is_nothing_to_read() {
    on_prepared(only_the_gateway(), async |stack| {
        let keys = stack.directory().join("principals.toml");
        let text = format!(
            "[[key]]\nsha256 = \"{}\"\ntenant = \"acme\"\nroles = [\"audit\"]\n",
            hash(AUDITOR)
        );
        std::fs::write(&keys, text)?;
        stack.set_env("SLUICE_API_KEYS", &keys.display().to_string());
        stack.start_gateway()?;
        stack.ready().await?;
        let answer = entries(&stack.gateway_url(), AUDITOR).await?;
        assert_eq!(answer.err().context("something was read")?.code(), Code::Unimplemented);
        Ok(())
    });
}

#[test]
fn the_audit_log_says_who_opened_what_and_what_was_refused() {
    let options = Options {
        processors: 0,
        ..Options::default()
    };
    on_prepared(options, async |stack| {
        let log = stack.directory().join("audit.jsonl");
        stack.set_env("SLUICE_AUDIT_LOG", &log.display().to_string());
        stack.start_gateway()?;
        stack.ready().await?;
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let session = Session::open(&url, &tenant.key, "audited").await?;
        let refused = publish_one(&url, "no-such-key-at-all", events::payment("refused")).await?;
        ensure!(refused.is_err());
        publish_one(&url, &tenant.key, events::payment("unary")).await??;
        let lines = wait::until("both lines are written", async || {
            let text = std::fs::read_to_string(&log)?;
            let lines: Result<Vec<serde_json::Value>, _> = text.lines().map(serde_json::from_str).collect();
            Ok(lines.ok().filter(|lines| lines.len() == 2))
        })
        .await?;
        session.close().await?;
        let [opened, refused] = &lines[..] else {
            anyhow::bail!("{lines:?}");
        };
        ensure!(
            opened["event"] == "opened" && opened["tenant"] == tenant.name.as_str(),
            "{opened}"
        );
        ensure!(
            opened["call"] == "/sluice.v1.IngestService/Publish" && opened["principal"].is_string(),
            "{opened}"
        );
        ensure!(
            refused["event"] == "refused" && refused["code"] == "Unauthenticated",
            "{refused}"
        );
        ensure!(refused["peer"].is_string() && refused["time"].is_string(), "{refused}");
        ensure!(
            !lines.iter().any(|line| line.to_string().contains("no-such-key")),
            "{lines:?}"
        );
        Ok(())
    });
}
