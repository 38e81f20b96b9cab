//! What a run shows while it goes on: a line for each second, redrawn on a terminal.
//!
//! On the standard error, because the report goes to the standard output.

use std::io::{IsTerminal, Write, stderr};

use super::plan::Plan;
use super::shared::SharedRef;
use crate::report::{Second, figures};

/// Shows seconds.
pub(crate) struct Progress {
    quiet: bool,
    terminal: bool,
    drawn: bool,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            terminal: stderr().is_terminal(),
            drawn: false,
        }
    }

    /// Shows the second that has passed.
    pub(crate) fn show(&mut self, plan: &Plan, shared: &SharedRef, second: &Second) {
        if self.quiet {
            return;
        }
        let length_s = (second.to_s - second.from_s).max(1e-9);
        let per_s = |count: u64| count as f64 / length_s;
        let mut line = format!(
            "{:>6.1} s  sent {:>9.0}/s  answered {:>9.0}/s",
            second.to_s,
            per_s(second.sent),
            per_s(second.answered)
        );
        if second.decided > 0 && plan.mode != super::Mode::Subscribe {
            line.push_str(&format!("  decided {:>9.0}/s", per_s(second.decided)));
        }
        for metric in ["decision", "ack", "delivery"] {
            if let Some(latency) = second.latencies.get(metric) {
                line.push_str(&format!("  {metric} {}", figures(Some(latency))));
                break;
            }
        }
        let held_s: f64 = second.held_s.values().sum();
        if held_s > 0.0 {
            line.push_str(&format!(
                "  held back {:.0} %",
                held_s / length_s / plan.workers.max(1) as f64 * 100.0
            ));
        }
        let errors = shared.ledger.error_count();
        if errors > 0 {
            line.push_str(&format!("  errors {errors}"));
        }
        // Progress that cannot be shown is not worth stopping for.
        let mut out = stderr();
        drop(if self.terminal {
            write!(out, "\r\x1b[2K{line}").and_then(|()| out.flush())
        } else {
            writeln!(out, "{line}")
        });
        self.drawn = self.terminal;
    }

    /// Leaves the last line where it is.
    pub(crate) fn finish(&mut self) {
        if std::mem::take(&mut self.drawn) {
            eprintln!();
        }
    }
}
