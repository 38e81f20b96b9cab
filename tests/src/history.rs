//! What an installation left behind: every topic, read committed and not, and the ledger. Nothing is judged here.
//!
//! Comes after the traffic has ended and everything is processed, before [`crate::checker`].

use anyhow::{Context, Result};
use sluice_proto::decision::Decision;
use sluice_proto::event::PaymentRecord;
use sluice_proto::{headers, topics};

use crate::ledger::{self, Compensation, Entry, Owner};
use crate::schemas::{Decoder, Schemas};
use crate::stack::Stack;
use crate::topics::{Record, ends, read, read_from, read_uncommitted};

/// A record of the dead letters, by what it says of its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Partition and offset of the record that it is about.
    pub source: (i32, i64),
    /// Why it is dead.
    pub kind: String,
}

/// Everything that is left of a run. Records are in the order of partitions and offsets.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The payments topic.
    pub records: Vec<Record>,
    /// Those of its records that can be read as a payment.
    pub payments: Vec<(Record, PaymentRecord)>,
    /// The decisions topic, committed.
    pub decisions: Vec<(Record, Decision)>,
    /// The decisions topic with what was aborted.
    pub attempts: Vec<(Record, Decision)>,
    /// Dead letters, committed.
    pub letters: Vec<Letter>,
    /// Copies of late payments, committed.
    pub copies: Vec<Record>,
    /// The ledger's rows.
    pub rows: Vec<Entry>,
    /// What takeovers removed from the ledger.
    pub compensations: Vec<Compensation>,
    /// Who owns the ledger's partitions.
    pub owners: Vec<Owner>,
    /// With what payments and decisions were written.
    pub schemas: Schemas,
}

/// Where a part of a run begins, in one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beginning {
    /// The partition.
    pub partition: i32,
    /// First offset of the payments topic.
    pub payments: i64,
    /// First offset of the decisions topic.
    pub decisions: i64,
    /// First offset of the dead letters.
    pub letters: i64,
    /// First offset of the copies of late payments.
    pub copies: i64,
}

impl Beginning {
    /// The beginning of everything.
    pub fn of_all(partitions: u32) -> Vec<Self> {
        let partitions = i32::try_from(partitions).unwrap_or_default();
        let beginning = |partition| Self {
            partition,
            ..Self::default()
        };
        (0..partitions).map(beginning).collect()
    }

    /// The end of everything that is there now, partition by partition.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub async fn now(stack: &Stack) -> Result<Vec<Self>> {
        let payments = ends(stack, topics::PAYMENTS).await?;
        let decisions = ends(stack, topics::DECISIONS).await?;
        let letters = ends(stack, topics::DEAD_LETTERS).await?;
        let copies = ends(stack, topics::LATE).await?;
        let all = (0..).zip(payments).zip(decisions).zip(letters).zip(copies);
        let beginning = |((((partition, payments), decisions), letters), copies)| Self {
            partition,
            payments,
            decisions,
            letters,
            copies,
        };
        Ok(all.map(beginning).collect())
    }
}

impl History {
    /// Reads all of it.
    ///
    /// # Errors
    /// When a part does not answer, or a decision or a dead letter cannot be read.
    pub async fn read(stack: &Stack) -> Result<Self> {
        let mut connection = ledger::connect(stack).await?;
        let letters = read(stack, topics::DEAD_LETTERS).await?;
        let records = read(stack, topics::PAYMENTS).await?;
        let decided = read(stack, topics::DECISIONS).await?;
        let attempts = read_uncommitted(stack, topics::DECISIONS).await?;
        let schemas = Schemas::of(stack, records.iter().chain(&attempts)).await?;
        Ok(Self {
            payments: payments(&records, &schemas)?,
            decisions: decisions(decided, &schemas)?,
            attempts: decisions(attempts, &schemas)?,
            letters: letters.iter().map(letter).collect::<Result<_>>()?,
            copies: read(stack, topics::LATE).await?,
            rows: ledger::read(&mut connection).await?,
            compensations: ledger::compensations(&mut connection).await?,
            owners: ledger::owners(&mut connection).await?,
            schemas,
            records,
        })
    }

    /// Reads one partition from there on. Of the ledger only what belongs to it.
    ///
    /// # Errors
    /// When a part does not answer, or a decision or a dead letter cannot be read.
    pub async fn read_from(stack: &Stack, from: Beginning) -> Result<Self> {
        const COMMITTED: &str = "read_committed";
        let part = from.partition;
        let mut connection = ledger::connect(stack).await?;
        let records = read_from(stack, topics::PAYMENTS, (part, from.payments), COMMITTED).await?;
        let decided = read_from(stack, topics::DECISIONS, (part, from.decisions), COMMITTED).await?;
        let attempts = read_from(stack, topics::DECISIONS, (part, from.decisions), "read_uncommitted").await?;
        let letters = read_from(stack, topics::DEAD_LETTERS, (part, from.letters), COMMITTED).await?;
        let mut compensations = ledger::compensations(&mut connection).await?;
        compensations.retain(|removed| removed.partition == part && removed.last >= from.payments);
        let mut owners = ledger::owners(&mut connection).await?;
        owners.retain(|owner| owner.partition == part);
        let schemas = Schemas::of(stack, records.iter().chain(&attempts)).await?;
        Ok(Self {
            payments: payments(&records, &schemas)?,
            decisions: decisions(decided, &schemas)?,
            attempts: decisions(attempts, &schemas)?,
            letters: letters.iter().map(letter).collect::<Result<_>>()?,
            copies: read_from(stack, topics::LATE, (part, from.copies), COMMITTED).await?,
            rows: ledger::read_from(&mut connection, part, from.payments).await?,
            compensations,
            owners,
            schemas,
            records,
        })
    }
}

fn payments(records: &[Record], schemas: &Schemas) -> Result<Vec<(Record, PaymentRecord)>> {
    let decoder = Decoder::new(schemas)?;
    let readable = records.iter().filter_map(|record| {
        // A record that cannot be read is for the dead letters, and no payment.
        let payment: PaymentRecord = decoder.decode(record).ok()?;
        Some((record.clone(), payment))
    });
    Ok(readable.collect())
}

fn decisions(records: Vec<Record>, schemas: &Schemas) -> Result<Vec<(Record, Decision)>> {
    let decoder = Decoder::new(schemas)?;
    let read = |record: Record| {
        let decision: Decision = decoder.decode(&record).context("a decision cannot be read")?;
        Ok((record, decision))
    };
    records.into_iter().map(read).collect()
}

fn letter(record: &Record) -> Result<Letter> {
    Ok(Letter {
        source: (
            record.header(headers::SOURCE_PARTITION)?.parse()?,
            record.header(headers::SOURCE_OFFSET)?.parse()?,
        ),
        kind: record.header(headers::ERROR_TYPE)?.to_owned(),
    })
}
