//! What the stand-in knows of each key, and what an order makes of it.
//!
//! Comes after [`super::server`] has read an order.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Keys that a book holds at most: far more than a test makes.
const MAX_KEYS: usize = 10_000_000;

/// What may be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Move the money.
    Capture,
    /// Never move it.
    Cancel,
    /// Move it back.
    Refund,
    /// Only tell.
    Query,
}

impl Operation {
    /// The operation of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "capture" => Self::Capture,
            "cancel" => Self::Cancel,
            "refund" => Self::Refund,
            "query" => Self::Query,
            _ => return None,
        })
    }
}

/// How a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Nothing was ever done.
    None,
    /// The money was moved.
    Captured,
    /// It will never be moved, because the rail does not want to.
    Refused,
    /// It will never be moved, because the caller does not want to.
    Cancelled,
    /// It was moved, and moved back.
    Refunded,
}

/// What a call is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The idempotency key.
    pub key: String,
    /// The account.
    pub account: String,
    /// In the currency's major unit, such as `12.34`.
    pub amount: String,
    /// The currency.
    pub currency: String,
}

/// One key's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// How it stands.
    pub standing: Standing,
    /// The account.
    pub account: String,
    /// The currency.
    pub currency: String,
    /// In ten-thousandths of the major unit.
    pub amount: i64,
    /// How often a capture moved money: at most once.
    pub captures: u32,
    /// How often a refund did.
    pub refunds: u32,
}

/// Money moved so far, in ten-thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// By captures.
    pub captured: i64,
    /// By refunds.
    pub refunded: i64,
}

/// The book.
#[derive(Debug, Default)]
pub struct Book(HashMap<String, Entry>);

impl Book {
    /// Does what is ordered, at most once, and tells how the key stands then. `refuse` is what the rail thinks of a capture.
    ///
    /// # Errors
    /// When the order makes no sense, such as another amount for a key.
    pub fn take(&mut self, operation: Operation, order: &Order, refuse: bool) -> Result<Standing> {
        let amount = ten_thousandths(&order.amount)?;
        if operation == Operation::Query {
            return Ok(self.0.get(&order.key).map_or(Standing::None, |entry| entry.standing));
        }
        if self.0.len() >= MAX_KEYS {
            bail!("the book is full");
        }
        let entry = self.0.entry(order.key.clone()).or_insert_with(|| Entry {
            standing: Standing::None,
            account: order.account.clone(),
            currency: order.currency.clone(),
            amount,
            captures: 0,
            refunds: 0,
        });
        if (entry.amount, &entry.account, &entry.currency) != (amount, &order.account, &order.currency) {
            bail!("key {} comes again with another content", order.key);
        }
        match (operation, entry.standing) {
            (Operation::Capture, Standing::None) if refuse => entry.standing = Standing::Refused,
            (Operation::Capture, Standing::None) => {
                entry.standing = Standing::Captured;
                entry.captures += 1;
            }
            (Operation::Cancel, Standing::None) => entry.standing = Standing::Cancelled,
            (Operation::Refund, Standing::Captured) => {
                entry.standing = Standing::Refunded;
                entry.refunds += 1;
            }
            _ => {}
        }
        Ok(entry.standing)
    }

    /// Everything together.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for entry in self.0.values() {
            totals.captured += entry.amount * i64::from(entry.captures);
            totals.refunded += entry.amount * i64::from(entry.refunds);
        }
        totals
    }

    /// Every entry, by key.
    pub const fn entries(&self) -> &HashMap<String, Entry> {
        &self.0
    }
}

/// Reads a decimal with up to four digits after the point.
///
/// # Errors
/// When it is none.
pub fn ten_thousandths(text: &str) -> Result<i64> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (units, rest) = digits.split_once('.').unwrap_or((digits, ""));
    if rest.len() > 4 {
        bail!("{text:?} is too precise");
    }
    let units: i64 = units.parse().with_context(|| format!("{text:?} is no amount"))?;
    let rest: i64 = format!("{rest:0<4}")
        .parse()
        .with_context(|| format!("{text:?} is no amount"))?;
    Ok(sign * (units * 10_000 + rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(key: &str) -> Order {
        Order {
            key: key.to_owned(),
            account: "a".to_owned(),
            amount: "12.34".to_owned(),
            currency: "EUR".to_owned(),
        }
    }

    #[test]
    fn a_key_is_captured_once_and_never_after_a_cancellation() {
        let mut book = Book::default();
        let mut take = |operation, key| book.take(operation, &order(key), false).expect("an order");
        assert_eq!(take(Operation::Query, "1"), Standing::None);
        assert_eq!(take(Operation::Capture, "1"), Standing::Captured);
        assert_eq!(take(Operation::Capture, "1"), Standing::Captured);
        assert_eq!(take(Operation::Cancel, "1"), Standing::Captured);
        assert_eq!(take(Operation::Refund, "1"), Standing::Refunded);
        assert_eq!(take(Operation::Refund, "1"), Standing::Refunded);
        assert_eq!(take(Operation::Cancel, "2"), Standing::Cancelled);
        assert_eq!(take(Operation::Capture, "2"), Standing::Cancelled);
        let entry = &book.entries()["1"];
        assert_eq!((entry.captures, entry.refunds, entry.amount), (1, 1, 123_400));
    }

    #[test]
    fn another_amount_for_a_key_is_refused() {
        let mut book = Book::default();
        book.take(Operation::Capture, &order("1"), true).expect("an order");
        let other = Order {
            amount: "12.35".to_owned(),
            ..order("1")
        };
        assert!(book.take(Operation::Capture, &other, false).is_err());
        assert_eq!(book.entries()["1"].standing, Standing::Refused);
    }

    #[test]
    fn amounts_are_exact() {
        for (text, value) in [("0.00", 0), ("12", 120_000), ("12.3", 123_000), ("-0.0001", -1)] {
            assert_eq!(ten_thousandths(text).ok(), Some(value), "{text}");
        }
        assert!(ten_thousandths("1.00001").is_err() && ten_thousandths("x").is_err());
    }
}
