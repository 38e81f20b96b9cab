//! Owns the start: checks the topics, registers the schemas, and makes the producer and the consumer. Everything here
//! blocks, and every failure is one line that says what to do.
//!
//! Comes after `config`, before `server` serves.

use std::collections::BTreeMap;
use std::num::TryFromIntError;
use std::sync::Arc;

use sluice_kafka::admin::Admin;
use sluice_kafka::config::BURST_LINGER_MS;
use sluice_kafka::registry::Registry;
use sluice_kafka::{Topics, error, patiently};
use sluice_proto::avro::{EncodeError, Record};
use sluice_proto::decision::Decision;
use sluice_proto::event::{MetricRecord, PaymentRecord, SystemRecord, UserActionRecord};
use sluice_proto::settlement::Verdict;
use sluice_proto::{pb, topics};

use crate::audit;
use crate::config::Config;
use crate::decisions::consume::{self, Consumer};
use crate::decisions::{Source, start};
use crate::ingest::encode::{Encoders, SchemaIds};
use crate::ingest::lanes::Lanes;
use crate::ingest::publish::Publisher;
use crate::ingest::resume;
use crate::ingest::route::{self, Routing};
use crate::metrics::Metrics;
use crate::review::Reviews;

/// How every subject's schemas must fit together: whoever reads with a new one reads all old records.
pub const COMPATIBILITY: &str = "BACKWARD_TRANSITIVE";

/// The gateway cannot reach what it needs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A topic is missing.
    #[error("topic {0} does not exist: create the topics with sluicectl topics apply")]
    NoTopic(String),
    /// Kafka does not answer, or its topics do not fit together.
    #[error("kafka at {servers}: {cause}")]
    Topics {
        /// The bootstrap servers.
        servers: String,
        /// What is wrong.
        cause: error::Admin,
    },
    /// The registry does not answer, or refuses a schema.
    #[error("schemas: {0}")]
    Registry(error::Registry),
    /// The registry's id does not fit the wire format.
    #[error("schemas: the registry's id is too large: {0}")]
    SchemaId(TryFromIntError),
    /// A schema of ours.
    #[error("schemas: {0}")]
    Schema(EncodeError),
    /// The custom types of the routing table.
    #[error(transparent)]
    Routing(route::Error),
    /// The producer.
    #[error("kafka: {0}")]
    Producer(error::Producer),
    /// The offsets of the decisions.
    #[error("kafka: {0}")]
    Consumer(error::Consumer),
    /// The decision loop.
    #[error("decisions: {0}")]
    Decisions(consume::Error),
}

/// Everything that the start makes.
pub struct Parts {
    /// Where events go.
    pub routing: Arc<Routing>,
    /// Events to records.
    pub encoders: Encoders,
    /// Records to Kafka.
    pub publisher: Publisher,
    /// What a lost session had stored.
    pub scanner: resume::Scanner,
    /// The decision loop.
    pub consumer: Consumer,
    /// How else to read the decisions.
    pub source: Source,
    /// Kafka's offsets.
    pub lookup: start::Lookup,
    /// Verdicts to Kafka.
    pub reviews: Reviews,
    /// What GetSchema answers.
    pub schemas: BTreeMap<String, pb::GetSchemaResponse>,
    /// How to read the audit log.
    pub audit: Option<audit::read::Source>,
}

/// Makes all parts. Blocks, for up to a minute where a part does not answer.
///
/// # Errors
/// See [`Error`].
pub fn connect(
    config: &Config,
    table: &route::Table,
    kafka_metrics: &sluice_kafka::Metrics,
    metrics: &Metrics,
) -> Result<Parts, Error> {
    let kafka = config.kafka.config();
    let topics = Topics::new(&config.kafka.topic_prefix);
    let in_kafka = |cause| match cause {
        error::Admin::NoTopic(topic) => Error::NoTopic(topic),
        cause => Error::Topics {
            servers: config.kafka.kafka.clone(),
            cause,
        },
    };
    let admin = Admin::new(&kafka, kafka_metrics.clone()).map_err(in_kafka)?;
    let partitions = admin.check_topics(&topics).map_err(in_kafka)?;
    let registry = Arc::new(Registry::new(&config.registry));
    let mut schemas = BTreeMap::new();
    let mut register = Register {
        registry: &registry,
        schemas: &mut schemas,
    };
    let [user_actions, system_events, metric_events] = table.own_topics(&config.kafka.topic_prefix);
    let ids = SchemaIds {
        payments: register.schema::<PaymentRecord>(&topics.payments)?,
        user_actions: register.schema::<UserActionRecord>(&user_actions)?,
        system_events: register.schema::<SystemRecord>(&system_events)?,
        metric_events: register.schema::<MetricRecord>(&metric_events)?,
    };
    let verdicts = register.schema::<Verdict>(&topics.verdicts)?;
    let source = Source {
        kafka: kafka.clone(),
        topic: topics.decisions.as_str().into(),
        partitions,
        schema_id: register.schema::<Decision>(&topics.decisions)?,
        registry: registry.clone(),
        metrics: kafka_metrics.consumer(&topics.decisions),
    };
    let routing = Routing::new(table, &topics, &config.kafka.topic_prefix, kafka_metrics);
    let routing = Arc::new(routing);
    routing.learn(&registry).map_err(Error::Routing)?;
    let written = routing.names();
    let counts = admin.partitions_of(&written).map_err(in_kafka)?;
    let lanes = Lanes::new(&counts);
    let written = written.into_iter().zip(counts).collect();
    let audit = match config.audit_places().topic {
        None => None,
        Some((topic, _)) => {
            let counts = admin.partitions_of(std::slice::from_ref(&topic)).map_err(in_kafka)?;
            Some(audit::read::Source {
                kafka: kafka.clone(),
                topic,
                partitions: counts.first().and_then(|count| i32::try_from(*count).ok()).unwrap_or(0),
            })
        }
    };
    let scanner = resume::Scanner::new(kafka.clone(), written).map_err(Error::Consumer)?;
    let producer = kafka.idempotent_producer(BURST_LINGER_MS);
    let publisher = Publisher::new(producer, routing.clone(), lanes, metrics.clone(), &config.instance);
    Ok(Parts {
        encoders: Encoders::new(ids).map_err(Error::Schema)?,
        publisher: publisher.map_err(Error::Producer)?,
        routing,
        scanner,
        consumer: patiently(consume::Error::is_retriable, || {
            Consumer::build(source.clone(), metrics.clone())
        })
        .map_err(Error::Decisions)?,
        reviews: Reviews::new(&kafka, &topics.verdicts, verdicts)?,
        lookup: start::Lookup::new(source.clone()).map_err(Error::Consumer)?,
        source,
        schemas,
        audit,
    })
}

struct Register<'a> {
    registry: &'a Registry,
    schemas: &'a mut BTreeMap<String, pb::GetSchemaResponse>,
}

impl Register<'_> {
    /// Registers a record's schema for its topic and returns the registry's id.
    fn schema<T: Record>(&mut self, topic: &str) -> Result<i32, Error> {
        let subject = topics::value_subject(topic);
        let id = self
            .registry
            .register(&subject, T::SCHEMA_JSON)
            .map_err(Error::Registry)?;
        self.registry
            .set_compatibility(&subject, COMPATIBILITY)
            .map_err(Error::Registry)?;
        let id = i32::try_from(id).map_err(Error::SchemaId)?;
        let schema_json = T::SCHEMA_JSON.to_owned();
        self.schemas.insert(subject, pb::GetSchemaResponse { id, schema_json });
        Ok(id)
    }
}
