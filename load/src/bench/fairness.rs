//! `bench fairness`: one tenant publishes at a steady rate while another one is silent, keeps its quota, or sends ten times
//! what its quota allows, in turn in every run.
//!
//! What the greedy tenant may send is load like any other; so its effect is that of ten times the quota beside that of the
//! quota itself. A latency counts from when an event is due until its acknowledgement.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use aws_lc_rs::digest::{SHA256, digest};
use hdrhistogram::Histogram;
use sluice_proto::event::PaymentRecord;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep_until};

use super::Common;
use super::parts::{Installation, free_address};
use super::records::{self, Record};
use super::report::Report;
use super::stream::Stream;

const STEADY_KEY: &str = "the-steady-tenant";
const GREEDY_KEY: &str = "the-greedy-tenant";
/// How many times its quota the greedy tenant sends.
const GREED: u32 = 10;
/// How long the other tenant sends before the measurement: its burst is spent then.
const LEAD: Duration = Duration::from_secs(1);
const BATCH_EVENTS: usize = 64;
const WAYS: u16 = 3;

/// Options of the benchmark.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) common: Common,
    /// Events a second of the tenant that is measured
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    rate: u32,
    /// Events a second that the quota of the other tenant allows; it sends up to ten times as many
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    quota: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
}

/// Principals and quotas, in files that are gone when it is dropped.
struct Files(PathBuf);

impl Files {
    fn write(quota: u32) -> anyhow::Result<Self> {
        let directory = std::env::temp_dir().join(format!("sluice-fairness-{:08x}", fastrand::u32(..)));
        std::fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let files = Self(directory);
        let entry = |key: &str, tenant: &str| {
            let hash = digest(&SHA256, key.as_bytes());
            let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("[[key]]\nsha256 = \"{hash}\"\ntenant = \"{tenant}\"\n")
        };
        std::fs::write(files.keys(), entry(STEADY_KEY, "steady") + &entry(GREEDY_KEY, "greedy"))?;
        let burst = quota / GREED;
        let quotas = format!("[[tenant]]\nname = \"greedy\"\nevents_per_s = {quota}\nburst_events = {burst}\n");
        std::fs::write(files.quotas(), quotas)?;
        Ok(files)
    }

    fn keys(&self) -> PathBuf {
        self.0.join("keys.toml")
    }

    fn quotas(&self) -> PathBuf {
        self.0.join("quotas.toml")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// What was measured beside another tenant that sends so many events a second.
struct Beside {
    latency: Histogram<u64>,
    /// Events a second of the other tenant that were stored.
    stored_per_s: f64,
}

pub(super) fn run(args: &Args, runtime: &Runtime) -> anyhow::Result<Report> {
    let name = format!("bench-fairness-{:08x}.", fastrand::u32(..));
    let installation = Installation::create(&args.common.parts, name)?;
    let files = Files::write(args.quota)?;
    let listen = free_address()?;
    let text = |path: &Path| path.display().to_string();
    let env = [
        ("SLUICE_LISTEN", listen.to_string()),
        ("SLUICE_API_KEYS", text(&files.keys())),
        ("SLUICE_QUOTAS", text(&files.quotas())),
    ];
    let _gateway = installation.start("sluice-gateway", &env)?;
    let address = format!("http://{listen}");
    let schema_id = installation.schema_id::<PaymentRecord>()?;
    let steady = records::prepare(args.rate * args.seconds, schema_id)?;
    // Twice what the quota lets through meanwhile, so that the other tenant is never done.
    let others = Arc::new(records::prepare(args.quota * (args.seconds + 5) * 2, schema_id)?);
    println!(
        "{} events a second of one tenant for {} s, beside another one with a quota of {} a second; a round to warm up, then \
         {} runs",
        args.rate, args.seconds, args.quota, args.common.runs
    );
    let mut report = Report::default();
    for run in 0..=args.common.runs {
        let (mut alone, mut within, mut greedy) = (None, None, None);
        // Each run begins with another one, so that none always follows the same.
        for way in 0..WAYS {
            let beside = |rate: u32| {
                let id = format!("{run}-{way}");
                runtime.block_on(measure(args, &address, &id, &steady, &others, rate))
            };
            match (way + run) % WAYS {
                0 => alone = Some(beside(0)?),
                1 => within = Some(beside(args.quota)?),
                _ => greedy = Some(beside(args.quota * GREED)?),
            }
        }
        let (Some(alone), Some(within), Some(greedy)) = (alone, within, greedy) else {
            continue;
        };
        let p99_ms = |beside: &Beside| beside.latency.value_at_quantile(0.99) as f64 / 1e3;
        println!(
            "{}: p99 {:.1} ms alone, {:.1} ms beside {:.0} stored a second of as many sent, {:.1} ms beside {:.0} of {}",
            if run == 0 {
                "warm-up".to_owned()
            } else {
                format!("run {run}")
            },
            p99_ms(&alone),
            p99_ms(&within),
            within.stored_per_s,
            p99_ms(&greedy),
            greedy.stored_per_s,
            args.quota * GREED
        );
        if run > 0 {
            report.add_latency(["fairness_alone_p50_ms", "fairness_alone_p99_ms"], &alone.latency);
            report.add_latency(["fairness_within_p50_ms", "fairness_within_p99_ms"], &within.latency);
            report.add_latency(["fairness_greedy_p50_ms", "fairness_greedy_p99_ms"], &greedy.latency);
            report.add("fairness_p99_ratio", "ratio", p99_ms(&greedy) / p99_ms(&within));
            report.add("fairness_greedy_stored_per_s", "1/s", greedy.stored_per_s);
        }
    }
    Ok(report)
}

/// Publishes at the steady rate, beside the other tenant at its rate, 0 for none.
async fn measure(
    args: &Args,
    address: &str,
    id: &str,
    steady: &[Record],
    others: &Arc<Vec<Record>>,
    rate: u32,
) -> anyhow::Result<Beside> {
    let mut other = None;
    if rate > 0 {
        let stream = Stream::open_as(address, format!("other-{id}"), GREEDY_KEY).await?;
        let (stored, others) = (stream.stored(), others.clone());
        let sending =
            tokio::spawn(async move { stream.publish(&others, BATCH_EVENTS, Some(rate.into())).await.map(drop) });
        sleep_until(Instant::now() + LEAD).await;
        other = Some((sending, stored));
    }
    let before = other.as_ref().map_or(0, |(_, stored)| stored.load(Ordering::Relaxed));
    let stream = Stream::open_as(address, format!("steady-{id}"), STEADY_KEY).await?;
    let started = Instant::now();
    let latency = stream.publish(steady, BATCH_EVENTS, Some(args.rate.into())).await?;
    let elapsed_s = started.elapsed().as_secs_f64();
    let mut stored_per_s = 0.0;
    if let Some((sending, stored)) = other {
        stored_per_s = (stored.load(Ordering::Relaxed) - before) as f64 / elapsed_s;
        if sending.is_finished() {
            sending.await?.context("the other tenant")?;
            anyhow::bail!("the other tenant was done before the measurement");
        }
        sending.abort();
    }
    Ok(Beside { latency, stored_per_s })
}
