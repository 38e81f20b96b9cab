//! Checks a round of the soak, partition by partition, because everything at once would not fit into memory: each partition's
//! part goes through the same checks as a trial's whole history.
//!
//! Comes after [`super::run`] has brought a round to rest.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use sluice_proto::pb;

use crate::checker::{self, Expected, Invariant, Violations};
use crate::history::{Beginning, History};
use crate::oracle::Oracle;
use crate::stack::Stack;
use crate::traffic::Outcomes;

/// What a tenant's clients were told in a round.
#[derive(Debug)]
struct Told {
    /// With the acknowledgements of one partition at a time.
    expected: Expected,
    /// Acknowledgements by the partition that they name.
    acked: BTreeMap<i32, BTreeMap<String, Option<pb::Position>>>,
    /// Ids that were acknowledged without a position, and not found so far.
    unplaced: BTreeSet<String>,
    readers: Vec<Reader>,
}

/// One subscriber: the accounts it asked for, and what it received by partition.
#[derive(Debug)]
struct Reader {
    accounts: Vec<String>,
    received: BTreeMap<i32, Vec<pb::FraudDecision>>,
}

impl Told {
    fn new(outcomes: Outcomes) -> Self {
        let mut expected = outcomes.expected;
        let mut acked: BTreeMap<i32, BTreeMap<_, _>> = BTreeMap::new();
        let mut unplaced = BTreeSet::new();
        for (id, position) in std::mem::take(&mut expected.acked) {
            match position {
                Some(position) => {
                    acked.entry(position.partition).or_default().insert(id, Some(position));
                }
                None => {
                    unplaced.insert(id);
                }
            }
        }
        let by_partition = |decisions: Vec<pb::FraudDecision>| {
            let mut parts: BTreeMap<i32, Vec<_>> = BTreeMap::new();
            for decision in decisions {
                let partition = decision.source.unwrap_or_default().partition;
                parts.entry(partition).or_default().push(decision);
            }
            parts
        };
        let readers = outcomes.received.into_iter();
        Self {
            expected,
            acked,
            unplaced,
            readers: readers
                .map(|reader| Reader {
                    accounts: reader.accounts,
                    received: by_partition(reader.decisions),
                })
                .collect(),
        }
    }
}

/// Judges one partition after the other.
#[derive(Debug, Default)]
pub struct Judge {
    /// What it learnt from all rounds so far.
    oracle: Oracle,
    told: Vec<Told>,
    /// What was wrong.
    pub violations: Violations,
    /// Records of the payments topic that were checked.
    pub events: usize,
    /// Rows that takeovers removed.
    pub compensated: i64,
}

impl Judge {
    /// Judges everything that stands in the topics and the ledger from there on, by what the clients were told. One partition
    /// is read while another one is judged.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn round(mut self, stack: &Stack, from: &[Beginning], outcomes: Vec<Outcomes>) -> Result<Self> {
        self.told = outcomes.into_iter().map(Told::new).collect();
        let mut next = None;
        for (index, part) in from.iter().enumerate() {
            let history = match next.take() {
                Some(history) => history,
                None => History::read_from(stack, *part).await?,
            };
            let partition = part.partition;
            let judging = tokio::task::spawn_blocking(move || {
                self.judge(partition, &history);
                self
            });
            if let Some(part) = from.get(index + 1) {
                next = Some(History::read_from(stack, *part).await?);
            }
            self = judging.await?;
        }
        for told in self.told.drain(..) {
            for id in told.unplaced {
                let what = format!("{id} was acknowledged and is not stored");
                self.violations.add(Invariant::Once, what);
            }
        }
        self.oracle.forget();
        Ok(self)
    }

    fn judge(&mut self, partition: i32, history: &History) {
        let violations = &mut self.violations;
        let visible = checker::visible(history, 0, violations);
        for told in &mut self.told {
            told.expected.acked = told.acked.remove(&partition).unwrap_or_default();
            checker::once(history, &visible, &told.expected, violations);
            if !told.unplaced.is_empty() {
                for (_, payment) in &history.payments {
                    told.unplaced.remove(&payment.event_id.to_string());
                }
            }
            let tenant = &told.expected.tenant;
            for reader in &mut told.readers {
                let received = reader.received.remove(&partition).unwrap_or_default();
                checker::delivery(&received, tenant, &reader.accounts, &visible, violations);
            }
            checker::ledger_rows(history, &visible, tenant, violations);
        }
        let fates = self.oracle.read(&history.records, &history.schemas);
        checker::replay(history, &visible, &fates, violations);
        checker::epochs(history, violations);
        self.events += history.records.len();
        self.compensated += history.compensations.iter().map(|removed| removed.rows).sum::<i64>();
    }
}
