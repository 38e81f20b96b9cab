//! The demo's last word: the counts, the rules, the latencies, and what is wrong, if anything is.
//!
//! Reads the complete `tally`.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::tally::Tally;

/// Ids of missing payments that are shown.
const MOST_IDS: usize = 10;
const OUTCOMES: [&str; 3] = ["APPROVE", "REVIEW", "DECLINE"];
const WIDTH: usize = 62;

/// Prints the table.
pub(super) fn print(tally: &Tally, elapsed: Duration, sessions: u64) {
    println!("\n{}\n", render(tally, elapsed, sessions));
}

fn render(tally: &Tally, elapsed: Duration, sessions: u64) -> String {
    let seconds = elapsed.as_secs_f64();
    let mut out = vec![heading(&format!("payments in {seconds:.1} s"), "", "")];
    let published = tally.published();
    let decided = tally.decided;
    for (name, count) in [
        ("published", published),
        ("acknowledged", tally.acknowledged),
        ("decided", decided),
        ("duplicates", tally.duplicates),
        ("missing", tally.missing()),
    ] {
        out.push(row(name, &[grouped(count)]));
    }
    for (name, count) in [
        ("refused", tally.refused.values().sum()),
        ("published again after an error", tally.retried),
        ("reconnected", sessions.saturating_sub(1)),
    ] {
        if count > 0 {
            out.push(row(name, &[grouped(count)]));
        }
    }
    out.push(String::new());
    out.push(heading("outcome", "decided", "share"));
    for (name, count) in OUTCOMES.iter().zip(tally.outcomes) {
        let share = 100.0 * count as f64 / decided.max(1) as f64;
        out.push(row(name, &[grouped(count), format!("{share:.1} %")]));
    }
    if !tally.rules.is_empty() {
        out.extend(rules(tally));
    }
    out.push(String::new());
    let quantiles = format!(
        "{:<22}{:>10}{:>10}{:>10}{:>10}",
        "latency in ms", "p50", "p95", "p99", "max"
    );
    out.push(underlined(&quantiles));
    out.push(latency("publish to ack", &tally.to_ack));
    out.push(latency("publish to decision", &tally.to_decision));
    out.push(String::new());
    if tally.late > 0 {
        let late = grouped(tally.late);
        out.push(format!("{late} payments are older than what was decided before:"));
        out.push("rules that need history passed them over (LATE_EVENT)".to_owned());
    }
    out.extend(verdict(tally));
    out.join("\n")
}

fn rules(tally: &Tally) -> Vec<String> {
    let injected = tally.rules.values().any(|rule| rule.injected > 0);
    let found = if injected { "found of injected" } else { "" };
    let mut out = vec![String::new(), heading("rule", "fired", found)];
    for (name, counts) in &tally.rules {
        let mut cells = vec![grouped(counts.fired)];
        if injected {
            cells.push(format!("{} of {}", grouped(counts.found), grouped(counts.injected)));
        }
        out.push(row(name, &cells));
    }
    out
}

fn verdict(tally: &Tally) -> Vec<String> {
    if tally.complete() {
        return vec!["every payment was decided exactly once".to_owned()];
    }
    let mut lines = Vec::from_iter(tally.failure.clone());
    let unpublished = tally.events.saturating_sub(tally.published());
    if unpublished > 0 {
        lines.push(format!("not published: {} payments", grouped(unpublished)));
    }
    for (words, count) in &tally.refused {
        lines.push(format!("refused: {} payments ({words})", grouped(*count)));
    }
    if tally.duplicates > 0 {
        lines.push(format!(
            "decided more than once: {} decisions too many",
            grouped(tally.duplicates)
        ));
    }
    let missing = tally.missing();
    if missing > 0 {
        lines.push(format!("without a decision: {} payments, such as", grouped(missing)));
        let mut ids: Vec<_> = tally.missing_ids().collect();
        ids.sort_unstable();
        lines.extend(ids.iter().take(MOST_IDS).map(|(id, stored)| {
            let state = if *stored { "acknowledged" } else { "not acknowledged" };
            format!("  {id} ({state})")
        }));
    }
    lines
}

fn heading(title: &str, first: &str, second: &str) -> String {
    underlined(&row(title, &[first.to_owned(), second.to_owned()]))
}

fn underlined(line: &str) -> String {
    format!("{line}\n{}", "─".repeat(WIDTH))
}

fn row(name: &str, cells: &[String]) -> String {
    let first = cells.first().map_or("", String::as_str);
    let second = cells.get(1).map_or("", String::as_str);
    format!("{name:<34}{first:>10}{second:>18}").trim_end().to_owned()
}

fn latency(name: &str, histogram: &Histogram<u64>) -> String {
    let ms = |micros: u64| {
        if histogram.is_empty() {
            "-".to_owned()
        } else {
            format!("{:.1}", micros as f64 / 1e3)
        }
    };
    let at = |quantile: f64| ms(histogram.value_at_quantile(quantile));
    format!(
        "{name:<22}{:>10}{:>10}{:>10}{:>10}",
        at(0.50),
        at(0.95),
        at(0.99),
        ms(histogram.max())
    )
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        assert_eq!(
            [0, 12, 999, 1_000, 1_234_567].map(grouped),
            ["0", "12", "999", "1,000", "1,234,567"]
        );
    }

    #[test]
    fn an_incomplete_run_says_what_is_wrong() {
        let text = render(&Tally::new(3), Duration::from_secs(1), 1);
        assert!(text.contains("not published: 3 payments"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }
}
