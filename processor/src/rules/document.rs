//! Owns the shape of a rule set document, and what is checked before a rule set is made of it.
//!
//! Comes first in [`super::RuleSet::parse`]; expressions are checked in [`super::expression`].

use std::collections::BTreeSet;
use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::Deserialize;

use super::{Error, high_frequency, impossible_travel, large_amount, late_event};
use crate::account::LONGEST_WINDOW_US;
use crate::calendar::SECOND_US;

/// Largest document, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 64 * 1_024;
/// Most expressions of a document.
pub const MAX_EXPRESSIONS: usize = 64;
/// Longest version or rule id, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
const LONGEST_WINDOW_S: u32 = (LONGEST_WINDOW_US / SECOND_US) as u32;
const DAY_S: u32 = 86_400;
/// Faster than anything that travels, in km/h.
const MAX_KMH: u32 = 1_000_000;

/// A rule set as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) version: String,
    pub(super) outcomes: Outcomes,
    pub(super) large_amount: Option<LargeAmount>,
    pub(super) high_frequency: Option<HighFrequency>,
    pub(super) impossible_travel: Option<ImpossibleTravel>,
    pub(super) late_event: LateEvent,
    #[serde(default)]
    pub(super) expressions: Vec<Expression>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Outcomes {
    pub(super) review: f64,
    pub(super) decline: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LargeAmount {
    pub(super) over_units: u32,
    pub(super) contribution: f64,
    #[serde(default)]
    pub(super) shadow: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HighFrequency {
    pub(super) more_than_payments: u32,
    pub(super) window_s: u32,
    pub(super) contribution: f64,
    #[serde(default)]
    pub(super) shadow: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImpossibleTravel {
    pub(super) over_kmh: u32,
    pub(super) place_window_s: u32,
    pub(super) contribution: f64,
    #[serde(default)]
    pub(super) shadow: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LateEvent {
    pub(super) contribution: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expression {
    pub(super) id: String,
    #[serde(default = "first")]
    pub(super) version: String,
    pub(super) when: String,
    pub(super) contribution: f64,
    #[serde(default)]
    pub(super) shadow: bool,
}

fn first() -> String {
    "1".to_owned()
}

impl Document {
    /// Reads a document and checks everything but its expressions.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(Error::Size(text.len()));
        }
        let document: Self = serde_saphyr::from_str(text).map_err(|error| Error::Yaml(first_line(&error)))?;
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<(), Error> {
        name("version", &self.version)?;
        within("outcomes.review", self.outcomes.review, 0.0..=1.0)?;
        within("outcomes.decline", self.outcomes.decline, self.outcomes.review..=1.0)?;
        if let Some(rule) = &self.large_amount {
            within("large_amount.contribution", rule.contribution, 0.0..=1.0)?;
        }
        if let Some(rule) = &self.high_frequency {
            within("high_frequency.contribution", rule.contribution, 0.0..=1.0)?;
            within("high_frequency.window_s", rule.window_s, 1..=LONGEST_WINDOW_S)?;
        }
        if let Some(rule) = &self.impossible_travel {
            within("impossible_travel.contribution", rule.contribution, 0.0..=1.0)?;
            within("impossible_travel.over_kmh", rule.over_kmh, 1..=MAX_KMH)?;
            within("impossible_travel.place_window_s", rule.place_window_s, 1..=DAY_S)?;
        }
        within("late_event.contribution", self.late_event.contribution, 0.0..=1.0)?;
        self.check_expressions()
    }

    fn check_expressions(&self) -> Result<(), Error> {
        within("the number of expressions", self.expressions.len(), 0..=MAX_EXPRESSIONS)?;
        let mut ids = BTreeSet::from([
            large_amount::ID,
            high_frequency::ID,
            impossible_travel::ID,
            late_event::ID,
        ]);
        for expression in &self.expressions {
            let id = &expression.id;
            name("id of an expression", id)?;
            name(&format!("version of {id}"), &expression.version)?;
            within(&format!("contribution of {id}"), expression.contribution, 0.0..=1.0)?;
            if !ids.insert(id) {
                return Err(Error::Twice(id.clone()));
            }
        }
        Ok(())
    }
}

fn within<T: PartialOrd + Display>(what: &str, value: T, bounds: RangeInclusive<T>) -> Result<(), Error> {
    if bounds.contains(&value) {
        return Ok(());
    }
    Err(Error::Range {
        what: what.to_owned(),
        value: value.to_string(),
        least: bounds.start().to_string(),
        most: bounds.end().to_string(),
    })
}

/// Names stand in decisions, metrics and the ledger.
fn name(what: &str, value: &str) -> Result<(), Error> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=MAX_NAME_BYTES).contains(&value.len()) && value.bytes().all(legal) {
        return Ok(());
    }
    Err(Error::Name {
        what: what.to_owned(),
        value: value.to_owned(),
    })
}

/// Without the picture of the place that follows.
fn first_line(error: &impl Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
