//! One function per command: each asks the cluster through `sluice_kafka::admin` and returns the page to print.

use anyhow::{Context, ensure};
use sluice_kafka::admin::{Admin, Lag};
use sluice_kafka::{Config, Metrics, Topics};
use sluice_proto::settlement::Action;

use crate::backtest;
use crate::dead_letters::{self, Redrive};
use crate::detach;
use crate::options::{self, Command, Options};
use crate::review;
use crate::rules;
use crate::table::Table;
use crate::verify;

/// How the groups begin in which gateways store cursors: they count decisions, all others payments.
const CURSOR: &str = "cursor/";

/// Runs the command and returns what it prints.
pub(crate) fn run(options: &Options) -> anyhow::Result<String> {
    let config = options.kafka.config();
    let admin = Admin::new(&config, Metrics::default())?;
    let topics = Topics::new(&config.topic_prefix);
    let at = || format!("Kafka at {}", config.bootstrap_servers);
    match &options.command {
        Command::Topics(options::Topics::Apply {
            partitions,
            replication,
        }) => apply(&admin, &topics, *partitions, *replication).with_context(at),
        Command::Topics(options::Topics::Grow { partitions, group }) => {
            let group = format!("{}{group}", config.topic_prefix);
            grow(&admin, &topics, &group, *partitions).with_context(at)
        }
        Command::Topics(options::Topics::List) => list_topics(&admin, &topics).with_context(at),
        Command::Groups(options::Groups::List) => list_groups(&admin).with_context(at),
        Command::Dlq(command) => dead_letters(&config, &admin, &topics, command).with_context(at),
        Command::Rules(options::Rules::Check { file }) => rules::check(file),
        Command::Rules(options::Rules::Apply { file }) => rules::apply(&config, &admin, &topics, file).with_context(at),
        Command::Rules(options::Rules::Backtest(backtest)) => {
            let partitions = rules::partitions(&admin, &topics).with_context(at)?;
            backtest::run(&config, &topics, partitions, backtest).with_context(at)
        }
        Command::Rules(options::Rules::Show) => rules::show(&config, &admin, &topics).with_context(at),
        Command::Review(options::Review::List(show)) => review::list(show),
        Command::Review(options::Review::Approve(say)) => {
            review::say(&config, &topics, Action::Approve, say).with_context(at)
        }
        Command::Review(options::Review::Decline(say)) => {
            review::say(&config, &topics, Action::Decline, say).with_context(at)
        }
        Command::Review(options::Review::Cancel(say)) => {
            review::say(&config, &topics, Action::Cancel, say).with_context(at)
        }
        Command::Ledger(options::Ledger::Detach(options)) => detach::detach(options),
        Command::Ledger(options::Ledger::Verify(options)) => verify::verify(&config, &admin, &topics, options),
        Command::Lag { group } => {
            let topic = if group.starts_with(CURSOR) {
                &topics.decisions
            } else {
                &topics.payments
            };
            let group = format!("{}{group}", config.topic_prefix);
            lag(&admin, &group, topic).with_context(at)
        }
    }
}

fn dead_letters(
    config: &Config,
    admin: &Admin,
    topics: &Topics,
    command: &options::DeadLetters,
) -> anyhow::Result<String> {
    let partitions = rules::partitions(admin, topics)?;
    match command {
        options::DeadLetters::List { limit } => dead_letters::list(config, topics, partitions, usize::from(*limit)),
        options::DeadLetters::Show { letter } => dead_letters::show(config, topics, *letter),
        options::DeadLetters::Redrive {
            letters,
            max_retries,
            dry_run,
        } => {
            let redrive = Redrive {
                places: letters,
                max_retries: *max_retries,
                dry_run: *dry_run,
            };
            dead_letters::redrive(config, topics, partitions, &redrive)
        }
    }
}

fn apply(admin: &Admin, topics: &Topics, partitions: u16, replication: u16) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let ensured = runtime.block_on(admin.ensure_topics(topics, partitions, replication))?;
    let mut table = Table::new(&["TOPIC", "PARTITIONS", "RESULT"]);
    for topic in ensured {
        let state = if topic.created { "created" } else { "unchanged" };
        table.row([topic.topic, partitions.to_string(), state.to_owned()]);
    }
    Ok(table.to_string())
}

/// Refuses while processors run or have something left to decide: an account's payments would be in two partitions then.
fn grow(admin: &Admin, topics: &Topics, group: &str, partitions: u16) -> anyhow::Result<String> {
    let members = admin.members(group)?;
    ensure!(
        members == 0,
        "group {group} has {members} members: stop the gateways, wait until nothing is left to decide, and stop the processors"
    );
    let left: i64 = admin.lag(group, &topics.payments)?.iter().map(Lag::records).sum();
    ensure!(
        left == 0,
        "{left} payments are not decided yet: let the processors decide them first"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut table = Table::new(&["TOPIC", "PARTITIONS"]);
    for topic in runtime.block_on(admin.grow_topics(topics, partitions))? {
        table.row([topic, partitions.to_string()]);
    }
    Ok(table.to_string())
}

fn list_topics(admin: &Admin, topics: &Topics) -> anyhow::Result<String> {
    let found = admin.topics()?;
    let mut table = Table::new(&["TOPIC", "PARTITIONS", "REPLICAS", "IN SYNC"]);
    for topic in &found {
        let numbers = [topic.partitions, topic.replicas, topic.in_sync].map(|number| number.to_string());
        let [partitions, replicas, in_sync] = numbers;
        table.row([topic.name.clone(), partitions, replicas, in_sync]);
    }
    let missing: Vec<_> = topics
        .all()
        .into_iter()
        .filter(|name| !found.iter().any(|topic| topic.name == *name))
        .collect();
    let mut page = table.to_string();
    if !missing.is_empty() {
        page.push_str(&format!(
            "missing: {} (create them: sluicectl topics apply)\n",
            missing.join(", ")
        ));
    }
    Ok(page)
}

fn list_groups(admin: &Admin) -> anyhow::Result<String> {
    let mut table = Table::new(&["GROUP", "MEMBERS", "STATE", "ASSIGNOR"]);
    for group in admin.groups()? {
        let protocol = if group.protocol.is_empty() {
            "-".to_owned()
        } else {
            group.protocol
        };
        table.row([group.name, group.members.to_string(), group.state, protocol]);
    }
    Ok(table.to_string())
}

fn lag(admin: &Admin, group: &str, topic: &str) -> anyhow::Result<String> {
    let lags = admin.lag(group, topic)?;
    let mut table = Table::new(&["TOPIC", "PARTITION", "COMMITTED", "END", "LAG"]);
    let total: i64 = lags.iter().map(Lag::records).sum();
    let committed = lags.iter().any(|lag| lag.committed.is_some());
    for lag in lags {
        let records = lag.records().to_string();
        let committed = lag.committed.map_or("-".to_owned(), |offset| offset.to_string());
        table.row([
            lag.topic,
            lag.partition.to_string(),
            committed,
            lag.high.to_string(),
            records,
        ]);
    }
    let mut page = table.to_string();
    page.push_str(&format!("group {group}: {total} behind\n"));
    if !committed {
        page.push_str("it has committed nothing in this topic: no such group, or it has not started yet\n");
    }
    Ok(page)
}
