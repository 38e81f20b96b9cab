//! `sluice-load demo`: publishes payments at a fixed rate, follows each one to its decision, and judges the result.
//!
//! One loop publishes (`publish`), one task awaits the acknowledgements (`publish`), one takes decisions in, and all three
//! write to the `tally`. `screen` shows it while it grows, `table` when it is complete.

mod publish;
mod screen;
mod table;
mod tally;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use sluice_client::{Publisher, Start, Subscriber, Target};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::card_file::CardFile;
use crate::generate::{Generated, Generator, Options};
use crate::now_micros;
use screen::Screen;
use tally::Tally;

/// Decisions on their way or waiting to be counted.
const DECISION_CREDIT: u32 = 16_384;
/// How long outstanding decisions are waited for after the newest acknowledgement or decision.
const DECISION_PATIENCE: Duration = Duration::from_secs(60);
/// How long a lost gateway is waited for.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(60);
/// After the last decision, time for one that should not come.
const DUPLICATE_WATCH: Duration = Duration::from_millis(300);
/// Event time runs at this rate when payments are published as fast as they go.
const NOMINAL_RATE_PER_S: f64 = 5_000.0;
const POLL: Duration = Duration::from_millis(100);

/// What to publish, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address of the gateway
    #[arg(long, env = "SLUICE_TARGET", default_value = "http://127.0.0.1:50051")]
    pub target: String,
    /// API key of the tenant that publishes and subscribes
    #[arg(
        long,
        env = "SLUICE_API_KEY",
        default_value = crate::DEVELOPMENT_KEY,
        hide_env_values = true
    )]
    pub api_key: String,
    /// Payments to publish [default: 10000, or all rows of the file]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub events: Option<u64>,
    /// Payments a second, whether answers come or not; 0 publishes as fast as the gateway gives credit
    #[arg(long, default_value_t = 1_000)]
    pub rate: u32,
    /// Card transactions to publish, as .csv or .csv.gz, instead of generated payments
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// Seed of the generated payments
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

const DEFAULT_EVENTS: u64 = 10_000;

/// Payments to publish, and how many there are.
type Source = (u64, Box<dyn Iterator<Item = anyhow::Result<Generated>> + Send>);

/// The tally, shared between the loops. Never held across an await.
#[derive(Clone)]
struct Shared(Arc<Mutex<Tally>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, ended: anyhow::Result<()>) {
        if let Err(error) = ended {
            self.lock().failure.get_or_insert(format!("{error:#}"));
        }
    }
}

/// Runs the demonstration. `Ok(true)` means that every published payment was acknowledged and decided exactly once.
///
/// # Errors
/// When the file or the gateway cannot be used at all.
pub async fn run(args: Args) -> anyhow::Result<bool> {
    let (events, payments) = source(&args)?;
    let target = Target::new(&args.target, &args.api_key)?;
    let decisions = Subscriber::builder(target.clone())
        .start(Start::Latest)
        .credit(DECISION_CREDIT)
        .patience(CONNECTION_PATIENCE)
        .open()
        .await
        .context("no subscription")?;
    let epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64;
    let publisher = Publisher::builder(target, format!("sluice-load-{}", std::process::id()), epoch)
        .patience(CONNECTION_PATIENCE)
        .connect()
        .await
        .context("no publishing session")?;
    let publisher = Arc::new(publisher);
    let pace = if args.rate == 0 {
        "as fast as credit goes".to_owned()
    } else {
        format!("at {}/s", table::grouped(u64::from(args.rate)))
    };
    println!(
        "publishing {} payments {pace} to {}",
        table::grouped(events),
        args.target
    );

    let tally = Shared(Arc::new(Mutex::new(Tally::new(events))));
    let counting = tokio::spawn({
        let tally = tally.clone();
        async move {
            let ended = count(decisions, &tally).await;
            tally.failed(ended.context("the subscription ended"));
        }
    });
    let (done, all_published) = watch::channel(false);
    let publishing = tokio::spawn({
        let (tally, publisher) = (tally.clone(), Arc::clone(&publisher));
        async move {
            let ended = publish::run(publisher, payments, args.rate, tally.clone(), done).await;
            tally.failed(ended.context("the publisher ended"));
        }
    });
    let started = Instant::now();
    follow(&tally, &publisher, &all_published).await;
    counting.abort();
    publishing.abort();
    let tally = tally.lock();
    table::print(&tally, started.elapsed(), publisher.sessions());
    Ok(tally.complete())
}

/// Counts decisions until the subscription ends.
async fn count(mut decisions: Subscriber, tally: &Shared) -> anyhow::Result<()> {
    while let Some(decision) = decisions.next().await? {
        tally.lock().decided(&decision, Instant::now());
    }
    Ok(())
}

/// Shows progress until everything is decided, or nothing has moved for too long.
async fn follow(tally: &Shared, publisher: &Publisher, all_published: &watch::Receiver<bool>) {
    let mut screen = Screen::new();
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut settled_at = None;
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let mut tally = tally.lock();
        screen.draw(&mut tally, publisher, now);
        let published = *all_published.borrow();
        let settled = published && tally.outstanding() == 0;
        let waited_since = tally.moved_at.max(if settled { settled_at } else { None });
        settled_at = settled.then(|| settled_at.unwrap_or(now));
        let watched = settled_at.is_some_and(|at| now.duration_since(at) >= DUPLICATE_WATCH);
        let given_up = published && waited_since.is_some_and(|at| now.duration_since(at) >= DECISION_PATIENCE);
        if watched || given_up || tally.failure.is_some() {
            screen.finish();
            return;
        }
    }
}

fn source(args: &Args) -> anyhow::Result<Source> {
    let now = now_micros();
    let salt = fastrand::u64(..);
    let Some(path) = &args.file else {
        let events = args.events.unwrap_or(DEFAULT_EVENTS);
        let (rate_per_s, start_micros) = if args.rate == 0 {
            (
                NOMINAL_RATE_PER_S,
                now - (events as f64 / NOMINAL_RATE_PER_S * 1e6) as i64,
            )
        } else {
            (f64::from(args.rate), now)
        };
        let generator = Generator::new(Options {
            seed: args.seed,
            salt,
            start_micros,
            rate_per_s,
        });
        return Ok((events, Box::new(generator.take(events as usize).map(Ok))));
    };
    let limit = args.events.unwrap_or(u64::MAX);
    let summary = CardFile::open(path)?.summarize(limit, now)?;
    println!(
        "{}: {} payments; times are shifted by {:.1} days, so that the newest is now",
        path.display(),
        table::grouped(summary.rows),
        summary.shift_micros as f64 / 86_400e6
    );
    if summary.skipped > 0 {
        println!(
            "{} rows are left out: their amount is zero, which the contract refuses",
            summary.skipped
        );
    }
    let payments = CardFile::open(path)?.payments(summary.shift_micros, salt);
    Ok((summary.rows, Box::new(payments.take(summary.rows as usize))))
}
