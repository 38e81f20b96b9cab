//! Owns what would change if another rule set had judged: payments that are history are judged twice, by the rule sets
//! that were in force and by a candidate, each with a state of its own, and the verdicts are compared.
//!
//! Fed by `sluicectl rules backtest` with the records of the payments. Benchmarks and tests of the state feed payments of
//! their own. It writes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use rdkafka::Message;
use rdkafka::message::BorrowedMessage;
use sluice_kafka::error;
use sluice_kafka::registry::Registry;
use sluice_proto::avro;
use sluice_proto::decision::{Outcome, Verdict};
use sluice_proto::event::PaymentRecord;
use sluice_proto::features::AccountFeatures;

use crate::calendar::SECOND_US;
use crate::decode::{Decoder, Failure, Input, Record};
use crate::rules::{Aside, RuleSet};
use crate::state::{Observed, State};

/// Changes that are kept as examples.
pub const MAX_EXAMPLES: usize = 20;
/// An id that no schema has, so that every schema is asked for.
const NO_SCHEMA: i32 = -1;

/// Why a record cannot be judged again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its schema cannot be asked for.
    #[error(transparent)]
    Registry(#[from] error::Registry),
    /// This version's own schema cannot be read.
    #[error(transparent)]
    Schema(#[from] avro::DecodeError),
}

/// How often a rule fired, under the rule sets in force and under the candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fired {
    /// Under the rule sets that were in force.
    pub current: u64,
    /// Under the candidate.
    pub candidate: u64,
}

/// A payment whose outcome would change.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Partition and offset of the payment.
    pub source: (i32, i64),
    /// `tenant/account`.
    pub account: String,
    /// The outcome that it had.
    pub current: Outcome,
    /// The one that it would have.
    pub candidate: Outcome,
    /// The candidate's reasons, with their facts.
    pub reasons: Vec<String>,
}

/// What would change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Payments that were judged twice, repetitions excluded.
    pub payments: u64,
    /// Records that are dead letters, and are so with any rule set.
    pub unreadable: u64,
    /// How many payments went from one outcome to another, or stayed.
    pub outcomes: BTreeMap<(Outcome, Outcome), u64>,
    /// How often each rule fired, by its id, with `(shadow)` where it was shadowed.
    pub rules: BTreeMap<String, Fired>,
    /// Payments whose expressions had no value, by rule.
    pub failed: BTreeMap<String, u64>,
    /// The first payments whose outcome would change.
    pub examples: Vec<Example>,
}

/// The two states of a partition.
struct Pair {
    current: State,
    candidate: State,
}

/// Judges payments twice.
pub struct Backtest {
    candidate: Arc<RuleSet>,
    lateness_us: i64,
    decoder: Decoder,
    pairs: BTreeMap<i32, Pair>,
    report: Report,
}

impl Backtest {
    /// A backtest of a candidate, with the processors' allowed lateness in seconds. `registry` is asked for schemas.
    ///
    /// # Errors
    /// [`Error::Schema`].
    pub fn new(candidate: Arc<RuleSet>, lateness_s: u32, registry: Arc<Registry>) -> Result<Self, Error> {
        Ok(Self {
            candidate,
            lateness_us: i64::from(lateness_s) * SECOND_US,
            decoder: Decoder::new(NO_SCHEMA, registry)?,
            pairs: BTreeMap::new(),
            report: Report::default(),
        })
    }

    /// Begins with a partition, whose payments were judged by this rule set where its records will begin.
    pub fn begin(&mut self, partition: i32, in_force: Arc<RuleSet>) {
        let pair = Pair {
            current: State::new(self.lateness_us, in_force),
            candidate: State::new(self.lateness_us, self.candidate.clone()),
        };
        self.pairs.insert(partition, pair);
    }

    /// Takes a record in; those of a partition come in their order, after [`Backtest::begin`]. Where it does not count, it
    /// only is part of what later ones look back on.
    ///
    /// # Errors
    /// [`Error::Registry`].
    pub fn take(&mut self, message: &BorrowedMessage<'_>, counts: bool) -> Result<(), Error> {
        let Some(pair) = self.pairs.get_mut(&message.partition()) else {
            return Ok(());
        };
        let input = match self.decoder.decode(message) {
            Ok(Record::Payment(input)) => input,
            Ok(Record::Rules(rules)) => {
                pair.current.apply(rules);
                pair.current.merge();
                return Ok(());
            }
            Err(Failure::Letter { .. }) => {
                self.report.unreadable += u64::from(counts);
                return Ok(());
            }
            Err(Failure::Registry(error)) => return Err(error.into()),
        };
        let current = judge(&mut pair.current, &input);
        let candidate = judge(&mut pair.candidate, &input);
        if let (true, Some(current), Some(candidate)) = (counts, current, candidate) {
            let source = (message.partition(), message.offset());
            self.report.add(source, &input, current, candidate);
        }
        Ok(())
    }

    /// What would change.
    pub fn report(self) -> Report {
        self.report
    }
}

/// A partition's state, without the partition: payments are given, one after the other.
pub struct Replay(State);

impl Replay {
    /// A state that has seen nothing, with the allowed lateness in seconds.
    pub fn new(rules: Arc<RuleSet>, lateness_s: u32) -> Self {
        Self(State::new(i64::from(lateness_s) * SECOND_US, rules))
    }

    /// Takes a payment in that stands at this offset of this partition, and gives its features; `None` where it comes late
    /// or again.
    pub fn observe(&mut self, payment: &PaymentRecord, (partition, offset): (i32, i64)) -> Option<AccountFeatures> {
        let observed = self.0.observe(payment, payment.occurred_at);
        self.0.merge();
        match observed {
            Observed::Fresh(features) => Some(features.record(payment, partition, offset)),
            Observed::Duplicate | Observed::Conflict | Observed::Late { .. } => None,
        }
    }

    /// How many accounts are remembered.
    pub fn accounts(&self) -> usize {
        self.0.sizes().accounts
    }

    /// Puts another rule set in force.
    pub fn apply(&mut self, rules: Arc<RuleSet>) {
        self.0.apply(rules);
        self.0.merge();
    }

    /// Judges a payment; `None` for a repetition.
    pub fn judge(&mut self, payment: PaymentRecord) -> Option<Verdict> {
        let input = Input {
            appended_at: payment.occurred_at,
            payment,
        };
        judge(&mut self.0, &input).map(|(verdict, _)| verdict)
    }
}

type Judged = (Verdict, Aside);

/// `None` for a repetition.
fn judge(state: &mut State, input: &Input) -> Option<Judged> {
    let observed = state.observe(&input.payment, input.appended_at);
    state.merge();
    let mut aside = Aside::default();
    let verdict = match observed {
        Observed::Duplicate | Observed::Conflict => return None,
        Observed::Late { behind_us } => state.rules().judge_late(&input.payment, behind_us, &mut aside),
        Observed::Fresh(features) => state.rules().judge(&input.payment, &features, &mut aside),
    };
    Some((verdict, aside))
}

impl Report {
    fn add(&mut self, source: (i32, i64), input: &Input, current: Judged, candidate: Judged) {
        self.payments += 1;
        let outcomes = (current.0.outcome, candidate.0.outcome);
        *self.outcomes.entry(outcomes).or_default() += 1;
        for rule in fired(&current) {
            self.rules.entry(rule).or_default().current += 1;
        }
        for rule in fired(&candidate) {
            self.rules.entry(rule).or_default().candidate += 1;
        }
        for rule in &candidate.1.failed {
            *self.failed.entry(rule.to_string()).or_default() += 1;
        }
        if outcomes.0 != outcomes.1 && self.examples.len() < MAX_EXAMPLES {
            let reasons = candidate.0.reasons.iter();
            self.examples.push(Example {
                source,
                account: format!("{}/{}", input.payment.tenant, input.payment.account_id),
                current: outcomes.0,
                candidate: outcomes.1,
                reasons: reasons
                    .map(|reason| format!("{}: {}", reason.rule_id, reason.detail))
                    .collect(),
            });
        }
    }
}

fn fired((verdict, aside): &Judged) -> Vec<String> {
    let scored = verdict.reasons.iter().map(|reason| reason.rule_id.to_string());
    let shadowed = aside.shadowed.iter().map(|rule| format!("{rule} (shadow)"));
    scored.chain(shadowed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::BUILT_IN;
    use crate::testing::{event_id, payment};

    #[test]
    fn verdicts_are_compared() {
        let strict = BUILT_IN.replace("over_units: 10000", "over_units: 10");
        let strict = Arc::new(RuleSet::parse(&strict).expect("a rule set"));
        let mut states = [RuleSet::built_in(), strict].map(|rules| State::new(SECOND_US, rules));
        let mut report = Report::default();
        for id in [1, 1, 2] {
            let input = Input {
                payment: PaymentRecord {
                    event_id: event_id(id),
                    ..payment()
                },
                appended_at: i64::MAX,
            };
            let [current, candidate] = states.each_mut().map(|state| judge(state, &input));
            if let (Some(current), Some(candidate)) = (current, candidate) {
                report.add((0, id.into()), &input, current, candidate);
            }
        }
        assert_eq!(report.payments, 2, "the repetition does not count");
        let changed = (Outcome::Approve, Outcome::Review);
        assert_eq!(report.outcomes, BTreeMap::from([(changed, 2)]));
        let fired = Fired {
            current: 0,
            candidate: 2,
        };
        assert_eq!(report.rules, BTreeMap::from([("LARGE_AMOUNT".to_owned(), fired)]));
        assert_eq!(report.examples.len(), 2);
        assert_eq!(report.examples[0].account, "acme/account-1");
    }
}
