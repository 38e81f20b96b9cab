//! `sluice-load bench`: what the gateway and the processor do on this machine, beside a plain Kafka producer on the same
//! records in the same run.
//!
//! `records` prepares what is sent, `parts` starts the part that is measured, `plain` and `stream` send, `detection`, `ingest`,
//! `fairness`, `loader`, `process`, `ledger`, `state`, `sustained` and `subscribers` are the benchmarks, `child` is the loader
//! as a process of its own, `report` prints the figures: medians with their extremes.

mod child;
mod detection;
mod fairness;
mod ingest;
mod ledger;
mod loader;
mod parts;
mod plain;
mod process;
mod records;
mod report;
mod restore;
mod state;
mod stream;
mod subscribers;
mod sustained;

use std::path::PathBuf;

use tokio::runtime::Runtime;

pub(crate) use parts::own_cpu_s;
use report::Report;

/// What can be measured.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// How well rules tell fraud from the rest, on card transactions whose truth is known
    Detection(detection::Args),
    /// How fast the gateway stores events: 64 a message, one a message over 4 streams, and a plain producer beside it
    Ingest(ingest::Args),
    /// How much later a tenant's events are acknowledged while another tenant sends ten times what its quota allows
    Fairness(fairness::Args),
    /// What the loader itself can offer on one thread, to a server that only acknowledges
    Loader(loader::Args),
    /// How fast the processor decides a topic full of payments, how soon at a steady rate, and what a takeover and a restart
    /// cost
    Process(process::Args),
    /// What a ledger that grows to millions of rows costs, and a client that publishes old payments again
    Ledger(ledger::Args),
    /// How much memory the processor takes to remember accounts, and how long it takes to judge a payment
    State(state::Args),
    /// What loader, gateway, broker, database and processor keep up with together
    Sustained(sustained::Args),
    /// How soon thousands of subscriptions have their decisions, and what they cost the gateway
    Subscribers(subscribers::Args),
}

/// Options of every benchmark.
#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// How often everything is measured; the figures are medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    runs: u16,
    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    parts: parts::Options,
}

/// Runs a benchmark and reports its figures.
///
/// # Errors
/// When a part cannot be started, or did not do all of its work.
pub fn run(command: &Command, runtime: &Runtime) -> anyhow::Result<()> {
    let (json, report): (_, Report) = match command {
        Command::Detection(args) => (&args.json, detection::run(args)?),
        Command::Ingest(args) => (&args.common.json, ingest::run(args, runtime)?),
        Command::Fairness(args) => (&args.common.json, fairness::run(args, runtime)?),
        Command::Loader(args) => (&args.common.json, loader::run(args)?),
        Command::Process(args) => (&args.common.json, process::run(args, runtime)?),
        Command::Ledger(args) => (&args.common.json, ledger::run(args, runtime)?),
        Command::State(args) => (&args.json, state::run(args)?),
        Command::Sustained(args) => (&args.common.json, sustained::run(args, runtime)?),
        Command::Subscribers(args) => (&args.common.json, subscribers::run(args, runtime)?),
    };
    report.print();
    json.as_deref().map_or(Ok(()), |path| report.write(path))
}
