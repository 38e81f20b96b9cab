//! Owns the processor as a whole: what is checked and made before the first record, the lanes' threads, and their end.
//!
//! Comes after [`crate::config`] in `main`; each lane goes on in [`crate::lane`].

use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc as channel};
use std::thread;
use std::time::Duration;

use prometheus_client::registry::Registry as MetricsRegistry;
use sluice_kafka::registry::Registry;
use sluice_kafka::serve::AdminServer;
use sluice_kafka::telemetry::Tracer;
use sluice_kafka::{Topics, admin, error, metrics};
use sluice_proto::avro::Record;
use sluice_proto::decision::Decision;
use sluice_proto::event::PaymentRecord;
use sluice_proto::features::AccountFeatures;
use sluice_proto::settlement::{Settlement, Verdict};
use sluice_proto::topics;
use sqlx::Connection as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use uuid::Uuid;

use crate::calendar::SECOND_US;
use crate::config::{self, AtDeadline, Config};
use crate::consume::Bounds;
use crate::lane::{self, Settings, Signals};
use crate::ledger::{self, Ledger, NoLedger, Open};
use crate::metrics::Metrics;
use crate::replay::Kept;
use crate::saga::machine::Word;
use crate::saga::runner;
use crate::servers::Servers;
use crate::snapshot::{self, Snapshots};
use crate::warm_up;

/// How long the lanes may take to finish their batches and leave, once the process is told to end.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(20);
/// What a later version of a schema must be able to read: everything that was ever stored.
const COMPATIBILITY: &str = "BACKWARD_TRANSITIVE";
/// How long the admin port may take to answer what it was asked before the process ends.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the processor cannot start, or ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The admin port.
    #[error("cannot listen on {address} for --admin-listen: {source}")]
    Bind {
        /// The address as given.
        address: std::net::SocketAddr,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The rule set's file, which was there when the options were checked.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// Kafka, or its topics.
    #[error("{0}; topics are made by: sluicectl topics apply")]
    Topics(#[from] error::Admin),
    /// The directory of snapshots, or what writes them.
    #[error("snapshots cannot be kept: {0}")]
    Snapshots(#[from] snapshot::Error),
    /// The schema registry.
    #[error(transparent)]
    Registry(#[from] error::Registry),
    /// The registry's id does not fit the wire format.
    #[error("the schema registry gave the id {0}, which the wire format has no room for")]
    SchemaId(u32),
    /// Postgres cannot be reached.
    #[error("the ledger's database cannot be used: {0}")]
    Ledger(#[from] ledger::Error),
    /// Postgres is not as it should be.
    #[error("the ledger's database cannot be used: {0}")]
    Postgres(#[from] sqlx::Error),
    /// The ledger's tables.
    #[error("the ledger's tables cannot be brought up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The database is another installation's.
    #[error("the database holds the ledger of topic {0}: each payments topic needs a database of its own")]
    OtherTopic(String),
    /// The system has no thread left.
    #[error("no thread for a lane: {0}")]
    Thread(#[source] std::io::Error),
    /// A lane ended by itself.
    #[error("lane {lane} failed: {source}")]
    Lane {
        /// Which.
        lane: u16,
        /// Why.
        source: Box<lane::Error>,
    },
    /// A lane's thread panicked, which it has told the log.
    #[error("lane {0} panicked")]
    Panicked(u16),
    /// The saga's thread panicked, which it has told the log.
    #[error("the saga panicked")]
    SagaPanicked,
    /// The lanes did not end in time. What they had open is aborted and taken over by others.
    #[error("the lanes did not end within {} s", DRAIN_DEADLINE.as_secs())]
    Deadline,
}

/// Everything that was checked and made before the first record.
pub struct Processor {
    servers: Servers<Ledger>,
    /// Whether there is a ledger.
    ledger: bool,
    settings: Settings,
    saga: Option<runner::Options>,
    lanes: u16,
    admin: AdminServer,
    registry: MetricsRegistry,
}

impl Processor {
    /// Binds the admin port, checks the topics, registers the schemas, and brings the ledger's tables up to date.
    ///
    /// # Errors
    /// The first thing that is not as it must be.
    pub async fn build(config: Config, tracer: Tracer) -> Result<Self, Error> {
        let address = config.admin_listen;
        let admin = AdminServer::bind(address).map_err(|source| Error::Bind { address, source })?;
        let mut registry = MetricsRegistry::default();
        let kafka_metrics = metrics::Metrics::register(&mut registry);
        let metrics = Metrics::register(&mut registry);

        let topics = Topics::new(&config.kafka.topic_prefix);
        let (schemas, snapshots) = {
            let (config, topics, metrics) = (config.clone(), topics.clone(), metrics.clone());
            let kafka_metrics = kafka_metrics.clone();
            blocking(move || {
                let kafka = config.kafka.config();
                let admin = admin::Admin::new(&kafka, kafka_metrics)?;
                admin.check_topics(&topics)?;
                let schemas = register_schemas(&Registry::new(&config.registry), &topics, config.features)?;
                let options = snapshot::Options {
                    directory: config.snapshot_dir,
                    interval: Duration::from_secs(config.snapshot_interval_s.into()),
                    lateness_us: i64::from(config.allowed_lateness_s) * SECOND_US,
                };
                let snapshots = Snapshots::start(&options, &kafka, &topics, admin.cluster_id()?, &metrics)?;
                Ok((schemas, snapshots))
            })
            .await?
        };
        let ledger = config.has_ledger();
        if ledger {
            prepare_database(&config.postgres, &topics.payments).await?;
        } else {
            tracing::warn!("no ledger is kept: repetitions that the lanes no longer remember are decided again");
        }

        let rules = config.rule_set()?;
        let saga = saga_options(&config, &schemas);
        let run = Uuid::now_v7();
        tracing::info!(%run, rules = &*rules.version(), lanes = config.lanes, "built");
        let servers = Servers {
            kafka: config.kafka.config(),
            group: config.group_name(),
            session_timeout: Duration::from_millis(config.session_timeout_ms.into()),
            postgres: config.postgres.clone(),
            snapshots,
            books: PhantomData,
        };
        let settings = Settings {
            transaction_timeout: config.transaction_timeout(),
            transactional_ids: (0..config.lanes).map(|lane| config.transactional_id(lane)).collect(),
            bounds: Bounds {
                max_events: config.batch_max_events as usize,
                max_bytes: config.batch_max_bytes,
                linger: Duration::from_millis(config.batch_linger_ms.into()),
            },
            decision_target: Duration::from_millis(config.decision_target_ms.into()),
            rules,
            lateness_us: i64::from(config.allowed_lateness_s) * SECOND_US,
            payment_schema: schemas.payments,
            decision_schema: schemas.decisions,
            features_schema: schemas.features,
            // The lanes wait in their own way, which keeps them in their group.
            registry: Arc::new(Registry::with_patience(&config.registry, Duration::ZERO)),
            topics,
            metrics,
            kafka_metrics,
            tracer,
            kept: Kept::default(),
            run,
        };
        Ok(Self {
            servers,
            ledger,
            settings,
            saga,
            lanes: config.lanes,
            admin,
            registry,
        })
    }

    /// Runs the lanes until `shutdown` resolves, and then until each has finished its batch and left its group.
    ///
    /// # Errors
    /// When a lane ends by itself, or not in time.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        if self.ledger {
            self.run_lanes::<Ledger>(shutdown).await
        } else {
            self.run_lanes::<NoLedger>(shutdown).await
        }
    }

    async fn run_lanes<B: Open + 'static>(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let shared = Arc::new((self.servers.keeping::<B>(), self.settings));
        let signals: Arc<Vec<Signals>> = Arc::new((0..self.lanes).map(|_| Signals::default()).collect());
        let (close, closed) = oneshot::channel::<()>();
        let readiness = readiness(signals.clone());
        let admin = tokio::spawn(self.admin.run(Arc::new(self.registry), readiness, async {
            closed.await.unwrap_or(());
        }));

        let mut shutdown = pin!(shutdown);
        let warming = warm_up(shared.clone(), self.lanes, signals.clone());
        tokio::select! {
            () = &mut shutdown => {
                stop_lanes(&signals);
                return Ok(());
            }
            () = warming => {}
        }

        // One more for the saga.
        let (report, mut reports) = mpsc::channel(usize::from(self.lanes) + 1);
        let (saga_goes_on, stop) = channel::channel();
        if let Some(options) = self.saga {
            start_saga(shared.clone(), options, stop, report.clone())?;
        }
        for lane in 0..self.lanes {
            start_lane(lane, shared.clone(), signals.clone(), report.clone())?;
        }
        // The channel closes when every lane has reported.
        drop(report);
        let early = tokio::select! {
            () = &mut shutdown => Ok(()),
            end = reports.recv() => end.unwrap_or(Ok(())),
        };
        stop_lanes(&signals);
        drop(saga_goes_on);
        tracing::info!("draining");
        let drained = timeout(DRAIN_DEADLINE, async {
            let mut all = Ok(());
            while let Some(end) = reports.recv().await {
                all = all.and(end);
            }
            all
        });
        let drained = drained.await.unwrap_or(Err(Error::Deadline));
        // Whoever sent half a request keeps it open.
        if close.send(()).is_ok() && !matches!(timeout(ADMIN_TIMEOUT, admin).await, Ok(Ok(_))) {
            tracing::warn!("the admin port did not end well");
        }
        early.and(drained)
    }
}

fn stop_lanes(signals: &[Signals]) {
    for signal in signals {
        signal.stop.store(true, Ordering::Relaxed);
    }
}

/// Ends with the lanes' signals to stop, or by itself; what goes wrong makes the takeovers longer and nothing else.
async fn warm_up<B: Open + 'static>(shared: Arc<(Servers<B>, Settings)>, lanes: u16, signals: Arc<Vec<Signals>>) {
    let work = move || {
        let goes_on = || !signals.iter().any(|signals| signals.stop.load(Ordering::Relaxed));
        if let Err(error) = warm_up::run(&shared.0, &shared.1, lanes, &goes_on) {
            tracing::warn!(%error, "the takeovers will have more to read");
        }
        Ok(())
    };
    drop(blocking(work).await);
}

fn start_lane<B: Open + 'static>(
    lane: u16,
    shared: Arc<(Servers<B>, Settings)>,
    signals: Arc<Vec<Signals>>,
    report: mpsc::Sender<Result<(), Error>>,
) -> Result<(), Error> {
    let body = move || {
        let (servers, settings) = &*shared;
        let run = || lane::run(lane, servers, settings, &signals[usize::from(lane)]);
        let end = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(Error::Lane {
                lane,
                source: Box::new(source),
            }),
            Err(_panic) => Err(Error::Panicked(lane)),
        };
        if report.blocking_send(end).is_err() {
            tracing::warn!(lane, "ended after the deadline");
        }
    };
    let thread = thread::Builder::new().name(format!("lane-{lane}")).spawn(body);
    thread.map(drop).map_err(Error::Thread)
}

fn start_saga<B: 'static>(
    shared: Arc<(Servers<B>, Settings)>,
    options: runner::Options,
    stop: channel::Receiver<()>,
    report: mpsc::Sender<Result<(), Error>>,
) -> Result<(), Error> {
    let body = move || {
        let end = catch_unwind(AssertUnwindSafe(|| runner::run(&shared.1, &options, &stop)));
        if report.blocking_send(end.map_err(|_panic| Error::SagaPanicked)).is_err() {
            tracing::warn!("the saga ended after the deadline");
        }
    };
    let thread = thread::Builder::new().name("saga".to_owned()).spawn(body);
    thread.map(drop).map_err(Error::Thread)
}

/// What the saga is to do, where there is a rail.
fn saga_options(config: &Config, schemas: &SchemaIds) -> Option<runner::Options> {
    Some(runner::Options {
        kafka: config.kafka.config(),
        postgres: config.postgres.clone(),
        rail: config.rail.clone()?,
        timeout: Duration::from_millis(config.rail_timeout_ms.into()),
        open_for: Duration::from_millis(config.rail_breaker_open_ms.into()),
        review_deadline: Duration::from_secs(config.review_deadline_s.into()),
        at_deadline: match config.review_at_deadline {
            AtDeadline::Capture => Word::Approve,
            AtDeadline::Release => Word::Decline,
        },
        verdict_schema: schemas.verdicts,
        settlement_schema: schemas.settlements,
    })
}

/// Ready when every lane has dealt with its first assignment, and not while draining.
fn readiness(signals: Arc<Vec<Signals>>) -> impl Fn() -> Result<(), String> + Clone + Send + Sync + 'static {
    move || {
        if signals.iter().any(|signals| signals.stop.load(Ordering::Relaxed)) {
            return Err("draining".to_owned());
        }
        match signals
            .iter()
            .position(|signals| !signals.ready.load(Ordering::Relaxed))
        {
            Some(lane) => Err(format!("lane {lane} waits for its first assignment")),
            None => Ok(()),
        }
    }
}

/// The ids that the registry gave to this version's schemas.
struct SchemaIds {
    payments: i32,
    decisions: i32,
    features: Option<i32>,
    verdicts: i32,
    settlements: i32,
}

/// Registers this version's schemas, that of features where they are written.
fn register_schemas(registry: &Registry, topics: &Topics, features: bool) -> Result<SchemaIds, Error> {
    let register = |topic: &str, schema: &str| -> Result<i32, Error> {
        let subject = topics::value_subject(topic);
        let id = registry.register(&subject, schema)?;
        registry.set_compatibility(&subject, COMPATIBILITY)?;
        i32::try_from(id).map_err(|_| Error::SchemaId(id))
    };
    Ok(SchemaIds {
        payments: register(&topics.payments, PaymentRecord::SCHEMA_JSON)?,
        decisions: register(&topics.decisions, Decision::SCHEMA_JSON)?,
        features: features
            .then(|| register(&topics.features, AccountFeatures::SCHEMA_JSON))
            .transpose()?,
        verdicts: register(&topics.verdicts, Verdict::SCHEMA_JSON)?,
        settlements: register(&topics.settlements, Settlement::SCHEMA_JSON)?,
    })
}

/// Applies the migrations; processes that start together wait for each other. Refuses another topic's database.
async fn prepare_database(url: &str, topic: &str) -> Result<(), Error> {
    let mut connection = ledger::connect(url).await?;
    let mut migrations = sqlx::migrate!();
    // A processor of this version may start again while a later one is being deployed: what that has added is not in its
    // way, because migrations only add.
    migrations.set_ignore_missing(true).run(&mut connection).await?;
    let other: Option<(String,)> = sqlx::query_as("SELECT topic FROM part_owner WHERE topic <> $1 LIMIT 1")
        .bind(topic)
        .fetch_optional(&mut connection)
        .await?;
    connection.close().await?;
    match other {
        Some((topic,)) => Err(Error::OtherTopic(topic)),
        None => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
