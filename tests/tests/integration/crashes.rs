//! kill -9 in mid-run: still exactly one decision for each payment, and the ledger says the same.

use sluice_proto::pb::Outcome;
use sluice_tests::checker::{self, Expected};
use sluice_tests::run::{on_own, on_prepared};
use sluice_tests::session::Session;
use sluice_tests::stack::Options;
use sluice_tests::subscription::{Subscription, rules};
use sluice_tests::traffic::Traffic;
use sluice_tests::{events, proxy};

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
