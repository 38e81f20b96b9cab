//! Owns what the gateway says of its health: a thread asks Kafka every other second, and gRPC health, `/health/ready` and
//! the lag of the decision loop follow.
//!
//! Comes beside the services; a drain turns it off first, so that nobody new is sent here.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use sluice_proto::FILE_DESCRIPTOR_SET;
use sluice_proto::pb::{
    audit_service_server, decision_service_server, ingest_service_server, review_service_server, schema_service_server,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, HealthService};

use crate::{decisions, ingest};

/// How often Kafka is asked.
pub const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long its answer may take.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// The services whose health is told, besides the whole gateway's.
const SERVICES: [&str; 6] = [
    "",
    ingest_service_server::SERVICE_NAME,
    decision_service_server::SERVICE_NAME,
    schema_service_server::SERVICE_NAME,
    audit_service_server::SERVICE_NAME,
    review_service_server::SERVICE_NAME,
];

type State = Result<(), String>;

/// The gateway's health. The thread that watches ends when this is dropped.
pub struct Health {
    reporter: HealthReporter,
    state: watch::Receiver<State>,
    _watched: Sender<()>,
}

struct Probe {
    ingest: Arc<ingest::Shared>,
    decisions: Arc<decisions::Shared>,
    lags: Vec<Gauge>,
    state: watch::Sender<State>,
}

impl Health {
    /// Starts to watch.
    ///
    /// # Errors
    /// The operating system's, where there can be no thread.
    pub fn watch(
        ingest: Arc<ingest::Shared>,
        decisions: Arc<decisions::Shared>,
        kafka: &sluice_kafka::Metrics,
    ) -> std::io::Result<Self> {
        // Kafka answered a moment ago, at the start.
        let (sender, state) = watch::channel(Ok(()));
        let topic = &decisions.source.topic;
        let partitions = 0..i32::try_from(decisions.source.partitions).unwrap_or(i32::MAX);
        let probe = Probe {
            lags: partitions.map(|partition| kafka.lag(topic, partition)).collect(),
            ingest,
            decisions,
            state: sender,
        };
        let (watched, end) = channel();
        std::thread::Builder::new().name("health".to_owned()).spawn(move || {
            while end.recv_timeout(PROBE_EVERY) == Err(RecvTimeoutError::Timeout) {
                probe.ask();
            }
        })?;
        Ok(Self {
            reporter: HealthReporter::new(),
            state,
            _watched: watched,
        })
    }

    /// The services that everybody may call: health and reflection.
    ///
    /// # Errors
    /// Where the compiled contract cannot be read, which its build rules out.
    pub fn routes(&self) -> Result<Routes, tonic_reflection::server::Error> {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let health = HealthService::from_health_reporter(self.reporter.clone());
        let health = tonic_health::pb::health_server::HealthServer::new(health);
        Ok(Routes::new(health).add_service(reflection))
    }

    /// What `/health/ready` asks.
    pub fn readiness(&self, draining: CancellationToken) -> impl Fn() -> State + Clone + Send + Sync + 'static {
        let state = self.state.clone();
        move || {
            if draining.is_cancelled() {
                return Err("draining".to_owned());
            }
            state.borrow().clone()
        }
    }

    /// Tells gRPC health what the thread finds, until the gateway drains.
    pub fn follow(&self, draining: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        let (reporter, mut state) = (self.reporter.clone(), self.state.clone());
        async move {
            loop {
                let serving = match state.borrow_and_update().as_ref() {
                    Ok(()) => ServingStatus::Serving,
                    Err(_) => ServingStatus::NotServing,
                };
                report(&reporter, serving).await;
                tokio::select! {
                    changed = state.changed() => if changed.is_err() { break },
                    () = draining.cancelled() => break,
                }
            }
            report(&reporter, ServingStatus::NotServing).await;
        }
    }
}

async fn report(reporter: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

impl Probe {
    fn ask(&self) {
        let found = self.ingest.publisher.probe(PROBE_TIMEOUT);
        if found.is_ok()
            && let Ok(watermarks) = self.decisions.lookup.watermarks()
        {
            for (partition, (lag, (_, end))) in (0..).zip(self.lags.iter().zip(watermarks)) {
                lag.set(self.decisions.router.lag(partition, end));
            }
        }
        self.state.send_if_modified(|state| {
            let changed = state.is_ok() != found.is_ok();
            if changed {
                match &found {
                    Ok(()) => tracing::info!("kafka answers again: ready"),
                    Err(reason) => tracing::warn!(reason, "not ready"),
                }
            }
            *state = found;
            changed
        });
    }
}
