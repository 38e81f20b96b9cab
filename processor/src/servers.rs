//! Owns how a lane reaches the real parts: Kafka for its group, its readers and its transactions, Postgres for the ledger.
//!
//! Answers what [`crate::world`] asks; the lane and the takeover call nothing else.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer as _, ConsumerContext, ConsumerGroupMetadata, DefaultConsumerContext,
};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sluice_kafka::config::Isolation;
use sluice_kafka::{Config, admin, error};

use crate::consume::{self, Assignment};
use crate::lane::Settings;
use crate::ledger::{self, Open};
use crate::publish::{self, Publisher};
use crate::replay::Replayed;
use crate::rule_archive;
use crate::rules::RuleSet;
use crate::snapshot::{Due, Snapshots};
use crate::state::State;
use crate::world::{Member, Reader, World};

/// Where the real parts are, for all lanes of the process, and which books they keep.
pub(crate) struct Servers<B> {
    pub(crate) kafka: Config,
    pub(crate) group: String,
    pub(crate) session_timeout: Duration,
    /// The URL of the ledger's database.
    pub(crate) postgres: String,
    pub(crate) snapshots: Snapshots,
    pub(crate) books: PhantomData<fn() -> B>,
}

impl<B> Servers<B> {
    /// The same servers for lanes that keep other books.
    pub(crate) fn keeping<C>(self) -> Servers<C> {
        Servers {
            kafka: self.kafka,
            group: self.group,
            session_timeout: self.session_timeout,
            postgres: self.postgres,
            snapshots: self.snapshots,
            books: PhantomData,
        }
    }
}

/// A consumer of one topic.
pub(crate) struct Consumer<C: ConsumerContext + 'static> {
    consumer: BaseConsumer<C>,
    topic: String,
}

impl<C: ConsumerContext + 'static> Consumer<C> {
    fn new(config: &ClientConfig, context: C, topic: &str) -> Result<Self, error::Consumer> {
        let consumer = BaseConsumer::from_config_and_context(config, context).map_err(error::Consumer::Create)?;
        let topic = topic.to_owned();
        Ok(Self { consumer, topic })
    }
}

impl<C: ConsumerContext + 'static> Reader for Consumer<C> {
    type Record<'r> = BorrowedMessage<'r>;

    fn read_from(&self, offsets: impl IntoIterator<Item = (i32, i64)>) -> Result<(), error::Consumer> {
        let control = |cause| error::Consumer::Control { step: "assign", cause };
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            list.add_partition_offset(&self.topic, partition, Offset::Offset(offset))
                .map_err(control)?;
        }
        self.consumer.assign(&list).map_err(control)
    }

    fn pause(&self, partition: i32) -> Result<(), error::Consumer> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        self.consumer
            .pause(&list)
            .map_err(|cause| error::Consumer::Control { step: "pause", cause })
    }

    fn poll(&self, wait: Duration) -> Option<Result<BorrowedMessage<'_>, KafkaError>> {
        self.consumer.poll(wait)
    }

    fn ends(&self, partition: i32, timeout: Duration) -> Result<(i64, i64), error::Consumer> {
        let what = "the ends of a partition";
        self.consumer
            .fetch_watermarks(&self.topic, partition, timeout)
            .map_err(|cause| error::Consumer::Offsets { what, cause })
    }
}

impl Member for Consumer<consume::Context> {
    type Membership = ConsumerGroupMetadata;

    fn assignment(&self) -> Assignment<ConsumerGroupMetadata> {
        self.consumer.context().assignment()
    }

    fn is_current(&self, change: u64) -> bool {
        self.consumer.context().is_current(change)
    }

    fn committed(&self, partitions: &[i32], timeout: Duration) -> Result<BTreeMap<i32, i64>, error::Consumer> {
        let what = "committed offsets";
        // The consumer reads committed only, which is what makes librdkafka ask for stable offsets.
        admin::committed(&self.consumer, &self.topic, partitions, timeout)
            .map_err(|cause| error::Consumer::Offsets { what, cause })
    }

    fn commit_early(&self, records: &[BorrowedMessage<'_>]) -> Result<(), error::Consumer> {
        records.iter().try_for_each(|record| {
            let committed = self.consumer.commit_message(record, CommitMode::Sync);
            committed.map_err(|cause| error::Consumer::Control { step: "commit", cause })
        })
    }

    fn known_end(&self, partition: i32) -> Option<i64> {
        self.consumer.context().known_end(partition)
    }

    fn warn(&self, error: &error::Consumer) {
        self.consumer.context().warn(error);
    }
}

impl<B: Open> World for Servers<B> {
    type Membership = ConsumerGroupMetadata;
    type Member = Consumer<consume::Context>;
    type Reader = Consumer<DefaultConsumerContext>;
    type Books = B;
    type Transactions = Publisher;

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn unix_us(&self) -> i64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    fn join(&self, settings: &Settings) -> Result<Self::Member, error::Consumer> {
        let mut config = self.kafka.consumer(&self.group, self.session_timeout);
        config.set("statistics.interval.ms", consume::STATISTICS_MS.to_string());
        let member = Consumer::new(&config, consume::Context::new(), &settings.topics.payments)?;
        let subscribed = member.consumer.subscribe(&[&member.topic]);
        subscribed.map_err(|cause| error::Consumer::Control {
            step: "subscribe",
            cause,
        })?;
        Ok(member)
    }

    fn reader(&self, topic: &str, isolation: Isolation) -> Result<Self::Reader, error::Consumer> {
        Consumer::new(&self.kafka.leaders_reader(isolation), DefaultConsumerContext, topic)
    }

    fn books(&self, settings: &Settings) -> Result<B, ledger::Error> {
        B::open(&self.postgres, &settings.topics.payments, settings.run)
    }

    fn transactions(&self, settings: &Settings, lane: u16) -> Result<Publisher, publish::Error> {
        Publisher::new(
            &self.kafka,
            &settings.transactional_ids[usize::from(lane)],
            settings.transaction_timeout,
            publish::SchemaIds {
                decisions: settings.decision_schema,
                features: settings.features_schema,
            },
            &settings.kafka_metrics,
        )
    }

    fn rules_at(
        &self,
        settings: &Settings,
        partition: i32,
        offset: i64,
    ) -> Result<Option<Arc<RuleSet>>, rule_archive::Error> {
        let last = rule_archive::last(&self.kafka, &settings.topics, [(partition, offset)])?;
        Ok(last.into_iter().next().map(|applied| applied.rules))
    }

    fn due(&self, partition: i32, partitions: usize) -> Due {
        self.snapshots.due(partition, partitions)
    }

    fn offer(&self, due: &mut Due, partition: i32, next: i64, state: &State) {
        self.snapshots.offer(due, partition, next, state);
    }

    fn leave(&self, due: &Due, partition: i32, next: i64, state: &State) {
        self.snapshots.leave(due, partition, next, state);
    }

    fn restore(&self, settings: &Settings, wanted: &BTreeMap<i32, (i64, i64)>) -> BTreeMap<i32, Replayed> {
        let mut restorer = self.snapshots.restorer();
        let restored = wanted.iter().filter_map(|(partition, (low, committed))| {
            let rules_at = |next| {
                let applied = self.rules_at(settings, *partition, next)?;
                Ok(applied.unwrap_or_else(|| settings.rules.clone()))
            };
            let restored = restorer.restore(*partition, *low, *committed, rules_at)?;
            Some((*partition, restored))
        });
        restored.collect()
    }
}
