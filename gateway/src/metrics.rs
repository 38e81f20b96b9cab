//! Owns the gateway's own metrics: their names, meanings and units. The seven Kafka metrics are in `sluice_kafka::metrics`.
//!
//! Handles are bound here once; the hot path adds to atomics. No label has a value that a client chooses.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use sluice_kafka::metrics::Latency;
use sluice_proto::pb::ErrorCode;

use crate::status;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

/// All of them; clones share their values. The default is registered nowhere, for tests.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Open connections.
    pub connections: Gauge,
    /// Open publishing sessions.
    pub sessions: Gauge,
    /// Events handed to Kafka.
    pub accepted: Counter,
    rejected: Family<Code, Counter>,
    /// Time that sessions were not read because their window was full or Kafka's queue was.
    pub credit_withheld: Counter<f64, AtomicU64>,
    /// Time that sessions were not read because of their tenant's quota.
    pub quota_withheld: Counter<f64, AtomicU64>,
    /// Events of a session that may be unacknowledged now.
    pub window: Gauge,
    /// Gateways that share the quotas, this one included.
    pub gateways: Gauge,
    /// Time from handing an event to Kafka to queueing its ack.
    pub ack_latency: Latency,
    /// Open subscriptions.
    pub subscribers: Gauge,
    /// Readers that serve subscriptions which are behind the ring.
    pub catch_ups: Gauge,
    /// Decisions queued to subscribers.
    pub delivered: Counter,
    /// Decisions that the filter of source offsets dropped.
    pub repeated: Counter,
    /// Decision records that could not be read.
    pub unreadable: Counter,
    /// Producers that replaced one with a fatal error.
    pub producers_replaced: Counter,
    /// Lines of the audit log that could not be written.
    pub audit_lost: Counter,
}

impl Metrics {
    /// New metrics in `registry`, under `sluice_gateway_…`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("sluice_gateway");
        registry.register("connections", "Open connections", metrics.connections.clone());
        registry.register("sessions", "Open publishing sessions", metrics.sessions.clone());
        registry.register("events_accepted", "Events handed to Kafka", metrics.accepted.clone());
        registry.register(
            "events_rejected",
            "Events refused or not surely stored, by error code",
            metrics.rejected.clone(),
        );
        registry.register_with_unit(
            "credit_withheld",
            "Time that sessions were not read because their window or Kafka's queue was full",
            Unit::Seconds,
            metrics.credit_withheld.clone(),
        );
        registry.register_with_unit(
            "quota_withheld",
            "Time that sessions were not read because their tenant's quota was spent",
            Unit::Seconds,
            metrics.quota_withheld.clone(),
        );
        registry.register(
            "window_events",
            "Events of one session that may be unacknowledged, as the time to the acknowledgement allows",
            metrics.window.clone(),
        );
        registry.register(
            "peers",
            "Gateways that share the quotas, this one included",
            metrics.gateways.clone(),
        );
        registry.register_with_unit(
            "ack_latency",
            "Time from handing an event to Kafka to queueing its ack",
            Unit::Seconds,
            metrics.ack_latency.clone(),
        );
        registry.register("subscribers", "Open subscriptions", metrics.subscribers.clone());
        registry.register(
            "catch_ups",
            "Readers that serve subscriptions which are behind the ring",
            metrics.catch_ups.clone(),
        );
        registry.register(
            "decisions_delivered",
            "Decisions queued to subscribers",
            metrics.delivered.clone(),
        );
        registry.register(
            "decisions_repeated",
            "Decisions dropped because their source offset was not above the highest seen in the partition",
            metrics.repeated.clone(),
        );
        registry.register(
            "decisions_unreadable",
            "Decision records that could not be read",
            metrics.unreadable.clone(),
        );
        registry.register(
            "producers_replaced",
            "Producers that replaced one with a fatal error",
            metrics.producers_replaced.clone(),
        );
        registry.register(
            "audit_lost",
            "Lines of the audit log that could not be written",
            metrics.audit_lost.clone(),
        );
        metrics
    }

    /// One event was refused, or is not surely stored. Looks a label up, so it is for errors only.
    pub fn rejected(&self, code: ErrorCode) {
        let code = status::short_name(code);
        self.rejected.get_or_create(&Code { code }).inc();
    }
}

/// Counts something as long as it lives, such as an open session.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    /// Adds one to the gauge until it is dropped.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
