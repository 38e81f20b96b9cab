//! Owns the lane's transactional producers: decisions, dead letters, copies of late payments and of rule sets, features of
//! accounts, and the consumed offsets, all in one transaction.
//!
//! Comes after the batch is decided; its commit is the commit point of the whole batch. Calls block the lane's thread.
//! After an error the transaction is aborted; after an error in doubt the producer is dropped, and a new one fences it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::util::Timeout;
use rdkafka::{ClientContext, Message as _, Offset, TopicPartitionList};
use sluice_kafka::{Config, Topics, error, fail, metrics};
use sluice_proto::avro::{EncodeError, Encoder};
use sluice_proto::decision::Decision;
use sluice_proto::features::AccountFeatures;
use sluice_proto::headers;

use crate::batch::{Output, Written};
use crate::dead_letter::letter_headers;
use crate::world::{Record, Transactions};

/// A request to end a transaction that takes longer may have been sent twice, and one of the two may still be on its way: a
/// second one comes after four fifths of [`sluice_kafka::config::TRANSACTIONAL_RETRY_BACKOFF_MS`] at the earliest.
pub(crate) const DOUBTFUL_END: Duration = Duration::from_millis(250);
/// The same for offsets, which librdkafka sends again after 500 ms.
pub(crate) const DOUBTFUL_OFFSETS: Duration = Duration::from_millis(450);
/// How long an abort waits, twice at most. A transaction that is not aborted is fenced by the next producer.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How much longer a transaction stays open where the safeguard `transaction-timeout` is taken out.
const UNBOUNDED_TIMES: u32 = 10;
/// How long the lane rests between two looks at its deliveries. Not in `poll`: rust-rdkafka waits there in whole
/// milliseconds and spins for the rest, on a core that Kafka and Postgres need meanwhile.
const DELIVERY_PAUSE: Duration = Duration::from_micros(500);

/// How many producers of a lane take turns.
const PRODUCERS: usize = 2;

/// Why a batch could not be published.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka's producer.
    #[error(transparent)]
    Producer(#[from] error::Producer),
    /// The list of offsets cannot be built.
    #[error("the offsets cannot be sent: {0}")]
    Offsets(#[source] KafkaError),
    /// A decision does not fit its schema.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A request was answered, but took so long that another copy of it may still arrive.
    #[error("{step} took {} ms, so that it may have been sent twice", took.as_millis())]
    Doubtful {
        /// What was asked.
        step: &'static str,
        /// How long it took.
        took: Duration,
    },
}

/// Whether a request that was answered after this time was sent once. A second one that is still on its way would end, or
/// give its offsets to, a later transaction of the same producer, because it does not say which it means.
///
/// # Errors
/// [`Error::Doubtful`]: this producer must begin no other transaction. A new one makes the broker refuse what is late.
pub(crate) fn sent_once(step: &'static str, took: Duration, doubtful: Duration) -> Result<(), Error> {
    if took > doubtful && fail::safeguard("doubt") {
        return Err(Error::Doubtful { step, took });
    }
    Ok(())
}

/// Logs what could not be delivered; librdkafka then fails the transaction by itself.
struct Context {
    errors: metrics::Producer,
}

impl ClientContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((source, message)) = result {
            let error = error::Producer::Undelivered(source.clone());
            self.errors.failed(&error);
            tracing::debug!(%error, topic = message.topic(), "a record of a transaction is lost with it");
        }
    }
}

/// The metrics of each topic that is written.
#[derive(Clone)]
struct Metered {
    decisions: metrics::Producer,
    dead_letters: metrics::Producer,
    late: metrics::Producer,
    rule_sets: metrics::Producer,
    features: metrics::Producer,
}

/// The lane's two producers, which take turns: for some 20 ms after a commit the broker is still at writing its markers and
/// refuses the next transaction of the same producer, which then waits and asks again. A transaction begins only after the
/// one before has committed, so the order is that of a single producer.
pub(crate) struct Publisher {
    producers: [BaseProducer<Context>; PRODUCERS],
    /// Whose turn it is.
    turn: usize,
    topics: Topics,
    encoder: Encoder<Decision>,
    /// None where features are not written.
    features: Option<Encoder<AccountFeatures>>,
    timeout: Timeout,
    metrics: Metered,
    payload: Vec<u8>,
    key: String,
    sent: Sent,
}

/// Records sent in the open transaction.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    decisions: u64,
    dead_letters: u64,
    late: u64,
    rule_sets: u64,
    features: u64,
}

/// The ids of the schemas of what is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SchemaIds {
    pub(crate) decisions: i32,
    /// None where features are not written.
    pub(crate) features: Option<i32>,
}

impl Publisher {
    /// New producers, which fence all earlier ones with this transactional id and end what they left open.
    pub(crate) fn new(
        config: &Config,
        transactional_id: &str,
        transaction_timeout: Duration,
        schemas: SchemaIds,
        metrics: &metrics::Metrics,
    ) -> Result<Self, Error> {
        let topics = Topics::new(&config.topic_prefix);
        let metrics = Metered {
            decisions: metrics.producer(&topics.decisions),
            dead_letters: metrics.producer(&topics.dead_letters),
            late: metrics.producer(&topics.late),
            rule_sets: metrics.producer(&topics.rule_sets),
            features: metrics.producer(&topics.features),
        };
        let patience = if fail::safeguard("transaction-timeout") {
            1
        } else {
            UNBOUNDED_TIMES
        };
        let timeout = Timeout::After(transaction_timeout);
        let create = |id: &str| {
            let mut config = config.transactional_producer(id, transaction_timeout * patience);
            // Success is seen by the queue's getting empty, which costs no event for each record.
            config.set("delivery.report.only.error", "true");
            let context = Context {
                errors: metrics.decisions.clone(),
            };
            let producer = BaseProducer::from_config_and_context(&config, context).map_err(error::Producer::Create)?;
            producer.init_transactions(timeout).map_err(step("init_transactions"))?;
            Ok::<_, Error>(producer)
        };
        let producers = [create(transactional_id)?, create(&format!("{transactional_id}-2"))?];
        Ok(Self {
            producers,
            turn: 0,
            topics,
            encoder: Encoder::new(schemas.decisions)?,
            features: schemas.features.map(Encoder::new).transpose()?,
            timeout,
            metrics,
            payload: Vec::new(),
            key: String::new(),
            sent: Sent::default(),
        })
    }

    /// Opens the transaction and hands it all that is written for a batch. Deliveries go on in the background.
    pub(crate) fn send(&mut self, outputs: &[Output<'_, impl Record>]) -> Result<(), Error> {
        self.sent = Sent::default();
        self.producer().begin_transaction().map_err(step("begin_transaction"))?;
        for output in outputs {
            match &output.written {
                Written::Decision(decision) => {
                    self.send_decision(decision, output)?;
                    if decision.late {
                        self.send_copy(output.message)?;
                    }
                    if let Some(features) = &output.features {
                        self.send_features(features)?;
                    }
                }
                Written::RuleSet => self.send_rule_set(output.message)?,
                Written::Letter { kind, error } => {
                    let with_headers = |own| letter_headers(output.message, *kind, error, own);
                    send_original(self.producer(), &self.topics.dead_letters, output.message, with_headers)?;
                    self.sent.dead_letters += 1;
                }
            }
        }
        Ok(())
    }

    /// Waits until Kafka acknowledged all that was sent.
    pub(crate) fn settle(&mut self) {
        let started = Instant::now();
        while self.producer().in_flight_count() > 0 {
            self.serve_deliveries();
        }
        self.meter(started.elapsed());
    }

    /// Proves that this lane's place in its group is the current one: Kafka takes offsets from no other. The transaction is
    /// to be aborted. The offsets are of the decisions, which nobody in the group reads: should a copy of the request come
    /// late, into a transaction of a batch, it changes nothing.
    pub(crate) fn prove(&mut self, partitions: &[i32], membership: &ConsumerGroupMetadata) -> Result<(), Error> {
        self.producer().begin_transaction().map_err(step("begin_transaction"))?;
        let none = partitions.iter().map(|partition| (*partition, 0)).collect();
        self.offer(&self.topics.decisions, &none, membership)
    }

    /// The commit point.
    pub(crate) fn commit(&mut self) -> Result<(), Error> {
        self.producer()
            .commit_transaction(self.timeout)
            .map_err(step("commit_transaction"))?;
        self.pass_turn();
        Ok(())
    }

    /// Ends the open transaction as if it had never been. What is on its way is waited for here: librdkafka's own waiting
    /// expects somebody else to poll, and dropping records leaves a gap in their sequence that fails the next transaction.
    pub(crate) fn abort(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + ABORT_TIMEOUT;
        while self.producer().in_flight_count() > 0 && Instant::now() < deadline {
            self.serve_deliveries();
        }
        self.producer()
            .abort_transaction(ABORT_TIMEOUT)
            .map_err(step("abort_transaction"))?;
        self.pass_turn();
        Ok(())
    }

    fn producer(&self) -> &BaseProducer<Context> {
        &self.producers[self.turn]
    }

    fn pass_turn(&mut self) {
        self.turn = (self.turn + 1) % PRODUCERS;
    }

    /// Lets librdkafka report what was delivered, and rests.
    fn serve_deliveries(&self) {
        self.producer().poll(Duration::ZERO);
        std::thread::park_timeout(DELIVERY_PAUSE);
    }

    /// Counts an error on the topic that matters most.
    pub(crate) fn failed(&self, error: &Error) {
        if let Error::Producer(error) = error {
            self.metrics.decisions.failed(error);
        }
    }

    /// Adds the offsets that the batch consumed. After its records, because adding the offsets first was not seen to be
    /// faster.
    pub(crate) fn send_offsets(
        &self,
        ends: &BTreeMap<i32, i64>,
        membership: &ConsumerGroupMetadata,
    ) -> Result<(), Error> {
        self.offer(&self.topics.payments, ends, membership)
    }

    fn offer(&self, topic: &str, ends: &BTreeMap<i32, i64>, membership: &ConsumerGroupMetadata) -> Result<(), Error> {
        let mut offsets = TopicPartitionList::with_capacity(ends.len());
        for (partition, end) in ends {
            offsets
                .add_partition_offset(topic, *partition, Offset::Offset(*end))
                .map_err(Error::Offsets)?;
        }
        self.producer()
            .send_offsets_to_transaction(&offsets, membership, self.timeout)
            .map_err(step("send_offsets_to_transaction"))?;
        Ok(())
    }

    fn send_decision(&mut self, decision: &Decision, output: &Output<'_, impl Record>) -> Result<(), Error> {
        self.payload.clear();
        self.encoder.encode(decision, &mut self.payload)?;
        self.key.clear();
        self.key.push_str(&decision.tenant);
        self.key.push('/');
        self.key.push_str(&decision.account_id);
        let mut record = BaseRecord::<str, [u8]>::to(&self.topics.decisions)
            .partition(decision.source_partition)
            .key(&self.key)
            .payload(&self.payload);
        // Key and value say everything else; a header costs each reader and the producer several allocations.
        let continued = output.span.as_ref().map(sluice_kafka::telemetry::Span::traceparent);
        if let Some(traceparent) = continued.as_deref().or(output.traceparent.as_deref()) {
            record = record.headers(OwnedHeaders::new_with_capacity(1).insert(Header {
                key: headers::TRACEPARENT,
                value: Some(traceparent),
            }));
        }
        self.producers[self.turn]
            .send(record)
            .map_err(|(error, _)| error::Producer::Refused(error))?;
        self.sent.decisions += 1;
        Ok(())
    }

    fn send_features(&mut self, features: &AccountFeatures) -> Result<(), Error> {
        let Some(encoder) = &self.features else {
            return Ok(());
        };
        self.payload.clear();
        encoder.encode(features, &mut self.payload)?;
        // The decision's own record has just set the key, which is the account's.
        let record = BaseRecord::<str, [u8]>::to(&self.topics.features)
            .partition(features.source_partition)
            .key(&self.key)
            .payload(&self.payload);
        self.producers[self.turn]
            .send(record)
            .map_err(|(error, _)| error::Producer::Refused(error))?;
        self.sent.features += 1;
        Ok(())
    }

    fn send_copy(&mut self, message: &impl Record) -> Result<(), Error> {
        let with_headers = |own| if own { message.detached_headers() } else { None }.unwrap_or_default();
        send_original(self.producer(), &self.topics.late, message, with_headers)?;
        self.sent.late += 1;
        Ok(())
    }

    /// Keeps a rule set for when its record is deleted with the payments around it.
    fn send_rule_set(&mut self, message: &impl Record) -> Result<(), Error> {
        let key = (message.offset() + 1).to_string();
        let record = BaseRecord::<str, [u8]>::to(&self.topics.rule_sets)
            .partition(message.partition())
            .key(&key)
            .payload(message.payload().unwrap_or_default());
        self.producers[self.turn]
            .send(record)
            .map_err(|(error, _)| error::Producer::Refused(error))?;
        self.sent.rule_sets += 1;
        Ok(())
    }

    /// Each record's own latency would cost an event for each; the slowest stands for the batch.
    fn meter(&self, slowest: Duration) {
        for (metrics, sent) in [
            (&self.metrics.decisions, self.sent.decisions),
            (&self.metrics.dead_letters, self.sent.dead_letters),
            (&self.metrics.late, self.sent.late),
            (&self.metrics.rule_sets, self.sent.rule_sets),
            (&self.metrics.features, self.sent.features),
        ] {
            if sent > 0 {
                metrics.delivered(slowest);
                metrics.delivered_many(sent - 1);
            }
        }
    }
}

impl Transactions for Publisher {
    type Membership = ConsumerGroupMetadata;

    fn send<R: Record>(&mut self, outputs: &[Output<'_, R>]) -> Result<(), Error> {
        Self::send(self, outputs)
    }

    fn settle(&mut self) -> Result<(), Error> {
        Self::settle(self);
        Ok(())
    }

    fn send_offsets(&mut self, ends: &BTreeMap<i32, i64>, membership: &ConsumerGroupMetadata) -> Result<(), Error> {
        Self::send_offsets(self, ends, membership)
    }

    fn prove(&mut self, partitions: &[i32], membership: &ConsumerGroupMetadata) -> Result<(), Error> {
        Self::prove(self, partitions, membership)
    }

    fn commit(&mut self) -> Result<(), Error> {
        Self::commit(self)
    }

    fn abort(&mut self) -> Result<(), Error> {
        Self::abort(self)
    }

    fn failed(&self, error: &Error) {
        Self::failed(self, error);
    }
}

/// Sends a record on as it came, into the partition of the same number. A record so large that it does not fit once our
/// headers are added goes without its key, payload and headers: it still stands where the letter says, and it must not
/// stop the lane.
fn send_original(
    producer: &BaseProducer<Context>,
    topic: &str,
    message: &impl Record,
    with_headers: impl Fn(bool) -> OwnedHeaders,
) -> Result<(), Error> {
    for whole in [true, false] {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic)
            .partition(message.partition())
            .headers(with_headers(whole));
        if let Some(key) = message.key().filter(|_| whole) {
            record = record.key(key);
        }
        if let Some(payload) = message.payload().filter(|_| whole) {
            record = record.payload(payload);
        }
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(Code::MessageSizeTooLarge), _)) if whole => {}
            Err((error, _)) => return Err(error::Producer::Refused(error).into()),
        }
    }
    Ok(())
}

fn step(step: &'static str) -> impl Fn(KafkaError) -> error::Producer {
    move |cause| error::Producer::Transaction { step, cause }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::OwnedMessage;
    use rdkafka::{ClientConfig, Timestamp};

    use super::*;
    use crate::dead_letter::Kind;

    /// More than librdkafka sends in one record.
    const TOO_LARGE: usize = 1_000_001;

    /// A producer that reaches no broker: what does not fit is refused before anything is sent.
    fn producer() -> BaseProducer<Context> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:1");
        let context = Context {
            errors: metrics::Metrics::default().producer("payments.dlq"),
        };
        BaseProducer::from_config_and_context(&config, context).expect("a producer")
    }

    #[test]
    fn a_letter_fits_whatever_is_too_large() {
        let producer = producer();
        let large = || Some(vec![b'x'; TOO_LARGE]);
        let (small, long) = (|| Some(b"small".to_vec()), "x".repeat(TOO_LARGE));
        let headers = OwnedHeaders::new().insert(Header {
            key: headers::CONTROL,
            value: Some(long.as_str()),
        });
        let cases = [
            ("nothing", small(), small(), None),
            ("its value", large(), small(), None),
            ("its key", small(), large(), None),
            ("its headers", small(), small(), Some(headers.clone())),
            ("all of it", large(), large(), Some(headers)),
        ];
        for (what, payload, key, headers) in cases {
            let topic = "payments".to_owned();
            let message = OwnedMessage::new(payload, key, topic, Timestamp::NotAvailable, 0, 7, headers);
            let with_headers = |own| letter_headers(&message, Kind::Deserialization, &long, own);
            let sent = send_original(&producer, "payments.dlq", &message, with_headers);
            assert!(sent.is_ok(), "{what}: {sent:?}");
        }
    }
}
