//! Owns the named cursors: the consumer group in which each one is stored, and that it has one subscriber.
//!
//! A cursor is the group `cursor/TENANT/NAME` (behind the installation's prefix), so that Kafka's own tools see its lag and
//! can reset it. Its subscriber is the group's one static member: whoever joins under the same `group.instance.id` replaces
//! the member before, and the broker refuses the older one's commits and heartbeats from that moment on, on whatever
//! gateway it is. The high-watermark of each partition is stored in the commit's metadata.
//!
//! Comes before `start`, which begins at the stored position; `subscribe` hands commits over. Each cursor has a thread that
//! may block, since membership and commits are calls that do.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use sluice_kafka::error;
use sluice_proto::pb::ErrorCode;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::cursor::{Cursor, NOTHING};
use super::{Source, start};
use crate::status::Failure;

/// Cursors that one gateway serves at a time. Each has a Kafka client of its own, with its threads.
pub const MAX_CURSORS: usize = 256;
/// Longest name of a cursor, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// How soon the group forgets a subscriber whose gateway died. Nobody waits for it: a newcomer replaces the member at once.
/// A twelfth of it is how often a subscriber learns that it was replaced by another gateway's.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(6);
/// How long joining the group may take; a broker lets a group's first member wait for others, for 3 s unless configured.
pub const JOIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long reading the stored position may take.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the member is polled, which keeps it in the group and notices that it was replaced.
pub const POLL_EVERY: Duration = Duration::from_millis(100);
/// What a cursor's member is called in its group.
const MEMBER: &str = "subscriber";
/// What the quota of cursors is called on the wire.
const QUOTA: &str = "gateway.cursors";

/// The cursors that this gateway serves.
pub struct Cursors {
    source: Source,
    room: Arc<Semaphore>,
    /// The newest subscriber of each group, which an older one on this gateway need not learn from the broker.
    newest: Mutex<HashMap<Arc<str>, (u64, CancellationToken)>>,
    next: AtomicU64,
}

/// What became of a cursor.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The newest position that is stored.
    pub committed: Option<Cursor>,
    /// Why the cursor is no longer this subscription's.
    pub lost: Option<Failure>,
}

/// A cursor, as long as a subscription has it.
#[derive(Debug)]
pub struct Held {
    /// The position that was stored when it was taken.
    pub stored: Option<Cursor>,
    commits: watch::Sender<Option<Cursor>>,
    state: watch::Receiver<State>,
}

impl Held {
    /// Stores a position. One that comes before the last is stored replaces it.
    pub fn commit(&self, cursor: Cursor) {
        self.commits.send_replace(Some(cursor));
    }

    /// The next change of what became of it. Cancel-safe.
    pub async fn changed(&mut self) -> State {
        if self.state.changed().await.is_err() {
            let lost = Some(start::unavailable());
            return State { committed: None, lost };
        }
        self.state.borrow_and_update().clone()
    }
}

impl Cursors {
    /// No cursors yet.
    pub fn new(source: Source) -> Self {
        Self {
            source,
            room: Arc::new(Semaphore::new(MAX_CURSORS)),
            newest: Mutex::default(),
            next: AtomicU64::new(0),
        }
    }

    /// Takes a tenant's cursor over from whoever has it.
    ///
    /// # Errors
    /// `REQUEST_INVALID` for a name that is none, `QUOTA_EXCEEDED` where this gateway has too many, `FENCED`,
    /// `BROKER_UNAVAILABLE`.
    pub async fn take(self: &Arc<Self>, tenant: &str, name: &str) -> Result<Held, Failure> {
        check_name(name)?;
        let group: Arc<str> = format!("{}cursor/{tenant}/{name}", self.source.kafka.topic_prefix).into();
        let room = self.room.clone().try_acquire_owned().map_err(|_| {
            let remedy = "subscribe at another gateway";
            Failure::new(
                ErrorCode::QuotaExceeded,
                "this gateway has as many cursors as it serves",
                remedy,
            )
            .quota(QUOTA)
            .retry_after(SESSION_TIMEOUT)
            .fact("limit", MAX_CURSORS)
        })?;
        let (commits, asked) = watch::channel(None);
        let (told, state) = watch::channel(State::default());
        let (opened, stored) = oneshot::channel();
        let keeper = Keeper {
            registered: Registered::new(self.clone(), group),
            asked,
            told,
            _room: room,
        };
        tokio::task::spawn_blocking(move || keeper.run(opened));
        let stored = stored.await.unwrap_or_else(|_| Err(start::unavailable()))?;
        Ok(Held { stored, commits, state })
    }
}

fn check_name(name: &str) -> Result<(), Failure> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.len() <= MAX_NAME_BYTES && name.bytes().all(legal) {
        return Ok(());
    }
    let reason = format!("is not 1 to {MAX_NAME_BYTES} of a-z A-Z 0-9 . _ -");
    Err(Failure::new(ErrorCode::RequestInvalid, reason, "choose another name").field("open.cursor"))
}

fn taken_over() -> Failure {
    Failure::new(
        ErrorCode::Fenced,
        "another subscription took the cursor over",
        "run one subscriber for each cursor, or give each its own",
    )
}

/// A group's place among this gateway's cursors.
struct Registered {
    cursors: Arc<Cursors>,
    group: Arc<str>,
    number: u64,
    replaced: CancellationToken,
}

impl Registered {
    fn new(cursors: Arc<Cursors>, group: Arc<str>) -> Self {
        let number = cursors.next.fetch_add(1, Ordering::Relaxed);
        let replaced = CancellationToken::new();
        let before = cursors.newest.lock().insert(group.clone(), (number, replaced.clone()));
        if let Some((_, older)) = before {
            older.cancel();
        }
        Self {
            cursors,
            group,
            number,
            replaced,
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut newest = self.cursors.newest.lock();
        if newest
            .get(&self.group)
            .is_some_and(|(number, _)| *number == self.number)
        {
            newest.remove(&self.group);
        }
    }
}

/// The context of a cursor's member: it holds its partitions and reads none of them.
#[derive(Default)]
struct Member {
    /// How often partitions were given, and taken away again.
    given: AtomicUsize,
    taken: AtomicUsize,
}

impl ClientContext for Member {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "member of a cursor's group");
    }
}

impl ConsumerContext for Member {
    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => {
                if let Err(error) = consumer.pause(partitions) {
                    tracing::warn!(%error, "a cursor's partitions cannot be paused");
                }
                self.given.fetch_add(1, Ordering::AcqRel);
            }
            Rebalance::Revoke(_) | Rebalance::Error(_) => {
                self.taken.fetch_add(1, Ordering::AcqRel);
            }
        }
    }
}

/// The keeper of one cursor: the thread that is the group's member.
struct Keeper {
    registered: Registered,
    asked: watch::Receiver<Option<Cursor>>,
    told: watch::Sender<State>,
    _room: OwnedSemaphorePermit,
}

type Stored = Result<Option<Cursor>, Failure>;

impl Keeper {
    fn run(mut self, opened: oneshot::Sender<Stored>) {
        let joined = self.join().and_then(|consumer| {
            let stored = self.stored(&consumer).map_err(|error| unavailable(&error))?;
            Ok((consumer, stored))
        });
        match joined {
            Ok((consumer, stored)) => {
                if opened.send(Ok(stored)).is_ok() {
                    self.keep(&consumer);
                }
            }
            // Where the subscription is gone, nobody needs to know.
            Err(failure) => drop(opened.send(Err(failure))),
        }
    }

    fn source(&self) -> &Source {
        &self.registered.cursors.source
    }

    /// Joins the group, which fences the member before.
    fn join(&self) -> Result<BaseConsumer<Member>, Failure> {
        let source = self.source();
        let mut config = source.kafka.consumer(&self.registered.group, SESSION_TIMEOUT);
        config.set("group.instance.id", MEMBER);
        // The member reads nothing, and may have fetched a little before it was paused.
        config.set("queued.max.messages.kbytes", "64");
        config.set("queued.min.messages", "1");
        let failed = |cause| {
            unavailable(&error::Consumer::Control {
                step: "subscribe",
                cause,
            })
        };
        let consumer: BaseConsumer<Member> = config.create_with_context(Member::default()).map_err(failed)?;
        consumer.subscribe(&[&source.topic]).map_err(failed)?;
        let deadline = Instant::now() + JOIN_TIMEOUT;
        while consumer.context().given.load(Ordering::Acquire) == 0 {
            if self.is_replaced(&consumer) {
                return Err(taken_over());
            }
            if Instant::now() > deadline {
                tracing::warn!("a cursor's group cannot be joined");
                return Err(start::unavailable());
            }
            if let Some(Err(error)) = consumer.poll(POLL_EVERY) {
                tracing::debug!(%error, "joining a cursor's group");
            }
        }
        Ok(consumer)
    }

    fn is_replaced(&self, consumer: &BaseConsumer<Member>) -> bool {
        self.registered.replaced.is_cancelled() || consumer.client().fatal_error().is_some()
    }

    /// The stored position. A partition without one, where others have theirs, begins with its oldest decision.
    fn stored(&self, consumer: &BaseConsumer<Member>) -> Result<Option<Cursor>, error::Consumer> {
        let source = self.source();
        let partitions = i32::try_from(source.partitions).unwrap_or(i32::MAX);
        let mut asked = TopicPartitionList::with_capacity(source.partitions);
        asked.add_partition_range(&source.topic, 0, partitions - 1);
        let found = consumer.committed_offsets(asked, READ_TIMEOUT);
        let found = found.map_err(|cause| error::Consumer::Offsets {
            what: "a cursor",
            cause,
        })?;
        let mut cursor = Cursor::new(vec![0; source.partitions]);
        let mut any = false;
        for (partition, (next, high)) in (0..).zip(cursor.next.iter_mut().zip(&mut cursor.high)) {
            let Some(element) = found.find_partition(&source.topic, partition) else {
                continue;
            };
            if let Offset::Offset(offset) = element.offset() {
                any = true;
                *next = offset;
                // Kafka's own tools reset the offset and leave no metadata: then nothing counts as seen.
                *high = element.metadata().parse().unwrap_or(NOTHING).max(NOTHING);
            }
        }
        Ok(any.then_some(cursor))
    }

    /// Commits what is asked for, until the subscription or the cursor is gone.
    fn keep(&mut self, consumer: &BaseConsumer<Member>) {
        let runtime = Handle::current();
        let given = consumer.context().given.load(Ordering::Acquire);
        let mut waiting = None;
        loop {
            let asked = runtime.block_on(async { tokio::time::timeout(POLL_EVERY, self.asked.changed()).await });
            let last = matches!(asked, Ok(Err(_)));
            if matches!(asked, Ok(Ok(()))) {
                waiting = self.asked.borrow_and_update().clone();
            }
            // Paused, so that there is nothing but errors to receive; a fatal one is seen below.
            if let Some(Err(error)) = consumer.poll(Duration::ZERO) {
                tracing::debug!(%error, "member of a cursor's group");
            }
            let lost = if self.is_replaced(consumer) {
                Some(taken_over())
            } else {
                let member = consumer.context();
                let left = member.taken.load(Ordering::Acquire) > 0 || member.given.load(Ordering::Acquire) > given;
                left.then(start::unavailable)
            };
            let lost = lost.or_else(|| {
                waiting
                    .take()
                    .and_then(|cursor| self.commit(consumer, cursor, &mut waiting))
            });
            if lost.is_some() {
                self.told.send_modify(|state| state.lost = lost);
                return;
            }
            if last {
                return;
            }
        }
    }

    /// Commits; what may succeed later is left waiting. `Some` where the cursor is lost.
    fn commit(&self, consumer: &BaseConsumer<Member>, cursor: Cursor, waiting: &mut Option<Cursor>) -> Option<Failure> {
        match self.write(consumer, &cursor) {
            Ok(()) => {
                self.told.send_modify(|state| state.committed = Some(cursor));
                None
            }
            Err(error) => match error::code(&error) {
                Some(Code::FencedInstanceId | Code::UnknownMemberId | Code::IllegalGeneration | Code::Fatal) => {
                    Some(taken_over())
                }
                _ => {
                    tracing::warn!(%error, "a cursor cannot be stored yet");
                    *waiting = Some(cursor);
                    None
                }
            },
        }
    }

    fn write(&self, consumer: &BaseConsumer<Member>, cursor: &Cursor) -> Result<(), KafkaError> {
        let topic = &self.source().topic;
        let mut offsets = TopicPartitionList::with_capacity(cursor.next.len());
        for (partition, (next, high)) in (0..).zip(cursor.next.iter().zip(&cursor.high)) {
            let mut element = offsets.add_partition(topic, partition);
            element.set_offset(Offset::Offset(*next))?;
            element.set_metadata(high.to_string());
        }
        consumer.commit(&offsets, CommitMode::Sync)
    }
}

fn unavailable(error: &error::Consumer) -> Failure {
    tracing::warn!(%error, "a cursor cannot be served");
    start::unavailable()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for name in ["a", "risk-desk.eu_1", &"x".repeat(MAX_NAME_BYTES)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["a/b", "a b", "é", &"x".repeat(MAX_NAME_BYTES + 1)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
