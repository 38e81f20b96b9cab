//! What an installation left behind: every topic, read committed and not, and the ledger. Nothing is judged here.
//!
//! Comes after the traffic has ended and everything is processed, before [`crate::checker`].

use anyhow::{Context, Result};
use sluice_proto::decision::Decision;
use sluice_proto::event::PaymentRecord;
use sluice_proto::{headers, topics};

use crate::checker::decode;
use crate::ledger::{self, Compensation, Entry, Owner};
use crate::stack::Stack;
use crate::topics::{Record, read, read_uncommitted};

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
}

impl History {
    /// Reads all of it.
    ///
    /// # Errors
    /// When a part does not answer, or a decision or a dead letter cannot be read.
    pub async fn read(stack: &Stack) -> Result<Self> {
        let mut connection = ledger::connect(stack).await?;
        let records = read(stack, topics::PAYMENTS).await?;
        let payments = records.iter().filter_map(|record| {
            // A record that cannot be read is for the dead letters, and no payment.
            let payment = decode::<PaymentRecord>(record).ok()?;
            Some((record.clone(), payment))
        });
        let letters = read(stack, topics::DEAD_LETTERS).await?;
        Ok(Self {
            payments: payments.collect(),
            decisions: decisions(read(stack, topics::DECISIONS).await?)?,
            attempts: decisions(read_uncommitted(stack, topics::DECISIONS).await?)?,
            letters: letters.iter().map(letter).collect::<Result<_>>()?,
            copies: read(stack, topics::LATE).await?,
            rows: ledger::read(&mut connection).await?,
            compensations: ledger::compensations(&mut connection).await?,
            owners: ledger::owners(&mut connection).await?,
            records,
        })
    }
}

fn decisions(records: Vec<Record>) -> Result<Vec<(Record, Decision)>> {
    let read = |record: Record| {
        let decision = decode::<Decision>(&record).context("a decision cannot be read")?;
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
