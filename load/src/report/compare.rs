//! Two reports beside each other: what became faster, slower or different.

use std::fmt::Write as _;

use super::model::Report;
use super::text::micros;

/// Differences smaller than this part are not worth a sign: HDR histograms of three digits are no finer either.
const NOTEWORTHY: f64 = 0.02;
const COLUMNS: [f64; 5] = [50.0, 90.0, 95.0, 99.0, 99.9];

/// A table of both reports.
pub(crate) fn table(a: &Report, b: &Report) -> String {
    let mut out = String::new();
    line!(out, "A: {}", describe(a));
    line!(out, "B: {}\n", describe(b));
    if a.tool == b.tool && (a.mode != b.mode || a.open_loop != b.open_loop) {
        line!(
            out,
            "these runs measure different things; read the differences with care\n"
        );
    }
    line!(out, "{:<22}{:>14}{:>14}{:>12}", "", "A", "B", "B against A");
    let mut row = |what: &str, a: f64, b: f64, show: &dyn Fn(f64) -> String| {
        line!(out, "{what:<22}{:>14}{:>14}{:>12}", show(a), show(b), difference(a, b));
    };
    let rate = |value: f64| format!("{value:.1}/s");
    let count = |value: f64| format!("{value:.0}");
    row("rate", a.rps, b.rps, &rate);
    let metrics = a.latencies.keys().filter(|metric| b.latencies.contains_key(*metric));
    for metric in metrics {
        let (one, two) = (&a.latencies[metric], &b.latencies[metric]);
        row(&format!("{metric} mean"), one.mean_us, two.mean_us, &micros);
        let both = |column: &f64| {
            [one, two]
                .iter()
                .all(|each| each.percentiles_us.contains_key(&column.to_string()))
        };
        for column in COLUMNS.into_iter().filter(both) {
            let (one, two) = (one.percentile_us(column) as f64, two.percentile_us(column) as f64);
            row(&format!("{metric} p{column}"), one, two, &micros);
        }
        row(&format!("{metric} max"), one.max_us as f64, two.max_us as f64, &micros);
    }
    let counts = [
        ("sent", a.account.sent, b.account.sent),
        ("errors", a.account.error_count(), b.account.error_count()),
        ("lost", a.account.lost, b.account.lost),
        ("duplicates", a.account.duplicates, b.account.duplicates),
        ("reordered", a.account.reordered, b.account.reordered),
        ("never sent", a.account.unsent, b.account.unsent),
        ("resumes", a.account.resumes, b.account.resumes),
    ];
    for (what, a, b) in counts {
        row(what, a as f64, b as f64, &count);
    }
    out
}

fn describe(report: &Report) -> String {
    let name = report.name.as_ref().map_or(String::new(), |name| format!("{name}, "));
    format!(
        "{name}{}, {} to {}, {}",
        report.date, report.mode, report.host, report.load
    )
}

/// How much larger the second is.
fn difference(a: f64, b: f64) -> String {
    if a == b {
        return "=".to_owned();
    }
    if a == 0.0 {
        return "new".to_owned();
    }
    let part = (b - a) / a;
    if part.abs() < NOTEWORTHY {
        format!("~ {:+.1} %", part * 100.0)
    } else {
        format!("{:+.1} %", part * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::example;
    use super::*;

    #[test]
    fn differences_are_in_percent() {
        assert_eq!(difference(100.0, 150.0), "+50.0 %");
        assert_eq!(difference(100.0, 99.0), "~ -1.0 %");
        assert_eq!(difference(0.0, 5.0), "new");
        assert_eq!(difference(5.0, 5.0), "=");
        let table = table(&example(), &example());
        assert!(table.contains("ack p99.9") && table.contains("duplicates"), "{table}");
    }
}
