//! Owns the audit log: which principal opened which stream from where, what was refused and why, and how streams ended that
//! did not end well. One line of JSON each, appended to a file, to a topic, or to both.
//!
//! Comes around the services, inside of gRPC-Web; `auth` tells it the caller through the request's extensions. It never sees
//! credentials or events. `write` is the thread that writes, so that no call waits for a disk; `read` gives the topic's lines
//! to auditors.

pub mod read;
mod write;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http_body_util::BodyExt as _;
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::accept::Peer;
use crate::auth::Caller;
use crate::status::Failure;
pub use write::Error;
use write::Order;

/// Lines that wait to be written; what does not fit is counted as lost.
pub const QUEUE_LINES: usize = 8_192;

/// The stream that publishes.
pub const PUBLISH: &str = "/sluice.v1.IngestService/Publish";
/// The calls that are worth a line when they are let in: streams, and what a person says of a payment. Others are, when they
/// are refused.
const NOTED: [&str; 5] = [
    PUBLISH,
    "/sluice.v1.DecisionService/Subscribe",
    "/sluice.v1.DecisionService/Watch",
    "/sluice.v1.AuditService/ReadAudit",
    "/sluice.v1.ReviewService/Settle",
];
/// What our services' calls begin with.
const OURS: &str = "/sluice.v1.";

/// Where the log goes. With neither there is none.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// A file.
    pub file: Option<PathBuf>,
    /// A topic, with the installation's prefix, and how to reach it.
    pub topic: Option<(String, sluice_kafka::Config)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Happened {
    Opened,
    Refused,
    Ended,
}

impl Happened {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Refused => "refused",
            Self::Ended => "ended",
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    time: String,
    event: String,
    call: String,
    gateway: String,
    peer: Option<String>,
    tenant: Option<String>,
    principal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The place of a call's caller, which is known once it is authenticated.
#[derive(Clone, Debug, Default)]
pub struct Called(Arc<OnceLock<Caller>>);

impl Called {
    /// Notes who calls.
    pub fn by(&self, caller: &Caller) {
        // A call is authenticated once.
        drop(self.0.set(caller.clone()));
    }
}

/// The audit log. As a layer, it goes around the services.
#[derive(Clone)]
pub struct Audit {
    orders: Option<SyncSender<Order>>,
    gateway: Arc<str>,
    lost: Counter,
}

impl Audit {
    /// Opens the log, a file at its end. It may be moved away and truncated by copying, but not replaced, while the gateway
    /// runs.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(places: Places, gateway: &str, lost: Counter) -> Result<Self, Error> {
        let mut audit = Self {
            orders: None,
            gateway: gateway.into(),
            lost,
        };
        if places.file.is_some() || places.topic.is_some() {
            let (orders, queue) = sync_channel(QUEUE_LINES);
            write::start(places, queue, audit.lost.clone())?;
            audit.orders = Some(orders);
        }
        Ok(audit)
    }

    /// Waits until everything so far is written, for up to `timeout`. Blocks.
    pub fn flush(&self, timeout: Duration) {
        let Some(orders) = &self.orders else { return };
        let (done, written) = sync_channel(1);
        if orders.send(Order::Flush(timeout, done)).is_err() || written.recv_timeout(timeout).is_err() {
            tracing::warn!("the end of the audit log may be missing");
        }
    }

    /// Notes that an event on a publishing stream was refused because of who sent it.
    pub fn denied(&self, caller: &Caller, failure: &Failure) {
        let status = Status::from(failure.clone());
        self.tell(Happened::Refused, PUBLISH, None, Some(caller), Some(&status));
    }

    fn tell(
        &self,
        happened: Happened,
        call: &str,
        peer: Option<&Peer>,
        caller: Option<&Caller>,
        status: Option<&Status>,
    ) {
        let Some(orders) = &self.orders else { return };
        let line = Line {
            time: prost_types::Timestamp::from(SystemTime::now()).to_string(),
            event: happened.as_str().to_owned(),
            call: call.to_owned(),
            gateway: self.gateway.to_string(),
            peer: peer.and_then(|peer| peer.address).map(|address| address.to_string()),
            tenant: caller.map(|caller| caller.tenant.to_string()),
            principal: caller.map(|caller| caller.name.to_string()),
            code: status.map(|status| format!("{:?}", status.code())),
            reason: status.map(|status| status.message().to_owned()),
        };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = orders.try_send(Order::Write(line)) {
            self.lost.inc();
        }
    }
}

impl<S> Layer<S> for Audit {
    type Service = Audited<S>;

    fn layer(&self, inner: S) -> Audited<S> {
        let audit = self.clone();
        Audited { inner, audit }
    }
}

/// A service whose calls are audited.
#[derive(Clone)]
pub struct Audited<S> {
    inner: S,
    audit: Audit,
}

impl<S> Service<Request<Body>> for Audited<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if self.audit.orders.is_none() || !request.uri().path().starts_with(OURS) {
            return Box::pin(self.inner.call(request));
        }
        let (audit, called) = (self.audit.clone(), Called::default());
        let call = request.uri().path().to_owned();
        let peer = request.extensions().get::<Peer>().cloned();
        request.extensions_mut().insert(called.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            // A status in the headers is a refusal: what is served has its own in the trailers.
            if let Some(refused) = Status::from_header_map(response.headers()) {
                audit.tell(Happened::Refused, &call, peer.as_ref(), called.0.get(), Some(&refused));
                return Ok(response);
            }
            if !NOTED.contains(&call.as_str()) {
                return Ok(response);
            }
            audit.tell(Happened::Opened, &call, peer.as_ref(), called.0.get(), None);
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let ended = frame.trailers_ref().and_then(Status::from_header_map);
                    if let Some(status) = ended.filter(|status| status.code() != Code::Ok) {
                        audit.tell(Happened::Ended, &call, peer.as_ref(), called.0.get(), Some(&status));
                    }
                    frame
                }))
            }))
        })
    }
}
