//! Opens both streams, publishes ten payments and prints their decisions. Ends with 0 when each arrived exactly once.
//!
//! `SLUICE_TARGET` (default http://127.0.0.1:50051) and `SLUICE_API_KEY` (default sluice-dev-key) say where and who.

use std::collections::HashSet;
use std::error::Error;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_client::{Money, Outcome, Publisher, Start, Subscriber, Target, pb};
use uuid::Uuid;

const PAYMENTS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(30);
/// After the last decision, time for one that should not come.
const DUPLICATE_WATCH: Duration = Duration::from_millis(300);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_unset| default.to_owned());
    let address = setting("SLUICE_TARGET", "http://127.0.0.1:50051");
    let target = Target::new(&address, &setting("SLUICE_API_KEY", "sluice-dev-key"))?;

    // Subscribe first: every decision committed from now on arrives.
    let mut decisions = Subscriber::builder(target.clone()).start(Start::Latest).open().await?;

    // The epoch must grow from life to life; the wall clock does.
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let producer_id = format!("ten-payments-{}", std::process::id());
    let publisher = Publisher::builder(target, producer_id, epoch)
        .want_positions(true)
        .connect()
        .await?;

    let mut waiting = HashSet::new();
    let mut tickets = Vec::new();
    for number in 0..PAYMENTS {
        let payment = payment(number);
        waiting.insert(payment.event_id.clone());
        tickets.push(publisher.publish(payment).await?);
    }
    for ticket in tickets {
        match ticket.await?.outcome {
            Outcome::Stored { .. } | Outcome::Duplicate | Outcome::Settled => {}
            Outcome::Error(error) => return Err(format!("{} {}: {}", error.field, error.reason, error.remedy).into()),
        }
    }
    publisher.close().await?;
    println!("{PAYMENTS} payments are stored");

    let mut decided = HashSet::new();
    let mut wait = PATIENCE;
    // Without a next decision in time, everything is here, or something is missing.
    while let Ok(next) = tokio::time::timeout(wait, decisions.next()).await {
        let decision = next?.ok_or("the subscription ended")?;
        // Others may publish for the same tenant.
        if !waiting.remove(&decision.event_id) {
            if decided.contains(&decision.event_id) {
                return Err(format!("{} was decided twice", decision.event_id).into());
            }
            continue;
        }
        print(&decision);
        decided.insert(decision.event_id);
        if waiting.is_empty() {
            wait = DUPLICATE_WATCH;
        }
    }
    if waiting.is_empty() {
        println!("each of them was decided exactly once");
        Ok(())
    } else {
        Err(format!("without a decision: {waiting:?}").into())
    }
}

/// The last of the payments is large enough for a rule.
fn payment(number: usize) -> pb::Event {
    let units = if number + 1 == PAYMENTS {
        12_500
    } else {
        20 + number as i64
    };
    pb::Event {
        event_id: Uuid::now_v7().to_string(),
        occurred_at: Some(SystemTime::now().into()),
        payload: Some(pb::event::Payload::Payment(pb::PaymentEvent {
            account_id: format!("account-{number}"),
            amount: Some(Money {
                currency_code: "EUR".to_owned(),
                units,
                nanos: 990_000_000,
            }),
            merchant_id: "merchant-1".to_owned(),
            merchant_category: "5411".to_owned(),
            method: pb::PaymentMethod::CardPresent.into(),
            ..pb::PaymentEvent::default()
        })),
        ..pb::Event::default()
    }
}

fn print(decision: &pb::FraudDecision) {
    let outcome = decision.outcome().as_str_name().trim_start_matches("OUTCOME_");
    let reasons: Vec<&str> = decision.reasons.iter().map(|reason| reason.rule_id.as_str()).collect();
    println!(
        "{} {outcome} {:.2} {}",
        decision.event_id,
        decision.score,
        reasons.join(" ")
    );
}
