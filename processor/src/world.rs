//! Owns what a lane and its takeover ask of the outside, as traits: the clock, the group, the topics, the ledger, the
//! transaction and the snapshots.
//!
//! [`crate::servers`] answers with Kafka and Postgres. Whatever waits asks for the time here too, so that a model of both can
//! take their place under the same code. Everything is dispatched statically.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, OwnedHeaders, OwnedMessage};
use sluice_kafka::config::Isolation;
use sluice_kafka::error;
use uuid::Uuid;

use crate::batch::Output;
use crate::consume::Assignment;
use crate::lane::Settings;
use crate::ledger::{self, Compensated, Content, Key, Owner, Refilled, Rows};
use crate::publish;
use crate::replay::Replayed;
use crate::rule_archive;
use crate::rules::RuleSet;
use crate::snapshot::Due;
use crate::state::State;

/// A record as it was read.
pub(crate) trait Record: Message {
    /// A copy of all its headers, also of those whose names cannot be read.
    fn detached_headers(&self) -> Option<OwnedHeaders>;
}

impl Record for BorrowedMessage<'_> {
    fn detached_headers(&self) -> Option<OwnedHeaders> {
        self.headers().map(BorrowedHeaders::detach)
    }
}

impl Record for OwnedMessage {
    fn detached_headers(&self) -> Option<OwnedHeaders> {
        self.headers().cloned()
    }
}

/// A consumer of one topic that is told where to read.
pub(crate) trait Reader {
    /// A record, as long as the reader lives.
    type Record<'r>: Record
    where
        Self: 'r;

    /// Reads these partitions from these offsets on, and no others.
    ///
    /// # Errors
    /// When the client refuses, which is for good.
    fn read_from(&self, offsets: impl IntoIterator<Item = (i32, i64)>) -> Result<(), error::Consumer>;

    /// Reads no more of a partition.
    ///
    /// # Errors
    /// As [`Reader::read_from`].
    fn pause(&self, partition: i32) -> Result<(), error::Consumer>;

    /// The next record, or an error, or nothing within the wait. A reader without a group gives
    /// [`KafkaError::PartitionEOF`] where a partition ends.
    fn poll(&self, wait: Duration) -> Option<Result<Self::Record<'_>, KafkaError>>;

    /// The first offset of a partition, and the one after the last that can be read.
    ///
    /// # Errors
    /// When no broker answers in time.
    fn ends(&self, partition: i32, timeout: Duration) -> Result<(i64, i64), error::Consumer>;
}

/// The lane's place in its group. Polling serves the group; see [`crate::consume`].
pub(crate) trait Member: Reader {
    /// The proof of the place, which goes with the offsets.
    type Membership;

    /// The assignment as of the last poll.
    fn assignment(&self) -> Assignment<Self::Membership>;

    /// Whether the assignment is still the one with this count.
    fn is_current(&self, change: u64) -> bool;

    /// The group's offsets, once no open transaction can change them any more. Partitions without one are left out.
    ///
    /// # Errors
    /// When no broker answers in time.
    fn committed(&self, partitions: &[i32], timeout: Duration) -> Result<BTreeMap<i32, i64>, error::Consumer>;

    /// What a lane never does: commits offsets before anything is decided. Only where the safeguard `offsets-last` is
    /// taken out.
    ///
    /// # Errors
    /// When the group refuses.
    fn commit_early(&self, records: &[Self::Record<'_>]) -> Result<(), error::Consumer>;

    /// The offset after a partition's last record as it was known a few seconds ago, if it was. Nobody is asked for it.
    fn known_end(&self, partition: i32) -> Option<i64>;

    /// Says in the log that polling goes on after an error, not too often.
    fn warn(&self, error: &error::Consumer);
}

/// The lane's connection to the ledger; see [`crate::ledger`].
pub(crate) trait Books {
    /// A batch that is being prepared.
    type Preparing;

    /// Takes ownership of these partitions: counts their epochs up, so that any other lane's writes change nothing from
    /// here on, and makes sure that there is a place for their rows.
    fn bump_epochs(&mut self, parts: &[i32], instance: &str) -> Result<Vec<Owner>, ledger::Error>;

    /// Removes every row at or above an owner's watermark, records that, and sets the watermark; all or nothing.
    fn compensate(&mut self, owners: &[Owner], reason: &str) -> Result<Vec<Compensated>, ledger::Error>;

    /// Begins to prepare a batch: to set the watermarks that the previous batch left, which proves the ownership, and to
    /// write the rows; all or nothing.
    fn prepare(&mut self, owners: Vec<Owner>, rows: Rows) -> Result<Self::Preparing, ledger::Error>;

    /// Waits until a batch is prepared, or is known not to be. Gives the rows back, for their memory.
    fn finish(&mut self, preparing: Self::Preparing) -> Result<Rows, ledger::Error>;

    /// Sets watermarks when there is no batch for them to travel with.
    fn flush(&mut self, owners: &[Owner]) -> Result<(), ledger::Error>;

    /// Makes sure that the ledger still has these epochs and watermarks. A server that took over from another may have
    /// lost them, and the rows with them.
    fn confirm(&mut self, owners: &[Owner]) -> Result<(), ledger::Error>;

    /// The newest row below this offset: its own, and the payment's event_id.
    fn newest(&mut self, part: i32, below: i64) -> Result<Option<(i64, Uuid)>, ledger::Error>;

    /// Whether there is a row for this offset.
    fn holds(&mut self, part: i32, off: i64) -> Result<bool, ledger::Error>;

    /// Writes rows of committed decisions, unless they are there, and sets the watermark, which proves the ownership; all
    /// or nothing. Says what was missing.
    fn refill(&mut self, owner: Owner, rows: &mut Rows) -> Result<Option<Refilled>, ledger::Error>;

    /// Which of these payments are in the ledger, and when they occurred, in microseconds since the Unix epoch.
    fn known(&mut self, keys: &[Key]) -> Result<HashMap<Key, Content>, ledger::Error>;
}

/// The lane's transactional producer; see [`crate::publish`].
pub(crate) trait Transactions {
    /// See [`Member::Membership`].
    type Membership;

    /// Opens the transaction and hands it all that is written for a batch. Deliveries go on in the background.
    fn send<R: Record>(&mut self, outputs: &[Output<'_, R>]) -> Result<(), publish::Error>;

    /// Waits until Kafka acknowledged all that was sent.
    fn settle(&mut self) -> Result<(), publish::Error>;

    /// Proves that this lane's place in its group is the current one, with a transaction that is to be aborted. Offsets of
    /// the payments are not in it.
    fn prove(&mut self, partitions: &[i32], membership: &Self::Membership) -> Result<(), publish::Error>;

    /// Adds consumed offsets to the transaction. Kafka takes them from a current member of the group and from no other.
    fn send_offsets(&mut self, ends: &BTreeMap<i32, i64>, membership: &Self::Membership) -> Result<(), publish::Error>;

    /// The commit point.
    fn commit(&mut self) -> Result<(), publish::Error>;

    /// Ends the open transaction as if it had never been.
    fn abort(&mut self) -> Result<(), publish::Error>;

    /// Counts an error on the topic that matters most.
    fn failed(&self, error: &publish::Error);
}

/// All of it.
pub(crate) trait World {
    /// See [`Member::Membership`].
    type Membership;
    /// The lane's consumer.
    type Member: Member<Membership = Self::Membership>;
    /// A consumer without a group.
    type Reader: Reader;
    /// The lane's connection to the ledger.
    type Books: Books;
    /// The lane's producer.
    type Transactions: Transactions<Membership = Self::Membership>;

    /// The time, for whatever waits.
    fn now(&self) -> Instant;

    /// The time of day, in microseconds since the Unix epoch. Nothing but the length of a batch may depend on it.
    fn unix_us(&self) -> i64;

    /// Joins the group. Nothing is fetched before [`Reader::read_from`].
    ///
    /// # Errors
    /// When the consumer cannot be created or the topic not be subscribed to.
    fn join(&self, settings: &Settings) -> Result<Self::Member, error::Consumer>;

    /// A reader of a topic.
    ///
    /// # Errors
    /// When the consumer cannot be created.
    fn reader(&self, topic: &str, isolation: Isolation) -> Result<Self::Reader, error::Consumer>;

    /// Connects to the ledger.
    ///
    /// # Errors
    /// When Postgres does not take the connection.
    fn books(&self, settings: &Settings) -> Result<Self::Books, ledger::Error>;

    /// A new producer, which fences every earlier one of this lane and ends what it left open.
    ///
    /// # Errors
    /// When Kafka does not let it begin.
    fn transactions(&self, settings: &Settings, lane: u16) -> Result<Self::Transactions, publish::Error>;

    /// The rule set that was put in force last at or before an offset of a partition; `None` where none was.
    ///
    /// # Errors
    /// When it cannot be read.
    fn rules_at(
        &self,
        settings: &Settings,
        partition: i32,
        offset: i64,
    ) -> Result<Option<Arc<RuleSet>>, rule_archive::Error>;

    /// When the first snapshot is due of a partition that was just taken over.
    fn due(&self, partition: i32, partitions: usize) -> Due;

    /// Has a snapshot made of a merged state, if it is time. `next` is the offset after the last merged record.
    fn offer(&self, due: &mut Due, partition: i32, next: i64, state: &State);

    /// Leaves a last snapshot for the process that comes next.
    fn leave(&self, due: &Due, partition: i32, next: i64, state: &State);

    /// The newest usable state of each of these partitions that ends within the offsets that come with it. Partitions of
    /// which there is none are left out.
    fn restore(&self, settings: &Settings, wanted: &BTreeMap<i32, (i64, i64)>) -> BTreeMap<i32, Replayed>;
}
