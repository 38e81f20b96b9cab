//! Owns the processor's options: flags, environment variables and the optional file, in this order of precedence, and
//! what is checked before anything starts.
//!
//! Comes first in `main`, before [`crate::processor`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use sluice_kafka::options;
use sqlx::postgres::PgConnectOptions;

use crate::rules::{self, RuleSet};

/// Most lanes of one process: each has a thread, a Postgres connection and three Kafka clients.
pub const MAX_LANES: u16 = 64;
/// Most events of one batch: what a lane may have to take back, and to do again.
pub const MAX_BATCH_EVENTS: u32 = 50_000;

/// Decides every payment exactly once and keeps the ledger of decisions.
///
/// Each option can also be set by its environment variable, or in the TOML file of --config under its own name with
/// underscores. A flag goes before the environment, and the environment before the file.
#[derive(Clone, Debug, Parser)]
#[command(name = "sluice-processor", version)]
pub struct Config {
    /// Kafka.
    #[command(flatten)]
    pub kafka: options::Kafka,
    /// URL of the schema registry's Confluent-compatible API.
    #[arg(
        long,
        env = "SLUICE_REGISTRY",
        default_value = "http://127.0.0.1:18081/apis/ccompat/v7"
    )]
    pub registry: String,
    /// URL of the Postgres database that holds the ledger. One database holds the ledger of one payments topic. With "none"
    /// payments are decided without a ledger, and repetitions are recognised only while the lanes remember the payment.
    #[arg(
        long,
        env = "SLUICE_POSTGRES",
        default_value = "postgres://sluice@127.0.0.1:15432/sluice",
        hide_env_values = true
    )]
    pub postgres: String,
    /// Consumer group, before the prefix.
    #[arg(long, env = "SLUICE_GROUP", default_value = "sluice-processor")]
    pub group: String,
    /// Name of this process among the processors of the group. It must outlive a restart, because by it the new process
    /// fences what the old one left open; two processes that run at once must not share it.
    #[arg(long, env = "SLUICE_INSTANCE", default_value_t = options::host_name())]
    pub instance: String,
    /// Number of lanes: threads, each with a consumer, two transactional producers and a Postgres connection.
    #[arg(long, env = "SLUICE_LANES", default_value_t = 2)]
    pub lanes: u16,
    /// Most events in one batch, and so in one transaction.
    #[arg(long, env = "SLUICE_BATCH_MAX_EVENTS", default_value_t = 5_000)]
    pub batch_max_events: u32,
    /// Most bytes of payloads in one batch.
    #[arg(long, env = "SLUICE_BATCH_MAX_BYTES", default_value_t = 8 * 1_024 * 1_024)]
    pub batch_max_bytes: usize,
    /// How long a batch that is not full waits for more events after its first at most, in milliseconds. A lane that meets
    /// --decision-target-ms waits for less.
    #[arg(long, env = "SLUICE_BATCH_LINGER_MS", default_value_t = 5)]
    pub batch_linger_ms: u32,
    /// What the 99th percentile of the time from storing a payment to its decision should not exceed, in milliseconds. A lane
    /// that misses it makes larger batches, which cost less.
    #[arg(long, env = "SLUICE_DECISION_TARGET_MS", default_value_t = 60)]
    pub decision_target_ms: u32,
    /// Directory for snapshots of the state, one for each process; besides those in Kafka, which other machines restore
    /// from. None when unset.
    #[arg(long, env = "SLUICE_SNAPSHOT_DIR")]
    pub snapshot_dir: Option<PathBuf>,
    /// How often a snapshot of each partition's state is made, in seconds.
    #[arg(long, env = "SLUICE_SNAPSHOT_INTERVAL_S", default_value_t = 60)]
    pub snapshot_interval_s: u32,
    /// After how long without a heartbeat Kafka gives a lane's partitions to another one, in milliseconds.
    #[arg(long, env = "SLUICE_SESSION_TIMEOUT_MS", default_value_t = sluice_kafka::config::SESSION_TIMEOUT_MS)]
    pub session_timeout_ms: u32,
    /// After how long Kafka aborts the transaction of a lane that went silent, in milliseconds.
    #[arg(long, env = "SLUICE_TRANSACTION_TIMEOUT_MS", default_value_t = 15_000)]
    pub transaction_timeout_ms: u32,
    /// Address of the admin port: /metrics, /health/live, /health/ready.
    #[arg(long, env = "SLUICE_ADMIN_LISTEN", default_value = "127.0.0.1:9465")]
    pub admin_listen: SocketAddr,
    /// What is logged, as a tracing-subscriber filter such as info or warn,sluice_processor=debug.
    #[arg(long, env = "SLUICE_LOG", default_value = "info")]
    pub log: String,
    /// OTLP gRPC endpoint to which spans of sampled payments are exported; none are when unset.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// File of the rule set that decides until another one is applied; the built-in one when unset. All processors of a
    /// group must have the same.
    #[arg(long, env = "SLUICE_RULES")]
    pub rules: Option<PathBuf>,
    /// How far a payment may be behind the newest one of its partition and still be judged with its history and be
    /// deduplicated in memory, in seconds of event time. All processors of a group must have the same.
    #[arg(long, env = "SLUICE_ALLOWED_LATENESS_S", default_value_t = 600)]
    pub allowed_lateness_s: u32,
    /// Writes the features with which each payment was judged to the compacted topic features, in the transaction of its
    /// decision, for serving models.
    #[arg(long, env = "SLUICE_FEATURES", default_value = "false", action = clap::ArgAction::Set)]
    pub features: bool,
    /// Base URL of the payment rail that captures what is approved, as docs/saga.md describes it; when unset no money is
    /// moved, and everything that was reserved stays so.
    #[arg(long, env = "SLUICE_RAIL", value_name = "URL")]
    pub rail: Option<String>,
    /// How long a call of the rail may take, in milliseconds; then its outcome is unknown and the rail is asked for it.
    #[arg(long, env = "SLUICE_RAIL_TIMEOUT_MS", default_value_t = 2_000)]
    pub rail_timeout_ms: u32,
    /// How long the rail is not called once half of the calls failed, in milliseconds; then a few calls try.
    #[arg(long, env = "SLUICE_RAIL_BREAKER_OPEN_MS", default_value_t = 60_000)]
    pub rail_breaker_open_ms: u32,
    /// How long a payment under review waits for a verdict, in seconds.
    #[arg(long, env = "SLUICE_REVIEW_DEADLINE_S", default_value_t = 86_400)]
    pub review_deadline_s: u32,
    /// What becomes of a payment for which no verdict came.
    #[arg(long, env = "SLUICE_REVIEW_AT_DEADLINE", value_enum, default_value_t = AtDeadline::Release)]
    pub review_at_deadline: AtDeadline,
    /// A TOML file with further options; none when unset.
    #[arg(long, env = "SLUICE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Checks the options, says whether they are valid, and exits.
    #[arg(long)]
    pub check_config: bool,
}

/// What becomes of a payment under review for which no verdict came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AtDeadline {
    /// It is captured.
    Capture,
    /// It is released.
    Release,
}

/// Why the options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Flags, environment and file.
    #[error(transparent)]
    Options(#[from] options::Error),
    /// An option has a value that cannot work.
    #[error("{option}: {reason}")]
    Invalid {
        /// The option's flag.
        option: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The rule set's file cannot be read.
    #[error("cannot read the rule set {}: {source}", path.display())]
    RulesFile {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file is no rule set.
    #[error("the rule set {}: {source}", path.display())]
    Rules {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rules::Error,
    },
    /// Kafka's settings cannot be used.
    #[error(transparent)]
    Kafka(#[from] sluice_kafka::error::Kafka),
}

impl Config {
    /// Reads and checks the options of this process.
    ///
    /// # Errors
    /// See [`Error`]; `Options` knows how to print itself and which code to exit with.
    pub fn load() -> Result<Self, Error> {
        let config = options::load::<Self>(std::env::args_os())?;
        config.validate()?;
        Ok(config)
    }

    /// The consumer group, with the prefix.
    pub fn group_name(&self) -> String {
        format!("{}{}", self.kafka.topic_prefix, self.group)
    }

    /// The transactional id of a lane: stable over restarts of this instance.
    pub fn transactional_id(&self, lane: u16) -> String {
        format!("{}-{}-lane-{lane}", self.group_name(), self.instance)
    }

    /// Whether decided payments are to be kept in Postgres.
    pub fn has_ledger(&self) -> bool {
        self.postgres != "none"
    }

    /// See [`Config::transaction_timeout_ms`].
    pub fn transaction_timeout(&self) -> Duration {
        Duration::from_millis(self.transaction_timeout_ms.into())
    }

    fn validate(&self) -> Result<(), Error> {
        let invalid = |option, reason: String| Err(Error::Invalid { option, reason });
        self.kafka.config().validate()?;
        let postgres = ["postgres://", "postgresql://"];
        let is_url = postgres.iter().any(|scheme| self.postgres.starts_with(scheme))
            && PgConnectOptions::from_str(&self.postgres).is_ok();
        if self.has_ledger() && !is_url {
            // The URL may hold a password, so it is not repeated.
            return invalid(
                "--postgres",
                "is neither a URL such as postgres://user@host:5432/database nor none".to_owned(),
            );
        }
        if self.rail.is_some() && !self.has_ledger() {
            return invalid("--rail", "needs a ledger: without one no money can be moved".to_owned());
        }
        if let Some(rail) = &self.rail
            && !rail.starts_with("http://")
        {
            return invalid("--rail", format!("{rail:?} is not an http URL"));
        }
        if !(self.registry.starts_with("http://") || self.registry.starts_with("https://")) {
            return invalid("--registry", format!("{:?} is not an http or https URL", self.registry));
        }
        for (option, name) in [("--group", &self.group), ("--instance", &self.instance)] {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            if name.is_empty() || name.len() > 100 || !name.bytes().all(legal) {
                return invalid(option, format!("{name:?}: 1 to 100 of a-z A-Z 0-9 . _ -"));
            }
        }
        for (option, value, bounds) in [
            ("--lanes", u32::from(self.lanes), 1..=u32::from(MAX_LANES)),
            ("--batch-max-events", self.batch_max_events, 1..=MAX_BATCH_EVENTS),
            ("--batch-linger-ms", self.batch_linger_ms, 0..=1_000),
            ("--decision-target-ms", self.decision_target_ms, 1..=60_000),
            ("--snapshot-interval-s", self.snapshot_interval_s, 1..=86_400),
            ("--session-timeout-ms", self.session_timeout_ms, 1_000..=300_000),
            (
                "--transaction-timeout-ms",
                self.transaction_timeout_ms,
                sluice_kafka::config::MIN_TRANSACTION_TIMEOUT_MS..=900_000,
            ),
            ("--allowed-lateness-s", self.allowed_lateness_s, 1..=86_400),
            ("--rail-timeout-ms", self.rail_timeout_ms, 50..=60_000),
            ("--rail-breaker-open-ms", self.rail_breaker_open_ms, 100..=3_600_000),
            ("--review-deadline-s", self.review_deadline_s, 1..=2_592_000),
        ] {
            if !bounds.contains(&value) {
                return invalid(
                    option,
                    format!("{value} is not within {} to {}", bounds.start(), bounds.end()),
                );
            }
        }
        if !(1_024..=64 * 1_024 * 1_024).contains(&self.batch_max_bytes) {
            return invalid(
                "--batch-max-bytes",
                format!("{} is not within 1024 to 67108864", self.batch_max_bytes),
            );
        }
        self.rule_set().map(drop)
    }

    /// The rule set that decides until another one is applied.
    ///
    /// # Errors
    /// [`Error::RulesFile`] and [`Error::Rules`].
    pub fn rule_set(&self) -> Result<Arc<RuleSet>, Error> {
        let Some(path) = &self.rules else {
            return Ok(RuleSet::built_in());
        };
        let text = std::fs::read_to_string(path).map_err(|source| Error::RulesFile {
            path: path.clone(),
            source,
        })?;
        let rules = RuleSet::parse(&text).map_err(|source| Error::Rules {
            path: path.clone(),
            source,
        })?;
        Ok(Arc::new(rules))
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
