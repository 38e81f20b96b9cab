//! SIGTERM: what is under way is finished, nothing is lost, and the process exits with 0.

use anyhow::Context;
use sluice_proto::pb;
use sluice_proto::pb::AckStatus;
use sluice_tests::checker::{self, Expected};
use sluice_tests::events;
use sluice_tests::run::on_own;
use sluice_tests::session::{Session, authorized};
use sluice_tests::stack::Options;
use sluice_tests::subscription::Subscription;
use sluice_tests::traffic::Traffic;

#[test]
fn a_draining_gateway_tells_its_sessions_and_settles_what_it_has() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut session = Session::open(&url, &tenant.key, "drained").await?;
        let payments = events::payments("drained", 300);
        session.publish(&payments[..200], 50).await?;
        session.fate(1).await?;
        stack.gateway()?.signal("TERM")?;
        let ended = session.end().await?;
        let drain = session.drain.clone();
        let drain = drain.with_context(|| format!("no Drain before the end: {ended:?}"))?;
        assert!(drain.deadline.is_some(), "no deadline");
        let status = stack.gateway()?.ended().await?;
        assert!(status.success(), "{status}");
        // What was taken is settled, without a hole; what was not read is sent again.
        let settled = session.fates.len() as u64;
        assert!(
            session.fates.keys().copied().eq(1..=settled),
            "{:?}",
            session.fates.keys()
        );
        let stored = session.fates.values().all(|fate| fate.status == AckStatus::Stored);
        assert!(stored, "{:?}", session.fates);

        stack.start_gateway()?;
        stack.ready().await?;
        let open = pb::PublishOpen {
            producer_id: "drained".to_owned(),
            epoch: 1,
            resume_token: session.token.clone(),
            want_positions: true,
            ..pb::PublishOpen::default()
        };
        let mut resumed = Session::open_with(authorized((), &tenant.key), &url, open).await?;
        assert_eq!(resumed.ready.next_sequence, settled + 1);
        resumed.store(&payments[settled as usize..]).await?;
        checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        Ok(())
    });
}

#[test]
fn rolling_restarts_lose_and_repeat_nothing() {
    on_own(Options::default(), async |stack| {
        let url = stack.gateway_url();
        let mut traffic = Traffic::start(stack, &url, &url).await?;
        traffic.flows(400).await?;
        stack.processor(0)?.terminate().await?;
        stack.start_processor(0)?;
        traffic.flows(400).await?;
        stack.gateway()?.terminate().await?;
        stack.start_gateway()?;
        traffic.flows(400).await?;
        stack.processor(0)?.terminate().await?;
        stack.start_processor(0)?;
        traffic.flows(400).await?;
        let outcomes = traffic.finish(stack).await?;
        assert!(outcomes.publish_sessions >= 2 && outcomes.subscribe_sessions >= 2);
        stack.must_run()
    });
}

#[test]
fn a_processor_that_was_asked_to_stop_has_committed_what_it_decided() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let payments = events::payments("stopped", 100);
        Session::open(&url, &tenant.key, "stopped")
            .await?
            .store(&payments)
            .await?;
        subscription.decided(&events::ids(&payments)).await?;
        stack.processor(0)?.terminate().await?;
        // Nothing runs any more that could commit offsets or a watermark.
        checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        Ok(())
    });
}

#[test]
fn a_second_signal_ends_it_at_once() {
    on_own(Options::default(), async |stack| {
        for name in ["gateway", "processor"] {
            let process = if name == "gateway" {
                stack.gateway()?
            } else {
                stack.processor(0)?
            };
            process.signal("TERM")?;
            // It may be gone already.
            drop(process.signal("TERM"));
            process.ended().await?;
        }
        Ok(())
    });
}
