//! Owns newly decided payments: which of them are looked at next, what becomes of each, and how far a partition's position moves
//! over them.
//!
//! Called by [`super::work`], before it asks the rail and after that.

use std::collections::HashMap;
use std::time::Instant;

use sluice_kafka::fail;

use super::calls::Answered;
use super::machine::{Operation, Payment, Stage, Standing, Trouble, Word};
use super::store::{self, Decided, Open, Round, Subject};
use super::work::{Error, Session};
use super::{backoff, calls};

/// Newly decided payments of one partition.
pub(super) struct Fresh {
    pub(super) part: i32,
    /// In order.
    pub(super) rows: Vec<(Subject, Fate)>,
    /// The end of what was read.
    end: i64,
}

/// What becomes of a newly decided payment.
pub(super) enum Fate {
    /// Nothing is to be done, and no row is needed.
    Trivial,
    /// It has a row of its own.
    Row(Payment, i64),
    /// The rail is to be asked.
    Ask,
}

impl Session<'_> {
    /// Committed payments that nothing was done about yet, as many as may be asked about.
    pub(super) fn newly_decided(&mut self, most: usize) -> Result<Vec<Fresh>, Error> {
        let mut fresh = Vec::new();
        let waiting: Vec<i32> = self
            .parts
            .iter()
            .filter(|(_, part)| part.position.settled < part.watermark)
            .map(|(part, _)| *part)
            .collect();
        if waiting.is_empty() {
            return Ok(fresh);
        }
        // What is suspected is asked for twice: how it stands, and then to be captured.
        let suspects = |number: &i32| self.parts.get(number).is_some_and(|part| part.suspect > 0);
        let suspected = waiting.iter().any(suspects);
        let most = if suspected { most / 2 } else { most };
        let share = (most / waiting.len()).max(1);
        for number in waiting {
            let Some(part) = self.parts.get(&number) else { continue };
            let (settled, watermark, now_ms) = (part.position.settled, part.watermark, part.now_ms());
            let rows = self.store.decided(number, settled, watermark, share)?;
            let end = match rows.last() {
                Some(last) if rows.len() == share => last.subject.off + 1,
                _ => watermark,
            };
            let subjects: Vec<&Subject> = rows.iter().map(|row| &row.subject).collect();
            let said = self.said(&subjects)?;
            let fated = |row: Decided| {
                let key = (row.subject.part, row.subject.tenant.clone(), row.subject.event_id);
                let fate = self.fate(&row.outcome, said.get(&key), now_ms);
                (row.subject, fate)
            };
            fresh.push(Fresh {
                part: number,
                rows: rows.into_iter().map(fated).collect(),
                end,
            });
        }
        Ok(fresh)
    }

    /// What was said of each payment before it got here: the verdict, if any, and whether it is cancelled.
    fn said(&mut self, subjects: &[&Subject]) -> Result<HashMap<store::Key, (Option<Word>, bool)>, Error> {
        let mut known: HashMap<store::Key, (Option<Word>, bool)> = HashMap::new();
        if subjects.is_empty() {
            return Ok(known);
        }
        for (key, step, outcome) in self.store.said(subjects)? {
            let said = known.entry(key).or_default();
            match (step.as_str(), outcome.as_str()) {
                ("CANCEL", _) => said.1 = true,
                (_, "APPROVE") => said.0 = Some(Word::Approve),
                _ => said.0 = Some(Word::Decline),
            }
        }
        Ok(known)
    }

    fn fate(&self, outcome: &str, said: Option<&(Option<Word>, bool)>, now_ms: i64) -> Fate {
        let (word, cancelled) = said.copied().unwrap_or_default();
        match (outcome, word) {
            ("DECLINE", _) => Fate::Trivial,
            // An earlier runner that had not heard of it may still be capturing, so that the rail has to confirm.
            _ if cancelled => {
                let mut payment = Payment::at(Stage::Releasing);
                payment.cancelled = true;
                Fate::Row(payment.in_doubt(), now_ms)
            }
            ("APPROVE", _) => Fate::Ask,
            (_, Some(Word::Approve)) => Fate::Row(Payment::at(Stage::Capturing), now_ms),
            (_, Some(_)) => Fate::Row(Payment::at(Stage::Releasing), now_ms),
            (_, None) if !fail::safeguard("saga-hold") => Fate::Trivial,
            (_, None) => {
                let deadline_ms = i64::try_from(self.options.review_deadline.as_millis()).unwrap_or(i64::MAX);
                Fate::Row(Payment::at(Stage::Held), now_ms.saturating_add(deadline_ms))
            }
        }
    }

    /// Moves each partition's position over what is settled: up to the first payment that the rail was not asked about, or
    /// that it did nothing about. What is behind it is asked again, which the rail recognises.
    pub(super) fn settle_fresh(
        &mut self,
        fresh: Vec<Fresh>,
        mut answered: impl Iterator<Item = (Operation, Answered)>,
        round: &mut Round,
    ) {
        let (any, mut troubled) = (!fresh.is_empty(), None);
        let one_by_one = self.call_payments == 1;
        for Fresh {
            part: number,
            rows,
            end,
        } in fresh
        {
            let Some(part) = self.parts.get(&number) else { continue };
            let (epoch, now_ms) = (part.position.epoch, part.now_ms());
            let (mut passed, mut stopped_at) = (0, None);
            for (subject, fate) in rows {
                let (off, event_id) = (subject.off, subject.event_id);
                let row = |payment, due_ms| Open {
                    subject,
                    payment,
                    due_ms,
                    epoch,
                };
                let open = match fate {
                    Fate::Trivial => None,
                    Fate::Row(payment, due_ms) => Some(row(payment, due_ms)),
                    Fate::Ask => match answered.next() {
                        Some((_, Some(Ok(Standing::Captured)))) => None,
                        Some((operation, answer @ Some(Err(Trouble::Rejected)))) if one_by_one => {
                            // It is this payment that the rail does not take, and nobody waits for it.
                            tracing::warn!(partition = number, offset = off, %event_id, "the rail rejects a payment");
                            let mut open = row(Payment::at(Stage::Capturing), now_ms);
                            self.apply(&mut open, operation, answer);
                            Some(open)
                        }
                        Some((operation, Some(Err(trouble))))
                            if operation == Operation::Query || trouble != Trouble::Unknown =>
                        {
                            troubled = Some(trouble);
                            stopped_at.get_or_insert(off);
                            None
                        }
                        Some((_, None)) | None => {
                            stopped_at.get_or_insert(off);
                            None
                        }
                        Some((operation, answer)) => {
                            let mut open = row(Payment::at(Stage::Capturing), now_ms);
                            self.apply(&mut open, operation, answer);
                            Some(open)
                        }
                    },
                };
                if stopped_at.is_none() {
                    round.rows.extend(open);
                    passed += 1;
                }
            }
            if let Some(part) = self.parts.get_mut(&number) {
                part.suspect = part.suspect.saturating_sub(passed);
                part.position.settled = stopped_at.unwrap_or(end);
                round.positions.push(part.position);
            }
        }
        let narrower = troubled == Some(Trouble::Rejected) && !one_by_one;
        self.call_payments = match troubled {
            Some(Trouble::Rejected) => (self.call_payments / 2).max(1),
            None if any => (self.call_payments * 2).min(calls::CALL_PAYMENTS),
            _ => self.call_payments,
        };
        self.calm = match troubled {
            // Asking about fewer at once is another question.
            Some(_) if narrower => (0, None),
            Some(trouble) => {
                let failures = self.calm.0.saturating_add(1);
                let wait = backoff::wait(trouble, failures, fastrand::f64());
                (failures, Some(Instant::now() + wait))
            }
            None if any => (0, None),
            None => self.calm,
        };
    }
}
