//! sluice-soak: what `./dev soak` runs once the parts are there. Exits with 1 when a promise was not kept.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
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
