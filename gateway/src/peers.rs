//! Owns the count of gateways that are alive, by which each takes its share of the quotas: all of them are members of one
//! Kafka consumer group, which consumes nothing and notices within its session timeout that one is gone.
//!
//! Comes beside the services; `quota` reads the count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;
use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use sluice_kafka::config::SESSION_TIMEOUT_MS;
use sluice_kafka::error;
use tokio_util::sync::CancellationToken;

/// Name of the group, after the installation's prefix.
pub const GROUP: &str = "gateways";
/// How often the members are counted: so long a new gateway goes unnoticed by the others.
pub const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How long counting may take.
pub const COUNT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one poll waits, and so how late the end of the process may be noticed.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// A member that takes no partition.
struct Present;

impl ClientContext for Present {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "the group of gateways");
    }
}

impl ConsumerContext for Present {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, _partitions: &mut TopicPartitionList) {
        // Each has its own answer: a member that answers a revocation with an assignment never joins again.
        let answered = match code {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => consumer.assign(&TopicPartitionList::new()),
            _ => consumer.unassign(),
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "the group of gateways");
        }
    }
}

/// This gateway's membership.
pub struct Peers {
    member: BaseConsumer<Present>,
    group: String,
    gateways: Arc<AtomicU32>,
    gauge: Gauge,
}

impl Peers {
    /// Joins the group in the background. `topic` is any topic that exists; nothing is read from it.
    ///
    /// # Errors
    /// [`error::Consumer::Create`], [`error::Consumer::Control`].
    pub fn join(
        kafka: &sluice_kafka::Config,
        topic: &str,
        gateways: Arc<AtomicU32>,
        gauge: Gauge,
    ) -> Result<Self, error::Consumer> {
        let group = format!("{}{GROUP}", kafka.topic_prefix);
        let config = kafka.consumer(&group, Duration::from_millis(SESSION_TIMEOUT_MS.into()));
        let member: BaseConsumer<Present> = config.create_with_context(Present).map_err(error::Consumer::Create)?;
        member.subscribe(&[topic]).map_err(|cause| error::Consumer::Control {
            step: "subscribe",
            cause,
        })?;
        gauge.set(1);
        Ok(Self {
            member,
            group,
            gateways,
            gauge,
        })
    }

    /// Stays a member and counts, until `stop` is cancelled. Where Kafka does not answer, the last count stands. Blocks:
    /// give it a thread.
    pub fn run(self, stop: &CancellationToken) {
        let mut count_at = Instant::now();
        while !stop.is_cancelled() {
            if let Some(Err(error)) = self.member.poll(POLL_TIMEOUT) {
                tracing::debug!(%error, "the group of gateways");
            }
            if count_at <= Instant::now() {
                count_at = Instant::now() + COUNT_EVERY;
                match self.count() {
                    Ok(count) => self.tell(count),
                    Err(error) => tracing::warn!(%error, "gateways cannot be counted"),
                }
            }
        }
    }

    fn count(&self) -> Result<usize, KafkaError> {
        let list = self.member.fetch_group_list(Some(&self.group), COUNT_TIMEOUT)?;
        let ours = list.groups().iter().filter(|group| group.name() == self.group);
        Ok(ours.map(|group| group.members().len()).sum())
    }

    fn tell(&self, count: usize) {
        // This one is alive, also while the group does not know it yet.
        let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
        if self.gateways.swap(count, Ordering::Relaxed) != count {
            tracing::info!(gateways = count, "gateways share the quotas");
            self.gauge.set(count.into());
        }
    }
}
