//! Owns the last stage of an event: the idempotent producer that all sessions share, the headers of a record, and the
//! delivery reports that tell what became of it.
//!
//! Comes after `encode`; the record goes through `pump`, and its report goes to `ack` on librdkafka's thread. Sending consumes
//! the event's permit, which the report gives back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use sluice_kafka::{error, fail};
use sluice_proto::headers;
use sluice_proto::pb::{self, ErrorCode};
use tokio::sync::oneshot;

use super::ack::{Fate, Settled, Settlements};
use super::admit::Permit;
use super::encode::Record;
use super::lanes::Lanes;
use super::pump::{Parcel, Stage};
use super::route::{Routing, TopicId};
use crate::metrics::Metrics;
use crate::status::Failure;
use crate::vital::Vital;

/// How long a replaced producer may still deliver what it holds, before the rest is given up as uncertain.
pub const RETIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Most headers of a record.
const HEADERS: usize = 10;

/// Who waits for an event's fate.
#[derive(Debug)]
pub enum Recipient {
    /// A session, for one of its sequence numbers.
    Session {
        /// Where its reports go.
        settlements: Arc<Settlements>,
        /// The event's number.
        sequence: u64,
    },
    /// A unary call.
    Call(oneshot::Sender<Fate>),
}

/// What travels with a record through librdkafka and comes back with its report.
#[derive(Debug)]
pub struct Delivery {
    /// Who waits.
    pub to: Recipient,
    /// The event's room.
    pub permit: Permit,
    /// When it was sent.
    pub sent: Instant,
    topic: TopicId,
    lane: usize,
}

/// Where an event comes from, for its record's headers.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The caller's tenant.
    pub tenant: &'a str,
    /// The session's producer_id and epoch (as text); `None` for a unary call.
    pub producer: Option<(&'a str, &'a str)>,
    /// W3C trace context.
    pub traceparent: Option<&'a str>,
    /// When the gateway took it in, in microseconds since the Unix epoch.
    pub received_at: i64,
}

/// The queue is full, which is no error: wait for reports and try again. Gives the permit back.
#[derive(Debug)]
pub struct Full(pub Permit);

/// A record on its way to librdkafka.
struct Staged {
    key: Box<str>,
    payload: Box<[u8]>,
    headers: OwnedHeaders,
    delivery: Box<Delivery>,
}

impl Parcel for Staged {
    fn lane(&self) -> usize {
        self.delivery.lane
    }

    fn bytes(&self) -> usize {
        self.key.len() + self.payload.len()
    }
}

/// Delivery reports and errors of one producer.
struct Reports {
    stage: Arc<Stage<Staged>>,
    routing: Arc<Routing>,
    metrics: Metrics,
    /// A fatal error: this producer will never deliver anything again.
    broken: AtomicBool,
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        if matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::Fatal)) {
            self.broken.store(true, Ordering::Release);
        }
        tracing::warn!(%error, reason, "kafka producer");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Box<Delivery>) {
        let _vital = Vital::part("delivery reports");
        fail::pass("gateway.delivered");
        let fate = match result {
            Ok(message) => {
                let metrics = &self.routing.topic(delivery.topic).metrics;
                metrics.delivered(delivery.sent.elapsed());
                Fate::Stored(pb::Position {
                    partition: message.partition(),
                    offset: message.offset(),
                })
            }
            Err((error, _)) => self.lost(&delivery, error::Producer::Undelivered(error.clone())),
        };
        let lane = delivery.lane;
        delivery.settle(fate);
        self.stage.reported(lane);
    }
}

impl Delivery {
    fn settle(self, fate: Fate) {
        let Self { to, permit, sent, .. } = self;
        match to {
            Recipient::Session { settlements, sequence } => settlements.settle(Settled {
                sequence,
                permit,
                sent: Some(sent),
                fate,
            }),
            // A caller that went away does not wait any more.
            Recipient::Call(caller) => drop(caller.send(fate)),
        }
    }
}

impl Reports {
    fn lost(&self, delivery: &Delivery, error: error::Producer) -> Fate {
        let failure = self.failed(delivery.topic, error);
        self.metrics.rejected(failure.code());
        Fate::Failed(Box::new(failure))
    }

    /// What to tell the client: the error says whether a broker may have stored the event.
    fn failed(&self, topic: TopicId, error: error::Producer) -> Failure {
        self.routing.topic(topic).metrics.failed(&error);
        if error.is_fatal() {
            self.broken.store(true, Ordering::Release);
        }
        let code = if error::code(error.kafka()) == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
            ErrorCode::EventTooLarge
        } else if error.nothing_stored() {
            ErrorCode::BrokerUnavailable
        } else {
            ErrorCode::DeliveryUncertain
        };
        let remedy = match code {
            ErrorCode::EventTooLarge => "shorten the event, or raise the topic's max.message.bytes",
            _ => "publish the event again, with the same event_id",
        };
        Failure::new(code, error.to_string(), remedy)
    }
}

/// A producer and the stage before it. The thread between them drops the producer, once everything staged is handed over.
struct Generation {
    producer: Arc<ThreadedProducer<Reports>>,
    stage: Arc<Stage<Staged>>,
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.stage.close();
    }
}

/// The producer of the gateway; replaced where it met a fatal error.
pub struct Publisher {
    config: ClientConfig,
    /// The value of the header that names this gateway.
    name: String,
    routing: Arc<Routing>,
    lanes: Lanes,
    metrics: Metrics,
    current: RwLock<Arc<Generation>>,
}

/// The producer of now, for one batch. What was sent goes to the producer when this is dropped.
pub struct Sender<'a> {
    generation: Arc<Generation>,
    publisher: &'a Publisher,
    room: usize,
    sent: Vec<Staged>,
}

impl Drop for Sender<'_> {
    fn drop(&mut self) {
        self.generation.stage.put(&mut self.sent);
    }
}

impl Publisher {
    /// A publisher with its first producer, which connects in the background. `lanes` are those of the routing's topics, and
    /// `instance` names this gateway in the records.
    ///
    /// # Errors
    /// [`error::Producer::Create`] where librdkafka does not accept the configuration.
    pub fn new(
        config: ClientConfig,
        routing: Arc<Routing>,
        lanes: Lanes,
        metrics: Metrics,
        instance: &str,
    ) -> Result<Self, error::Producer> {
        let current = RwLock::new(generation(&config, &routing, &lanes, &metrics)?);
        Ok(Self {
            config,
            name: format!("{}/{instance}", env!("CARGO_PKG_VERSION")),
            routing,
            lanes,
            metrics,
            current,
        })
    }

    /// The producer of now. Take one for each batch and drop it with the batch.
    pub fn sender(&self) -> Sender<'_> {
        let mut generation = self.current.read().clone();
        if generation.is_broken() {
            generation = self.replace(generation);
        }
        Sender {
            room: generation.stage.room(),
            generation,
            publisher: self,
            sent: Vec::new(),
        }
    }

    /// Puts a new producer in the place of a broken one. The old one delivers what it can on a thread of its own, since
    /// flushing and dropping a producer block; every event that it held is reported, at the latest when it is dropped.
    fn replace(&self, broken: Arc<Generation>) -> Arc<Generation> {
        let mut current = self.current.write();
        if !Arc::ptr_eq(&current, &broken) {
            return current.clone();
        }
        match generation(&self.config, &self.routing, &self.lanes, &self.metrics) {
            Ok(new) => {
                tracing::error!("the kafka producer met a fatal error and is replaced");
                self.metrics.producers_replaced.inc();
                *current = new.clone();
                drop(current);
                let retire = move || {
                    if let Err(error) = broken.flush(RETIRE_TIMEOUT) {
                        tracing::warn!(%error, "events of the replaced producer are given up");
                    }
                };
                // Where no thread can be had, the last user of the old producer drops it.
                if let Err(error) = std::thread::Builder::new()
                    .name("retire-producer".to_owned())
                    .spawn(retire)
                {
                    tracing::error!(%error, "the replaced producer is not flushed");
                }
                new
            }
            Err(error) => {
                tracing::error!(%error, "the kafka producer cannot be replaced");
                broken
            }
        }
    }

    /// Whether Kafka answers and knows the topic of payments. Blocks for up to `timeout`.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn probe(&self, timeout: Duration) -> Result<(), String> {
        let topic = self.routing.topic(TopicId::PAYMENTS).name.clone();
        let generation = self.current.read().clone();
        let metadata = generation
            .producer
            .client()
            .fetch_metadata(Some(&topic), timeout)
            .map_err(|error| format!("kafka does not answer: {error}"))?;
        match metadata
            .topics()
            .first()
            .map(|topic| (topic.error(), topic.partitions().len()))
        {
            Some((None, partitions)) if partitions > 0 => Ok(()),
            _ => Err(format!("topic {topic} does not exist: run sluicectl topics apply")),
        }
    }

    /// Waits until every event is delivered or given up. Blocks for up to `timeout`.
    ///
    /// # Errors
    /// [`error::Producer::Refused`] where the time was too short.
    pub fn flush(&self, timeout: Duration) -> Result<(), error::Producer> {
        let generation = self.current.read().clone();
        generation.flush(timeout).map_err(error::Producer::Refused)
    }
}

impl Generation {
    fn is_broken(&self) -> bool {
        self.producer.client().context().broken.load(Ordering::Acquire)
    }

    fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        let deadline = Instant::now() + timeout;
        if !self.stage.clear(deadline) {
            return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
        }
        self.producer.flush(deadline.saturating_duration_since(Instant::now()))
    }
}

fn generation(
    config: &ClientConfig,
    routing: &Arc<Routing>,
    lanes: &Lanes,
    metrics: &Metrics,
) -> Result<Arc<Generation>, error::Producer> {
    let stage = Arc::new(Stage::new(lanes.count()));
    let reports = Reports {
        stage: stage.clone(),
        routing: routing.clone(),
        metrics: metrics.clone(),
        broken: AtomicBool::new(false),
    };
    let producer = ThreadedProducer::from_config_and_context(config, reports).map_err(error::Producer::Create)?;
    let producer = Arc::new(producer);
    let sending = producer.clone();
    stage
        .serve(move |staged| produce(&sending, staged))
        .map_err(|error| error::Producer::Create(KafkaError::ClientCreation(error.to_string())))?;
    Ok(Arc::new(Generation { producer, stage }))
}

/// Hands a record to librdkafka, which copies it. Says whether a report will follow; gives the record back where the queue
/// is full.
fn produce(producer: &ThreadedProducer<Reports>, staged: Staged) -> Result<bool, Staged> {
    let Staged {
        key,
        payload,
        headers,
        delivery,
    } = staged;
    let reports = producer.client().context();
    let message = BaseRecord::with_opaque_to(&reports.routing.topic(delivery.topic).name, delivery)
        .key(&*key)
        .payload(&*payload)
        .headers(headers);
    let Err((error, message)) = producer.send(message) else {
        return Ok(true);
    };
    let (delivery, headers) = (message.delivery_opaque, message.headers.unwrap_or_default());
    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
        return Err(Staged {
            key,
            payload,
            headers,
            delivery,
        });
    }
    let fate = reports.lost(&delivery, error::Producer::Refused(error));
    delivery.settle(fate);
    Ok(false)
}

impl Sender<'_> {
    /// Whether no record would be taken now.
    pub fn is_full(&self) -> bool {
        self.room == 0
    }

    /// Takes a record for the producer. The permit comes back with the delivery report.
    ///
    /// # Errors
    /// [`Full`], with the permit.
    pub fn send(
        &mut self,
        record: &Record<'_>,
        origin: &Origin<'_>,
        permit: Permit,
        to: Recipient,
        sent: Instant,
    ) -> Result<(), Full> {
        fail::pass("gateway.producing");
        if self.sent.len() >= self.room {
            return Err(Full(permit));
        }
        let sequence = match &to {
            Recipient::Session { sequence, .. } => Some(*sequence),
            Recipient::Call(_) => None,
        };
        self.sent.push(Staged {
            key: record.key.into(),
            payload: record.payload.into(),
            headers: record_headers(record, &self.publisher.name, origin, sequence),
            delivery: Box::new(Delivery {
                to,
                permit,
                sent,
                topic: record.topic,
                lane: self.publisher.lanes.of(record.topic, record.key.as_bytes()),
            }),
        });
        Ok(())
    }
}

fn record_headers(record: &Record<'_>, gateway: &str, origin: &Origin<'_>, sequence: Option<u64>) -> OwnedHeaders {
    fn header<'a>(key: &'a str, value: &'a str) -> Header<'a, &'a str> {
        Header {
            key,
            value: Some(value),
        }
    }
    let mut id = uuid::Uuid::encode_buffer();
    let id: &str = record.event_id.uuid().hyphenated().encode_lower(&mut id);
    let mut all = OwnedHeaders::new_with_capacity(HEADERS)
        .insert(header(headers::EVENT_ID, id))
        .insert(header(headers::TENANT, origin.tenant))
        .insert(header(headers::SCHEMA, record.schema))
        .insert(header(headers::GATEWAY, gateway));
    let mut digits = [0; MAX_DIGITS];
    let received_at = decimal(origin.received_at.unsigned_abs(), &mut digits);
    all = all.insert(header(headers::RECEIVED_AT, received_at));
    if let (Some((producer_id, epoch)), Some(sequence)) = (origin.producer, sequence) {
        let mut digits = [0; MAX_DIGITS];
        all = all
            .insert(header(headers::PRODUCER_ID, producer_id))
            .insert(header(headers::PRODUCER_EPOCH, epoch))
            .insert(header(headers::SEQUENCE, decimal(sequence, &mut digits)));
    }
    if let Some(occurred_at) = record.occurred_at {
        all = all.insert(header(headers::OCCURRED_AT, &occurred_at.to_string()));
    }
    if let Some(traceparent) = origin.traceparent {
        all = all.insert(header(headers::TRACEPARENT, traceparent));
    }
    all
}

/// Digits of the largest u64.
const MAX_DIGITS: usize = 20;

/// Writes a number without going through a formatter, which would cost as much as two headers.
fn decimal(mut number: u64, digits: &mut [u8; MAX_DIGITS]) -> &str {
    let mut at = MAX_DIGITS;
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    std::str::from_utf8(&digits[at..]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers as _;
    use sluice_proto::event::EventId;

    use super::*;
    use crate::ingest::route::Table;

    #[test]
    fn numbers_are_written_as_a_formatter_would() {
        for number in [0, 7, 10, 1_234_567_890, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; MAX_DIGITS]), number.to_string());
        }
    }

    #[test]
    fn a_session_event_has_every_header_and_a_call_only_its_own() {
        let record = Record {
            topic: TopicId::PAYMENTS,
            schema: "s",
            occurred_at: None,
            event_id: EventId::new(uuid::Uuid::from_u128(1)),
            key: "dev/a",
            payload: b"x",
        };
        let names = |producer, sequence, traceparent| {
            let origin = Origin {
                tenant: "dev",
                producer,
                traceparent,
                received_at: 5,
            };
            let all = record_headers(&record, "1/g", &origin, sequence);
            let all = all.as_borrowed();
            let mut names: Vec<_> = all.iter().map(|header| header.key.to_owned()).collect();
            names.sort();
            names
        };
        let session = names(Some(("p", "1")), Some(9), Some("00-…"));
        assert_eq!(
            session,
            [
                "event-id",
                "gateway",
                "producer-epoch",
                "producer-id",
                "received-at",
                "schema",
                "sequence",
                "tenant",
                "traceparent"
            ]
        );
        assert_eq!(
            names(None, None, None),
            ["event-id", "gateway", "received-at", "schema", "tenant"]
        );
    }

    #[test]
    fn an_error_says_whether_the_event_may_be_stored() {
        let reports = Reports {
            stage: Arc::new(Stage::new(1)),
            routing: Arc::new(Routing::new(
                &Table::default(),
                &sluice_kafka::Topics::new(""),
                "",
                &sluice_kafka::Metrics::default(),
            )),
            metrics: Metrics::default(),
            broken: AtomicBool::new(false),
        };
        let undelivered = |code| {
            let error = error::Producer::Undelivered(KafkaError::MessageProduction(code));
            reports.failed(TopicId::PAYMENTS, error).code()
        };
        assert_eq!(
            undelivered(RDKafkaErrorCode::MessageTimedOut),
            ErrorCode::DeliveryUncertain
        );
        assert_eq!(
            undelivered(RDKafkaErrorCode::MessageSizeTooLarge),
            ErrorCode::EventTooLarge
        );
        assert!(!reports.broken.load(Ordering::Acquire));
        assert_eq!(undelivered(RDKafkaErrorCode::Fatal), ErrorCode::DeliveryUncertain);
        assert!(reports.broken.load(Ordering::Acquire));
        let refused = error::Producer::Refused(KafkaError::MessageProduction(RDKafkaErrorCode::UnknownTopic));
        assert_eq!(
            reports.failed(TopicId::PAYMENTS, refused).code(),
            ErrorCode::BrokerUnavailable
        );
    }
}
