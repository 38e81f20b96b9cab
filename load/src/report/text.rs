//! Reports for people: ghz's summary with what ghz does not know, and the same in JSON with spaces.

use std::fmt::Write as _;

use super::model::{Latency, PERCENTILES, Report, Trial};

const BAR_WIDTH: f64 = 40.0;
const BAR: &str = "∎";
/// Messages of errors that are listed.
const MOST_MESSAGES: usize = 10;
/// Lost connections and gaps that are listed.
const MOST_OUTAGES: usize = 10;

/// Microseconds with a unit that suits them.
pub(crate) fn micros(us: f64) -> String {
    if us < 1e3 {
        format!("{us:.0} µs")
    } else if us < 1e6 {
        format!("{:.2} ms", us / 1e3)
    } else {
        format!("{:.2} s", us / 1e6)
    }
}

/// The summary.
pub(crate) fn summary(report: &Report) -> String {
    let mut out = String::new();
    head(&mut out, report);
    if !report.trials.is_empty() {
        trials(&mut out, &report.trials);
    }
    if let Some(latency) = report.primary() {
        bars(&mut out, report);
        line!(out, "\nLatency distribution ({}):", basis(report));
        for percentage in PERCENTILES {
            line!(
                out,
                "  {percentage:>6} % in {}",
                micros(latency.percentile_us(percentage) as f64)
            );
        }
    }
    table(&mut out, report);
    line!(out, "\nStatus code distribution:");
    for (code, count) in &report.status_code_distribution {
        line!(out, "  [{code}]  {count} responses");
    }
    if !report.error_distribution.is_empty() {
        line!(out, "\nError distribution:");
        for (message, count) in report.error_distribution.iter().take(MOST_MESSAGES) {
            line!(out, "  [{count}]  {message}");
        }
    }
    account(&mut out, report);
    if !report.objectives.is_empty() {
        line!(out, "\nObjectives:");
        for judgement in &report.objectives {
            let verdict = if judgement.holds { "held  " } else { "FAILED" };
            line!(out, "  {verdict}  {}  ({})", judgement.objective, judgement.measured);
        }
    }
    for (title, texts) in [("Notes", &report.notes), ("Faults", &report.faults)] {
        if !texts.is_empty() {
            line!(out, "\n{title}:");
            texts.iter().for_each(|text| line!(out, "  {text}"));
        }
    }
    out
}

/// What the primary latency is measured from.
pub(crate) fn basis(report: &Report) -> String {
    let from = match (report.primary.as_str(), report.open_loop) {
        ("delivery", _) => "from the decision's own time",
        (_, true) => "from the intended sending",
        (_, false) => "from the actual sending: a closed loop hides stalls",
    };
    format!("{}, {from}", report.primary)
}

fn head(out: &mut String, report: &Report) {
    line!(out, "\nSummary:");
    if let Some(name) = &report.name {
        line!(out, "  Name:\t\t{name}");
    }
    line!(out, "  Mode:\t\t{} to {}", report.mode, report.host);
    line!(out, "  Load:\t\t{}", report.load);
    line!(out, "  Count:\t{}", report.count);
    line!(out, "  Total:\t{}", micros(report.total as f64 / 1e3));
    if report.primary().is_some() {
        line!(out, "  Slowest:\t{}", micros(report.slowest as f64 / 1e3));
        line!(out, "  Fastest:\t{}", micros(report.fastest as f64 / 1e3));
        line!(out, "  Average:\t{}", micros(report.average as f64 / 1e3));
    }
    line!(out, "  Requests/sec:\t{:.2}", report.rps);
    if let Some(due) = report.offered.due {
        let share = report.offered.sent_in_time as f64 / due.max(1) as f64 * 100.0;
        line!(
            out,
            "  Offered:\t{} of {due} due events were sent in time ({share:.2} %)",
            report.offered.sent_in_time
        );
    }
    if let Some(cpu_s) = report.offered.cpu_s {
        line!(out, "  Loader:\t{} of processor time", micros(cpu_s * 1e6));
    }
    let held: Vec<String> = report
        .offered
        .held_s
        .iter()
        .filter(|(_why, held_s)| **held_s > 0.0)
        .map(|(why, held_s)| format!("{why} {}", micros(held_s * 1e6)))
        .collect();
    if !held.is_empty() {
        line!(out, "  Held back by:\t{} (summed over the workers)", held.join(", "));
    }
}

fn bars(out: &mut String, report: &Report) {
    let most = report
        .histogram
        .iter()
        .map(|bucket| bucket.count)
        .max()
        .unwrap_or(0)
        .max(1);
    line!(out, "\nResponse time histogram:");
    for bucket in &report.histogram {
        let bar = BAR.repeat((bucket.count as f64 / most as f64 * BAR_WIDTH).round() as usize);
        line!(out, "  {:<12} [{}]\t|{bar}", micros(bucket.mark * 1e6), bucket.count);
    }
}

/// Every metric beside the others.
fn table(out: &mut String, report: &Report) {
    const COLUMNS: [f64; 6] = [50.0, 90.0, 99.0, 99.9, 99.99, 99.999];
    if report.latencies.is_empty() {
        return;
    }
    line!(out, "\nLatencies:");
    let titles: String = COLUMNS
        .iter()
        .map(|column| format!("{:>12}", format!("p{column}")))
        .collect();
    line!(out, "  {:<10}{:>12}{titles}{:>12}", "", "count", "max");
    for (metric, latency) in &report.latencies {
        let value = |column: &f64| format!("{:>12}", micros(latency.percentile_us(*column) as f64));
        let values: String = COLUMNS.iter().map(value).collect();
        line!(
            out,
            "  {metric:<10}{:>12}{values}{:>12}",
            latency.count,
            micros(latency.max_us as f64)
        );
    }
}

fn account(out: &mut String, report: &Report) {
    let account = &report.account;
    line!(out, "\nLedger:");
    let counts = [
        ("sent", account.sent, true),
        ("stored", account.stored, report.mode != "subscribe"),
        ("decided", account.decided, account.decided > 0),
        ("errors", account.error_count(), true),
        ("lost", account.lost, true),
        ("duplicates", account.duplicates, true),
        ("reordered", account.reordered, true),
        ("never sent", account.unsent, true),
        (
            "sent again after a lost connection",
            account.resent,
            account.resumes > 0,
        ),
        (
            "settled while no connection stood",
            account.settled_while_away,
            account.settled_while_away > 0,
        ),
        (
            "acknowledged as duplicates",
            account.acknowledged_as_duplicate,
            account.acknowledged_as_duplicate > 0,
        ),
        ("cut off and not counted", account.ignored, account.ignored > 0),
        ("poison sent", account.poison_sent, account.poison_sent > 0),
        ("poison refused", account.poison_refused, account.poison_sent > 0),
        ("copies sent on purpose", account.copies_sent, account.copies_sent > 0),
        ("held back by a quota", account.throttles, account.throttles > 0),
        ("asked to go elsewhere", account.drains, account.drains > 0),
    ];
    for (what, count, shown) in counts {
        if shown {
            line!(out, "  {count:>10}  {what}");
        }
    }
    if !account.outages.is_empty() {
        line!(
            out,
            "\nLost connections: {}, resumed {}",
            account.outages.len(),
            account.resumes
        );
        for outage in account.outages.iter().take(MOST_OUTAGES) {
            let end = outage.to_s.map_or("never resumed".to_owned(), |to_s| {
                format!("resumed at {to_s:.3} s, after {}", micros((to_s - outage.from_s) * 1e6))
            });
            line!(
                out,
                "  {}: lost at {:.3} s, {end} ({})",
                outage.worker,
                outage.from_s,
                outage.cause
            );
        }
    }
    if !report.gaps.is_empty() {
        line!(out, "\nGaps without any answer:");
        for gap in report.gaps.iter().take(MOST_OUTAGES) {
            line!(
                out,
                "  from {:.3} s to {:.3} s ({})",
                gap.from_s,
                gap.to_s,
                micros((gap.to_s - gap.from_s) * 1e6)
            );
        }
    }
    if !report.rules.is_empty() {
        line!(out, "\nRules:");
        for (rule, found) in &report.rules {
            line!(
                out,
                "  {rule}: found {} of {} injected, fired {}",
                found.found,
                found.injected,
                found.fired
            );
        }
    }
}

fn trials(out: &mut String, trials: &[Trial]) {
    line!(out, "\nRates tried:");
    for trial in trials {
        let verdict = if trial.held {
            "held".to_owned()
        } else {
            format!("failed: {}", trial.why.join("; "))
        };
        line!(
            out,
            "  {:>10.0}/s  answered {:>10.0}/s  p50 {:>10}  p99 {:>10}  {verdict}",
            trial.rate_per_s,
            trial.answered_per_s,
            micros(trial.p50_us as f64),
            micros(trial.p99_us as f64)
        );
    }
    match trials
        .iter()
        .filter(|trial| trial.held)
        .map(|trial| trial.rate_per_s)
        .reduce(f64::max)
    {
        Some(rate) => line!(out, "  highest rate that held: {rate:.0}/s"),
        None => line!(out, "  no rate held"),
    }
}

/// One line of figures, for progress.
pub(crate) fn figures(latency: Option<&Latency>) -> String {
    latency.map_or_else(String::new, |latency| {
        let value = |percentage| micros(latency.percentile_us(percentage) as f64);
        format!(
            "p50 {:>9}  p99 {:>9}  max {:>9}",
            value(50.0),
            value(99.0),
            micros(latency.max_us as f64)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::model::example;
    use super::*;

    #[test]
    fn the_summary_has_ghzs_parts_and_ours() {
        let text = summary(&example());
        for part in [
            "Summary:",
            "Requests/sec:\t500.00",
            "Response time histogram:",
            "99.999 % in",
            "[OK]  1000 responses",
            "Ledger:",
            "lost",
        ] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
}
