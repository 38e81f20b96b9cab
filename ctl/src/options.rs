//! The command line: what can be asked, and how to reach Kafka.

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Parser, Subcommand};
use prost_types::Timestamp;
use sluice_kafka::options::Kafka;

use crate::dead_letters::Place;

/// Most partitions that a topic may be given: each costs the brokers and the lanes memory and files.
const MAX_PARTITIONS: i64 = 1_024;
/// Most replicas of a partition.
const MAX_REPLICATION: i64 = 15;

/// Look after an installation: its Kafka topics, consumer groups, dead letters and rule sets.
#[derive(Debug, Parser)]
#[command(name = "sluicectl", version, propagate_version = true)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) kafka: Kafka,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Topics: create those that are missing, or list them
    #[command(subcommand)]
    Topics(Topics),
    /// Consumer groups: list them
    #[command(subcommand)]
    Groups(Groups),
    /// Dead letters: list, show, and drive them again
    #[command(subcommand)]
    Dlq(DeadLetters),
    /// Rule sets: check, apply and show them
    #[command(subcommand)]
    Rules(Rules),
    /// Payments under review: list them, end their reviews, take payments back
    #[command(subcommand)]
    Review(Review),
    /// The ledger: compare it with the decisions
    #[command(subcommand)]
    Ledger(Ledger),
    /// How far a consumer group is behind, by partition of the payments; cursor/TENANT/NAME, of the decisions
    Lag {
        /// The consumer group, before the prefix
        #[arg(long, default_value = "sluice-processor")]
        group: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetters {
    /// List the newest dead letters of each partition
    List {
        /// How many of each partition
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=10_000))]
        limit: u16,
    },
    /// Show everything about one dead letter
    Show {
        /// The letter, as the list names it: PARTITION:OFFSET
        letter: Place,
    },
    /// Write dead letters back to the payments: those since the last redrive, or the named ones
    Redrive {
        /// Letters, as the list names them: PARTITION:OFFSET
        letters: Vec<Place>,
        /// Leave letters that were driven again so often
        #[arg(long, default_value_t = 3)]
        max_retries: u32,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rules {
    /// Check a rule set document, without Kafka
    Check {
        /// The document, in YAML
        file: PathBuf,
    },
    /// Put a document in force for the payments that come from now on; safe to repeat
    Apply {
        /// The document, in YAML
        file: PathBuf,
    },
    /// Show which version judges in each partition, as far as the processor has come
    Show,
    /// Judge the payments that are history by a document, and say what would have changed; writes nothing
    Backtest(BacktestOptions),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Review {
    /// List the payments that wait for a verdict
    List(Show),
    /// End a review well: the payment is captured
    Approve(Say),
    /// End a review badly: the payment is released
    Decline(Say),
    /// Take a payment back, whatever its state: released where it is not captured, else refunded
    Cancel(Say),
}

/// Where the ledger is.
#[derive(Debug, Args)]
pub(crate) struct Postgres {
    /// URL of the Postgres database that holds the ledger
    #[arg(
        id = "postgres",
        long = "postgres",
        env = "SLUICE_POSTGRES",
        default_value = "postgres://sluice@127.0.0.1:15432/sluice",
        hide_env_values = true
    )]
    pub(crate) url: String,
}

/// Where the schemas are.
#[derive(Debug, Args)]
pub(crate) struct Registry {
    /// URL of the schema registry's Confluent-compatible API
    #[arg(
        id = "registry",
        long = "registry",
        env = "SLUICE_REGISTRY",
        default_value = "http://127.0.0.1:18081/apis/ccompat/v7"
    )]
    pub(crate) url: String,
}

/// Which reviews are shown.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Only of this tenant
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// How many, those whose time is up first
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) limit: u16,
    #[command(flatten)]
    pub(crate) postgres: Postgres,
}

/// What is said of which payment.
#[derive(Debug, Args)]
pub(crate) struct Say {
    /// Who owns the payment
    pub(crate) tenant: String,
    /// The account that pays
    pub(crate) account: String,
    /// The payment's event_id
    pub(crate) event: String,
    /// Why
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
    /// Who says so
    #[arg(long, env = "USER", default_value = "sluicectl")]
    pub(crate) actor: String,
    #[command(flatten)]
    pub(crate) registry: Registry,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ledger {
    /// Compare every row with the decision that subscribers see; exit with 1 where anything is missing or differs
    Verify(Verify),
    /// Take old, settled rows of a partition out of the ledger, into a table that can be dropped
    Detach(Detach),
}

/// What is taken out.
#[derive(Debug, Args)]
pub(crate) struct Detach {
    /// The partition
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..MAX_PARTITIONS))]
    pub(crate) partition: i32,
    /// Rows that were written before this time, such as 2026-11-21T08:00:00Z
    #[arg(long, value_parser = time)]
    pub(crate) before: SystemTime,
    /// There is no payment rail, and there will be none: rows go that no saga has settled
    #[arg(long)]
    pub(crate) without_rail: bool,
    #[command(flatten)]
    pub(crate) postgres: Postgres,
}

/// What is compared.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The processors' consumer group, before the prefix
    #[arg(long, env = "SLUICE_GROUP", default_value = "sluice-processor")]
    pub(crate) group: String,
    #[command(flatten)]
    pub(crate) postgres: Postgres,
    #[command(flatten)]
    pub(crate) registry: Registry,
}

/// What is judged again, and by what.
#[derive(Debug, Args)]
pub(crate) struct BacktestOptions {
    /// The candidate, in YAML
    pub(crate) file: PathBuf,
    /// Judge what Kafka stored at this time or later, such as 2026-11-21T08:00:00Z; all that is kept when not given
    #[arg(long, value_parser = time)]
    pub(crate) from: Option<SystemTime>,
    /// Judge what Kafka stored before this time
    #[arg(long, value_parser = time)]
    pub(crate) to: Option<SystemTime>,
    /// The processors' own document, where they have one: what judged before any was applied
    #[arg(long)]
    pub(crate) current: Option<PathBuf>,
    /// The processors' allowed lateness, in seconds
    #[arg(long, env = "SLUICE_ALLOWED_LATENESS_S", default_value_t = 600)]
    pub(crate) allowed_lateness_s: u32,
    #[command(flatten)]
    pub(crate) registry: Registry,
}

fn time(text: &str) -> Result<SystemTime, String> {
    let time: Timestamp = text
        .parse()
        .map_err(|_| "expected a time such as 2026-11-21T08:00:00Z".to_owned())?;
    SystemTime::try_from(time).map_err(|error| error.to_string())
}

#[derive(Debug, Subcommand)]
pub(crate) enum Topics {
    /// Create the topics that are missing and check the others; safe to repeat
    Apply {
        /// Partitions of every topic
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=MAX_PARTITIONS))]
        partitions: u16,
        /// Replicas of every partition; from 3 on, 2 must be in sync for a write
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MAX_REPLICATION))]
        replication: u16,
    },
    /// Give every topic more partitions, while no gateway and no processor runs and every payment is decided
    Grow {
        /// Partitions of every topic, more than they have
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=MAX_PARTITIONS))]
        partitions: u16,
        /// The processors' consumer group, before the prefix
        #[arg(long, env = "SLUICE_GROUP", default_value = "sluice-processor")]
        group: String,
    },
    /// List the topics
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Groups {
    /// List the consumer groups of the cluster
    List,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
    }

    #[test]
    fn both_places_of_a_ledger_can_be_named() {
        let line = "sluicectl ledger verify --postgres postgres://p --registry http://r";
        let options = Options::try_parse_from(line.split(' ')).expect("parses");
        let Command::Ledger(Ledger::Verify(verify)) = options.command else {
            panic!("{:?}", options.command);
        };
        assert_eq!(
            (verify.postgres.url.as_str(), verify.registry.url.as_str()),
            ("postgres://p", "http://r")
        );
    }

    #[test]
    fn properties_reach_the_configuration() {
        let line = [
            "sluicectl",
            "lag",
            "--kafka",
            "a:1",
            "--topic-prefix",
            "t.",
            "--kafka-property",
            "security.protocol=ssl",
        ];
        let config = Options::try_parse_from(line).expect("parses").kafka.config();
        assert_eq!(
            (config.bootstrap_servers.as_str(), config.topic_prefix.as_str()),
            ("a:1", "t.")
        );
        assert_eq!(config.extra.get("security.protocol").map(String::as_str), Some("ssl"));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            &["sluicectl", "topics", "apply", "--partitions", "0"][..],
            &["sluicectl", "topics", "apply", "--replication", "99"],
            &["sluicectl", "lag", "--kafka-property", "nothing"],
            &["sluicectl", "groups"],
            &["sluicectl", "dlq", "show", "7"],
            &["sluicectl", "rules", "backtest", "f", "--from", "yesterday"],
            &["sluicectl", "dlq", "list", "--limit", "0"],
        ] {
            assert!(Options::try_parse_from(line).is_err(), "{line:?}");
        }
    }
}
