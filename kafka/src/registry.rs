//! A client of a Confluent-compatible schema registry: registers the schemas at start, and finds the one that a record
//! names. Blocking: call it from a plain thread or `spawn_blocking`, never from an async task.
//!
//! Successful ids and schemas never change and are kept for ever. That an id is unknown is kept for a few seconds, so
//! that a flood of forged records is not a flood of requests. Any other error is not kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use crate::error::Registry as Error;

/// How long one request may take, from resolving the name to the last byte.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call goes on trying while the errors are retriable: a registry takes several seconds to start.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// First pause between two tries; it doubles, and each is shortened by up to half at random.
pub const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// Longest pause between two tries.
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(2);
/// Largest answer that is read, in bytes.
pub const MAX_ANSWER_BYTES: u64 = 1_048_576;
/// How long an unknown id is taken for unknown without asking again.
pub const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// Most unknown ids that are remembered.
pub const MAX_UNKNOWN_IDS: usize = 1_024;
/// Longest part of a registry's explanation that goes into an error, in characters.
const MESSAGE_CHARS: usize = 300;

const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// A version of a subject's schema.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Version {
    /// The id that records carry.
    pub id: u32,
    /// Counted from 1 within the subject.
    pub version: u32,
    /// The Avro schema, as JSON.
    pub schema: String,
}

#[derive(Default)]
struct Cache {
    ids: HashMap<(String, String), u32>,
    schemas: HashMap<u32, Arc<str>>,
    unknown: HashMap<u32, Instant>,
}

/// The client; share it behind an `Arc`.
pub struct Registry {
    agent: ureq::Agent,
    base: String,
    patience: Duration,
    cache: Mutex<Cache>,
}

impl Registry {
    /// A client of the registry at `url`, such as `http://127.0.0.1:18081/apis/ccompat/v7`. Nothing is asked yet.
    pub fn new(url: &str) -> Self {
        Self::with_patience(url, PATIENCE)
    }

    /// The same with another bound on retries; zero tries once.
    pub fn with_patience(url: &str, patience: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(REQUEST_TIMEOUT))
            .http_status_as_error(false)
            .user_agent("sluice")
            .build();
        let base = url.trim_end_matches('/').to_owned();
        Self {
            agent: config.into(),
            base,
            patience,
            cache: Mutex::default(),
        }
    }

    /// Registers `schema` (Avro, as JSON) under `subject` and returns its id, which is the old one where it is registered
    /// already. Blocks, for up to the patience while the registry does not answer.
    ///
    /// # Errors
    /// [`Error::Status`] 409 where the schema is not compatible with the subject's, 422 where it is none.
    pub fn register(&self, subject: &str, schema: &str) -> Result<u32, Error> {
        let key = (subject.to_owned(), schema.to_owned());
        if let Some(id) = self.cache().ids.get(&key) {
            return Ok(*id);
        }
        #[derive(Deserialize)]
        struct Registered {
            id: u32,
        }
        let url = format!("{}/subjects/{subject}/versions", self.base);
        let body = json!({ "schema": schema }).to_string();
        let Registered { id } = self.write(&url, || {
            self.agent
                .post(&url)
                .header("Content-Type", CONTENT_TYPE)
                .header("Accept", CONTENT_TYPE)
                .send(&body)
        })?;
        self.cache().ids.insert(key, id);
        Ok(id)
    }

    /// Sets how a later schema of `subject` must fit the earlier ones, such as `BACKWARD_TRANSITIVE`. Repeatable. Register
    /// a first version before: not every registry takes settings of a subject that it does not know.
    ///
    /// # Errors
    /// As [`Registry::register`]; 422 where there is no such level.
    pub fn set_compatibility(&self, subject: &str, level: &str) -> Result<(), Error> {
        let url = format!("{}/config/{subject}", self.base);
        let body = json!({ "compatibility": level }).to_string();
        let _: serde_json::Value = self.write(&url, || {
            self.agent
                .put(&url)
                .header("Content-Type", CONTENT_TYPE)
                .header("Accept", CONTENT_TYPE)
                .send(&body)
        })?;
        Ok(())
    }

    /// The schema that records with this id were written with, as JSON.
    ///
    /// # Errors
    /// [`Error::is_not_found`] where there is no such id.
    pub fn schema_by_id(&self, id: u32) -> Result<Arc<str>, Error> {
        #[derive(Deserialize)]
        struct Found {
            schema: String,
        }
        let url = format!("{}/schemas/ids/{id}", self.base);
        {
            let cache = self.cache();
            if let Some(schema) = cache.schemas.get(&id) {
                return Ok(schema.clone());
            }
            if cache
                .unknown
                .get(&id)
                .is_some_and(|since| since.elapsed() < UNKNOWN_FOR)
            {
                return Err(Error::Status {
                    url,
                    status: 404,
                    message: "no such schema".to_owned(),
                });
            }
        }
        match self.get::<Found>(&url) {
            Ok(found) => {
                let schema: Arc<str> = found.schema.into();
                self.cache().schemas.insert(id, schema.clone());
                Ok(schema)
            }
            Err(error) => {
                if error.is_not_found() {
                    let unknown = &mut self.cache().unknown;
                    if unknown.len() >= MAX_UNKNOWN_IDS {
                        unknown.clear();
                    }
                    unknown.insert(id, Instant::now());
                }
                Err(error)
            }
        }
    }

    /// The newest version of a subject; never cached.
    ///
    /// # Errors
    /// [`Error::is_not_found`] where there is no such subject.
    pub fn latest(&self, subject: &str) -> Result<Version, Error> {
        self.get(&format!("{}/subjects/{subject}/versions/latest", self.base))
    }

    /// The versions of a subject that are newer than a given one, 0 for all; never cached.
    ///
    /// # Errors
    /// [`Error::is_not_found`] where there is no such subject.
    pub fn versions_after(&self, subject: &str, newest: u32) -> Result<Vec<Version>, Error> {
        let url = format!("{}/subjects/{subject}/versions", self.base);
        let numbers: Vec<u32> = self.get(&url)?;
        let newer = numbers.into_iter().filter(|number| *number > newest);
        newer.map(|number| self.get(&format!("{url}/{number}"))).collect()
    }

    fn get<T: for<'de> Deserialize<'de>>(&self, url: &str) -> Result<T, Error> {
        self.ask(url, || self.agent.get(url).header("Accept", CONTENT_TYPE).call())
    }

    /// Writes what others may be writing at the same moment, since gateways and processors start together. Not every
    /// registry lets such writers queue: the one that comes second may be told of a conflict that is none when it asks
    /// again.
    fn write<T: for<'de> Deserialize<'de>>(
        &self,
        url: &str,
        send: impl Fn() -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, Error> {
        match self.ask(url, &send) {
            Err(Error::Status { status: 409, .. }) => self.ask(url, &send),
            answer => answer,
        }
    }

    /// Tries until there is an answer that is not retriable, or the patience is at its end.
    fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        url: &str,
        send: impl Fn() -> Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.patience;
        let mut backoff = FIRST_BACKOFF;
        loop {
            let error = match send()
                .map_err(|error| unreachable(url, &error))
                .and_then(|answer| read(url, answer))
            {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let pause = backoff.mul_f64(1.0 - fastrand::f64() / 2.0);
            if !error.is_retriable() || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tracing::debug!(%error, ?pause, "the schema registry is asked again");
            #[expect(
                clippy::disallowed_methods,
                reason = "the pause of a bounded backoff, on a thread that may block"
            )]
            std::thread::sleep(pause);
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read<T: for<'de> Deserialize<'de>>(url: &str, mut answer: ureq::http::Response<ureq::Body>) -> Result<T, Error> {
    let status = answer.status();
    let body = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_string();
    if !status.is_success() {
        // The explanation is worth little next to the status, so that failing to read it is no error of its own.
        return Err(Error::Status {
            url: url.to_owned(),
            status: status.as_u16(),
            message: message(&body.unwrap_or_default()),
        });
    }
    let body = body.map_err(|error| unreachable(url, &error))?;
    serde_json::from_str(&body).map_err(|error| Error::Answer {
        url: url.to_owned(),
        reason: error.to_string(),
    })
}

/// The explanation in a registry's error, in one line of bounded length.
fn message(body: &str) -> String {
    #[derive(Deserialize)]
    struct Explained {
        message: Option<String>,
    }
    let explained = serde_json::from_str::<Explained>(body)
        .ok()
        .and_then(|explained| explained.message);
    let words = explained.unwrap_or_else(|| body.to_owned());
    let line: String = words.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(MESSAGE_CHARS).collect()
}

fn unreachable(url: &str, error: &ureq::Error) -> Error {
    Error::Unreachable {
        url: url.to_owned(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
