//! Personal data does not reach Kafka as it was sent.

use anyhow::{Context, ensure};
use sluice_proto::pb::event::Payload;
use sluice_proto::{pb, topics};
use sluice_tests::events;
use sluice_tests::run::on_prepared;
use sluice_tests::session::{Session, publish_one};
use sluice_tests::stack::Options;

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
