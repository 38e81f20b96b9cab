//! Reports for other programs: CSV, InfluxDB's line protocol and Prometheus' text, in the forms that ghz gives them.

use std::fmt::Write as _;

use super::model::Report;
use crate::run::Detail;

const NS_PER_MS: f64 = 1e6;

/// One line for each answer.
pub(crate) fn csv(details: &[Detail]) -> String {
    let mut out = "duration (ms),status,error\n".to_owned();
    for detail in details {
        let error = if detail.is_ok() { "" } else { detail.status.as_str() };
        let status = if detail.is_ok() { "OK" } else { detail.status.as_str() };
        line!(out, "{:.3},{status},{error}", detail.latency_ns as f64 / NS_PER_MS);
    }
    out
}

/// A tag's value, with what has a meaning escaped.
fn tag(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace(',', "\\,")
        .replace('=', "\\=")
        .replace(' ', "\\ ")
}

fn tags(report: &Report) -> String {
    let mut out = format!("mode={},host={}", tag(&report.mode), tag(&report.host));
    if let Some(name) = &report.name {
        out.push_str(&format!(",name={}", tag(name)));
    }
    for (key, value) in report.tags.iter().filter(|(_key, value)| !value.is_empty()) {
        out.push_str(&format!(",{}={}", tag(key), tag(value)));
    }
    out
}

/// One line for the run.
pub(crate) fn influx_summary(report: &Report, now_ns: i64) -> String {
    let percentile = |percentage| {
        let latency = report.primary().map_or(0, |latency| latency.percentile_us(percentage));
        latency * 1_000
    };
    format!(
        "ghz_run,{} count={}i,total={}i,average={}i,fastest={}i,slowest={}i,rps={:.2},median={}i,p95={}i,p99={}i,\
         errors={}i,lost={}i,duplicates={}i,reordered={}i {now_ns}\n",
        tags(report),
        report.count,
        report.total,
        report.average,
        report.fastest,
        report.slowest,
        report.rps,
        percentile(50.0),
        percentile(95.0),
        percentile(99.0),
        report.account.error_count(),
        report.account.lost,
        report.account.duplicates,
        report.account.reordered,
    )
}

/// One line for each answer.
pub(crate) fn influx_details(report: &Report, details: &[Detail], start_ns: i64) -> String {
    let mut out = String::new();
    let tags = tags(report);
    for detail in details {
        let at_ns = start_ns + detail.at_ns as i64;
        let (ok, status) = (detail.is_ok(), tag(&detail.status));
        line!(
            out,
            "ghz_detail,{tags},hasError={} latency={}i,error=\"{}\",status=\"{status}\" {at_ns}",
            !ok,
            detail.latency_ns,
            if ok { "" } else { detail.status.as_str() }
        );
    }
    out
}

/// A label's value, with what has a meaning escaped.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Prometheus' text, for a page or a file that is collected.
pub(crate) fn prometheus(report: &Report) -> String {
    let mut out = String::new();
    let mut labels = format!("mode=\"{}\",host=\"{}\"", label(&report.mode), label(&report.host));
    if let Some(name) = &report.name {
        labels.push_str(&format!(",name=\"{}\"", label(name)));
    }
    let account = &report.account;
    let counters = [
        ("sent_events", "Events sent", account.sent),
        (
            "answered_events",
            "Events answered well",
            report.status_code_distribution.get("OK").copied().unwrap_or(0),
        ),
        (
            "lost_events",
            "Events without the answer that they should have had",
            account.lost,
        ),
        ("duplicate_answers", "Answers beyond an event's one", account.duplicates),
        (
            "reordered_decisions",
            "Decisions in another order than their payments",
            account.reordered,
        ),
        ("unsent_events", "Events that were due and never sent", account.unsent),
        (
            "resumed_sessions",
            "Sessions resumed after a lost connection",
            account.resumes,
        ),
    ];
    for (name, help, count) in counters {
        line!(
            out,
            "# HELP sluice_load_{name}_total {help}.\n# TYPE sluice_load_{name}_total counter"
        );
        line!(out, "sluice_load_{name}_total{{{labels}}} {count}");
    }
    line!(
        out,
        "# HELP sluice_load_errors_total Errors by code.\n# TYPE sluice_load_errors_total counter"
    );
    for (code, count) in &account.errors {
        line!(
            out,
            "sluice_load_errors_total{{{labels},code=\"{}\"}} {count}",
            label(code)
        );
    }
    line!(
        out,
        "# HELP sluice_load_held_seconds_total Time that workers were held back.\n# TYPE sluice_load_held_seconds_total counter"
    );
    for (why, held_s) in &report.offered.held_s {
        line!(out, "sluice_load_held_seconds_total{{{labels},by=\"{why}\"}} {held_s}");
    }
    line!(
        out,
        "# HELP sluice_load_latency_seconds Latencies.\n# TYPE sluice_load_latency_seconds summary"
    );
    for (metric, latency) in &report.latencies {
        for (percentage, us) in &latency.percentiles_us {
            let quantile = percentage.parse::<f64>().unwrap_or_default() / 100.0;
            let seconds = *us as f64 / 1e6;
            line!(
                out,
                "sluice_load_latency_seconds{{{labels},metric=\"{metric}\",quantile=\"{quantile:.5}\"}} {seconds}"
            );
        }
        let sum_s = latency.mean_us * latency.count as f64 / 1e6;
        line!(
            out,
            "sluice_load_latency_seconds_sum{{{labels},metric=\"{metric}\"}} {sum_s}"
        );
        line!(
            out,
            "sluice_load_latency_seconds_count{{{labels},metric=\"{metric}\"}} {}",
            latency.count
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::model::example;
    use super::*;

    #[test]
    fn each_form_has_its_lines() {
        let details = [
            Detail {
                at_ns: 5,
                latency_ns: 1_500_000,
                status: "OK".to_owned(),
            },
            Detail {
                at_ns: 6,
                latency_ns: 2_000_000,
                status: "Unavailable".to_owned(),
            },
        ];
        assert_eq!(
            csv(&details),
            "duration (ms),status,error\n1.500,OK,\n2.000,Unavailable,Unavailable\n"
        );
        let mut report = example();
        report.name = Some("a name".to_owned());
        let summary = influx_summary(&report, 7);
        assert!(
            summary.starts_with("ghz_run,mode=publish,host=127.0.0.1:50051,name=a\\ name count=1000i,"),
            "{summary}"
        );
        assert!(summary.ends_with(" 7\n"));
        assert_eq!(influx_details(&report, &details, 10).lines().count(), 2);
        let page = prometheus(&report);
        assert!(page.contains("metric=\"ack\",quantile=\"0.99900\"} "), "{page}");
        assert!(page.contains("sluice_load_sent_events_total{mode=\"publish\""));
    }
}
