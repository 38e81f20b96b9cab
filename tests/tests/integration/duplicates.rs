//! The same event_id again: in a batch, in a session, from another session, after the memory of it is gone. Decided once.

use std::time::Duration;

use anyhow::Context;
use sluice_proto::{headers, topics};
use sluice_tests::checker::{self, Expected};
use sluice_tests::events;
use sluice_tests::run::{on_own, on_shared};
use sluice_tests::session::{Session, publish_one};
use sluice_tests::stack::Options;
use sluice_tests::subscription::{Subscription, rules};
use sluice_tests::topics::read;

#[test]
fn an_event_published_again_is_decided_once() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let payments = events::payments("again", 20);
        let mut session = Session::open(&url, &tenant.key, "again-1").await?;
        // Twice in one batch, again in the same session, in another one, and by the unary call.
        session.store(&[payments.clone(), payments.clone()].concat()).await?;
        session.store(&payments).await?;
        Session::open(&url, &tenant.key, "again-2")
            .await?
            .store(&payments)
            .await?;
        publish_one(&url, &tenant.key, payments[0].clone()).await??;
        subscription.decided(&events::ids(&payments)).await?;
        let found = checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        assert_eq!(found.payments.len(), 81, "the log has what was published");
        assert_eq!(found.decisions.len(), 20);
        Ok(())
    });
}

#[test]
fn an_event_that_the_memory_has_lost_is_recognised_by_the_ledger() {
    let options = Options {
        partitions: 1,
        lanes: 1,
        ..Options::default()
    };
    on_own(options, async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let mut session = Session::open(&url, &tenant.key, "old").await?;
        let hour = Duration::from_secs(3_600);
        let (old, now) = (events::ago(events::payment("old"), hour), events::payment("new"));
        let late = events::ago(events::payment("late"), hour);
        // The old one in time; then the stream moves on an hour; then it comes again, with others beside it.
        session.store(std::slice::from_ref(&old)).await?;
        subscription.decision(&old).await?;
        session.store(std::slice::from_ref(&now)).await?;
        subscription.decision(&now).await?;
        session
            .store(&[old.clone(), late.clone(), late.clone(), old.clone()])
            .await?;
        let decision = subscription.decision(&late).await?;
        assert!(decision.late && rules(&decision) == ["LATE_EVENT"], "{decision:?}");
        // And once more, with another time, so that neither its memory nor its lateness gives it away.
        let changed = sluice_proto::pb::Event {
            occurred_at: now.occurred_at,
            ..old.clone()
        };
        let after = events::payment("after");
        session.store(&[changed, after.clone()]).await?;
        subscription.decision(&after).await?;

        let payments = [old.clone(), now, late, after];
        let found = checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        assert_eq!((found.payments.len(), found.decisions.len()), (8, 4));
        let dead = read(stack, topics::DEAD_LETTERS).await?;
        let dead = dead
            .iter()
            .find(|record| record.is_of(&tenant.name))
            .context("no dead letter of the changed event")?;
        assert_eq!(dead.header(headers::ERROR_TYPE)?, "CONFLICT");
        let copies = read(stack, topics::LATE).await?;
        assert!(
            copies.iter().any(|record| record.is_of(&tenant.name)),
            "no copy of the late event"
        );
        Ok(())
    });
}

#[test]
fn an_event_id_that_comes_again_with_other_content_is_a_dead_letter_at_once() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let mut session = Session::open(&url, &tenant.key, "conflict").await?;
        let first = events::payment("conflicting");
        let other = events::with(first.clone(), |payment| payment.amount = Some(events::euros(77, 0)));
        let after = events::payment("conflicting");
        // The first again is a repetition, before and after the other.
        session
            .store(&[first.clone(), first.clone(), other, first.clone(), after.clone()])
            .await?;
        subscription
            .decided(&events::ids(&[first.clone(), after.clone()]))
            .await?;
        let found = checker::check(stack, &Expected::all(&tenant.name, &[first, after])).await?;
        assert_eq!((found.payments.len(), found.decisions.len()), (5, 2));
        let dead = read(stack, topics::DEAD_LETTERS).await?;
        let types: Vec<&str> = dead
            .iter()
            .map(|record| record.header(headers::ERROR_TYPE))
            .collect::<anyhow::Result<_>>()?;
        assert_eq!(types, ["CONFLICT"]);
        let page = sluice_tests::stack::page(stack.processor_admin(0), "/metrics").await?;
        let counted = "processor_dead_letters_total{error_type=\"CONFLICT\"} 1";
        assert!(page.contains(counted), "{page}");
        Ok(())
    });
}
