//! Owns the audit log: which principal opened which stream from where, and what was refused and why, one line of JSON each,
//! appended to a file.
//!
//! Comes around the services, inside of gRPC-Web; `auth` tells it the caller through the request's extensions. It never sees
//! credentials or events. A thread of its own writes, so that no call waits for a disk.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::SystemTime;

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use crate::accept::Peer;
use crate::auth::Caller;

/// Lines that wait to be written; what does not fit is counted as lost.
pub const QUEUE_LINES: usize = 8_192;

/// The calls that are streams, and so worth a line when they are opened; a unary call is, when it is refused.
const STREAMS: [&str; 3] = [
    "/sluice.v1.IngestService/Publish",
    "/sluice.v1.DecisionService/Subscribe",
    "/sluice.v1.DecisionService/Watch",
];
/// What our services' calls begin with.
const OURS: &str = "/sluice.v1.";

#[derive(Debug, Serialize)]
struct Line {
    time: String,
    event: &'static str,
    call: String,
    peer: Option<String>,
    tenant: Option<Arc<str>>,
    principal: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
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

/// The audit log; without a file it writes nothing. As a layer, it goes around the services.
#[derive(Clone)]
pub struct Audit {
    lines: Option<SyncSender<Line>>,
    lost: Counter,
}

impl Audit {
    /// Opens the file, at its end. It may be moved away and truncated by copying, but not replaced, while the gateway runs.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(path: Option<&Path>, lost: Counter) -> io::Result<Self> {
        let Some(path) = path else {
            return Ok(Self { lines: None, lost });
        };
        let file = File::options().create(true).append(true).open(path)?;
        let (lines, queue) = sync_channel(QUEUE_LINES);
        let counted = lost.clone();
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || {
            for line in queue {
                if let Err(error) = append(&file, &line) {
                    counted.inc();
                    tracing::error!(%error, "the audit log cannot be written");
                }
            }
        })?;
        let lines = Some(lines);
        Ok(Self { lines, lost })
    }

    fn tell(&self, call: &str, peer: Option<&Peer>, caller: Option<&Caller>, refused: Option<&Status>) {
        let Some(lines) = &self.lines else { return };
        if !call.starts_with(OURS) || (refused.is_none() && !STREAMS.contains(&call)) {
            return;
        }
        let line = Line {
            time: prost_types::Timestamp::from(SystemTime::now()).to_string(),
            event: if refused.is_some() { "refused" } else { "opened" },
            call: call.to_owned(),
            peer: peer.and_then(|peer| peer.address).map(|address| address.to_string()),
            tenant: caller.map(|caller| caller.tenant.clone()),
            principal: caller.map(|caller| caller.name.clone()),
            code: refused.map(|status| format!("{:?}", status.code())),
            reason: refused.map(|status| status.message().to_owned()),
        };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = lines.try_send(line) {
            self.lost.inc();
        }
    }
}

fn append(mut file: &File, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
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
        if self.audit.lines.is_none() {
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
            let refused = Status::from_header_map(response.headers());
            audit.tell(&call, peer.as_ref(), called.0.get(), refused.as_ref());
            Ok(response)
        })
    }
}
