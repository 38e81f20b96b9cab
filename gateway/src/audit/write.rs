//! Owns the thread that writes the audit log, to a file and to a topic.
//!
//! Comes after the log's queue. A line that cannot be written is counted as lost, and the next one is written all the same.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use sluice_kafka::config::LINGER_MS;

use super::{Line, Places};

/// The audit log cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The topic's producer.
    #[error("kafka: {0}")]
    Producer(KafkaError),
    /// No thread can be had.
    #[error("cannot start its thread: {0}")]
    Thread(io::Error),
}

/// What the thread is to do.
pub(super) enum Order {
    /// Write a line.
    Write(Line),
    /// Say when everything before is written, which may take so long.
    Flush(Duration, SyncSender<()>),
}

/// Counts what the topic did not take.
struct Reports(Counter);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.inc();
            tracing::error!(%error, "a line of the audit log was not delivered");
        }
    }
}

struct Writer {
    file: Option<File>,
    topic: Option<Topic>,
    lost: Counter,
}

struct Topic {
    name: String,
    config: ClientConfig,
    producer: ThreadedProducer<Reports>,
}

impl Topic {
    fn open(name: String, kafka: &sluice_kafka::Config, lost: Counter) -> Result<Self, KafkaError> {
        let config = kafka.idempotent_producer(LINGER_MS);
        let producer = config.create_with_context(Reports(lost))?;
        Ok(Self { name, config, producer })
    }

    /// Puts a new producer in the place of one that met a fatal error, which blocks until the old one has given up.
    fn renew(&mut self, lost: &Counter) {
        match self.config.create_with_context(Reports(lost.clone())) {
            Ok(producer) => self.producer = producer,
            Err(error) => tracing::error!(%error, "the audit log's producer cannot be replaced"),
        }
    }
}

/// Opens the places, and starts the thread, which ends with the queue.
pub(super) fn start(places: Places, queue: Receiver<Order>, lost: Counter) -> Result<(), Error> {
    let open = |path: PathBuf| {
        let file = File::options().create(true).append(true).open(&path);
        file.map_err(|source| Error::Open { path, source })
    };
    let produce = |(topic, kafka): (String, sluice_kafka::Config)| {
        Topic::open(topic, &kafka, lost.clone()).map_err(Error::Producer)
    };
    let mut writer = Writer {
        file: places.file.map(open).transpose()?,
        topic: places.topic.map(produce).transpose()?,
        lost: lost.clone(),
    };
    let run = move || {
        for order in queue {
            match order {
                Order::Write(line) => writer.write(&line),
                Order::Flush(timeout, done) => {
                    writer.flush(timeout);
                    // Whoever waited too long does not wait any more.
                    let _told = done.try_send(());
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("audit".to_owned());
    thread.spawn(run).map(drop).map_err(Error::Thread)
}

impl Writer {
    fn write(&mut self, line: &Line) {
        let mut text = match serde_json::to_vec(line) {
            Ok(text) => text,
            Err(error) => {
                self.lost.inc();
                tracing::error!(%error, "a line of the audit log cannot be written");
                return;
            }
        };
        if let Some(topic) = &mut self.topic {
            if topic.producer.client().fatal_error().is_some() {
                topic.renew(&self.lost);
            }
            // Of one tenant in order; what nobody of a tenant did has a key that is no tenant's.
            let key = line.tenant.as_deref().unwrap_or_default();
            let record = BaseRecord::to(&topic.name).key(key).payload(&text);
            if let Err((error, _)) = topic.producer.send(record) {
                self.lost.inc();
                tracing::error!(%error, "the audit log's topic takes no line");
            }
        }
        text.push(b'\n');
        if let Some(mut file) = self.file.as_ref()
            && let Err(error) = file.write_all(&text)
        {
            self.lost.inc();
            tracing::error!(%error, "the audit log's file cannot be written");
        }
    }

    fn flush(&self, timeout: Duration) {
        if let Some(topic) = &self.topic
            && let Err(error) = topic.producer.flush(timeout)
        {
            tracing::warn!(%error, "lines of the audit log were not delivered");
        }
    }
}
