//! Owns the processor's own metrics. Those of Kafka are in `sluice_kafka::metrics`.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use sluice_kafka::metrics::Latency;
use sluice_proto::decision::Outcome;
use sluice_proto::settlement;

use crate::batch::{Batch, Written};
use crate::dead_letter::Kind;
use crate::saga::breaker::Mode;
use crate::saga::machine::{Operation, Stage, Trouble};
use crate::state::Sizes;

/// Upper bounds of the batch sizes, in events.
const BATCH_BOUNDS: [f64; 10] = [1.0, 5.0, 20.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0];

/// The parts of a batch's time, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Decode, deduplicate, judge.
    Decide,
    /// Make the ledger's rows and hand everything to the producer.
    Send,
    /// Wait for deliveries and add the offsets.
    Settle,
    /// Wait for Postgres, which writes the ledger's rows since before the step of sending.
    Prepare,
    /// Commit the transaction.
    Commit,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByType {
    error_type: &'static str,
}

/// Rules are named by whoever writes rule sets, which no client can, and a rule set has few.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRule {
    rule: Arc<str>,
    shadow: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailedRule {
    rule: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStep {
    step: Step,
}

impl EncodeLabelValue for Step {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Decide => "decide",
            Self::Send => "send",
            Self::Prepare => "prepare",
            Self::Settle => "settle",
            Self::Commit => "commit",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPlace {
    place: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLane {
    lane: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCall {
    operation: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOperation {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

/// Those of the saga.
#[derive(Clone, Debug, Default)]
struct Saga {
    calls: Family<ByCall, Counter>,
    call_duration: Family<ByOperation, Latency>,
    breaker: Gauge,
    behind: Gauge,
    stages: Family<ByState, Counter>,
    settled: Family<ByState, Counter>,
    stuck: Counter,
    failed: Counter,
    verdicts: Family<ByResult, Counter>,
}

impl Saga {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "rail_calls",
            "Calls of the payment rail, by operation and by what came of them",
            metrics.calls.clone(),
        );
        registry.register_with_unit(
            "rail_call_duration",
            "Time that a call of the payment rail takes",
            Unit::Seconds,
            metrics.call_duration.clone(),
        );
        registry.register(
            "rail_breaker_state",
            "0 while the rail is called, 1 while a few calls try it, 2 while it is not called",
            metrics.breaker.clone(),
        );
        registry.register(
            "saga_behind_offsets",
            "Offsets of committed payments about whose money nothing was done yet",
            metrics.behind.clone(),
        );
        registry.register(
            "saga_rows",
            "Payments that entered a state of their own, or stayed in it after a call",
            metrics.stages.clone(),
        );
        registry.register(
            "settlements",
            "Payments of which the topic of settlements was told, by kind",
            metrics.settled.clone(),
        );
        registry.register(
            "saga_stuck",
            "Payments about which the rail was asked many times in vain; they are asked about once a minute",
            metrics.stuck.clone(),
        );
        registry.register(
            "saga_failures",
            "Rounds of the saga that failed and were begun again with new connections",
            metrics.failed.clone(),
        );
        registry.register(
            "verdicts",
            "Verdicts and cancellations that were read: taken, late or unreadable",
            metrics.verdicts.clone(),
        );
        metrics
    }
}

/// All of them; clones share their values.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    decisions: Family<ByOutcome, Counter>,
    dead_letters: Family<ByType, Counter>,
    duplicates: Counter,
    late: Counter,
    rule_sets: Counter,
    rules_fired: Family<ByRule, Counter>,
    rules_failed: Family<FailedRule, Counter>,
    batch_events: Histogram,
    step_duration: Family<ByStep, Latency>,
    takeover_duration: Latency,
    replayed: Counter,
    compensated: Counter,
    refilled: Counter,
    deleted: Counter,
    breaker_open: Family<ByLane, Gauge>,
    remembered_payments: Family<ByLane, Gauge>,
    remembered_accounts: Family<ByLane, Gauge>,
    remembered_merchants: Family<ByLane, Gauge>,
    replaying: Family<ByLane, Gauge>,
    delay_p99: Family<ByLane, Gauge<f64, AtomicU64>>,
    linger: Family<ByLane, Gauge<f64, AtomicU64>>,
    snapshot_pause: Latency,
    snapshots_written: Family<ByPlace, Counter>,
    snapshots_restored: Family<ByPlace, Counter>,
    snapshots_rejected: Counter,
    saga: Saga,
}

impl Metrics {
    /// New metrics in `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let saga = Saga::register(registry.sub_registry_with_prefix("processor"));
        let metrics = Self {
            saga,
            decisions: Family::default(),
            dead_letters: Family::default(),
            duplicates: Counter::default(),
            late: Counter::default(),
            rule_sets: Counter::default(),
            rules_fired: Family::default(),
            rules_failed: Family::default(),
            batch_events: Histogram::new(BATCH_BOUNDS),
            step_duration: Family::default(),
            takeover_duration: Latency::default(),
            replayed: Counter::default(),
            compensated: Counter::default(),
            refilled: Counter::default(),
            deleted: Counter::default(),
            breaker_open: Family::default(),
            remembered_payments: Family::default(),
            remembered_accounts: Family::default(),
            remembered_merchants: Family::default(),
            replaying: Family::default(),
            delay_p99: Family::default(),
            linger: Family::default(),
            snapshot_pause: Latency::default(),
            snapshots_written: Family::default(),
            snapshots_restored: Family::default(),
            snapshots_rejected: Counter::default(),
        };
        let our = registry.sub_registry_with_prefix("processor");
        our.register(
            "decisions",
            "Committed decisions, by outcome",
            metrics.decisions.clone(),
        );
        our.register(
            "dead_letters",
            "Committed dead letters, by type",
            metrics.dead_letters.clone(),
        );
        our.register(
            "duplicates",
            "Payments that were decided before",
            metrics.duplicates.clone(),
        );
        our.register(
            "late",
            "Decisions without history, because the payment came late",
            metrics.late.clone(),
        );
        our.register(
            "rule_sets",
            "Rule sets put in force, once for each partition",
            metrics.rule_sets.clone(),
        );
        our.register(
            "rules_fired",
            "Payments for which a rule fired, by rule; one that is shadowed contributed nothing",
            metrics.rules_fired.clone(),
        );
        our.register(
            "rules_failed",
            "Payments for which a rule's expression had no value, by rule",
            metrics.rules_failed.clone(),
        );
        our.register(
            "batch_events",
            "Records in a committed batch",
            metrics.batch_events.clone(),
        );
        our.register_with_unit(
            "batch_step_duration",
            "Time that a batch spends in each step",
            Unit::Seconds,
            metrics.step_duration.clone(),
        );
        our.register_with_unit(
            "takeover_duration",
            "Time from an assignment, or a failure, to the first fetch",
            Unit::Seconds,
            metrics.takeover_duration.clone(),
        );
        our.register(
            "replayed_events",
            "Records read again to rebuild state",
            metrics.replayed.clone(),
        );
        our.register(
            "compensated_rows",
            "Prepared ledger rows removed by takeovers",
            metrics.compensated.clone(),
        );
        our.register(
            "refilled_rows",
            "Ledger rows that Postgres had lost, filled in again by takeovers",
            metrics.refilled.clone(),
        );
        our.register(
            "payments_deleted_undecided",
            "Payments that Kafka had deleted before they were decided, as takeovers found it",
            metrics.deleted.clone(),
        );
        our.register(
            "breaker_open",
            "1 while a lane waits for what it needs to come back",
            metrics.breaker_open.clone(),
        );
        our.register(
            "remembered_payments",
            "Payments in a lane's state, by which duplicates are known",
            metrics.remembered_payments.clone(),
        );
        our.register(
            "remembered_accounts",
            "Accounts in a lane's state",
            metrics.remembered_accounts.clone(),
        );
        our.register(
            "remembered_merchants",
            "Merchants in a lane's state",
            metrics.remembered_merchants.clone(),
        );
        our.register(
            "replaying_events",
            "Records that a lane's takeover has still to read again",
            metrics.replaying.clone(),
        );
        our.register_with_unit(
            "decision_delay_p99",
            "Time from storing a payment to its decision that 99 of a lane's last 100 batches kept to",
            Unit::Seconds,
            metrics.delay_p99.clone(),
        );
        our.register_with_unit(
            "batch_linger",
            "Time for which a lane now waits for more payments for a batch",
            Unit::Seconds,
            metrics.linger.clone(),
        );
        our.register_with_unit(
            "snapshot_pause",
            "Time that a lane stands still while the state of a partition is copied",
            Unit::Seconds,
            metrics.snapshot_pause.clone(),
        );
        our.register(
            "snapshots_written",
            "Snapshots written, by place",
            metrics.snapshots_written.clone(),
        );
        our.register(
            "snapshots_restored",
            "Partitions whose state was restored from a snapshot, by place",
            metrics.snapshots_restored.clone(),
        );
        our.register(
            "snapshots_rejected",
            "Snapshots that could not be used",
            metrics.snapshots_rejected.clone(),
        );
        // A counter that only appears with its first event cannot be alerted on.
        for outcome in Outcome::ALL {
            drop(metrics.outcome(outcome));
        }
        for kind in Kind::ALL {
            drop(metrics.letters(kind));
        }
        metrics
    }

    /// Counts a batch of so many records that is committed.
    pub(crate) fn committed(&self, records: usize, batch: &Batch<'_, impl Sized>) {
        let mut outcomes = [0_u64; Outcome::ALL.len()];
        let mut late = 0;
        for output in &batch.outputs {
            match &output.written {
                Written::Decision(decision) => {
                    outcomes[decision.outcome as usize] += 1;
                    late += u64::from(decision.late);
                    for reason in &decision.reasons {
                        self.fired(&reason.rule_id, false);
                    }
                }
                Written::RuleSet => {
                    self.rule_sets.inc();
                }
                Written::Letter { kind, .. } => {
                    self.letters(*kind).inc();
                }
            }
        }
        for (outcome, count) in Outcome::ALL.into_iter().zip(outcomes) {
            self.outcome(outcome).inc_by(count);
        }
        self.late.inc_by(late);
        for rule in &batch.aside.shadowed {
            self.fired(rule, true);
        }
        for rule in &batch.aside.failed {
            let rule = rule.clone();
            self.rules_failed.get_or_create_owned(&FailedRule { rule }).inc();
        }
        self.duplicates.inc_by(batch.duplicates);
        self.batch_events.observe(records as f64);
    }

    /// Records how long a step of a batch took.
    pub(crate) fn step(&self, step: Step, took: Duration) {
        self.step_duration.get_or_create(&ByStep { step }).observe(took);
    }

    /// Records a takeover.
    pub(crate) fn taken_over(&self, took: Duration, replayed: u64, compensated: u64) {
        self.takeover_duration.observe(took);
        self.replayed.inc_by(replayed);
        self.compensated.inc_by(compensated);
    }

    /// Counts ledger rows that were lost and are filled in again.
    pub(crate) fn refilled(&self, rows: u64) {
        self.refilled.inc_by(rows);
    }

    /// Counts payments that Kafka deleted before they were decided: again with each takeover until a batch follows.
    pub(crate) fn deleted(&self, payments: i64) {
        self.deleted.inc_by(payments.unsigned_abs());
    }

    /// Says whether a lane's breaker is open.
    pub(crate) fn breaker(&self, lane: u16, open: bool) {
        self.breaker_open.get_or_create(&ByLane { lane }).set(open.into());
    }

    /// Says how much a lane's state holds.
    pub(crate) fn remembered(&self, lane: u16, sizes: Sizes) {
        for (gauge, count) in [
            (&self.remembered_payments, sizes.payments),
            (&self.remembered_accounts, sizes.accounts),
            (&self.remembered_merchants, sizes.merchants),
        ] {
            gauge
                .get_or_create(&ByLane { lane })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Says how many records a lane's replay has left.
    pub(crate) fn replaying(&self, lane: u16, left: i64) {
        self.replaying.get_or_create(&ByLane { lane }).set(left);
    }

    /// Says how long a lane's decisions take, and what it does about it.
    pub(crate) fn paced(&self, lane: u16, delay_p99: Duration, linger: Duration) {
        self.delay_p99
            .get_or_create(&ByLane { lane })
            .set(delay_p99.as_secs_f64());
        self.linger.get_or_create(&ByLane { lane }).set(linger.as_secs_f64());
    }

    /// Records for how long a lane stood still for a snapshot.
    pub(crate) fn snapshot_pause(&self, took: Duration) {
        self.snapshot_pause.observe(took);
    }

    /// Counts a snapshot that was written to `directory` or `topic`.
    pub(crate) fn snapshot_written(&self, place: &'static str) {
        self.snapshots_written.get_or_create(&ByPlace { place }).inc();
    }

    /// Counts a partition that was restored from `directory` or `topic`.
    pub(crate) fn restored(&self, place: &'static str) {
        self.snapshots_restored.get_or_create(&ByPlace { place }).inc();
    }

    /// Counts a snapshot that is damaged, or of another version or configuration.
    pub(crate) fn snapshot_rejected(&self) {
        self.snapshots_rejected.inc();
    }

    /// Records a call of the rail.
    pub(crate) fn rail_called(&self, operation: Operation, trouble: Option<Trouble>, took: Duration) {
        let operation = match operation {
            Operation::Capture => "capture",
            Operation::Cancel => "cancel",
            Operation::Refund => "refund",
            Operation::Query => "query",
        };
        let result = match trouble {
            None => "answered",
            Some(Trouble::Transient) => "transient",
            Some(Trouble::Rejected) => "rejected",
            Some(Trouble::Retriable) => "retriable",
            Some(Trouble::Unknown) => "unknown",
        };
        self.saga.calls.get_or_create_owned(&ByCall { operation, result }).inc();
        self.saga
            .call_duration
            .get_or_create(&ByOperation { operation })
            .observe(took);
    }

    /// Says what the rail's breaker does.
    pub(crate) fn rail_breaker(&self, mode: Mode) {
        self.saga.breaker.set(match mode {
            Mode::Closed => 0,
            Mode::HalfOpen => 1,
            Mode::Open => 2,
        });
    }

    /// Says how far the saga is behind the ledger, in offsets.
    pub(crate) fn saga_behind(&self, offsets: i64) {
        self.saga.behind.set(offsets);
    }

    /// Counts a row of the saga that was stored.
    pub(crate) fn saga_stage(&self, stage: Stage) {
        let state = stage.as_str();
        self.saga.stages.get_or_create_owned(&ByState { state }).inc();
    }

    /// Counts a payment about which the rail was asked in vain.
    pub(crate) fn saga_stuck(&self) {
        self.saga.stuck.inc();
    }

    /// Counts a round that failed.
    pub(crate) fn saga_failed(&self) {
        self.saga.failed.inc();
    }

    /// Counts a payment of which the world was told.
    pub(crate) fn settled(&self, kind: settlement::Kind) {
        let state = kind.as_str();
        self.saga.settled.get_or_create_owned(&ByState { state }).inc();
    }

    /// Counts a verdict.
    pub(crate) fn verdict(&self, result: &'static str) {
        self.saga.verdicts.get_or_create_owned(&ByResult { result }).inc();
    }

    fn outcome(&self, outcome: Outcome) -> Counter {
        self.decisions.get_or_create_owned(&ByOutcome {
            outcome: outcome.as_str(),
        })
    }

    fn fired(&self, rule: &Arc<str>, shadow: bool) {
        let rule = rule.clone();
        self.rules_fired.get_or_create_owned(&ByRule { rule, shadow }).inc();
    }

    fn letters(&self, kind: Kind) -> Counter {
        self.dead_letters.get_or_create_owned(&ByType {
            error_type: kind.as_str(),
        })
    }
}
