//! LATE_EVENT: the payment came too late for the rules that need history, so that somebody should look at it.

use sluice_proto::decision::Reason;

use super::Rule;
use crate::config::Thresholds;

pub(super) const ID: &str = "LATE_EVENT";
pub(super) const VERSION: &str = "1";

#[derive(Clone, Debug)]
pub(super) struct LateEvent {
    rule: Rule,
    allowed_lateness_s: u32,
}

impl LateEvent {
    pub(super) fn new(thresholds: &Thresholds) -> Self {
        Self {
            rule: Rule::new(ID, VERSION, thresholds.late_contribution),
            allowed_lateness_s: thresholds.allowed_lateness_s,
        }
    }

    pub(super) fn reason(&self) -> Reason {
        self.rule.reason(format!(
            "more than {} s behind the partition's stream time",
            self.allowed_lateness_s
        ))
    }
}
