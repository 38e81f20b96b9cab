//! `bench subscribers`: many subscriptions of single accounts on one gateway while decisions come at a steady rate, and the
//! same with a subscriber to everything who reads nothing.
//!
//! The decisions are written to their topic by a plain producer, so that nothing but the gateway is measured. A latency
//! counts from when the decision should have been written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use sluice_kafka::config::LINGER_MS;
use sluice_proto::avro::Encoder;
use sluice_proto::decision::{Decision, Outcome};
use sluice_proto::event::EventId;
use sluice_proto::money::Amount;
use sluice_proto::pb::decision_service_client::DecisionServiceClient;
use sluice_proto::pb::subscribe_request::Message as Request;
use sluice_proto::pb::subscribe_response::Message as Response;
use sluice_proto::pb::{DecisionFilter, FraudDecision, SubscribeOpen, SubscribeRequest, SubscribeResponse};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::Streaming;
use tonic::transport::Channel;

use super::Common;
use super::parts::{Installation, Part, free_address, pause, until};
use super::records::TENANT;
use super::report::{Report, histogram};
use crate::{DEVELOPMENT_KEY, now_micros};

const STREAMS_OF_A_CONNECTION: u32 = 100;
/// So much that nobody runs out of it.
const CREDIT: u32 = u32::MAX;
const STALL: Duration = Duration::from_secs(30);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// Options of the benchmark.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) common: Common,
    /// Open subscriptions, each of one account
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    streams: u32,
    /// How many of them are of busy accounts, which share half of the decisions; the others share the other half
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    busy: u32,
    /// Decisions a second
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
}

pub(super) fn run(args: &Args, runtime: &Runtime) -> anyhow::Result<Report> {
    ensure!(args.busy < args.streams, "--busy must be below --streams");
    let name = format!("bench-subscribers-{:08x}.", fastrand::u32(..));
    let installation = Installation::create(&args.common.parts, name)?;
    let listen = free_address()?;
    let gateway = installation.start("sluice-gateway", &[("SLUICE_LISTEN", listen.to_string())])?;
    let address = format!("http://{listen}");
    println!(
        "{} subscriptions, {} of them of busy accounts, and {} decisions a second for {} s, without and with a subscriber \
         who does not read; a round to warm up, then {} runs",
        args.streams, args.busy, args.rate, args.seconds, args.common.runs
    );
    let empty_mib = gateway.rss_mib()?;
    let seen = Arc::new(Seen::new(args.rate));
    let mut readers = runtime.block_on(subscribe(args, &address, &seen))?;
    let mut writer = Writer::new(&installation)?;
    let mut report = Report::default();
    for run in 0..=args.common.runs {
        let (mut alone, mut beside) = (None, None);
        // Each run begins with the other one, so that neither always follows the same.
        for half in 0..2 {
            if (half + run) % 2 == 0 {
                alone = Some(measure(args, &mut writer, &seen, &mut readers, &gateway)?);
                continue;
            }
            let _stalled = runtime.block_on(async {
                let mut client = connect(&address).await?;
                open(&mut client, DecisionFilter::default()).await
            })?;
            beside = Some(measure(args, &mut writer, &seen, &mut readers, &gateway)?);
        }
        let (Some(alone), Some(beside)) = (alone, beside) else {
            continue;
        };
        println!(
            "{}: p99 {:.1} ms alone, {:.1} ms beside one who does not read, {:.0} MiB",
            if run == 0 {
                "warm-up".to_owned()
            } else {
                format!("run {run}")
            },
            alone.latency.value_at_quantile(0.99) as f64 / 1e3,
            beside.latency.value_at_quantile(0.99) as f64 / 1e3,
            beside.rss_mib,
        );
        if run > 0 {
            report.add("subscribers_rss_mib", "MiB", alone.rss_mib.max(beside.rss_mib));
            report.add("subscribers_empty_rss_mib", "MiB", empty_mib);
            report.add("subscribers_cpu_us_per_decision", "us", alone.cpu_us_per_decision);
            report.add_latency(["subscribers_p50_ms", "subscribers_p99_ms"], &alone.latency);
            report.add_latency(
                ["subscribers_stalled_p50_ms", "subscribers_stalled_p99_ms"],
                &beside.latency,
            );
            let p99 = |measured: &Measured| measured.latency.value_at_quantile(0.99) as f64;
            report.add("subscribers_stalled_p99_ratio", "ratio", p99(&beside) / p99(&alone));
        }
    }
    Ok(report)
}

struct Measured {
    latency: Histogram<u64>,
    rss_mib: f64,
    cpu_us_per_decision: f64,
}

/// Writes decisions at the rate, and waits until every one of them was received.
fn measure(
    args: &Args,
    writer: &mut Writer,
    seen: &Seen,
    readers: &mut Readers,
    gateway: &Part,
) -> anyhow::Result<Measured> {
    let count = u64::from(args.rate) * u64::from(args.seconds);
    let cpu_s = gateway.cpu_s()?;
    let started = Instant::now();
    seen.begin(writer.written, started);
    let goal = seen.received.load(Ordering::Relaxed) + count;
    writer.write(args, count, started)?;
    let mut moved = (0, Instant::now());
    loop {
        readers.check()?;
        let received = seen.received.load(Ordering::Relaxed);
        if received >= goal {
            break;
        }
        if received > moved.0 {
            moved = (received, Instant::now());
        }
        ensure!(
            moved.1.elapsed() < STALL,
            "{} of {count} decisions are missing, and none came for {} s",
            goal - received,
            STALL.as_secs()
        );
        pause();
    }
    Ok(Measured {
        latency: seen.take(),
        rss_mib: gateway.rss_mib()?,
        cpu_us_per_decision: (gateway.cpu_s()? - cpu_s) * 1e6 / count as f64,
    })
}

/// What all subscriptions together received.
struct Seen {
    received: AtomicU64,
    rate_per_s: f64,
    inner: Mutex<Inner>,
}

struct Inner {
    /// The measurement's first decision, and when that is due.
    first: u64,
    started: Instant,
    latency: Histogram<u64>,
}

impl Seen {
    fn new(rate_per_s: u32) -> Self {
        let inner = Inner {
            first: 0,
            started: Instant::now(),
            latency: histogram(),
        };
        Self {
            received: AtomicU64::new(0),
            rate_per_s: rate_per_s.into(),
            inner: Mutex::new(inner),
        }
    }

    fn begin(&self, first: u64, started: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        (inner.first, inner.started) = (first, started);
    }

    fn take(&self) -> Histogram<u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut inner.latency, histogram())
    }

    /// Takes decisions, whose source offsets are their numbers.
    fn receive(&self, decisions: &[FraudDecision]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let now = inner.started.elapsed();
        for decision in decisions {
            let number = decision.source.unwrap_or_default().offset as u64;
            let due_s = number.saturating_sub(inner.first) as f64 / self.rate_per_s;
            let latency = now.saturating_sub(Duration::from_secs_f64(due_s));
            inner.latency.saturating_record((latency.as_micros() as u64).max(1));
        }
        drop(inner);
        self.received.fetch_add(decisions.len() as u64, Ordering::Relaxed);
    }
}

/// The account of a subscription; the first ones are busy.
fn account(number: u64) -> String {
    format!("account-{number}")
}

/// Writes decisions: every other one about a busy account, in turn.
struct Writer {
    producer: ThreadedProducer<DefaultProducerContext>,
    topic: String,
    partitions: u64,
    encoder: Encoder<Decision>,
    /// So far; also the number of the next one.
    written: u64,
}

impl Writer {
    fn new(installation: &Installation) -> anyhow::Result<Self> {
        let producer: ThreadedProducer<_> = installation.kafka.idempotent_producer(LINGER_MS).create()?;
        let topic = installation.topics.decisions.clone();
        let metadata = producer.client().fetch_metadata(Some(&topic), FLUSH_TIMEOUT)?;
        let partitions = metadata
            .topics()
            .first()
            .context("no topic of decisions")?
            .partitions()
            .len() as u64;
        let encoder = Encoder::new(installation.schema_id::<Decision>()?)?;
        Ok(Self {
            producer,
            topic,
            partitions,
            encoder,
            written: 0,
        })
    }

    fn write(&mut self, args: &Args, count: u64, started: Instant) -> anyhow::Result<()> {
        let (busy, quiet) = (u64::from(args.busy), u64::from(args.streams - args.busy));
        let mut payload = Vec::new();
        for index in 0..count {
            until(started + Duration::from_secs_f64(index as f64 / f64::from(args.rate)));
            let pair = self.written / 2;
            let account = account(if self.written.is_multiple_of(2) {
                pair % busy
            } else {
                busy + pair % quiet
            });
            let decision = decision(account, self.written, self.partitions);
            payload.clear();
            self.encoder.encode(&decision, &mut payload)?;
            let record = BaseRecord::to(&self.topic)
                .partition(decision.source_partition)
                .key(decision.account_id.as_str())
                .payload(&payload[..]);
            self.producer
                .send(record)
                .map_err(|(error, _record)| error)
                .context("a decision cannot be written")?;
            self.written += 1;
        }
        self.producer
            .flush(FLUSH_TIMEOUT)
            .context("not every decision was written")
    }
}

fn decision(account_id: String, number: u64, partitions: u64) -> Decision {
    Decision {
        event_id: EventId::new(uuid::Uuid::from_u128(u128::from(number) + 1)),
        tenant: TENANT.to_owned(),
        account_id,
        amount: Amount::default(),
        currency: "EUR".to_owned(),
        occurred_at: now_micros(),
        outcome: Outcome::Approve,
        score: 0.0,
        reasons: Vec::new(),
        rule_set_version: "benchmark".into(),
        model_version: None,
        source_partition: (number % partitions) as i32,
        source_offset: number as i64,
        late: false,
    }
}

/// The subscriptions' tasks.
struct Readers(JoinSet<anyhow::Result<()>>);

impl Readers {
    /// Fails when a subscription ended.
    fn check(&mut self) -> anyhow::Result<()> {
        match self.0.try_join_next() {
            Some(ended) => ended?.and_then(|()| bail!("a subscription ended")),
            None => Ok(()),
        }
    }
}

async fn subscribe(args: &Args, address: &str, seen: &Arc<Seen>) -> anyhow::Result<Readers> {
    let mut readers = JoinSet::new();
    let mut client = connect(address).await?;
    for number in 0..args.streams {
        if number % STREAMS_OF_A_CONNECTION == 0 {
            client = connect(address).await?;
        }
        let filter = DecisionFilter {
            account_ids: vec![account(number.into())],
            ..DecisionFilter::default()
        };
        let mut stream = open(&mut client, filter).await?;
        let seen = Arc::clone(seen);
        readers.spawn(async move {
            while let Some(response) = stream.message().await? {
                if let Some(Response::Batch(batch)) = response.message {
                    seen.receive(&batch.decisions);
                }
            }
            Ok(())
        });
    }
    Ok(Readers(readers))
}

async fn connect(address: &str) -> anyhow::Result<DecisionServiceClient<Channel>> {
    let channel = Channel::from_shared(address.to_owned())?.connect().await?;
    Ok(DecisionServiceClient::new(channel))
}

/// Opens a subscription, and waits until it has begun.
async fn open(
    client: &mut DecisionServiceClient<Channel>,
    filter: DecisionFilter,
) -> anyhow::Result<Streaming<SubscribeResponse>> {
    let open = SubscribeOpen {
        filter: Some(filter),
        credit: CREDIT,
        ..SubscribeOpen::default()
    };
    let open = SubscribeRequest {
        message: Some(Request::Open(open)),
    };
    // The client's side stays open for as long as the answers are read.
    let requests = tokio_stream::once(open).chain(tokio_stream::pending());
    let mut request = tonic::Request::new(requests);
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {DEVELOPMENT_KEY}").parse()?);
    let mut stream = client.subscribe(request).await?.into_inner();
    let first = stream.message().await?.and_then(|response| response.message);
    ensure!(
        matches!(first, Some(Response::Ready(_))),
        "the gateway did not begin with Ready"
    );
    Ok(stream)
}
