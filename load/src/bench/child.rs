//! Owns the loader as a child process, as anybody would start it, and its report as figures.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

/// The report of a run.
pub(super) struct Report(Value);

/// Runs the loader in a mode against a server.
pub(super) fn run<S: AsRef<OsStr>>(mode: &str, address: &str, options: &[(&str, S)]) -> anyhow::Result<Report> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([mode, address, "--quiet", "--format", "json"]);
    for (option, value) in options {
        command.arg(option).arg(value);
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start the loader")?;
    ensure!(!output.stdout.is_empty(), "the loader ended with {}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).context("not a report")?;
    // It was given no objective, so that only faults make it fail: events that were refused, lost or never sent.
    ensure!(output.status.success(), "the loader found {}", report["faults"]);
    Ok(Report(report))
}

impl Report {
    /// A figure by its JSON pointer.
    pub(super) fn figure(&self, pointer: &str) -> anyhow::Result<f64> {
        let figure = self.0.pointer(pointer).and_then(Value::as_f64);
        figure.with_context(|| format!("{pointer} is missing in the report"))
    }
}
