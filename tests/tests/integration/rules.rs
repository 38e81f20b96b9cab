//! Each rule fires with its reason, and only where it should.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use sluice_proto::pb;
use sluice_proto::pb::Outcome;
use sluice_tests::events;
use sluice_tests::run::on_shared;
use sluice_tests::session::Session;
use sluice_tests::stack::Stack;
use sluice_tests::subscription::{Subscription, rules};

/// Publishes the payments in order and returns their decisions in the same order.
async fn judge(stack: &Stack, payments: &[pb::Event]) -> Result<Vec<pb::FraudDecision>> {
    let tenant = stack.tenant();
    let url = stack.gateway_url();
    let mut subscription = Subscription::open(&url, &tenant.key).await?;
    Session::open(&url, &tenant.key, "rules").await?.store(payments).await?;
    subscription.decided(&events::ids(payments)).await?;
    Ok(payments
        .iter()
        .map(|event| subscription.decisions[&event.event_id].clone())
        .collect())
}

/// The payment at so many seconds after a time that lies nine minutes back: within the allowed lateness.
fn after(event: pb::Event, start: SystemTime, seconds: u64) -> pb::Event {
    let time = start + Duration::from_secs(seconds);
    pb::Event {
        occurred_at: Some(time.into()),
        ..event
    }
}

fn nine_minutes_ago() -> SystemTime {
    SystemTime::now() - Duration::from_secs(540)
}

fn of_amount(account: &str, currency: &str, units: i64, nanos: i32) -> pb::Event {
    events::with(events::payment(account), |payment| {
        let mut amount = events::euros(units, nanos);
        currency.clone_into(&mut amount.currency_code);
        payment.amount = Some(amount);
    })
}

#[test]
fn an_amount_over_ten_thousand_goes_to_review() {
    on_shared(async |stack| {
        let decisions = judge(
            stack,
            &[
                of_amount("amount-1", "EUR", 10_000, 0),
                of_amount("amount-2", "EUR", 10_000, 10_000_000),
                of_amount("amount-3", "JPY", 10_001, 0),
            ],
        )
        .await?;
        assert_eq!(decisions[0].outcome(), Outcome::Approve, "10,000 is not over 10,000");
        for decision in &decisions[1..] {
            assert_eq!(rules(decision), ["LARGE_AMOUNT"]);
            assert_eq!((decision.outcome(), decision.score), (Outcome::Review, 0.6));
            let reason = &decision.reasons[0];
            assert!(
                !reason.rule_version.is_empty() && reason.detail.contains("over 10000"),
                "{reason:?}"
            );
            assert_eq!(reason.contribution, 0.6);
        }
        Ok(())
    });
}

#[test]
fn more_than_five_payments_within_a_minute_go_to_review() {
    on_shared(async |stack| {
        let start = nine_minutes_ago();
        // Five at once, a sixth within the minute, then one when the first five have left the window.
        let seconds = [0, 1, 2, 3, 4, 59, 65];
        let payments: Vec<_> = seconds
            .map(|second| after(events::payment("burst"), start, second))
            .to_vec();
        let decisions = judge(stack, &payments).await?;
        let fired: Vec<usize> = decisions.iter().map(|decision| decision.reasons.len()).collect();
        assert_eq!(fired, [0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(rules(&decisions[5]), ["HIGH_FREQUENCY"]);
        assert_eq!((decisions[5].outcome(), decisions[5].score), (Outcome::Review, 0.5));
        Ok(())
    });
}

#[test]
fn two_places_that_nobody_travels_between_so_fast_are_declined() {
    on_shared(async |stack| {
        let start = nine_minutes_ago();
        let paris = |account| events::at(events::payment(account), "FR", "Paris", 48.8566, 2.3522);
        let versailles = |account| events::at(events::payment(account), "FR", "Versailles", 48.8049, 2.1204);
        let berlin = |account| events::at(events::payment(account), "DE", "Berlin", 52.52, 13.405);
        let payments = [
            after(paris("by-speed"), start, 0),
            after(berlin("by-speed"), start, 500),
            after(paris("by-name"), start, 0),
            after(versailles("by-name"), start, 59),
            after(paris("slowly"), start, 0),
            after(versailles("slowly"), start, 500),
        ];
        let decisions = judge(stack, &payments).await?;
        for index in [1, 3] {
            assert_eq!(
                rules(&decisions[index]),
                ["IMPOSSIBLE_TRAVEL"],
                "{:?}",
                decisions[index]
            );
            assert_eq!(decisions[index].outcome(), Outcome::Decline);
        }
        for index in [0, 2, 4, 5] {
            assert_eq!(decisions[index].outcome(), Outcome::Approve, "{:?}", decisions[index]);
        }
        Ok(())
    });
}

#[test]
fn two_rules_together_decline() {
    on_shared(async |stack| {
        let start = nine_minutes_ago();
        let place = |event, latitude| events::at(event, "", "", latitude, 0.0);
        let payments = [
            after(place(events::payment("both"), 0.0), start, 0),
            after(place(of_amount("both", "EUR", 50_000, 0), 40.0), start, 100),
        ];
        let decisions = judge(stack, &payments).await?;
        let mut fired = rules(&decisions[1]);
        fired.sort_unstable();
        assert_eq!(fired, ["IMPOSSIBLE_TRAVEL", "LARGE_AMOUNT"]);
        assert_eq!(decisions[1].outcome(), Outcome::Decline);
        assert!((decisions[1].score - 0.92).abs() < 1e-9, "{}", decisions[1].score);
        Ok(())
    });
}
