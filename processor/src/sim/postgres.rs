//! Owns the model of Postgres: the ledger's two tables and the record of compensations, transactions that are applied as a
//! whole or not at all, and a failover that loses the newest of them.
//!
//! [`super::wire`] decides when a statement arrives, if it does, and whether its answer does. Rows come as the binary COPY
//! that the real server would get.

use std::collections::BTreeMap;
use std::rc::Rc;

use sluice_kafka::fail;
use sluice_proto::money::Amount;
use uuid::Uuid;

use crate::ledger::{Compensated, Content, Key, Owner, Refilled};

/// A row as Postgres has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) part: i32,
    pub(super) off: i64,
    pub(super) tenant: String,
    pub(super) event_id: Uuid,
    pub(super) content: Content,
    pub(super) outcome: String,
    pub(super) score: f64,
    pub(super) version: String,
    pub(super) late: bool,
    pub(super) epoch: i64,
}

/// What a lane has done for it.
#[derive(Debug)]
pub(super) enum Statement {
    Bump(Vec<i32>),
    Compensate(Vec<Owner>),
    Prepare(Vec<Owner>, Vec<Row>),
    Refill(Owner, Vec<Row>),
    Confirm(Vec<Owner>),
    Holds(i32, i64),
    Newest(i32, i64),
    Known(Vec<Key>),
}

/// What Postgres says.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Done,
    Owners(Vec<Owner>),
    Compensated(Vec<Compensated>),
    Refilled(Option<Refilled>),
    Holds(bool),
    Newest(Option<(i64, Uuid)>),
    Known(Vec<(Key, Content)>),
    Fenced,
    Conflict,
    /// The connection is one to a server that is no more.
    Cut,
}

/// The tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    /// Epoch and watermark of each partition.
    pub(super) owners: BTreeMap<i32, (i64, i64)>,
    pub(super) rows: BTreeMap<(i32, i64), Rc<Row>>,
    ids: BTreeMap<(i32, Uuid), i64>,
}

/// Postgres.
#[derive(Debug, Default)]
pub(super) struct Postgres {
    pub(super) tables: Tables,
    /// The tables before each of the last transactions that wrote, the newest last.
    before: Vec<Tables>,
    /// Counts failovers: a connection belongs to one server.
    pub(super) server: u32,
    pub(super) failovers: u32,
    pub(super) compensated: u64,
    pub(super) refilled: u64,
}

/// Transactions that a failover may lose.
pub(super) const LOSABLE: usize = 12;
/// Postgres counts microseconds from 2000-01-01, Unix from 1970-01-01.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
/// Signature, flags and extension of the binary COPY.
const COPY_HEADER_BYTES: usize = 19;

impl Tables {
    fn owns(&self, owner: &Owner) -> bool {
        self.owners
            .get(&owner.part)
            .is_some_and(|(epoch, _)| *epoch == owner.epoch)
    }

    fn set_watermarks(&mut self, owners: &[Owner]) -> Result<(), Answer> {
        if !fail::safeguard("watermark") {
            return Ok(());
        }
        let mine = owners.iter().all(|owner| self.owns(owner));
        if !mine && fail::safeguard("fencing") {
            return Err(Answer::Fenced);
        }
        for owner in owners
            .iter()
            .filter(|owner| self.owns(owner))
            .copied()
            .collect::<Vec<_>>()
        {
            self.owners.insert(owner.part, (owner.epoch, owner.watermark));
        }
        Ok(())
    }

    fn insert(&mut self, row: Row) -> Result<(), Answer> {
        let (place, id) = ((row.part, row.off), (row.part, row.event_id));
        if self.rows.contains_key(&place) || self.ids.contains_key(&id) {
            return Err(Answer::Conflict);
        }
        self.ids.insert(id, row.off);
        self.rows.insert(place, Rc::new(row));
        Ok(())
    }

    fn remove_from(&mut self, part: i32, off: i64) -> Vec<i64> {
        let gone: Vec<i64> = self
            .rows
            .range((part, off)..=(part, i64::MAX))
            .map(|(place, _)| place.1)
            .collect();
        for off in &gone {
            if let Some(row) = self.rows.remove(&(part, *off)) {
                self.ids.remove(&(part, row.event_id));
            }
        }
        gone
    }

    fn write(&mut self, statement: Statement) -> Result<Answer, Answer> {
        match statement {
            Statement::Bump(parts) => {
                let owners = parts.into_iter().map(|part| {
                    let (epoch, watermark) = self.owners.entry(part).or_insert((0, 0));
                    // The first owner's row is inserted with epoch 1.
                    *epoch += i64::from(*epoch == 0 || fail::safeguard("epoch"));
                    Owner {
                        part,
                        epoch: *epoch,
                        watermark: *watermark,
                    }
                });
                Ok(Answer::Owners(owners.collect()))
            }
            Statement::Compensate(owners) => {
                self.set_watermarks(&owners)?;
                let mut all = Vec::new();
                for owner in owners.iter().filter(|_| fail::safeguard("compensation")) {
                    let gone = self.remove_from(owner.part, owner.watermark);
                    if let (Some(first), Some(last)) = (gone.first(), gone.last()) {
                        all.push(Compensated {
                            part: owner.part,
                            rows: gone.len() as i64,
                            first_off: *first,
                            last_off: *last,
                        });
                    }
                }
                Ok(Answer::Compensated(all))
            }
            Statement::Prepare(owners, rows) => {
                self.set_watermarks(&owners)?;
                rows.into_iter().try_for_each(|row| self.insert(row))?;
                Ok(Answer::Done)
            }
            Statement::Refill(owner, rows) => {
                self.set_watermarks(&[owner])?;
                let offs: Vec<i64> = rows
                    .into_iter()
                    .filter_map(|row| {
                        let off = row.off;
                        self.insert(row).is_ok().then_some(off)
                    })
                    .collect();
                Ok(Answer::Refilled(offs.first().zip(offs.last()).map(|(first, last)| {
                    Refilled {
                        rows: offs.len() as i64,
                        first_off: *first,
                        last_off: *last,
                    }
                })))
            }
            Statement::Confirm(owners) => Ok(Answer::Holds(owners.iter().all(|owner| {
                self.owners.get(&owner.part) == Some(&(owner.epoch, owner.watermark)) || !fail::safeguard("watermark")
            }))),
            Statement::Holds(part, off) => Ok(Answer::Holds(self.rows.contains_key(&(part, off)))),
            Statement::Newest(part, below) => {
                let rows = self.rows.range((part, i64::MIN)..(part, below));
                let newest = rows.last().map(|(_, row)| (row.off, row.event_id));
                Ok(Answer::Newest(newest))
            }
            Statement::Known(keys) => {
                let known = keys.into_iter().filter_map(|key| {
                    let row = &self.rows[&(key.0, *self.ids.get(&(key.0, key.2))?)];
                    (row.tenant == key.1).then(|| (key, row.content.clone()))
                });
                Ok(Answer::Known(known.collect()))
            }
        }
    }
}

impl Postgres {
    /// Runs a statement that came over a connection to this server.
    pub(super) fn run(&mut self, server: u32, statement: Statement) -> Answer {
        if server != self.server {
            return Answer::Cut;
        }
        if let Statement::Confirm(_) | Statement::Holds(..) | Statement::Newest(..) | Statement::Known(_) = &statement {
            return self.tables.write(statement).unwrap_or_else(|refusal| refusal);
        }
        let before = self.tables.clone();
        match self.tables.write(statement) {
            Ok(answer) => {
                if let Answer::Compensated(all) = &answer {
                    self.compensated += all.iter().map(|it| it.rows.unsigned_abs()).sum::<u64>();
                }
                if let Answer::Refilled(Some(refilled)) = &answer {
                    self.refilled += refilled.rows.unsigned_abs();
                }
                self.before.push(before);
                if self.before.len() > LOSABLE {
                    self.before.remove(0);
                }
                answer
            }
            Err(refusal) => {
                self.tables = before;
                refusal
            }
        }
    }

    /// A replica takes over that lacks this many of the newest transactions. Every connection is cut.
    pub(super) fn fail_over(&mut self, lost: usize) {
        self.server += 1;
        self.failovers += 1;
        let kept = self.before.len().saturating_sub(lost);
        if let Some(older) = self.before.drain(kept..).next() {
            self.tables = older;
        }
    }
}

/// Reads rows out of the binary COPY.
pub(super) fn rows(copy: &[u8]) -> Vec<Row> {
    let mut rest = &copy[COPY_HEADER_BYTES.min(copy.len())..];
    let mut rows = Vec::new();
    while let Some(row) = row(&mut rest) {
        rows.push(row);
    }
    rows
}

fn row(rest: &mut &[u8]) -> Option<Row> {
    let (count, after) = rest.split_first_chunk::<2>()?;
    *rest = after;
    let count = usize::try_from(i16::from_be_bytes(*count)).ok()?;
    let mut fields = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (field, after) = after.split_at_checked(usize::try_from(i32::from_be_bytes(*length)).ok()?)?;
        fields.push(field);
        *rest = after;
    }
    let text = |index: usize| String::from_utf8_lossy(fields[index]).into_owned();
    let long = |index: usize| Some(i64::from_be_bytes(fields[index].try_into().ok()?));
    Some(Row {
        part: i32::from_be_bytes(fields[0].try_into().ok()?),
        off: long(1)?,
        tenant: text(2),
        event_id: Uuid::from_slice(fields[3]).ok()?,
        content: Content {
            occurred_at: long(7)? + POSTGRES_EPOCH_US,
            account_id: text(4),
            amount: amount(fields[5])?,
            currency: text(6),
        },
        outcome: text(8),
        score: f64::from_be_bytes(fields[9].try_into().ok()?),
        version: text(11),
        late: fields[12] == [1],
        epoch: long(13)?,
    })
}

/// An amount of Postgres' numeric: groups of four digits, the first of which counts ten-thousands to the power of the weight.
fn amount(field: &[u8]) -> Option<Amount> {
    let (numbers, _) = field.as_chunks::<2>();
    let mut numbers = numbers.iter().map(|pair| i64::from(i16::from_be_bytes(*pair)));
    let (count, weight, _sign, _scale) = (numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()?);
    // The group right after the point is the ten-thousandths.
    let lowest = weight + 1 - (count - 1);
    let whole = numbers.fold(0, |all, group| all * 10_000 + group);
    Some(Amount::from_ten_thousandths(
        whole * 10_000_i64.pow(u32::try_from(lowest).ok()?),
    ))
}
