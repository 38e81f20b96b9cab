//! Payments from a file of card transactions: `transaction_id, occurred_at, customer_id, terminal_id, amount, fraud,
//! fraud_scenario`, as CSV or gzipped CSV.
//!
//! Comes before the demo's publisher, in the generator's place. Times are shifted by one distance, so that the newest
//! row is now; the currency is the euro. Rows that the contract refuses are counted and left out.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail};
use fastrand::Rng;
use flate2::read::MultiGzDecoder;
use sluice_proto::money::{Amount, TEN_THOUSANDTHS};
use sluice_proto::pb;

use crate::generate::{Generated, event_id, timestamp};

const CURRENCY: &str = "EUR";
const COLUMNS: [&str; 5] = ["transaction_id", "occurred_at", "customer_id", "terminal_id", "amount"];
const MICROS_PER_S: i64 = 1_000_000;

/// What is in a file, known before it is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Rows that will be published.
    pub rows: u64,
    /// Rows left out because their amount is zero or less, which the contract refuses.
    pub skipped: u64,
    /// How far the times are shifted.
    pub shift_micros: i64,
}

/// The rows of a file.
pub struct CardFile {
    reader: csv::Reader<Box<dyn Read + Send>>,
    columns: [usize; COLUMNS.len()],
    record: csv::StringRecord,
}

struct Row {
    at_micros: i64,
    customer: String,
    terminal: String,
    amount: Amount,
}

impl CardFile {
    /// Opens a file and finds its columns.
    ///
    /// # Errors
    /// When it cannot be read or lacks a column.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?);
        let gzipped = path.extension().is_some_and(|extension| extension == "gz");
        let input: Box<dyn Read + Send> = if gzipped {
            Box::new(BufReader::new(MultiGzDecoder::new(file)))
        } else {
            Box::new(file)
        };
        Self::read(input).with_context(|| format!("cannot use {}", path.display()))
    }

    fn read(input: Box<dyn Read + Send>) -> anyhow::Result<Self> {
        let mut reader = csv::Reader::from_reader(input);
        let header = reader.headers().context("no header line")?.clone();
        let mut columns = [0; COLUMNS.len()];
        for (column, name) in columns.iter_mut().zip(COLUMNS) {
            *column = header
                .iter()
                .position(|title| title.trim() == name)
                .with_context(|| format!("no column {name} in the header line"))?;
        }
        Ok(Self {
            reader,
            columns,
            record: csv::StringRecord::new(),
        })
    }

    /// Reads the file through, at most `limit` rows that can be published.
    ///
    /// # Errors
    /// When a row cannot be read; the message names its line.
    pub fn summarize(mut self, limit: u64, now_micros: i64) -> anyhow::Result<Summary> {
        let (mut rows, mut skipped, mut newest) = (0, 0, i64::MIN);
        while rows < limit
            && let Some(row) = self.row()?
        {
            if row.amount.ten_thousandths() > 0 {
                rows += 1;
                newest = newest.max(row.at_micros);
            } else {
                skipped += 1;
            }
        }
        if rows == 0 {
            bail!("no row that can be published");
        }
        Ok(Summary {
            rows,
            skipped,
            shift_micros: now_micros - newest,
        })
    }

    /// The payments, in the file's order.
    pub fn payments(mut self, shift_micros: i64, salt: u64) -> impl Iterator<Item = anyhow::Result<Generated>> + Send {
        let mut random = Rng::with_seed(salt);
        std::iter::from_fn(move || {
            loop {
                match self.row() {
                    Ok(Some(row)) if row.amount.ten_thousandths() <= 0 => {}
                    Ok(Some(row)) => return Some(Ok(row.payment(shift_micros, &mut random))),
                    Ok(None) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
        })
    }

    fn row(&mut self) -> anyhow::Result<Option<Row>> {
        if !self.reader.read_record(&mut self.record)? {
            return Ok(None);
        }
        let line = self.record.position().map_or(0, csv::Position::line);
        let [_, at, customer, terminal, amount] = self.columns.map(|column| self.record.get(column).unwrap_or(""));
        Ok(Some(Row {
            at_micros: parse_time(at)
                .with_context(|| format!("line {line}: {at:?} is not a time of the form 2018-04-01T00:00:31Z"))?,
            customer: customer.to_owned(),
            terminal: terminal.to_owned(),
            amount: parse_amount(amount)
                .with_context(|| format!("line {line}: {amount:?} is not an amount in euros and cents"))?,
        }))
    }
}

impl Row {
    fn payment(self, shift_micros: i64, random: &mut Rng) -> Generated {
        let occurred_at = self.at_micros + shift_micros;
        let id = event_id(occurred_at, random);
        let payment = pb::PaymentEvent {
            account_id: format!("customer-{}", self.customer),
            amount: Some(self.amount.to_money(CURRENCY)),
            merchant_id: format!("merchant-{}", self.terminal),
            terminal_id: format!("terminal-{}", self.terminal),
            method: pb::PaymentMethod::CardPresent.into(),
            ..pb::PaymentEvent::default()
        };
        Generated {
            id,
            event: pb::Event {
                event_id: id.to_string(),
                occurred_at: Some(timestamp(occurred_at)),
                payload: Some(pb::event::Payload::Payment(payment)),
                ..pb::Event::default()
            },
            injected: None,
        }
    }
}

/// `2018-04-01T00:00:31Z` in microseconds since the Unix epoch.
fn parse_time(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once(['T', ' '])?;
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let valid = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    if !valid || !(1..=9999).contains(&year) {
        return None;
    }
    // Days since 1970-01-01 in the Gregorian calendar, counting years from March.
    let shifted = if month > 2 { year } else { year - 1 };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let era_days = 365 * shifted + shifted / 4 - shifted / 100 + shifted / 400;
    let days = era_days + day_of_year - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * MICROS_PER_S)
}

fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut parts = text
        .split(separator)
        .map(|part| part.parse::<u32>().ok().map(i64::from));
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

/// An amount of at most two digits after the point.
fn parse_amount(text: &str) -> Option<Amount> {
    let (units, cents) = text.split_once('.').unwrap_or((text, "0"));
    if cents.is_empty() || cents.len() > 2 || !cents.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let (sign, units) = units.strip_prefix('-').map_or((1, units), |units| (-1, units));
    let units = i64::from(units.parse::<u32>().ok()?);
    let cents = cents.parse::<i64>().ok()? * if cents.len() == 1 { 1_000 } else { 100 };
    Some(Amount::from_ten_thousandths(sign * (units * TEN_THOUSANDTHS + cents)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &str = "transaction_id,occurred_at,customer_id,terminal_id,amount,fraud,fraud_scenario\n\
        0,2018-04-01T00:00:31Z,596,3156,57.16,0,0\n\
        1,2018-04-01T00:02:10Z,4961,3412,0.00,0,0\n\
        2,2018-04-01T00:02:11Z,4961,3412,8.5,1,1\n";

    fn file(text: &'static str) -> anyhow::Result<CardFile> {
        CardFile::read(Box::new(text.as_bytes()))
    }

    #[test]
    fn times_and_amounts_are_exact() {
        assert_eq!(parse_time("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(parse_time("2018-04-01T00:00:31Z"), Some(1_522_540_831 * MICROS_PER_S));
        assert_eq!(parse_time("2024-02-29T23:59:59Z"), Some(1_709_251_199 * MICROS_PER_S));
        assert_eq!(parse_time("2018-13-01T00:00:31Z"), None);
        assert_eq!(parse_time("yesterday"), None);
        assert_eq!(parse_amount("57.16"), Some(Amount::from_ten_thousandths(571_600)));
        assert_eq!(parse_amount("-0.5"), Some(Amount::from_ten_thousandths(-5_000)));
        assert_eq!(parse_amount("1.234"), None);
    }

    #[test]
    fn zero_amounts_are_left_out_and_times_shifted() {
        let summary = file(ROWS)
            .unwrap()
            .summarize(u64::MAX, 2_000_000_000 * MICROS_PER_S)
            .unwrap();
        assert_eq!((summary.rows, summary.skipped), (2, 1));
        let payments: Vec<Generated> = file(ROWS)
            .unwrap()
            .payments(summary.shift_micros, 1)
            .collect::<anyhow::Result<_>>()
            .unwrap();
        assert_eq!(payments.len(), 2);
        let seconds = |index: usize| payments[index].event.occurred_at.unwrap().seconds;
        assert_eq!((seconds(0), seconds(1)), (1_999_999_900, 2_000_000_000));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let no_column = file("a,b\n1,2\n").err().unwrap().to_string();
        assert!(no_column.contains("transaction_id"), "{no_column}");
        let bad = "transaction_id,occurred_at,customer_id,terminal_id,amount\n0,now,1,2,3.00\n";
        let bad_row = file(bad).unwrap().summarize(10, 0).unwrap_err();
        assert!(format!("{bad_row:#}").contains("line 2"), "{bad_row:#}");
    }
}
