//! What came of a soak, for people and for machines, and whether what the servers take stayed the same.
//!
//! Comes last: after [`super::run`].

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::sample::{Sample, Taken};
use crate::chaos::report::median_and_max_ms;
use crate::checker::{Violation, tell};
use crate::traffic::Outcomes;

/// What comes before says nothing: states fill until payments are an hour and the allowed lateness old, which is four times as
/// soon as they are in hours of the wall clock, and accounts are met.
const WARM_UP: Duration = Duration::from_secs(25 * 60);
/// Fewer samples in a quarter say nothing either.
const QUARTER_SAMPLES: usize = 12;
/// The servers that are looked at, in the sampler's order.
const SERVERS: [&str; 2] = ["gateway", "processor"];

/// All rounds of a soak.
#[derive(Debug)]
pub struct Report {
    /// Where the choices came from.
    pub seed: u64,
    /// Payments a second that were asked for.
    pub rate: u32,
    /// How long it took.
    pub took: Duration,
    /// For how long of that traffic flowed.
    pub loaded: Duration,
    /// Rounds that were checked.
    pub rounds: usize,
    /// Everything that was broken, in order.
    pub faults: Vec<String>,
    /// Times until everything worked again.
    pub recoveries: Vec<Duration>,
    /// Records of the payments topic that were checked.
    pub events: usize,
    /// Payments that were published, repetitions included.
    pub published: usize,
    /// Ids that the gateway acknowledged.
    pub acked: usize,
    /// Decisions that subscribers received.
    pub delivered: usize,
    /// Rows that takeovers removed.
    pub compensated: i64,
    /// What was wrong.
    pub violations: Vec<Violation>,
    /// What was seen meanwhile.
    pub samples: Vec<Sample>,
    /// Where the logs are, where something was wrong.
    pub logs: Option<PathBuf>,
}

/// One figure, at first and at last.
#[derive(Clone, Debug, PartialEq)]
struct Trend {
    name: &'static str,
    first: f64,
    last: f64,
    flat: bool,
}

impl Report {
    /// Nothing yet.
    pub const fn new(seed: u64, rate: u32) -> Self {
        Self {
            seed,
            rate,
            took: Duration::ZERO,
            loaded: Duration::ZERO,
            rounds: 0,
            faults: Vec::new(),
            recoveries: Vec::new(),
            events: 0,
            published: 0,
            acked: 0,
            delivered: 0,
            compensated: 0,
            violations: Vec::new(),
            samples: Vec::new(),
            logs: None,
        }
    }

    /// Adds what a round's clients saw.
    pub fn count(&mut self, outcomes: &[Outcomes]) {
        for outcome in outcomes {
            self.published += outcome.payments;
            self.acked += outcome.expected.acked.len();
            let received = outcome.received.iter().map(|received| received.decisions.len());
            self.delivered += received.sum::<usize>();
        }
    }

    /// Whether nothing was wrong, and nothing grew as far as it can be told.
    pub fn passed(&self) -> bool {
        self.violations.is_empty() && self.trends().iter().all(|trend| trend.flat)
    }

    /// How far it has come.
    pub fn line(&self, faults: usize) -> String {
        format!(
            "{} rounds, {} s of traffic: {faults} faults, {} events checked, {} violations",
            self.rounds,
            self.loaded.as_secs(),
            self.events,
            self.violations.len()
        )
    }

    /// The medians of the first and the last quarter after the warm-up; none where that is too short.
    fn trends(&self) -> Vec<Trend> {
        let warm: Vec<&Sample> = self.samples.iter().filter(|sample| sample.at >= WARM_UP).collect();
        let quarter = warm.len() / 4;
        if quarter < QUARTER_SAMPLES {
            return Vec::new();
        }
        let (first, last) = (&warm[..quarter], &warm[warm.len() - quarter..]);
        FIGURES
            .iter()
            .filter_map(|figure| {
                let first = median(first.iter().filter_map(|sample| (figure.of)(sample)))?;
                let last = median(last.iter().filter_map(|sample| (figure.of)(sample)))?;
                Some(Trend {
                    name: figure.what,
                    first,
                    last,
                    flat: last <= first * (1.0 + figure.share) + figure.more,
                })
            })
            .collect()
    }

    /// The figures. Durations are in milliseconds unless they say otherwise.
    pub fn json(&self) -> Value {
        let (p50, max) = median_and_max_ms(self.recoveries.iter());
        let trends = self.trends();
        let flat = (!trends.is_empty()).then(|| trends.iter().all(|trend| trend.flat));
        let trends = trends.iter().map(|trend| {
            json!({"figure": trend.name, "first_quarter": trend.first, "last_quarter": trend.last, "flat": trend.flat})
        });
        let kills = self
            .faults
            .iter()
            .filter(|fault| fault.contains("kill") || fault.contains("crash"));
        json!({
            "seed": self.seed,
            "rate_per_s": self.rate,
            "achieved_per_s": self.achieved_per_s(),
            "rounds": self.rounds,
            "seconds": self.took.as_secs(),
            "loaded_seconds": self.loaded.as_secs(),
            "faults": self.faults.len(),
            "kills": kills.count(),
            "events_checked": self.events,
            "acknowledged": self.acked,
            "delivered": self.delivered,
            "compensated_rows": self.compensated,
            "violations": self.violations.len(),
            "recovery_p50_ms": p50,
            "recovery_max_ms": max,
            "flat": flat,
            "flatness": trends.collect::<Vec<_>>(),
            "samples": self.samples.iter().map(sample_json).collect::<Vec<_>>(),
        })
    }

    fn achieved_per_s(&self) -> u64 {
        (self.published as u64).checked_div(self.loaded.as_secs()).unwrap_or(0)
    }

    /// The same for people.
    pub fn markdown(&self) -> String {
        let (p50, max) = median_and_max_ms(self.recoveries.iter());
        let mut text = format!(
            "# Soak\n\nSeed {}: {} rounds in {} s, {} s of them with traffic, {} payments a second of {} asked for; {} \
             faults; {} events checked, {} acknowledged, {} decisions delivered, {} rows compensated; {} violations; \
             recovery p50 {p50} ms, max {max} ms.\n\n",
            self.seed,
            self.rounds,
            self.took.as_secs(),
            self.loaded.as_secs(),
            self.achieved_per_s(),
            self.rate,
            self.faults.len(),
            self.events,
            self.acked,
            self.delivered,
            self.compensated,
            self.violations.len(),
        );
        let trends = self.trends();
        if trends.is_empty() {
            let minutes = WARM_UP.as_secs() / 60;
            // Writing to a String cannot fail.
            let _written = writeln!(
                text,
                "Too short to tell whether it stays flat: the first {minutes} minutes are passed over. What was seen last:\n"
            );
            for figure in FIGURES {
                let last = self.samples.last().and_then(figure.of);
                let _written = writeln!(text, "- {}: {:.0}", figure.what, last.unwrap_or_default());
            }
        } else {
            text += "| figure | first quarter | last quarter | flat |\n|---|---|---|---|\n";
        }
        for trend in trends {
            let flat = if trend.flat { "yes" } else { "**no**" };
            let _written = writeln!(
                text,
                "| {} | {:.0} | {:.0} | {flat} |",
                trend.name, trend.first, trend.last
            );
        }
        if !self.passed() {
            let logs = self.logs.as_deref().map(|logs| logs.display().to_string());
            let _written = write!(
                text,
                "\n```\n{}\nfaults: {}\nlogs: {}\n```\n",
                tell(&self.violations),
                self.faults.join(", "),
                logs.unwrap_or_else(|| "none".to_owned())
            );
        }
        text
    }
}

/// What is looked at, and by how much it may be more at last than at first.
struct Figure {
    what: &'static str,
    of: fn(&Sample) -> Option<f64>,
    /// As a part of what it was.
    share: f64,
    /// In its own unit.
    more: f64,
}

const fn figure(what: &'static str, of: fn(&Sample) -> Option<f64>, share: f64, more: f64) -> Figure {
    Figure { what, of, share, more }
}

fn of_server(sample: &Sample, server: usize, what: fn(&Taken) -> u64) -> Option<f64> {
    sample.taken.get(server).map(|taken| what(taken) as f64)
}

/// A tenth more memory is the allocator's; a delay's median moves by a step of its scale.
const FIGURES: [Figure; 8] = [
    figure(
        "gateway, memory (MiB)",
        |it| of_server(it, 0, |taken| taken.memory_mib),
        0.1,
        8.0,
    ),
    figure(
        "gateway, file descriptors",
        |it| of_server(it, 0, |taken| taken.descriptors),
        0.1,
        4.0,
    ),
    figure(
        "gateway, threads",
        |it| of_server(it, 0, |taken| taken.threads),
        0.0,
        2.0,
    ),
    figure(
        "processor, memory (MiB)",
        |it| of_server(it, 1, |taken| taken.memory_mib),
        0.1,
        8.0,
    ),
    figure(
        "processor, file descriptors",
        |it| of_server(it, 1, |taken| taken.descriptors),
        0.1,
        4.0,
    ),
    figure(
        "processor, threads",
        |it| of_server(it, 1, |taken| taken.threads),
        0.0,
        2.0,
    ),
    figure(
        "delay to the decision, p50 (ms)",
        |it| it.delay_ms.map(|delay| delay.0),
        0.25,
        5.0,
    ),
    figure(
        "delay to the decision, p99 (ms)",
        |it| it.delay_ms.map(|delay| delay.1),
        0.5,
        50.0,
    ),
];

fn sample_json(sample: &Sample) -> Value {
    let servers = SERVERS.iter().zip(&sample.taken).map(|(name, taken)| {
        let taken = json!({"memory_mib": taken.memory_mib, "descriptors": taken.descriptors, "threads": taken.threads});
        ((*name).to_owned(), taken)
    });
    json!({
        "at_s": sample.at.as_secs(),
        "servers": servers.collect::<serde_json::Map<_, _>>(),
        "delay_p50_ms": sample.delay_ms.map(|(p50, _)| p50.round()),
        "delay_p99_ms": sample.delay_ms.map(|(_, p99)| p99.round()),
    })
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(memory_mib: impl Fn(u64) -> u64) -> Report {
        let mut report = Report::new(1, 1);
        report.samples = (0..360)
            .map(|number| Sample {
                at: Duration::from_secs(20 * number),
                taken: vec![
                    Taken {
                        memory_mib: memory_mib(number),
                        descriptors: 40,
                        threads: 12,
                    };
                    2
                ],
                delay_ms: Some((30.0, 90.0)),
            })
            .collect();
        report
    }

    #[test]
    fn what_grows_is_not_flat_and_what_grows_at_first_is() {
        assert_eq!(report(|_| 100).json()["flat"], true);
        assert_eq!(report(|number| number.min(90)).json()["flat"], true);
        let growing = report(|number| 100 + number);
        assert_eq!(growing.json()["flat"], false);
        assert!(growing.markdown().contains("**no**"), "{}", growing.markdown());
    }

    #[test]
    fn a_short_run_does_not_tell() {
        let mut short = report(|_| 100);
        short.samples.truncate(100);
        assert_eq!(short.json()["flat"], Value::Null);
    }
}
