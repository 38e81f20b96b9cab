//! `bench ingest`: the same records through the gateway in full messages, in messages of one event over several streams,
//! and through a plain producer, in turn in every run.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use hdrhistogram::Histogram;
use sluice_kafka::config::LINGER_MS;
use sluice_proto::event::PaymentRecord;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::Common;
use super::parts::{Installation, Part, free_address};
use super::plain::{Plain, Sent};
use super::records::{self, Record};
use super::report::{Report, histogram};
use super::stream::Stream;

const BATCH_EVENTS: usize = 64;
const SINGLE_STREAMS: usize = 4;
const WAYS: u16 = 3;
/// The rates at which the steady cost is measured, and for how many seconds.
const RATES_PER_S: [u32; 3] = [1_000, 10_000, 100_000];
const STEADY_S: usize = 4;

/// Options of the benchmark.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) common: Common,
    /// Events that each sender sends in each run
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(10_000..=5_000_000))]
    events: u32,
}

/// What one way through the gateway took.
struct Through {
    events_per_s: f64,
    cpu_us_per_event: f64,
    latency: Histogram<u64>,
}

pub(super) fn run(args: &Args, runtime: &Runtime) -> anyhow::Result<Report> {
    let name = format!("bench-ingest-{:08x}.", fastrand::u32(..));
    let installation = Installation::create(&args.common.parts, name)?;
    let listen = free_address()?;
    let gateway = installation.start("sluice-gateway", &[("SLUICE_LISTEN", listen.to_string())])?;
    let address = format!("http://{listen}");
    let records = Arc::new(records::prepare(
        args.events,
        installation.schema_id::<PaymentRecord>()?,
    )?);
    let bytes: usize = records.iter().map(|record| record.event.len()).sum();
    println!(
        "{} events of {} bytes on average; a round to warm up, then {} runs",
        args.events,
        bytes / records.len(),
        args.common.runs
    );
    let plain = Plain::new(&installation, LINGER_MS)?;
    let mut report = Report::default();
    for run in 0..=args.common.runs {
        let id = |way: &str| format!("{way}-{run}");
        let through = |way: &str, streams, per_message| {
            runtime
                .block_on(publish(&gateway, &address, &id(way), &records, streams, per_message))
                .with_context(|| format!("{way}, run {run}"))
        };
        let (mut batched, mut single, mut sent) = (None, None, None);
        // Each run begins with another one, so that none always follows the same.
        for way in 0..WAYS {
            match (way + run) % WAYS {
                0 => batched = Some(through("batched", 1, BATCH_EVENTS)?),
                1 => single = Some(through("single", SINGLE_STREAMS, 1)?),
                _ => sent = Some(plain.send_all(&records)?),
            }
        }
        let (Some(batched), Some(single), Some(sent)) = (batched, single, sent) else {
            continue;
        };
        println!(
            "{}: batched {:.0}/s, single {:.0}/s, plain {:.0}/s",
            if run == 0 {
                "warm-up".to_owned()
            } else {
                format!("run {run}")
            },
            batched.events_per_s,
            single.events_per_s,
            sent.events_per_s
        );
        if run > 0 {
            add(&mut report, &batched, &single, &sent);
        }
        for rate in RATES_PER_S {
            let steady = &records[..records.len().min(rate as usize * STEADY_S)];
            let id = id(&format!("steady-{rate}"));
            let through = publish_at(&gateway, &address, id, steady, rate);
            let through = runtime
                .block_on(through)
                .with_context(|| format!("at {rate}/s, run {run}"))?;
            let plain = plain.send_at(steady, f64::from(rate))?;
            if run > 0 {
                add_steady(&mut report, rate, &through, &plain);
            }
        }
    }
    println!("latencies without a rate are those of senders that go as fast as they can: they measure queues");
    Ok(report)
}

fn add(report: &mut Report, batched: &Through, single: &Through, plain: &Sent) {
    report.add("ingest_events_per_s", "1/s", batched.events_per_s);
    report.add("ingest_single_events_per_s", "1/s", single.events_per_s);
    report.add("ingest_plain_events_per_s", "1/s", plain.events_per_s);
    report.add(
        "ingest_ratio_batched",
        "ratio",
        batched.events_per_s / plain.events_per_s,
    );
    report.add("ingest_ratio_single", "ratio", single.events_per_s / plain.events_per_s);
    report.add("ingest_cpu_us_per_event", "us", batched.cpu_us_per_event);
    report.add("ingest_single_cpu_us_per_event", "us", single.cpu_us_per_event);
    report.add("ingest_plain_cpu_us_per_event", "us", plain.cpu_us_per_event);
    report.add_latency(["ingest_ack_p50_ms", "ingest_ack_p99_ms"], &batched.latency);
    report.add_latency(
        ["ingest_single_ack_p50_ms", "ingest_single_ack_p99_ms"],
        &single.latency,
    );
    report.add_latency(["ingest_plain_ack_p50_ms", "ingest_plain_ack_p99_ms"], &plain.latency);
}

fn add_steady(report: &mut Report, rate_per_s: u32, through: &Through, plain: &Histogram<u64>) {
    let cpu_us = through.cpu_us_per_event;
    match rate_per_s {
        1_000 => report.add("cpu_us_per_event_at_1k", "us", cpu_us),
        10_000 => {
            report.add("cpu_us_per_event", "us", cpu_us);
            report.add_latency(["ack_p50_ms", "ack_p99_ms"], &through.latency);
            report.add_latency(["producer_p50_ms", "producer_p99_ms"], plain);
        }
        _ => report.add("cpu_us_per_event_at_100k", "us", cpu_us),
    }
}

/// Publishes over one stream at a rate.
async fn publish_at(
    gateway: &Part,
    address: &str,
    id: String,
    records: &[Record],
    rate_per_s: u32,
) -> anyhow::Result<Through> {
    let stream = Stream::open(address, id).await?;
    let (cpu_s, started) = (gateway.cpu_s()?, Instant::now());
    let latency = stream.publish(records, BATCH_EVENTS, Some(rate_per_s.into())).await?;
    let elapsed_s = started.elapsed().as_secs_f64();
    Ok(Through {
        events_per_s: records.len() as f64 / elapsed_s,
        cpu_us_per_event: (gateway.cpu_s()? - cpu_s) * 1e6 / records.len() as f64,
        latency,
    })
}

/// Divides the records among the streams, sends them, and waits until all are stored.
async fn publish(
    gateway: &Part,
    address: &str,
    id: &str,
    records: &Arc<Vec<Record>>,
    streams: usize,
    per_message: usize,
) -> anyhow::Result<Through> {
    let mut open = Vec::new();
    for index in 0..streams {
        open.push(Stream::open(address, format!("{id}-{index}")).await?);
    }
    let share = records.len().div_ceil(streams);
    let (cpu_s, started) = (gateway.cpu_s()?, Instant::now());
    let mut sending = JoinSet::new();
    for (index, stream) in open.into_iter().enumerate() {
        let records = Arc::clone(records);
        sending.spawn(async move {
            let end = records.len().min((index + 1) * share);
            stream.publish(&records[index * share..end], per_message, None).await
        });
    }
    let mut latency = histogram();
    while let Some(sent) = sending.join_next().await {
        latency.add(sent??)?;
    }
    let elapsed_s = started.elapsed().as_secs_f64();
    Ok(Through {
        events_per_s: records.len() as f64 / elapsed_s,
        cpu_us_per_event: (gateway.cpu_s()? - cpu_s) * 1e6 / records.len() as f64,
        latency,
    })
}
