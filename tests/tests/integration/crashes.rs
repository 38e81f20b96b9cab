//! kill -9 in mid-run: still exactly one decision for each payment, and the ledger says the same.

use sluice_proto::pb::Outcome;
use sluice_tests::checker::{self, Expected};
use sluice_tests::run::{on_own, on_prepared};
use sluice_tests::session::Session;
use sluice_tests::stack::{self, Options};
use sluice_tests::subscription::{Subscription, rules};
use sluice_tests::traffic::Traffic;
use sluice_tests::{events, proxy, servers};

#[test]
fn a_processor_killed_again_and_again_decides_everything_once() {
    on_own(Options::default(), async |stack| {
        let url = stack.gateway_url();
        let mut traffic = Traffic::start(stack, &url, &url).await?;
        for _kill in 0..4 {
            traffic.flows(500).await?;
            stack.processor(0)?.kill_9()?;
            stack.start_processor(0)?;
        }
        traffic.flows(500).await?;
        traffic.finish(stack).await?;
        stack.must_run()
    });
}

#[test]
fn a_gateway_killed_again_and_again_loses_nothing_that_it_acknowledged() {
    on_own(Options::default(), async |stack| {
        let url = stack.gateway_url();
        let mut traffic = Traffic::start(stack, &url, &url).await?;
        for _kill in 0..3 {
            traffic.flows(500).await?;
            stack.gateway()?.kill_9()?;
            stack.start_gateway()?;
        }
        traffic.flows(500).await?;
        let outcomes = traffic.finish(stack).await?;
        assert!(outcomes.publish_sessions >= 4, "{} sessions", outcomes.publish_sessions);
        assert!(outcomes.payments >= 2_000);
        stack.must_run()
    });
}

#[test]
fn both_killed_at_once_come_back() {
    on_own(Options::default(), async |stack| {
        let url = stack.gateway_url();
        let mut traffic = Traffic::start(stack, &url, &url).await?;
        traffic.flows(500).await?;
        stack.processor(0)?.kill_9()?;
        stack.gateway()?.kill_9()?;
        stack.start_gateway()?;
        stack.start_processor(0)?;
        traffic.flows(500).await?;
        traffic.finish(stack).await?;
        stack.must_run()
    });
}

#[test]
fn a_restarted_processor_remembers_what_it_had_seen() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let mut session = Session::open(&url, &tenant.key, "remembered").await?;
        let burst: Vec<_> = (0..8).map(|_number| events::payment("remembered")).collect();
        session.store(&burst[..4]).await?;
        subscription.decided(&events::ids(&burst[..4])).await?;
        stack.processor(0)?.kill_9()?;
        stack.start_processor(0)?;
        session.store(&burst[4..]).await?;
        // A repetition from before the crash is recognised as well.
        session.store(&burst[..2]).await?;
        subscription.decided(&events::ids(&burst)).await?;
        for (index, event) in burst.iter().enumerate() {
            let decision = &subscription.decisions[&event.event_id];
            let expected: &[&str] = if index < 5 { &[] } else { &["HIGH_FREQUENCY"] };
            assert_eq!(rules(decision), expected, "payment {index}");
            let outcome = if index < 5 { Outcome::Approve } else { Outcome::Review };
            assert_eq!(decision.outcome(), outcome);
        }
        checker::check(stack, &Expected::all(&tenant.name, &burst)).await?;
        Ok(())
    });
}

#[test]
fn a_processor_whose_postgres_goes_away_waits_for_it() {
    on_prepared(Options::default(), async |stack| {
        let (proxy, url) = proxy::postgres(&stack.database_url()?).await?;
        stack.set_processor_env("SLUICE_POSTGRES", &url);
        stack.start_all().await?;
        let url = stack.gateway_url();
        let mut traffic = Traffic::start(stack, &url, &url).await?;
        for _cut in 0..3 {
            traffic.flows(500).await?;
            proxy.cut();
        }
        traffic.flows(500).await?;
        traffic.finish(stack).await?;
        stack.must_run()
    });
}

#[test]
fn payments_are_accepted_while_postgres_is_away_and_decided_when_it_is_back() {
    // Fewer than are published meanwhile, so that some of those must have been acknowledged.
    let in_flight = 1_000;
    let options = Options {
        gateway_env: vec![("SLUICE_MAX_IN_FLIGHT_EVENTS".to_owned(), in_flight.to_string())],
        ..Options::default()
    };
    on_prepared(options, async |stack| {
        let (proxy, url) = proxy::postgres(&stack.database_url()?).await?;
        let there = proxy.target();
        stack.set_processor_env("SLUICE_POSTGRES", &url);
        stack.start_all().await?;
        let url = stack.gateway_url();
        let mut traffic = Traffic::start(stack, &url, &url).await?;
        traffic.flows(500).await?;
        proxy.lead_to(servers::free_address()?);
        proxy.cut();
        traffic.passes(in_flight + 4_000).await?;
        let page = stack::page(stack.processor_admin(0), "/metrics").await?;
        for lane in 0..2 {
            let open = format!("processor_breaker_open{{lane=\"{lane}\"}} 1");
            assert!(page.contains(&open), "{page}");
        }
        proxy.lead_to(there);
        traffic.flows(500).await?;
        traffic.finish(stack).await?;
        stack.must_run()
    });
}
