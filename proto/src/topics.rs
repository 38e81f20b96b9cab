//! Names of the Kafka topics, before an installation's prefix, and of their schema registry subjects.

/// Payments as published; keyed by tenant and account.
pub const PAYMENTS: &str = "payments";
/// Decisions; the same partition count as [`PAYMENTS`], and a decision stands in its payment's partition.
pub const DECISIONS: &str = "decisions";
/// Records that no decision is possible for, as they were read.
pub const DEAD_LETTERS: &str = "payments.dlq";
/// Copies of payments that came too late for the rules that need history.
pub const LATE: &str = "payments.late";
/// Rule sets that lanes have put in force: a record in the partition where it was, with the offset from which on as its
/// key. Kept for ever, because the payments around it are not.
pub const RULE_SETS: &str = "rule-sets";
/// User actions.
pub const USER_ACTIONS: &str = "user-actions";
/// System events.
pub const SYSTEM_EVENTS: &str = "system-events";
/// Metric events.
pub const METRIC_EVENTS: &str = "metric-events";

/// Snapshots of the processor's state, compacted; those of a partition of [`PAYMENTS`] stand in the partition of the same
/// number.
pub const SNAPSHOTS: &str = "snapshots";

/// The newest features of each account, for serving models; compacted, and keyed as [`PAYMENTS`]. Written only where that is
/// switched on.
pub const FEATURES: &str = "features";

/// What was said of payments after their decisions; keyed as [`PAYMENTS`], so that it stands in the payment's partition.
pub const VERDICTS: &str = "verdicts";
/// What became of payments' money; keyed as [`PAYMENTS`].
pub const SETTLEMENTS: &str = "settlements";

/// Every topic, in the order in which they are shown.
pub const ALL: [&str; 12] = [
    PAYMENTS,
    DECISIONS,
    DEAD_LETTERS,
    LATE,
    RULE_SETS,
    USER_ACTIONS,
    SYSTEM_EVENTS,
    METRIC_EVENTS,
    SNAPSHOTS,
    FEATURES,
    VERDICTS,
    SETTLEMENTS,
];

/// The record key of everything that belongs to one subject: `tenant/subject`. Tenants contain no slash.
pub fn key(tenant: &str, subject: &str) -> String {
    let mut key = String::with_capacity(tenant.len() + 1 + subject.len());
    key.push_str(tenant);
    key.push('/');
    key.push_str(subject);
    key
}

/// The registry's subject for a topic's values, by the registry's own naming strategy.
pub fn value_subject(topic: &str) -> String {
    format!("{topic}-value")
}
