//! sluice-soak: what `./dev soak` runs once the parts are there. Exits with 1 when a promise was not kept.

use std::process::ExitCode;

use clap::Parser;
use sluice_tests::chaos::report::end;
use sluice_tests::chaos::soak::options::Options;
use sluice_tests::chaos::soak::run::run;

fn main() -> ExitCode {
    let options = Options::parse();
    let told = run(&options).map(|report| (report.markdown(), report.json(), report.passed()));
    end("sluice-soak", told, options.json.as_deref(), options.report.as_deref())
}
