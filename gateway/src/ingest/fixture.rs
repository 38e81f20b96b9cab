//! What the tests of sessions share: a gateway's parts with a Kafka that does not answer, so that every event stays under
//! way, and with nothing to search.

use std::sync::Arc;
use std::time::Duration;

use sluice_kafka::config::BURST_LINGER_MS;
use sluice_kafka::telemetry::Tracer;
use sluice_kafka::{Config, Topics};
use tokio_util::sync::CancellationToken;

use super::controller::Controller;
use super::encode::{Encoders, SchemaIds};
use super::lanes::Lanes;
use super::publish::Publisher;
use super::resume::Scanner;
use super::route::{Routing, Table};
use super::token::Signer;
use super::{Shared, admit, fence};
use crate::audit::{Audit, Places};
use crate::metrics::Metrics;
use crate::privacy::Privacy;
use crate::quota::{Limits, Quotas};

/// The time, in microseconds since the Unix epoch.
pub(crate) const NOW: i64 = 1_800_000_000_000_000;
const HOUR: Duration = Duration::from_secs(3_600);

impl Shared {
    /// What sessions share in a test.
    pub(crate) fn of_tests() -> Self {
        let metrics = Metrics::default();
        let kafka = Config {
            bootstrap_servers: "127.0.0.1:1".to_owned(),
            ..Config::default()
        };
        let table = Table::default();
        let routing = Routing::new(&table, &Topics::new(""), "", &sluice_kafka::Metrics::default());
        let routing = Arc::new(routing);
        let producer = kafka.idempotent_producer(BURST_LINGER_MS);
        let ids = SchemaIds {
            payments: 1,
            user_actions: 2,
            system_events: 3,
            metric_events: 4,
        };
        Self {
            audit: Audit::open(Places::default(), "tests", metrics.audit_lost.clone()).expect("no audit log"),
            privacy: Privacy::default(),
            encoders: Encoders::new(ids).expect("our schemas"),
            publisher: Publisher::new(producer, routing.clone(), Lanes::new(&[1; 4]), metrics.clone(), "tests")
                .expect("a producer"),
            routing,
            quotas: Arc::new(Quotas::load(None, Limits::default()).expect("no file")),
            fences: fence::Fences::default(),
            signer: Signer::load(None, ([127, 0, 0, 1], 1).into(), HOUR).expect("the built-in secret"),
            scanner: Arc::new(Scanner::new(kafka, Vec::new()).expect("a scanner")),
            gate: admit::Gate::default(),
            controller: Controller::new(Duration::from_millis(100), 1_000, metrics.window.clone()),
            metrics,
            tracer: Tracer::off(),
            draining: CancellationToken::new(),
            max_in_flight_events: 1_000,
            max_session_age: HOUR,
            clock: || NOW,
        }
    }
}
