//! `sluicectl rules backtest`: reads the history of the payments and says what a candidate would have changed.
//!
//! The judging is the processor's own code. Nothing is written.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rdkafka::message::Message as _;
use sluice_kafka::config::Isolation;
use sluice_kafka::registry::Registry;
use sluice_kafka::scan::{Ranges, Scanner};
use sluice_kafka::{Config, Topics};
use sluice_processor::backtest::{Backtest, Report};
use sluice_processor::rule_archive;
use sluice_processor::rules::RuleSet;
use sluice_proto::decision::Outcome;

use crate::options::BacktestOptions;
use crate::rules;
use crate::table::Table;

/// What is read before the first payment that counts, because its features look back on it: six days, and lateness.
const WARM_UP: Duration = Duration::from_secs(7 * 86_400);

/// Judges what was appended within the options' times.
pub(crate) fn run(
    config: &Config,
    topics: &Topics,
    partitions: i32,
    options: &BacktestOptions,
) -> anyhow::Result<String> {
    let (_, candidate) = rules::read(&options.file)?;
    let version = candidate.version();
    let own = own_rules(options.current.as_deref())?;
    let registry = Arc::new(Registry::new(&options.registry.url));
    let mut backtest = Backtest::new(Arc::new(candidate), options.allowed_lateness_s, registry)?;

    let scanner = Scanner::new(config, Isolation::ReadCommitted)?;
    let from_ms = options.from.map_or(0, millis);
    let to_ms = options.to.map_or(i64::MAX, millis);
    let warm_up_ms = (from_ms - WARM_UP.as_millis() as i64).max(0);
    let mut ranges = Ranges::new();
    for partition in 0..partitions {
        let mut range = scanner.ends(&topics.payments, partition)?;
        range.start = scanner
            .since(&topics.payments, partition, warm_up_ms)?
            .map_or(range.end, |offset| offset.max(range.start));
        ranges.insert(partition, range);
    }
    let starts = ranges.iter().filter(|(_, range)| range.start > 0);
    let in_force: BTreeMap<_, _> =
        rule_archive::last(config, topics, starts.map(|(part, range)| (*part, range.start)))?
            .into_iter()
            .map(|applied| (applied.partition, applied.rules))
            .collect();
    for partition in ranges.keys() {
        backtest.begin(*partition, in_force.get(partition).unwrap_or(&own).clone());
    }

    let failed = scanner.read(&topics.payments, &ranges, |message| {
        let appended_ms = message.timestamp().to_millis().unwrap_or_default();
        match backtest.take(message, (from_ms..to_ms).contains(&appended_ms)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    })?;
    failed.map_or(Ok(()), Err)?;
    Ok(page(&version, &backtest.report()))
}

fn own_rules(path: Option<&Path>) -> anyhow::Result<Arc<RuleSet>> {
    match path {
        Some(path) => Ok(Arc::new(rules::read(path).context("--current")?.1)),
        None => Ok(RuleSet::built_in()),
    }
}

fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn page(version: &str, report: &Report) -> String {
    let mut outcomes = Table::new(&["CURRENT", "APPROVE", "REVIEW", "DECLINE"]);
    for current in Outcome::ALL {
        let count = |candidate| report.outcomes.get(&(current, candidate)).copied().unwrap_or(0);
        let [approve, review, decline] = Outcome::ALL.map(|candidate| count(candidate).to_string());
        outcomes.row([current.as_str().to_owned(), approve, review, decline]);
    }
    let mut fired = Table::new(&["RULE", "FIRED", "WOULD FIRE"]);
    for (rule, count) in &report.rules {
        fired.row([rule.clone(), count.current.to_string(), count.candidate.to_string()]);
    }
    let mut page = format!(
        "{} payments under {version}, {} dead letters\n\n{outcomes}\n{fired}",
        report.payments, report.unreadable
    );
    for (rule, count) in &report.failed {
        page.push_str(&format!("{rule} had no value for {count} payments\n"));
    }
    let changed: u64 = report
        .outcomes
        .iter()
        .filter(|((from, to), _)| from != to)
        .map(|(_, count)| count)
        .sum();
    page.push_str(&format!("\n{changed} outcomes would change\n"));
    for example in &report.examples {
        page.push_str(&format!(
            "{}:{} {} {} to {}: {}\n",
            example.source.0,
            example.source.1,
            example.account,
            example.current.as_str(),
            example.candidate.as_str(),
            example.reasons.join("; ")
        ));
    }
    page
}
