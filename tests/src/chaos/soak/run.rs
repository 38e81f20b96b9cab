//! Goes from round to round on one installation, until the time is over or something is wrong.
//!
//! Comes after [`super::options`], before [`super::report`].

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use sluice_proto::topics;

use super::check::Judge;
use super::faults;
use super::options::Options;
use super::report::Report;
use super::sample::Sampler;
use crate::chaos::world::{Setup, World};
use crate::checker::{Invariant, Violations, tell};
use crate::history::Beginning;
use crate::mix::{Mix, Pace};
use crate::stack::Stack;
use crate::traffic::{self, Traffic};
use crate::{ledger, wait};

/// How long traffic flows in a round: what a round leaves has to fit into memory, a partition and its neighbour at a time,
/// and the clients' own records of it.
const ROUND: Duration = Duration::from_secs(120);
/// The calm between two faults, in seconds; a fault and its recovery take three to fifteen.
const CALM_S: std::ops::Range<usize> = 8..20;
/// For so many seconds a process stands still, or a network: longer than a session's timeout.
const HOLD_S: usize = 3;
/// Rounds that are kept in Kafka, so that a state can be rebuilt without a snapshot.
const KEPT_ROUNDS: usize = 3;
/// Ticks of traffic in a second, and tenants that publish.
const TICKS: usize = 100;
const TENANTS: usize = 2;
/// Ordinary accounts of each tenant. Each comes by again after more than a minute, at the usual rate.
const ACCOUNTS: u64 = 120_000;
const PARTITIONS: u32 = 8;
/// How much faster the payments' own time goes: what is remembered of an account goes back an hour of it.
const PACE: u32 = 4;
/// A time that everything is before.
const ALWAYS: &str = "2100-01-01T00:00:00Z";

/// Runs the soak.
///
/// # Errors
/// When it cannot begin.
pub fn run(options: &Options) -> Result<Report> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("seed {seed}");
    // The checks compute for long; what flows meanwhile, such as the proxies, needs a thread of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut report = Report::new(seed, options.rate);
    let began = Instant::now();
    let mut violations = Violations::default();
    let ended = runtime.block_on(soak(options, &mut report, &mut violations));
    if let Err(error) = ended {
        violations.add(Invariant::Progress, format!("{error:#}"));
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    report.took = began.elapsed();
    report.violations.extend(violations.into_vec());
    if let Some(logs) = &report.logs {
        if report.violations.is_empty() {
            std::fs::remove_dir_all(logs)?;
            report.logs = None;
        } else {
            let told = format!("{}\n{}\n", report.faults.join("\n"), tell(&report.violations));
            std::fs::write(logs.join("violations.txt"), told)?;
        }
    }
    Ok(report)
}

async fn soak(options: &Options, report: &mut Report, violations: &mut Violations) -> Result<()> {
    let per_tenant = options.rate as usize / TENANTS;
    let setup = Setup {
        processors: 2,
        partitions: PARTITIONS,
        proxied: true,
        two_gateways: true,
        hold_events: per_tenant * HOLD_S,
        mix: Mix {
            tick_events: (per_tenant / TICKS).max(1),
            pause_after_ticks: 0,
            accounts: ACCOUNTS,
            hot: 1,
            pace: Pace::Fast(SystemTime::now(), PACE),
            ..Mix::ODD
        },
        ..Setup::default()
    };
    let mut world = World::start(setup, report.seed, options.limit()).await?;
    report.logs = Some(world.stack.directory().to_owned());
    let ended = rounds(options, &mut world, per_tenant, report).await;
    report.faults.clone_from(&world.faults);
    report.recoveries.clone_from(&world.recoveries);
    ended?;
    world.watch.end(World::longest_held_back(), violations).await?;
    world.stack.remove().await
}

async fn rounds(options: &Options, world: &mut World, per_tenant: usize, report: &mut Report) -> Result<()> {
    let began = Instant::now();
    world.launch(faults::MORTAL, &[])?;
    world.stack.ready().await?;
    let old = world.beside.as_ref().context("there is one gateway only")?;
    let pids = vec![old.process.pid(), world.stack.processor(0)?.pid()];
    let sampler = Sampler::start(pids);
    let mut judge = Judge::default();
    // The first round's traffic flows since the installation was started, from empty topics on.
    let mut beginnings = vec![Beginning::of_all(PARTITIONS)];
    let tenant = world.stack.tenant();
    let mut other = world.publish_crosswise(tenant.clone()).await?;
    loop {
        let since = Instant::now();
        let ended = async {
            sampler.flows(vec![world.traffic.observer(), other.observer()]);
            disturb(world, &mut other, per_tenant).await?;
            sampler.flows(Vec::new());
            report.loaded += since.elapsed();
            let stopped = [world.traffic.stop().await?, other.stop().await?];
            traffic::at_rest(&world.stack).await?;
            let mut outcomes = Vec::new();
            for stopped in stopped {
                // Whatever comes, until nothing comes any more.
                outcomes.push(stopped.received(|_accounts| usize::MAX).await?);
            }
            anyhow::Ok(outcomes)
        };
        let outcomes = ended.await?;
        report.count(&outcomes);
        let from = beginnings.last().context("a round has begun")?;
        judge = judge.round(&world.stack, from, outcomes).await?;
        report.rounds += 1;
        report.events = judge.events;
        report.compensated = judge.compensated;
        report.violations = std::mem::take(&mut judge.violations).into_vec();
        println!("{}", report.line(world.faults.len()));
        if !report.violations.is_empty() || began.elapsed() >= options.limit() {
            break;
        }
        let oldest = beginnings.len().saturating_sub(KEPT_ROUNDS);
        remove_checked(&world.stack, &beginnings[oldest]).await?;
        beginnings.push(Beginning::now(&world.stack).await?);
        world.publish_again().await?;
        other = world.publish_crosswise(tenant.clone()).await?;
    }
    report.samples = sampler.end().await?;
    Ok(())
}

/// Faults and calm in turn, for as long as a round lasts. It ends with everything working.
async fn disturb(world: &mut World, other: &mut Traffic, per_tenant: usize) -> Result<()> {
    let began = Instant::now();
    let partitions = usize::try_from(PARTITIONS)?;
    world.traffic.recovers(partitions).await?;
    other.recovers(partitions).await?;
    while began.elapsed() < ROUND {
        let calm = per_tenant * world.rng.usize(CALM_S);
        world.traffic.passes(calm).await?;
        faults::strike(world, per_tenant * HOLD_S).await?;
        other.recovers(partitions).await?;
    }
    Ok(())
}

/// Removes what was checked: the ledger's rows, which no payment that is still to come repeats, and the records of the
/// rounds before this one.
async fn remove_checked(stack: &Stack, before: &[Beginning]) -> Result<()> {
    let offsets = |of: fn(&Beginning) -> i64| before.iter().map(of).collect::<Vec<_>>();
    for (topic, offsets) in [
        (topics::PAYMENTS, offsets(|it| it.payments)),
        (topics::DECISIONS, offsets(|it| it.decisions)),
        (topics::DEAD_LETTERS, offsets(|it| it.letters)),
        (topics::LATE, offsets(|it| it.copies)),
    ] {
        crate::topics::delete_before(stack, topic, &offsets).await?;
    }
    let url = stack.database_url()?;
    for part in before {
        let partition = part.partition.to_string();
        let line = ["ledger", "detach", "--partition", &partition, "--before", ALWAYS];
        stack.sluicectl(&[&line[..], &["--without-rail", "--postgres", &url]].concat())?;
    }
    let mut connection = ledger::connect(stack).await?;
    let detached = "SELECT name FROM ledger_detached WHERE to_regclass(name) IS NOT NULL";
    let names: Vec<String> = sqlx::query_scalar(detached).fetch_all(&mut connection).await?;
    for name in names {
        let drop = format!("DROP TABLE {name}, saga_{name}, saga_step_{name}");
        wait::soon(
            "a detached table is dropped",
            sqlx::raw_sql(&drop).execute(&mut connection),
        )
        .await??;
    }
    Ok(())
}
