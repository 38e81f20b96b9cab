//! The admin port that both servers open: metrics and health. It is the last thing to stop, so that a drain can be seen.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;

use crate::metrics;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The bound port, not yet served.
pub struct AdminServer {
    listener: TcpListener,
}

impl AdminServer {
    /// Binds `addr`, so that a port in use is an error at start.
    ///
    /// # Errors
    /// The operating system's.
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Where it listens, which tells the port that was chosen for port 0.
    ///
    /// # Errors
    /// The operating system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` resolves: `GET /metrics` (OpenMetrics text), `GET /health/live` (200 as long as the process
    /// answers) and `GET /health/ready` (200, or 503 with the reason that `readiness` gives). `readiness` is called for
    /// each request and must not block.
    ///
    /// # Errors
    /// The operating system's, when accepting fails for good.
    pub async fn run(
        self,
        registry: Arc<Registry>,
        readiness: impl Fn() -> Result<(), String> + Clone + Send + Sync + 'static,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let routes = Router::new()
            .route("/metrics", get(move || async move { page(&registry) }))
            .route("/health/live", get(|| async { "live\n" }))
            .route("/health/ready", get(move || async move { ready(readiness()) }));
        axum::serve(listener, routes).with_graceful_shutdown(shutdown).await
    }
}

fn page(registry: &Registry) -> Response {
    match metrics::encode(registry) {
        Ok(page) => ([(header::CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn ready(readiness: Result<(), String>) -> (StatusCode, String) {
    match readiness {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn read(url: &str) -> (u16, String, String) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut answer = agent.get(url).call().expect("answer");
        let kind = answer
            .headers()
            .get("content-type")
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or("")
            .to_owned();
        (
            answer.status().as_u16(),
            kind,
            answer.body_mut().read_to_string().expect("body"),
        )
    }

    #[tokio::test]
    async fn serves_metrics_and_health_until_shutdown() {
        let mut registry = Registry::default();
        metrics::Metrics::register(&mut registry)
            .consumer("payments")
            .consumed(3);
        let server = AdminServer::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bind");
        let base = format!("http://{}", server.local_addr().expect("address"));
        let draining = Arc::new(AtomicBool::new(false));
        let flag = draining.clone();
        let readiness = move || {
            if flag.load(Ordering::Relaxed) {
                Err("draining".to_owned())
            } else {
                Ok(())
            }
        };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let shutdown = async move { stopped.await.unwrap_or(()) };
        let running = tokio::spawn(server.run(Arc::new(registry), readiness, shutdown));

        tokio::task::spawn_blocking(move || {
            let (status, kind, page) = read(&format!("{base}/metrics"));
            assert_eq!((status, kind.as_str()), (200, OPEN_METRICS));
            assert!(
                page.contains("kafka_messages_consumed_total{topic=\"payments\"} 3\n"),
                "{page}"
            );
            assert_eq!(read(&format!("{base}/health/live")).0, 200);
            assert_eq!(read(&format!("{base}/health/ready")).0, 200);
            draining.store(true, Ordering::Relaxed);
            let (status, _, reason) = read(&format!("{base}/health/ready"));
            assert_eq!((status, reason.as_str()), (503, "draining\n"));
            assert_eq!(read(&format!("{base}/nothing")).0, 404);
        })
        .await
        .expect("client");
        stop.send(()).expect("still running");
        running.await.expect("joined").expect("served");
    }

    #[test]
    fn a_port_in_use_is_an_error_at_bind() {
        let first = AdminServer::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bind");
        let error = AdminServer::bind(first.local_addr().expect("address"))
            .err()
            .expect("in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
