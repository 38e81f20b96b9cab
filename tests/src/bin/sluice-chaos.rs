//! sluice-chaos: what `./dev chaos` runs once the parts are there. Exits with 1 when a promise was not kept or a broken
//! build was not caught.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use sluice_tests::chaos::options::Options;
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
    let text = report.markdown();
    println!("\n{text}");
    if let Some(path) = &options.json {
        write(path, &serde_json::to_string_pretty(&report.json())?)?;
    }
    if let Some(path) = &options.report {
        write(path, &text)?;
    }
    Ok(report.passed())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
