//! Owns the model of Kafka: logs with open, committed and aborted records, the transaction coordinator, and the group.
//!
//! It answers requests as a broker does that speaks to a client of the old transaction protocol (librdkafka's): one producer
//! epoch serves many transactions, and nothing in a request to end one says which. [`super::wire`] decides when a request
//! arrives, if it does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use rdkafka::message::OwnedHeaders;
use sluice_kafka::config::Isolation;
use sluice_kafka::fail;

use super::group::{Group, Membership};

/// A topic of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    Payments,
    Decisions,
    DeadLetters,
    Late,
    RuleSets,
}

/// A record without its place.
pub(super) struct Stored {
    pub(super) key: Option<Vec<u8>>,
    pub(super) payload: Option<Vec<u8>>,
    pub(super) headers: Option<OwnedHeaders>,
    pub(super) time_ms: i64,
}

impl fmt::Debug for Stored {
    /// Short, and the same in each run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.payload.as_ref().map_or(0, Vec::len))
    }
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    Committed,
    Aborted,
}

/// One offset of a log: a record, or the marker of a transaction's end.
#[derive(Debug)]
pub(super) struct Entry {
    producer: Option<usize>,
    pub(super) record: Option<Rc<Stored>>,
    pub(super) fate: Fate,
}

/// What a partition knows of a producer.
#[derive(Clone, Copy, Debug, Default)]
struct Writer {
    epoch: i16,
    next: u32,
    /// The first offset of the open transaction.
    open: Option<usize>,
}

/// A partition of a topic.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) entries: Vec<Entry>,
    writers: BTreeMap<usize, Writer>,
    /// How far a new leader gives entries away, while it does not know yet how many of them the other replicas have.
    unsure: Option<usize>,
}

impl Log {
    /// The end as a reader of this isolation sees it.
    pub(super) fn end(&self, isolation: Isolation) -> usize {
        let open = self.writers.values().filter_map(|writer| writer.open).min();
        match isolation {
            Isolation::ReadCommitted => open.unwrap_or(self.entries.len()),
            Isolation::ReadUncommitted => self.entries.len(),
        }
    }

    /// The end that a fetch finds.
    pub(super) fn given(&self, isolation: Isolation) -> usize {
        self.end(isolation).min(self.unsure.unwrap_or(usize::MAX))
    }

    /// The log gets a new leader, which does not know of the newest entries yet that other replicas have them.
    pub(super) fn elect(&mut self, unknown: usize) {
        self.unsure = Some(self.entries.len().saturating_sub(unknown));
    }

    /// The leader knows.
    pub(super) fn agree(&mut self) {
        self.unsure = None;
    }

    fn mark(&mut self, producer: usize, epoch: i16, commit: bool) {
        let writer = self.writers.entry(producer).or_default();
        if epoch > writer.epoch {
            (writer.epoch, writer.next) = (epoch, 0);
        }
        let fate = if commit { Fate::Committed } else { Fate::Aborted };
        if let Some(first) = writer.open.take() {
            let open = |entry: &&mut Entry| entry.producer == Some(producer) && entry.fate == Fate::Open;
            self.entries[first..]
                .iter_mut()
                .filter(open)
                .for_each(|entry| entry.fate = fate);
        }
        self.entries.push(Entry {
            producer: Some(producer),
            record: None,
            fate,
        });
    }
}

/// Where a transaction stands at its coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Empty,
    Ongoing,
    /// The markers are on their way.
    Ending {
        commit: bool,
    },
    Ended {
        commit: bool,
    },
}

/// A transactional id at its coordinator.
#[derive(Debug)]
struct Transaction {
    epoch: i16,
    stage: Stage,
    /// Counts transactions, for their timeouts.
    count: u64,
    parts: BTreeSet<(Topic, i32)>,
    group: bool,
    markers: usize,
}

/// What a client asks. `id` is the number of a transactional id.
#[derive(Debug)]
pub(super) enum Request {
    Init {
        id: usize,
    },
    Add {
        id: usize,
        epoch: i16,
        parts: Vec<(Topic, i32)>,
        group: bool,
    },
    Produce {
        id: usize,
        epoch: i16,
        to: (Topic, i32),
        first: u32,
        records: Rc<[Rc<Stored>]>,
    },
    Offsets {
        id: usize,
        epoch: i16,
        membership: Membership,
        offsets: Vec<(i32, i64)>,
    },
    End {
        id: usize,
        epoch: i16,
        commit: bool,
    },
    Committed {
        parts: Vec<i32>,
    },
    CommitEarly {
        offsets: Vec<(i32, i64)>,
    },
    Ends {
        of: (Topic, i32),
        isolation: Isolation,
    },
}

/// What the broker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Done,
    Epoch(i16),
    Offsets(BTreeMap<i32, i64>),
    Ends(i64, i64),
    /// The transaction before is not over yet: ask again.
    Concurrent,
    /// An open transaction may still change the offsets, or the leader does not know the end yet: ask again.
    Unstable,
    /// For ever.
    Fenced,
    /// The transaction is lost.
    Refused,
}

/// What happens in Kafka by itself, later.
#[derive(Clone, Copy, Debug)]
pub(super) enum Later {
    Marker {
        id: usize,
        epoch: i16,
        commit: bool,
        /// `None` for the group's offsets.
        to: Option<(Topic, i32)>,
    },
    Timeout {
        id: usize,
        count: u64,
    },
}

/// Kafka.
#[derive(Debug)]
pub(super) struct Kafka {
    logs: BTreeMap<(Topic, i32), Log>,
    transactions: BTreeMap<usize, Transaction>,
    pub(super) group: Group,
    /// What is to happen: the caller says when.
    pub(super) later: Vec<Later>,
}

impl Kafka {
    pub(super) fn new(partitions: i32) -> Self {
        Self {
            logs: BTreeMap::new(),
            transactions: BTreeMap::new(),
            group: Group::new(partitions),
            later: Vec::new(),
        }
    }

    pub(super) fn log(&mut self, topic: Topic, part: i32) -> &mut Log {
        self.logs.entry((topic, part)).or_default()
    }

    /// Appends a record without a transaction. Gives its offset.
    pub(super) fn append(&mut self, topic: Topic, part: i32, record: Rc<Stored>) -> i64 {
        let log = self.log(topic, part);
        log.entries.push(Entry {
            producer: None,
            record: Some(record),
            fate: Fate::Committed,
        });
        log.entries.len() as i64 - 1
    }

    /// Whether no transaction is open or about to end.
    pub(super) fn is_quiet(&self) -> bool {
        let over = |it: &Transaction| matches!(it.stage, Stage::Empty | Stage::Ended { .. });
        self.transactions.values().all(over) && self.group.pending.is_empty()
    }

    /// Up to where the group's offset is committed, or certain to be.
    pub(super) fn decided(&self, part: i32) -> i64 {
        let committed = self.group.committed.get(&part).copied().unwrap_or(0);
        let certain = self.group.pending.iter().filter_map(|(id, offsets)| {
            let stage = self.transactions.get(id)?.stage;
            matches!(stage, Stage::Ending { commit: true }).then(|| offsets.get(&part).copied())?
        });
        certain.max().unwrap_or(0).max(committed)
    }

    pub(super) fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Init { id } => self.init(id),
            Request::Add {
                id,
                epoch,
                parts,
                group,
            } => self.add(id, epoch, parts, group),
            Request::Produce {
                id,
                epoch,
                to,
                first,
                records,
            } => self.produce(id, epoch, to, first, &records),
            Request::Offsets {
                id,
                epoch,
                membership,
                offsets,
            } => self.offsets(id, epoch, membership, &offsets),
            Request::End { id, epoch, commit } => self.end(id, epoch, commit),
            Request::Committed { parts } => self.committed(&parts),
            Request::CommitEarly { offsets } => {
                self.group.committed.extend(offsets);
                Reply::Done
            }
            Request::Ends {
                of: (topic, part),
                isolation,
            } => match self.log(topic, part) {
                Log { unsure: Some(_), .. } => Reply::Unstable,
                log => Reply::Ends(0, log.end(isolation) as i64),
            },
        }
    }

    fn init(&mut self, id: usize) -> Reply {
        let transaction = self.transactions.entry(id).or_insert(Transaction {
            epoch: -1,
            stage: Stage::Empty,
            count: 0,
            parts: BTreeSet::new(),
            group: false,
            markers: 0,
        });
        match transaction.stage {
            Stage::Ongoing => {
                transaction.epoch += 1;
                self.begin_end(id, false);
                Reply::Concurrent
            }
            Stage::Ending { .. } => Reply::Concurrent,
            Stage::Empty | Stage::Ended { .. } => {
                transaction.epoch += 1;
                transaction.stage = Stage::Empty;
                Reply::Epoch(transaction.epoch)
            }
        }
    }

    /// The transaction, unless the producer is not its newest.
    fn current(&mut self, id: usize, epoch: i16) -> Result<&mut Transaction, Reply> {
        let transaction = self.transactions.get_mut(&id).ok_or(Reply::Refused)?;
        if transaction.epoch == epoch {
            Ok(transaction)
        } else {
            Err(Reply::Fenced)
        }
    }

    fn add(&mut self, id: usize, epoch: i16, parts: Vec<(Topic, i32)>, group: bool) -> Reply {
        let transaction = match self.current(id, epoch) {
            Ok(transaction) => transaction,
            Err(reply) => return reply,
        };
        match transaction.stage {
            Stage::Ending { .. } => return Reply::Concurrent,
            Stage::Empty | Stage::Ended { .. } => {
                transaction.stage = Stage::Ongoing;
                transaction.count += 1;
                (transaction.parts, transaction.group) = (BTreeSet::new(), false);
                let count = transaction.count;
                self.later.push(Later::Timeout { id, count });
            }
            Stage::Ongoing => {}
        }
        let Ok(transaction) = self.current(id, epoch) else {
            return Reply::Fenced;
        };
        transaction.parts.extend(parts);
        transaction.group |= group;
        Reply::Done
    }

    fn produce(
        &mut self,
        id: usize,
        epoch: i16,
        (topic, part): (Topic, i32),
        first: u32,
        records: &[Rc<Stored>],
    ) -> Reply {
        let belongs = self
            .transactions
            .get(&id)
            .is_some_and(|it| it.epoch == epoch && it.stage == Stage::Ongoing && it.parts.contains(&(topic, part)));
        let log = self.log(topic, part);
        let writer = log.writers.entry(id).or_default();
        if epoch < writer.epoch {
            return Reply::Fenced;
        }
        let next = if epoch > writer.epoch { 0 } else { writer.next };
        if first < next {
            // It was there before: the broker knows its number.
            return Reply::Done;
        }
        // A partition asks the coordinator before it lets a transaction begin.
        if first > next || (writer.open.is_none() && !belongs) {
            return Reply::Refused;
        }
        writer.open.get_or_insert(log.entries.len());
        (writer.epoch, writer.next) = (epoch, next + records.len() as u32);
        log.entries.extend(records.iter().map(|record| Entry {
            producer: Some(id),
            record: Some(record.clone()),
            fate: Fate::Open,
        }));
        Reply::Done
    }

    fn offsets(&mut self, id: usize, epoch: i16, membership: Membership, offsets: &[(i32, i64)]) -> Reply {
        match self.current(id, epoch) {
            Ok(transaction) if transaction.stage == Stage::Ongoing && transaction.group => {}
            Ok(_) => return Reply::Refused,
            Err(reply) => return reply,
        }
        if fail::safeguard("generation") && !self.group.holds(membership) {
            return Reply::Refused;
        }
        self.group.offer(id, offsets);
        Reply::Done
    }

    fn end(&mut self, id: usize, epoch: i16, commit: bool) -> Reply {
        let stage = match self.current(id, epoch) {
            Ok(transaction) => transaction.stage,
            Err(reply) => return reply,
        };
        match stage {
            // Whichever transaction is open: the request does not say which it means.
            Stage::Ongoing => {
                self.begin_end(id, commit);
                Reply::Done
            }
            Stage::Ending { commit: same } if same == commit => Reply::Concurrent,
            Stage::Ended { commit: same } if same == commit => Reply::Done,
            Stage::Empty | Stage::Ending { .. } | Stage::Ended { .. } => Reply::Refused,
        }
    }

    fn begin_end(&mut self, id: usize, commit: bool) {
        let Some(transaction) = self.transactions.get_mut(&id) else {
            return;
        };
        transaction.stage = Stage::Ending { commit };
        let epoch = transaction.epoch;
        let group = transaction.group.then_some(None);
        let parts = transaction.parts.iter().map(|part| Some(*part));
        let markers: Vec<Later> = parts
            .chain(group)
            .map(|to| Later::Marker { id, epoch, commit, to })
            .collect();
        transaction.markers = markers.len();
        self.later.extend(markers);
    }

    /// Something that was to happen later happens.
    pub(super) fn happen(&mut self, later: Later) {
        match later {
            Later::Marker { id, epoch, commit, to } => {
                match to {
                    Some((topic, part)) => self.log(topic, part).mark(id, epoch, commit),
                    None => self.group.end(id, commit),
                }
                let Some(transaction) = self.transactions.get_mut(&id) else {
                    return;
                };
                transaction.markers -= 1;
                if transaction.markers == 0 {
                    transaction.stage = Stage::Ended { commit };
                }
            }
            Later::Timeout { id, count } => {
                let overdue = self.transactions.get_mut(&id);
                if let Some(transaction) = overdue.filter(|it| it.count == count && it.stage == Stage::Ongoing) {
                    transaction.epoch += 1;
                    self.begin_end(id, false);
                }
            }
        }
    }

    fn committed(&self, parts: &[i32]) -> Reply {
        let open = |part: &i32| self.group.pending.values().any(|offsets| offsets.contains_key(part));
        if fail::safeguard("stable-offsets") && parts.iter().any(open) {
            return Reply::Unstable;
        }
        let known = |part: &i32| Some((*part, *self.group.committed.get(part)?));
        Reply::Offsets(parts.iter().filter_map(known).collect())
    }
}
