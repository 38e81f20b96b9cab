//! The figures of a benchmark: collected run by run, shown as medians with their extremes, written as JSON.
//!
//! Comes last. The names and units are stable: other programs read them.

use std::path::Path;

use anyhow::Context;
use hdrhistogram::Histogram;
use serde::Serialize;

/// One figure over all runs.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    unit: &'static str,
    runs: usize,
    min: f64,
    median: f64,
    max: f64,
}

/// Every figure of a benchmark, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Report {
    values: Vec<(&'static str, &'static str, Vec<f64>)>,
}

impl Report {
    /// One run's value.
    pub(super) fn add(&mut self, name: &'static str, unit: &'static str, value: f64) {
        match self.values.iter_mut().find(|(known, _unit, _values)| *known == name) {
            Some((_name, _unit, values)) => values.push(value),
            None => self.values.push((name, unit, vec![value])),
        }
    }

    /// One run's latencies, kept in microseconds: median and 99th percentile.
    pub(super) fn add_latency(&mut self, names: [&'static str; 2], histogram: &Histogram<u64>) {
        for (name, quantile) in names.into_iter().zip([0.50, 0.99]) {
            self.add(name, "ms", histogram.value_at_quantile(quantile) as f64 / 1e3);
        }
    }

    fn figures(&self) -> Vec<Figure> {
        let figure = |(name, unit, values): &(&'static str, &'static str, Vec<f64>)| {
            let mut sorted = values.clone();
            sorted.sort_unstable_by(f64::total_cmp);
            Figure {
                name,
                unit,
                runs: sorted.len(),
                min: sorted.first().copied().unwrap_or_default(),
                median: median(&sorted),
                max: sorted.last().copied().unwrap_or_default(),
            }
        };
        self.values.iter().map(figure).collect()
    }

    /// Prints the table.
    pub(super) fn print(&self) {
        println!("\n{:<36}{:>10}{:>12}{:>12}{:>12}", "", "unit", "median", "min", "max");
        for figure in self.figures() {
            let [median, min, max] = [figure.median, figure.min, figure.max].map(short);
            println!("{:<36}{:>10}{median:>12}{min:>12}{max:>12}", figure.name, figure.unit);
        }
        println!(
            "medians of {} runs",
            self.values.first().map_or(0, |(_name, _unit, values)| values.len())
        );
    }

    /// Writes the figures as JSON.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(&self.figures())?;
        std::fs::write(path, json + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Latencies in microseconds up to an hour, to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the bounds are constants that the histogram accepts")]
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("valid bounds")
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Whole numbers where they are large, three digits where they are small.
fn short(value: f64) -> String {
    if value.abs() >= 1_000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_extremes() {
        let mut report = Report::default();
        for value in [3.0, 1.0, 2.0, 10.0] {
            report.add("a", "ms", value);
        }
        let figure = &report.figures()[0];
        assert_eq!(
            (figure.runs, figure.min, figure.median, figure.max),
            (4, 1.0, 2.5, 10.0)
        );
        assert_eq!(serde_json::to_value(figure).unwrap()["name"], "a");
    }
}
