//! Owns which topic an event goes to: by its type, or where a caller who may do so names another one; and the types that
//! only the routing table knows, with their schemas.
//!
//! Comes inside of `decode`, after the event was checked. The table is read at the start; schemas that are registered later
//! are learnt while the gateway runs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use serde::Deserialize;
use sluice_kafka::registry::{Registry, Version};
use sluice_kafka::{Topics, metrics};
use sluice_proto::avro::PREFIX_BYTES;
use sluice_proto::bounds::{MAX_TOPIC_BYTES, MAX_TYPE_BYTES};
use sluice_proto::event::{Checked, CustomRecord};
use sluice_proto::pb::ErrorCode;
use sluice_proto::shape::{Shape, Text};
use sluice_proto::topics;
use tokio_util::sync::CancellationToken;

use crate::auth::Caller;
use crate::privacy::PAN_DIGITS;
use crate::status::Failure;

/// How often the registry is asked for newer schemas of custom types.
pub const LEARN_EVERY: Duration = Duration::from_secs(15);
/// Most topics that events may go to: each has metrics, and is searched when a session is resumed.
pub const MAX_TOPICS: usize = 256;

/// The routing table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the routing table in {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file makes no sense.
    #[error("the routing table in {path} is invalid: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry does not answer, or does not know a type's subject.
    #[error("the schemas of {subject}: {cause}")]
    Registry {
        /// The registry's subject.
        subject: String,
        /// What is wrong.
        cause: sluice_kafka::error::Registry,
    },
    /// A schema of a custom type is none that records can be checked against.
    #[error("version {version} of {subject}: {cause}")]
    Schema {
        /// The registry's subject.
        subject: String,
        /// The schema's version.
        version: u32,
        /// What is wrong with it.
        cause: sluice_proto::shape::Error,
    },
    /// A subject without a schema.
    #[error("{0} has no schema: register one")]
    NoSchema(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    topics: Vec<String>,
    #[serde(default)]
    route: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    r#type: String,
    topic: String,
    subject: Option<String>,
}

/// The types of the contract whose topic may be another one, with their own.
const MOVABLE: [(&str, &str); 3] = [
    ("user_action", topics::USER_ACTIONS),
    ("system", topics::SYSTEM_EVENTS),
    ("metric", topics::METRIC_EVENTS),
];

/// The routing table, as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The topics of user actions, system events and metrics, without the prefix.
    own: [String; 3],
    /// Custom types: name, topic and the registry's subject where it is not the topic's.
    custom: Vec<(String, String, Option<String>)>,
    /// Topics that only a caller's word leads to.
    more: Vec<String>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            own: MOVABLE.map(|(_, topic)| topic.to_owned()),
            custom: Vec::new(),
            more: Vec::new(),
        }
    }
}

impl Table {
    /// Reads the table of a file; without one, every type has its own topic.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Invalid`].
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else { return Ok(Self::default()) };
        let invalid = |reason: String| Error::Invalid {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        let file: File = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        Self::build(file).map_err(invalid)
    }

    fn build(file: File) -> Result<Self, String> {
        let mut table = Self::default();
        let mut seen: Vec<String> = Vec::new();
        for Entry { r#type, topic, subject } in file.route {
            may_be_written(&topic)?;
            if seen.contains(&r#type) {
                return Err(format!("type {type} is there twice", type = r#type));
            }
            seen.push(r#type.clone());
            let movable = MOVABLE.iter().position(|(name, _)| *name == r#type);
            match (movable, r#type.as_str()) {
                (Some(_), name) if subject.is_some() => {
                    return Err(format!("type {name} has a schema of its own, and so no subject"));
                }
                (Some(index), _) => table.own[index] = topic,
                (None, "payment") => return Err("payments are decided in their own topic".to_owned()),
                (None, name) => {
                    if name.is_empty() || name.len() > MAX_TYPE_BYTES || !name.bytes().all(|b| b.is_ascii_graphic()) {
                        return Err(format!("type {name:?} is not 1 to 64 bytes of visible ASCII"));
                    }
                    table.custom.push((r#type, topic, subject));
                }
            }
        }
        for topic in file.topics {
            may_be_written(&topic)?;
            table.more.push(topic);
        }
        // One more for the payments.
        match table.names().len() + 1 {
            count if count > MAX_TOPICS => Err(format!("{count} topics are more than {MAX_TOPICS}")),
            _ => Ok(table),
        }
    }

    /// Every topic but that of payments, without the prefix, each once.
    fn names(&self) -> Vec<&str> {
        let custom = self.custom.iter().map(|(_, topic, _)| topic);
        let mut names: Vec<&str> = Vec::new();
        for name in self.own.iter().chain(custom).chain(&self.more) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// Whether events could be stored in a topic, which is named without the prefix.
    pub fn leads_to(&self, topic: &str) -> bool {
        self.names().contains(&topic)
    }

    /// The topic of the installation that has this prefix for user actions, system events and metrics.
    pub fn own_topics(&self, prefix: &str) -> [String; 3] {
        self.own.each_ref().map(|name| format!("{prefix}{name}"))
    }
}

/// Whether events other than payments may be stored in a topic: not where the processor would read them, nor among what it
/// writes.
pub(crate) fn may_be_written(topic: &str) -> Result<(), String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if topic.is_empty() || topic.len() > MAX_TOPIC_BYTES || !topic.bytes().all(legal) {
        return Err(format!("{topic:?} is no name of a topic"));
    }
    let movable = MOVABLE.iter().any(|(_, own)| *own == topic);
    if topics::ALL.contains(&topic) && !movable {
        return Err(format!("{topic} is not for such events"));
    }
    Ok(())
}

/// One of the topics that events go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicId(usize);

impl TopicId {
    /// The topic of payments.
    pub const PAYMENTS: Self = Self(0);

    /// Its place in [`Routing::names`].
    pub(super) const fn index(self) -> usize {
        self.0
    }
}

/// A topic that events go to.
pub struct Topic {
    /// With the installation's prefix.
    pub name: String,
    /// The topic's producer metrics.
    pub metrics: metrics::Producer,
    /// Without the prefix, as callers and credentials name it.
    short: String,
}

/// A type that only the table knows.
struct Custom {
    topic: TopicId,
    subject: String,
    known: RwLock<Known>,
}

/// The versions of a type's schema, by the registry's ids.
#[derive(Default)]
struct Known {
    shapes: HashMap<i32, Arc<Shape>>,
    newest: u32,
}

/// The routing table with its topics and schemas.
pub struct Routing {
    topics: Vec<Topic>,
    own: [TopicId; 3],
    custom: HashMap<String, Custom>,
}

impl Routing {
    /// The routing to an installation's topics. Custom types have no schema before [`Routing::learn`].
    pub fn new(table: &Table, ours: &Topics, prefix: &str, metrics: &sluice_kafka::Metrics) -> Self {
        let mut topics = vec![Topic {
            name: ours.payments.clone(),
            metrics: metrics.producer(&ours.payments),
            short: topics::PAYMENTS.to_owned(),
        }];
        topics.extend(table.names().into_iter().map(|short| {
            let name = format!("{prefix}{short}");
            Topic {
                metrics: metrics.producer(&name),
                name,
                short: short.to_owned(),
            }
        }));
        let id = |short: &String| TopicId(topics.iter().position(|topic| topic.short == *short).unwrap_or(0));
        let custom = table.custom.iter().map(|(name, topic, subject)| {
            let of_topic = || topics::value_subject(&format!("{prefix}{topic}"));
            let custom = Custom {
                topic: id(topic),
                subject: subject.clone().unwrap_or_else(of_topic),
                known: RwLock::default(),
            };
            (name.clone(), custom)
        });
        Self {
            own: table.own.each_ref().map(id),
            custom: custom.collect(),
            topics,
        }
    }

    /// One of the topics.
    pub fn topic(&self, id: TopicId) -> &Topic {
        &self.topics[id.0]
    }

    /// The names of all topics, with the prefix.
    pub fn names(&self) -> Vec<String> {
        self.topics.iter().map(|topic| topic.name.clone()).collect()
    }

    /// Whether there are types whose schemas are the registry's alone.
    pub fn has_custom(&self) -> bool {
        !self.custom.is_empty()
    }

    /// Where an event goes: to its type's topic, or to the one that the caller names.
    ///
    /// # Errors
    /// `EVENT_INVALID`, `PERMISSION_DENIED`.
    pub fn of(&self, event: &Checked, named: &str, caller: &Caller) -> Result<TopicId, Failure> {
        let mut id = match event {
            Checked::Payment(_) => TopicId::PAYMENTS,
            Checked::UserAction(_) => self.own[0],
            Checked::System(_) => self.own[1],
            Checked::Metric(_) => self.own[2],
            Checked::Custom(custom) => self.custom(custom)?.topic,
        };
        if !named.is_empty() {
            id = self.named(event, named, caller)?;
        }
        if caller.may_write(&self.topics[id.0].short) {
            return Ok(id);
        }
        let reason = format!("the caller may not publish to {}", self.topics[id.0].short);
        Err(denied(reason, "call with a principal whose topics include it"))
    }

    fn named(&self, event: &Checked, named: &str, caller: &Caller) -> Result<TopicId, Failure> {
        let invalid = |reason, remedy| Failure::new(ErrorCode::EventInvalid, reason, remedy).field("topic");
        if matches!(event, Checked::Payment(_)) {
            return Err(invalid(
                "a payment is decided in its own topic only",
                "leave the topic empty",
            ));
        }
        if caller.topics.is_none() {
            return Err(denied(
                "the caller may not name a topic",
                "leave the topic empty, or call with a principal that has a list of topics",
            ));
        }
        let found = self.topics.iter().position(|topic| topic.short == named).map(TopicId);
        // Among the payments stand payments only.
        found.filter(|id| *id != TopicId::PAYMENTS).ok_or_else(|| {
            invalid(
                "is no topic of the routing table",
                "name one of the routing table's topics",
            )
        })
    }

    fn custom(&self, record: &CustomRecord) -> Result<&Custom, Failure> {
        self.custom.get(&record.type_name).ok_or_else(|| {
            let remedy = "send a type of the routing table, or add it there";
            Failure::new(ErrorCode::EventInvalid, "is no type of the routing table", remedy).field("custom.type")
        })
    }

    /// Checks the record of a custom type against its schema, and tells the texts in it that a card number could be in.
    ///
    /// # Errors
    /// `EVENT_INVALID`, with the field.
    pub fn check(&self, record: &CustomRecord) -> Result<(Arc<Shape>, Vec<Text>), Failure> {
        let custom = self.custom(record)?;
        let invalid =
            |reason: String, remedy| Failure::new(ErrorCode::EventInvalid, reason, remedy).field("custom.record");
        let Some((&[0, a, b, c, d], datum)) = record.record.split_first_chunk::<PREFIX_BYTES>() else {
            let remedy = "send a zero byte, the schema's id in four bytes, and the datum";
            return Err(invalid(
                "is not in the schema registry's wire format".to_owned(),
                remedy,
            ));
        };
        let id = i32::from_be_bytes([a, b, c, d]);
        let shape = custom.known.read().shapes.get(&id).cloned();
        let shape = shape.ok_or_else(|| {
            invalid(
                format!("has the schema id {id}, which is no version of {}", custom.subject),
                "register the schema under the type's subject; the gateway learns of it within seconds",
            )
        })?;
        let texts = shape.check(datum, *PAN_DIGITS.start()).map_err(|mismatch| {
            let remedy = "encode the record with the schema whose id it carries";
            let path = match mismatch.field.as_str() {
                "" => "custom.record".to_owned(),
                field => format!("custom.record.{field}"),
            };
            Failure::new(ErrorCode::EventInvalid, mismatch.reason, remedy).field(path)
        })?;
        Ok((shape, texts))
    }

    /// Takes in a version of a custom type's schema; of a type that the table does not have, nothing.
    ///
    /// # Errors
    /// [`Error::Schema`].
    pub fn know(&self, type_name: &str, version: &Version) -> Result<(), Error> {
        self.custom.get(type_name).map_or(Ok(()), |custom| custom.know(version))
    }

    /// Takes in the versions of every custom type's schema that are not known yet. Blocks.
    ///
    /// # Errors
    /// The first [`Error::Registry`] or [`Error::NoSchema`]; the other types are learnt all the same.
    pub fn learn(&self, registry: &Registry) -> Result<(), Error> {
        let mut learnt = Ok(());
        for custom in self.custom.values() {
            learnt = learnt.and(custom.learn(registry));
        }
        learnt
    }
}

impl Custom {
    fn know(&self, version: &Version) -> Result<(), Error> {
        let shape = Shape::parse(&version.schema).map_err(|cause| Error::Schema {
            subject: self.subject.clone(),
            version: version.version,
            cause,
        })?;
        let mut known = self.known.write();
        // An id beyond the wire format's is no record's.
        if let Ok(id) = i32::try_from(version.id) {
            known.shapes.insert(id, Arc::new(shape));
        }
        known.newest = known.newest.max(version.version);
        Ok(())
    }

    /// What cannot be known is passed over: records of that version are refused, those of the versions beside it are not.
    fn know_all(&self, versions: &[Version]) {
        for version in versions {
            if let Err(error) = self.know(version) {
                tracing::error!(%error, "a version of a schema is passed over");
                let mut known = self.known.write();
                known.newest = known.newest.max(version.version);
            }
        }
    }

    fn learn(&self, registry: &Registry) -> Result<(), Error> {
        let newest = self.known.read().newest;
        let versions = registry.versions_after(&self.subject, newest);
        let versions = versions.map_err(|cause| Error::Registry {
            subject: self.subject.clone(),
            cause,
        })?;
        self.know_all(&versions);
        if self.known.read().shapes.is_empty() {
            return Err(Error::NoSchema(self.subject.clone()));
        }
        Ok(())
    }
}

fn denied(reason: impl Into<std::borrow::Cow<'static, str>>, remedy: &'static str) -> Failure {
    Failure::new(ErrorCode::PermissionDenied, reason, remedy).field("topic")
}

/// Asks for newer schemas again and again, until `stop` is cancelled.
pub async fn follow(routing: Arc<Routing>, registry: Arc<Registry>, stop: CancellationToken) {
    if !routing.has_custom() {
        return;
    }
    let mut tick = tokio::time::interval(LEARN_EVERY);
    // The first tick comes at once, and the start has just asked.
    tick.tick().await;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let (routing, registry) = (routing.clone(), registry.clone());
        let learnt = tokio::task::spawn_blocking(move || routing.learn(&registry)).await;
        if let Ok(Err(error)) = learnt {
            tracing::warn!(%error, "newer schemas are not learnt");
        }
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
