//! Owns the ledger's rows in Postgres' binary COPY format.
//!
//! Comes after the batch is decided, before [`super::Ledger::prepare`]; or after [`crate::refill`] found decisions without rows,
//! before [`super::Ledger::refill`].

use sluice_proto::decision::Decision;
use uuid::Uuid;

/// The columns that a row fills, in its order.
macro_rules! columns {
    () => {
        "part, off, tenant, event_id, account_id, amount, currency, occurred_at, outcome, score, reasons, \
         rule_set_version, late, epoch, run, batch"
    };
}

/// The statement that [`Rows`] are the data of.
pub(super) const COPY: &str = concat!("COPY ledger (", columns!(), ") FROM STDIN (FORMAT binary)");
/// A table like the ledger, for rows of which some may be there already: COPY itself passes over nothing.
pub(super) const CREATE_REFILL: &str = "CREATE TEMPORARY TABLE refill (LIKE ledger INCLUDING DEFAULTS) ON COMMIT DROP";
/// The statement that [`Rows`] are the data of when they go there.
pub(super) const COPY_REFILL: &str = concat!("COPY refill (", columns!(), ") FROM STDIN (FORMAT binary)");
/// Moves them on to the ledger, without those that are there by their place or by their event_id, and says that no lane wrote
/// them. What a lane writes has the column's default, so that it costs the lane nothing.
pub(super) const MOVE_REFILL: &str = concat!(
    "WITH filled AS (INSERT INTO ledger (",
    columns!(),
    ", processing_type) SELECT ",
    columns!(),
    ", 'BATCH' FROM refill ON CONFLICT DO NOTHING RETURNING off) SELECT count(*), min(off), max(off) FROM filled"
);
const COLUMNS: i16 = 16;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// No flags and no header extension.
const HEADER: [u8; 8] = [0; 8];
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// Postgres counts microseconds from 2000-01-01, Unix from 1970-01-01.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
/// Postgres' number of the type `text`.
const TEXT_OID: i32 = 25;
/// A numeric's digits count ten-thousands.
const NUMERIC_BASE: u64 = 10_000;
const NUMERIC_NEGATIVE: i16 = 0x4000;
/// Digits after the point that a numeric shows, and that an amount has.
const NUMERIC_SCALE: i16 = 4;
/// The groups of a 64-bit number.
const MAX_NUMERIC_GROUPS: usize = 5;

/// Rows of one batch. Reused from batch to batch, so that its memory is.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    bytes: Vec<u8>,
    count: usize,
}

impl Rows {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Adds a decision, as written by a lane of this epoch in this run. `batch` is the offset of the first payment of its
    /// batch in its partition.
    pub(crate) fn push(&mut self, decision: &Decision, epoch: i64, run: Uuid, batch: i64) {
        if self.bytes.is_empty() {
            self.bytes.extend_from_slice(SIGNATURE);
            self.bytes.extend_from_slice(&HEADER);
        }
        self.count += 1;
        self.bytes.extend_from_slice(&COLUMNS.to_be_bytes());
        self.field(&decision.source_partition.to_be_bytes());
        self.field(&decision.source_offset.to_be_bytes());
        self.field(decision.tenant.as_bytes());
        self.field(decision.event_id.uuid().as_bytes());
        self.field(decision.account_id.as_bytes());
        self.numeric(decision.amount.ten_thousandths());
        self.field(decision.currency.as_bytes());
        self.field(&(decision.occurred_at - POSTGRES_EPOCH_US).to_be_bytes());
        self.field(decision.outcome.as_str().as_bytes());
        self.field(&decision.score.to_be_bytes());
        self.reasons(decision);
        self.field(decision.rule_set_version.as_bytes());
        self.field(&[u8::from(decision.late)]);
        self.field(&epoch.to_be_bytes());
        self.field(run.as_bytes());
        self.field(&batch.to_be_bytes());
    }

    /// The whole COPY data.
    pub(crate) fn finish(&mut self) -> &[u8] {
        self.bytes.extend_from_slice(&TRAILER);
        &self.bytes
    }

    fn field(&mut self, value: &[u8]) {
        self.length(value.len());
        self.bytes.extend_from_slice(value);
    }

    fn length(&mut self, bytes: usize) {
        // Every field is bounded by the contract, far below 2 GiB.
        self.bytes.extend_from_slice(&(bytes as i32).to_be_bytes());
    }

    /// Groups of four decimal digits, most significant first, without zero groups at either end.
    fn numeric(&mut self, ten_thousandths: i64) {
        let mut groups = [0_i16; MAX_NUMERIC_GROUPS];
        let mut rest = ten_thousandths.unsigned_abs();
        let mut most = 0;
        for (place, group) in groups.iter_mut().enumerate() {
            *group = (rest % NUMERIC_BASE) as i16;
            rest /= NUMERIC_BASE;
            if *group != 0 {
                most = place + 1;
            }
        }
        let least = groups[..most].iter().take_while(|group| **group == 0).count();
        let digits = &groups[least.min(most)..most];
        // The lowest group of an amount is the one right after the point.
        let weight = most as i16 - 2;
        let sign = if ten_thousandths < 0 { NUMERIC_NEGATIVE } else { 0 };
        self.length(8 + 2 * digits.len());
        for number in [digits.len() as i16, weight, sign, NUMERIC_SCALE] {
            self.bytes.extend_from_slice(&number.to_be_bytes());
        }
        for digit in digits.iter().rev() {
            self.bytes.extend_from_slice(&digit.to_be_bytes());
        }
    }

    /// A one-dimensional array of `rule@version`.
    fn reasons(&mut self, decision: &Decision) {
        let reasons = &decision.reasons;
        if reasons.is_empty() {
            self.length(12);
            for number in [0, 0, TEXT_OID] {
                self.bytes.extend_from_slice(&i32::to_be_bytes(number));
            }
            return;
        }
        let start = self.bytes.len();
        self.length(0);
        for number in [1, 0, TEXT_OID, reasons.len() as i32, 1] {
            self.bytes.extend_from_slice(&i32::to_be_bytes(number));
        }
        for reason in reasons {
            self.length(reason.rule_id.len() + 1 + reason.rule_version.len());
            for part in [reason.rule_id.as_bytes(), b"@", reason.rule_version.as_bytes()] {
                self.bytes.extend_from_slice(part);
            }
        }
        let length = (self.bytes.len() - start - 4) as i32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Length, groups, weight, sign, scale, then the groups.
    fn numeric(ten_thousandths: i64) -> Vec<i16> {
        let mut rows = Rows::default();
        rows.numeric(ten_thousandths);
        rows.bytes[4..]
            .chunks(2)
            .map(|pair| i16::from_be_bytes([pair[0], pair[1]]))
            .collect()
    }

    #[test]
    fn amounts_are_written_as_postgres_writes_them() {
        assert_eq!(numeric(0), [0, -2, 0, 4]);
        assert_eq!(numeric(1), [1, -1, 0, 4, 1], "0.0001");
        assert_eq!(numeric(125_000), [2, 0, 0, 4, 12, 5_000], "12.5000");
        assert_eq!(numeric(120_000), [1, 0, 0, 4, 12], "12.0000");
        assert_eq!(numeric(-100_000_000), [1, 1, 0x4000, 4, 1], "-10000.0000");
        assert_eq!(numeric(9_999_999_999_999_999), [4, 2, 0, 4, 9_999, 9_999, 9_999, 9_999]);
        assert_eq!(numeric(i64::MIN)[0], 5);
    }

    #[test]
    fn each_field_is_preceded_by_its_length() {
        let mut rows = Rows::default();
        rows.numeric(125_000);
        assert_eq!(rows.bytes[..4], 12_i32.to_be_bytes());
    }
}
