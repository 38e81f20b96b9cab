//! sluice-load: parse ▸ run ▸ exit code. 0 when everything was as promised, 1 when not, 2 when it could not be tried.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sluice_load::{bench, demo};

const FAILED: u8 = 1;
const NOT_TRIED: u8 = 2;

/// Publishes payments through a Sluice gateway, and measures.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Publish payments, follow each one to its decision, and show what became of them
    Demo(demo::Args),
    /// Measure on real parts, which the environment names
    #[command(subcommand)]
    Bench(bench::Command),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return not_tried(&error.into()),
    };
    let result = match cli.command {
        Command::Demo(args) => runtime.block_on(demo::run(args)),
        Command::Bench(command) => bench::run(&command, &runtime).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => not_tried(&error),
    }
}

fn not_tried(error: &anyhow::Error) -> ExitCode {
    eprintln!("sluice-load: {error:#}");
    ExitCode::from(NOT_TRIED)
}
