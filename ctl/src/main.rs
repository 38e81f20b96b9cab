//! sluicectl: creates an installation's topics, shows topics, consumer groups and lag, drives dead letters
//! again, puts rule sets in force, ends reviews, and checks the ledger. Parse ▸ run ▸ print; an error
//! is one line on stderr and exit code 1 (a wrong command line: 2).

mod backtest;
mod commands;
mod dead_letters;
mod detach;
mod options;
mod postgres;
mod produce;
mod review;
mod rules;
mod table;
mod verify;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::error::ErrorKind::ValueValidation;
use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    let options = options::Options::parse();
    if let Err(error) = options.kafka.config().validate() {
        options::Options::command().error(ValueValidation, error).exit();
    }
    match commands::run(&options) {
        Ok(page) => print(&page),
        Err(error) => {
            eprintln!("sluicectl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whoever reads through a pipe may stop at any time; that is no error.
fn print(page: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(page.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            eprintln!("sluicectl: cannot write: {error}");
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}
