//! Taking events in. `open` answers a session's Open, with what `resume` finds of an earlier one; then the session loop in
//! `session` drives the stages in this order: `admit` (room in the window, room in
//! the quota), `decode` (bytes to a checked event), `encode` (the event to a record), `publish` (the record to Kafka).
//! Delivery reports come back through `ack`, which tells the client what is stored, and free the room; the `controller`
//! sets how much room there is by how long that took.

pub mod ack;
pub mod admit;
pub mod call;
pub mod controller;
pub mod decode;
pub mod encode;
pub mod fence;
#[cfg(test)]
mod fixture;
pub mod lanes;
pub mod open;
pub mod publish;
mod pump;
pub mod resume;
pub mod route;
pub mod sequence;
pub mod session;
pub mod token;

use std::sync::Arc;
use std::time::Duration;

use sluice_kafka::telemetry::Tracer;
use sluice_proto::avro::EncodeError;
use sluice_proto::pb::ErrorCode;
use tokio_util::sync::CancellationToken;

use crate::audit::Audit;
use crate::auth::Caller;
use crate::metrics::Metrics;
use crate::privacy::Privacy;
use crate::quota::Quotas;
use crate::status::Failure;

/// What every session and call shares.
pub struct Shared {
    /// Who was refused what.
    pub audit: Audit,
    /// What becomes of personal data.
    pub privacy: Privacy,
    /// Where events go.
    pub routing: Arc<route::Routing>,
    /// Events to records.
    pub encoders: encode::Encoders,
    /// Records to Kafka.
    pub publisher: publish::Publisher,
    /// Tenants' quotas.
    pub quotas: Arc<Quotas>,
    /// Which session of a producer is the newest.
    pub fences: fence::Fences,
    /// Resume tokens.
    pub signer: token::Signer,
    /// Finds what a lost session had stored.
    pub scanner: Arc<resume::Scanner>,
    /// Room for unary calls.
    pub gate: admit::Gate,
    /// The gateway's metrics.
    pub metrics: Metrics,
    /// Spans of sampled payments.
    pub tracer: Tracer,
    /// Cancelled when the gateway begins to drain.
    pub draining: CancellationToken,
    /// Most events of one session that may ever be unacknowledged.
    pub max_in_flight_events: u32,
    /// How many of these may be now.
    pub controller: controller::Controller,
    /// How old a session becomes before its client is asked to go elsewhere, give or take [`session::AGE_JITTER`].
    pub max_session_age: Duration,
    /// The time in microseconds since the Unix epoch.
    pub clock: fn() -> i64,
}

impl Shared {
    /// What the events of a caller are checked against, at a time in microseconds since the Unix epoch.
    pub(crate) fn edge<'a>(&'a self, caller: &'a Caller, now: i64) -> decode::Edge<'a> {
        decode::Edge {
            caller,
            now,
            privacy: &self.privacy,
            routing: &self.routing,
        }
    }
}

/// The gateway takes no new events.
pub(crate) fn draining() -> Failure {
    Failure::new(
        ErrorCode::Draining,
        "the gateway is shutting down",
        "connect again, to another instance where there is one",
    )
}

/// An event that was checked does not fit its schema: a defect of ours, logged here because a client cannot act on it.
fn unencodable(error: EncodeError) -> Failure {
    tracing::error!(%error, "a checked event cannot be encoded");
    Failure::new(
        ErrorCode::Internal,
        "the event cannot be encoded",
        "report this as a defect of the gateway",
    )
}
