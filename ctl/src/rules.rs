//! `sluicectl rules`: checks rule set documents, puts them in force, and shows what is.
//!
//! A document travels as a record in each partition of the payments, so that which one judges a payment follows from the
//! payment's offset. The checks are those of the processor, by the same code.

use std::path::Path;

use anyhow::{Context, bail};
use rdkafka::message::{Header, OwnedHeaders};
use sluice_kafka::admin::Admin;
use sluice_kafka::{Config, Topics};
use sluice_processor::rule_archive;
use sluice_processor::rules::RuleSet;
use sluice_proto::headers;

use crate::produce::{self, Record};
use crate::table::Table;

/// Reads a document and makes its rule set.
pub(crate) fn read(path: &Path) -> anyhow::Result<(String, RuleSet)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let rules = RuleSet::parse(&text).with_context(|| path.display().to_string())?;
    Ok((text, rules))
}

/// Says what a document comes to.
pub(crate) fn check(path: &Path) -> anyhow::Result<String> {
    let (_, rules) = read(path)?;
    let mut table = Table::new(&["RULE", "VERSION", "CONTRIBUTION", "MODE"]);
    for rule in rules.summaries() {
        let mode = if rule.shadow { "shadow" } else { "scored" };
        table.row([rule.id, rule.version, rule.contribution.to_string(), mode.to_owned()]);
    }
    Ok(format!("{table}valid: {}\n", rules.version()))
}

/// Writes a document into every partition.
pub(crate) fn apply(config: &Config, admin: &Admin, topics: &Topics, path: &Path) -> anyhow::Result<String> {
    let (text, rules) = read(path)?;
    let records: Vec<Record> = (0..partitions(admin, topics)?)
        .map(|partition| Record {
            partition,
            key: None,
            payload: Some(text.clone().into_bytes()),
            headers: OwnedHeaders::new().insert(Header {
                key: headers::CONTROL,
                value: Some(headers::RULE_SET),
            }),
        })
        .collect();
    let offsets = produce::write(config, &topics.payments, &records)
        .context("apply the document again, until it is in every partition: twice does no harm")?;
    let mut table = Table::new(&["PARTITION", "OFFSET"]);
    for (record, offset) in records.iter().zip(offsets) {
        table.row([record.partition.to_string(), offset.to_string()]);
    }
    Ok(format!("{table}{} judges the payments behind these\n", rules.version()))
}

/// Says which rule set judges in each partition.
pub(crate) fn show(config: &Config, admin: &Admin, topics: &Topics) -> anyhow::Result<String> {
    let partitions = partitions(admin, topics)?;
    let applied = rule_archive::last(config, topics, (0..partitions).map(|partition| (partition, i64::MAX)))?;
    let mut table = Table::new(&["PARTITION", "FROM OFFSET", "VERSION"]);
    for partition in 0..partitions {
        let last = applied.iter().find(|applied| applied.partition == partition);
        let (from, version) = last.map_or(("0".to_owned(), "the processors' own".to_owned()), |last| {
            (last.from.to_string(), last.rules.version().to_string())
        });
        table.row([partition.to_string(), from, version]);
    }
    Ok(table.to_string())
}

/// How many partitions the payments have.
pub(crate) fn partitions(admin: &Admin, topics: &Topics) -> anyhow::Result<i32> {
    let found = admin.topics()?.into_iter().find(|topic| topic.name == topics.payments);
    let Some(topic) = found else {
        bail!(
            "topic {} does not exist (create it: sluicectl topics apply)",
            topics.payments
        );
    };
    Ok(i32::try_from(topic.partitions)?)
}
