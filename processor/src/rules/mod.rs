//! Owns rule sets: how one is made of its document, which rules there are, in which order they report, and the version.
//!
//! Comes after [`crate::state`], before [`crate::score`]. Rules are functions of a payment and its features; they do no
//! I/O and read no clock. `sluicectl` checks documents with the same code.

mod document;
mod expression;
mod high_frequency;
mod impossible_travel;
mod large_amount;
mod late_event;

use std::sync::{Arc, LazyLock};

use sluice_proto::decision::{Outcome, Reason, Verdict};
use sluice_proto::event::PaymentRecord;

use crate::account::{Horizons, fnv1a};
use crate::calendar::{MINUTE_US, SECOND_US};
use crate::features::Features;
use crate::score;

use document::Document;
use expression::{Expression, Facts};
use high_frequency::HighFrequency;
use impossible_travel::ImpossibleTravel;
use large_amount::LargeAmount;
use late_event::LateEvent;

pub use document::{MAX_DOCUMENT_BYTES, MAX_EXPRESSIONS, MAX_NAME_BYTES};
pub use expression::{Error as ExpressionError, MAX_DEPTH, MAX_EXPRESSION_BYTES, MAX_NODES};

/// The document of the built-in rule set.
pub const BUILT_IN: &str = include_str!("built_in.yaml");

/// Why a document is no rule set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Longer than [`MAX_DOCUMENT_BYTES`].
    #[error("the document has {0} bytes, more than {MAX_DOCUMENT_BYTES}")]
    Size(usize),
    /// Not YAML, or a key is missing, unknown or of another type.
    #[error("the document cannot be read: {0}")]
    Yaml(String),
    /// A value is out of its bounds.
    #[error("{what} is {value}, not within {least} to {most}")]
    Range {
        /// Which value.
        what: String,
        /// As given.
        value: String,
        /// The least that it may be.
        least: String,
        /// The most that it may be.
        most: String,
    },
    /// A name has characters that names do not have.
    #[error("{what} is {value:?}, not 1 to {MAX_NAME_BYTES} of a-z A-Z 0-9 . _ -")]
    Name {
        /// Which name.
        what: String,
        /// As given.
        value: String,
    },
    /// Two rules with one id.
    #[error("there are two rules {0}")]
    Twice(String),
    /// An expression that cannot be used.
    #[error("expression {id}: {source}")]
    Expression {
        /// Its id.
        id: String,
        /// What is wrong with it.
        source: ExpressionError,
    },
}

/// A rule's name and version, as they stand in reasons, and what its firing means.
#[derive(Clone, Debug)]
struct Rule {
    id: Arc<str>,
    version: Arc<str>,
    contribution: f64,
    shadow: bool,
}

impl Rule {
    fn new(id: &str, version: &str, contribution: f64, shadow: bool) -> Self {
        Self {
            id: id.into(),
            version: version.into(),
            contribution,
            shadow,
        }
    }

    fn reason(&self, detail: String) -> Reason {
        Reason {
            rule_id: self.id.clone(),
            rule_version: self.version.clone(),
            contribution: self.contribution,
            detail,
        }
    }

    /// Counts the rule as fired: among the reasons, or aside where it is shadowed.
    fn fire(&self, detail: String, reasons: &mut Vec<Reason>, aside: &mut Aside) {
        if self.shadow {
            aside.shadowed.push(self.id.clone());
        } else {
            reasons.push(self.reason(detail));
        }
    }
}

/// Microseconds, shown as seconds with as many digits as a person wants to read.
struct Seconds(i64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} s", self.0 as f64 / 1e6)
    }
}

/// What judging yields beside the verdicts.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    /// Shadowed rules, once for each time that one fired.
    pub(crate) shadowed: Vec<Arc<str>>,
    /// Rules whose expression had no value, once for each time.
    pub(crate) failed: Vec<Arc<str>>,
}

/// A rule as a document has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: String,
    /// What it contributes to the score, from 0 to 1.
    pub contribution: f64,
    /// Whether it is only counted.
    pub shadow: bool,
}

#[derive(Debug)]
struct Condition {
    rule: Rule,
    expression: Expression,
}

/// All rules of a document.
#[derive(Debug)]
pub struct RuleSet {
    large_amount: Option<LargeAmount>,
    high_frequency: Option<HighFrequency>,
    impossible_travel: Option<ImpossibleTravel>,
    late_event: LateEvent,
    conditions: Vec<Condition>,
    bands: score::Bands,
    horizons: Horizons,
    version: Arc<str>,
}

impl RuleSet {
    /// Makes a rule set of its document.
    ///
    /// # Errors
    /// See [`Error`]. Whatever is wrong with a document is found here.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let document = Document::parse(text)?;
        let large_amount = document.large_amount.as_ref().map(LargeAmount::new);
        let high_frequency = document.high_frequency.as_ref().map(HighFrequency::new);
        let impossible_travel = document.impossible_travel.as_ref().map(ImpossibleTravel::new);
        let horizons = Horizons {
            frequency_us: document
                .high_frequency
                .as_ref()
                .map_or(MINUTE_US, |rule| i64::from(rule.window_s) * SECOND_US),
            place_us: impossible_travel.as_ref().map_or(0, ImpossibleTravel::place_window_us),
        };
        let conditions: Result<Vec<_>, Error> = document.expressions.iter().map(condition).collect();
        Ok(Self {
            large_amount,
            high_frequency,
            impossible_travel,
            late_event: LateEvent::new(&document.late_event),
            conditions: conditions?,
            bands: score::Bands {
                review: document.outcomes.review,
                decline: document.outcomes.decline,
            },
            horizons,
            version: version(&document.version, text),
        })
    }

    /// The rule set that decides where no other is given.
    pub fn built_in() -> Arc<Self> {
        static RULES: LazyLock<Arc<RuleSet>> =
            // The document is part of this crate, and its tests parse it.
            LazyLock::new(|| Arc::new(RuleSet::parse(BUILT_IN).expect("the built-in document is a rule set")));
        RULES.clone()
    }

    /// The document's version with a fingerprint of the document and of the rules' code: equal versions decide alike.
    pub fn version(&self) -> Arc<str> {
        self.version.clone()
    }

    /// The rules, in the order in which they report.
    pub fn summaries(&self) -> Vec<Summary> {
        let built_in = [
            self.large_amount.as_ref().map(|it| &it.rule),
            self.high_frequency.as_ref().map(|it| &it.rule),
            self.impossible_travel.as_ref().map(|it| &it.rule),
            Some(&self.late_event.rule),
        ];
        let rules = built_in.into_iter().flatten();
        rules
            .chain(self.conditions.iter().map(|it| &it.rule))
            .map(|rule| Summary {
                id: rule.id.to_string(),
                version: rule.version.to_string(),
                contribution: rule.contribution,
                shadow: rule.shadow,
            })
            .collect()
    }

    /// How far back the rules look.
    pub(crate) fn horizons(&self) -> Horizons {
        self.horizons
    }

    /// Judges a payment that came in time.
    pub(crate) fn judge(&self, payment: &PaymentRecord, features: &Features, aside: &mut Aside) -> Verdict {
        let mut reasons = Vec::new();
        if let Some(large) = &self.large_amount
            && let Some(detail) = large.check(payment)
        {
            large.rule.fire(detail, &mut reasons, aside);
        }
        if let Some(frequency) = &self.high_frequency
            && let Some(detail) = frequency.check(features)
        {
            frequency.rule.fire(detail, &mut reasons, aside);
        }
        if let Some(travel) = &self.impossible_travel
            && let Some(detail) = travel.check(features)
        {
            travel.rule.fire(detail, &mut reasons, aside);
        }
        let facts = Facts { payment, features };
        for condition in &self.conditions {
            condition.check(&facts, &mut reasons, aside);
        }
        let score = score::combine(&reasons);
        Verdict {
            outcome: self.bands.outcome(score),
            score,
            reasons,
            late: false,
        }
    }

    /// Judges a payment that came too late for the rules that need history: conservatively, so that it is never approved.
    pub(crate) fn judge_late(&self, payment: &PaymentRecord, behind_us: i64, aside: &mut Aside) -> Verdict {
        let mut reasons = Vec::new();
        if let Some(large) = &self.large_amount
            && let Some(detail) = large.check(payment)
        {
            large.rule.fire(detail, &mut reasons, aside);
        }
        let late = &self.late_event;
        late.rule.fire(late.detail(behind_us), &mut reasons, aside);
        let features = Features::default();
        let facts = Facts {
            payment,
            features: &features,
        };
        for condition in self.conditions.iter().filter(|it| !it.expression.needs_history()) {
            condition.check(&facts, &mut reasons, aside);
        }
        let score = score::combine(&reasons);
        Verdict {
            outcome: self.bands.outcome(score).max(Outcome::Review),
            score,
            reasons,
            late: true,
        }
    }
}

impl Condition {
    /// An expression without a value does not fire: a lane must not stop because of one, and it is counted.
    fn check(&self, facts: &Facts<'_>, reasons: &mut Vec<Reason>, aside: &mut Aside) {
        match self.expression.holds(facts) {
            Ok(false) => {}
            Ok(true) => self.rule.fire(self.expression.detail(facts), reasons, aside),
            Err(failed) => {
                tracing::debug!(rule = &*self.rule.id, ?failed, "an expression has no value");
                aside.failed.push(self.rule.id.clone());
            }
        }
    }
}

fn condition(given: &document::Expression) -> Result<Condition, Error> {
    let expression = Expression::compile(&given.when).map_err(|source| Error::Expression {
        id: given.id.clone(),
        source,
    })?;
    Ok(Condition {
        rule: Rule::new(&given.id, &given.version, given.contribution, given.shadow),
        expression,
    })
}

fn version(given: &str, text: &str) -> Arc<str> {
    let rules = [
        (large_amount::ID, large_amount::VERSION),
        (high_frequency::ID, high_frequency::VERSION),
        (impossible_travel::ID, impossible_travel::VERSION),
        (late_event::ID, late_event::VERSION),
    ];
    let described = format!("{rules:?} {text}");
    format!("{given}-{:08x}", fnv1a(described.as_bytes()) as u32).into()
}

#[cfg(test)]
mod tests;
