//! Owns one round of the saga: whose partitions are ours ▸ what was said ▸ what is due and what is newly decided ▸ the
//! rail's answers ▸ store ▸ tell. It is the driver; every other file of the saga returns its value to it.
//!
//! Run again and again by [`super::runner`]. Nothing is asked of the rail that does not follow from what is stored, and
//! nothing is told before it is stored. So whatever a runner was doing when it died, the next one finds the reason for it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_kafka::fail;
use sluice_proto::settlement::Kind;

use super::backoff;
use super::breaker::Breaker;
use super::calls::{self, Answered, Job, MOST};
use super::fresh::{Fate, Fresh};
use super::machine::{Next, Operation, Payment, STUCK_ATTEMPTS, Stage, Standing, Trouble, Word};
use super::notify::{self, Notifier};
use super::rail::{HttpRail, Order};
use super::runner::Options;
use super::store::{self, Open, Position, Round, Step, Store, Subject};
use super::verdicts::{self, Verdicts};
use crate::lane::Settings;

/// Most rows about which something is due that are looked at in one round: one call's worth, so that new payments have
/// their share.
const MAX_DUE: usize = calls::CALL_PAYMENTS;
/// Most settlements of a partition that are told in one round.
const MAX_TOLD: usize = 1_000;
/// A hold's clock is stored at least so often.
const CLOCK_EVERY: Duration = Duration::from_secs(1);
/// Who ends a review that nobody ended: no principal has an empty name.
const DEADLINE: &str = "";

/// Why a round failed. The next begins with new connections.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Postgres.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Reading verdicts.
    #[error(transparent)]
    Verdicts(#[from] verdicts::Error),
    /// Telling settlements.
    #[error(transparent)]
    Notify(#[from] notify::Error),
    /// Only where faults are injected.
    #[error(transparent)]
    Injected(#[from] fail::Injected),
}

/// A partition of ours.
pub(super) struct Part {
    pub(super) position: Position,
    /// When the position's clock was right.
    read_at: Instant,
    /// Rows below are committed.
    pub(super) watermark: i64,
    /// An earlier runner may have asked for so many of the next payments: their standing is asked for first.
    pub(super) suspect: usize,
}

impl Part {
    /// What the partition's clock says. Only this process's monotonic clock moves it.
    pub(super) fn now_ms(&self) -> i64 {
        let passed = i64::try_from(self.read_at.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.position.clock_ms.saturating_add(passed)
    }

    /// The position with the clock as it is now.
    fn stamp(&mut self) -> Position {
        let passed = u64::try_from(self.read_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.position.clock_ms = self.now_ms();
        // What is left of a millisecond counts the next time.
        self.read_at += Duration::from_millis(passed);
        self.position
    }
}

/// A runner's connections, and what it has in hand.
pub(crate) struct Session<'r> {
    pub(super) settings: &'r Settings,
    pub(super) options: &'r Options,
    breaker: &'r mut Breaker,
    /// When the breaker's time began.
    since: Instant,
    pub(super) store: Store,
    rail: HttpRail,
    pub(super) verdicts: Verdicts,
    notifier: Notifier,
    pub(super) parts: BTreeMap<i32, Part>,
    /// New payments wait until then, because calls about them failed.
    pub(super) calm: (u16, Option<Instant>),
    /// Most payments of a call: fewer after the rail rejected one, to find out which payment it does not take.
    pub(super) call_payments: usize,
    /// Payments with rows of their own in calls that it rejected, by partition and offset.
    pub(super) alone: HashSet<(i32, i64)>,
}

impl<'r> Session<'r> {
    /// Connects to everything.
    pub(crate) fn open(
        settings: &'r Settings,
        options: &'r Options,
        breaker: &'r mut Breaker,
        since: Instant,
    ) -> Result<Self, Error> {
        let verdicts = Verdicts::new(
            &options.kafka,
            &settings.topics.verdicts,
            options.verdict_schema,
            Arc::clone(&settings.registry),
        )?;
        Ok(Self {
            store: Store::connect(&options.postgres)?,
            rail: HttpRail::new(&options.rail, options.timeout),
            verdicts,
            notifier: Notifier::new(&options.kafka, &settings.topics.settlements, options.settlement_schema)?,
            parts: BTreeMap::new(),
            calm: (0, None),
            call_payments: calls::CALL_PAYMENTS,
            alone: HashSet::new(),
            settings,
            options,
            breaker,
            since,
        })
    }

    /// One round. Says whether there may be more to do at once.
    pub(crate) fn round(&mut self) -> Result<bool, Error> {
        self.follow_lanes()?;
        let mut busy = self.heed()?;
        busy |= self.settle()?;
        busy |= self.tell()?;
        self.keep_time()?;
        Ok(busy)
    }

    /// Takes the partitions that our lanes have taken over, and gives up those that they have lost.
    fn follow_lanes(&mut self) -> Result<(), Error> {
        let settings = self.settings;
        let ours = self
            .store
            .lanes(&settings.topics.payments, &settings.transactional_ids)?;
        let new: Vec<i32> = ours
            .iter()
            .map(|(part, _)| *part)
            .filter(|part| !self.parts.contains_key(part))
            .collect();
        let before = self.parts.len();
        self.parts.retain(|part, _| ours.iter().any(|(our, _)| our == part));
        let changed = !new.is_empty() || self.parts.len() < before;
        if !new.is_empty() {
            for position in self.store.take(&new, &settings.transactional_ids[0])? {
                tracing::info!(
                    partition = position.part,
                    epoch = position.epoch,
                    settled = position.settled,
                    "saga taken"
                );
                let part = Part {
                    position,
                    read_at: Instant::now(),
                    watermark: 0,
                    suspect: MOST.payments,
                };
                self.parts.insert(position.part, part);
            }
        }
        if changed {
            let from = self
                .parts
                .values()
                .map(|part| (part.position.part, part.position.verdicts));
            self.verdicts.assign(from).map_err(verdicts::Error::from)?;
        }
        let mut behind = 0;
        for (part, watermark) in ours {
            if let Some(part) = self.parts.get_mut(&part) {
                part.watermark = watermark;
                behind += (watermark - part.position.settled).max(0);
            }
        }
        settings.metrics.saga_behind(behind);
        Ok(())
    }

    /// Ends holds, asks the rail about everything that is due and that is new, and stores what came of it.
    fn settle(&mut self) -> Result<bool, Error> {
        let allowed = self.breaker.allow(self.since.elapsed(), MOST);
        self.settings.metrics.rail_breaker(self.breaker.mode());
        let calls = allowed.calls > 0 && allowed.payments > 0;
        let clocks: Vec<(i32, i64)> = self.parts.iter().map(|(part, it)| (*part, it.now_ms())).collect();
        let mut due = self.store.due(&clocks, calls, MAX_DUE)?;
        let mut round = Round::default();
        self.end_holds(&mut due, &mut round);
        let mut fresh = Vec::new();
        if calls && self.calm.1.is_none_or(|until| Instant::now() >= until) {
            fresh = self.newly_decided(allowed.payments)?;
        }
        if due.is_empty() && round.rows.is_empty() && fresh.is_empty() {
            return Ok(false);
        }
        fail::point("saga.asking")?;
        self.ask(due, fresh, &mut round);
        fail::point("saga.asked")?;
        let parts: HashSet<i32> = round
            .positions
            .iter()
            .map(|position| position.part)
            .chain(round.rows.iter().map(|row| row.subject.part))
            .collect();
        let rows: Vec<(Stage, u16)> = round
            .rows
            .iter()
            .map(|row| (row.payment.stage, row.payment.attempts))
            .collect();
        round.positions = self.stamped(parts.into_iter());
        self.store.store(&round)?;
        for (stage, attempts) in rows {
            self.settings.metrics.saga_stage(stage);
            if attempts == STUCK_ATTEMPTS {
                self.settings.metrics.saga_stuck();
            }
        }
        Ok(true)
    }

    /// Takes the holds out of what is due: their deadline says what becomes of them.
    fn end_holds(&self, due: &mut Vec<Open>, round: &mut Round) {
        let (word, outcome) = match self.options.at_deadline {
            Word::Approve => (Word::Approve, "APPROVE"),
            Word::Decline | Word::Cancel => (Word::Decline, "DECLINE"),
        };
        due.retain_mut(|row| {
            let Some(part) = self.parts.get(&row.subject.part) else {
                return false;
            };
            if row.payment.stage != Stage::Held {
                if row.epoch != part.position.epoch {
                    row.payment = row.payment.in_doubt();
                }
                row.epoch = part.position.epoch;
                return true;
            }
            row.payment.hear(word);
            (row.due_ms, row.epoch) = (part.now_ms(), part.position.epoch);
            round.steps.push(Step {
                part: row.subject.part,
                tenant: row.subject.tenant.clone(),
                event_id: row.subject.event_id,
                step: "VERDICT",
                outcome,
                actor: DEADLINE.to_owned(),
                reason: String::new(),
            });
            round.rows.push(row.clone());
            false
        });
    }

    /// Asks the rail, and puts into the round what came of it.
    fn ask(&mut self, due: Vec<Open>, fresh: Vec<Fresh>, round: &mut Round) {
        let mut jobs: Vec<Job> = due
            .iter()
            .filter_map(|row| self.job(&row.subject, &row.payment))
            .collect();
        let known = jobs.len();
        for Fresh { part, rows, .. } in &fresh {
            let mut payment = Payment::at(Stage::Capturing);
            payment.doubt = self.parts.get(part).is_some_and(|part| part.suspect > 0);
            let asks = rows.iter().filter(|(_, fate)| matches!(fate, Fate::Ask));
            jobs.extend(asks.filter_map(|(subject, _)| self.job(subject, &payment)));
        }
        let mut answers = self.calls(&jobs);
        // What a suspected call did not do is done now.
        let again: Vec<usize> = (known..jobs.len())
            .filter(|number| {
                jobs[*number].operation == Operation::Query && matches!(answers[*number], Some(Ok(Standing::None)))
            })
            .collect();
        if !again.is_empty() {
            let captures: Vec<Job> = again
                .iter()
                .map(|number| Job {
                    operation: Operation::Capture,
                    ..jobs[*number].clone()
                })
                .collect();
            for (number, answer) in again.into_iter().zip(self.calls(&captures)) {
                (answers[number], jobs[number].operation) = (answer, Operation::Capture);
            }
        }
        let mut answered = jobs.iter().map(|job| job.operation).zip(answers);
        for mut row in due {
            let Some((operation, answer)) = answered.next() else {
                break;
            };
            if self.apply(&mut row, operation, answer) {
                round.rows.push(row);
            }
        }
        self.settle_fresh(fresh, answered, round);
    }

    fn calls(&mut self, jobs: &[Job]) -> Vec<Answered> {
        let metrics = &self.settings.metrics;
        calls::ask(&self.rail, self.breaker, self.since, metrics, self.call_payments, jobs)
    }

    /// What is to be asked about a payment.
    fn job(&self, subject: &Subject, payment: &Payment) -> Option<Job> {
        let Next::Call(operation) = payment.next() else {
            return None;
        };
        let mut key = format!("{}/{}", subject.tenant, subject.event_id);
        if !fail::safeguard("idempotency-key") {
            // Another key with each call: the rail cannot know what it has done.
            key.push_str(&format!("/{}", fastrand::u64(..)));
        }
        let order = Order {
            key,
            account: subject.account_id.clone(),
            amount: subject.amount.to_string(),
            currency: subject.currency.clone(),
        };
        Some(Job {
            operation,
            order,
            alone: self.alone.contains(&(subject.part, subject.off)),
        })
    }

    /// What an answer makes of a row. Says whether anything has changed.
    pub(super) fn apply(&mut self, row: &mut Open, operation: Operation, answer: Answered) -> bool {
        let before = row.payment;
        let trouble = match answer {
            None => return false,
            Some(Ok(standing)) => {
                self.alone.remove(&(row.subject.part, row.subject.off));
                row.payment.answered(operation, standing);
                Trouble::Retriable
            }
            Some(Err(trouble)) => {
                if trouble == Trouble::Rejected {
                    self.alone.insert((row.subject.part, row.subject.off));
                }
                row.payment.failed(trouble);
                trouble
            }
        };
        let wait = if row.payment.attempts == 0 && matches!(answer, Some(Ok(_))) {
            // It led on, or the question was answered.
            Duration::ZERO
        } else {
            backoff::wait(trouble, row.payment.attempts.max(before.attempts), fastrand::f64())
        };
        let now_ms = self.parts.get(&row.subject.part).map_or(0, Part::now_ms);
        row.due_ms = now_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
        true
    }

    /// Tells what is settled and was not told.
    fn tell(&mut self) -> Result<bool, Error> {
        let (mut settled, mut round) = (Vec::new(), Round::default());
        let numbers: Vec<i32> = self.parts.keys().copied().collect();
        for number in &numbers {
            let Some(part) = self.parts.get_mut(number) else {
                continue;
            };
            if part.position.notified >= part.position.settled {
                continue;
            }
            let rows = self.store.unnotified(&part.position, MAX_TOLD)?;
            part.position.notified = match rows.last() {
                Some(last) if rows.len() == MAX_TOLD => last.subject.off + 1,
                _ => part.position.settled,
            };
            round.positions.push(part.position);
            settled.extend(rows.into_iter().map(|row| {
                let kind = if row.outcome == "APPROVE" {
                    Kind::Captured
                } else {
                    Kind::Released
                };
                (row.subject, kind)
            }));
        }
        for row in self.store.unnotified_rows(&numbers, MAX_TOLD)? {
            let kind = match row.payment.stage {
                Stage::Captured => Kind::Captured,
                Stage::Released => Kind::Released,
                Stage::Refunded => Kind::Refunded,
                Stage::Held | Stage::Capturing | Stage::Releasing | Stage::Refunding => continue,
            };
            round.notified.push((row.subject.part, row.subject.off));
            settled.push((row.subject, kind));
        }
        if round.positions.is_empty() && round.notified.is_empty() {
            return Ok(false);
        }
        self.notifier
            .tell(settled.iter().map(|(subject, kind)| (subject, *kind)))?;
        fail::point("saga.told")?;
        let parts: HashSet<i32> = round
            .positions
            .iter()
            .map(|position| position.part)
            .chain(round.notified.iter().map(|place| place.0))
            .collect();
        round.positions = self.stamped(parts.into_iter());
        self.store.store(&round)?;
        for (_, kind) in settled {
            self.settings.metrics.settled(kind);
        }
        Ok(true)
    }

    /// Stores the clocks of partitions about which nothing else was stored for a while.
    fn keep_time(&mut self) -> Result<(), Error> {
        let old: Vec<i32> = self
            .parts
            .iter()
            .filter(|(_, part)| part.read_at.elapsed() >= CLOCK_EVERY)
            .map(|(part, _)| *part)
            .collect();
        if !old.is_empty() {
            let positions = self.stamped(old.into_iter());
            self.store.store(&Round {
                positions,
                ..Round::default()
            })?;
        }
        Ok(())
    }

    pub(super) fn stamped(&mut self, parts: impl Iterator<Item = i32>) -> Vec<Position> {
        let mut positions = Vec::new();
        for number in parts {
            positions.extend(self.parts.get_mut(&number).map(Part::stamp));
        }
        positions
    }
}
