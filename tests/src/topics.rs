//! Kafka's topics as they are: read whole, read_committed, and written to by anybody.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};
use sluice_proto::{headers, topics};

use crate::stack::Stack;
use crate::wait;

const POLL: Duration = Duration::from_millis(100);

/// A record as it stands in a topic.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its key, as text.
    pub key: String,
    /// Its value.
    pub payload: Vec<u8>,
    /// When it was stored, in milliseconds since the Unix epoch.
    pub stored_at_ms: i64,
    /// Its headers; a header that occurs twice has its last value.
    pub headers: Arc<BTreeMap<String, Vec<u8>>>,
}

impl Record {
    /// A header as text.
    ///
    /// # Errors
    /// When it is missing or no text.
    pub fn header(&self, name: &str) -> Result<&str> {
        let value = self
            .headers
            .get(name)
            .with_context(|| format!("no header {name} in {:?}", self.headers.keys()))?;
        Ok(std::str::from_utf8(value)?)
    }

    /// Whether the record is of this tenant.
    pub fn is_of(&self, tenant: &str) -> bool {
        self.key
            .split_once('/')
            .is_some_and(|(owner, _subject)| owner == tenant)
    }
}

/// Reads every committed record of a topic, by partition and offset.
///
/// # Errors
/// When Kafka does not answer.
pub async fn read(stack: &Stack, topic: &str) -> Result<Vec<Record>> {
    read_as(stack, topic, "read_committed").await
}

/// The same with the records of transactions that were aborted.
///
/// # Errors
/// When Kafka does not answer.
pub async fn read_uncommitted(stack: &Stack, topic: &str) -> Result<Vec<Record>> {
    read_as(stack, topic, "read_uncommitted").await
}

async fn read_as(stack: &Stack, topic: &str, isolation: &'static str) -> Result<Vec<Record>> {
    let all = (0..stack.partitions()).map(|partition| (partition, Offset::Beginning));
    let (kafka, topic, all) = (stack.servers().kafka.clone(), stack.topic(topic), all.collect());
    tokio::task::spawn_blocking(move || read_blocking(&kafka, &topic, all, isolation)).await?
}

/// Reads one partition of a topic from an offset on, with what was aborted or without.
///
/// # Errors
/// When Kafka does not answer.
pub async fn read_from(stack: &Stack, topic: &str, from: (i32, i64), isolation: &'static str) -> Result<Vec<Record>> {
    let (kafka, topic) = (stack.servers().kafka.clone(), stack.topic(topic));
    let from = vec![(from.0, Offset::Offset(from.1))];
    tokio::task::spawn_blocking(move || read_blocking(&kafka, &topic, from, isolation)).await?
}

/// The offset after each partition's last record, whether it is committed or not.
///
/// # Errors
/// When Kafka does not answer.
pub async fn ends(stack: &Stack, topic: &str) -> Result<Vec<i64>> {
    ends_as(stack, topic, "read_uncommitted").await
}

/// Waits until no transaction is open over the decisions any more.
///
/// # Errors
/// When one stays so.
pub async fn stable(stack: &Stack) -> Result<()> {
    wait::until("no transaction is open over the decisions", async || {
        let all = ends(stack, topics::DECISIONS).await?;
        let stable = ends_as(stack, topics::DECISIONS, "read_committed").await?;
        Ok((all == stable).then_some(()))
    })
    .await
}

async fn ends_as(stack: &Stack, topic: &str, isolation: &'static str) -> Result<Vec<i64>> {
    let (kafka, topic, partitions) = (stack.servers().kafka.clone(), stack.topic(topic), stack.partitions());
    let ends = move || {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &kafka)
            .set("isolation.level", isolation);
        let consumer: BaseConsumer = config.set("group.id", "sluice-tests-reader").create()?;
        let end = |partition| Ok(consumer.fetch_watermarks(&topic, partition, wait::SOON)?.1);
        (0..partitions).map(end).collect()
    };
    tokio::task::spawn_blocking(ends).await?
}

fn read_blocking(kafka: &str, topic: &str, from: Vec<(i32, Offset)>, isolation: &str) -> Result<Vec<Record>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka)
        // A group is demanded even by a consumer that is assigned its partitions; nothing is committed to it.
        .set("group.id", "sluice-tests-reader")
        .set("enable.auto.commit", "false")
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "10")
        .create()?;
    let mut assignment = TopicPartitionList::new();
    let mut unread: HashSet<i32> = HashSet::new();
    for (partition, offset) in from {
        assignment.add_partition_offset(topic, partition, offset)?;
        unread.insert(partition);
    }
    consumer.assign(&assignment)?;
    let mut records = Vec::new();
    let deadline = Instant::now() + wait::SOON;
    while !unread.is_empty() {
        if Instant::now() > deadline {
            bail!("partitions {unread:?} of {topic} cannot be read to their end");
        }
        match consumer.poll(POLL) {
            None => {}
            Some(Ok(message)) => records.push(record(&message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                unread.remove(&partition);
            }
            Some(Err(error)) => return Err(error).with_context(|| format!("cannot read {topic}")),
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    Ok(records)
}

fn record(message: &impl Message) -> Record {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    Record {
        partition: message.partition(),
        offset: message.offset(),
        key: String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned(),
        payload: message.payload().unwrap_or_default().to_vec(),
        stored_at_ms: message.timestamp().to_millis().unwrap_or_default(),
        headers: Arc::new(
            headers
                .map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
                .collect(),
        ),
    }
}

/// Makes a topic that is not one of the installation's usual ones, with as many partitions.
///
/// # Errors
/// When Kafka refuses.
pub async fn create(stack: &Stack, topic: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &stack.servers().kafka)
        .create()?;
    let name = stack.topic(topic);
    let new = NewTopic::new(&name, stack.partitions(), TopicReplication::Fixed(1));
    for made in admin.create_topics([&new], &AdminOptions::new()).await? {
        made.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
    }
    Ok(())
}

/// Writes a record straight to the payments topic, as anybody with access to Kafka can. Returns its partition and offset.
///
/// # Errors
/// When Kafka does not take it.
pub async fn write_payment(stack: &Stack, tenant: &str, account: &str, payload: Vec<u8>) -> Result<(i32, i64)> {
    let outgoing = Outgoing {
        partition: None,
        key: Some(topics::key(tenant, account)),
        payload,
        header: (headers::TENANT, tenant.to_owned()),
    };
    write(stack, outgoing).await
}

/// Writes a record that is no payment to a partition of the payments topic. Returns its offset.
///
/// # Errors
/// When Kafka does not take it.
pub async fn write_control(stack: &Stack, partition: i32, kind: &str, payload: Vec<u8>) -> Result<i64> {
    let outgoing = Outgoing {
        partition: Some(partition),
        key: None,
        payload,
        header: (headers::CONTROL, kind.to_owned()),
    };
    Ok(write(stack, outgoing).await?.1)
}

struct Outgoing {
    partition: Option<i32>,
    key: Option<String>,
    payload: Vec<u8>,
    header: (&'static str, String),
}

async fn write(stack: &Stack, outgoing: Outgoing) -> Result<(i32, i64)> {
    let (kafka, topic) = (stack.servers().kafka.clone(), stack.topic(topics::PAYMENTS));
    tokio::task::spawn_blocking(move || {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", kafka)
            .set("partitioner", "murmur2_random")
            .set("acks", "all");
        let producer: BaseProducer<Reports> = config.create_with_context(Reports)?;
        let (report, reports) = mpsc::channel();
        let header = Header {
            key: outgoing.header.0,
            value: Some(&outgoing.header.1),
        };
        let mut record = BaseRecord::<str, [u8], _>::with_opaque_to(&topic, Box::new(report))
            .payload(&outgoing.payload)
            .headers(OwnedHeaders::new().insert(header));
        if let Some(partition) = outgoing.partition {
            record = record.partition(partition);
        }
        if let Some(key) = &outgoing.key {
            record = record.key(key.as_str());
        }
        producer.send(record).map_err(|(error, _record)| error)?;
        producer.flush(wait::SOON)?;
        Ok(reports.try_recv().context("no delivery report")??)
    })
    .await?
}

/// Deletes what stands before these offsets of a topic, one for each partition, as retention does.
///
/// # Errors
/// When Kafka refuses.
pub async fn delete_before(stack: &Stack, topic: &str, offsets: &[i64]) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &stack.servers().kafka)
        .create()?;
    let topic = stack.topic(topic);
    let mut list = TopicPartitionList::new();
    for (partition, offset) in (0..).zip(offsets) {
        list.add_partition_offset(&topic, partition, Offset::Offset(*offset))?;
    }
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    for element in admin.delete_records(&list, &options).await?.elements() {
        element.error()?;
    }
    Ok(())
}

/// Writes records again, in their partitions, as they are.
///
/// # Errors
/// When Kafka does not take them.
pub async fn write_again(stack: &Stack, topic: &str, records: Vec<Record>) -> Result<()> {
    let (kafka, topic) = (stack.servers().kafka.clone(), stack.topic(topic));
    let written = tokio::task::spawn_blocking(move || {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &kafka)
            .set("enable.idempotence", "true");
        let producer: BaseProducer = config.create()?;
        for record in &records {
            let again = BaseRecord::to(&topic)
                .partition(record.partition)
                .key(&record.key)
                .payload(&record.payload);
            producer.send(again).map_err(|(error, _record)| error)?;
        }
        producer.flush(wait::SOON)?;
        anyhow::Ok(())
    });
    written.await?
}

type Report = Result<(i32, i64), KafkaError>;

/// Tells where a record was stored.
struct Reports;

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<mpsc::Sender<Report>>;

    fn delivery(&self, result: &DeliveryResult<'_>, report: Self::DeliveryOpaque) {
        let stored = match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, _message)) => Err(error.clone()),
        };
        // The writer waits for it, so that the other end is there.
        drop(report.send(stored));
    }
}

/// Waits until the processors have committed everything that stands in the payments topic; returns each partition's
/// committed offset.
///
/// # Errors
/// When they do not get there.
pub async fn consumed(stack: &Stack) -> Result<Vec<i64>> {
    let (kafka, topic, group) = (
        stack.servers().kafka.clone(),
        stack.topic(topics::PAYMENTS),
        stack.group(),
    );
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &kafka)
        .set("group.id", &group)
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .create()?;
    let consumer = Arc::new(consumer);
    let partitions = stack.partitions();
    wait::until("the processors have consumed every payment", async || {
        let (consumer, topic) = (Arc::clone(&consumer), topic.clone());
        tokio::task::spawn_blocking(move || caught_up(&consumer, &topic, partitions)).await?
    })
    .await
}

fn caught_up(consumer: &BaseConsumer, topic: &str, partitions: i32) -> Result<Option<Vec<i64>>> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition_range(topic, 0, partitions - 1);
    let committed = match consumer.committed_offsets(asked, Timeout::from(wait::SOON)) {
        Ok(committed) => committed,
        // A transaction that is open over the offsets makes them unstable for a moment, and a broker that has just come back does not
        // know its groups yet.
        Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnstableOffsetCommit | RDKafkaErrorCode::NotCoordinator)) => {
            return Ok(None);
        }
        Err(error) => return Err(error).context("cannot read the committed offsets"),
    };
    let mut offsets = Vec::new();
    for partition in 0..partitions {
        let (first, end) = consumer.fetch_watermarks(topic, partition, wait::SOON)?;
        let found = committed
            .find_partition(topic, partition)
            .map(|element| element.offset());
        let offset = match found {
            Some(Offset::Offset(offset)) => offset,
            _ => first,
        };
        if offset < end {
            return Ok(None);
        }
        offsets.push(offset);
    }
    Ok(Some(offsets))
}
