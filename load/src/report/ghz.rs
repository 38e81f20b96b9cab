//! Reports of ghz in JSON, as far as they can be compared with ours.
//!
//! ghz measures from the actual sending, which is our `service`, and keeps percentiles up to the 99th.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;

use super::model::{Latency, Percentile, Report};

const METRIC: &str = "service";
const NS_PER_US: u64 = 1_000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ghz {
    #[serde(default)]
    name: Option<String>,
    date: String,
    count: u64,
    total: u64,
    average: u64,
    fastest: u64,
    slowest: u64,
    rps: f64,
    #[serde(default)]
    options: Options,
    #[serde(default)]
    status_code_distribution: BTreeMap<String, u64>,
    latency_distribution: Vec<Percentile>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Options {
    call: String,
    host: String,
    concurrency: u64,
    rps: u64,
}

/// Reads ghz's JSON.
///
/// # Errors
/// When it is not that.
pub(super) fn parse(text: &str) -> anyhow::Result<Report> {
    let ghz: Ghz = serde_json::from_str(text).context("not a report of sluice-load or ghz in JSON")?;
    let percentile = |each: &Percentile| (each.percentage.to_string(), each.latency / NS_PER_US);
    let latency = Latency {
        count: ghz.count,
        mean_us: ghz.average as f64 / NS_PER_US as f64,
        min_us: ghz.fastest / NS_PER_US,
        max_us: ghz.slowest / NS_PER_US,
        percentiles_us: ghz.latency_distribution.iter().map(percentile).collect(),
        hdr: String::new(),
    };
    let mut report = Report {
        tool: "ghz".to_owned(),
        name: ghz.name.filter(|name| !name.is_empty()),
        date: ghz.date,
        mode: format!("ghz {}", ghz.options.call),
        host: ghz.options.host,
        load: format!("{}/s, {} calls at a time", ghz.options.rps, ghz.options.concurrency),
        count: ghz.count,
        total: ghz.total,
        rps: ghz.rps,
        primary: METRIC.to_owned(),
        latencies: BTreeMap::from([(METRIC.to_owned(), latency)]),
        ..Report::default()
    };
    report.account.sent = ghz.count;
    report.account.errors = ghz.status_code_distribution;
    report.account.errors.remove("OK");
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ghz_wrote_can_be_compared() {
        let text = r#"{"date":"2026-01-02T03:04:05Z","options":{"call":"a.B.C","host":"h:1","rps":100,"concurrency":5},
            "count":3,"total":1000000000,"average":2000000,"fastest":1000000,"slowest":3000000,"rps":3.0,
            "statusCodeDistribution":{"OK":2,"Unavailable":1},
            "latencyDistribution":[{"percentage":50,"latency":2000000},{"percentage":99,"latency":3000000}]}"#;
        let report = parse(text).unwrap();
        let latency = &report.latencies[METRIC];
        assert_eq!(
            (latency.percentile_us(50.0), latency.percentile_us(99.0)),
            (2_000, 3_000)
        );
        assert_eq!((report.account.error_count(), report.count), (1, 3));
        assert!(parse("{}").is_err());
    }
}
