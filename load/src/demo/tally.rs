//! What is known about every published payment: acknowledged or not, decided how often, how fast.
//!
//! Written by the demo's loops, read by `screen` and `table`. Ids have a fixed size, so that a million payments fit.

use std::collections::BTreeMap;
use std::time::Instant;

use ahash::AHashMap;
use hdrhistogram::Histogram;
use sluice_client::Outcome;
use sluice_proto::pb;
use uuid::Uuid;

use crate::generate::{Fraud, Generated};

/// Latencies are kept in microseconds up to an hour, to three digits.
const LONGEST_MICROS: u64 = 3_600_000_000;
const DIGITS: u8 = 3;

/// One published payment.
#[derive(Debug)]
struct Payment {
    /// When it should have been sent.
    intended: Instant,
    injected: Option<Fraud>,
    fate: Fate,
    decisions: u8,
}

/// What the gateway said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Waiting,
    Stored,
    /// Surely not stored: no decision will come.
    Refused,
}

/// How often a rule fired, and how often it should have.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rule {
    pub(super) fired: u64,
    pub(super) injected: u64,
    pub(super) found: u64,
}

/// Everything the demo counts.
#[derive(Debug)]
pub(super) struct Tally {
    payments: AHashMap<Uuid, Payment>,
    /// Payments that will be published.
    pub(super) events: u64,
    /// Why it could not go on.
    pub(super) failure: Option<String>,
    pub(super) acknowledged: u64,
    /// Not stored, by what the gateway said.
    pub(super) refused: BTreeMap<String, u64>,
    /// Published again after an error that allows it.
    pub(super) retried: u64,
    /// Payments with at least one decision.
    pub(super) decided: u64,
    /// Decisions beyond a payment's first.
    pub(super) duplicates: u64,
    pub(super) late: u64,
    pub(super) outcomes: [u64; 3],
    pub(super) rules: BTreeMap<String, Rule>,
    pub(super) to_ack: Histogram<u64>,
    pub(super) to_decision: Histogram<u64>,
    /// When the newest acknowledgement or decision came.
    pub(super) moved_at: Option<Instant>,
    /// The newest decision with a reason and the newest without, for the screen to take.
    pub(super) samples: [Option<pb::FraudDecision>; 2],
}

impl Tally {
    pub(super) fn new(events: u64) -> Self {
        let histogram = || {
            #[expect(clippy::expect_used, reason = "the bounds are constants that the histogram accepts")]
            Histogram::new_with_bounds(1, LONGEST_MICROS, DIGITS).expect("valid bounds")
        };
        Self {
            payments: AHashMap::with_capacity(usize::try_from(events).unwrap_or(0).min(1 << 20)),
            events,
            failure: None,
            acknowledged: 0,
            refused: BTreeMap::new(),
            retried: 0,
            decided: 0,
            duplicates: 0,
            late: 0,
            outcomes: [0; 3],
            rules: BTreeMap::new(),
            to_ack: histogram(),
            to_decision: histogram(),
            moved_at: None,
            samples: [None, None],
        }
    }

    /// A payment is about to be published.
    pub(super) fn publishing(&mut self, payment: &Generated, intended: Instant) {
        if let Some(fraud) = payment.injected {
            self.rules.entry(fraud.rule_id().to_owned()).or_default().injected += 1;
        }
        let fresh = Payment {
            intended,
            injected: payment.injected,
            fate: Fate::Waiting,
            decisions: 0,
        };
        self.payments.insert(payment.id, fresh);
    }

    /// The gateway answered for a payment, and it is not published again.
    pub(super) fn settled(&mut self, id: Uuid, outcome: &Outcome, at: Instant) {
        let Some(payment) = self.payments.get_mut(&id) else {
            return;
        };
        self.moved_at = self.moved_at.max(Some(at));
        match outcome {
            Outcome::Stored { .. } | Outcome::Duplicate | Outcome::Settled => {
                payment.fate = Fate::Stored;
                self.acknowledged += 1;
                record(&mut self.to_ack, payment.intended, at);
            }
            Outcome::Error(error) => {
                // What may be stored may still be decided.
                payment.fate = if error.certainly_not_stored {
                    Fate::Refused
                } else {
                    Fate::Stored
                };
                let code = error.code().as_str_name().trim_start_matches("ERROR_CODE_");
                let words = format!("{code}: {} {}; {}", error.field, error.reason, error.remedy);
                *self.refused.entry(words).or_default() += 1;
            }
        }
    }

    /// A decision came; those of other publishers do not count.
    pub(super) fn decided(&mut self, decision: &pb::FraudDecision, at: Instant) {
        let Some(payment) = Uuid::try_parse(&decision.event_id)
            .ok()
            .and_then(|id| self.payments.get_mut(&id))
        else {
            return;
        };
        self.moved_at = self.moved_at.max(Some(at));
        payment.decisions = payment.decisions.saturating_add(1);
        if payment.decisions > 1 {
            self.duplicates += 1;
            return;
        }
        self.decided += 1;
        self.late += u64::from(decision.late);
        record(&mut self.to_decision, payment.intended, at);
        match decision.outcome() {
            pb::Outcome::Approve => self.outcomes[0] += 1,
            pb::Outcome::Review => self.outcomes[1] += 1,
            pb::Outcome::Decline => self.outcomes[2] += 1,
            pb::Outcome::Unspecified => {}
        }
        for reason in &decision.reasons {
            let rule = self.rules.entry(reason.rule_id.clone()).or_default();
            rule.fired += 1;
            rule.found += u64::from(payment.injected.is_some_and(|fraud| fraud.rule_id() == reason.rule_id));
        }
        self.samples[usize::from(decision.reasons.is_empty())] = Some(decision.clone());
    }

    pub(super) fn published(&self) -> u64 {
        self.payments.len() as u64
    }

    /// Payments that still lack an answer or a decision.
    pub(super) fn outstanding(&self) -> u64 {
        let refused: u64 = self.refused.values().sum();
        (self.published() - (self.acknowledged + refused).min(self.published())).max(self.missing())
    }

    /// Payments that were not surely refused and are not decided.
    pub(super) fn missing(&self) -> u64 {
        if self.decided == self.published() {
            return 0;
        }
        self.missing_ids().count() as u64
    }

    /// Those payments, with whether the gateway acknowledged them.
    pub(super) fn missing_ids(&self) -> impl Iterator<Item = (Uuid, bool)> {
        let missing = |(id, payment): (&Uuid, &Payment)| {
            let open = payment.decisions == 0 && payment.fate != Fate::Refused;
            open.then_some((*id, payment.fate == Fate::Stored))
        };
        self.payments.iter().filter_map(missing)
    }

    /// Everything was published, acknowledged and decided exactly once.
    pub(super) fn complete(&self) -> bool {
        let all = |count: u64| count == self.events;
        all(self.published()) && all(self.acknowledged) && all(self.decided) && self.duplicates == 0
    }
}

fn record(histogram: &mut Histogram<u64>, from: Instant, to: Instant) {
    let micros = to.saturating_duration_since(from).as_micros() as u64;
    histogram.saturating_record(micros.clamp(1, LONGEST_MICROS));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{Generator, Options};

    fn decision(id: Uuid, rule: Option<&str>) -> pb::FraudDecision {
        let reason = |rule: &str| pb::Reason {
            rule_id: rule.to_owned(),
            ..pb::Reason::default()
        };
        pb::FraudDecision {
            event_id: id.to_string(),
            outcome: pb::Outcome::Approve.into(),
            reasons: rule.map(reason).into_iter().collect(),
            ..pb::FraudDecision::default()
        }
    }

    fn payments(count: usize) -> Vec<Generated> {
        let options = Options {
            seed: 1,
            salt: 1,
            start_micros: 0,
            rate_per_s: 1_000.0,
        };
        Generator::new(options).take(count).collect()
    }

    #[test]
    fn complete_means_each_one_once() {
        let (payments, now) = (payments(2), Instant::now());
        let mut tally = Tally::new(2);
        for payment in &payments {
            tally.publishing(payment, now);
            assert!(!tally.complete());
            tally.settled(payment.id, &Outcome::Stored { position: None }, now);
        }
        tally.decided(&decision(payments[0].id, None), now);
        tally.decided(&decision(Uuid::max(), None), now);
        assert_eq!((tally.outstanding(), tally.missing()), (1, 1));
        assert_eq!(tally.missing_ids().collect::<Vec<_>>(), [(payments[1].id, true)]);
        tally.decided(&decision(payments[1].id, Some("A_RULE")), now);
        assert!(tally.complete());
        assert_eq!(tally.rules["A_RULE"].fired, 1);
        tally.decided(&decision(payments[1].id, None), now);
        assert!(!tally.complete());
        assert_eq!(tally.duplicates, 1);
    }

    #[test]
    fn a_sure_refusal_is_waited_for_no_longer() {
        let (payments, now) = (payments(1), Instant::now());
        let mut tally = Tally::new(1);
        tally.publishing(&payments[0], now);
        let error = pb::EventError {
            certainly_not_stored: true,
            ..pb::EventError::default()
        };
        tally.settled(payments[0].id, &Outcome::Error(error), now);
        assert_eq!(tally.outstanding(), 0);
        assert!(!tally.complete());
    }
}
