//! Owns how the file's values get below flags and environment: they become the options' defaults, so that clap parses and
//! explains them like any other value.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory, FromArgMatches};
use toml::{Table, Value};

use super::{Config, Error};

/// Options that say where to look or what to do, and make no sense in the file.
const NOT_IN_FILE: [&str; 2] = ["config", "check_config"];

/// Parses arguments, the program's name first.
pub(super) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Config, Error> {
    let arguments: Vec<OsString> = arguments.collect();
    let matches = Config::command().try_get_matches_from(&arguments)?;
    let Some(path) = matches.get_one::<PathBuf>("config") else {
        return Ok(Config::from_arg_matches(&matches)?);
    };
    let text = fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.clone(),
        source,
    })?;
    let command = with_defaults(Config::command(), path, &text)?;
    let matches = command.try_get_matches_from(&arguments)?;
    Ok(Config::from_arg_matches(&matches)?)
}

fn with_defaults(mut command: Command, path: &Path, text: &str) -> Result<Command, Error> {
    let wrong = |reason: String| Error::File {
        path: path.to_owned(),
        reason,
    };
    let table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| wrong(error.message().to_owned()))?;
    for (key, value) in table {
        let known = command.get_arguments().any(|arg| arg.get_id() == key.as_str());
        if !known || NOT_IN_FILE.contains(&key.as_str()) {
            return Err(wrong(format!("there is no option {key}")));
        }
        let values = texts(value).ok_or_else(|| wrong(format!("{key} is neither text nor a number")))?;
        // clap wants its defaults for the life of the program; this happens once in it.
        command = command.mut_arg(key, |arg| arg.default_values(values.into_iter().map(leak)));
    }
    Ok(command)
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
        Value::Boolean(_) | Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    }
}
