//! Checks an installation's whole promise from what it left behind: every acknowledged payment has exactly one decision,
//! nothing else has one, and the ledger says the same, field by field, with no row left PREPARED.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context, Result, ensure};
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use sluice_proto::avro::PREFIX_BYTES;
use sluice_proto::decision::Decision;
use sluice_proto::event::PaymentRecord;
use sluice_proto::{headers, pb, topics};

use crate::ledger::{self, Entry};
use crate::stack::Stack;
use crate::topics::Record;

/// What a test did, against which an installation is checked. Only records of this tenant count.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The tenant.
    pub tenant: String,
    /// Ids of the payments that were given to the gateway.
    pub published: BTreeSet<String>,
    /// Ids of the payments that the gateway acknowledged as stored, with their positions where these are known.
    pub acked: BTreeMap<String, Option<pb::Position>>,
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

/// What was found, for a test that wants to look closer.
#[derive(Clone, Debug)]
pub struct Found {
    /// The tenant's payments as they stand in the topic, repetitions included.
    pub payments: Vec<(Record, PaymentRecord)>,
    /// Their decisions.
    pub decisions: Vec<(Record, Decision)>,
}

/// Waits until everything is processed, then checks all that is promised.
///
/// # Errors
/// Says what is wrong.
pub async fn check(stack: &Stack, expected: &Expected) -> Result<Found> {
    crate::topics::consumed(stack).await?;
    let mut connection = ledger::connect(stack).await?;
    ledger::settled(&mut connection).await?;
    let of_tenant = |record: &Record| record.is_of(&expected.tenant);
    let mut payments = Vec::new();
    for record in crate::topics::read(stack, topics::PAYMENTS)
        .await?
        .into_iter()
        .filter(of_tenant)
    {
        // A record that cannot be read is for the dead letters, and no payment.
        if let Ok(payment) = decode::<PaymentRecord>(&record) {
            payments.push((record, payment));
        }
    }
    let mut decisions = Vec::new();
    for record in crate::topics::read(stack, topics::DECISIONS)
        .await?
        .into_iter()
        .filter(of_tenant)
    {
        let decision = decode::<Decision>(&record).context("a decision cannot be read")?;
        decisions.push((record, decision));
    }
    let dead = crate::topics::read(stack, topics::DEAD_LETTERS).await?;
    let dead = dead.iter().map(source).collect::<Result<HashSet<_>>>()?;
    let entries = ledger::read(&mut connection).await?;
    let entries: Vec<Entry> = entries
        .into_iter()
        .filter(|entry| entry.tenant == expected.tenant)
        .collect();

    check_payments(expected, &payments)?;
    check_decisions(&payments, &decisions, &dead)?;
    check_ledger(&decisions, &entries)?;
    Ok(Found { payments, decisions })
}

fn check_payments(expected: &Expected, payments: &[(Record, PaymentRecord)]) -> Result<()> {
    let mut positions: BTreeMap<String, Vec<(i32, i64)>> = BTreeMap::new();
    for (record, payment) in payments {
        let id = payment.event_id.to_string();
        ensure!(expected.published.contains(&id), "{id} was never published");
        positions.entry(id).or_default().push((record.partition, record.offset));
    }
    for (id, position) in &expected.acked {
        let found = positions
            .get(id)
            .with_context(|| format!("{id} was acknowledged and is not stored"))?;
        if let Some(position) = position {
            let told = (position.partition, position.offset);
            ensure!(
                found.contains(&told),
                "{id} was acknowledged at {told:?} and stands at {found:?}"
            );
        }
    }
    Ok(())
}

fn check_decisions(
    payments: &[(Record, PaymentRecord)],
    decisions: &[(Record, Decision)],
    dead: &HashSet<(i32, i64)>,
) -> Result<()> {
    // The first occurrence of an id is the one that is decided.
    let mut first: BTreeMap<String, &(Record, PaymentRecord)> = BTreeMap::new();
    for pair in payments {
        if !dead.contains(&(pair.0.partition, pair.0.offset)) {
            first.entry(pair.1.event_id.to_string()).or_insert(pair);
        }
    }
    let mut decided = BTreeSet::new();
    for (record, decision) in decisions {
        let id = decision.event_id.to_string();
        ensure!(decided.insert(id.clone()), "{id} was decided twice");
        let (source, payment) = first
            .get(&id)
            .with_context(|| format!("{id} was decided and never published"))?;
        let at = (source.partition, source.offset);
        ensure!(
            record.partition == source.partition,
            "the decision of {id} is in another partition than its payment"
        );
        ensure!(
            (decision.source_partition, decision.source_offset) == at,
            "the decision of {id} is not of {at:?}"
        );
        ensure!(
            record.key == source.key,
            "the decision of {id} has another key: {}",
            record.key
        );
        ensure!(
            (
                &decision.tenant,
                &decision.account_id,
                decision.amount,
                &decision.currency,
                decision.occurred_at
            ) == (
                &payment.tenant,
                &payment.account_id,
                payment.amount,
                &payment.currency,
                payment.occurred_at
            ),
            "the decision of {id} is not about its payment: {decision:?} {payment:?}"
        );
        ensure!(
            trace_id(record) == trace_id(source),
            "the trace context of {id} was lost"
        );
    }
    let missing: Vec<_> = first.keys().filter(|id| !decided.contains(*id)).collect();
    ensure!(
        missing.is_empty(),
        "{} of {} payments have no decision: {missing:?}",
        missing.len(),
        first.len()
    );
    Ok(())
}

fn check_ledger(decisions: &[(Record, Decision)], entries: &[Entry]) -> Result<()> {
    let said: Vec<Entry> = decisions.iter().map(|(_record, decision)| entry(decision)).collect();
    let said: BTreeMap<_, _> = said
        .iter()
        .map(|entry| ((entry.partition, entry.offset), entry))
        .collect();
    let kept: BTreeMap<_, _> = entries
        .iter()
        .map(|entry| ((entry.partition, entry.offset), entry))
        .collect();
    for (at, decision) in &said {
        let row = kept.get(at).with_context(|| format!("the ledger lacks {decision:?}"))?;
        ensure!(row == decision, "ledger and decision differ: {row:?} {decision:?}");
    }
    for (at, row) in &kept {
        ensure!(
            said.contains_key(at),
            "the ledger has a row without a decision: {row:?}"
        );
    }
    Ok(())
}

/// The committed row that a decision must have.
fn entry(decision: &Decision) -> Entry {
    let amount = decision.amount.to_string();
    let amount = amount.trim_end_matches('0').trim_end_matches('.');
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
        committed: true,
    }
}

/// The trace that a record belongs to.
fn trace_id(record: &Record) -> Option<&str> {
    record.header(headers::TRACEPARENT).ok()?.split('-').nth(1)
}

/// Where a dead letter was read from.
fn source(record: &Record) -> Result<(i32, i64)> {
    Ok((
        record.header(headers::SOURCE_PARTITION)?.parse()?,
        record.header(headers::SOURCE_OFFSET)?.parse()?,
    ))
}

/// Reads a record with this build's schema, whatever its id.
///
/// # Errors
/// When it is something else.
pub fn decode<T: sluice_proto::avro::Record>(record: &Record) -> Result<T> {
    let datum = record.payload.get(PREFIX_BYTES..).context("shorter than the prefix")?;
    let schema: &'static Schema = T::schema();
    let reader = GenericDatumReader::builder(schema).human_readable(false).build()?;
    Ok(reader.read_deser(&mut &*datum)?)
}
