//! Owns what a lane writes to where no ledger is kept: nothing.
//!
//! Takes the place of [`super::Ledger`] with `--postgres none`. Decisions are made exactly once all the same, because
//! Kafka's transaction alone sees to that; repetitions that are older than the lane's memory are not recognised.

use std::collections::HashMap;

use uuid::Uuid;

use super::{Compensated, Content, Error, Key, Open, Owner, Refilled, Rows};
use crate::world::Books;

/// No ledger.
pub(crate) struct NoLedger;

impl Open for NoLedger {
    fn open(_url: &str, _topic: &str, _run: Uuid) -> Result<Self, Error> {
        Ok(Self)
    }
}

impl Books for NoLedger {
    type Preparing = Rows;

    fn bump_epochs(&mut self, parts: &[i32], _instance: &str) -> Result<Vec<Owner>, Error> {
        let owner = |part: &i32| Owner {
            part: *part,
            epoch: 0,
            watermark: 0,
        };
        Ok(parts.iter().map(owner).collect())
    }

    fn compensate(&mut self, _owners: &[Owner], _reason: &str) -> Result<Vec<Compensated>, Error> {
        Ok(Vec::new())
    }

    fn prepare(&mut self, _owners: Vec<Owner>, rows: Rows) -> Result<Rows, Error> {
        Ok(rows)
    }

    fn finish(&mut self, preparing: Rows) -> Result<Rows, Error> {
        Ok(preparing)
    }

    fn flush(&mut self, _owners: &[Owner]) -> Result<(), Error> {
        Ok(())
    }

    fn confirm(&mut self, _owners: &[Owner]) -> Result<(), Error> {
        Ok(())
    }

    fn newest(&mut self, _part: i32, _below: i64) -> Result<Option<(i64, Uuid)>, Error> {
        Ok(None)
    }

    /// Nothing is missing, so that nothing is filled in.
    fn holds(&mut self, _part: i32, _off: i64) -> Result<bool, Error> {
        Ok(true)
    }

    fn refill(&mut self, _owner: Owner, _rows: &mut Rows) -> Result<Option<Refilled>, Error> {
        Ok(None)
    }

    fn known(&mut self, _keys: &[Key]) -> Result<HashMap<Key, Content>, Error> {
        Ok(HashMap::new())
    }
}
