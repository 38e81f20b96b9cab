//! Owns how the rule sets that were put in force are found again: a lane writes each one down, in the transaction that
//! consumes its record, because the payments topic deletes old records and a rule set may be older.
//!
//! Read by [`crate::takeover`] where a replay cannot begin at the topic's first record, and by `sluicectl rules show`.

use std::ops::ControlFlow;
use std::sync::Arc;

use rdkafka::Message;
use sluice_kafka::config::Isolation;
use sluice_kafka::scan::{self, Ranges, Scanner};
use sluice_kafka::{Config, Topics, error};

use crate::rules::{self, RuleSet};

/// Why a rule set cannot be found again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka.
    #[error(transparent)]
    Consumer(#[from] error::Consumer),
    /// Reading the topic.
    #[error(transparent)]
    Scan(#[from] scan::Error),
    /// It was one for the version that put it in force.
    #[error("the rule set in force in partition {partition} from offset {from} on is none for this version: {source}")]
    Invalid {
        /// The partition.
        partition: i32,
        /// The offset of the first record that it judges.
        from: i64,
        /// What is wrong with it.
        source: rules::Error,
    },
}

/// A rule set and from where on it is in force.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The partition of the payments.
    pub partition: i32,
    /// The offset of the first payment that it may judge.
    pub from: i64,
    /// The rule set.
    pub rules: Arc<RuleSet>,
}

/// The rule set that was put in force last in each partition, at or before an offset of it. Partitions in which none was
/// are left out. Blocks.
///
/// # Errors
/// See [`Error`].
pub fn last(
    config: &Config,
    topics: &Topics,
    partitions: impl IntoIterator<Item = (i32, i64)>,
) -> Result<Vec<Applied>, Error> {
    let mut partitions = partitions.into_iter().peekable();
    let mut found = Vec::new();
    if partitions.peek().is_none() {
        return Ok(found);
    }
    let scanner = Scanner::new(config, Isolation::ReadCommitted)?;
    for (partition, up_to) in partitions {
        let ends = scanner.ends(&topics.rule_sets, partition)?;
        let mut newest: Option<(i64, Vec<u8>)> = None;
        scanner.read(&topics.rule_sets, &Ranges::from([(partition, ends)]), |message| {
            let key = message.key().and_then(|key| std::str::from_utf8(key).ok());
            let from = key.and_then(|key| key.parse().ok()).filter(|from| *from <= up_to);
            if let Some(from) = from
                && newest.as_ref().is_none_or(|(newest, _)| *newest <= from)
            {
                newest = Some((from, message.payload().unwrap_or_default().to_vec()));
            }
            ControlFlow::<()>::Continue(())
        })?;
        if let Some((from, document)) = newest {
            let rules = RuleSet::parse(&String::from_utf8_lossy(&document)).map_err(|source| Error::Invalid {
                partition,
                from,
                source,
            })?;
            let rules = Arc::new(rules);
            found.push(Applied { partition, from, rules });
        }
    }
    Ok(found)
}
