//! sluice-chaos: what `./dev chaos` runs once the parts are there. Exits with 1 when a promise was not kept or a broken
//! build was not caught.

use std::process::ExitCode;

use clap::Parser;
use sluice_tests::chaos::options::Options;
use sluice_tests::chaos::report::end;
use sluice_tests::chaos::run::run;

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        print!("{}", Options::names());
        return ExitCode::SUCCESS;
    }
    let told = run(&options).map(|report| (report.markdown(), report.json(), report.passed()));
    end("sluice-chaos", told, options.json.as_deref(), options.report.as_deref())
}
