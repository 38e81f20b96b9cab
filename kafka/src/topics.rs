//! The topics of one installation: `sluice_proto::topics` with the installation's prefix, and how each is kept.

use sluice_proto::topics;

/// A day, in milliseconds, as Kafka's settings count.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
/// Bytes of one segment of the snapshots' topic: the newest one is never compacted.
const SNAPSHOT_SEGMENT_BYTES: u32 = 128 * 1_024 * 1_024;

/// The names of all topics, with the prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    /// Payments as published.
    pub payments: String,
    /// Decisions, one per payment, in its payment's partition.
    pub decisions: String,
    /// Records that no decision is possible for.
    pub dead_letters: String,
    /// Copies of payments that came too late for the rules that need history.
    pub late: String,
    /// Rule sets that lanes have put in force, in the partition where they did.
    pub rule_sets: String,
    /// User actions.
    pub user_actions: String,
    /// System events.
    pub system_events: String,
    /// Metric events.
    pub metric_events: String,
    /// Snapshots of the processor's state.
    pub snapshots: String,
    /// The newest features of each account.
    pub features: String,
    /// What was said of payments after their decisions.
    pub verdicts: String,
    /// What became of payments' money.
    pub settlements: String,
}

impl Topics {
    /// The topics of the installation with this prefix, which may be empty.
    pub fn new(prefix: &str) -> Self {
        let name = |topic: &str| format!("{prefix}{topic}");
        Self {
            payments: name(topics::PAYMENTS),
            decisions: name(topics::DECISIONS),
            dead_letters: name(topics::DEAD_LETTERS),
            late: name(topics::LATE),
            rule_sets: name(topics::RULE_SETS),
            user_actions: name(topics::USER_ACTIONS),
            system_events: name(topics::SYSTEM_EVENTS),
            metric_events: name(topics::METRIC_EVENTS),
            snapshots: name(topics::SNAPSHOTS),
            features: name(topics::FEATURES),
            verdicts: name(topics::VERDICTS),
            settlements: name(topics::SETTLEMENTS),
        }
    }

    /// Every topic, in the order of `sluice_proto::topics::ALL`.
    pub fn all(&self) -> [&str; 12] {
        [
            &self.payments,
            &self.decisions,
            &self.dead_letters,
            &self.late,
            &self.rule_sets,
            &self.user_actions,
            &self.system_events,
            &self.metric_events,
            &self.snapshots,
            &self.features,
            &self.verdicts,
            &self.settlements,
        ]
    }

    /// Settings with which a topic is created.
    ///
    /// Time is the broker's (`LogAppendTime`): retention and reading from a point in time must not follow a publisher's
    /// clock. Payments and decisions are kept alike, because state is rebuilt from the one and holes in the ledger are
    /// refilled from the other.
    pub(crate) fn settings(&self, topic: &str, replication: u16) -> Vec<(&'static str, String)> {
        let days = if topic == self.dead_letters {
            30
        } else if topic == self.metric_events {
            1
        } else {
            7
        };
        let mut settings = vec![("message.timestamp.type", "LogAppendTime".to_owned())];
        if topic == self.rule_sets {
            // No two records have one key, so that all are kept: they say what decided, however long ago.
            settings.push(("cleanup.policy", "compact".to_owned()));
        } else if topic == self.snapshots {
            // Only the newest two of each partition are of use, and what is not compacted yet takes room.
            settings.push(("cleanup.policy", "compact".to_owned()));
            settings.push(("segment.bytes", SNAPSHOT_SEGMENT_BYTES.to_string()));
            settings.push(("min.cleanable.dirty.ratio", "0.2".to_owned()));
        } else if topic == self.features {
            // What was not renewed for a week is of an account that the processor has forgotten as well.
            settings.push(("cleanup.policy", "compact,delete".to_owned()));
            settings.push(("retention.ms", (days * DAY_MS).to_string()));
        } else {
            settings.push(("cleanup.policy", "delete".to_owned()));
            settings.push(("retention.ms", (days * DAY_MS).to_string()));
        }
        // With fewer than three replicas, requiring two would stop writes whenever one broker restarts.
        if replication >= 3 {
            settings.push(("min.insync.replicas", "2".to_owned()));
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_carries_the_prefix() {
        let names = Topics::new("test-1.");
        for (name, topic) in names.all().into_iter().zip(topics::ALL) {
            assert_eq!(name, format!("test-1.{topic}"));
        }
        assert_eq!(Topics::new("").all(), topics::ALL);
    }

    #[test]
    fn settings_follow_topic_and_replication() {
        let names = Topics::new("x.");
        let find = |topic: &str, replication, key| {
            names
                .settings(topic, replication)
                .into_iter()
                .find(|(name, _)| *name == key)
                .map(|(_, value)| value)
        };
        assert_eq!(
            find(&names.dead_letters, 1, "retention.ms"),
            Some((30 * DAY_MS).to_string())
        );
        assert_eq!(
            find(&names.payments, 1, "retention.ms"),
            find(&names.decisions, 1, "retention.ms")
        );
        assert_eq!(find(&names.rule_sets, 1, "retention.ms"), None);
        assert_eq!(find(&names.rule_sets, 1, "cleanup.policy"), Some("compact".to_owned()));
        assert_eq!(find(&names.snapshots, 1, "cleanup.policy"), Some("compact".to_owned()));
        assert_eq!(find(&names.snapshots, 1, "retention.ms"), None);
        assert_eq!(
            find(&names.features, 1, "cleanup.policy"),
            Some("compact,delete".to_owned())
        );
        assert_eq!(
            find(&names.features, 1, "retention.ms"),
            find(&names.payments, 1, "retention.ms")
        );
        assert_eq!(find(&names.payments, 1, "min.insync.replicas"), None);
        assert_eq!(find(&names.payments, 3, "min.insync.replicas"), Some("2".to_owned()));
    }
}
