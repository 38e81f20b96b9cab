//! The seven Kafka metrics of both servers, and a histogram whose recording is two atomic additions.
//!
//! Labels are topics of our own and kinds of error from a fixed set, never anything that a client chose. Handles are
//! bound once, outside the hot path: [`Metrics::producer`], [`Metrics::consumer`], [`Metrics::lag`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};

use crate::error;

/// Upper bounds of the latency buckets, in microseconds: fine around the target of 100 ms.
pub const LATENCY_BOUNDS_US: [u64; 16] = [
    500, 1_000, 2_000, 5_000, 10_000, 15_000, 20_000, 30_000, 50_000, 75_000, 100_000, 150_000, 250_000, 500_000,
    1_000_000, 5_000_000,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Topic {
    topic: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicError {
    topic: Arc<str>,
    error: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Partition {
    topic: Arc<str>,
    partition: i32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
    result: &'static str,
}

/// All seven; clones share their values. The default is registered nowhere, for tools and tests.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    produced: Family<Topic, Counter>,
    consumed: Family<Topic, Counter>,
    producer_errors: Family<TopicError, Counter>,
    consumer_errors: Family<TopicError, Counter>,
    producer_latency: Family<Topic, Latency>,
    consumer_lag: Family<Partition, Gauge>,
    admin_operations: Family<Operation, Counter>,
}

impl Metrics {
    /// New metrics in `registry`, which should have no prefix: the names are `kafka_…` as written in the design.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        // The text format appends `_total` to a counter's name, and a unit to the others.
        registry.register(
            "kafka_messages_produced",
            "Records that Kafka acknowledged",
            metrics.produced.clone(),
        );
        registry.register(
            "kafka_messages_consumed",
            "Records read from Kafka",
            metrics.consumed.clone(),
        );
        registry.register(
            "kafka_producer_errors",
            "Records refused by the producer or not delivered, and failed transaction calls, by kind",
            metrics.producer_errors.clone(),
        );
        registry.register(
            "kafka_consumer_errors",
            "Errors of consumers, by kind",
            metrics.consumer_errors.clone(),
        );
        registry.register_with_unit(
            "kafka_producer_latency",
            "Time from handing a record to the producer to its acknowledgement",
            Unit::Seconds,
            metrics.producer_latency.clone(),
        );
        registry.register(
            "kafka_consumer_lag",
            "Records between the consumer's position and the end of the partition",
            metrics.consumer_lag.clone(),
        );
        registry.register(
            "kafka_admin_operations",
            "Admin operations, by operation and result",
            metrics.admin_operations.clone(),
        );
        metrics
    }

    /// Handles of one topic's producer.
    pub fn producer(&self, topic: &str) -> Producer {
        let topic: Arc<str> = topic.into();
        begin_at_zero(&self.producer_errors, &topic);
        let labels = Topic { topic: topic.clone() };
        Producer {
            produced: self.produced.get_or_create_owned(&labels),
            latency: self.producer_latency.get_or_create_owned(&labels),
            errors: self.producer_errors.clone(),
            topic,
        }
    }

    /// Handles of one topic's consumer.
    pub fn consumer(&self, topic: &str) -> Consumer {
        let topic: Arc<str> = topic.into();
        begin_at_zero(&self.consumer_errors, &topic);
        let consumed = self.consumed.get_or_create_owned(&Topic { topic: topic.clone() });
        Consumer {
            consumed,
            errors: self.consumer_errors.clone(),
            topic,
        }
    }

    /// The lag gauge of one partition, in records.
    pub fn lag(&self, topic: &str, partition: i32) -> Gauge {
        self.consumer_lag.get_or_create_owned(&Partition {
            topic: topic.into(),
            partition,
        })
    }

    /// Forgets a partition that was revoked: its lag is another member's to report.
    pub fn forget_lag(&self, topic: &str, partition: i32) {
        self.consumer_lag.remove(&Partition {
            topic: topic.into(),
            partition,
        });
    }

    /// Counts one admin operation.
    pub(crate) fn admin<T>(&self, operation: &'static str, result: &Result<T, error::Admin>) {
        let result = if result.is_ok() { "ok" } else { "error" };
        self.admin_operations
            .get_or_create(&Operation { operation, result })
            .inc();
    }
}

/// A series that appears with its first error looks to a rate as if it had always been there: the error goes unseen.
fn begin_at_zero(errors: &Family<TopicError, Counter>, topic: &Arc<str>) {
    for error in error::KINDS {
        let topic = topic.clone();
        drop(errors.get_or_create(&TopicError { topic, error }));
    }
}

/// Metrics of the producer of one topic; cheap to clone.
#[derive(Clone, Debug)]
pub struct Producer {
    produced: Counter,
    latency: Latency,
    errors: Family<TopicError, Counter>,
    topic: Arc<str>,
}

impl Producer {
    /// One record was acknowledged, `latency` after it was handed to the producer.
    pub fn delivered(&self, latency: Duration) {
        self.produced.inc();
        self.latency.observe(latency);
    }

    /// `records` were acknowledged, where no record's own latency is known.
    pub fn delivered_many(&self, records: u64) {
        self.produced.inc_by(records);
    }

    /// One record or call failed. Looks a label up, so it is for errors only.
    pub fn failed(&self, error: &error::Producer) {
        self.errors
            .get_or_create(&TopicError {
                topic: self.topic.clone(),
                error: error.kind(),
            })
            .inc();
    }
}

/// Metrics of the consumer of one topic; cheap to clone.
#[derive(Clone, Debug)]
pub struct Consumer {
    consumed: Counter,
    errors: Family<TopicError, Counter>,
    topic: Arc<str>,
}

impl Consumer {
    /// `records` were read.
    pub fn consumed(&self, records: u64) {
        self.consumed.inc_by(records);
    }

    /// A call failed. Looks a label up, so it is for errors only.
    pub fn failed(&self, error: &error::Consumer) {
        self.errors
            .get_or_create(&TopicError {
                topic: self.topic.clone(),
                error: error.kind(),
            })
            .inc();
    }
}

/// A histogram of durations over [`LATENCY_BOUNDS_US`], shown in seconds. prometheus-client's own takes a lock for each
/// observation, which at half a million records a second is worth avoiding. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct Latency(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    /// One per bound, and one for everything above.
    counts: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Latency {
    /// Records one duration.
    pub fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < us);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let bounds = LATENCY_BOUNDS_US
            .iter()
            .map(|us| *us as f64 / 1e6)
            .chain([f64::INFINITY]);
        let counts = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// All metrics of `registry` in the OpenMetrics text format.
///
/// # Errors
/// Only where a metric's own encoding fails, such as a gauge that does not fit.
pub fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut page = String::new();
    text::encode(&mut page, registry)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

    fn page() -> String {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let producer = metrics.producer("payments");
        producer.delivered(Duration::from_millis(3));
        producer.delivered(Duration::from_secs(60));
        producer.failed(&error::Producer::Refused(KafkaError::MessageProduction(
            Code::QueueFull,
        )));
        let consumer = metrics.consumer("decisions");
        consumer.consumed(7);
        consumer.failed(&error::Consumer::Poll(KafkaError::MessageConsumption(
            Code::AllBrokersDown,
        )));
        metrics.lag("payments", 3).set(42);
        metrics.admin("create_topics", &Ok(()));
        encode(&registry).expect("encodes")
    }

    #[test]
    fn the_seven_names_come_out_as_written() {
        let page = page();
        for line in [
            "kafka_messages_produced_total{topic=\"payments\"} 2",
            "kafka_messages_consumed_total{topic=\"decisions\"} 7",
            "kafka_producer_errors_total{topic=\"payments\",error=\"queue_full\"} 1",
            "kafka_consumer_errors_total{topic=\"decisions\",error=\"transport\"} 1",
            "kafka_consumer_errors_total{topic=\"decisions\",error=\"fatal\"} 0",
            "kafka_consumer_lag{topic=\"payments\",partition=\"3\"} 42",
            "kafka_admin_operations_total{operation=\"create_topics\",result=\"ok\"} 1",
            "# TYPE kafka_producer_latency_seconds histogram",
            "# EOF",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn the_histogram_counts_into_cumulative_buckets() {
        let page = page();
        for line in [
            "kafka_producer_latency_seconds_bucket{le=\"0.002\",topic=\"payments\"} 0",
            "kafka_producer_latency_seconds_bucket{le=\"0.005\",topic=\"payments\"} 1",
            "kafka_producer_latency_seconds_bucket{le=\"5.0\",topic=\"payments\"} 1",
            "kafka_producer_latency_seconds_bucket{le=\"+Inf\",topic=\"payments\"} 2",
            "kafka_producer_latency_seconds_count{topic=\"payments\"} 2",
            "kafka_producer_latency_seconds_sum{topic=\"payments\"} 60.003",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn a_revoked_partition_is_no_longer_reported() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.lag("payments", 3).set(42);
        metrics.forget_lag("payments", 3);
        assert!(!encode(&registry).expect("encodes").contains("kafka_consumer_lag{"));
    }
}
