//! The page that Prometheus scrapes while a run goes on: the report so far, renewed each second.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::http::header;
use axum::routing::get;
use parking_lot::Mutex;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page at an address. It is served as long as the process lives.
pub(crate) struct Scrape {
    page: Arc<Mutex<String>>,
}

impl Scrape {
    /// Binds and serves.
    ///
    /// # Errors
    /// When the address is in use.
    pub(crate) fn start(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind(address).with_context(|| format!("cannot serve on {address}"))?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let page = Arc::new(Mutex::new(String::new()));
        let shown = Arc::clone(&page);
        let metrics = move || async move { ([(header::CONTENT_TYPE, TEXT)], shown.lock().clone()) };
        let routes = Router::new().route("/metrics", get(metrics));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(Self { page })
    }

    /// Renews the page.
    pub(crate) fn set(&self, page: String) {
        *self.page.lock() = page;
    }
}
