//! Options that the servers and sluicectl share: how to reach Kafka, and the file that may give a server its options.
//!
//! Comes first in each server's own `config`, and before [`crate::Config`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Command, Parser};
use toml::{Table, Value};

use crate::Config;

/// Options that say where to look or what to do, and make no sense in the file.
const NOT_IN_FILE: [&str; 2] = ["config", "check_config"];

/// Longest name of an instance, in bytes.
pub const MAX_INSTANCE_BYTES: usize = 100;

/// How to reach Kafka.
#[derive(Clone, Debug, Args)]
pub struct Kafka {
    /// Kafka's bootstrap servers: host:port, comma separated
    #[arg(
        long,
        env = "SLUICE_KAFKA",
        default_value = "127.0.0.1:19092",
        global = true,
        value_name = "SERVERS"
    )]
    pub kafka: String,
    /// Further librdkafka properties, such as security.protocol=ssl; comma separated, or given several times; none when
    /// unset
    #[arg(long, env = "SLUICE_KAFKA_PROPERTY", value_delimiter = ',', value_parser = property, global = true, value_name = "NAME=VALUE")]
    pub kafka_property: Vec<(String, String)>,
    /// Put before the name of every topic, consumer group and transactional id, so that installations can share a cluster
    #[arg(
        long,
        env = "SLUICE_TOPIC_PREFIX",
        default_value = "",
        global = true,
        value_name = "PREFIX"
    )]
    pub topic_prefix: String,
}

impl Kafka {
    /// What the clients are made of; not validated yet.
    pub fn config(&self) -> Config {
        let extra: BTreeMap<_, _> = self.kafka_property.iter().cloned().collect();
        Config {
            bootstrap_servers: self.kafka.clone(),
            topic_prefix: self.topic_prefix.clone(),
            extra,
        }
    }
}

fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// The host's name, made fit for a transactional id and a header: what an instance is called unless it is told.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let legal: String = name
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        .take(MAX_INSTANCE_BYTES)
        .collect();
    if legal.is_empty() { "local".to_owned() } else { legal }
}

/// Why a server's options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag, a variable or a value; or `--help` and `--version`, which are clap's to print.
    #[error(transparent)]
    Options(#[from] clap::Error),
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or a value that cannot be.
    #[error("the configuration {} is invalid: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a server's options from flags, the environment, and the file that its option `config` names, in this order of
/// precedence. `arguments` begin with the program's name.
///
/// # Errors
/// See [`Error`]. The values are those that clap accepts, and not checked further.
pub fn load<T: Parser>(arguments: impl IntoIterator<Item = OsString>) -> Result<T, Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // The file's values become the defaults, so it has to be known before the options are read.
    let named = T::command()
        .ignore_errors(true)
        .disable_help_flag(true)
        .disable_version_flag(true);
    let path = named
        .try_get_matches_from(&arguments)?
        .get_one::<PathBuf>("config")
        .cloned();
    let command = match path {
        Some(path) => with_defaults(T::command(), &path)?,
        None => T::command(),
    };
    Ok(T::from_arg_matches(&command.try_get_matches_from(&arguments)?)?)
}

fn with_defaults(mut command: Command, path: &Path) -> Result<Command, Error> {
    let wrong = |reason: String| Error::File {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let table: Table = text.parse().map_err(|error| wrong(located(&text, &error)))?;
    for (key, value) in table {
        let known = command
            .get_arguments()
            .any(|arg| arg.get_id() == key.as_str() && arg.get_long().is_some());
        if !known || NOT_IN_FILE.contains(&key.as_str()) {
            return Err(wrong(format!("there is no option {key}")));
        }
        let kind = value.type_str();
        let values =
            texts(value).ok_or_else(|| wrong(format!("{key} is {kind}, not text, a number, true or false")))?;
        // clap wants its defaults for the life of the program; this happens once in it.
        command = command.mut_arg(key, |arg| arg.default_values(values.into_iter().map(leak)));
    }
    Ok(command)
}

/// In one line, where a whole picture would be.
fn located(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map_or(0, |span| span.start);
    let line = text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1;
    format!("line {line}: {}", error.message())
}

fn leak(text: String) -> &'static str {
    text.leak()
}

fn texts(value: Value) -> Option<Vec<String>> {
    match value {
        Value::Array(values) => values.into_iter().map(text).collect(),
        value => text(value).map(|text| vec![text]),
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(truth) => Some(truth.to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
