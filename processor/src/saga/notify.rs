//! Owns telling the world what became of payments' money: records of the topic of settlements, each at least once and
//! always with the same id.
//!
//! Comes last in a round of [`super::work`], after everything is stored: what is told is true, and what is stored and not
//! told is found again by whoever comes next.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::{ClientContext, Message as _};
use sluice_kafka::config::LINGER_MS;
use sluice_kafka::error;
use sluice_proto::avro::{EncodeError, Encoder};
use sluice_proto::event::EventId;
use sluice_proto::settlement::{Kind, Settlement};
use sluice_proto::topics;

use super::store::Subject;

/// How long one poll waits for delivery reports.
const POLL: Duration = Duration::from_millis(5);
/// How long the deliveries of one round may take.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(40);

/// Why settlements cannot be told now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Kafka.
    #[error(transparent)]
    Producer(#[from] error::Producer),
    /// A settlement does not fit its schema: a mistake of this program.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// No delivery report in time.
    #[error("settlements were not delivered within {} s", DELIVERY_TIMEOUT.as_secs())]
    Timeout,
}

/// The first failure of a delivery.
#[derive(Default)]
struct Reports(Mutex<Option<KafkaError>>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _opaque: ()) {
        if let Err((error, message)) = result
            && let Ok(mut first) = self.0.lock()
        {
            tracing::warn!(%error, partition = message.partition(), "a settlement was not delivered");
            first.get_or_insert_with(|| error.clone());
        }
    }
}

/// The producer of settlements.
pub(crate) struct Notifier {
    topic: String,
    producer: BaseProducer<Reports>,
    encoder: Encoder<Settlement>,
}

impl Notifier {
    /// A producer; it connects in the background.
    pub(crate) fn new(kafka: &sluice_kafka::Config, topic: &str, schema_id: i32) -> Result<Self, Error> {
        let producer = kafka
            .idempotent_producer(LINGER_MS)
            .create_with_context(Reports::default());
        Ok(Self {
            topic: topic.to_owned(),
            producer: producer.map_err(error::Producer::Create)?,
            encoder: Encoder::new(schema_id)?,
        })
    }

    /// Tells what became of these payments, and waits until Kafka has it.
    pub(crate) fn tell<'s>(&self, settled: impl Iterator<Item = (&'s Subject, Kind)>) -> Result<(), Error> {
        let mut payload = Vec::new();
        for (subject, kind) in settled {
            let event_id = EventId::new(subject.event_id);
            let settlement = Settlement {
                settlement_id: format!("{event_id}:{}", kind.as_str()),
                event_id,
                tenant: subject.tenant.clone(),
                account_id: subject.account_id.clone(),
                amount: subject.amount,
                currency: subject.currency.clone(),
                kind,
                source_partition: subject.part,
                source_offset: subject.off,
            };
            payload.clear();
            self.encoder.encode(&settlement, &mut payload)?;
            let key = topics::key(&subject.tenant, &subject.account_id);
            let record = BaseRecord::to(&self.topic)
                .key(&key)
                .partition(subject.part)
                .payload(&payload);
            self.producer
                .send(record)
                .map_err(|(error, _record)| error::Producer::Refused(error))?;
        }
        let deadline = Instant::now() + DELIVERY_TIMEOUT;
        while self.producer.in_flight_count() > 0 {
            self.producer.poll(POLL);
            if Instant::now() > deadline {
                return Err(Error::Timeout);
            }
        }
        let failed = self.producer.context().0.lock().ok().and_then(|mut first| first.take());
        failed.map_or(Ok(()), |error| Err(error::Producer::Undelivered(error).into()))
    }
}
