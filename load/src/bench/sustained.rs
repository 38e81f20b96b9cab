//! `bench sustained`: everything at once on this machine. The loader publishes through the gateway at a rate, the processor
//! decides, and one subscription sees every decision; what comes out is what all of it together can keep up with.

use tokio::runtime::Runtime;

use super::Common;
use super::child;
use super::parts::{Database, Installation, free_address, on_its_own};
use super::report::Report;

/// How long the loader waits for the last decisions.
const PATIENCE: &str = "60s";

/// Options of the benchmark.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) common: Common,
    /// Payments a second to offer
    #[arg(long, default_value_t = 60_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Payments of a message
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    batch: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..=3_600))]
    seconds: u16,
    /// Lanes of the processor
    #[arg(long, env = "SLUICE_LANES", default_value_t = 2)]
    lanes: u16,
}

pub(super) fn run(args: &Args, runtime: &Runtime) -> anyhow::Result<Report> {
    println!(
        "{} payments a second for {} s, {} a message; {} runs, each from nothing",
        args.rate, args.seconds, args.batch, args.common.runs
    );
    let mut report = Report::default();
    for run in 1..=args.common.runs {
        on_its_own(
            &args.common.parts,
            runtime,
            "sustained",
            run,
            |installation, database| once(args, installation, database, &mut report),
        )?;
    }
    Ok(report)
}

fn once(args: &Args, installation: &Installation, database: &Database, report: &mut Report) -> anyhow::Result<()> {
    let listen = free_address()?;
    let environment = [
        ("SLUICE_POSTGRES", database.url()),
        ("SLUICE_LANES", args.lanes.to_string()),
    ];
    let processor = installation.start("sluice-processor", &environment)?;
    let gateway = installation.start("sluice-gateway", &[("SLUICE_LISTEN", listen.to_string())])?;
    let cpu_s = [gateway.cpu_s()?, processor.cpu_s()?];
    let options = [
        ("--rps", args.rate.to_string()),
        ("--batch", args.batch.to_string()),
        ("--duration", format!("{}s", args.seconds)),
        ("--patience", PATIENCE.to_owned()),
    ];
    let run = child::run("end-to-end", &format!("http://{listen}"), &options)?;
    let decided = run.figure("/account/decided")?;
    report.add("sustained_events_per_s", "1/s", decided / (run.figure("/total")? / 1e9));
    let in_time = run.figure("/offered/sentInTime")? / run.figure("/offered/due")?;
    report.add("sustained_sent_in_time", "ratio", in_time);
    for (name, percentile) in [("sustained_p50_ms", "50"), ("sustained_p99_ms", "99")] {
        let took_us = run.figure(&format!("/latencies/decision/percentilesUs/{percentile}"))?;
        report.add(name, "ms", took_us / 1e3);
    }
    let cpu_us = |now: f64, before: f64| (now - before) * 1e6 / decided;
    report.add("sustained_gateway_cpu_us", "us", cpu_us(gateway.cpu_s()?, cpu_s[0]));
    report.add("sustained_processor_cpu_us", "us", cpu_us(processor.cpu_s()?, cpu_s[1]));
    report.add(
        "sustained_loader_cpu_us",
        "us",
        run.figure("/offered/cpuS")? * 1e6 / decided,
    );
    Ok(())
}
