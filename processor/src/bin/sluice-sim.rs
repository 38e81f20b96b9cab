//! sluice-sim: runs trials of the exactly-once protocol over models of Kafka and Postgres. `./dev sim` builds and calls it.

use std::process::ExitCode;

use clap::Parser;
use sluice_processor::sim::{self, Options};

/// The trials allocate a lot, in small pieces.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs the lanes' real code over models of Kafka and Postgres that lose, delay and repeat requests, and checks that every
/// promise is kept. Exits with 1 when one is not.
#[derive(Debug, Parser)]
#[command(name = "sluice-sim")]
struct Arguments {
    /// How many trials; with 1, and where a trial fails, everything that happened in it is told
    #[arg(long, default_value_t = 10_000)]
    trials: u64,
    /// The seed of the first trial; each further one has the next
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave these safeguards out, separated by commas
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Show that the absence of each safeguard is noticed, instead
    #[arg(long, conflicts_with_all = ["trials", "without"])]
    broken: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let passed = if arguments.broken {
        let (told, all) = sim::show(arguments.seed);
        print!("{told}");
        all
    } else {
        run(arguments)
    };
    ExitCode::from(u8::from(!passed))
}

fn run(arguments: Arguments) -> bool {
    // It is asked for once and used until the process ends.
    let names = arguments.without.into_iter().map(|name| &*name.leak());
    let without: &'static [&'static str] = names.collect::<Vec<&'static str>>().leak();
    let Arguments { seed, trials, .. } = arguments;
    let report = sim::run(Options { seed, trials, without });
    println!(
        "{} trials in {:.1} s, seeds {seed} to {}, {} records checked",
        report.trials,
        report.took_s,
        seed.wrapping_add(trials).wrapping_sub(1),
        report.records
    );
    for (what, count) in &report.counts {
        println!("  {what}: {count}");
    }
    for (seed, violations) in &report.failures {
        println!("seed {seed} failed:");
        violations.iter().for_each(|violation| println!("  {violation}"));
    }
    if let Some(seed) = report.failures.keys().next().filter(|_| trials == 1) {
        println!("what happened with seed {seed}:");
        sim::replay(*seed, without).0.iter().for_each(|line| println!("{line}"));
    } else if let Some(seed) = report.failures.keys().next() {
        println!("the first again, with all that happens in it: ./dev sim --trials 1 --seed {seed}");
    }
    report.failures.is_empty()
}
