//! Owns the options: a flag, an environment variable, a key of the TOML file or the default, in this order.
//!
//! Comes first; `server` is built from it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory, FromArgMatches, Parser};
use sluice_proto::bounds;
use tonic::codegen::http::HeaderValue;

use crate::auth::{self, Auth};
use crate::privacy::{self, Privacy};
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
    /// Kafka's bootstrap servers: host:port, comma separated
    #[arg(long, env = "SLUICE_KAFKA", default_value = "127.0.0.1:19092")]
    pub kafka: String,
    /// Further librdkafka properties, such as security.protocol=ssl; comma separated, or given several times
    #[arg(long, env = "SLUICE_KAFKA_PROPERTY", value_name = "NAME=VALUE", value_delimiter = ',', value_parser = property)]
    pub kafka_property: Vec<(String, String)>,
    /// Base URL of the Confluent-compatible schema registry
    #[arg(
        long,
        env = "SLUICE_REGISTRY",
        default_value = "http://127.0.0.1:18081/apis/ccompat/v7"
    )]
    pub registry: String,
    /// Put before the name of every topic, so that installations can share a cluster
    #[arg(long, env = "SLUICE_TOPIC_PREFIX", default_value = "")]
    pub topic_prefix: String,
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
    /// Origins whose pages may call by gRPC-Web, such as https://desk.example; comma separated; none: HTTP/2 only
    #[arg(long, env = "SLUICE_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origin: Vec<HeaderValue>,
    /// TOML file with what becomes of personal data; none: card numbers in texts are refused
    #[arg(long, env = "SLUICE_PRIVACY", value_name = "FILE")]
    pub privacy: Option<PathBuf>,
    /// File that the audit log is appended to; none: no audit log
    #[arg(long, env = "SLUICE_AUDIT_LOG", value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
    /// Events that each tenant may publish, in events per second
    #[arg(long, env = "SLUICE_QUOTA_EVENTS_PER_S", default_value = "1000000")]
    pub quota_events_per_s: NonZeroU32,
    /// Events that a tenant may publish at once after a pause, in events
    #[arg(long, env = "SLUICE_QUOTA_BURST_EVENTS", default_value = "1000000")]
    pub quota_burst_events: NonZeroU32,
    /// Events of one session that may be unacknowledged, in events; at most 65536, and a client may ask for fewer
    #[arg(long, env = "SLUICE_MAX_IN_FLIGHT_EVENTS", default_value = "10000", value_parser = in_flight())]
    pub max_in_flight_events: u32,
    /// Connections that may be open at a time; further ones wait to be accepted
    #[arg(long, env = "SLUICE_MAX_CONNECTIONS", default_value = "10000", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// What is logged: a level, or directives such as info,sluice_gateway=debug
    #[arg(long, env = "SLUICE_LOG", default_value = "info")]
    pub log: String,
    /// OTLP gRPC endpoint that spans of sampled payments are exported to, such as http://127.0.0.1:4317; none: no export
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// TOML file with the same options, as in max_in_flight_events = 500; a flag or variable overrides it
    #[arg(long, env = "SLUICE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the options and the files that they name, then exit
    #[arg(long)]
    pub check_config: bool,
}

/// The options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file makes no sense.
    #[error("the configuration {path} is invalid: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A flag, a variable or a value; or `--help`, which is clap's to print.
    #[error(transparent)]
    Options(#[from] clap::Error),
    /// Kafka's options.
    #[error(transparent)]
    Kafka(#[from] sluice_kafka::error::Kafka),
    /// The principals.
    #[error(transparent)]
    Keys(#[from] auth::Error),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// What becomes of personal data.
    #[error(transparent)]
    Privacy(#[from] privacy::Error),
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
    /// [`Error::Read`], [`Error::Invalid`], [`Error::Options`].
    pub fn load(args: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let args: Vec<OsString> = args.into_iter().collect();
        // The file's values become the defaults, so it has to be known before the options are read.
        let named = Self::command()
            .ignore_errors(true)
            .disable_help_flag(true)
            .disable_version_flag(true);
        let path = named.try_get_matches_from(&args)?.get_one::<PathBuf>("config").cloned();
        let command = match path {
            Some(path) => with_file(Self::command(), &path)?,
            None => Self::command(),
        };
        Ok(Self::from_arg_matches(&command.try_get_matches_from(&args)?)?)
    }

    /// How to reach Kafka.
    pub fn kafka_config(&self) -> sluice_kafka::Config {
        sluice_kafka::Config {
            bootstrap_servers: self.kafka.clone(),
            topic_prefix: self.topic_prefix.clone(),
            extra: self.kafka_property.iter().cloned().collect(),
        }
    }

    /// Checks everything that can be checked without the other parts.
    ///
    /// # Errors
    /// [`Error::Kafka`], [`Error::Keys`].
    pub fn validate(&self) -> Result<(), Error> {
        self.kafka_config().validate()?;
        self.auth()?;
        self.tls()?;
        Privacy::load(self.privacy.as_deref())?;
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
}

/// Makes the file's values the defaults of the command's options. They live as long as the process, as clap asks of
/// defaults; the file is read once.
fn with_file(mut command: Command, path: &Path) -> Result<Command, Error> {
    let invalid = |reason: String| Error::Invalid {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let table: BTreeMap<String, toml::Value> = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    for (key, value) in table {
        let known = |arg: &&Arg| arg.get_id() == key.as_str() && arg.get_long().is_some();
        if command.get_arguments().find(known).is_none() || matches!(key.as_str(), "config" | "check_config") {
            return Err(invalid(format!("unknown key {key}")));
        }
        let values = match value {
            toml::Value::Array(values) => values,
            value => vec![value],
        };
        let values = values.into_iter().map(|value| match value {
            toml::Value::String(text) => Ok(text),
            toml::Value::Integer(number) => Ok(number.to_string()),
            other => Err(invalid(format!(
                "{key} is {}, not a string or a number",
                other.type_str()
            ))),
        });
        let values = values
            .map(|value| value.map(|text| &*text.leak()))
            .collect::<Result<Vec<&'static str>, _>>()?;
        command = command.mut_arg(key, |arg| arg.default_values(values));
    }
    Ok(command)
}

fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

fn in_flight() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(bounds::MAX_IN_FLIGHT_EVENTS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(args: &[&str]) -> Result<Config, Error> {
        let program = std::iter::once("sluice-gateway");
        Config::load(program.chain(args.iter().copied()).map(OsString::from))
    }

    fn with(text: &str, args: &[&str]) -> Result<Config, Error> {
        let path = std::env::temp_dir().join(format!("sluice-config-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, text).expect("write");
        let file = path.to_str().expect("text").to_owned();
        let config = load(&[&["--config", &file], args].concat());
        std::fs::remove_file(&path).expect("remove");
        config
    }

    #[test]
    fn the_command_is_sound_and_the_defaults_valid() {
        Config::command().debug_assert();
        load(&[]).expect("loads").validate().expect("valid");
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_the_default() {
        let text = "max_in_flight_events = 500\nkafka_property = [\"linger.ms=1\", \"client.rack=a\"]\n";
        let config = with(text, &[]).expect("loads");
        assert_eq!(config.max_in_flight_events, 500);
        assert_eq!(config.kafka_config().extra["client.rack"], "a");
        let config = with(text, &["--max-in-flight-events", "7"]).expect("loads");
        assert_eq!(config.max_in_flight_events, 7);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("max_in_flight = 5", "unknown key max_in_flight"),
            ("config = \"x\"", "unknown key config"),
            ("help = true", "unknown key help"),
            ("max_in_flight_events = 70000", "70000"),
            ("listen = true", "boolean"),
            ("listen = \"here\"", "here"),
            ("listen = ", "line 1"),
        ] {
            let error = with(text, &[]).expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(load(&["--config", "/does/not/exist"]).is_err());
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
