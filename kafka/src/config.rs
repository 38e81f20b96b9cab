//! How every Kafka client is configured. A binary maps its options to one [`Config`] and asks here for the client that it
//! needs; what a guarantee rests on cannot be overridden.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::ClientConfig;

use crate::error;

/// How long a producer waits for more records of a partition before it sends a batch, in milliseconds. Five cost little of a
/// 100 ms target and let 64-event batches of many streams share requests.
pub const LINGER_MS: u32 = 5;
/// The same where records come in bursts, which are what is waited for: a lane's batches, and the gateway's. Anything more is
/// added to every burst, and at zero librdkafka sends almost every record in a request of its own.
pub const BURST_LINGER_MS: u32 = 1;
/// Largest batch of one partition, in bytes before compression.
pub const BATCH_BYTES: u32 = 1_000_000;
/// Most records of one batch.
pub const BATCH_RECORDS: u32 = 10_000;
/// Most records in one producer, queued and in flight. Credit should keep a gateway below it; a full queue is an error
/// that is answered by withholding credit.
pub const PRODUCER_QUEUE_RECORDS: u32 = 200_000;
/// Most memory of those records, in KiB.
pub const PRODUCER_QUEUE_KIB: u32 = 256 * 1_024;
/// How long the gateway's producer tries to deliver a record, in milliseconds, retries included. Longer than a broker's
/// restart or a leader's election; a client that waits longer than this gets an error that says "perhaps stored".
pub const DELIVERY_TIMEOUT_MS: u32 = 120_000;
/// How long a broker may wait for its replicas before it answers a produce request, in milliseconds.
pub const REQUEST_TIMEOUT_MS: u32 = 10_000;
/// How long any request may take before its connection is given up, in milliseconds.
pub const SOCKET_TIMEOUT_MS: u32 = 15_000;
/// Shortest transaction timeout, in milliseconds: librdkafka's own bound, below which no request could time out first.
pub const MIN_TRANSACTION_TIMEOUT_MS: u32 = 1_000;
/// How long a transactional producer waits before it sends an unanswered request again, give or take a fifth. With
/// librdkafka's own 100 ms the time that a request took would not tell a slow one from one that was sent twice. A
/// transaction that begins with offsets while the markers of the one before are on their way waits as long.
pub const TRANSACTIONAL_RETRY_BACKOFF_MS: u32 = 320;
/// First and longest pause between attempts to reach a broker, in milliseconds. librdkafka's longest is 10 s, which would
/// be most of a broker's restart.
pub const RECONNECT_BACKOFF_MS: (u32, u32) = (50, 1_000);
/// How often a client asks who leads its partitions, in milliseconds, when nothing tells it that this has changed. With
/// librdkafka's five minutes, records for a partition whose leader was away when it asked last may time out before it asks
/// again: after a pause of the only broker some were seen to wait for over a minute.
pub const METADATA_REFRESH_MS: u32 = 10_000;
/// How soon a silent group member is declared dead, in milliseconds, unless the binary says otherwise. A killed lane's
/// partitions rest for this long.
pub const SESSION_TIMEOUT_MS: u32 = 6_000;
/// Heartbeats per session timeout. Many more than may be lost: a member learns of a rebalance from the answer to its next one,
/// and the partitions of a member that left rest until then.
pub const HEARTBEATS_PER_SESSION: u32 = 12;
/// How long a group member may go without polling, in milliseconds. A takeover that replays a partition's history polls
/// twice a second meanwhile.
pub const MAX_POLL_INTERVAL_MS: u32 = 300_000;
/// How long a broker may hold a fetch that finds nothing, in milliseconds. It answers at once when a record arrives, but
/// a newly assigned or resumed partition waits for the fetch that is under way.
pub const FETCH_WAIT_MS: u32 = 20;
/// Most bytes of one partition in a fetch.
pub const FETCH_PARTITION_BYTES: u32 = 1_048_576;
/// Most bytes of a fetch.
pub const FETCH_BYTES: u32 = 16 * 1_048_576;
/// Most memory of records that a consumer fetched ahead, in KiB.
pub const CONSUMER_QUEUE_KIB: u32 = 32 * 1_024;
/// Records of a partition that a consumer tries to have fetched ahead.
pub const CONSUMER_QUEUE_RECORDS: u32 = 50_000;
/// How long a partition is not fetched once its queue is full, in milliseconds. librdkafka's own second would be a stall
/// in the middle of a backlog.
pub const FETCH_QUEUE_BACKOFF_MS: u32 = 10;
/// How long a partition is not fetched after an error, in milliseconds.
pub const FETCH_ERROR_BACKOFF_MS: u32 = 100;
/// librdkafka insists on a group even where none is joined; readers never commit.
pub const READER_GROUP: &str = "sluice-reader";

/// What exactly-once and ordering rest on, and what the callers of this module choose: never taken from
/// [`Config::extra`].
const FIXED: [&str; 19] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "transactional.id",
    "transaction.timeout.ms",
    // A producer that asks again sooner may end a later transaction.
    "retry.backoff.ms",
    "retry.backoff.max.ms",
    "partitioner",
    "group.id",
    "group.protocol",
    "partition.assignment.strategy",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "isolation.level",
    "auto.offset.reset",
];

/// Which records a [`Config::reader`] sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Only what was committed, and stable committed offsets.
    ReadCommitted,
    /// Also open and aborted transactions.
    ReadUncommitted,
}

/// How to reach Kafka, and which installation's topics to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `host:port`, comma separated.
    pub bootstrap_servers: String,
    /// Put before the name of every topic, group and transactional id; may be empty.
    pub topic_prefix: String,
    /// librdkafka properties on top, such as `security.protocol`; see [`Config::validate`].
    pub extra: BTreeMap<String, String>,
}

impl Config {
    /// Checks everything that can be checked without a broker. Call it once, before any other method.
    ///
    /// # Errors
    /// [`error::Kafka::Config`]: no servers, a prefix that no topic may have, or an extra property that librdkafka does
    /// not know or that a guarantee rests on.
    pub fn validate(&self) -> Result<(), error::Kafka> {
        let invalid = |reason: String| Err(error::Kafka::Config(reason));
        if self.bootstrap_servers.split(',').any(|server| server.trim().is_empty()) {
            return invalid(format!(
                "bootstrap servers {:?}: expected host:port, comma separated",
                self.bootstrap_servers
            ));
        }
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if self.topic_prefix.len() > MAX_PREFIX_BYTES || !self.topic_prefix.bytes().all(legal) {
            return invalid(format!(
                "topic prefix {:?}: at most {MAX_PREFIX_BYTES} of a-z A-Z 0-9 . _ -",
                self.topic_prefix
            ));
        }
        if let Some(key) = self.extra.keys().find(|key| FIXED.contains(&key.as_str())) {
            return invalid(format!(
                "{key} cannot be set: a guarantee or another option rests on it"
            ));
        }
        match self.admin().create_native_config() {
            Ok(_) => Ok(()),
            Err(error) => invalid(error.to_string()),
        }
    }

    /// A producer without transactions: idempotent, acknowledged by all in-sync replicas, compressed, with bounded queues.
    /// `linger_ms` is [`LINGER_MS`] or [`BURST_LINGER_MS`].
    pub fn idempotent_producer(&self, linger_ms: u32) -> ClientConfig {
        let mut config = self.producer(linger_ms);
        config.set("message.timeout.ms", DELIVERY_TIMEOUT_MS.to_string());
        config.set("socket.timeout.ms", SOCKET_TIMEOUT_MS.to_string());
        self.with_extra(config)
    }

    /// A lane's producer. `transactional_id` is stable for the lane, so that a new producer fences the old one.
    /// `transaction_timeout` (at least [`MIN_TRANSACTION_TIMEOUT_MS`]) is when the broker aborts a transaction whose
    /// producer is silent, and so bounds delivery and the wait of a takeover for a killed lane's offsets.
    ///
    /// Flush by polling until `in_flight_count()` is 0, then commit: `commit_transaction` and `flush` of rust-rdkafka
    /// wait in steps of 100 ms.
    pub fn transactional_producer(&self, transactional_id: &str, transaction_timeout: Duration) -> ClientConfig {
        let timeout_ms = millis(transaction_timeout).max(MIN_TRANSACTION_TIMEOUT_MS);
        let mut config = self.producer(BURST_LINGER_MS);
        config.set("transactional.id", transactional_id);
        config.set("transaction.timeout.ms", timeout_ms.to_string());
        config.set("message.timeout.ms", timeout_ms.to_string());
        config.set("retry.backoff.ms", TRANSACTIONAL_RETRY_BACKOFF_MS.to_string());
        config.set("socket.timeout.ms", SOCKET_TIMEOUT_MS.min(timeout_ms - 100).to_string());
        self.with_extra(config)
    }

    /// A member of `group` that commits nothing by itself: the offsets travel in the lane's transaction. Classic
    /// protocol with the range assignor, which is eager: every rebalance revokes everything first, so that a partition is
    /// never in two lanes' hands, and partition n of several topics goes to the same member.
    ///
    /// `poll` also returns `None` before its time is over when it has served a rebalance.
    pub fn consumer(&self, group: &str, session_timeout: Duration) -> ClientConfig {
        let session_ms = millis(session_timeout).max(HEARTBEATS_PER_SESSION);
        let mut config = self.fetching(Isolation::ReadCommitted);
        config.set("group.id", group);
        config.set("group.protocol", "classic");
        config.set("partition.assignment.strategy", "range");
        config.set("session.timeout.ms", session_ms.to_string());
        config.set(
            "heartbeat.interval.ms",
            (session_ms / HEARTBEATS_PER_SESSION).to_string(),
        );
        config.set("max.poll.interval.ms", MAX_POLL_INTERVAL_MS.max(session_ms).to_string());
        config.set("auto.offset.reset", "earliest");
        self.with_extra(config)
    }

    /// A consumer without a group, for `assign`: replay, and the gateway's readers of decisions. Polling returns
    /// `KafkaError::PartitionEOF` at the end of a partition, once each time it is reached, and an error of kind
    /// `offset_out_of_range` instead of a silent jump when the position was deleted by retention. Build it with
    /// [`crate::context::Consumer`], or the log will call the one and the other an error each time.
    ///
    /// Assign absolute offsets, or ask for a watermark first: as long as the client does not know a partition's leader,
    /// it looks a logical offset such as `Beginning` up only half a second later. `poll` also returns `None` before its
    /// time is over when it has served a callback.
    pub fn reader(&self, isolation: Isolation) -> ClientConfig {
        let mut config = self.fetching(isolation);
        config.set("group.id", READER_GROUP);
        config.set("enable.partition.eof", "true");
        config.set("auto.offset.reset", "error");
        self.with_extra(config)
    }

    /// The same, of leaders only, whatever rack this is in: what follows a leader ends sooner than the leader says.
    pub fn leaders_reader(&self, isolation: Isolation) -> ClientConfig {
        let mut config = self.reader(isolation);
        config.set("client.rack", "");
        config
    }

    /// Reads the offsets that `group` committed, without joining it. Under [`Isolation::ReadCommitted`] the answer is
    /// stable: offsets of an open transaction are waited for.
    pub fn offsets_of(&self, group: &str, isolation: Isolation) -> ClientConfig {
        let mut config = self.reader(isolation);
        config.set("group.id", group);
        config
    }

    /// An admin client.
    pub fn admin(&self) -> ClientConfig {
        let mut config = self.base();
        config.set("socket.timeout.ms", SOCKET_TIMEOUT_MS.to_string());
        self.with_extra(config)
    }

    fn producer(&self, linger_ms: u32) -> ClientConfig {
        let mut config = self.base();
        config.set("enable.idempotence", "true");
        config.set("acks", "all");
        // The partitioner of the Java client, so that any client's records of one key meet in one partition.
        config.set("partitioner", "murmur2_random");
        config.set("compression.type", "lz4");
        config.set("linger.ms", linger_ms.to_string());
        config.set("batch.size", BATCH_BYTES.to_string());
        config.set("batch.num.messages", BATCH_RECORDS.to_string());
        config.set("queue.buffering.max.messages", PRODUCER_QUEUE_RECORDS.to_string());
        config.set("queue.buffering.max.kbytes", PRODUCER_QUEUE_KIB.to_string());
        config.set("request.timeout.ms", REQUEST_TIMEOUT_MS.to_string());
        config
    }

    fn fetching(&self, isolation: Isolation) -> ClientConfig {
        let mut config = self.base();
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set(
            "isolation.level",
            match isolation {
                Isolation::ReadCommitted => "read_committed",
                Isolation::ReadUncommitted => "read_uncommitted",
            },
        );
        config.set("socket.timeout.ms", SOCKET_TIMEOUT_MS.to_string());
        config.set("fetch.min.bytes", "1");
        config.set("fetch.wait.max.ms", FETCH_WAIT_MS.to_string());
        config.set("fetch.max.bytes", FETCH_BYTES.to_string());
        config.set("fetch.message.max.bytes", FETCH_PARTITION_BYTES.to_string());
        config.set("fetch.queue.backoff.ms", FETCH_QUEUE_BACKOFF_MS.to_string());
        config.set("fetch.error.backoff.ms", FETCH_ERROR_BACKOFF_MS.to_string());
        config.set("queued.max.messages.kbytes", CONSUMER_QUEUE_KIB.to_string());
        config.set("queued.min.messages", CONSUMER_QUEUE_RECORDS.to_string());
        config
    }

    fn base(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap_servers);
        config.set("client.id", "sluice");
        config.set("socket.nagle.disable", "true");
        config.set("socket.keepalive.enable", "true");
        config.set("topic.metadata.refresh.interval.ms", METADATA_REFRESH_MS.to_string());
        config.set("reconnect.backoff.ms", RECONNECT_BACKOFF_MS.0.to_string());
        config.set("reconnect.backoff.max.ms", RECONNECT_BACKOFF_MS.1.to_string());
        config
    }

    fn with_extra(&self, mut config: ClientConfig) -> ClientConfig {
        for (key, value) in self.extra.iter().filter(|(key, _)| !FIXED.contains(&key.as_str())) {
            config.set(key, value);
        }
        config
    }
}

/// Longest topic prefix, in bytes, so that every name stays below Kafka's 249.
pub const MAX_PREFIX_BYTES: usize = 100;

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis())
        .unwrap_or(i32::MAX as u32)
        .min(i32::MAX as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::consumer::BaseConsumer;
    use rdkafka::producer::BaseProducer;

    fn config() -> Config {
        Config {
            bootstrap_servers: "127.0.0.1:1".to_owned(),
            ..Config::default()
        }
    }

    fn with(key: &str, value: &str) -> Config {
        Config {
            extra: BTreeMap::from([(key.to_owned(), value.to_owned())]),
            ..config()
        }
    }

    #[test]
    fn librdkafka_accepts_every_client() {
        let config = config();
        let session = Duration::from_millis(SESSION_TIMEOUT_MS.into());
        config
            .idempotent_producer(LINGER_MS)
            .create::<BaseProducer>()
            .expect("idempotent");
        for timeout_ms in [0, 1_000, 10_000, 60_000] {
            let producer = config.transactional_producer("lane-0", Duration::from_millis(timeout_ms));
            producer.create::<BaseProducer>().expect("transactional");
        }
        config
            .consumer("group", session)
            .create::<BaseConsumer>()
            .expect("consumer");
        config
            .reader(Isolation::ReadCommitted)
            .create::<BaseConsumer>()
            .expect("reader");
        config
            .offsets_of("group", Isolation::ReadUncommitted)
            .create::<BaseConsumer>()
            .expect("offsets");
    }

    #[test]
    fn extra_properties_reach_the_client_but_not_the_guarantees() {
        let config = with("linger.ms", "7");
        config.validate().expect("valid");
        assert_eq!(config.idempotent_producer(LINGER_MS).get("linger.ms"), Some("7"));
        for key in FIXED {
            let config = with(key, "nonsense");
            assert!(config.validate().is_err(), "{key}");
            assert_ne!(
                config.idempotent_producer(LINGER_MS).get(key),
                Some("nonsense"),
                "{key}"
            );
            assert_ne!(
                config.consumer("group", Duration::from_secs(6)).get(key),
                Some("nonsense"),
                "{key}"
            );
        }
    }

    #[test]
    fn mistakes_are_named() {
        let unknown = with("no.such.property", "1")
            .validate()
            .expect_err("unknown")
            .to_string();
        assert!(unknown.contains("no.such.property"), "{unknown}");
        for servers in ["", "a:1,,b:1"] {
            let config = Config {
                bootstrap_servers: servers.to_owned(),
                ..Config::default()
            };
            assert!(config.validate().is_err(), "{servers:?}");
        }
        assert!(
            Config {
                topic_prefix: "a/b".to_owned(),
                ..config()
            }
            .validate()
            .is_err()
        );
        assert!(
            Config {
                topic_prefix: "test-1.".to_owned(),
                ..config()
            }
            .validate()
            .is_ok()
        );
    }
}
