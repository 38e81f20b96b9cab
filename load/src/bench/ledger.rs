//! `bench ledger`: payments are decided in equal parts until the ledger has millions of rows, so that the last parts can be
//! compared with the first; then a client publishes the oldest of them again, which only the ledger remembers.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};
use sluice_kafka::config::LINGER_MS;
use sluice_proto::event::PaymentRecord;
use tokio::runtime::Runtime;

use super::Common;
use super::parts::{Database, Installation, Part, on_its_own};
use super::plain::Plain;
use super::process::{Drained, GROUP, Progress, drain};
use super::records::{self, Record};
use super::report::Report;
use crate::now_micros;

/// The first and the last of this many parts of the run are compared.
const QUARTERS: usize = 4;
/// What the ledger's tables and their indexes take on disk, in bytes.
const BYTES: &str =
    "SELECT sum(pg_total_relation_size(inhrelid))::bigint FROM pg_inherits WHERE inhparent = 'ledger'::regclass";
/// Two documented queries, at the size that the ledger has in the end.
const QUERIES: [(&str, &str); 2] = [
    (
        "ledger_range_query_ms",
        "SELECT * FROM transactions WHERE part = 1 AND off BETWEEN 1000 AND 1099",
    ),
    (
        "ledger_event_query_ms",
        "SELECT * FROM transactions WHERE (part, tenant, event_id) IN \
         (SELECT part, 'dev', (SELECT event_id FROM ledger WHERE part = 1 AND off = 1000) FROM part_owner)",
    ),
];

/// Options of the benchmark.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) common: Common,
    /// Parts that the payments come in
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(4..=1_000))]
    parts: u32,
    /// Payments of a part
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(10_000..=5_000_000))]
    events: u32,
    /// Lanes of the processor
    #[arg(long, env = "SLUICE_LANES", default_value_t = 2)]
    lanes: u16,
}

pub(super) fn run(args: &Args, runtime: &Runtime) -> anyhow::Result<Report> {
    println!(
        "{} parts of {} payments, then the first part again; {} runs, each from nothing",
        args.parts, args.events, args.common.runs
    );
    let mut report = Report::default();
    for run in 1..=args.common.runs {
        on_its_own(&args.common.parts, runtime, "ledger", run, |installation, database| {
            once(args, installation, database, runtime, &mut report)
        })?;
    }
    Ok(report)
}

fn once(
    args: &Args,
    installation: &Installation,
    database: &Database,
    runtime: &Runtime,
    report: &mut Report,
) -> anyhow::Result<()> {
    let schema = installation.schema_id::<PaymentRecord>()?;
    let mut lane = Decider::new(args, installation, database)?;
    // All of them happened already, each part after the one before it.
    let mut last_micros = now_micros() - i64::from(args.parts) * records::micros_of(args.events);
    let (mut oldest, mut rates) = (None, Vec::new());
    for part in 1..=args.parts {
        last_micros += records::micros_of(args.events);
        let records = records::prepare_until(last_micros, args.events, schema)?;
        let decided = lane.decide(&records)?;
        println!("part {part}: {:.0}/s", decided.events_per_s);
        rates.push(decided.events_per_s);
        oldest.get_or_insert(records);
    }
    let (rows, bytes) = runtime.block_on(size(database))?;
    let expected = u64::from(args.parts) * u64::from(args.events);
    ensure!(rows == expected, "the ledger has {rows} rows for {expected} payments");
    let again = lane.decide(&oldest.context("no part")?)?;
    println!("the first part again: {:.0}/s", again.events_per_s);
    let (rows, _bytes) = runtime.block_on(size(database))?;
    ensure!(
        rows == expected,
        "{rows} rows for {expected} payments, some of which came again"
    );
    let quarter = rates.len() / QUARTERS;
    let (first, last) = (mean(&rates[..quarter]), mean(&rates[rates.len() - quarter..]));
    report.add("ledger_first_rows_per_s", "1/s", first);
    report.add("ledger_last_rows_per_s", "1/s", last);
    report.add("ledger_growth_ratio", "ratio", last / first);
    report.add("ledger_bytes_per_row", "B", bytes as f64 / rows as f64);
    report.add("ledger_old_repetitions_per_s", "1/s", again.events_per_s);
    report.add("ledger_old_repetitions_ratio", "ratio", again.events_per_s / last);
    for (name, query) in QUERIES {
        report.add(name, "ms", runtime.block_on(time(database, query))?);
    }
    Ok(())
}

/// A processor, and a producer that gives it payments.
struct Decider<'i> {
    plain: Plain,
    installation: &'i Installation,
    environment: [(&'static str, String); 4],
    snapshots: PathBuf,
    progress: Progress,
    given: i64,
}

impl<'i> Decider<'i> {
    fn new(args: &Args, installation: &'i Installation, database: &Database) -> anyhow::Result<Self> {
        // Without them each start would replay more than the one before.
        let snapshots = std::env::temp_dir().join(format!("sluice-bench-ledger-{:08x}", fastrand::u32(..)));
        Ok(Self {
            plain: Plain::new(installation, LINGER_MS)?,
            installation,
            environment: [
                ("SLUICE_POSTGRES", database.url()),
                ("SLUICE_GROUP", GROUP.to_owned()),
                ("SLUICE_LANES", args.lanes.to_string()),
                ("SLUICE_SNAPSHOT_DIR", snapshots.display().to_string()),
            ],
            snapshots,
            progress: Progress::new(installation, GROUP)?,
            given: 0,
        })
    }

    /// Fills the topic, and has a processor decide all of it.
    fn decide(&mut self, records: &[Record]) -> anyhow::Result<Drained> {
        self.plain.send_all(records)?;
        self.given += records.len() as i64;
        let launched = Instant::now();
        let mut processor: Part = self.installation.start("sluice-processor", &self.environment)?;
        drain(&mut processor, &self.progress, self.given, launched)
    }
}

impl Drop for Decider<'_> {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.snapshots));
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Rows and bytes of the ledger.
async fn size(database: &Database) -> anyhow::Result<(u64, i64)> {
    let mut connection = database.connect().await?;
    let bytes = sqlx::query_scalar(BYTES).fetch_one(&mut connection).await?;
    Ok((database.ledger_rows().await?, bytes))
}

/// How long Postgres takes for a query, in milliseconds, once it has planned it.
async fn time(database: &Database, query: &str) -> anyhow::Result<f64> {
    let mut connection = database.connect().await?;
    let plan: Vec<String> = sqlx::query_scalar(&format!("EXPLAIN ANALYZE {query}"))
        .fetch_all(&mut connection)
        .await?;
    println!("{query}\n  {}", plan.join("\n  "));
    let line = plan.iter().find_map(|line| line.strip_prefix("Execution Time: "));
    let took_ms = line.and_then(|line| line.strip_suffix(" ms")?.parse().ok());
    took_ms.context("the plan does not say how long it took")
}
