//! The admin client: creates the topics, and reads topics, groups, offsets and watermarks. Used by sluicectl and by tests,
//! and at start by the servers, which refuse to run on topics that do not fit together.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use crate::config::{Config, Isolation};
use crate::context;
use crate::error;
use crate::metrics::Metrics;
use crate::patience::patiently;
use crate::topics::Topics;

/// How long one admin request may take.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// What [`Admin::ensure_topics`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ensured {
    /// The topic, with its prefix.
    pub topic: String,
    /// Whether it was created just now.
    pub created: bool,
}

/// A topic as the cluster describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name, with its prefix.
    pub name: String,
    /// How many partitions it has.
    pub partitions: usize,
    /// Fewest replicas of its partitions.
    pub replicas: usize,
    /// Fewest in-sync replicas of its partitions.
    pub in_sync: usize,
}

/// A consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its state, such as `Stable` or `Empty`.
    pub state: String,
    /// The assignor that its members agreed on.
    pub protocol: String,
    /// How many members it has.
    pub members: usize,
}

/// How far a group is behind in one partition. All offsets are those of the next record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lag {
    /// The topic, with its prefix.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// What the group committed, if anything.
    pub committed: Option<i64>,
    /// First offset that is kept.
    pub low: i64,
    /// End of the partition.
    pub high: i64,
}

impl Lag {
    /// Records still to be read, counted from the first one kept where nothing was committed or what was is gone.
    pub fn records(&self) -> i64 {
        let next = self.committed.map_or(self.low, |committed| committed.max(self.low));
        (self.high - next).max(0)
    }
}

/// An admin client. Only [`Admin::ensure_topics`] is async; everything else blocks for up to [`TIMEOUT`] per request, so
/// call it from a plain thread or `spawn_blocking`.
pub struct Admin {
    config: Config,
    client: AdminClient<DefaultClientContext>,
    metrics: Metrics,
}

impl Admin {
    /// A client; it connects in the background.
    ///
    /// # Errors
    /// [`error::Admin::Create`] where librdkafka does not accept the configuration.
    pub fn new(config: &Config, metrics: Metrics) -> Result<Self, error::Admin> {
        let client = config.admin().create().map_err(error::Admin::Create)?;
        Ok(Self {
            config: config.clone(),
            client,
            metrics,
        })
    }

    /// Creates the topics that are missing, all with `partitions` partitions and `replication` replicas, and checks those
    /// that exist. Safe to repeat, and to run in several places at once. Blocks the task while it reads metadata.
    ///
    /// # Errors
    /// [`error::Admin::Partitions`] where a topic exists with another count: nothing was created then.
    /// [`error::Admin::Topic`] for what the broker refused, [`error::Admin::NoBroker`] where none answered.
    ///
    /// Cancel-safe: a topic is created or not.
    pub async fn ensure_topics(
        &self,
        topics: &Topics,
        partitions: u16,
        replication: u16,
    ) -> Result<Vec<Ensured>, error::Admin> {
        let result = self.create_missing(topics, partitions, replication).await;
        self.metrics.admin("create_topics", &result);
        result
    }

    async fn create_missing(
        &self,
        topics: &Topics,
        partitions: u16,
        replication: u16,
    ) -> Result<Vec<Ensured>, error::Admin> {
        let existing = self.partition_counts(topics)?;
        for (topic, count) in &existing {
            if *count != usize::from(partitions) {
                return Err(wrong_count(topic, *count, partitions));
            }
        }
        let missing: Vec<_> = topics
            .all()
            .into_iter()
            .filter(|topic| !existing.contains_key(*topic))
            .map(|topic| (topic, topics.settings(topic, replication)))
            .collect();
        let new: Vec<NewTopic<'_>> = missing
            .iter()
            .map(|(topic, settings)| {
                let fixed = TopicReplication::Fixed(replication.into());
                let new = NewTopic::new(topic, partitions.into(), fixed);
                settings.iter().fold(new, |new, (key, value)| new.set(key, value))
            })
            .collect();
        let mut created = Vec::new();
        if !new.is_empty() {
            for result in self
                .client
                .create_topics(&new, &patience())
                .await
                .map_err(failed("creating topics"))?
            {
                match result {
                    Ok(topic) => created.push(topic),
                    // Somebody else was faster; whether with the same count is seen below.
                    Err((_, Code::TopicAlreadyExists)) => {}
                    Err((topic, code)) => return Err(error::Admin::Topic { topic, code }),
                }
            }
            if created.len() < new.len() {
                self.check(topics, Some(partitions))?;
            }
        }
        let ensured = topics.all().into_iter().map(|topic| Ensured {
            topic: topic.to_owned(),
            created: created.iter().any(|name| name == topic),
        });
        Ok(ensured.collect())
    }

    /// Gives every topic so many partitions, where it has fewer. Accounts change their partition by that: nobody may write
    /// or read meanwhile, and nothing may be left to decide. Safe to repeat. Returns the topics that had fewer.
    ///
    /// # Errors
    /// [`error::Admin::NoTopic`], [`error::Admin::Partitions`] where a topic has more: nothing was changed then.
    /// [`error::Admin::Topic`] for what the broker refused, [`error::Admin::NoBroker`] where none answered.
    ///
    /// Cancel-safe: a topic has grown or not.
    pub async fn grow_topics(&self, topics: &Topics, partitions: u16) -> Result<Vec<String>, error::Admin> {
        let result = self.grow(topics, partitions).await;
        self.metrics.admin("create_partitions", &result);
        result
    }

    async fn grow(&self, topics: &Topics, partitions: u16) -> Result<Vec<String>, error::Admin> {
        let existing = self.partition_counts(topics)?;
        let wanted = usize::from(partitions);
        let mut small = Vec::new();
        for topic in topics.all() {
            match existing.get(topic) {
                None => return Err(error::Admin::NoTopic(topic.to_owned())),
                Some(count) if *count > wanted => return Err(wrong_count(topic, *count, partitions)),
                Some(count) if *count < wanted => small.push(topic),
                Some(_) => {}
            }
        }
        if small.is_empty() {
            return Ok(Vec::new());
        }
        let more: Vec<_> = small.iter().map(|topic| NewPartitions::new(topic, wanted)).collect();
        let results = self.client.create_partitions(&more, &patience()).await;
        for result in results.map_err(failed("adding partitions"))? {
            result.map_err(|(topic, code)| error::Admin::Topic { topic, code })?;
        }
        Ok(small.into_iter().map(str::to_owned).collect())
    }

    /// Kafka's name for the cluster, by which what is kept outside of it knows that it still belongs to it. Blocks.
    ///
    /// # Errors
    /// [`error::Admin::NoBroker`].
    pub fn cluster_id(&self) -> Result<String, error::Admin> {
        let id = self.client.inner().fetch_cluster_id(TIMEOUT);
        id.ok_or(error::Admin::NoBroker {
            operation: "reading the cluster's id",
            timeout_s: TIMEOUT.as_secs(),
        })
    }

    /// The number of partitions, after checking that every topic exists and all have the same. Blocks; what is missing is
    /// waited for, as long as [`crate::PATIENCE`].
    ///
    /// # Errors
    /// [`error::Admin::NoTopic`], [`error::Admin::Partitions`], [`error::Admin::NoBroker`], [`error::Admin::Operation`].
    pub fn check_topics(&self, topics: &Topics) -> Result<usize, error::Admin> {
        let may_pass = |cause: &error::Admin| matches!(cause, error::Admin::NoTopic(_)) || cause.is_retriable();
        let result = patiently(may_pass, || self.check(topics, None));
        self.metrics.admin("check_topics", &result);
        result
    }

    /// The number of partitions of each of these topics, which are an installation's own beside [`Topics`]. Blocks; what is
    /// missing is waited for, as long as [`crate::PATIENCE`].
    ///
    /// # Errors
    /// [`error::Admin::NoTopic`], [`error::Admin::NoBroker`], [`error::Admin::Operation`].
    pub fn partitions_of(&self, topics: &[String]) -> Result<Vec<usize>, error::Admin> {
        let may_pass = |cause: &error::Admin| matches!(cause, error::Admin::NoTopic(_)) || cause.is_retriable();
        patiently(may_pass, || {
            let found = self.describe()?;
            let count = |name: &String| {
                let topic = found.iter().find(|topic| topic.name == *name);
                topic
                    .map(|topic| topic.partitions)
                    .ok_or_else(|| error::Admin::NoTopic(name.clone()))
            };
            topics.iter().map(count).collect()
        })
    }

    fn check(&self, topics: &Topics, wanted: Option<u16>) -> Result<usize, error::Admin> {
        let existing = self.partition_counts(topics)?;
        let mut wanted = wanted.map(usize::from);
        for topic in topics.all() {
            let actual = *existing
                .get(topic)
                .ok_or_else(|| error::Admin::NoTopic(topic.to_owned()))?;
            let wanted = *wanted.get_or_insert(actual);
            if actual != wanted {
                return Err(error::Admin::Partitions {
                    topic: topic.to_owned(),
                    actual,
                    wanted,
                });
            }
        }
        Ok(wanted.unwrap_or(0))
    }

    fn partition_counts(&self, topics: &Topics) -> Result<BTreeMap<String, usize>, error::Admin> {
        let ours = topics.all();
        let found = self
            .describe()?
            .into_iter()
            .filter(|topic| ours.contains(&topic.name.as_str()));
        Ok(found.map(|topic| (topic.name, topic.partitions)).collect())
    }

    /// Every topic whose name starts with the installation's prefix, without Kafka's own, by name. Blocks.
    ///
    /// # Errors
    /// [`error::Admin::NoBroker`], [`error::Admin::Operation`].
    pub fn topics(&self) -> Result<Vec<Topic>, error::Admin> {
        let result = self.describe();
        self.metrics.admin("list_topics", &result);
        result
    }

    fn describe(&self) -> Result<Vec<Topic>, error::Admin> {
        let metadata = self
            .client
            .inner()
            .fetch_metadata(None, TIMEOUT)
            .map_err(failed("reading topics"))?;
        let ours = metadata.topics().iter().filter(|topic| {
            topic.error().is_none()
                && !topic.name().starts_with("__")
                && topic.name().starts_with(&self.config.topic_prefix)
        });
        let mut topics: Vec<_> = ours
            .map(|topic| Topic {
                name: topic.name().to_owned(),
                partitions: topic.partitions().len(),
                replicas: topic
                    .partitions()
                    .iter()
                    .map(|partition| partition.replicas().len())
                    .min()
                    .unwrap_or(0),
                in_sync: topic
                    .partitions()
                    .iter()
                    .map(|partition| partition.isr().len())
                    .min()
                    .unwrap_or(0),
            })
            .collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// Every consumer group of the cluster, by name. Blocks.
    ///
    /// # Errors
    /// [`error::Admin::NoBroker`], [`error::Admin::Operation`].
    pub fn groups(&self) -> Result<Vec<Group>, error::Admin> {
        let list = self
            .client
            .inner()
            .fetch_group_list(None, TIMEOUT)
            .map_err(failed("listing groups"));
        self.metrics.admin("list_groups", &list);
        let mut groups: Vec<_> = list?
            .groups()
            .iter()
            .map(|group| Group {
                name: group.name().to_owned(),
                state: group.state().to_owned(),
                protocol: group.protocol().to_owned(),
                members: group.members().len(),
            })
            .collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(groups)
    }

    /// How many members a consumer group has; none where there is no such group. Blocks.
    ///
    /// # Errors
    /// [`error::Admin::NoBroker`], [`error::Admin::Operation`].
    pub fn members(&self, group: &str) -> Result<usize, error::Admin> {
        let found = self.groups()?.into_iter().find(|found| found.name == group);
        Ok(found.map_or(0, |group| group.members))
    }

    /// How far `group` is behind in every partition of `topic`, by partition. Blocks.
    ///
    /// Offsets in an open transaction are not waited for: lag is a picture of now.
    ///
    /// # Errors
    /// [`error::Admin::NoTopic`], [`error::Admin::NoBroker`], [`error::Admin::Operation`], [`error::Admin::Create`].
    pub fn lag(&self, group: &str, topic: &str) -> Result<Vec<Lag>, error::Admin> {
        let result = self.read_lag(group, topic);
        self.metrics.admin("read_lag", &result);
        result
    }

    fn read_lag(&self, group: &str, topic: &str) -> Result<Vec<Lag>, error::Admin> {
        let described = self.describe()?.into_iter().find(|described| described.name == topic);
        let partitions = described
            .ok_or_else(|| error::Admin::NoTopic(topic.to_owned()))?
            .partitions;
        let partitions: Vec<i32> = (0..i32::try_from(partitions).unwrap_or(i32::MAX)).collect();
        let config = self.config.offsets_of(group, Isolation::ReadUncommitted);
        let consumer: BaseConsumer<context::Consumer> = config
            .create_with_context(context::Consumer)
            .map_err(error::Admin::Create)?;
        let committed =
            committed(&consumer, topic, &partitions, TIMEOUT).map_err(failed("reading committed offsets"))?;
        let mut lags = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let watermarks = consumer.fetch_watermarks(topic, partition, TIMEOUT);
            let (low, high) = watermarks.map_err(failed("reading watermarks"))?;
            let committed = committed.get(&partition).copied();
            lags.push(Lag {
                topic: topic.to_owned(),
                partition,
                committed,
                low,
                high,
            });
        }
        Ok(lags)
    }
}

/// The offsets that `consumer`'s group committed; partitions without one are left out. Blocks for up to `timeout`. Stable
/// where `consumer` is read_committed: an open transaction's offsets are waited for, or the call times out.
///
/// # Errors
/// librdkafka's, of the whole call or of the first partition that has one.
pub fn committed(
    consumer: &BaseConsumer<impl rdkafka::consumer::ConsumerContext>,
    topic: &str,
    partitions: &[i32],
    timeout: Duration,
) -> Result<BTreeMap<i32, i64>, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition(topic, *partition);
    }
    let mut offsets = BTreeMap::new();
    for element in consumer.committed_offsets(list, timeout)?.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            offsets.insert(element.partition(), offset);
        }
    }
    Ok(offsets)
}

fn patience() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT))
}

fn failed(operation: &'static str) -> impl Fn(KafkaError) -> error::Admin {
    move |cause| match error::code(&cause) {
        Some(Code::BrokerTransportFailure | Code::AllBrokersDown | Code::OperationTimedOut | Code::Resolve) => {
            error::Admin::NoBroker {
                operation,
                timeout_s: TIMEOUT.as_secs(),
            }
        }
        _ => error::Admin::Operation { operation, cause },
    }
}

fn wrong_count(topic: &str, actual: usize, wanted: u16) -> error::Admin {
    error::Admin::Partitions {
        topic: topic.to_owned(),
        actual,
        wanted: wanted.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(committed: Option<i64>, low: i64, high: i64) -> i64 {
        Lag {
            topic: "payments".to_owned(),
            partition: 0,
            committed,
            low,
            high,
        }
        .records()
    }

    #[test]
    fn lag_counts_from_the_first_record_that_can_be_read() {
        assert_eq!(lag(Some(7), 0, 10), 3);
        assert_eq!(lag(None, 4, 10), 6);
        assert_eq!(lag(Some(2), 4, 10), 6);
        assert_eq!(lag(Some(12), 0, 10), 0);
    }
}
