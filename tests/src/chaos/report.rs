//! What came of all trials, for people and for machines.
//!
//! Comes last: after [`super::run`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::options::What;
use super::run::Trial;
use crate::checker::tell;

/// All trials of a run.
#[derive(Debug)]
pub struct Report {
    /// Where the choices came from.
    pub seed: u64,
    /// How long it took.
    pub took: Duration,
    trials: Vec<Trial>,
}

impl Report {
    /// No trial yet.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            took: Duration::ZERO,
            trials: Vec::new(),
        }
    }

    /// One more.
    pub fn add(&mut self, trial: Trial) {
        self.trials.push(trial);
    }

    /// Whether every trial ended as it should.
    pub fn passed(&self) -> bool {
        self.trials.iter().all(Trial::passed)
    }

    /// One trial in a line; more where it failed.
    pub fn line(&self, trial: &Trial) -> String {
        let verdict = if trial.passed() { "ok  " } else { "FAIL" };
        let mut line = format!(
            "{verdict} {:<28} seed {:<12} {:>3} faults {:>7} events {:>4} s",
            trial.what.name(),
            trial.seed,
            trial.faults.len(),
            trial.events,
            trial.took.as_secs()
        );
        if let What::Broken(_) = trial.what
            && let Some(first) = trial.violations.first()
        {
            // Writing to a String cannot fail.
            let _written = write!(
                line,
                "  {} violations, first {}",
                trial.violations.len(),
                first.invariant.name()
            );
        }
        if !trial.passed() {
            let logs = trial.logs.as_deref().map(|logs| logs.display().to_string());
            let _written = write!(
                line,
                "\n{}\nfaults: {}\nlogs: {}\nagain: ./dev chaos --scenario {} --trials 1 --seed {}",
                tell(&trial.violations),
                trial.faults.join(", "),
                logs.unwrap_or_else(|| "none".to_owned()),
                trial.what.name(),
                trial.seed
            );
        }
        line
    }

    /// Trials of whole parts.
    fn whole(&self) -> impl Iterator<Item = &Trial> {
        self.trials
            .iter()
            .filter(|trial| matches!(trial.what, What::Scenario(_)))
    }

    fn broken(&self) -> impl Iterator<Item = &Trial> {
        self.trials.iter().filter(|trial| matches!(trial.what, What::Broken(_)))
    }

    /// Violations by whole parts, and broken builds that were not caught.
    fn violations(&self) -> usize {
        let missed = self.broken().filter(|trial| !trial.passed()).count();
        self.whole().map(|trial| trial.violations.len()).sum::<usize>() + missed
    }

    /// The median and the longest time until everything worked again, in milliseconds.
    fn recovery_ms<'t>(trials: impl Iterator<Item = &'t Trial>) -> (u64, u64) {
        median_and_max_ms(trials.flat_map(|trial| &trial.recoveries))
    }

    fn by_name(&self) -> BTreeMap<String, Vec<&Trial>> {
        let mut names: BTreeMap<String, Vec<&Trial>> = BTreeMap::new();
        for trial in self.whole() {
            names.entry(trial.what.name()).or_default().push(trial);
        }
        names
    }

    /// The figures. Durations are in milliseconds.
    pub fn json(&self) -> Value {
        let (p50, max) = Self::recovery_ms(self.whole());
        let scenarios: BTreeMap<_, _> = self
            .by_name()
            .into_iter()
            .map(|(name, trials)| (name, figures(&trials)))
            .collect();
        let broken: Vec<Value> = self
            .broken()
            .map(|trial| {
                let mut caught_by: Vec<&str> = trial.violations.iter().map(|it| it.invariant.name()).collect();
                caught_by.dedup();
                json!({"build": trial.what.name(), "seed": trial.seed, "caught": trial.passed(), "by": caught_by})
            })
            .collect();
        json!({
            "seed": self.seed,
            "trials": self.trials.len(),
            "seconds": self.took.as_secs(),
            "faults": self.whole().map(|trial| trial.faults.len()).sum::<usize>(),
            "kills": self.whole().map(kills).sum::<usize>(),
            "events_checked": self.whole().map(|trial| trial.events).sum::<usize>(),
            "violations": self.violations(),
            "recovery_p50_ms": p50,
            "recovery_max_ms": max,
            "scenarios": scenarios,
            "points": self.points(),
            "broken": broken,
        })
    }

    /// How often each fault met each point.
    fn points(&self) -> BTreeMap<String, BTreeMap<String, usize>> {
        let mut points: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
        for fault in self.whole().flat_map(|trial| &trial.faults) {
            // As it was armed: PART POINT=FAULT@HIT, where a delay has its length.
            let armed = fault.split_once(' ').and_then(|(_part, armed)| armed.split_once('='));
            if let Some((point, fault)) = armed
                && let Some(kind) = fault.split(['@', ':']).next()
            {
                let of_point = points.entry(point.to_owned()).or_default();
                *of_point.entry(kind.to_owned()).or_default() += 1;
            }
        }
        points
    }

    /// The same for people.
    pub fn markdown(&self) -> String {
        let figures = self.json();
        let mut text = format!(
            "# Chaos\n\n{} trials in {} s from seed {}: {} faults, {} of them kills; {} events checked; {} violations; \
             recovery p50 {} ms, max {} ms.\n\n",
            figures["trials"],
            figures["seconds"],
            self.seed,
            figures["faults"],
            figures["kills"],
            figures["events_checked"],
            figures["violations"],
            figures["recovery_p50_ms"],
            figures["recovery_max_ms"]
        );
        text += "| scenario | trials | faults | events | acknowledged | delivered | compensated rows | recovery p50 / max ms \
                 | violations |\n|---|---|---|---|---|---|---|---|---|\n";
        for (name, trials) in self.by_name() {
            let (p50, max) = Self::recovery_ms(trials.iter().copied());
            let sum = |count: fn(&Trial) -> usize| trials.iter().map(|trial| count(trial)).sum::<usize>();
            let compensated: i64 = trials.iter().map(|trial| trial.compensated).sum();
            // Writing to a String cannot fail.
            let _written = writeln!(
                text,
                "| {name} | {} | {} | {} | {} | {} | {compensated} | {p50} / {max} | {} |",
                trials.len(),
                sum(|trial| trial.faults.len()),
                sum(|trial| trial.events),
                sum(|trial| trial.acked),
                sum(|trial| trial.delivered),
                sum(|trial| trial.violations.len()),
            );
        }
        if self.broken().next().is_some() {
            text += "\n| broken build | seed | caught | violations |\n|---|---|---|---|\n";
        }
        for trial in self.broken() {
            let caught = if trial.passed() { "yes" } else { "**no**" };
            let name = trial.what.name();
            let _written = writeln!(
                text,
                "| {name} | {} | {caught} | {} |",
                trial.seed,
                trial.violations.len()
            );
        }
        for trial in self.trials.iter().filter(|trial| !trial.passed()) {
            let _written = write!(text, "\n```\n{}\n```\n", self.line(trial));
        }
        text
    }
}

fn figures(trials: &[&Trial]) -> Value {
    let (p50, max) = Report::recovery_ms(trials.iter().copied());
    json!({
        "trials": trials.len(),
        "faults": trials.iter().map(|trial| trial.faults.len()).sum::<usize>(),
        "events_checked": trials.iter().map(|trial| trial.events).sum::<usize>(),
        "violations": trials.iter().map(|trial| trial.violations.len()).sum::<usize>(),
        "recovery_p50_ms": p50,
        "recovery_max_ms": max,
    })
}

fn kills(trial: &Trial) -> usize {
    let is_kill = |fault: &&String| fault.contains("kill") || fault.contains("crash");
    trial.faults.iter().filter(is_kill).count()
}

/// Ends a program that was to give a report, its figures, and whether nothing was broken: prints the report, and writes both
/// where that was asked for. The code is 0 where nothing was broken, 1 where something was, and 2 where that cannot be told.
pub fn end(
    program: &str,
    told: Result<(String, Value, bool)>,
    json: Option<&Path>,
    markdown: Option<&Path>,
) -> ExitCode {
    let ended = told.and_then(|(text, figures, passed)| {
        print_and_write(&text, &figures, json, markdown)?;
        Ok(passed)
    });
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn print_and_write(text: &str, figures: &Value, json: Option<&Path>, markdown: Option<&Path>) -> Result<()> {
    let write = |path: &Path, text: &str| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    println!("\n{text}");
    if let Some(path) = json {
        write(path, &serde_json::to_string_pretty(figures)?)?;
    }
    if let Some(path) = markdown {
        write(path, text)?;
    }
    Ok(())
}

/// The median and the longest of some times, in milliseconds; 0 where there are none.
pub(super) fn median_and_max_ms<'t>(times: impl Iterator<Item = &'t Duration>) -> (u64, u64) {
    let mut all: Vec<u64> = times
        .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
        .collect();
    all.sort_unstable();
    let median = all.get(all.len() / 2).copied().unwrap_or(0);
    (median, all.last().copied().unwrap_or(0))
}
