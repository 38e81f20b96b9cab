//! Owns the search for one decision that was made before anybody waited for it: first among the newest in the ring, then
//! in the tail of its partition of the topic.
//!
//! Comes after `decide` has waited in vain, which is so for a payment that is published again: the processor recognises
//! it and makes no second decision.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use sluice_kafka::config::Isolation;
use sluice_kafka::{context, error};
use sluice_proto::event::EventId;
use tokio::sync::oneshot;

use super::Shared;
use super::consume::{self, SMALL_QUEUE_KIB, SMALL_QUEUE_RECORDS};
use super::decode::{Entry, Reader};

/// Records at the end of a partition of the decisions that are looked through: a bound on what a call may cost. Markers of
/// transactions count.
pub const LOOK_BACK_RECORDS: i64 = 100_000;
/// How long a search may take.
pub const LOOK_BACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Searches that may run at a time; others wait, as long as their calls have time.
pub const MAX_LOOK_BACKS: usize = 4;
/// How long one poll waits.
const POLL_TIMEOUT: Duration = Duration::from_millis(50);

/// Which decision is searched for. There is at most one: in a partition the second payment of an event_id is not decided,
/// whatever its content.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The caller's tenant.
    pub tenant: Arc<str>,
    /// The payment.
    pub event_id: EventId,
    /// The payment's partition, which is the decision's too.
    pub partition: i32,
}

impl Wanted {
    fn is(&self, entry: &Entry) -> bool {
        entry.decision.event_id == self.event_id && *entry.decision.tenant == *self.tenant
    }
}

/// Searches the ring, then the topic. `None` where the decision is not there within the bounds, or Kafka does not answer:
/// what is known then is what was known before. Dropping the future ends the search soon.
pub async fn find(shared: &Arc<Shared>, wanted: Wanted) -> Option<Arc<Entry>> {
    if let Some(entry) = shared.router.find(wanted.partition, |entry| wanted.is(entry)) {
        return Some(entry);
    }
    let room = shared.look_backs.clone().acquire_owned().await.ok()?;
    let (answer, found) = oneshot::channel();
    let shared = shared.clone();
    tokio::task::spawn_blocking(move || {
        let _room = room;
        let searched = search(&shared, &wanted, &answer);
        let entry = searched.unwrap_or_else(|error| {
            tracing::warn!(%error, "a decision cannot be searched for");
            None
        });
        // A call whose time is up does not wait any more.
        drop(answer.send(entry));
    });
    found.await.ok().flatten().map(Arc::new)
}

/// Reads the partition from the bound to the ring. Blocks.
fn search(
    shared: &Shared,
    wanted: &Wanted,
    answer: &oneshot::Sender<Option<Entry>>,
) -> Result<Option<Entry>, error::Consumer> {
    let deadline = Instant::now() + LOOK_BACK_TIMEOUT;
    let source = &shared.source;
    let Ok(mut reader) = Reader::new(source.schema_id, source.registry.clone()) else {
        return Ok(None);
    };
    let mut config = source.kafka.reader(Isolation::ReadCommitted);
    config.set("queued.max.messages.kbytes", SMALL_QUEUE_KIB.to_string());
    config.set("queued.min.messages", SMALL_QUEUE_RECORDS.to_string());
    let consumer: BaseConsumer<context::Consumer> = config
        .create_with_context(context::Consumer)
        .map_err(error::Consumer::Create)?;
    let watermarks = consumer.fetch_watermarks(&source.topic, wanted.partition, LOOK_BACK_TIMEOUT);
    let (first, end) = watermarks.map_err(|cause| error::Consumer::Offsets {
        what: "watermarks",
        cause,
    })?;
    let from = first.max(end - LOOK_BACK_RECORDS);
    if from >= end {
        return Ok(None);
    }
    let mut partitions = TopicPartitionList::with_capacity(1);
    let assigned = partitions
        .add_partition_offset(&source.topic, wanted.partition, Offset::Offset(from))
        .and_then(|()| consumer.assign(&partitions));
    assigned.map_err(|cause| error::Consumer::Control { step: "assign", cause })?;

    let mut text = uuid::Uuid::encode_buffer();
    let id = wanted.event_id.uuid().hyphenated().encode_lower(&mut text).as_bytes();
    while Instant::now() < deadline && !answer.is_closed() {
        match consumer.poll(POLL_TIMEOUT) {
            Some(Ok(message)) => {
                // The id stands in the value as text, in any version of the schema: all others need not be decoded.
                let value = message.payload().unwrap_or_default();
                if value.windows(id.len()).any(|text| text == id)
                    && let Ok(entry) = consume::read(&mut reader, &message, &shared.draining)
                    && wanted.is(&entry)
                {
                    return Ok(Some(entry));
                }
                if message.offset() + 1 >= end {
                    break;
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) => break,
            Some(Err(cause)) => return Err(error::Consumer::Poll(cause)),
            None => {}
        }
    }
    Ok(None)
}
