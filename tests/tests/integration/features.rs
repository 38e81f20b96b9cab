//! The topic of features: written where that is asked for, once for each payment that is decided in time, whatever dies
//! meanwhile, and to the bit what the payments topic alone says.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use sluice_proto::features::AccountFeatures;
use sluice_proto::{pb, topics};
use sluice_tests::checker::{self, Expected, decode};
use sluice_tests::events;
use sluice_tests::oracle;
use sluice_tests::run::on_own;
use sluice_tests::schemas::Schemas;
use sluice_tests::session::Session;
use sluice_tests::stack::{Options, Stack};
use sluice_tests::topics::{Record, consumed, read};

const PAYMENTS: u32 = 1_200;
const ACCOUNTS: u32 = 6;
/// The payments occurred over so long a time, which every window and every day that is looked back on is shorter than.
const SPAN: Duration = Duration::from_secs(8 * 86_400);
/// How much out of order they come: some of them too much.
const JITTER: Duration = Duration::from_secs(900);
const CITIES: [(&str, &str, f64, f64); 3] = [
    ("FR", "Paris", 48.856_6, 2.352_2),
    ("DE", "Berlin", 52.52, 13.405),
    ("JP", "Tokyo", 35.676_2, 139.650_3),
];

/// Payments of few accounts in bursts over some days, with everything that a feature looks at.
fn payments() -> Vec<pb::Event> {
    let mut rng = Rng::with_seed(11);
    let begin = SystemTime::now() - SPAN;
    let mut at = Duration::ZERO;
    (0..PAYMENTS)
        .map(|number| {
            // Pauses of seconds within a burst, and of hours between them.
            let pause_s = if rng.u32(..8) == 0 {
                rng.u64(..7_200)
            } else {
                rng.u64(..120)
            };
            at = (at + Duration::from_secs(pause_s)).min(SPAN * (number + 1) / PAYMENTS);
            at = at.max(SPAN * number / PAYMENTS);
            let time = begin + at - JITTER.mul_f64(rng.f64());
            let event = events::with(
                events::payment(&format!("account-{}", rng.u32(..ACCOUNTS))),
                |payment| {
                    payment.amount = Some(events::euros(rng.i64(1..500), 10_000_000 * rng.i32(0..100)));
                    payment.merchant_id = format!("merchant-{}", rng.u32(..3));
                    payment.device_id = format!("device-{}", rng.u32(..8));
                },
            );
            let mut event = match rng.choice(CITIES) {
                Some((country, place, latitude, longitude)) if rng.bool() => {
                    events::at(event, country, place, latitude, longitude)
                }
                _ => event,
            };
            event.occurred_at = Some(time.into());
            event
        })
        .collect()
}

fn read_features(records: &[Record]) -> Result<HashMap<(i32, i64), AccountFeatures>> {
    let mut found = HashMap::new();
    for record in records {
        let features: AccountFeatures = decode(record).context("features cannot be read")?;
        let (at, key) = (
            (features.source_partition, features.source_offset),
            format!("{}/{}", features.tenant, features.account_id),
        );
        assert_eq!(
            (record.partition, &record.key),
            (at.0, &key),
            "where the payment stands"
        );
        ensure!(found.insert(at, features).is_none(), "{at:?} has features twice");
    }
    Ok(found)
}

async fn check(stack: &Stack) -> Result<usize> {
    consumed(stack).await?;
    let payments = read(stack, topics::PAYMENTS).await?;
    let schemas = Schemas::of(stack, payments.iter()).await?;
    let expected = oracle::replay_features(&payments, &schemas);
    let found = read_features(&read(stack, topics::FEATURES).await?)?;
    for (at, features) in &expected {
        assert_eq!(found.get(at), Some(features), "{at:?}");
    }
    assert_eq!(found.len(), expected.len());
    Ok(found.len())
}

#[test]
fn features_are_what_the_input_says_to_the_bit_though_a_processor_dies() {
    let options = Options {
        processor_env: vec![("SLUICE_FEATURES".to_owned(), "true".to_owned())],
        ..Options::default()
    };
    on_own(options, async |stack| {
        let tenant = stack.tenant();
        let mut session = Session::open(&stack.gateway_url(), &tenant.key, "features").await?;
        let payments = payments();
        let (before, after) = payments.split_at(payments.len() / 2);
        session.store(before).await?;
        stack.processor(0)?.kill_9()?;
        session.store(after).await?;
        stack.start_processor(0)?;
        let written = check(stack).await?;
        ensure!(
            (payments.len() / 2..payments.len()).contains(&written),
            "{written} of {} payments came in time",
            payments.len()
        );
        checker::check(stack, &Expected::all(&tenant.name, &payments))
            .await
            .map(drop)
    });
}

#[test]
fn nothing_is_written_unless_it_is_asked_for() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let mut session = Session::open(&stack.gateway_url(), &tenant.key, "no-features").await?;
        session.store(&[events::payment("account")]).await?;
        consumed(stack).await?;
        ensure!(read(stack, topics::FEATURES).await?.is_empty(), "features were written");
        Ok(())
    });
}
