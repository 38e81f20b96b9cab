//! `bench process`: a topic is filled by a plain producer, then a fresh processor decides all of it; after that, payments
//! come at a steady rate and the time to each visible decision is measured; at last, while they go on coming, another
//! processor takes over. [`super::restore`] measures the start with much to remember.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};
use sluice_kafka::admin::committed;
use sluice_kafka::config::{BURST_LINGER_MS, Isolation, LINGER_MS};
use sluice_proto::avro::Decoder;
use sluice_proto::decision::Decision;
use sluice_proto::event::PaymentRecord;
use sluice_proto::topics;
use tokio::runtime::Runtime;

use super::Common;
use super::parts::{Database, Installation, Part, on_its_own, pause, until};
use super::plain::Plain;
use super::records::{self, Record};
use super::report::{Report, histogram};

pub(super) const GROUP: &str = "bench";
/// The group that decides the same payments without a ledger.
const GROUP_WITHOUT: &str = "bench-without";
/// The processor may rest so long before it is given up.
const STALL: Duration = Duration::from_secs(60);
pub(super) const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
/// How often payments that are due are sent, all in one burst, as the gateway sends them. Their time counts from when they were
/// due all the same.
const BURST_EVERY: Duration = Duration::from_millis(5);
/// For how long payments come while another processor takes over, in seconds.
const TAKEOVER_S: u32 = 8;

/// Options of the benchmark.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) common: Common,
    /// Payments that the processor finds in the topic in each run
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(10_000..=5_000_000))]
    events: u32,
    /// Lanes of the processor
    #[arg(long, env = "SLUICE_LANES", default_value_t = 2)]
    lanes: u16,
    /// Payments a second while the time to a decision is measured
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// For how long it is measured, in seconds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Payments that a starting processor finds decided, and has to remember
    #[arg(long, default_value_t = 3_000_000, value_parser = clap::value_parser!(u32).range(10_000..=5_000_000))]
    restore_events: u32,
}

pub(super) fn run(args: &Args, runtime: &Runtime) -> anyhow::Result<Report> {
    println!(
        "{} payments to decide with {} lanes, then {} a second for {} s; a run to warm the broker up, then {} runs, each \
         from nothing",
        args.events, args.lanes, args.rate, args.seconds, args.common.runs
    );
    let mut report = Report::default();
    for run in 0..=args.common.runs {
        if run == 1 {
            report = Report::default();
        }
        on_its_own(&args.common.parts, runtime, "process", run, |installation, database| {
            measure(args, run, installation, database, runtime, &mut report)
        })?;
    }
    let Common { parts, runs, .. } = &args.common;
    on_its_own(parts, runtime, "restore", 1, |installation, database| {
        let (events, lanes) = (args.restore_events, args.lanes);
        super::restore::run(installation, database, events, *runs, lanes, &mut report)
    })?;
    Ok(report)
}

fn measure(
    args: &Args,
    run: u16,
    installation: &Installation,
    database: &Database,
    runtime: &Runtime,
    report: &mut Report,
) -> anyhow::Result<()> {
    let steady = args.rate * args.seconds;
    let moving = args.rate * TAKEOVER_S;
    let records = records::prepare(
        args.events + steady + moving,
        installation.schema_id::<PaymentRecord>()?,
    )?;
    let (backlog, rest) = records.split_at(args.events as usize);
    let (steady, moving) = rest.split_at(steady as usize);
    let plain = Plain::new(installation, LINGER_MS)?;
    let filled = plain.send_all(backlog)?;
    let progress = Progress::new(installation, GROUP)?;

    let launched = Instant::now();
    let start = |instance: &str| {
        let environment = [
            ("SLUICE_POSTGRES", database.url()),
            ("SLUICE_GROUP", GROUP.to_owned()),
            ("SLUICE_LANES", args.lanes.to_string()),
            ("SLUICE_INSTANCE", instance.to_owned()),
        ];
        installation.start("sluice-processor", &environment)
    };
    let mut processor = start("first")?;
    let drained = drain(&mut processor, &progress, i64::from(args.events), launched)?;
    let plain = Plain::new(installation, BURST_LINGER_MS)?;
    let latency = decisions(installation, &plain, steady, args.rate, || Ok(()))?;
    let mut second = None;
    let moved = decisions(installation, &plain, moving, args.rate, || {
        second = Some(start("second")?);
        drop(processor);
        Ok(())
    })?;
    drop(second);
    let rows = runtime.block_on(database.ledger_rows())?;
    ensure!(
        rows == records.len() as u64,
        "the ledger has {rows} rows for {} payments",
        records.len()
    );
    let without = without_ledger(args, installation, records.len() as i64)?;
    println!(
        "run {run}: {:.0}/s decided, {:.2} us CPU an event; without a ledger {:.0}/s; plain producer {:.0}/s",
        drained.events_per_s, drained.cpu_us_per_event, without.events_per_s, filled.events_per_s
    );
    report.add("process_events_per_s", "1/s", drained.events_per_s);
    report.add("drain_events_per_s", "1/s", drained.events_per_s);
    report.add("drain_no_ledger_events_per_s", "1/s", without.events_per_s);
    report.add("process_cpu_us_per_event", "us", drained.cpu_us_per_event);
    report.add("process_plain_events_per_s", "1/s", filled.events_per_s);
    report.add("process_ratio", "ratio", drained.events_per_s / filled.events_per_s);
    report.add("process_start_s", "s", drained.start_s);
    report.add_latency(["decision_p50_ms", "decision_p99_ms"], &latency);
    report.add("takeover_pause_ms", "ms", moved.max() as f64 / 1e3);
    Ok(())
}

/// Another group decides all of it once more and keeps no ledger.
fn without_ledger(args: &Args, installation: &Installation, events: i64) -> anyhow::Result<Drained> {
    let environment = [
        ("SLUICE_POSTGRES", "none".to_owned()),
        ("SLUICE_GROUP", GROUP_WITHOUT.to_owned()),
        ("SLUICE_LANES", args.lanes.to_string()),
    ];
    let progress = Progress::new(installation, GROUP_WITHOUT)?;
    let launched = Instant::now();
    let mut processor = installation.start("sluice-processor", &environment)?;
    drain(&mut processor, &progress, events, launched)
}

pub(super) struct Drained {
    pub(super) events_per_s: f64,
    cpu_us_per_event: f64,
    /// From the launch to the first committed batch.
    start_s: f64,
}

/// Waits until everything is decided. The clock runs from the first committed batch to the last, so that it does not
/// count the start, which has a figure of its own.
pub(super) fn drain(
    processor: &mut Part,
    progress: &Progress,
    events: i64,
    launched: Instant,
) -> anyhow::Result<Drained> {
    let mut first = None;
    let mut moved = (0, Instant::now());
    loop {
        let (done, now) = (progress.decided()?, Instant::now());
        if done > moved.0 {
            moved = (done, now);
            if first.is_none() {
                first = Some((done, now, processor.cpu_s()?));
            }
        }
        if let Some((from, since, cpu_s)) = first
            && done >= events
        {
            ensure!(
                from < events,
                "too few payments to measure: everything was decided at the first look"
            );
            let counted = (done - from) as f64;
            return Ok(Drained {
                events_per_s: counted / now.duration_since(since).as_secs_f64(),
                cpu_us_per_event: (processor.cpu_s()? - cpu_s) * 1e6 / counted,
                start_s: since.duration_since(launched).as_secs_f64(),
            });
        }
        processor.check()?;
        ensure!(
            now.duration_since(moved.1) < STALL,
            "the processor decided {done} of {events} payments and then nothing for {} s",
            STALL.as_secs()
        );
        pause();
    }
}

/// How far a group is.
pub(super) struct Progress {
    consumer: BaseConsumer,
    topic: String,
    partitions: Vec<i32>,
}

impl Progress {
    /// `group` without the prefix.
    pub(super) fn new(installation: &Installation, group: &str) -> anyhow::Result<Self> {
        let config = &installation.kafka;
        let group = format!("{}{group}", config.topic_prefix);
        let consumer: BaseConsumer = config.offsets_of(&group, Isolation::ReadUncommitted).create()?;
        let topic = installation.topics.payments.clone();
        let partitions = partitions(&consumer, &topic)?;
        Ok(Self {
            consumer,
            topic,
            partitions,
        })
    }

    pub(super) fn decided(&self) -> anyhow::Result<i64> {
        let offsets: BTreeMap<i32, i64> = committed(&self.consumer, &self.topic, &self.partitions, KAFKA_TIMEOUT)?;
        Ok(offsets.values().sum())
    }
}

pub(super) fn partitions(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), KAFKA_TIMEOUT)?;
    let topic = metadata.topics().first().context("no such topic")?;
    Ok(topic.partitions().iter().map(|partition| partition.id()).collect())
}

/// Publishes at a steady rate and measures from the moment a payment should have been sent to the moment its decision
/// can be read, while something else happens.
fn decisions(
    installation: &Installation,
    plain: &Plain,
    records: &[Record],
    rate_per_s: u32,
    meanwhile: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Histogram<u64>> {
    let topic = &installation.topics.decisions;
    let consumer: BaseConsumer = installation.kafka.reader(Isolation::ReadCommitted).create()?;
    let mut ends = TopicPartitionList::new();
    for partition in partitions(&consumer, topic)? {
        let (_low, high) = consumer.fetch_watermarks(topic, partition, KAFKA_TIMEOUT)?;
        ends.add_partition_offset(topic, partition, Offset::Offset(high))?;
    }
    consumer.assign(&ends)?;
    let indexes: AHashMap<&str, usize> = records
        .iter()
        .enumerate()
        .map(|(index, record)| (record.event_id.as_str(), index))
        .collect();
    let intended = |index: usize| Duration::from_secs_f64(index as f64 / f64::from(rate_per_s));
    let started = Instant::now();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut tick = started;
            for (index, record) in records.iter().enumerate() {
                while tick < started + intended(index) {
                    tick += BURST_EVERY;
                    until(tick);
                }
                plain.send(record, index)?;
            }
            anyhow::Ok(())
        });
        let receiving = scope.spawn(|| receive(&consumer, started, &indexes, &intended));
        // On this thread, because parts end with the thread that started them.
        let happened = meanwhile();
        let panicked = |_panic| anyhow::anyhow!("a thread panicked");
        sending.join().map_err(panicked)??;
        let received = receiving.join().map_err(panicked)?;
        happened.and(received)
    })
}

fn receive(
    consumer: &BaseConsumer,
    started: Instant,
    indexes: &AHashMap<&str, usize>,
    intended: &impl Fn(usize) -> Duration,
) -> anyhow::Result<Histogram<u64>> {
    let mut latency = histogram();
    let mut decoder: Option<Decoder<Decision>> = None;
    let mut moved = Instant::now();
    while (latency.len() as usize) < indexes.len() {
        ensure!(
            moved.elapsed() < STALL,
            "{} of {} decisions came, and then none for {} s",
            latency.len(),
            indexes.len(),
            STALL.as_secs()
        );
        let message = match consumer.poll(POLL) {
            Some(Ok(message)) => message,
            // The end of a partition is told as an error.
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) | None => continue,
            Some(Err(error)) => return Err(error.into()),
        };
        let now = started.elapsed();
        moved = Instant::now();
        let payload = message.payload().context("a decision without a value")?;
        if decoder.is_none() {
            // Whatever the id, it is the schema that the processor just registered.
            let id = payload
                .get(1..5)
                .and_then(|id| id.try_into().ok())
                .map(i32::from_be_bytes);
            decoder = Some(Decoder::new(id.context("a decision without a schema")?)?);
        }
        let decision = decoder.as_ref().context("no decoder")?.decode(payload)?;
        let index = *indexes
            .get(decision.event_id.to_string().as_str())
            .with_context(|| format!("a decision of {} about an unknown payment", topics::DECISIONS))?;
        latency.saturating_record((now.saturating_sub(intended(index)).as_micros() as u64).max(1));
    }
    Ok(latency)
}
