//! What the demo shows while it runs: one line of progress and, now and then, a decision.
//!
//! Reads the `tally`. On a terminal the line is redrawn; elsewhere each second gets a line of its own.

use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

use sluice_client::Publisher;
use sluice_proto::money::Amount;
use sluice_proto::pb;

use super::table::grouped;
use super::tally::Tally;

const LINE_EVERY: Duration = Duration::from_secs(1);
/// After so many decisions have been shown, more would only scroll.
const MOST_SAMPLES: usize = 12;

pub(super) struct Screen {
    terminal: bool,
    next_line: Instant,
    started: Instant,
    samples: usize,
    last_decided: u64,
    drawn: String,
}

impl Screen {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            terminal: stdout().is_terminal(),
            next_line: now + LINE_EVERY,
            started: now,
            samples: 0,
            last_decided: 0,
            drawn: String::new(),
        }
    }

    /// Shows how far things are.
    pub(super) fn draw(&mut self, tally: &mut Tally, publisher: &Publisher, now: Instant) {
        let due = now >= self.next_line;
        if !due && !self.terminal {
            return;
        }
        if due {
            self.next_line = now + LINE_EVERY;
            for sample in tally.samples.iter_mut().filter_map(Option::take) {
                if self.samples < MOST_SAMPLES {
                    self.samples += 1;
                    self.print(&describe(&sample));
                }
            }
        }
        let line = self.line(tally, publisher, now);
        if self.terminal {
            show(&format!("\r\x1b[2K{line}"));
            self.drawn = line;
        } else if self.last_decided < tally.events {
            println!("{line}");
        }
        self.last_decided = tally.decided;
    }

    /// Leaves the last line where it is.
    pub(super) fn finish(&self) {
        if self.terminal {
            println!();
        }
    }

    /// A line of its own, above the one that is redrawn.
    fn print(&self, text: &str) {
        if self.terminal {
            show(&format!("\r\x1b[2K{text}\n{}", self.drawn));
        } else {
            println!("{text}");
        }
    }

    fn line(&self, tally: &Tally, publisher: &Publisher, now: Instant) -> String {
        let mut line = format!(
            "{:>5.1} s  published {:>9}  acknowledged {:>9}  decided {:>9}",
            now.duration_since(self.started).as_secs_f64(),
            grouped(tally.published()),
            grouped(tally.acknowledged),
            grouped(tally.decided),
        );
        let mut add = |count: u64, what: &str| {
            if count > 0 {
                line.push_str(&format!("  {what} {}", grouped(count)));
            }
        };
        add(tally.refused.values().sum(), "refused");
        add(tally.duplicates, "duplicates");
        add(publisher.sessions().saturating_sub(1), "reconnected");
        add(publisher.throttles(), "held back by quota");
        line
    }
}

/// Progress that cannot be shown is not worth stopping for.
fn show(text: &str) {
    let mut out = stdout();
    drop(out.write_all(text.as_bytes()));
    drop(out.flush());
}

/// One decision with its reasons.
fn describe(decision: &pb::FraudDecision) -> String {
    let money = decision.amount.clone().unwrap_or_default();
    let amount = Amount::from_parts(money.units, money.nanos).unwrap_or_default();
    let outcome = decision.outcome().as_str_name().trim_start_matches("OUTCOME_");
    let reasons: Vec<String> = decision
        .reasons
        .iter()
        .map(|reason| format!("{}: {}", reason.rule_id, reason.detail))
        .collect();
    let line = format!(
        "         {outcome:<7} {:.2}  {:<16} {:>13} {}  {}",
        decision.score,
        decision.account_id,
        amount.to_string(),
        money.currency_code,
        reasons.join("; ")
    );
    line.trim_end().to_owned()
}
