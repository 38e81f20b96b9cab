//! Owns the simulation: the real code of the lanes and of the takeover over models of Kafka and Postgres that lose, delay and
//! repeat requests, one trial for each seed, and what `sluice-sim` does with them.
//!
//! [`trial`] runs one: [`input`] says what is published, [`faults`] what goes wrong, [`wire`] what happens when;
//! [`client`] and [`producer`] are what the lanes talk to, [`kafka`], [`group`] and [`postgres`] what answers; [`checker`]
//! compares what is left. docs/reliability.md tells what is modelled and what was found.

mod broken;
mod checker;
mod client;
mod faults;
mod group;
mod input;
mod kafka;
mod postgres;
mod producer;
mod trial;
mod wire;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

pub use broken::show;

/// Failures after which no more trials are run.
const ENOUGH_FAILURES: usize = 10;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The seed of the first trial; each further one has the next.
    pub seed: u64,
    /// How many trials.
    pub trials: u64,
    /// The safeguards that are left out; some of [`fail::safeguard`](sluice_kafka::fail::safeguard)'s.
    pub without: &'static [&'static str],
}

/// What came of the trials.
#[derive(Debug, Default)]
pub struct Report {
    /// Trials that were run.
    pub trials: u64,
    /// Records of the payments topic that were checked.
    pub records: u64,
    /// What was injected and what was seen, by name.
    pub counts: BTreeMap<&'static str, u64>,
    /// Seeds of the trials that failed, with what was wrong, in the order of the seeds.
    pub failures: BTreeMap<u64, Vec<String>>,
    /// How long it took, in seconds.
    pub took_s: f64,
}

/// Runs trials on every core, until all are done or enough have failed.
pub fn run(options: Options) -> Report {
    let started = Instant::now();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let report = Mutex::new(Report::default());
    let work = || {
        let mut mine = Report::default();
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= options.trials {
                break;
            }
            let seed = options.seed.wrapping_add(number);
            let outcome = trial::run(seed, options.without, false);
            mine.trials += 1;
            mine.records += outcome.records;
            for (what, count) in outcome.counts {
                *mine.counts.entry(what).or_default() += count;
            }
            if !outcome.violations.is_empty() {
                mine.failures.insert(seed, outcome.violations);
                if mine.failures.len() >= ENOUGH_FAILURES {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
        if let Ok(mut all) = report.lock() {
            all.add(mine);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut report = report.into_inner().unwrap_or_default();
    report.took_s = started.elapsed().as_secs_f64();
    report
}

/// Runs one trial again, and tells what happened in it and what was wrong at its end.
pub fn replay(seed: u64, without: &'static [&'static str]) -> (Vec<String>, Vec<String>) {
    let outcome = trial::run(seed, without, true);
    (outcome.story, outcome.violations)
}

impl Report {
    fn add(&mut self, other: Self) {
        self.trials += other.trials;
        self.records += other.records;
        self.failures.extend(other.failures);
        for (what, count) in other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }
}
