//! sluice-soak: what `./dev soak` runs once the parts are there. Exits with 1 when a promise was not kept.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use sluice_tests::chaos::report::print_and_write;
use sluice_tests::chaos::soak::options::Options;
use sluice_tests::chaos::soak::run::run;

fn main() -> ExitCode {
    match soak(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sluice-soak: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn soak(options: &Options) -> Result<bool> {
    let report = run(options)?;
    print_and_write(
        &report.markdown(),
        &report.json(),
        options.json.as_deref(),
        options.report.as_deref(),
    )?;
    Ok(report.passed())
}
