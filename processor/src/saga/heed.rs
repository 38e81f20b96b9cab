//! Owns what follows from what somebody says of a payment: a verdict ends a review, a cancellation takes a payment back.
//!
//! A stage of [`super::work`]'s round, after [`super::verdicts`] has read; nothing is asked of the rail here. A word about a
//! payment that is not settled yet is kept, and heeded when the payment comes.

use std::collections::HashSet;

use sluice_proto::settlement::Action;
use uuid::Uuid;

use super::machine::{Payment, Stage, Word};
use super::store::{Open, Round, Step};
use super::verdicts::Heard;
use super::work::{Error, Session};

/// How far a partition is when somebody says something of one of its payments.
#[derive(Clone, Copy)]
struct Now {
    /// By the partition's clock.
    ms: i64,
    /// Payments below are settled.
    settled: i64,
    /// Rows below are committed.
    watermark: i64,
    epoch: i64,
}

impl Session<'_> {
    /// Heeds what was said since the last round.
    pub(super) fn heed(&mut self) -> Result<bool, Error> {
        let heard = self.verdicts.read()?;
        if heard.is_empty() {
            return Ok(false);
        }
        let mut round = Round::default();
        for one in heard {
            self.heed_one(one, &mut round)?;
        }
        let parts: HashSet<i32> = round.positions.iter().map(|position| position.part).collect();
        round.positions = self.stamped(parts.into_iter());
        self.store.store(&round)?;
        Ok(true)
    }

    fn heed_one(&mut self, heard: Heard, round: &mut Round) -> Result<(), Error> {
        let Some(part) = self.parts.get_mut(&heard.part) else {
            return Ok(());
        };
        part.position.verdicts = heard.off + 1;
        round.positions.push(part.position);
        let now = Now {
            ms: part.now_ms(),
            settled: part.position.settled,
            watermark: part.watermark,
            epoch: part.position.epoch,
        };
        let Some(verdict) = heard.verdict else {
            self.settings.metrics.verdict("unreadable");
            return Ok(());
        };
        let (part, tenant, id) = (heard.part, verdict.tenant, verdict.event_id.uuid());
        let (step, word) = match verdict.action {
            Action::Approve => ("VERDICT", Word::Approve),
            Action::Decline => ("VERDICT", Word::Decline),
            Action::Cancel => ("CANCEL", Word::Cancel),
        };
        let taken = self.take_word((part, &tenant, id), step, word, now, round)?;
        let result = if taken { "taken" } else { "late" };
        self.settings.metrics.verdict(result);
        tracing::info!(partition = part, tenant, event_id = %id, step, actor = verdict.actor, result, "verdict");
        if taken {
            round.steps.push(Step {
                part,
                tenant,
                event_id: id,
                step,
                outcome: verdict.action.as_str(),
                actor: verdict.actor,
                reason: verdict.reason,
            });
        }
        Ok(())
    }

    /// Says whether the word is the first of its kind, not too late, and not a verdict on what is no review. One about a payment
    /// that is not settled yet waits for it.
    fn take_word(
        &mut self,
        (part, tenant, id): (i32, &str, Uuid),
        step: &'static str,
        word: Word,
        now: Now,
        round: &mut Round,
    ) -> Result<bool, Error> {
        let in_round =
            |said: &Step| said.part == part && said.tenant == tenant && said.event_id == id && said.step == step;
        if round.steps.iter().any(in_round) || self.store.has_said(part, tenant, id, step)? {
            return Ok(false);
        }
        let earlier = round
            .rows
            .iter_mut()
            .find(|row| row.subject.part == part && row.subject.tenant == tenant && row.subject.event_id == id);
        if let Some(row) = earlier {
            return Ok(row.payment.hear(word));
        }
        if let Some(mut row) = self.store.find(part, tenant, id)? {
            // Who asked the rail last may be somebody else; see `Payment::in_doubt`.
            if row.epoch != now.epoch {
                row.payment = row.payment.in_doubt();
            }
            let mattered = row.payment.hear(word);
            if mattered {
                (row.due_ms, row.epoch) = (now.ms, now.epoch);
                round.rows.push(row);
            }
            return Ok(mattered);
        }
        let Some(decided) = self.store.find_decided(part, tenant, id, now.watermark)? else {
            return Ok(true);
        };
        if word != Word::Cancel && decided.outcome != "REVIEW" {
            return Ok(false);
        }
        if decided.subject.off >= now.settled {
            return Ok(true);
        }
        // It was settled without a row: captured or released.
        let mut payment = Payment::at(if decided.outcome == "APPROVE" {
            Stage::Captured
        } else {
            Stage::Released
        });
        let mattered = payment.hear(word);
        if mattered {
            round.rows.push(Open {
                subject: decided.subject,
                payment,
                due_ms: now.ms,
                epoch: now.epoch,
            });
        }
        Ok(mattered)
    }
}
