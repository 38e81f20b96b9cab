//! Owns the lane: one thread that takes batches from Kafka through every stage, and the order in which that is made
//! durable. This is the driver: stages return their values here and never call each other.
//!
//! One batch: [`consume`] ▸ [`decode`](crate::decode) ▸ [`state`](crate::state) ▸ [`rules`](crate::rules) ▸ prepare in
//! Postgres, and meanwhile send and settle ▸ commit ▸ merge. Nothing is in flight between two batches, so that a rebalance,
//! which Kafka tells of while polling, never meets half a batch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use sluice_kafka::registry::Registry;
use sluice_kafka::telemetry::{SpanKind, Tracer};
use sluice_kafka::{Topics, error, fail, metrics};
use sluice_proto::avro;
use sluice_proto::decision::Decision;
use sluice_proto::event::PaymentRecord;
use uuid::Uuid;

use crate::batch::{Batch, Output, Written};
use crate::breaker::Breaker;
use crate::consume::{self, Assignment, Bounds, Collected};
use crate::dead_letter::Kind;
use crate::decode::{self, Decoder, Failure};
use crate::ledger::{self, Owner, Rows};
use crate::linger;
use crate::links::{self, Links};
use crate::metrics::{Metrics, Step};
use crate::publish;
use crate::replay::{Kept, Replayed};
use crate::rules::RuleSet;
use crate::snapshot::Due;
use crate::state::{Observed, State};
use crate::takeover::{self, Start, take_over};
use crate::world::{Books, Member, Reader, Record, Transactions, World};

/// How long a lane without records waits before it flushes its watermarks and looks whether it should end.
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// How often a lane that writes nothing makes sure that the ledger has what it wrote.
const CONFIRM_EVERY: Duration = Duration::from_secs(5);
/// How often the lag and the size of the state are measured, while records come.
const MEASURE_EVERY: Duration = Duration::from_secs(5);

/// What all lanes of the process share.
pub(crate) struct Settings {
    pub(crate) topics: Topics,
    pub(crate) transaction_timeout: Duration,
    /// One for each lane.
    pub(crate) transactional_ids: Vec<String>,
    pub(crate) bounds: Bounds,
    /// See [`crate::linger`].
    pub(crate) decision_target: Duration,
    /// What decides where no record has put another rule set in force.
    pub(crate) rules: Arc<RuleSet>,
    pub(crate) lateness_us: i64,
    pub(crate) payment_schema: i32,
    pub(crate) decision_schema: i32,
    /// None where features are not written.
    pub(crate) features_schema: Option<i32>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Metrics,
    pub(crate) kafka_metrics: metrics::Metrics,
    pub(crate) tracer: Tracer,
    /// State of partitions that no lane has taken over now: of use to whichever gets them next.
    pub(crate) kept: Kept,
    /// This run of the process, in the ledger's rows and in the log.
    pub(crate) run: Uuid,
}

impl Settings {
    /// A lane's name, for people.
    pub(crate) fn lane_name(&self, lane: u16) -> String {
        self.transactional_ids[usize::from(lane)].clone()
    }
}

/// A partition that this lane took over.
pub(crate) struct Part {
    pub(crate) epoch: i64,
    /// The watermark as Postgres has it.
    pub(crate) flushed: i64,
    /// The offset after the last committed batch, and so what the watermark should be.
    pub(crate) next: i64,
    pub(crate) state: State,
    pub(crate) snapshot: Due,
}

/// Why a lane stopped in the middle of something. Everything but a dead consumer is answered by a takeover.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka's consumer.
    #[error(transparent)]
    Consumer(#[from] error::Consumer),
    /// The schema of a record has to be fetched, and cannot be.
    #[error(transparent)]
    Registry(#[from] error::Registry),
    /// The transaction.
    #[error(transparent)]
    Publish(#[from] publish::Error),
    /// Preparing, or the watermark.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// A takeover.
    #[error(transparent)]
    TakeOver(#[from] takeover::Error),
    /// This version's own schema cannot be read.
    #[error(transparent)]
    Schema(#[from] avro::DecodeError),
    /// The ledger holds an event_id of the batch and does not say which.
    #[error("the ledger refuses a batch for a reason that is not in the batch")]
    Unresolved,
    /// Only where faults are injected.
    #[error(transparent)]
    Injected(#[from] fail::Injected),
    /// There was no takeover. It is a mistake of this program, from which a takeover recovers.
    #[error("the lane has nothing to write with")]
    NotTakenOver,
    /// The same for one partition.
    #[error("a record of partition {0} came, which was not taken over")]
    NotOwned(i32),
    /// The log gives what was decided already: it ends before the group's offset, and is read from its beginning.
    #[error("the record at {0}:{1} came, but everything before {2} is decided")]
    Behind(i32, i64, i64),
}

/// What a lane and the process tell each other.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    /// The lane has dealt with its first assignment.
    pub(crate) ready: AtomicBool,
    /// The lane is to finish its batch and end.
    pub(crate) stop: AtomicBool,
}

/// One lane. It stays on its thread.
struct Lane<'l, W: World> {
    number: u16,
    world: &'l W,
    settings: &'l Settings,
    signals: &'l Signals,
    consumer: &'l W::Member,
    consumed: metrics::Consumer,
    decoder: Decoder,
    assignment: Assignment<W::Membership>,
    /// Why the assigned partitions have to be taken over before anything else, if they have to.
    owed: Option<String>,
    breaker: Breaker,
    linger: linger::Controller,
    links: Links<W>,
    parts: BTreeMap<i32, Part>,
    rows: Rows,
    confirmed: Instant,
    measured: Instant,
}

/// Runs a lane until it is told to stop.
///
/// # Errors
/// Only when its Kafka client can never be used again.
pub(crate) fn run(number: u16, world: &impl World, settings: &Settings, signals: &Signals) -> Result<(), Error> {
    let consumer = world.join(settings)?;
    let decoder = Decoder::new(settings.payment_schema, settings.registry.clone())?;
    let mut lane = Lane {
        number,
        world,
        settings,
        signals,
        consumer: &consumer,
        consumed: settings.kafka_metrics.consumer(&settings.topics.payments),
        decoder,
        assignment: Assignment::none(),
        owed: None,
        breaker: Breaker::default(),
        linger: linger::Controller::new(settings.decision_target, settings.bounds.linger),
        links: Links::NONE,
        parts: BTreeMap::new(),
        rows: Rows::default(),
        confirmed: world.now(),
        measured: world.now(),
    };
    while !signals.stop.load(Ordering::Relaxed) {
        match lane.step() {
            Ok(()) => {}
            Err(Error::Consumer(error)) if error.is_fatal() => return Err(error.into()),
            Err(error) => lane.fail(&error)?,
        }
    }
    lane.drain();
    Ok(())
}

/// A record of the payments topic.
type Polled<'r, W> = <<W as World>::Member as Reader>::Record<'r>;

impl<W: World> Lane<'_, W> {
    fn step(&mut self) -> Result<(), Error> {
        if self.owed.is_some() && self.breaker.is_closed(self.world.now()) {
            self.take_over()?;
        }
        let bounds = Bounds {
            linger: self.linger.linger(),
            ..self.settings.bounds
        };
        match consume::collect(
            self.consumer,
            &bounds,
            IDLE_WAIT,
            self.assignment.change,
            &self.consumed,
            || self.world.now(),
        )? {
            Collected::Rebalanced => {
                let topic = &self.settings.topics.payments;
                for partition in &self.assignment.partitions {
                    // It is another member's to tell.
                    self.settings.kafka_metrics.forget_lag(topic, *partition);
                }
                self.park();
                self.assignment = self.consumer.assignment();
                self.owed = self.assignment.membership.is_some().then(|| "assignment".to_owned());
                Ok(())
            }
            Collected::Idle => {
                self.flush_watermarks()?;
                self.confirm()
            }
            Collected::Records(records) => self.process(&records),
        }
    }

    fn take_over(&mut self) -> Result<(), Error> {
        let Some(reason) = &self.owed else { return Ok(()) };
        let start = Start {
            world: self.world,
            settings: self.settings,
            lane: self.number,
            consumer: self.consumer,
            assignment: &self.assignment,
            reason,
        };
        let (consumer, change, signals) = (self.consumer, self.assignment.change, self.signals);
        let goes_on = || {
            // Nothing is assigned meanwhile, so that polling serves the group and gives no record.
            consumer.poll(Duration::ZERO).is_none_or(|_| true)
                && consumer.is_current(change)
                && !signals.stop.load(Ordering::Relaxed)
        };
        self.parts = match take_over(&start, &mut self.links, &mut self.decoder, goes_on) {
            // The next poll tells which assignment there is to take over instead.
            Err(error) if error.is_cancelled() => return Ok(()),
            taken => taken?,
        };
        self.settings.metrics.breaker(self.number, false);
        self.owed = None;
        self.signals.ready.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// One batch, from records to decisions that can be seen.
    fn process(&mut self, records: &[Polled<'_, W>]) -> Result<(), Error> {
        fail::point("lane.polled")?;
        if !fail::safeguard("offsets-last") {
            self.consumer.commit_early(records)?;
        }
        let mut timer = Timer::start(&self.settings.metrics);
        let mut batch = self.decide(records)?;
        fail::point("lane.decided")?;
        timer.lap(Step::Decide);
        let late = batch.late_keys();
        if !late.is_empty() {
            let known = self.ledger()?.known(&late)?;
            batch.resolve(known);
        }
        while let Err(error) = self.transact(&batch, &mut timer) {
            if !matches!(error, Error::Ledger(ledger::Error::Conflict)) {
                return Err(error);
            }
            let refused = self.world.now();
            self.publisher()?.abort()?;
            let aborting = self.world.now().duration_since(refused);
            links::ended(&mut self.links.publisher, "aborting", aborting);
            let known = self.ledger()?.known(&batch.keys())?;
            if batch.resolve(known) == 0 {
                return Err(Error::Unresolved);
            }
        }
        fail::point("lane.committed")?;
        for (partition, end) in &batch.ends {
            if let Some(part) = self.parts.get_mut(partition) {
                part.state.merge();
                part.next = *end;
            }
        }
        fail::point("lane.merged")?;
        self.breaker.reset();
        self.settings.metrics.committed(records.len(), &batch);
        self.adapt(batch.oldest_us);
        end_spans(batch);
        self.offer_snapshots();
        self.measure();
        Ok(())
    }

    /// Reads and judges every record. What the state learns is not merged yet.
    fn decide<'m, R: Record>(&mut self, records: &'m [R]) -> Result<Batch<'m, R>, Error> {
        let tracer = &self.settings.tracer;
        let now = SystemTime::now();
        let mut batch = Batch::with_capacity(records.len());
        for message in records {
            let (partition, offset) = (message.partition(), message.offset());
            let part = self.parts.get_mut(&partition).ok_or(Error::NotOwned(partition))?;
            if offset < part.next {
                return Err(Error::Behind(partition, offset, part.next));
            }
            batch.ends.insert(partition, offset + 1);
            let mut input = match self.decoder.decode(message) {
                Ok(decode::Record::Payment(input)) => input,
                Ok(decode::Record::Rules(rules)) => {
                    tracing::info!(partition, offset, rules = &*rules.version(), "rule set");
                    part.state.apply(rules);
                    batch.outputs.push(Output::untraced(message, Written::RuleSet));
                    continue;
                }
                Err(Failure::Letter { kind, error }) => {
                    tracing::warn!(partition, offset, kind = kind.as_str(), error, "dead letter");
                    let letter = Written::Letter { kind, error };
                    batch.outputs.push(Output::untraced(message, letter));
                    continue;
                }
                Err(Failure::Registry(error)) => return Err(error.into()),
            };
            let oldest_us = batch.oldest_us.get_or_insert(input.appended_at);
            *oldest_us = input.appended_at.min(*oldest_us);
            let observed = part.state.observe(&input.payment, input.appended_at);
            let features = match &observed {
                Observed::Fresh(features) if self.settings.features_schema.is_some() => {
                    Some(Box::new(features.record(&input.payment, partition, offset)))
                }
                _ => None,
            };
            let (rules, aside) = (part.state.rules(), &mut batch.aside);
            let verdict = match observed {
                Observed::Duplicate => {
                    batch.duplicates += 1;
                    continue;
                }
                Observed::Conflict => {
                    batch.outputs.push(Output::untraced(message, conflict(&input.payment)));
                    continue;
                }
                Observed::Late { behind_us } => rules.judge_late(&input.payment, behind_us, aside),
                Observed::Fresh(features) => rules.judge(&input.payment, &features, aside),
            };
            let traceparent = input.payment.traceparent.take();
            let decision = Decision::new(input.payment, verdict, rules.version(), partition, offset);
            let span = tracer
                .start("decide", SpanKind::Consumer, traceparent.as_deref(), now)
                .map(|mut span| {
                    span.set("messaging.kafka.offset", offset);
                    span.set("messaging.destination.partition.id", i64::from(partition));
                    span.set("sluice.outcome", decision.outcome.as_str());
                    span
                });
            batch.outputs.push(Output {
                message,
                traceparent,
                span,
                written: Written::Decision(decision),
                features,
            });
        }
        Ok(batch)
    }

    /// Has the linger follow the delay of the batch's oldest payment, as far as the clocks of this machine and of whoever
    /// published agree.
    fn adapt(&mut self, oldest_us: Option<i64>) {
        let Some(oldest_us) = oldest_us else { return };
        let delay_us = u64::try_from(self.world.unix_us().saturating_sub(oldest_us)).unwrap_or(0);
        if let Some(p99) = self.linger.observe(Duration::from_micros(delay_us)) {
            self.settings.metrics.paced(self.number, p99, self.linger.linger());
        }
    }

    /// Makes a batch durable. Postgres prepares while Kafka takes the records and the offsets, which count from the
    /// commit on; the commit comes when both are done.
    fn transact(&mut self, batch: &Batch<'_, impl Record>, timer: &mut Timer<'_>) -> Result<(), Error> {
        let membership = self.assignment.membership.clone().ok_or(Error::NotTakenOver)?;
        let mut owners = self.owners(|partition, part| batch.ends.contains_key(&partition) || part.flushed < part.next);
        if !fail::safeguard("watermark-last") {
            for owner in &mut owners {
                owner.watermark = batch.ends.get(&owner.part).copied().unwrap_or(owner.watermark);
            }
        }
        let epoch = |partition| self.parts.get(&partition).map_or(0, |part| part.epoch);
        let mut rows = std::mem::take(&mut self.rows);
        batch.fill(&mut rows, epoch, self.settings.run);
        if self.links.publisher.is_none() {
            self.links.publisher = Some(self.world.transactions(self.settings, self.number)?);
        }
        let Links {
            ledger: Some(ledger),
            publisher: Some(publisher),
        } = &mut self.links
        else {
            return Err(Error::NotTakenOver);
        };
        let preparing = ledger.prepare(owners.clone(), rows)?;
        publisher.send(&batch.outputs)?;
        timer.lap(Step::Send);
        fail::point("lane.sent")?;
        publisher.settle()?;
        let settled = self.world.now();
        publisher.send_offsets(&batch.ends, &membership)?;
        let sending = self.world.now().duration_since(settled);
        publish::sent_once("sending offsets", sending, publish::DOUBTFUL_OFFSETS)?;
        timer.lap(Step::Settle);
        fail::point("lane.settled")?;
        self.rows = ledger.finish(preparing)?;
        timer.lap(Step::Prepare);
        fail::point("lane.prepared")?;
        let prepared = self.world.now();
        publisher.commit()?;
        timer.lap(Step::Commit);
        let committing = self.world.now().duration_since(prepared);
        links::ended(&mut self.links.publisher, "committing", committing);
        self.mark_flushed(&owners);
        Ok(())
    }

    /// The watermarks of the last batch, when there is no next one for them to travel with.
    fn flush_watermarks(&mut self) -> Result<(), Error> {
        let owners = self.owners(|_, part| part.flushed < part.next);
        if !owners.is_empty() {
            fail::point("lane.flushing")?;
            self.ledger()?.flush(&owners)?;
            fail::point("lane.flushed")?;
            self.mark_flushed(&owners);
        }
        self.offer_snapshots();
        self.measure();
        Ok(())
    }

    /// Without payments nothing else would show that Postgres failed over and lost rows, which a takeover fills in again.
    fn confirm(&mut self) -> Result<(), Error> {
        let now = self.world.now();
        if now.duration_since(self.confirmed) >= CONFIRM_EVERY && !self.parts.is_empty() && fail::safeguard("confirm") {
            self.confirmed = now;
            let owners = self.owners(|_, _| true);
            self.ledger()?.confirm(&owners)?;
        }
        Ok(())
    }

    fn offer_snapshots(&mut self) {
        for (partition, part) in &mut self.parts {
            self.world.offer(&mut part.snapshot, *partition, part.next, &part.state);
        }
    }

    fn owners(&self, choose: impl Fn(i32, &Part) -> bool) -> Vec<Owner> {
        let chosen = self.parts.iter().filter(|(partition, part)| choose(**partition, part));
        chosen
            .map(|(partition, part)| Owner {
                part: *partition,
                epoch: part.epoch,
                watermark: part.next,
            })
            .collect()
    }

    fn mark_flushed(&mut self, owners: &[Owner]) {
        for owner in owners {
            if let Some(part) = self.parts.get_mut(&owner.part) {
                part.flushed = owner.watermark;
            }
        }
    }

    /// Gives up what is open, and owes a takeover: after a while, in which the lane stays in its group and fetches nothing.
    fn fail(&mut self, error: &Error) -> Result<(), error::Consumer> {
        let wait = self.breaker.open(self.world.now());
        self.settings.metrics.breaker(self.number, true);
        tracing::error!(lane = self.number, %error, wait_ms = wait.as_millis() as u64, "taking over again");
        if let (Error::Publish(error), Some(publisher)) = (error, &self.links.publisher) {
            publisher.failed(error);
        }
        if let Some(mut publisher) = self.links.publisher.take()
            && let Err(error) = publisher.abort()
        {
            tracing::debug!(%error, "not aborted: the next producer fences what is open");
        }
        self.links = Links::NONE;
        self.park();
        if self.assignment.membership.is_some() {
            // The first cause is the one to tell.
            self.owed.get_or_insert_with(|| error.to_string());
        }
        self.consumer.read_from([])
    }

    /// Keeps the merged state of every partition for whichever lane takes it over next.
    fn park(&mut self) {
        for (partition, mut part) in std::mem::take(&mut self.parts) {
            if fail::safeguard("undo") {
                part.state.revert();
            }
            let (state, next) = (part.state, part.next);
            self.settings
                .kept
                .put(self.world.now(), partition, Replayed { state, next });
        }
    }

    /// The last thing: what was committed is shown as committed. The group is left when the consumer is dropped.
    fn drain(&mut self) {
        if let Err(error) = self.flush_watermarks() {
            tracing::warn!(lane = self.number, %error, "the last watermarks are left to the next takeover");
        }
        for (partition, part) in &self.parts {
            self.world.leave(&part.snapshot, *partition, part.next, &part.state);
        }
        tracing::info!(lane = self.number, "ended");
    }

    fn measure(&mut self) {
        let now = self.world.now();
        if now.duration_since(self.measured) < MEASURE_EVERY {
            return;
        }
        self.measured = now;
        if self.owed.is_some() {
            self.settings.kept.need(now, &self.assignment.partitions);
        }
        self.settings.kept.forget(now);
        let sizes = self.parts.values().map(|part| part.state.sizes());
        self.settings.metrics.remembered(self.number, sizes.sum());
        let topic = &self.settings.topics.payments;
        for (partition, part) in &self.parts {
            if let Some(end) = self.consumer.known_end(*partition) {
                let lag = (end - part.next).max(0);
                self.settings.kafka_metrics.lag(topic, *partition).set(lag);
            }
        }
    }

    fn ledger(&mut self) -> Result<&mut W::Books, Error> {
        self.links.ledger.as_mut().ok_or(Error::NotTakenOver)
    }

    fn publisher(&mut self) -> Result<&mut W::Transactions, Error> {
        self.links.publisher.as_mut().ok_or(Error::NotTakenOver)
    }
}

fn conflict(payment: &PaymentRecord) -> Written {
    Written::Letter {
        kind: Kind::Conflict,
        error: format!("event_id {} came before with other content", payment.event_id),
    }
}

fn end_spans<R>(batch: Batch<'_, R>) {
    let now = SystemTime::now();
    for span in batch.outputs.into_iter().filter_map(|output| output.span) {
        span.end(now);
    }
}

/// Times the steps of a batch, one after the other.
struct Timer<'m> {
    metrics: &'m Metrics,
    last: Instant,
}

impl<'m> Timer<'m> {
    fn start(metrics: &'m Metrics) -> Self {
        Self {
            metrics,
            last: Instant::now(),
        }
    }

    fn lap(&mut self, step: Step) {
        let now = Instant::now();
        self.metrics.step(step, now - self.last);
        self.last = now;
    }
}
