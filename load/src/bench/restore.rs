//! The part of `bench process` that measures how long a processor takes to remember: a topic whose payments all count as
//! decided is replayed, and then restored from a snapshot.
//!
//! Comes after the runs of [`super::process`]; the clock runs from a process's launch until it says that it is ready.

use std::time::Instant;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use sluice_kafka::config::{Isolation, LINGER_MS};
use sluice_proto::event::PaymentRecord;

use super::parts::{Database, Installation};
use super::plain::Plain;
use super::process::{GROUP, KAFKA_TIMEOUT, partitions};
use super::records;
use super::report::Report;

/// Fills the topic once, and has a fresh processor remember it so often.
pub(super) fn run(
    installation: &Installation,
    database: &Database,
    events: u32,
    runs: u16,
    lanes: u16,
    report: &mut Report,
) -> anyhow::Result<()> {
    let records = records::prepare(events, installation.schema_id::<PaymentRecord>()?)?;
    Plain::new(installation, LINGER_MS)?.send_all(&records)?;
    drop(records);
    commit_all(installation)?;
    let directory = std::env::temp_dir().join(format!("sluice-bench-snapshots-{:08x}", fastrand::u32(..)));
    let environment = |snapshots: bool| {
        let mut all = vec![
            ("SLUICE_POSTGRES", database.url()),
            ("SLUICE_GROUP", GROUP.to_owned()),
            ("SLUICE_LANES", lanes.to_string()),
        ];
        if snapshots {
            all.push(("SLUICE_SNAPSHOT_DIR", directory.display().to_string()));
        }
        all
    };
    let start_s = |snapshots: bool| {
        let launched = Instant::now();
        let processor = installation.start("sluice-processor", &environment(snapshots))?;
        let took_s = launched.elapsed().as_secs_f64();
        // It is asked to stop, and leaves its snapshots.
        drop(processor);
        anyhow::Ok(took_s)
    };
    for _run in 0..runs {
        report.add("restore_s", "s", start_s(false)?);
    }
    // The first one has no snapshot yet.
    start_s(true)?;
    for _run in 0..runs {
        report.add("restore_from_snapshot_s", "s", start_s(true)?);
    }
    Ok(std::fs::remove_dir_all(&directory)?)
}

/// Makes every payment of the topic count as decided.
fn commit_all(installation: &Installation) -> anyhow::Result<()> {
    let config = &installation.kafka;
    let group = format!("{}{GROUP}", config.topic_prefix);
    let consumer: BaseConsumer = config.offsets_of(&group, Isolation::ReadCommitted).create()?;
    let topic = &installation.topics.payments;
    let mut ends = TopicPartitionList::new();
    for partition in partitions(&consumer, topic)? {
        let (_low, high) = consumer.fetch_watermarks(topic, partition, KAFKA_TIMEOUT)?;
        ends.add_partition_offset(topic, partition, Offset::Offset(high))?;
    }
    Ok(consumer.commit(&ends, CommitMode::Sync)?)
}
