//! `bench state`: what it costs to remember accounts. The processor's own state and rules judge payments of so many active
//! accounts over some days, in this process: memory by the operating system's count, and time for each payment.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use sluice_processor::backtest::Replay;
use sluice_processor::rules::RuleSet;
use sluice_proto::event::{EventId, PaymentRecord};
use sluice_proto::money::{Amount, TEN_THOUSANDTHS};
use uuid::Uuid;

use super::parts::own_rss_mib;
use super::report::Report;

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// The beginning of a day, in microseconds since the Unix epoch.
const BEGIN_US: i64 = 1_767_225_600_000_000;
const LATENESS_S: u32 = 600;
/// Payments that are made before the clock runs.
const CHUNK: u32 = 10_000;
/// Accounts are met in an order that has nothing to do with where they lie in memory: each step goes this much further.
const STRIDE: u64 = 7_368_787;
const MERCHANTS: u32 = 10_000;
const CITIES: [(&str, &str, f64, f64); 4] = [
    ("FR", "Paris", 48.856_6, 2.352_2),
    ("DE", "Berlin", 52.52, 13.405),
    ("BE", "Brussels", 50.850_3, 4.351_7),
    ("NL", "Amsterdam", 52.367_6, 4.904_1),
];

/// Options of the benchmark.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Active accounts
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..=5_000_000))]
    accounts: u32,
    /// Days on each of which every account pays once; the state looks back on six
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=14))]
    days: u32,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Report> {
    let Args { accounts, days, .. } = *args;
    println!("{accounts} accounts, each of which pays once on each of {days} days; the built-in rules judge");
    let before_mib = own_rss_mib()?;
    let mut replay = Replay::new(RuleSet::built_in(), LATENESS_S);
    let mut judging = Duration::ZERO;
    for day in 0..days {
        for first in (0..accounts).step_by(CHUNK as usize) {
            let chunk: Vec<_> = (first..accounts.min(first + CHUNK))
                .map(|number| payment(day, number, accounts))
                .collect();
            let started = Instant::now();
            for payment in chunk {
                replay.judge(payment).context("a payment comes twice")?;
            }
            judging += started.elapsed();
        }
    }
    let grown_mib = own_rss_mib()? - before_mib;
    ensure!(
        replay.accounts() == accounts as usize,
        "{} accounts are remembered",
        replay.accounts()
    );
    let mut report = Report::default();
    report.add("state_mib", "MiB", grown_mib);
    let bytes = grown_mib * f64::from(1 << 20);
    report.add("state_bytes_per_account", "B", bytes / f64::from(accounts));
    let payments = f64::from(accounts) * f64::from(days);
    report.add("state_judge_us", "us", judging.as_secs_f64() * 1e6 / payments);
    Ok(report)
}

/// The payment of one account on one day; each pays at an hour of its own, from two devices, in two cities.
fn payment(day: u32, number: u32, accounts: u32) -> PaymentRecord {
    let account = (u64::from(number) * STRIDE % u64::from(accounts)) as u32;
    let nth = u64::from(day) * u64::from(accounts) + u64::from(number);
    let since_midnight = MICROS_PER_DAY * i64::from(number) / i64::from(accounts);
    let (country, place, latitude, longitude) = CITIES[((account + day % 2) % CITIES.len() as u32) as usize];
    PaymentRecord {
        event_id: EventId::new(Uuid::from_u128(u128::from(nth) + 1)),
        tenant: "acme".to_owned(),
        account_id: format!("account-{account:010}"),
        amount: Amount::from_ten_thousandths(i64::from(1 + nth as u32 % 200) * TEN_THOUSANDTHS),
        currency: "EUR".to_owned(),
        occurred_at: BEGIN_US + i64::from(day) * MICROS_PER_DAY + since_midnight,
        merchant_id: format!("merchant-{}", nth % u64::from(MERCHANTS)),
        merchant_category: Some("5411".to_owned()),
        terminal_id: None,
        method: "CARD_PRESENT".to_owned(),
        device_id: Some(format!("device-{account}-{}", day % 2)),
        country: Some(country.to_owned()),
        place: Some(place.to_owned()),
        latitude: Some(latitude),
        longitude: Some(longitude),
        traceparent: None,
    }
}
