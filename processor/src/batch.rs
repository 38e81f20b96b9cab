//! Owns one batch between deciding and merging: what is to be written for each record, and where the records end.
//!
//! Made by the lane out of what [`crate::decode`], [`crate::state`] and [`crate::rules`] say; written by
//! [`crate::ledger`] and [`crate::publish`].

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use sluice_kafka::telemetry::Span;
use sluice_proto::decision::Decision;
use sluice_proto::features::AccountFeatures;

use crate::dead_letter::Kind;
use crate::ledger::{Content, Key, Rows};
use crate::rules::Aside;

/// What is written for one record.
#[derive(Debug)]
pub(crate) enum Written {
    /// A decision, and where it is late a copy of the record too.
    Decision(Decision),
    /// A rule set, in force for what follows: a copy of the record.
    RuleSet,
    /// A dead letter.
    Letter { kind: Kind, error: String },
}

/// One record and what is written for it.
#[derive(Debug)]
pub(crate) struct Output<'m, R> {
    pub(crate) message: &'m R,
    pub(crate) traceparent: Option<String>,
    pub(crate) span: Option<Span>,
    pub(crate) written: Written,
    /// What goes to the topic of features with a decision, where that is switched on.
    pub(crate) features: Option<Box<AccountFeatures>>,
}

impl<'m, R> Output<'m, R> {
    /// Something of which no trace is kept.
    pub(crate) fn untraced(message: &'m R, written: Written) -> Self {
        Self {
            message,
            traceparent: None,
            span: None,
            written,
            features: None,
        }
    }
}

/// What a batch of records comes to.
#[derive(Debug)]
pub(crate) struct Batch<'m, R> {
    /// In the order of the records. Duplicates have no output.
    pub(crate) outputs: Vec<Output<'m, R>>,
    /// The offset after the last record of each partition.
    pub(crate) ends: BTreeMap<i32, i64>,
    pub(crate) duplicates: u64,
    pub(crate) aside: Aside,
    /// When the oldest payment was stored, by its record's timestamp, in microseconds since the Unix epoch.
    pub(crate) oldest_us: Option<i64>,
}

impl<'m, R> Batch<'m, R> {
    /// One with room for what these many records come to.
    pub(crate) fn with_capacity(records: usize) -> Self {
        Self {
            outputs: Vec::with_capacity(records),
            ends: BTreeMap::new(),
            duplicates: 0,
            aside: Aside::default(),
            oldest_us: None,
        }
    }

    /// Identities of the payments to be decided.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.decisions().map(key).collect()
    }

    /// Identities of the late ones, which the state knows nothing of.
    pub(crate) fn late_keys(&self) -> Vec<Key> {
        self.decisions().filter(|decision| decision.late).map(key).collect()
    }

    /// Drops the decision of every payment that is in the ledger by `known`, or twice in this batch: the second of two
    /// equal ones is a duplicate; one that has the event_id of a different payment is a dead letter. Says how many there
    /// were. The state is not touched, because what the ledger knows must not flow into it.
    pub(crate) fn resolve(&mut self, known: HashMap<Key, Content>) -> usize {
        let mut known = known;
        let (mut repeated, mut conflicts) = (0, 0);
        self.outputs.retain_mut(|output| {
            let Written::Decision(decision) = &output.written else {
                return true;
            };
            match known.entry(key(decision)) {
                Entry::Vacant(free) => {
                    free.insert(content(decision));
                    true
                }
                Entry::Occupied(same) if *same.get() == content(decision) => {
                    repeated += 1;
                    false
                }
                Entry::Occupied(_) => {
                    conflicts += 1;
                    let error = format!("event_id {} was decided with other content", decision.event_id);
                    output.written = Written::Letter {
                        kind: Kind::Conflict,
                        error,
                    };
                    true
                }
            }
        });
        self.duplicates += repeated;
        repeated as usize + conflicts
    }

    /// Fills the ledger's rows, with the epoch of each partition's owner.
    pub(crate) fn fill(&self, rows: &mut Rows, epoch: impl Fn(i32) -> i64, run: uuid::Uuid) {
        rows.clear();
        // A lane has few partitions, and the records of each come together.
        let mut firsts: Vec<(i32, i64)> = Vec::new();
        for decision in self.decisions() {
            let (part, off) = (decision.source_partition, decision.source_offset);
            let first = match firsts.iter().rev().find(|(known, _)| *known == part) {
                Some((_, first)) => *first,
                None => {
                    firsts.push((part, off));
                    off
                }
            };
            rows.push(decision, epoch(part), run, first);
        }
    }

    fn decisions(&self) -> impl Iterator<Item = &Decision> + use<'_, 'm, R> {
        self.outputs.iter().filter_map(|output| match &output.written {
            Written::Decision(decision) => Some(decision),
            Written::RuleSet | Written::Letter { .. } => None,
        })
    }
}

fn content(decision: &Decision) -> Content {
    Content {
        occurred_at: decision.occurred_at,
        account_id: decision.account_id.clone(),
        amount: decision.amount,
        currency: decision.currency.clone(),
    }
}

fn key(decision: &Decision) -> Key {
    (
        decision.source_partition,
        decision.tenant.clone(),
        decision.event_id.uuid(),
    )
}
