//! Tenants share an installation and see nothing of each other.

use sluice_proto::pb;
use sluice_tests::checker::{self, Expected};
use sluice_tests::events;
use sluice_tests::run::on_shared;
use sluice_tests::session::Session;
use sluice_tests::subscription::Subscription;

#[test]
fn tenants_see_their_own_decisions_only() {
    on_shared(async |stack| {
        let url = stack.gateway_url();
        let (one, other) = (stack.tenant(), stack.tenant());
        let mut of_one = Subscription::open(&url, &one.key).await?;
        let mut of_other = Subscription::open(&url, &other.key).await?;
        // Accounts and ids are unique within a tenant only: here both have the same.
        let shared = events::payments("same", 20);
        let alone = events::payments("alone", 20);
        Session::open(&url, &one.key, "same").await?.store(&shared).await?;
        Session::open(&url, &one.key, "alone").await?.store(&alone).await?;
        let large: Vec<pb::Event> = shared
            .iter()
            .map(|event| events::with(event.clone(), |payment| payment.amount = Some(events::euros(20_000, 0))))
            .collect();
        Session::open(&url, &other.key, "same").await?.store(&large).await?;

        of_one
            .decided(&events::ids(&[shared.clone(), alone.clone()].concat()))
            .await?;
        of_other.decided(&events::ids(&large)).await?;
        assert_eq!((of_one.decisions.len(), of_other.decisions.len()), (40, 20));
        assert!(
            of_one
                .decisions
                .values()
                .all(|decision| decision.outcome() == pb::Outcome::Approve)
        );
        assert!(
            of_other
                .decisions
                .values()
                .all(|decision| decision.outcome() == pb::Outcome::Review)
        );
        checker::check(stack, &Expected::all(&one.name, &[shared, alone].concat())).await?;
        checker::check(stack, &Expected::all(&other.name, &large)).await?;
        Ok(())
    });
}
