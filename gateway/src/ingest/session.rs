//! The session loop: the driver of one publishing stream. It reads requests as long as there is room, hands each event
//! through `decode`, `encode` and `publish`, collects delivery reports, and sends acks and credit.
//!
//! Comes after `service`, which made the stream. It owns all of the session's state and waits in one place.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use sluice_kafka::fail;
use sluice_kafka::telemetry::SpanKind;
use sluice_proto::pb::publish_request::Message as Request;
use sluice_proto::pb::publish_response::Message as Response;
use sluice_proto::pb::{self, ErrorCode};
use sluice_proto::wire;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::ack::{self, Acks, Fate, Settled, Settlements};
use super::admit::{Permit, Window};
use super::controller::Seen;
use super::encode::Scratch;
use super::open::{self, Opened};
use super::publish::{Full, Origin, Recipient, Sender};
use super::sequence::Sequence;
use super::token::Owner;
use super::{Shared, decode, fence};
use crate::auth::Caller;
use crate::guard::Standing;
use crate::metrics::Counted;
use crate::quota::{Due, LONGEST_HOLD, Meter};
use crate::status::{self, Failure};

/// How long settled events wait for others to share an ack with: the resolution of the timer.
pub const ACK_DELAY: Duration = Duration::from_millis(1);
/// How long a session rests when Kafka's queue is full and no report has come.
pub const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(5);
/// A wait for the quota that is at least this long is told to the client.
pub const THROTTLE_FROM: Duration = Duration::from_millis(10);
/// How long a session is silent before it says that it is alive.
pub const PING_EVERY: Duration = Duration::from_secs(15);
/// How long a session that ends with an error waits for the fate of what it has taken.
pub const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a session that is asked to drain still acknowledges.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// By which part of it a session's greatest age varies, so that sessions which began together do not end together.
pub const AGE_JITTER: f64 = 0.1;
/// Answers that wait in the stream's channel.
pub const RESPONSES: usize = 64;
/// Answers that wait behind the channel before the session stops reading.
const OUTBOX: usize = 1_024;
/// Requests that are read in a row before the session looks at anything else.
const READ_AHEAD: usize = 32;

/// Where a session's answers go.
pub type Outbound = mpsc::Sender<Result<pb::PublishResponse, Status>>;

/// The client went away: there is nobody to tell anything.
struct Gone;

/// How a session ends, once everything it took is settled or the time is up.
struct End {
    failure: Option<Failure>,
    deadline: Instant,
}

/// A batch that is not through yet.
struct Batch {
    first: u64,
    events: Vec<Bytes>,
    /// Numbers that are passed over.
    duplicates: Vec<RangeInclusive<u64>>,
    /// Index of the next event to be handled.
    next: usize,
    /// What the quotas do not cover yet.
    due: Due,
}

/// Why the stream is not read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Withheld {
    Credit,
    Quota,
}

struct Session {
    shared: Arc<Shared>,
    caller: Caller,
    standing: Standing,
    meter: Meter,
    traceparent: Option<String>,
    producer_id: String,
    epoch: u64,
    epoch_text: String,
    sequence: Sequence,
    window: Window,
    settlements: Arc<Settlements>,
    settled: Vec<Settled>,
    acks: Acks,
    outbox: VecDeque<Response>,
    batch: Option<Batch>,
    /// When to go on with the batch, and why not before.
    hold: Option<(Instant, Withheld)>,
    withheld: Option<(Instant, Withheld)>,
    flush_at: Option<Instant>,
    last_sent: Instant,
    /// The client has said everything; what it sent is still to be settled.
    closed: bool,
    end: Option<End>,
    /// Whether the audit log knows that an event was refused because of its caller.
    denied: bool,
    /// When the client is asked to go elsewhere.
    drain_at: Instant,
    scratch: Scratch,
}

/// Serves one stream to its end.
pub async fn run<S>(
    shared: Arc<Shared>,
    standing: Standing,
    traceparent: Option<String>,
    mut inbound: S,
    outbound: Outbound,
) where
    S: Stream<Item = Result<pb::PublishRequest, Status>> + Unpin,
{
    let _open = Counted::new(&shared.metrics.sessions);
    let caller = standing.caller();
    let first = tokio::select! {
        biased;
        () = outbound.closed() => return,
        () = shared.draining.cancelled() => Err(Some(super::draining())),
        request = inbound.next() => open::opening(request),
    };
    let opened = match first {
        Ok(open) => tokio::select! {
            biased;
            () = outbound.closed() => return,
            opened = open::open(&shared, &caller, open) => opened.map_err(Some),
        },
        Err(failure) => Err(failure),
    };
    let failure = match opened {
        Ok(opened) => {
            let fenced = opened.fenced.clone();
            let mut session = Session::new(shared, standing, traceparent, opened);
            match session.drive(&mut inbound, &outbound, &fenced).await {
                Ok(failure) => failure,
                Err(Gone) => return,
            }
        }
        Err(failure) => failure,
    };
    if let Some(failure) = failure {
        tracing::info!(code = ?failure.code(), %failure, "session ended by an error");
        // A client that does not read its answers is not waited for.
        let told = outbound.send(Err(failure.into()));
        drop(tokio::time::timeout(SETTLE_TIMEOUT, told).await);
    }
}

/// The next request. From a client that has said everything there is none, but its credentials may still run out.
async fn next<S>(inbound: &mut S, closed: bool) -> Option<Result<pb::PublishRequest, Status>>
where
    S: Stream<Item = Result<pb::PublishRequest, Status>> + Unpin,
{
    match inbound.next().await {
        None if closed => std::future::pending().await,
        request => request,
    }
}

impl Session {
    fn new(shared: Arc<Shared>, standing: Standing, traceparent: Option<String>, opened: Opened) -> Self {
        let caller = standing.caller();
        let spread = 1.0 + AGE_JITTER * (2.0 * fastrand::f64() - 1.0);
        Self {
            drain_at: Instant::now() + shared.max_session_age.mul_f64(spread),
            meter: shared.quotas.meter(&caller),
            shared,
            caller,
            standing,
            traceparent,
            epoch_text: opened.epoch.to_string(),
            producer_id: opened.producer_id,
            epoch: opened.epoch,
            sequence: opened.sequence,
            window: opened.window,
            settlements: opened.settlements,
            settled: Vec::new(),
            acks: opened.acks,
            outbox: VecDeque::from([Response::Ready(opened.ready)]),
            batch: None,
            hold: None,
            withheld: None,
            flush_at: None,
            last_sent: Instant::now(),
            closed: false,
            end: None,
            denied: false,
            scratch: Scratch::default(),
        }
    }

    /// Works until the session is over, and says how it ends.
    async fn drive<S>(
        &mut self,
        inbound: &mut S,
        outbound: &Outbound,
        fenced: &CancellationToken,
    ) -> Result<Option<Failure>, Gone>
    where
        S: Stream<Item = Result<pb::PublishRequest, Status>> + Unpin,
    {
        let shared = self.shared.clone();
        let settlements = self.settlements.clone();
        let mut draining = pin!(shared.draining.cancelled());
        let mut fenced = pin!(fenced.cancelled());
        let mut timer = pin!(tokio::time::sleep_until(Instant::now()));
        loop {
            let now = Instant::now();
            self.work(now);
            self.post(outbound)?;
            if self.is_over(now) {
                self.measure(now, None);
                return Ok(self.failure());
            }
            self.measure(now, self.reason());
            let wake_at = self.wake_at();
            if timer.deadline() != wake_at {
                timer.as_mut().reset(wake_at);
            }
            tokio::select! {
                biased;
                () = outbound.closed() => return Err(Gone),
                () = &mut fenced, if self.end.is_none() => self.fail(Some(fence::failure()), Duration::ZERO),
                () = &mut draining, if self.end.is_none() => self.drain(),
                room = outbound.reserve(), if !self.outbox.is_empty() => {
                    let room = room.map_err(|_| Gone)?;
                    if let Some(response) = self.outbox.pop_front() {
                        room.send(Ok(pb::PublishResponse { message: Some(response) }));
                        self.last_sent = now;
                    }
                }
                () = settlements.rung(), if self.flush_at.is_none() => {
                    self.flush_at = Some(Instant::now() + ACK_DELAY);
                }
                request = next(inbound, self.closed), if self.reads() || (self.closed && self.end.is_none()) => {
                    self.receive(request);
                    // What has already arrived is taken without going round the loop for each.
                    for _ in 1..READ_AHEAD {
                        if !self.reads() {
                            break;
                        }
                        let Some(request) = inbound.next().now_or_never() else { break };
                        self.receive(request);
                    }
                }
                () = &mut timer => {}
            }
        }
    }

    /// Whether the client may send more.
    const fn goes_on(&self) -> bool {
        self.end.is_none() && !self.closed
    }

    /// Whether the stream is read: not while the client is out of credit, so that HTTP/2 holds it.
    fn reads(&self) -> bool {
        self.goes_on() && self.batch.is_none() && self.window.is_open() && self.outbox.len() < OUTBOX
    }

    fn reason(&self) -> Option<Withheld> {
        match self.hold {
            Some((_, why)) => Some(why),
            None if !self.window.is_open() => Some(Withheld::Credit),
            None => None,
        }
    }

    /// Adds up how long the client was held back, and by what.
    fn measure(&mut self, now: Instant, reason: Option<Withheld>) {
        if let Some((since, why)) = self.withheld {
            let metric = match why {
                Withheld::Credit => &self.shared.metrics.credit_withheld,
                Withheld::Quota => &self.shared.metrics.quota_withheld,
            };
            metric.inc_by((now - since).as_secs_f64());
        }
        self.withheld = reason.map(|why| (now, why));
    }

    /// Does everything that can be done without waiting.
    fn work(&mut self, now: Instant) {
        // While a batch waits the stream is not read, and nobody else looks after the credentials.
        if self.batch.is_some()
            && let Some(failure) = self.standing.lapsed()
        {
            self.fail(Some(failure), SETTLE_TIMEOUT);
        }
        if self.flush_at.is_some_and(|due| due <= now) && self.outbox.is_empty() {
            self.collect();
        }
        if self.hold.is_none_or(|(until, _)| until <= now) {
            self.hold = None;
            self.publish(now);
        }
        if self.end.is_none() && self.drain_at <= now {
            self.drain();
        }
        if self.outbox.is_empty() && self.last_sent + PING_EVERY <= now {
            self.outbox.push_back(Response::Ping(pb::Ping {}));
        }
    }

    fn wake_at(&self) -> Instant {
        // As long as answers wait for the client there is nothing to add, and room for them wakes the session.
        let flush_at = self.flush_at.filter(|_| self.outbox.is_empty());
        let ping_at = self.outbox.is_empty().then_some(self.last_sent + PING_EVERY);
        let hold = self.hold.map(|(until, _)| until);
        let end = self.end.as_ref().map_or(self.drain_at, |end| end.deadline);
        [flush_at, ping_at, hold].into_iter().flatten().fold(end, Instant::min)
    }

    /// Sends what the channel has room for.
    fn post(&mut self, outbound: &Outbound) -> Result<(), Gone> {
        while !self.outbox.is_empty() {
            match outbound.try_reserve() {
                Ok(room) => {
                    let message = self.outbox.pop_front();
                    room.send(Ok(pb::PublishResponse { message }));
                    self.last_sent = Instant::now();
                }
                Err(mpsc::error::TrySendError::Full(())) => break,
                Err(mpsc::error::TrySendError::Closed(())) => return Err(Gone),
            }
        }
        Ok(())
    }

    fn is_over(&self, now: Instant) -> bool {
        let settled = self.batch.is_none() && self.window.is_idle() && self.outbox.is_empty();
        (settled && !self.goes_on()) || self.end.as_ref().is_some_and(|end| end.deadline <= now)
    }

    /// The error by which the session ends, if any. Whatever it is, events whose acks were not sent may be stored.
    fn failure(&mut self) -> Option<Failure> {
        let failure = self.end.take()?.failure?;
        let told = self.window.is_idle() && self.outbox.is_empty();
        Some(if told { failure } else { failure.perhaps_stored() })
    }

    fn receive(&mut self, request: Option<Result<pb::PublishRequest, Status>>) {
        let invalid = |reason, remedy| Failure::new(ErrorCode::RequestInvalid, reason, remedy);
        let failure = match request {
            None => {
                self.closed = true;
                return;
            }
            Some(Ok(pb::PublishRequest { message: Some(message) })) => match message {
                Request::Batch(batch) => match self.take(batch) {
                    Ok(()) => return,
                    Err(failure) => Some(failure),
                },
                Request::Open(_) => Some(invalid(
                    "the session is open already",
                    "send Open as the first message only",
                )),
                // The guard before has taken refreshes out.
                Request::Refresh(_) => return,
            },
            Some(Ok(pb::PublishRequest { message: None })) => {
                Some(invalid("the message has no content", "set one of open, batch, refresh"))
            }
            Some(Err(status)) => status::unreadable_request(&status),
        };
        self.fail(failure, SETTLE_TIMEOUT);
    }

    /// Takes nothing more, and ends when what was taken is settled or the time is up.
    fn fail(&mut self, failure: Option<Failure>, settle: Duration) {
        self.batch = None;
        self.hold = None;
        let deadline = Instant::now() + settle;
        self.end = Some(End { failure, deadline });
    }

    /// Takes a batch: what came before is acknowledged as such, the rest goes on its way.
    fn take(&mut self, batch: wire::EventBatch) -> Result<(), Failure> {
        let plan = self.sequence.take(batch.first_sequence, batch.events.len())?;
        for duplicates in &plan.duplicates {
            for sequence in duplicates.clone() {
                // The client spent credit on them, which it gets back.
                let bytes = batch.events[(sequence - batch.first_sequence) as usize].len();
                let permit = self.window.admit(bytes);
                self.window.release(permit);
            }
            let ack = ack::duplicate(*duplicates.start(), *duplicates.end());
            self.outbox.push_back(Response::Ack(ack));
            self.grant();
        }
        if plan.fresh > 0 {
            let fresh = (batch.first_sequence..).zip(&batch.events);
            let fresh = fresh.filter(|(sequence, _)| !plan.duplicates.iter().any(|known| known.contains(sequence)));
            let bytes = fresh.map(|(_, event)| event.len() as u64).sum();
            self.batch = Some(Batch {
                first: batch.first_sequence,
                events: batch.events,
                duplicates: plan.duplicates,
                next: 0,
                due: Due::of(plan.fresh as u64, bytes),
            });
            self.publish(Instant::now());
        }
        Ok(())
    }

    /// Goes on with the batch until it is through, the quota is spent or Kafka's queue is full.
    fn publish(&mut self, now: Instant) {
        let Some(mut batch) = self.batch.take() else { return };
        if let Err(spent) = self.meter.pay(&mut batch.due) {
            self.batch = Some(batch);
            self.hold = Some((now + spent.retry_after.min(LONGEST_HOLD), Withheld::Quota));
            if spent.retry_after >= THROTTLE_FROM {
                self.outbox.push_back(Response::Throttle(pb::Throttle {
                    quota: spent.quota.to_owned(),
                    retry_after: prost_types::Duration::try_from(spent.retry_after).ok(),
                }));
            }
            return;
        }
        let shared = self.shared.clone();
        let mut sender = shared.publisher.sender();
        if sender.is_full() {
            // Nothing is decoded in vain while Kafka is slow.
            self.batch = Some(batch);
            self.hold = Some((now + FULL_QUEUE_PAUSE, Withheld::Credit));
            return;
        }
        let now_us = (shared.clock)();
        let mut span = self.traceparent.as_deref().and_then(|parent| {
            let now = SystemTime::now();
            shared.tracer.start("publish", SpanKind::Producer, Some(parent), now)
        });
        let own = span.as_ref().map(|span| span.traceparent());
        let from = batch.next;
        let numbers = batch.first + from as u64..batch.first + batch.events.len() as u64;
        self.acks.sending(numbers.start, numbers.end, now_us / 1_000);
        while let Some(event) = batch.events.get(batch.next) {
            let sequence = batch.first + batch.next as u64;
            if batch.duplicates.iter().any(|known| known.contains(&sequence)) {
                batch.next += 1;
                continue;
            }
            let permit = self.window.admit(event.len());
            if let Err(permit) = self.hand_over(&mut sender, own.as_deref(), sequence, event, permit, (now, now_us)) {
                self.window.cancel(permit);
                self.hold = Some((now + FULL_QUEUE_PAUSE, Withheld::Credit));
                break;
            }
            batch.next += 1;
        }
        if let Some(span) = &mut span {
            span.set("messaging.system", "kafka");
            span.set("messaging.batch.message_count", (batch.next - from) as i64);
        }
        if batch.next < batch.events.len() {
            self.batch = Some(batch);
        }
    }

    /// Takes one event through the stages. Gives the permit back where Kafka's queue is full.
    fn hand_over(
        &mut self,
        sender: &mut Sender<'_>,
        own_trace: Option<&str>,
        sequence: u64,
        event: &Bytes,
        permit: Permit,
        (now, now_us): (Instant, i64),
    ) -> Result<(), Permit> {
        let shared = &self.shared;
        let tenant = &self.caller.tenant;
        let traceparent = own_trace.or(self.traceparent.as_deref());
        let mut checked = decode::event(event, shared.edge(&self.caller, now_us));
        let record = checked.as_mut().map_err(|failure| failure.clone()).and_then(|event| {
            event.checked.trace(traceparent);
            let record = shared.encoders.encode(event, tenant, &mut self.scratch);
            record.map_err(super::unencodable)
        });
        let failure = match record {
            Ok(record) => {
                let origin = Origin {
                    tenant,
                    producer: Some((&self.producer_id, &self.epoch_text)),
                    traceparent,
                    received_at: now_us,
                };
                let to = Recipient::Session {
                    settlements: self.settlements.clone(),
                    sequence,
                };
                return match sender.send(&record, &origin, permit, to, now.into_std()) {
                    Ok(()) => {
                        shared.metrics.accepted.inc();
                        Ok(())
                    }
                    Err(Full(permit)) => Err(permit),
                };
            }
            Err(failure) => Box::new(failure),
        };
        shared.metrics.rejected(failure.code());
        if failure.code() == ErrorCode::PermissionDenied && !std::mem::replace(&mut self.denied, true) {
            // The first one of a session tells enough.
            shared.audit.denied(&self.caller, &failure);
        }
        self.settled.push(Settled {
            sequence,
            permit,
            sent: None,
            fate: Fate::Failed(failure),
        });
        self.flush_at.get_or_insert(now + ACK_DELAY);
        Ok(())
    }

    /// Turns what is settled into acks and credit. The last ack carries the token for all of them.
    fn collect(&mut self) {
        self.flush_at = None;
        self.settlements.collect(&mut self.settled);
        if self.settled.is_empty() {
            return;
        }
        fail::pass("gateway.acking");
        let mut acks = self.acks.coalesce(&mut self.settled);
        if let Some(last) = acks.last_mut() {
            last.resume_token = self.token().into();
        }
        self.outbox.extend(acks.into_iter().map(Response::Ack));
        let (now, used) = (std::time::Instant::now(), self.window.is_used());
        let Shared {
            metrics, controller, ..
        } = &*self.shared;
        let mut seen = Seen::default();
        for event in self.settled.drain(..) {
            if let Some(sent) = event.sent {
                let took = now - sent;
                metrics.ack_latency.observe(took);
                controller.see(&mut seen, took);
            }
            self.window.release(event.permit);
        }
        controller.tell(seen, used);
        self.window.resize(controller.window());
        self.grant();
    }

    fn grant(&mut self) {
        if self.goes_on()
            && let Some(credit) = self.window.grant()
        {
            self.outbox.push_back(Response::Credit(credit));
        }
    }

    fn token(&mut self) -> Vec<u8> {
        let now_ms = (self.shared.clock)() / 1_000;
        let progress = self.acks.progress(now_ms);
        let owner = Owner {
            tenant: &self.caller.tenant,
            producer_id: &self.producer_id,
            epoch: self.epoch,
        };
        self.shared.signer.write(owner, &progress, now_ms)
    }

    /// Takes nothing more, and ends when everything taken is settled. What was read and not handed to Kafka is as if it
    /// had not been read.
    fn drain(&mut self) {
        let resume_token = self.token().into();
        self.outbox.push_back(Response::Drain(pb::Drain {
            deadline: prost_types::Duration::try_from(DRAIN_TIMEOUT).ok(),
            resume_token,
        }));
        self.fail(None, DRAIN_TIMEOUT);
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
