//! LATE_EVENT: the payment came too late for the rules that need history, so that somebody should look at it.

use sluice_proto::decision::Reason;

use super::{Rule, Seconds};
use crate::config::Thresholds;

pub(super) const ID: &str = "LATE_EVENT";
pub(super) const VERSION: &str = "1";

#[derive(Clone, Debug)]
pub(super) struct LateEvent {
    rule: Rule,
}

impl LateEvent {
    pub(super) fn new(thresholds: &Thresholds) -> Self {
        Self {
            rule: Rule::new(ID, VERSION, thresholds.late_contribution),
        }
    }

    pub(super) fn reason(&self, behind_us: i64) -> Reason {
        let behind = Seconds(behind_us);
        self.rule.reason(format!("{behind} behind the partition's stream time"))
    }
}
