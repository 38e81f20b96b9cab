//! Owns the processor's options: flags, environment variables and the optional file, in this order of precedence, and
//! what is checked before anything starts.
//!
//! Comes first in `main`, before [`crate::processor`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use sluice_kafka::options;
use sqlx::postgres::PgConnectOptions;

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
    /// URL of the Postgres database that holds the ledger. One database holds the ledger of one payments topic.
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
    #[arg(long, env = "SLUICE_INSTANCE", default_value_t = host_name())]
    pub instance: String,
    /// Number of lanes: threads, each with a consumer, a transactional producer and a Postgres connection.
    #[arg(long, env = "SLUICE_LANES", default_value_t = 2)]
    pub lanes: u16,
    /// Most events in one batch, and so in one transaction.
    #[arg(long, env = "SLUICE_BATCH_MAX_EVENTS", default_value_t = 5_000)]
    pub batch_max_events: u32,
    /// Most bytes of payloads in one batch.
    #[arg(long, env = "SLUICE_BATCH_MAX_BYTES", default_value_t = 8 * 1_024 * 1_024)]
    pub batch_max_bytes: usize,
    /// How long a batch that is not full waits for more events after its first, in milliseconds.
    #[arg(long, env = "SLUICE_BATCH_LINGER_MS", default_value_t = 5)]
    pub batch_linger_ms: u32,
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
    /// Thresholds of the rules.
    #[command(flatten)]
    pub thresholds: Thresholds,
    /// A TOML file with further options; none when unset.
    #[arg(long, env = "SLUICE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Checks the options, says whether they are valid, and exits.
    #[arg(long)]
    pub check_config: bool,
}

/// Thresholds of the rules and of the outcomes. Any change of them is a new version of the rule set.
#[derive(Clone, Debug, PartialEq, clap::Args)]
#[command(next_help_heading = "Rules")]
pub struct Thresholds {
    /// LARGE_AMOUNT fires over this amount, in the currency's major unit.
    #[arg(long, env = "SLUICE_LARGE_AMOUNT_UNITS", default_value_t = DEFAULTS.large_amount_units)]
    pub large_amount_units: u32,
    /// What LARGE_AMOUNT adds to the score on its own, from 0 to 1.
    #[arg(long, env = "SLUICE_LARGE_AMOUNT_CONTRIBUTION", default_value_t = DEFAULTS.large_amount_contribution)]
    pub large_amount_contribution: f64,
    /// HIGH_FREQUENCY fires with more payments of an account than this in its window.
    #[arg(long, env = "SLUICE_HIGH_FREQUENCY_MAX", default_value_t = DEFAULTS.high_frequency_max)]
    pub high_frequency_max: u32,
    /// Length of HIGH_FREQUENCY's sliding window, in seconds of event time.
    #[arg(long, env = "SLUICE_HIGH_FREQUENCY_WINDOW_S", default_value_t = DEFAULTS.high_frequency_window_s)]
    pub high_frequency_window_s: u32,
    /// What HIGH_FREQUENCY adds to the score on its own, from 0 to 1.
    #[arg(long, env = "SLUICE_HIGH_FREQUENCY_CONTRIBUTION", default_value_t = DEFAULTS.high_frequency_contribution)]
    pub high_frequency_contribution: f64,
    /// IMPOSSIBLE_TRAVEL fires over this speed between two coordinates, in kilometres an hour.
    #[arg(long, env = "SLUICE_TRAVEL_MAX_KMH", default_value_t = DEFAULTS.travel_max_kmh)]
    pub travel_max_kmh: u32,
    /// IMPOSSIBLE_TRAVEL fires for two places of different names within this time, in seconds.
    #[arg(long, env = "SLUICE_TRAVEL_PLACE_WINDOW_S", default_value_t = DEFAULTS.travel_place_window_s)]
    pub travel_place_window_s: u32,
    /// What IMPOSSIBLE_TRAVEL adds to the score on its own, from 0 to 1.
    #[arg(long, env = "SLUICE_TRAVEL_CONTRIBUTION", default_value_t = DEFAULTS.travel_contribution)]
    pub travel_contribution: f64,
    /// How far a payment may be behind the newest one of its partition and still be judged with its history and be
    /// deduplicated in memory, in seconds of event time.
    #[arg(long, env = "SLUICE_ALLOWED_LATENESS_S", default_value_t = DEFAULTS.allowed_lateness_s)]
    pub allowed_lateness_s: u32,
    /// What LATE_EVENT adds to the score on its own, from 0 to 1. A late payment is never approved, whatever the score.
    #[arg(long, env = "SLUICE_LATE_CONTRIBUTION", default_value_t = DEFAULTS.late_contribution)]
    pub late_contribution: f64,
    /// Score from which on a payment is held for review.
    #[arg(long, env = "SLUICE_REVIEW_SCORE", default_value_t = DEFAULTS.review_score)]
    pub review_score: f64,
    /// Score from which on a payment is declined.
    #[arg(long, env = "SLUICE_DECLINE_SCORE", default_value_t = DEFAULTS.decline_score)]
    pub decline_score: f64,
}

const DEFAULTS: Thresholds = Thresholds {
    large_amount_units: 10_000,
    large_amount_contribution: 0.6,
    high_frequency_max: 5,
    high_frequency_window_s: 60,
    high_frequency_contribution: 0.5,
    travel_max_kmh: 1_000,
    travel_place_window_s: 60,
    travel_contribution: 0.8,
    allowed_lateness_s: 600,
    late_contribution: 0.5,
    review_score: 0.5,
    decline_score: 0.75,
};

impl Default for Thresholds {
    fn default() -> Self {
        DEFAULTS
    }
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

    /// See [`Config::transaction_timeout_ms`].
    pub fn transaction_timeout(&self) -> Duration {
        Duration::from_millis(self.transaction_timeout_ms.into())
    }

    fn validate(&self) -> Result<(), Error> {
        let invalid = |option, reason: String| Err(Error::Invalid { option, reason });
        self.kafka.config().validate()?;
        let postgres = ["postgres://", "postgresql://"];
        if !postgres.iter().any(|scheme| self.postgres.starts_with(scheme))
            || PgConnectOptions::from_str(&self.postgres).is_err()
        {
            // The URL may hold a password, so it is not repeated.
            return invalid(
                "--postgres",
                "is not a URL such as postgres://user@host:5432/database".to_owned(),
            );
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
            ("--session-timeout-ms", self.session_timeout_ms, 1_000..=300_000),
            (
                "--transaction-timeout-ms",
                self.transaction_timeout_ms,
                sluice_kafka::config::MIN_TRANSACTION_TIMEOUT_MS..=900_000,
            ),
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
        self.thresholds.validate()
    }
}

impl Thresholds {
    fn validate(&self) -> Result<(), Error> {
        let invalid = |option, reason: String| Err(Error::Invalid { option, reason });
        for (option, value) in [
            ("--large-amount-contribution", self.large_amount_contribution),
            ("--high-frequency-contribution", self.high_frequency_contribution),
            ("--travel-contribution", self.travel_contribution),
            ("--late-contribution", self.late_contribution),
            ("--review-score", self.review_score),
            ("--decline-score", self.decline_score),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return invalid(option, format!("{value} is not within 0 to 1"));
            }
        }
        if self.decline_score < self.review_score {
            return invalid(
                "--decline-score",
                format!("{} is below --review-score {}", self.decline_score, self.review_score),
            );
        }
        let day = 86_400;
        for (option, value, most) in [
            ("--high-frequency-window-s", self.high_frequency_window_s, 300),
            ("--travel-place-window-s", self.travel_place_window_s, day),
            ("--travel-max-kmh", self.travel_max_kmh, 1_000_000),
            ("--allowed-lateness-s", self.allowed_lateness_s, day),
        ] {
            if !(1..=most).contains(&value) {
                return invalid(option, format!("{value} is not within 1 to {most}"));
            }
        }
        Ok(())
    }
}

/// The host's name, made fit for a transactional id.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let legal: String = name
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        .take(100)
        .collect();
    if legal.is_empty() { "local".to_owned() } else { legal }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
