//! Personal data does not reach Kafka as it was sent, and the audit log says who did what.

use anyhow::{Context, Result, ensure};
use sluice_proto::pb::event::Payload;
use sluice_proto::{pb, topics};
use sluice_tests::run::on_prepared;
use sluice_tests::session::{Session, publish_one};
use sluice_tests::stack::Options;
use sluice_tests::{events, wait};

fn note(message: &str) -> pb::Event {
    let mut event = events::payment("note");
    event.payload = Some(Payload::System(pb::SystemEvent {
        source: "shop".to_owned(),
        kind: "note".to_owned(),
        message: message.to_owned(),
        ..pb::SystemEvent::default()
    }));
    event
}

#[test]
fn configured_fields_are_changed_before_they_are_stored() {
    let options = Options {
        processors: 0,
        ..Options::default()
    };
    on_prepared(options, async |stack| {
        let rules = stack.directory().join("privacy.toml");
        std::fs::write(stack.directory().join("hash.key"), [9; 32])?;
        let text = "hash_key_file = \"hash.key\"\n[[field]]\nname = \"payment.device_id\"\naction = \"hash\"\n";
        std::fs::write(&rules, text)?;
        stack.set_env("SLUICE_PRIVACY", &rules.display().to_string());
        stack.start_gateway()?;
        stack.ready().await?;
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let secret = events::with(events::payment("secret"), |payment| {
            payment.device_id = "device-of-jane-doe".to_owned();
        });
        publish_one(&url, &tenant.key, secret.clone()).await??;
        Session::open(&url, &tenant.key, "secret")
            .await?
            .store(&[secret])
            .await?;
        let refused = publish_one(&url, &tenant.key, note("card 4111 1111 1111 1111")).await?;
        let status = refused.err().context("a card number was stored")?;
        ensure!(!status.message().contains("4111"), "{status:?}");
        publish_one(&url, &tenant.key, note("order 20261121-17")).await??;
        let stored = sluice_tests::topics::read(stack, topics::PAYMENTS).await?;
        ensure!(stored.len() == 2, "{} payments", stored.len());
        for record in stored {
            let text = String::from_utf8_lossy(&record.payload).into_owned();
            ensure!(!text.contains("jane-doe"), "{text}");
        }
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
