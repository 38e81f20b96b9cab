//! sluice-chaos: what `./dev chaos` runs once the parts are there. Exits with 1 when a promise was not kept or a broken
//! build was not caught.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use sluice_tests::chaos::options::Options;
use sluice_tests::chaos::report::print_and_write;
use sluice_tests::chaos::run::run;

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        print!("{}", Options::names());
        return ExitCode::SUCCESS;
    }
    match chaos(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sluice-chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn chaos(options: &Options) -> Result<bool> {
    let report = run(options)?;
    print_and_write(
        &report.markdown(),
        &report.json(),
        options.json.as_deref(),
        options.report.as_deref(),
    )?;
    Ok(report.passed())
}
