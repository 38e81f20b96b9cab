//! The command line: what can be asked, and how to reach Kafka.

use std::collections::BTreeMap;

use clap::{Args, Parser, Subcommand};
use sluice_kafka::Config;

/// Most partitions that a topic may be given: each costs the brokers and the lanes memory and files.
const MAX_PARTITIONS: i64 = 1_024;
/// Most replicas of a partition.
const MAX_REPLICATION: i64 = 15;

/// Look after an installation's Kafka topics and consumer groups.
#[derive(Debug, Parser)]
#[command(name = "sluicectl", version, propagate_version = true)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) kafka: Kafka,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to reach Kafka.
#[derive(Debug, Args)]
pub(crate) struct Kafka {
    /// Kafka's bootstrap servers: host:port, comma separated
    #[arg(
        long,
        env = "SLUICE_KAFKA",
        default_value = "127.0.0.1:19092",
        global = true,
        value_name = "SERVERS"
    )]
    kafka: String,
    /// Prefix of the installation's topic names
    #[arg(
        long,
        env = "SLUICE_TOPIC_PREFIX",
        default_value = "",
        hide_default_value = true,
        global = true,
        value_name = "PREFIX"
    )]
    topic_prefix: String,
    /// A librdkafka property, such as security.protocol=ssl; may be repeated
    #[arg(long, value_parser = property, global = true, value_name = "KEY=VALUE")]
    property: Vec<(String, String)>,
}

impl Kafka {
    pub(crate) fn config(&self) -> Config {
        let extra: BTreeMap<_, _> = self.property.iter().cloned().collect();
        Config {
            bootstrap_servers: self.kafka.clone(),
            topic_prefix: self.topic_prefix.clone(),
            extra,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Topics: create those that are missing, or list them
    #[command(subcommand)]
    Topics(Topics),
    /// Consumer groups: list them
    #[command(subcommand)]
    Groups(Groups),
    /// How far a consumer group is behind, by partition of the payments; cursor/TENANT/NAME, of the decisions
    Lag {
        /// The consumer group
        #[arg(long, default_value = "sluice-processor")]
        group: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Topics {
    /// Create the topics that are missing and check the others; safe to repeat
    Apply {
        /// Partitions of every topic; cannot be changed later
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=MAX_PARTITIONS))]
        partitions: u16,
        /// Replicas of every partition; from 3 on, 2 must be in sync for a write
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MAX_REPLICATION))]
        replication: u16,
    },
    /// List the topics
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Groups {
    /// List the consumer groups of the cluster
    List,
}

fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
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
    fn properties_reach_the_configuration() {
        let line = [
            "sluicectl",
            "lag",
            "--kafka",
            "a:1",
            "--topic-prefix",
            "t.",
            "--property",
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
            &["sluicectl", "lag", "--property", "nothing"],
            &["sluicectl", "groups"],
        ] {
            assert!(Options::try_parse_from(line).is_err(), "{line:?}");
        }
    }
}
