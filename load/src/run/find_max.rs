//! The highest rate at which the objectives hold: doubled until one fails, then halved between.
//!
//! Each rate is a run of its own. A rate holds when its run succeeded and offered what was asked for in time.

use anyhow::Context;

use super::options::Args;
use super::plan::Plan;
use super::record::Detail;
use super::{Screen, once};
use crate::report::{CANCELLED, Report, Trial};

/// Runs beyond this number find nothing more.
const MAX_TRIALS: usize = 32;
/// A rate of which less was sent in time was not offered.
const OFFERED_SHARE: f64 = 0.99;

/// Searches.
///
/// # Errors
/// When a run could not be tried.
pub(crate) async fn run(plan: &Plan, args: &Args, screen: &mut Screen) -> anyhow::Result<(Report, Vec<Detail>)> {
    let mut search = Search::new(args.load.rps, args.load.find_precision);
    let mut trials = Vec::new();
    let (mut best, mut last) = (None, None);
    while let Some(rate_per_s) = search.next().filter(|_| trials.len() < MAX_TRIALS) {
        let (report, details) = once(&plan.at_rate(rate_per_s, args.load.duration), screen).await?;
        let is_cancelled = report.end_reason == CANCELLED;
        let trial = judge(rate_per_s, &report);
        let verdict = if trial.held { "held" } else { "failed" };
        if !args.output.quiet {
            eprintln!("{rate_per_s:.0}/s {verdict} {}", trial.why.join("; "));
        }
        search.tell(rate_per_s, trial.held);
        let held = trial.held;
        trials.push(trial);
        if held {
            best = Some((report, details));
        } else {
            last = Some((report, details));
        }
        if is_cancelled {
            break;
        }
    }
    let (mut report, details) = best.or(last).context("no rate was tried")?;
    report.trials = trials;
    Ok((report, details))
}

fn judge(rate_per_s: f64, report: &Report) -> Trial {
    let mut why: Vec<String> = report
        .objectives
        .iter()
        .filter(|judgement| !judgement.holds)
        .map(|judgement| format!("{} was {}", judgement.objective, judgement.measured))
        .collect();
    why.extend(report.faults.iter().cloned());
    if report.end_reason == CANCELLED {
        why.push("interrupted".to_owned());
    }
    let share = report
        .offered
        .due
        .map_or(1.0, |due| report.offered.sent_in_time as f64 / due.max(1) as f64);
    if share < OFFERED_SHARE {
        why.extend(report.notes.iter().cloned());
    }
    let percentile = |percentage| report.primary().map_or(0, |latency| latency.percentile_us(percentage));
    Trial {
        rate_per_s,
        held: why.is_empty(),
        answered_per_s: report.rps,
        p50_us: percentile(50.0),
        p99_us: percentile(99.0),
        why,
    }
}

/// Which rate to try next.
#[derive(Debug)]
struct Search {
    first: f64,
    precision: f64,
    held: Option<f64>,
    failed: Option<f64>,
}

impl Search {
    fn new(first: f64, precision: f64) -> Self {
        Self {
            first,
            precision,
            held: None,
            failed: None,
        }
    }

    fn next(&self) -> Option<f64> {
        let rate = match (self.held, self.failed) {
            (None, None) => self.first,
            (Some(held), None) => held * 2.0,
            (None, Some(failed)) if failed < 2.0 => return None,
            (None, Some(failed)) => failed / 2.0,
            (Some(held), Some(failed)) if (failed - held) / failed <= self.precision => return None,
            (Some(held), Some(failed)) => f64::midpoint(held, failed),
        };
        Some(rate.round().max(1.0))
    }

    fn tell(&mut self, rate: f64, held: bool) {
        if held {
            self.held = Some(rate);
        } else {
            self.failed = Some(rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(first: f64, capacity: f64) -> (Option<f64>, usize) {
        let mut search = Search::new(first, 0.05);
        let mut tried = 0;
        while let Some(rate) = search.next().filter(|_| tried < MAX_TRIALS) {
            search.tell(rate, rate <= capacity);
            tried += 1;
        }
        (search.held, tried)
    }

    #[test]
    fn the_knee_is_found_from_both_sides() {
        for (first, capacity) in [(100.0, 12_345.0), (50_000.0, 12_345.0), (12_000.0, 12_345.0)] {
            let (held, tried) = find(first, capacity);
            let held = held.unwrap();
            assert!(held <= capacity && held > capacity * 0.94, "{held} in {tried}");
            assert!(tried < 16, "{tried}");
        }
        assert_eq!(find(8.0, 0.0).0, None);
    }
}
