//! Objectives such as `decision.p99<50ms`, `errors<0.01%` or `rate>=9900`: parsed before a run, judged after it.

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::model::Report;
use super::text::micros;
use crate::run::{Metric, duration};

/// Stands for the metric that the run is about.
const PRIMARY: &str = "latency";
const COUNTS: [&str; 5] = ["errors", "lost", "duplicates", "reordered", "unsent"];
const RATE: &str = "rate";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Less,
    AtMost,
    More,
    AtLeast,
}

#[derive(Clone, Debug, PartialEq)]
enum Measure {
    /// A statistic of a latency, in microseconds.
    Latency { metric: String, statistic: Statistic },
    /// One of `COUNTS`.
    Count { name: String, of_sent: bool },
    /// Answers a second.
    Rate,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Statistic {
    Mean,
    Min,
    Max,
    Percentile(f64),
}

/// What must hold.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Objective {
    text: String,
    measure: Measure,
    comparison: Comparison,
    bound: f64,
}

/// Whether it held.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Judgement {
    pub(crate) objective: String,
    /// What was measured, in words.
    pub(crate) measured: String,
    pub(crate) holds: bool,
}

/// Parses objectives that commas divide.
///
/// # Errors
/// When one of them is none.
pub(crate) fn parse(texts: &[String]) -> anyhow::Result<Vec<Objective>> {
    let parts = texts.iter().flat_map(|text| text.split(','));
    parts
        .map(|part| one(part.trim()).with_context(|| format!("{:?} is not an objective", part.trim())))
        .collect()
}

fn one(text: &str) -> anyhow::Result<Objective> {
    let at = text.find(['<', '>']).context("it needs < or >, as in ack.p99<20ms")?;
    let (name, rest) = text.split_at(at);
    let (comparison, bound) = match (&rest[..1], rest[1..].strip_prefix('=')) {
        ("<", Some(bound)) => (Comparison::AtMost, bound),
        ("<", None) => (Comparison::Less, &rest[1..]),
        (_, Some(bound)) => (Comparison::AtLeast, bound),
        (_, None) => (Comparison::More, &rest[1..]),
    };
    let (name, bound) = (name.trim(), bound.trim());
    let number = |text: &str| -> anyhow::Result<f64> {
        let number: f64 = text.parse().with_context(|| format!("{text:?} is not a number"))?;
        ensure!(
            number.is_finite() && number >= 0.0,
            "{text:?} is not a number of 0 or more"
        );
        Ok(number)
    };
    let (measure, bound) = match name.split_once('.') {
        Some((metric, statistic)) => {
            let known = metric == PRIMARY || Metric::ALL.iter().any(|known| known.name() == metric);
            ensure!(
                known,
                "there is no latency {metric:?}: use latency, ack, decision, delivery, service, stall or slip"
            );
            let statistic = parse_statistic(statistic)?;
            let bound = duration(bound).map_err(anyhow::Error::msg)?;
            let metric = metric.to_owned();
            (Measure::Latency { metric, statistic }, bound.as_secs_f64() * 1e6)
        }
        None if name == RATE => (Measure::Rate, number(bound.trim_end_matches("/s"))?),
        None if COUNTS.contains(&name) => {
            let percent = bound.strip_suffix('%');
            let name = name.to_owned();
            let bound = percent.map_or_else(|| number(bound), |percent| Ok(number(percent)? / 100.0))?;
            (
                Measure::Count {
                    name,
                    of_sent: percent.is_some(),
                },
                bound,
            )
        }
        None => bail!(
            "{name:?} cannot be measured: use errors, lost, duplicates, reordered, unsent, rate, or a latency such as ack.p99"
        ),
    };
    Ok(Objective {
        text: text.to_owned(),
        measure,
        comparison,
        bound,
    })
}

fn parse_statistic(text: &str) -> anyhow::Result<Statistic> {
    Ok(match text {
        "mean" => Statistic::Mean,
        "min" => Statistic::Min,
        "max" => Statistic::Max,
        _ => {
            let percentage = text.strip_prefix('p').and_then(|digits| digits.parse::<f64>().ok());
            let percentage = percentage.filter(|percentage| (0.0..=100.0).contains(percentage));
            Statistic::Percentile(
                percentage.with_context(|| format!("{text:?} is not mean, min, max or a percentile such as p99.9"))?,
            )
        }
    })
}

impl Objective {
    /// The count whose occurrence this objective judges, in place of the rule that there must be none.
    pub(crate) fn judges(&self, count: &str) -> bool {
        matches!(&self.measure, Measure::Count { name, .. } if name == count)
    }

    /// Whether a run met it.
    ///
    /// # Errors
    /// When the report's histograms cannot be read.
    pub(crate) fn judge(&self, report: &Report) -> anyhow::Result<Judgement> {
        let (value, measured) = self.measure(report)?;
        let holds = value.is_some_and(|value| match self.comparison {
            Comparison::Less => value < self.bound,
            Comparison::AtMost => value <= self.bound,
            Comparison::More => value > self.bound,
            Comparison::AtLeast => value >= self.bound,
        });
        Ok(Judgement {
            objective: self.text.clone(),
            measured,
            holds,
        })
    }

    fn measure(&self, report: &Report) -> anyhow::Result<(Option<f64>, String)> {
        match &self.measure {
            Measure::Latency { metric, statistic } => {
                let metric = if metric == PRIMARY { &report.primary } else { metric };
                let Some(latency) = report.latencies.get(metric).filter(|latency| latency.count > 0) else {
                    return Ok((None, "nothing measured".to_owned()));
                };
                let value_us = match statistic {
                    Statistic::Mean => latency.mean_us,
                    Statistic::Min => latency.min_us as f64,
                    Statistic::Max => latency.max_us as f64,
                    Statistic::Percentile(percentage) => latency.decode()?.value_at_percentile(*percentage) as f64,
                };
                Ok((Some(value_us), micros(value_us)))
            }
            Measure::Count { name, of_sent } => {
                let account = &report.account;
                let count = match name.as_str() {
                    "errors" => account.error_count(),
                    "lost" => account.lost,
                    "duplicates" => account.duplicates,
                    "reordered" => account.reordered,
                    _ => account.unsent,
                };
                let share = count as f64 / account.sent.max(1) as f64;
                let measured = format!("{count} ({:.4}%)", share * 100.0);
                Ok((Some(if *of_sent { share } else { count as f64 }), measured))
            }
            Measure::Rate => Ok((Some(report.rps), format!("{:.1}/s", report.rps))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::example;
    use super::*;

    fn holds(text: &str) -> bool {
        let mut report = example();
        report.account.errors.insert("INTERNAL".to_owned(), 2);
        let objectives = parse(&[text.to_owned()]).unwrap();
        objectives
            .iter()
            .all(|objective| objective.judge(&report).unwrap().holds)
    }

    #[test]
    fn objectives_are_judged() {
        assert!(holds("ack.p99<1s, latency.p50<=501ms,errors<0.5%,lost<1,rate>=500/s"));
        assert!(!holds("ack.p99<900ms"));
        assert!(!holds("errors<0.2%"));
        assert!(holds("errors<=0.2%"));
        assert!(!holds("decision.p50<1h"), "what was not measured cannot hold");
    }

    #[test]
    fn what_is_no_objective_is_said() {
        for bad in [
            "ack.p99",
            "ack.p101<1s",
            "nothing.p50<1s",
            "nothing<1",
            "errors<x",
            "ack.p99<20",
            "",
        ] {
            let error = format!("{:#}", parse(&[bad.to_owned()]).unwrap_err());
            assert!(error.contains("is not an objective"), "{error}");
        }
    }
}
