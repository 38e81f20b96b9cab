//! Clients that do not take what they asked for: they keep nobody else waiting, and miss nothing when they go on.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use sluice_proto::pb::audit_service_client::AuditServiceClient;
use sluice_proto::pb::subscribe_open::Start;
use sluice_proto::pb::subscribe_request::Message as Ask;
use sluice_proto::pb::{self, SubscribeOpen};
use sluice_tests::credentials::hash;
use sluice_tests::decisions::{decision, id, write};
use sluice_tests::run::{on_own, on_prepared};
use sluice_tests::session::{authorized, connect};
use sluice_tests::stack::{self, Options, Stack};
use sluice_tests::subscribe::Stream;
use sluice_tests::topics::{Record, create, write_again};
use sluice_tests::wait;
use tonic::{Code, Status, Streaming};

/// More than a reader hands over before it waits for its subscription.
const DECISIONS: u128 = 4_000;
/// Calls that may read the audit log at a time.
const AUDIT_READERS: usize = 4;
/// Together more than what a connection holds of a stream that is not read.
const AUDIT_LINES: usize = 1_000;
const AUDIT_LINE_BYTES: usize = 8_192;

const AUDITOR: &str = "the-auditor-of-acme-in-tests";

fn only_the_gateway() -> Options {
    Options {
        processors: 0,
        partitions: 1,
        ..Options::default()
    }
}

#[test]
fn a_subscription_without_credit_leaves_its_reader_to_others_and_goes_on_without_a_gap() {
    on_own(only_the_gateway(), async |stack| {
        let tenant = stack.tenant();
        let all: Vec<_> = (0..DECISIONS)
            .map(|number| decision(&tenant, number, number as i64))
            .collect();
        write(stack, &tenant, &all).await?;
        // A gateway that was there has the decisions in its ring; one that starts reads them from the topic.
        stack.start_gateway()?;
        stack.ready().await?;
        let open = SubscribeOpen {
            start: Some(Start::Earliest(pb::Earliest {})),
            credit: 1,
            ..SubscribeOpen::default()
        };
        let mut stream = Stream::open(&stack.gateway_url(), &tenant.key, open).await?;
        assert_eq!(stream.decisions(1).await?, [id(0)]);
        let token = stream.token.clone();
        // It tells where it is, although more waits for credit.
        stream.progress().await?;
        assert_eq!(stream.token, token);
        wait::until("the reader has ended", async || {
            let page = stack::page(stack.gateway_admin(), "/metrics").await?;
            Ok(page.contains("\nsluice_gateway_catch_ups 0\n").then_some(()))
        })
        .await?;
        let decisions = DECISIONS as u32 - 1;
        stream.send(Ask::Credit(pb::SubscribeCredit { decisions })).await?;
        let rest: Vec<_> = (1..DECISIONS).map(id).collect();
        assert_eq!(stream.decisions(rest.len()).await?, rest);
        Ok(())
    });
}

/// Writes lines of the audit log for a tenant.
async fn write_lines(stack: &Stack, tenant: &str) -> Result<()> {
    let line = serde_json::json!({
        "time": "2026-01-01T00:00:00Z", "event": "refused", "call": "/sluice.v1.IngestService/Publish",
        "gateway": "another", "tenant": tenant, "reason": "x".repeat(AUDIT_LINE_BYTES),
    });
    let record = Record {
        partition: 0,
        offset: 0,
        key: tenant.to_owned(),
        payload: line.to_string().into_bytes(),
        stored_at_ms: 0,
        headers: Arc::default(),
    };
    write_again(stack, "audit", vec![record; AUDIT_LINES]).await
}

async fn audit(url: &str) -> Result<Result<Streaming<pb::ReadAuditResponse>, Status>> {
    let mut client = AuditServiceClient::new(connect(url).await?);
    let request = authorized(pb::ReadAuditRequest::default(), AUDITOR);
    Ok(client.read_audit(request).await.map(tonic::Response::into_inner))
}

/// Reads to the end, and says how many entries came before it and how it ended.
async fn read(mut stream: Streaming<pb::ReadAuditResponse>) -> Result<(usize, Result<(), Status>)> {
    let mut count = 0;
    loop {
        match wait::soon("the audit log is read", stream.message()).await? {
            Ok(Some(_)) => count += 1,
            Ok(None) => return Ok((count, Ok(()))),
            Err(status) => return Ok((count, Err(status))),
        }
    }
}

#[test]
fn auditors_who_do_not_read_make_room_for_others_and_are_told() {
    on_prepared(only_the_gateway(), async |stack| {
        create(stack, "audit").await?;
        let keys = stack.directory().join("principals.toml");
        let key = hash(AUDITOR);
        let text = format!("[[key]]\nsha256 = \"{key}\"\ntenant = \"acme\"\nroles = [\"audit\"]\n");
        std::fs::write(&keys, text)?;
        stack.set_env("SLUICE_API_KEYS", &keys.display().to_string());
        stack.set_env("SLUICE_AUDIT_TOPIC", "audit");
        stack.start_gateway()?;
        stack.ready().await?;
        write_lines(stack, "acme").await?;
        let url = stack.gateway_url();
        let mut stalled = Vec::new();
        for _reader in 0..AUDIT_READERS {
            stalled.push(audit(&url).await??);
        }
        let refused = audit(&url).await?.err().context("there is more room")?;
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        let stream = wait::until("there is room again", async || match audit(&url).await? {
            Ok(stream) => Ok(Some(stream)),
            Err(status) if status.code() == Code::ResourceExhausted => Ok(None),
            Err(status) => bail!(status),
        })
        .await?;
        let (count, ended) = read(stream).await?;
        ended?;
        ensure!(count >= AUDIT_LINES, "{count} entries");
        for stream in stalled {
            let (count, ended) = read(stream).await?;
            let status = ended.err().context("it ended well")?;
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            ensure!((1..AUDIT_LINES).contains(&count), "{count} entries");
        }
        Ok(())
    });
}
