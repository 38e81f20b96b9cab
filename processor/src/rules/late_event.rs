//! LATE_EVENT: the payment came too late for the rules that need history, so that somebody should look at it.

use super::{Rule, Seconds, document};

pub(super) const ID: &str = "LATE_EVENT";
pub(super) const VERSION: &str = "1";

#[derive(Debug)]
pub(super) struct LateEvent {
    pub(super) rule: Rule,
}

impl LateEvent {
    pub(super) fn new(given: &document::LateEvent) -> Self {
        Self {
            // A late payment is never approved, and its reason must be seen.
            rule: Rule::new(ID, VERSION, given.contribution, false),
        }
    }

    pub(super) fn detail(&self, behind_us: i64) -> String {
        format!("{} behind the partition's stream time", Seconds(behind_us))
    }
}
