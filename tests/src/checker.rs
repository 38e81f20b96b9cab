//! Checks an installation's whole promise from what it left behind. docs/reliability.md numbers the invariants as they are
//! numbered here.
//!
//! Comes after [`crate::history`]; it only compares, and finds everything that is wrong rather than the first thing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::{Context, Result, bail};
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use sluice_proto::avro::PREFIX_BYTES;
use sluice_proto::decision::Decision;
use sluice_proto::event::PaymentRecord;
use sluice_proto::{headers, pb};

use crate::history::History;
use crate::ledger::{self, Entry};
use crate::oracle::Fate;
use crate::stack::Stack;
use crate::topics::Record;

/// Violations that are told one by one; what is beyond is only counted.
const TOLD: usize = 20;
/// How far a score may be from the oracle's, which multiplies in another order.
const SCORE_TOLERANCE: f64 = 1e-9;

/// What a test did, against which an installation is checked. Only records of this tenant count.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The tenant.
    pub tenant: String,
    /// Ids of the payments that were given to the gateway.
    pub published: BTreeSet<String>,
    /// Ids of the payments that the gateway acknowledged as stored, with their positions where these are known.
    pub acked: BTreeMap<String, Option<pb::Position>>,
    /// Ids of the payments of which the gateway said that they are certainly not stored.
    pub absent: BTreeSet<String>,
}

impl Expected {
    /// Nothing yet.
    pub fn of(tenant: &str) -> Self {
        Self {
            tenant: tenant.to_owned(),
            ..Self::default()
        }
    }

    /// Payments that were all published and acknowledged.
    pub fn all(tenant: &str, events: &[pb::Event]) -> Self {
        let mut expected = Self::of(tenant);
        for event in events {
            expected.published.insert(event.event_id.clone());
            expected.acked.insert(event.event_id.clone(), None);
        }
        expected
    }
}

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    /// What has to hold before anything can be checked: everything goes on by itself when a fault is over.
    Progress,
    /// 1: what was acknowledged has exactly one visible decision or dead letter; what is certainly not stored has none.
    Once,
    /// 2: a subscriber sees every decision once and in its partition's order.
    Delivery,
    /// 3: committed rows and visible decisions are the same, and no row stays PREPARED.
    Ledger,
    /// 4: the input alone says what is decided, at every attempt.
    Replay,
    /// 5: reserved = captured + released + held, by account and at every moment, and the rail's book says the same.
    Money,
    /// 6: epochs rise, and the last stable offset comes free in time.
    Epochs,
}

impl Invariant {
    /// Its number and name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Progress => "0 progress",
            Self::Once => "1 once",
            Self::Delivery => "2 delivery",
            Self::Ledger => "3 ledger",
            Self::Replay => "4 replay",
            Self::Money => "5 money",
            Self::Epochs => "6 epochs",
        }
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// How.
    pub what: String,
}

/// Collects what is wrong.
#[derive(Debug, Default)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// Adds one.
    pub fn add(&mut self, invariant: Invariant, what: impl Into<String>) {
        self.0.push(Violation {
            invariant,
            what: what.into(),
        });
    }

    fn require(&mut self, holds: bool, invariant: Invariant, what: impl FnOnce() -> String) {
        if !holds {
            self.add(invariant, what());
        }
    }

    /// All of them.
    pub fn into_vec(self) -> Vec<Violation> {
        self.0
    }
}

/// Shows the first of them, one a line, and how many there are.
pub fn tell(violations: &[Violation]) -> String {
    let lines = violations.iter().take(TOLD);
    let told: String = lines
        .map(|violation| format!("{}: {}\n", violation.invariant.name(), violation.what))
        .collect();
    format!("{} violations\n{told}", violations.len())
}

/// What was found, for a test that wants to look closer.
#[derive(Clone, Debug)]
pub struct Found {
    /// The tenant's payments as they stand in the topic, repetitions included.
    pub payments: Vec<(Record, PaymentRecord)>,
    /// Their decisions.
    pub decisions: Vec<(Record, Decision)>,
}

/// Waits until everything is processed, then checks what is promised of one tenant's payments.
///
/// # Errors
/// Says what is wrong.
pub async fn check(stack: &Stack, expected: &Expected) -> Result<Found> {
    crate::topics::consumed(stack).await?;
    ledger::settled(&mut ledger::connect(stack).await?).await?;
    let mut history = History::read(stack).await?;
    // What other tests write into a stack that they share is no business of this one.
    history.decisions.retain(|(record, _)| record.is_of(&expected.tenant));
    let mut violations = Violations::default();
    let visible = visible(&history, 0, &mut violations);
    once(&history, &visible, expected, &mut violations);
    ledger_rows(&history, &visible, &expected.tenant, &mut violations);
    let violations = violations.into_vec();
    if !violations.is_empty() {
        bail!("{}", tell(&violations));
    }
    let of_tenant = |record: &Record| record.is_of(&expected.tenant);
    Ok(Found {
        payments: history
            .payments
            .into_iter()
            .filter(|(record, _)| of_tenant(record))
            .collect(),
        decisions: history.decisions,
    })
}

/// The decisions that a reader sees who passes over what is not above its partition's highest source offset, as the gateway
/// does. What is passed over repeats what was seen, and there is as much of it as a test wrote itself.
pub fn visible(history: &History, forged: usize, violations: &mut Violations) -> Vec<(Record, Decision)> {
    let mut highest: HashMap<i32, i64> = HashMap::new();
    let mut seen: HashMap<(i32, i64), &Decision> = HashMap::new();
    let mut visible = Vec::new();
    let mut hidden = 0;
    for pair in &history.decisions {
        let (record, decision) = pair;
        let source = (decision.source_partition, decision.source_offset);
        let high = highest.entry(record.partition).or_insert(-1);
        if decision.source_offset > *high {
            *high = decision.source_offset;
            seen.insert(source, decision);
            visible.push(pair.clone());
            continue;
        }
        hidden += 1;
        violations.require(seen.get(&source) == Some(&decision), Invariant::Once, || {
            format!("a decision came out of order and is no repetition: {decision:?}")
        });
    }
    violations.require(hidden <= forged, Invariant::Once, || {
        format!("{hidden} decisions stand in the topic again, {forged} were written by the test")
    });
    visible
}

/// Invariant 1 for one tenant.
pub fn once(history: &History, visible: &[(Record, Decision)], expected: &Expected, violations: &mut Violations) {
    use Invariant::Once;
    let of_tenant = |record: &&Record| record.is_of(&expected.tenant);
    let payments: Vec<_> = history
        .payments
        .iter()
        .filter(|(record, _)| of_tenant(&record))
        .collect();
    let mut positions: HashMap<String, Vec<(i32, i64)>> = HashMap::new();
    for (record, payment) in &payments {
        let id = payment.event_id.to_string();
        violations.require(expected.published.contains(&id), Once, || {
            format!("{id} was never published")
        });
        violations.require(!expected.absent.contains(&id), Once, || {
            format!("{id} is stored, though the gateway said that it is certainly not")
        });
        positions.entry(id).or_default().push((record.partition, record.offset));
    }
    for (id, position) in &expected.acked {
        let Some(found) = positions.get(id) else {
            violations.add(Once, format!("{id} was acknowledged and is not stored"));
            continue;
        };
        if let Some(position) = position {
            let told = (position.partition, position.offset);
            violations.require(found.contains(&told), Once, || {
                format!("{id} was acknowledged at {told:?} and stands at {found:?}")
            });
        }
    }
    let dead: HashSet<(i32, i64)> = history.letters.iter().map(|letter| letter.source).collect();
    violations.require(dead.len() == history.letters.len(), Once, || {
        "a record has two dead letters".to_owned()
    });
    // The first occurrence of an id is the one that is decided.
    let mut first: BTreeMap<String, &(Record, PaymentRecord)> = BTreeMap::new();
    for pair in payments {
        if !dead.contains(&(pair.0.partition, pair.0.offset)) {
            first.entry(pair.1.event_id.to_string()).or_insert(pair);
        }
    }
    let mut decided = BTreeSet::new();
    for pair in visible.iter().filter(|(record, _)| of_tenant(&record)) {
        let id = pair.1.event_id.to_string();
        violations.require(decided.insert(id.clone()), Once, || format!("{id} was decided twice"));
        match first.get(&id) {
            Some(source) => same_payment(source, pair, violations),
            None => violations.add(Once, format!("{id} was decided and never published")),
        }
    }
    for id in first.keys().filter(|id| !decided.contains(*id)) {
        violations.add(Once, format!("{id} is stored and has no decision"));
    }
}

fn same_payment(source: &(Record, PaymentRecord), decided: &(Record, Decision), violations: &mut Violations) {
    let ((stored, payment), (record, decision)) = (source, decided);
    let about = (
        &decision.tenant,
        &decision.account_id,
        decision.amount,
        &decision.currency,
        decision.occurred_at,
        (record.partition, decision.source_partition, decision.source_offset),
        &record.key,
        trace_id(record),
    );
    let given = (
        &payment.tenant,
        &payment.account_id,
        payment.amount,
        &payment.currency,
        payment.occurred_at,
        (stored.partition, stored.partition, stored.offset),
        &stored.key,
        trace_id(stored),
    );
    violations.require(about == given, Invariant::Once, || {
        format!(
            "the decision of {} is not about its payment: {about:?} {given:?}",
            payment.event_id
        )
    });
}

/// Invariant 2 for one subscriber of a tenant's decisions, who was there from the first one on: what it received, in order.
/// It asked for those of some accounts, or for all where it named none.
pub fn delivery(
    received: &[pb::FraudDecision],
    tenant: &str,
    accounts: &[String],
    visible: &[(Record, Decision)],
    violations: &mut Violations,
) {
    use Invariant::Delivery;
    let promised: HashMap<(i32, i64), &Decision> = visible
        .iter()
        .filter(|(record, _)| record.is_of(tenant))
        .filter(|(_, decision)| accounts.is_empty() || accounts.contains(&decision.account_id))
        .map(|(_, decision)| ((decision.source_partition, decision.source_offset), decision))
        .collect();
    let mut highest: HashMap<i32, i64> = HashMap::new();
    let mut delivered = HashSet::new();
    for decision in received {
        let id = &decision.event_id;
        let source = decision.source.unwrap_or_default();
        let at = (source.partition, source.offset);
        violations.require(delivered.insert(at), Delivery, || {
            format!("{id} at {at:?} was delivered twice")
        });
        let high = highest.entry(at.0).or_insert(-1);
        violations.require(at.1 >= *high, Delivery, || {
            format!("{id} at {at:?} was delivered after {high}")
        });
        *high = at.1.max(*high);
        let Some(promised) = promised.get(&at) else {
            violations.add(
                Delivery,
                format!("{id} at {at:?} was delivered and is no visible decision"),
            );
            continue;
        };
        // When it was decided, and its trace, are the record's and not the decision's.
        let decided = pb::FraudDecision {
            decided_at: decision.decided_at,
            ..promised.to_pb(0, &decision.traceparent)
        };
        violations.require(*decision == decided, Delivery, || {
            format!("a decision was delivered differently: {decision:?}, not {decided:?}")
        });
    }
    for (at, decision) in &promised {
        violations.require(delivered.contains(at), Delivery, || {
            format!("{} at {at:?} was never delivered", decision.event_id)
        });
    }
}

/// Invariant 3 for one tenant.
pub fn ledger_rows(history: &History, visible: &[(Record, Decision)], tenant: &str, violations: &mut Violations) {
    use Invariant::Ledger;
    let mut kept: BTreeMap<(i32, i64), &Entry> = BTreeMap::new();
    for row in history.rows.iter().filter(|row| row.tenant == tenant) {
        violations.require(row.committed, Ledger, || format!("a row stays PREPARED: {row:?}"));
        kept.insert((row.partition, row.offset), row);
    }
    for (_, decision) in visible.iter().filter(|(record, _)| record.is_of(tenant)) {
        let at = (decision.source_partition, decision.source_offset);
        let Some(row) = kept.remove(&at) else {
            violations.add(Ledger, format!("the ledger lacks {decision:?}"));
            continue;
        };
        let said = entry(decision, row);
        violations.require(*row == said, Ledger, || {
            format!("ledger and decision differ: {row:?} {said:?}")
        });
    }
    for row in kept.values() {
        violations.add(Ledger, format!("the ledger has a row without a decision: {row:?}"));
    }
}

/// The row that a decision must have. Which lane wrote it, and whether it is committed, only the row can say.
fn entry(decision: &Decision, row: &Entry) -> Entry {
    let amount = decision.amount.to_string();
    let amount = amount.trim_end_matches('0').trim_end_matches('.');
    let reasons = decision.reasons.iter();
    Entry {
        partition: decision.source_partition,
        offset: decision.source_offset,
        tenant: decision.tenant.clone(),
        event_id: decision.event_id.to_string(),
        account: decision.account_id.clone(),
        amount: amount.to_owned(),
        currency: decision.currency.clone(),
        outcome: decision.outcome.as_str().to_owned(),
        score: decision.score,
        reasons: reasons
            .map(|reason| format!("{}@{}", reason.rule_id, reason.rule_version))
            .collect(),
        rule_set_version: decision.rule_set_version.to_string(),
        late: decision.late,
        occurred_at: decision.occurred_at,
        epoch: row.epoch,
        committed: row.committed,
    }
}

/// Invariant 4 over all tenants, since they share each partition's clock. The fates are those of the history's records.
pub fn replay(
    history: &History,
    visible: &[(Record, Decision)],
    fates: &HashMap<(i32, i64), Fate>,
    violations: &mut Violations,
) {
    use Invariant::Replay;
    let letters: HashMap<_, _> = history
        .letters
        .iter()
        .map(|letter| (letter.source, letter.kind.as_str()))
        .collect();
    let decided: HashMap<_, _> = visible
        .iter()
        .map(|(_, decision)| ((decision.source_partition, decision.source_offset), decision))
        .collect();
    for (at, fate) in fates {
        let (decision, letter) = (decided.get(at), letters.get(at));
        let agrees = match (fate, decision, letter) {
            (Fate::Repeated, None, None) => true,
            (Fate::Dead(kind), None, Some(letter)) => kind == letter,
            (Fate::Decided { .. }, Some(decision), None) => agrees(fate, decision),
            _ => false,
        };
        violations.require(agrees, Replay, || {
            format!("by its input {at:?} is {fate:?}; it has the decision {decision:?} and the dead letter {letter:?}")
        });
    }
    // What was aborted was decided from the same input.
    for (_, attempt) in &history.attempts {
        let at = (attempt.source_partition, attempt.source_offset);
        let agrees = match (decided.get(&at), fates.get(&at)) {
            (Some(decision), _) => attempt == *decision,
            // Only the ledger knows that it was decided long ago, and says so when the attempt is prepared.
            (None, Some(Fate::Repeated | Fate::Dead("CONFLICT"))) => true,
            (None, _) => false,
        };
        violations.require(agrees, Replay, || {
            format!("an attempt at {at:?} was decided differently: {attempt:?}")
        });
    }
    let late = visible.iter().filter(|(_, decision)| decision.late).count();
    violations.require(late == history.copies.len(), Replay, || {
        format!(
            "{late} decisions are late, and there are {} copies",
            history.copies.len()
        )
    });
}

fn agrees(fate: &Fate, decision: &Decision) -> bool {
    let Fate::Decided {
        rules,
        score,
        outcome,
        late,
        rule_set,
    } = fate
    else {
        return false;
    };
    let fired: Vec<&str> = decision.reasons.iter().map(|reason| &*reason.rule_id).collect();
    fired == *rules
        && (decision.score - score).abs() < SCORE_TOLERANCE
        && decision.outcome.as_str() == *outcome
        && decision.late == *late
        && decision.rule_set_version.starts_with(&**rule_set)
}

/// Invariant 6, as far as the ledger remembers: rows were written by owners that came one after the other, and what a
/// takeover removed was written again only by itself or by a later one.
pub fn epochs(history: &History, violations: &mut Violations) {
    use Invariant::Epochs;
    let mut newest: HashMap<i32, i64> = HashMap::new();
    for row in &history.rows {
        let before = newest.insert(row.partition, row.epoch).unwrap_or(0);
        violations.require(row.epoch >= before, Epochs, || {
            format!("written after epoch {before}: {row:?}")
        });
    }
    for owner in &history.owners {
        let written = newest.get(&owner.partition).copied().unwrap_or(0);
        violations.require(written <= owner.epoch, Epochs, || {
            format!("a row of epoch {written} is newer than {owner:?}")
        });
    }
    for removed in &history.compensations {
        let rows = history
            .rows
            .iter()
            .filter(|row| row.partition == removed.partition && (removed.first..=removed.last).contains(&row.offset));
        for row in rows.filter(|row| row.epoch < removed.epoch) {
            violations.add(Epochs, format!("{row:?} was there before {removed:?} and still is"));
        }
    }
}

/// The trace that a record belongs to.
fn trace_id(record: &Record) -> Option<&str> {
    record.header(headers::TRACEPARENT).ok()?.split('-').nth(1)
}

/// Reads a record with this build's schema, whatever its id.
///
/// # Errors
/// When it is something else.
pub fn decode<T: sluice_proto::avro::Record>(record: &Record) -> Result<T> {
    let mut datum = record.payload.get(PREFIX_BYTES..).context("shorter than the prefix")?;
    let schema: &'static Schema = T::schema();
    let reader = GenericDatumReader::builder(schema).human_readable(false).build()?;
    let value = reader.read_deser(&mut datum)?;
    anyhow::ensure!(datum.is_empty(), "{} bytes too many", datum.len());
    Ok(value)
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
