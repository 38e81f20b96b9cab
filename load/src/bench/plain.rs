//! A plain librdkafka producer: what Kafka itself takes on this machine, from the same records with the same settings as
//! the gateway's producer.
//!
//! Sends as fast as it can, or at a rate; each record's delivery report stops its clock.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use sluice_proto::headers;

use super::parts::{Installation, own_cpu_s, until};
use super::records::{Record, SCHEMA, TENANT};
use super::report::histogram;
use crate::now_micros;

const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// A full queue is looked at again after this.
const FULL_WAIT: Duration = Duration::from_millis(1);
const HEADERS: usize = 8;
const PRODUCER_ID: &str = "plain";
const GATEWAY: &str = "0.1.0/plain";

/// What sending took.
pub(super) struct Sent {
    pub(super) events_per_s: f64,
    pub(super) cpu_us_per_event: f64,
    pub(super) latency: Histogram<u64>,
}

struct Reports {
    started: Instant,
    latency: Mutex<(Histogram<u64>, u64)>,
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    /// When the record was due, in microseconds since the start.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, due_micros: usize) {
        let now_micros = self.started.elapsed().as_micros() as u64;
        let mut latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(_stored) => latency
                .0
                .saturating_record((now_micros.saturating_sub(due_micros as u64)).max(1)),
            Err(_failed) => latency.1 += 1,
        }
    }
}

/// A producer on an installation's payments.
pub(super) struct Plain {
    producer: Arc<ThreadedProducer<Reports>>,
    topic: String,
}

impl Plain {
    /// `linger_ms` as in [`sluice_kafka::Config::idempotent_producer`].
    pub(super) fn new(installation: &Installation, linger_ms: u32) -> anyhow::Result<Self> {
        let reports = Reports {
            started: Instant::now(),
            latency: Mutex::new((histogram(), 0)),
        };
        let producer = installation
            .kafka
            .idempotent_producer(linger_ms)
            .create_with_context(reports)?;
        Ok(Self {
            producer: Arc::new(producer),
            topic: installation.topics.payments.clone(),
        })
    }

    /// Sends everything and waits for every report.
    pub(super) fn send_all(&self, records: &[Record]) -> anyhow::Result<Sent> {
        self.take_latency();
        let (cpu_s, started) = (own_cpu_s()?, Instant::now());
        for (index, record) in records.iter().enumerate() {
            self.send(record, index)?;
        }
        self.producer
            .flush(FLUSH_TIMEOUT)
            .context("not everything was delivered")?;
        let elapsed_s = started.elapsed().as_secs_f64();
        let cpu_s = own_cpu_s()? - cpu_s;
        let (latency, failed) = self.take_latency();
        ensure!(failed == 0, "{failed} records were not delivered");
        Ok(Sent {
            events_per_s: records.len() as f64 / elapsed_s,
            cpu_us_per_event: cpu_s * 1e6 / records.len() as f64,
            latency,
        })
    }

    /// Sends everything at a rate and waits for every report. A latency counts from when a record is due.
    pub(super) fn send_at(&self, records: &[Record], rate_per_s: f64) -> anyhow::Result<Histogram<u64>> {
        self.take_latency();
        let started = Instant::now();
        for (index, record) in records.iter().enumerate() {
            let due = started + Duration::from_secs_f64(index as f64 / rate_per_s);
            until(due);
            self.send_due(record, index, due)?;
        }
        self.producer
            .flush(FLUSH_TIMEOUT)
            .context("not everything was delivered")?;
        let (latency, failed) = self.take_latency();
        ensure!(failed == 0, "{failed} records were not delivered");
        Ok(latency)
    }

    /// Sends one record; waits while the producer's queue is full.
    pub(super) fn send(&self, record: &Record, sequence: usize) -> anyhow::Result<()> {
        self.send_due(record, sequence, Instant::now())
    }

    fn send_due(&self, record: &Record, sequence: usize, due: Instant) -> anyhow::Result<()> {
        let due_micros = (due - self.producer.context().started).as_micros() as usize;
        let (sequence, received_at) = (sequence.to_string(), now_micros().to_string());
        let header = |key, value| Header {
            key,
            value: Some(value),
        };
        let headers = OwnedHeaders::new_with_capacity(HEADERS)
            .insert(header(headers::EVENT_ID, record.event_id.as_str()))
            .insert(header(headers::TENANT, TENANT))
            .insert(header(headers::PRODUCER_ID, PRODUCER_ID))
            .insert(header(headers::PRODUCER_EPOCH, "1"))
            .insert(header(headers::SEQUENCE, &sequence))
            .insert(header(headers::SCHEMA, SCHEMA))
            .insert(header(headers::RECEIVED_AT, &received_at))
            .insert(header(headers::GATEWAY, GATEWAY));
        let mut next = BaseRecord::with_opaque_to(&self.topic, due_micros)
            .key(record.key.as_str())
            .payload(&record.payload[..])
            .headers(headers);
        loop {
            match self.producer.send(next) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    next = back;
                    std::thread::park_timeout(FULL_WAIT);
                }
                Err((error, _record)) => bail!("the plain producer failed: {error}"),
            }
        }
    }

    fn take_latency(&self) -> (Histogram<u64>, u64) {
        let mut latency = self
            .producer
            .context()
            .latency
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut latency, (histogram(), 0))
    }
}
