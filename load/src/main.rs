//! sluice-load: parse ▸ run ▸ exit code. 0 when everything was as promised, 1 when not, 2 when it could not be tried.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sluice_load::{bench, config_file, demo, report, run};
use tokio::runtime::{Builder, Runtime};

/// librdkafka's producer, which the benchmarks compare with, has the allocator that the servers have.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FAILED: u8 = 1;
const NOT_TRIED: u8 = 2;

/// Loads a Sluice gateway with payments, and measures what becomes of them.
#[derive(Parser)]
#[command(version, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish over streams, and measure to the acknowledgement
    Publish(run::Args),
    /// Publish each event with a call of its own
    PublishOne(run::Args),
    /// Have each payment decided with a call of its own
    Decide(run::Args),
    /// Receive decisions of whoever publishes, and measure their delivery
    Subscribe(run::Args),
    /// Publish over streams and subscribe, and measure from the publishing to the decision
    EndToEnd(run::Args),
    /// Show reports that were kept as JSON in another form, or merge several
    Report(report::ReportArgs),
    /// Show two reports that were kept as JSON beside each other
    Compare(report::CompareArgs),
    /// Publish payments, follow each one to its decision, and show what became of them
    Demo(demo::Args),
    /// Measure on real parts, which the environment names
    #[command(subcommand)]
    Bench(bench::Command),
}

fn main() -> ExitCode {
    let arguments = match config_file::expand(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => return not_tried(&error),
    };
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error)
            if error.use_stderr()
                && error.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            return not_tried(&anyhow::anyhow!(one_line(&error)));
        }
        Err(error) => error.exit(),
    };
    match execute(cli.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => not_tried(&error),
    }
}

fn execute(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::Publish(args) => load(run::Mode::Publish, args),
        Command::PublishOne(args) => load(run::Mode::PublishOne, args),
        Command::Decide(args) => load(run::Mode::Decide, args),
        Command::Subscribe(args) => load(run::Mode::Subscribe, args),
        Command::EndToEnd(args) => load(run::Mode::EndToEnd, args),
        Command::Report(args) => report::report(&args),
        Command::Compare(args) => report::compare(&args),
        Command::Demo(args) => runtime(None)?.block_on(demo::run(args)),
        Command::Bench(command) => bench::run(&command, &runtime(None)?).map(|()| true),
    }
}

fn load(mode: run::Mode, args: run::Args) -> anyhow::Result<bool> {
    runtime(run::threads(&args))?.block_on(run::run(mode, args))
}

fn runtime(threads: Option<usize>) -> std::io::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()
}

/// What is wrong with the command line, without the usage that follows it.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let words: Vec<&str> = text
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    let words = words.join(" ");
    format!("{} (see --help)", words.strip_prefix("error: ").unwrap_or(&words))
}

fn not_tried(error: &anyhow::Error) -> ExitCode {
    eprintln!("sluice-load: {error:#}");
    ExitCode::from(NOT_TRIED)
}
