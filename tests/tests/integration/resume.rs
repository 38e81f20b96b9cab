//! Connections break: sessions go on where they were, and nothing is lost or delivered twice.

use anyhow::ensure;
use sluice_proto::pb;
use sluice_tests::checker::{self, Expected};
use sluice_tests::events;
use sluice_tests::proxy::Proxy;
use sluice_tests::run::{on_own, on_shared};
use sluice_tests::session::{Session, authorized};
use sluice_tests::stack::Options;
use sluice_tests::traffic::Traffic;

#[test]
fn a_session_goes_on_after_what_was_settled() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let proxy = Proxy::start(stack.gateway_address()).await?;
        let payments = events::payments("resumed", 30);
        let mut first = Session::open(&proxy.url(), &tenant.key, "resumed").await?;
        first.store(&payments[..10]).await?;
        let token = first.token.clone();
        assert!(!token.is_empty(), "no resume token");
        proxy.cut();
        ensure!(first.end().await?.is_err(), "the cut was not noticed");

        let open = pb::PublishOpen {
            producer_id: "resumed".to_owned(),
            epoch: 1,
            resume_token: token.clone(),
            want_positions: true,
            ..pb::PublishOpen::default()
        };
        let mut second = Session::open_with(authorized((), &tenant.key), &proxy.url(), open.clone()).await?;
        assert_eq!(second.ready.next_sequence, 11);
        second.store(&payments[10..20]).await?;
        proxy.cut();
        ensure!(second.end().await?.is_err(), "the cut was not noticed");

        // With an older token the client sends again what it does not know to be settled; it is decided once all the same.
        let mut third = Session::open_with(authorized((), &tenant.key), &proxy.url(), open).await?;
        let next = third.ready.next_sequence as usize;
        assert!((11..=21).contains(&next), "{next}");
        third.publish(&payments[next - 1..], 64).await?;
        third.settle().await?;
        third.close().await?;
        checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        Ok(())
    });
}

#[test]
fn publishing_and_receiving_survive_cut_connections() {
    // The whole promise is checked, of everything in the topics.
    on_own(Options::default(), async |stack| {
        let (publishing, receiving) = (
            Proxy::start(stack.gateway_address()).await?,
            Proxy::start(stack.gateway_address()).await?,
        );
        let mut traffic = Traffic::start(stack, &publishing.url(), &receiving.url()).await?;
        for _cut in 0..3 {
            traffic.flows(400).await?;
            publishing.cut();
            traffic.flows(400).await?;
            receiving.cut();
        }
        traffic.flows(400).await?;
        let outcomes = traffic.finish(stack).await?;
        assert!(outcomes.publish_sessions >= 4, "{} sessions", outcomes.publish_sessions);
        assert!(
            outcomes.subscribe_sessions >= 4,
            "{} subscriptions",
            outcomes.subscribe_sessions
        );
        Ok(())
    });
}
