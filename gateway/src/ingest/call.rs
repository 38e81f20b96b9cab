//! Owns the unary way in: one event, answered when it is stored. It is a driver like the session loop, without a session:
//! where that waits for room, this refuses and says when to try again.

use std::time::{Duration, Instant, SystemTime};

use prost::Message;
use sluice_kafka::telemetry::SpanKind;
use sluice_proto::event::Checked;
use sluice_proto::pb::{self, ErrorCode};
use tokio::sync::oneshot;

use super::ack::Fate;
use super::encode::Scratch;
use super::publish::{Full, Origin, Recipient};
use super::{Shared, decode};
use crate::auth::Caller;
use crate::status::Failure;

/// When a caller should try again after Kafka's queue or the gate was full.
pub const RETRY_AFTER: Duration = Duration::from_millis(100);
/// The quota that is spent when too many calls wait for Kafka, or its queue is full.
pub const CALLS_IN_FLIGHT: &str = "gateway.calls_in_flight";

/// Publishes one event and waits for its delivery report. When the call is cancelled the event may be stored.
///
/// # Errors
/// What a status is made of.
pub async fn publish_one(
    shared: &Shared,
    caller: &Caller,
    traceparent: Option<&str>,
    event: Option<pb::Event>,
) -> Result<pb::Position, Failure> {
    let submitted = submit(shared, caller, traceparent, event, |_| Ok(()));
    let ((), waiting) = submitted.inspect_err(|failure| {
        shared.metrics.rejected(failure.code());
    })?;
    match waiting.await {
        Ok(Fate::Stored(position)) => Ok(position),
        Ok(Fate::Failed(failure)) => Err(*failure),
        Err(_) => Err(lost_report()),
    }
}

/// Every record is reported, also when its producer is dropped; so this is a defect.
pub(crate) fn lost_report() -> Failure {
    Failure::new(
        ErrorCode::Internal,
        "the delivery report was lost",
        "publish the event again, with the same event_id",
    )
}

/// Hands one event to Kafka. Between its check and the handing over, `prepare` sees it and may refuse it.
pub(crate) fn submit<T>(
    shared: &Shared,
    caller: &Caller,
    traceparent: Option<&str>,
    event: Option<pb::Event>,
    prepare: impl FnOnce(&Checked) -> Result<T, Failure>,
) -> Result<(T, oneshot::Receiver<Fate>), Failure> {
    if shared.draining.is_cancelled() {
        return Err(super::draining());
    }
    let event = event.ok_or_else(|| {
        Failure::new(ErrorCode::RequestInvalid, "is missing", "send the event to publish").field("event")
    })?;
    // Before the quota, which a call that is refused does not use up.
    let permit = shared.gate.admit(event.encoded_len()).ok_or_else(busy)?;
    let mut sender = shared.publisher.sender();
    if sender.is_full() {
        return Err(busy());
    }
    if let Err(spent) = shared.quotas.meter(caller).pay_for_one(event.encoded_len()) {
        let remedy = "wait, or publish over a session, which waits for you";
        let failure = Failure::new(ErrorCode::QuotaExceeded, "the quota is spent", remedy);
        return Err(failure.quota(spent.quota).retry_after(spent.retry_after));
    }
    let now = (shared.clock)();
    let mut event = decode::decoded(event, shared.edge(caller, now))?;
    let prepared = prepare(&event.checked)?;
    let mut span = shared
        .tracer
        .start("publish", SpanKind::Producer, traceparent, SystemTime::now());
    let own = span.as_ref().map(|span| span.traceparent());
    let origin = Origin {
        tenant: &caller.tenant,
        producer: None,
        traceparent: own.as_deref().or(traceparent),
        received_at: now,
    };
    event.checked.trace(origin.traceparent);
    let mut scratch = Scratch::default();
    let record = shared
        .encoders
        .encode(&event, &caller.tenant, &mut scratch)
        .map_err(super::unencodable)?;
    let (report, waiting) = oneshot::channel();
    let sent = sender.send(&record, &origin, permit, Recipient::Call(report), Instant::now());
    // Off it goes.
    drop(sender);
    if let Some(span) = &mut span {
        span.set("messaging.system", "kafka");
    }
    match sent {
        Ok(()) => {
            shared.metrics.accepted.inc();
            Ok((prepared, waiting))
        }
        Err(Full(_permit)) => Err(busy()),
    }
}

fn busy() -> Failure {
    Failure::new(
        ErrorCode::QuotaExceeded,
        "too many events wait for kafka",
        "wait, or publish over a session, which waits for you",
    )
    .quota(CALLS_IN_FLIGHT)
    .retry_after(RETRY_AFTER)
}
