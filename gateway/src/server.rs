//! The gateway as a component: `build` binds the ports and makes the parts, `run` serves until it is told to drain.
//!
//! Comes after `config`; it owns the tower stack, the order of the start and the order of the end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::registry::Registry;
use sluice_kafka::serve::AdminServer;
use sluice_kafka::telemetry::Tracer;
use sluice_proto::bounds::MAX_REQUEST_BYTES;
use sluice_proto::pb::audit_service_server::AuditServiceServer;
use sluice_proto::pb::decision_service_server::DecisionServiceServer;
use sluice_proto::pb::ingest_service_server::IngestServiceServer;
use sluice_proto::pb::review_service_server::ReviewServiceServer;
use sluice_proto::pb::schema_service_server::SchemaServiceServer;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::codec::CompressionEncoding::{Gzip, Zstd};
use tonic::codegen::http;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};
use tonic_web::GrpcWebLayer;
use tower::layer::util::{Identity, Stack};
use tower::util::MapResponseLayer;
use tower_http::cors::CorsLayer;

use crate::accept::Peer;
use crate::audit::{self, Audit, Called};
use crate::auth::Auth;
use crate::config::{self, Config};
use crate::connect::{self, Parts, connect};
use crate::decisions::consume::Consumer;
use crate::health::Health;
use crate::ingest::controller::{self, Controller};
use crate::ingest::route;
use crate::metrics::Metrics;
use crate::peers::Peers;
use crate::privacy::Privacy;
use crate::quota::{FORGET_EVERY, Quotas, RELOAD_EVERY};
use crate::review::Reviews;
use crate::service::{Auditing, Decisions, Ingest, Schemas};
use crate::tls::Tls;
use crate::vital::Vital;
use crate::{accept, decisions, ingest, reload, status};

/// Streams that one connection may have open.
pub const MAX_STREAMS: u32 = 256;
/// Bytes that a client may send on a stream before the gateway has read them. Two thousand usual events: enough for a
/// session to be busy, little enough for 256 of them to fit the connection's window.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1_024;
/// The same over all streams of a connection: one that is not read must not keep the others from sending.
pub const CONNECTION_WINDOW_BYTES: u32 = MAX_STREAMS * STREAM_WINDOW_BYTES;
/// Largest HTTP/2 frame: a batch of 64 events in one.
pub const MAX_FRAME_BYTES: u32 = 64 * 1_024;
/// Largest header list of a request.
pub const MAX_HEADER_LIST_BYTES: u32 = 16 * 1_024;
/// How often a connection is asked whether it is alive.
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
/// How long its answer may take.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a browser may remember that it may call.
pub const CORS_MAX_AGE: Duration = Duration::from_secs(3_600);
/// How long a drain may take, from the signal to the end of the process.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(20);
/// The part of it that is kept for the producer's last deliveries.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// The part of it that is kept for the last lines of the audit log.
pub const AUDIT_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the admin port may take to answer what it was asked before the process ends.
pub const ADMIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is in use, or an address is not this machine's.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The principals or the certificates.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The secrets of resume tokens.
    #[error(transparent)]
    Tokens(#[from] ingest::token::Error),
    /// The quotas.
    #[error(transparent)]
    Quotas(#[from] crate::quota::Error),
    /// The group of gateways.
    #[error("kafka: {0}")]
    Peers(#[from] sluice_kafka::error::Consumer),
    /// The audit log.
    #[error("the audit log: {0}")]
    Audit(#[from] audit::Error),
    /// Kafka or the registry.
    #[error(transparent)]
    Connect(#[from] connect::Error),
    /// The gRPC server.
    #[error("cannot serve: {0}")]
    Serve(String),
}

/// The gateway, bound and connected.
pub struct Server {
    config: Config,
    listener: TcpListener,
    admin: AdminServer,
    registry: Registry,
    kafka_metrics: sluice_kafka::Metrics,
    auth: Arc<Auth>,
    tls: Option<Arc<Tls>>,
    audit: Audit,
    ingest: Arc<ingest::Shared>,
    decisions: Arc<decisions::Shared>,
    consumer: Consumer,
    peers: Peers,
    schemas: Schemas,
    auditing: Auditing,
    reviews: Reviews,
    draining: CancellationToken,
}

impl Server {
    /// Binds the ports, then makes every part.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn build(config: Config, tracer: Tracer) -> Result<Self, Error> {
        // What fetches an issuer's keys asks for the process's cryptographic library; who was first does not matter.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let auth = Arc::new(config.auth().map_err(config::Error::from)?);
        let tls = config.tls()?.map(Arc::new);
        let privacy = Privacy::load(config.privacy.as_deref()).map_err(config::Error::from)?;
        let table = config.table()?;
        let signer = config.signer()?;
        let refused = |addr| move |source| Error::Listen { addr, source };
        let listener = accept::listen(config.listen, config.reuse_port).map_err(refused(config.listen))?;
        let admin = AdminServer::bind(config.admin_listen).map_err(refused(config.admin_listen))?;
        let mut registry = Registry::default();
        let kafka_metrics = sluice_kafka::Metrics::register(&mut registry);
        let metrics = Metrics::register(&mut registry);
        let audit = Audit::open(config.audit_places(), &config.instance, metrics.audit_lost.clone())?;
        let parts = {
            let (config, kafka_metrics, metrics) = (config.clone(), kafka_metrics.clone(), metrics.clone());
            tokio::task::spawn_blocking(move || connect(&config, &table, &kafka_metrics, &metrics))
        };
        let parts = parts.await.map_err(|error| Error::Serve(error.to_string()))??;
        let Parts {
            routing,
            encoders,
            publisher,
            scanner,
            consumer,
            source,
            lookup,
            schemas,
            audit: audit_source,
            reviews,
        } = parts;
        let quotas = Arc::new(config.load_quotas()?);
        let peers = Peers::join(
            &config.kafka.config(),
            &source.topic,
            quotas.gateways(),
            metrics.gateways.clone(),
        )?;
        let draining = CancellationToken::new();
        let ingest = ingest::Shared {
            audit: audit.clone(),
            privacy,
            routing,
            encoders,
            publisher,
            quotas,
            fences: ingest::fence::Fences::default(),
            signer,
            scanner: Arc::new(scanner),
            gate: ingest::admit::Gate::default(),
            metrics: metrics.clone(),
            tracer,
            draining: draining.clone(),
            max_in_flight_events: config.max_in_flight_events,
            controller: Controller::new(
                Duration::from_millis(config.ack_target_ms.into()),
                config.max_in_flight_events,
                metrics.window.clone(),
            ),
            max_session_age: Duration::from_secs(config.max_session_age_s.into()),
            clock: unix_micros,
        };
        let decisions = decisions::Shared {
            waiting: consumer.router().waiting(),
            look_backs: Arc::new(Semaphore::new(decisions::look_back::MAX_LOOK_BACKS)),
            router: consumer.router(),
            cursors: Arc::new(decisions::commit::Cursors::new(source.clone())),
            source,
            lookup: Arc::new(lookup),
            catch_ups: Arc::new(Semaphore::new(decisions::MAX_CATCH_UPS)),
            metrics,
            draining: draining.clone(),
        };
        Ok(Self {
            config,
            listener,
            admin,
            registry,
            kafka_metrics,
            auth,
            tls,
            audit,
            ingest: Arc::new(ingest),
            decisions: Arc::new(decisions),
            consumer,
            peers,
            schemas: Schemas(schemas),
            auditing: Auditing(audit::read::Reader::new(audit_source, draining.clone())),
            reviews,
            draining,
        })
    }

    /// Serves until the first signal, then drains: no new events, everything in flight acknowledged, streams ended. A
    /// second signal or [`DRAIN_DEADLINE`] ends it where it stands.
    ///
    /// # Errors
    /// [`Error::Serve`].
    pub async fn run(self, mut signals: mpsc::Receiver<()>) -> Result<(), Error> {
        let internal = |error: &dyn std::fmt::Display| Error::Serve(error.to_string());
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (ingest, draining) = (self.ingest.clone(), self.draining);
        let health = Health::watch(ingest.clone(), self.decisions.clone(), &self.kafka_metrics);
        let health = health.map_err(|error| internal(&error))?;
        let open = health.routes().map_err(|error| internal(&error))?;
        let following = tokio::spawn(health.follow(draining.clone()));
        let decision_loop = {
            let (consumer, stop) = (self.consumer, stop.clone());
            tokio::task::spawn_blocking(move || {
                let _vital = Vital::part("the decision loop");
                consumer.run(&stop);
            })
        };
        let counting = {
            let (peers, stop) = (self.peers, stop.clone());
            tokio::task::spawn_blocking(move || {
                let _vital = Vital::part("the count of gateways");
                peers.run(&stop);
            })
        };
        let readiness = health.readiness(draining.clone());
        let admin = tokio::spawn(
            self.admin
                .run(Arc::new(self.registry), readiness, stop.clone().cancelled_owned()),
        );
        let quotas = tokio::spawn(tend(ingest.quotas.clone()));
        let steering = tokio::spawn(steer(ingest.clone()));
        let connections = ingest.metrics.connections.clone();
        let learning = {
            let registry = sluice_kafka::registry::Registry::with_patience(&self.config.registry, Duration::ZERO);
            tokio::spawn(route::follow(ingest.routing.clone(), Arc::new(registry), stop.clone()))
        };
        let reloading = tokio::spawn(reload::run(self.auth.clone(), self.tls.clone(), stop.clone()));
        let accepted = accept::connections(self.listener, self.config.max_connections, connections, self.tls);
        let audit = self.audit.clone();
        let serving = http2(&self.config, self.audit)
            .add_routes(routes(
                open,
                self.auth,
                (self.schemas, self.auditing, self.reviews),
                self.ingest,
                self.decisions,
                &tasks,
            ))
            .serve_with_incoming_shutdown(accepted, draining.clone().cancelled_owned());
        tracing::info!(listen = %self.config.listen, admin = %self.config.admin_listen, "serving");
        let mut serving = std::pin::pin!(serving);

        let mut result = tokio::select! {
            served = &mut serving => Some(served),
            _ = signals.recv() => None,
        };
        let deadline = Instant::now() + DRAIN_DEADLINE;
        if result.is_none() {
            tracing::info!("draining");
            draining.cancel();
            tasks.close();
            result = tokio::select! {
                (served, ()) = async { tokio::join!(&mut serving, tasks.wait()) } => Some(served),
                _ = signals.recv() => None,
                () = tokio::time::sleep_until(deadline - FLUSH_TIMEOUT - AUDIT_FLUSH_TIMEOUT) => None,
            };
            if result.is_none() {
                tracing::warn!(sessions = tasks.len(), "not everything was drained");
            }
        }
        let flushed = tokio::task::spawn_blocking(move || {
            let flushed = ingest.publisher.flush(FLUSH_TIMEOUT);
            audit.flush(AUDIT_FLUSH_TIMEOUT);
            flushed
        })
        .await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "events were not delivered");
        }
        stop.cancel();
        quotas.abort();
        steering.abort();
        // Whoever sent half a request keeps it open.
        let admin = tokio::time::timeout(ADMIN_TIMEOUT, admin).await;
        if admin.is_err() {
            tracing::warn!("the admin port did not end in time");
        }
        for ended in [
            decision_loop.await.err(),
            counting.await.err(),
            admin.ok().and_then(Result::err),
            following.await.err(),
            reloading.await.err(),
            learning.await.err(),
        ]
        .into_iter()
        .flatten()
        {
            tracing::error!(error = %ended, "a part did not end well");
        }
        tracing::info!("stopped");
        result
            .unwrap_or(Ok(()))
            .map_err(|error| Error::Serve(error.to_string()))
    }
}

type Explain = fn(http::Response<Body>) -> http::Response<Body>;

/// What is around every service, outermost first: who may call from a browser, gRPC-Web, the audit log, and the words for
/// requests that tonic could not read.
type Around = Stack<MapResponseLayer<Explain>, Stack<Audit, Stack<GrpcWebLayer, Stack<CorsLayer, Identity>>>>;

/// HTTP/2 as the gateway speaks it; HTTP/1.1 for browsers, where any may call.
fn http2(config: &Config, audit: Audit) -> tonic::transport::Server<Around> {
    tonic::transport::Server::builder()
        .accept_http1(!config.cors_origin.is_empty())
        .layer(cors(config))
        .layer(GrpcWebLayer::new())
        .layer(audit)
        .layer(MapResponseLayer::new(status::explained as Explain))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_frame_size(MAX_FRAME_BYTES)
        .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// Browsers may call from the configured origins, and see how a call ended.
fn cors(config: &Config) -> CorsLayer {
    let exposed = ["grpc-status", "grpc-message", "grpc-status-details-bin"];
    let allowed = [
        "authorization",
        "content-type",
        "grpc-timeout",
        "traceparent",
        "x-api-key",
        "x-grpc-web",
        "x-user-agent",
    ];
    CorsLayer::new()
        .allow_origin(config.cors_origin.clone())
        .allow_methods([http::Method::POST])
        .allow_headers(allowed.map(http::HeaderName::from_static))
        .expose_headers(exposed.map(http::HeaderName::from_static))
        .max_age(CORS_MAX_AGE)
}

/// The services: ours behind the credentials, health and reflection open to all.
fn routes(
    open: Routes,
    auth: Arc<Auth>,
    (schemas, auditing, reviews): (Schemas, Auditing, Reviews),
    ingest: Arc<ingest::Shared>,
    decisions: Arc<decisions::Shared>,
    tasks: &TaskTracker,
) -> Routes {
    #[allow(clippy::result_large_err, reason = "tonic's interceptors return its Status")]
    let authenticated = {
        let auth = auth.clone();
        move |mut request: Request<()>| -> Result<Request<()>, Status> {
            let caller = auth.authenticate(request.metadata(), request.extensions().get::<Peer>())?;
            if let Some(called) = request.extensions().get::<Called>() {
                called.by(&caller);
            }
            request.extensions_mut().insert(caller);
            Ok(request)
        }
    };
    let ingest = IngestServiceServer::new(Ingest {
        shared: ingest,
        decisions: decisions.clone(),
        auth: auth.clone(),
        tasks: tasks.clone(),
    });
    let decisions = DecisionServiceServer::new(Decisions {
        shared: decisions,
        auth,
        tasks: tasks.clone(),
    });
    let ingest = ingest.max_decoding_message_size(MAX_REQUEST_BYTES);
    let decisions = decisions.max_decoding_message_size(MAX_REQUEST_BYTES);
    // Acks are too small to gain from compression; batches of decisions are not. The bound on a request holds for what it
    // is when it is unpacked.
    let ingest = ingest.accept_compressed(Gzip).accept_compressed(Zstd);
    let decisions = decisions.accept_compressed(Gzip).accept_compressed(Zstd);
    let decisions = decisions.send_compressed(Gzip).send_compressed(Zstd);
    let schemas = SchemaServiceServer::new(schemas);
    let reviews = ReviewServiceServer::new(reviews);
    open.add_service(InterceptedService::new(ingest, authenticated.clone()))
        .add_service(InterceptedService::new(decisions, authenticated.clone()))
        .add_service(InterceptedService::new(schemas, authenticated.clone()))
        .add_service(InterceptedService::new(reviews, authenticated.clone()))
        .add_service(InterceptedService::new(
            AuditServiceServer::new(auditing),
            authenticated,
        ))
}

/// Lets the controller set the window, for ever.
async fn steer(ingest: Arc<ingest::Shared>) {
    let mut tick = tokio::time::interval(controller::TICK);
    loop {
        tick.tick().await;
        ingest.controller.tick();
    }
}

/// Reads the quotas again and again, and forgets who is idle.
async fn tend(quotas: Arc<Quotas>) {
    let mut reload = tokio::time::interval(RELOAD_EVERY);
    let mut forget = tokio::time::interval(FORGET_EVERY);
    let mut fault = None;
    loop {
        tokio::select! {
            _ = forget.tick() => quotas.forget_idle(),
            _ = reload.tick() => {
                let quotas = quotas.clone();
                let Ok(read) = tokio::task::spawn_blocking(move || quotas.reload()).await else { continue };
                let now = read.err().map(|error| error.to_string());
                // Said once, not every few seconds.
                if let Some(error) = now.as_deref().filter(|_| fault != now) {
                    tracing::error!(error, "the earlier quotas stay in use");
                }
                fault = now;
            }
        }
    }
}

fn unix_micros() -> i64 {
    // A clock before 1970 makes every event look far ahead of it, and so refuses it.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Turns the process's signals into the messages that [`Server::run`] takes.
///
/// # Errors
/// The operating system's.
pub fn signals() -> io::Result<mpsc::Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = mpsc::channel(2);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if sender.send(()).await.is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}
