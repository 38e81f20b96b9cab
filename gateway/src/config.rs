//! Owns the options: a flag, an environment variable, a key of the TOML file or the default, in this order.
//!
//! Comes first; `server` is built from it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use sluice_kafka::options;
use sluice_proto::bounds;
use tonic::codegen::http::HeaderValue;

use crate::audit;
use crate::auth::{self, Auth};
use crate::ingest::{route, token};
use crate::privacy::{self, Privacy};
use crate::quota::{self, Limits, Quotas, Rate};
use crate::tls::{self, Tls};

/// Takes payment events in over gRPC, stores them in Kafka, and gives the decisions out.
#[derive(Clone, Debug, Parser)]
#[command(name = "sluice-gateway", version)]
pub struct Config {
    /// Address and port that gRPC clients connect to
    #[arg(long, env = "SLUICE_LISTEN", default_value = "127.0.0.1:50051")]
    pub listen: SocketAddr,
    /// Address and port of /metrics, /health/live and /health/ready
    #[arg(long, env = "SLUICE_ADMIN_LISTEN", default_value = "127.0.0.1:9464")]
    pub admin_listen: SocketAddr,
    /// Kafka
    #[command(flatten)]
    pub kafka: options::Kafka,
    /// Base URL of the Confluent-compatible schema registry
    #[arg(
        long,
        env = "SLUICE_REGISTRY",
        default_value = "http://127.0.0.1:18081/apis/ccompat/v7"
    )]
    pub registry: String,
    /// TOML file of principals: hashed keys, certificates, token issuers; none: sluice-dev-key works on loopback
    #[arg(long, env = "SLUICE_API_KEYS", value_name = "FILE")]
    pub api_keys: Option<PathBuf>,
    /// PEM file with the certificate that TLS clients are shown, and those between it and its root; none: no TLS
    #[arg(long, env = "SLUICE_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's private key; none: no TLS
    #[arg(long, env = "SLUICE_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// PEM file with the roots of client certificates; none: clients cannot authenticate with one
    #[arg(long, env = "SLUICE_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// Serve without TLS on an address that is not loopback: only behind something that ends TLS
    #[arg(long, env = "SLUICE_ALLOW_PLAINTEXT", default_value = "false", action = clap::ArgAction::Set)]
    pub allow_plaintext: bool,
    /// Let several gateways of this machine listen on the same address and share its connections
    #[arg(long, env = "SLUICE_REUSE_PORT", default_value = "false", action = clap::ArgAction::Set)]
    pub reuse_port: bool,
    /// Origins whose pages may call by gRPC-Web, such as `https://desk.example`; comma separated; none: HTTP/2 only
    #[arg(long, env = "SLUICE_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origin: Vec<HeaderValue>,
    /// TOML file with what becomes of personal data; none: card numbers in texts are refused
    #[arg(long, env = "SLUICE_PRIVACY", value_name = "FILE")]
    pub privacy: Option<PathBuf>,
    /// TOML file of the topics that events go to, and of further types of events; none: each type has its own topic
    #[arg(long, env = "SLUICE_ROUTES", value_name = "FILE")]
    pub routes: Option<PathBuf>,
    /// Name of this gateway among the installation's, as every record that it stores and every line of its audit log has it
    #[arg(long, env = "SLUICE_INSTANCE", default_value_t = options::host_name(), value_parser = instance)]
    pub instance: String,
    /// File that the audit log is appended to; none: no such file
    #[arg(long, env = "SLUICE_AUDIT_LOG", value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
    /// Topic that the audit log is written to, without the prefix, and that ReadAudit reads; none: no such topic
    #[arg(long, env = "SLUICE_AUDIT_TOPIC", value_name = "TOPIC")]
    pub audit_topic: Option<String>,
    /// Events that each tenant may publish, in events per second over all gateways
    #[arg(long, env = "SLUICE_QUOTA_EVENTS_PER_S", default_value = "1000000")]
    pub quota_events_per_s: NonZeroU32,
    /// Events that a tenant may publish at once after a pause, in events
    #[arg(long, env = "SLUICE_QUOTA_BURST_EVENTS", default_value = "1000000")]
    pub quota_burst_events: NonZeroU32,
    /// Encoded events that each tenant may publish, in bytes per second over all gateways
    #[arg(long, env = "SLUICE_QUOTA_BYTES_PER_S", default_value = "1000000000")]
    pub quota_bytes_per_s: NonZeroU64,
    /// Encoded events that a tenant may publish at once after a pause, in bytes
    #[arg(long, env = "SLUICE_QUOTA_BURST_BYTES", default_value = "1000000000")]
    pub quota_burst_bytes: NonZeroU64,
    /// TOML file of other quotas for some tenants, and of quotas for principals, read again every 5 seconds; none when
    /// unset
    #[arg(long, env = "SLUICE_QUOTAS", value_name = "FILE")]
    pub quotas: Option<PathBuf>,
    /// Most events of one session that may ever be unacknowledged, in events; at most 65536, and a client may ask for fewer
    #[arg(long, env = "SLUICE_MAX_IN_FLIGHT_EVENTS", default_value = "65536", value_parser = in_flight())]
    pub max_in_flight_events: u32,
    /// Time to the acknowledgement that 99 of 100 events should keep, in milliseconds: sessions may have as many events
    /// unacknowledged as it allows
    #[arg(long, env = "SLUICE_ACK_TARGET_MS", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub ack_target_ms: u32,
    /// File of secrets that authenticate resume tokens, one a line, the same for all gateways: the first signs, all are
    /// accepted; when unset, a built-in secret works, on loopback only
    #[arg(long, env = "SLUICE_TOKEN_SECRETS", value_name = "FILE")]
    pub token_secrets: Option<PathBuf>,
    /// How old a resume token may be, in seconds
    #[arg(long, env = "SLUICE_TOKEN_MAX_AGE_S", default_value = "86400", value_parser = clap::value_parser!(u32).range(1..=2_592_000))]
    pub token_max_age_s: u32,
    /// How old a publishing session becomes before its client is asked to connect again, in seconds, give or take a tenth
    #[arg(long, env = "SLUICE_MAX_SESSION_AGE_S", default_value = "3600", value_parser = clap::value_parser!(u32).range(1..=604_800))]
    pub max_session_age_s: u32,
    /// Connections that may be open at a time; further ones wait to be accepted
    #[arg(long, env = "SLUICE_MAX_CONNECTIONS", default_value = "10000", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// What is logged: a level, or directives such as info,sluice_gateway=debug
    #[arg(long, env = "SLUICE_LOG", default_value = "info")]
    pub log: String,
    /// OTLP gRPC endpoint that spans of sampled payments are exported to, such as http://127.0.0.1:4317; none: no export
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// TOML file with the same options, as in max_in_flight_events = 500; a flag or variable overrides it; none when unset
    #[arg(long, env = "SLUICE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the options and the files that they name, then exit
    #[arg(long)]
    pub check_config: bool,
}

/// The options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Flags, environment and file.
    #[error(transparent)]
    Options(#[from] options::Error),
    /// Kafka's options.
    #[error(transparent)]
    Kafka(#[from] sluice_kafka::error::Kafka),
    /// The principals.
    #[error(transparent)]
    Keys(#[from] auth::Error),
    /// The secrets of resume tokens.
    #[error(transparent)]
    Tokens(#[from] token::Error),
    /// The quotas.
    #[error(transparent)]
    Quotas(#[from] quota::Error),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// What becomes of personal data.
    #[error(transparent)]
    Privacy(#[from] privacy::Error),
    /// Where events go.
    #[error(transparent)]
    Routes(#[from] route::Error),
    /// Events could be stored among the audit log's lines.
    #[error("SLUICE_AUDIT_TOPIC: {0:?} is no name of a topic, or events are stored in it: give the audit log its own")]
    AuditTopic(String),
    /// Everything that is sent could be read on the way.
    #[error(
        "listening on {0} without TLS: set SLUICE_TLS_CERT and SLUICE_TLS_KEY, or SLUICE_ALLOW_PLAINTEXT=true where \
         something before the gateway ends TLS"
    )]
    Plaintext(SocketAddr),
}

impl Config {
    /// Reads the options from the command line, the environment and the file that either names.
    ///
    /// # Errors
    /// [`Error::Options`].
    pub fn load(args: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        Ok(options::load(args)?)
    }

    /// Checks everything that can be checked without the other parts.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn validate(&self) -> Result<(), Error> {
        self.kafka.config().validate()?;
        self.auth()?;
        self.tls()?;
        Privacy::load(self.privacy.as_deref())?;
        self.table()?;
        self.signer()?;
        self.load_quotas()?;
        Ok(())
    }

    /// Who may call. Blocks.
    ///
    /// # Errors
    /// [`auth::Error`].
    pub fn auth(&self) -> Result<Auth, auth::Error> {
        Auth::load(self.api_keys.as_deref(), self.listen)
    }

    /// TLS, where it is configured. Blocks.
    ///
    /// # Errors
    /// [`Error::Tls`], [`Error::Plaintext`].
    pub fn tls(&self) -> Result<Option<Tls>, Error> {
        let (Some(certificate), Some(key)) = (self.tls_cert.clone(), self.tls_key.clone()) else {
            if self.allow_plaintext || self.listen.ip().is_loopback() {
                return Ok(None);
            }
            return Err(Error::Plaintext(self.listen));
        };
        let client_roots = self.tls_client_ca.clone();
        let files = tls::Files {
            certificate,
            key,
            client_roots,
        };
        Ok(Some(Tls::load(files)?))
    }

    /// Where events go. Blocks.
    ///
    /// # Errors
    /// [`Error::Routes`], [`Error::AuditTopic`].
    pub fn table(&self) -> Result<route::Table, Error> {
        let table = route::Table::load(self.routes.as_deref())?;
        match &self.audit_topic {
            Some(topic) if table.leads_to(topic) || route::may_be_written(topic).is_err() => {
                Err(Error::AuditTopic(topic.clone()))
            }
            _ => Ok(table),
        }
    }

    /// Where the audit log goes.
    pub fn audit_places(&self) -> audit::Places {
        let prefixed = |topic: &String| format!("{}{topic}", self.kafka.topic_prefix);
        audit::Places {
            file: self.audit_log.clone(),
            topic: self
                .audit_topic
                .as_ref()
                .map(|topic| (prefixed(topic), self.kafka.config())),
        }
    }

    /// The quotas of the file, with the options as the default.
    ///
    /// # Errors
    /// [`quota::Error`].
    pub fn load_quotas(&self) -> Result<Quotas, quota::Error> {
        let defaults = Limits {
            events: Some(Rate {
                per_s: self.quota_events_per_s.get().into(),
                burst: self.quota_burst_events.get().into(),
            }),
            bytes: Some(Rate {
                per_s: self.quota_bytes_per_s.get() as f64,
                burst: self.quota_burst_bytes.get() as f64,
            }),
        };
        Quotas::load(self.quotas.as_deref(), defaults)
    }

    /// What makes and checks resume tokens.
    ///
    /// # Errors
    /// [`token::Error`].
    pub fn signer(&self) -> Result<token::Signer, token::Error> {
        let max_age = Duration::from_secs(self.token_max_age_s.into());
        token::Signer::load(self.token_secrets.as_deref(), self.listen, max_age)
    }
}

fn instance(name: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > options::MAX_INSTANCE_BYTES || !name.bytes().all(legal) {
        return Err("1 to 100 of a-z A-Z 0-9 . _ -".to_owned());
    }
    Ok(name.to_owned())
}

fn in_flight() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(bounds::MAX_IN_FLIGHT_EVENTS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn load(args: &[&str]) -> Result<Config, Error> {
        let program = std::iter::once("sluice-gateway");
        Config::load(program.chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn the_command_is_sound_and_the_defaults_valid() {
        Config::command().debug_assert();
        load(&[]).expect("loads").validate().expect("valid");
    }

    #[test]
    fn mistakes_are_refused() {
        for args in [
            ["--max-in-flight-events", "70000"],
            ["--listen", "here"],
            ["--instance", "a/b"],
        ] {
            assert!(load(&args).is_err(), "{args:?}");
        }
        for topic in ["payments", "metric-events", "a b"] {
            let config = load(&["--audit-topic", topic]).expect("loads");
            assert!(config.validate().is_err(), "{topic}");
        }
        assert!(load(&["--listen", "0.0.0.0:1"]).expect("loads").validate().is_err());
        assert!(
            load(&["--kafka-property", "acks=0"])
                .expect("loads")
                .validate()
                .is_err()
        );
    }

    #[test]
    fn help_tells_every_variable() {
        let help = Config::command().render_long_help().to_string();
        for arg in Config::command()
            .get_arguments()
            .filter(|arg| arg.get_action().takes_values())
        {
            let variable = arg.get_env().expect("variable").to_str().expect("text").to_owned();
            assert!(help.contains(&format!("[env: {variable}")), "{variable}");
        }
    }
}
