//! Writing a handful of records and waiting until Kafka has them.
//!
//! Comes last in the commands that write.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::{ClientContext, Message as _};
use sluice_kafka::Config;
use sluice_kafka::config::{DELIVERY_TIMEOUT_MS, LINGER_MS};

/// How long one poll waits for delivery reports.
const POLL: Duration = Duration::from_millis(20);
/// How long the reports may take: a little longer than the producer tries.
const DELIVERY_TIMEOUT: Duration = Duration::from_millis(DELIVERY_TIMEOUT_MS as u64 + 5_000);

/// A record to be written.
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Option<Vec<u8>>,
    pub(crate) headers: OwnedHeaders,
}

type Report = Result<i64, KafkaError>;

/// Collects the delivery report of each record under its number.
struct Reports(Mutex<Vec<Option<Report>>>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, number: Box<usize>) {
        let report = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        if let Ok(mut reports) = self.0.lock()
            && let Some(place) = reports.get_mut(*number)
        {
            *place = Some(report);
        }
    }
}

/// Writes records to a topic, acknowledged by all in-sync replicas, and gives their offsets in the same order.
pub(crate) fn write(config: &Config, topic: &str, records: &[Record]) -> anyhow::Result<Vec<i64>> {
    let reports = Reports(Mutex::new(records.iter().map(|_| None).collect()));
    let producer: BaseProducer<Reports> = config.idempotent_producer(LINGER_MS).create_with_context(reports)?;
    for (number, record) in records.iter().enumerate() {
        let mut outgoing = BaseRecord::<[u8], [u8], _>::with_opaque_to(topic, Box::new(number))
            .partition(record.partition)
            .headers(record.headers.clone());
        if let Some(key) = &record.key {
            outgoing = outgoing.key(key);
        }
        if let Some(payload) = &record.payload {
            outgoing = outgoing.payload(payload);
        }
        while let Err((error, refused)) = producer.send(outgoing) {
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                return Err(error).with_context(|| format!("cannot write to {topic}"));
            }
            producer.poll(POLL);
            outgoing = refused;
        }
    }
    let deadline = Instant::now() + DELIVERY_TIMEOUT;
    while producer.in_flight_count() > 0 && Instant::now() < deadline {
        producer.poll(POLL);
    }
    let mut reports = match producer.context().0.lock() {
        Ok(mut reports) => std::mem::take(&mut *reports),
        Err(_) => bail!("the delivery reports were lost"),
    };
    let mut offsets = Vec::with_capacity(records.len());
    let written = reports.iter().filter(|report| matches!(report, Some(Ok(_)))).count();
    for (report, record) in reports.drain(..).zip(records) {
        let partition = record.partition;
        let all = records.len();
        let told =
            || format!("{written} of {all} records are in {topic}; perhaps not the one for partition {partition}");
        offsets.push(report.with_context(told)?.with_context(told)?);
    }
    Ok(offsets)
}
