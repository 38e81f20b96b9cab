//! Logs and traces of both servers. It is in this crate because the two binaries share it, and the trace's way between
//! them is a Kafka header.
//!
//! Spans are recorded by hand and only for payments whose `traceparent` has the sampled flag, and only where a collector is
//! configured: everywhere else [`Tracer::start`] is a look at an `Option`. The caller forwards the `traceparent` that
//! it was given whenever it has no span of its own.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider,
};
use opentelemetry::{Context, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span as SdkSpan,
};
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

pub use opentelemetry::KeyValue;
pub use opentelemetry::trace::SpanKind;

/// Most finished spans that wait for export; more are dropped, and counted in a warning.
pub const MAX_QUEUED_SPANS: usize = 8_192;
/// Most spans in one export.
pub const MAX_EXPORT_SPANS: usize = 512;
/// How long a span waits for others to be exported with.
pub const EXPORT_DELAY: Duration = Duration::from_secs(1);
/// How long one export may take.
pub const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long [`Telemetry::shutdown`] waits for the last spans.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Length of `00-<trace id>-<span id>-<flags>`.
const TRACEPARENT_BYTES: usize = 55;

/// Telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not a tracing-subscriber directive list.
    #[error("log filter {filter:?}: {reason}")]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody else set a subscriber in this process.
    #[error("logging is already set up")]
    AlreadySet,
    /// The exporter, or the thread that drives it.
    #[error("cannot export spans to {endpoint}: {reason}")]
    Export {
        /// The endpoint as given.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
}

/// Logs to stderr and, where an endpoint was given, exports spans; until [`Telemetry::shutdown`].
pub struct Telemetry {
    export: Option<Export>,
    tracer: Tracer,
}

struct Export {
    provider: SdkTracerProvider,
    /// Dropped after the provider, which may still have spans to send.
    _client: Client,
}

/// The gRPC client's own runtime, with one thread, so that spans leave also while the server's starts or ends. A runtime
/// may not simply be dropped where tasks run, so this one is left to end by itself.
struct Client(Option<Runtime>);

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Sets logging up (compact lines on stderr, `filter` such as `info,sluice_gateway=debug`) and, with an OTLP gRPC
/// endpoint such as `http://127.0.0.1:4317`, the export of spans. Call it first: librdkafka's clients read their log level
/// from it when they are configured.
///
/// # Errors
/// [`Error`]. A collector that cannot be reached is none: it is tried again, and warned about.
pub fn init(service_name: &'static str, filter: &str, otlp_endpoint: Option<&str>) -> Result<Telemetry, Error> {
    let directives = EnvFilter::try_new(filter).map_err(|error| Error::Filter {
        filter: filter.to_owned(),
        reason: error.to_string(),
    })?;
    tracing_subscriber::fmt()
        .compact()
        .with_env_filter(directives)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init()
        .map_err(|_| Error::AlreadySet)?;
    Telemetry::exporting(service_name, otlp_endpoint)
}

impl Telemetry {
    fn exporting(service_name: &'static str, otlp_endpoint: Option<&str>) -> Result<Self, Error> {
        let Some(endpoint) = otlp_endpoint.filter(|endpoint| !endpoint.is_empty()) else {
            return Ok(Self {
                export: None,
                tracer: Tracer::off(),
            });
        };
        let failed = |reason: String| Error::Export {
            endpoint: endpoint.to_owned(),
            reason,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("otlp-export")
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let handle = runtime.handle().clone();
        let client = Client(Some(runtime));
        let entered = handle.enter();
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build();
        let exporter = exporter.map_err(|error| failed(error.to_string()))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_QUEUED_SPANS)
            .with_max_export_batch_size(MAX_EXPORT_SPANS)
            .with_scheduled_delay(EXPORT_DELAY)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            // Which payments are traced was decided by whoever sampled them; see `Tracer::start`.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(Resource::builder().with_service_name(service_name).build())
            .build();
        drop(entered);
        let tracer = Tracer(Some(Arc::new(provider.tracer(service_name))));
        Ok(Self {
            export: Some(Export {
                provider,
                _client: client,
            }),
            tracer,
        })
    }

    /// The handle with which spans are started; cheap to clone.
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Exports what is left, for up to [`SHUTDOWN_TIMEOUT`]. Blocks: call it when everything else has stopped. Spans that
    /// end later are lost.
    pub fn shutdown(self) {
        let Some(export) = self.export else { return };
        if let Err(error) = export.provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT) {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// Starts spans where the export is on.
#[derive(Clone, Debug)]
pub struct Tracer(Option<Arc<SdkTracer>>);

impl Tracer {
    /// One that never starts a span.
    pub fn off() -> Self {
        Self(None)
    }

    /// A child of the span that `traceparent` names, from `start` on; `None` where the export is off, or the parent is
    /// missing, malformed or not sampled.
    pub fn start(
        &self,
        name: &'static str,
        kind: SpanKind,
        traceparent: Option<&str>,
        start: SystemTime,
    ) -> Option<Span> {
        let tracer = self.0.as_deref()?;
        let parent = parse(traceparent?).filter(SpanContext::is_sampled)?;
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_start_time(start);
        let parent = Context::new().with_remote_span_context(parent);
        Some(Span(Box::new(tracer.build_with_context(builder, &parent))))
    }

    /// Records a span that is over, as [`Tracer::start`] and [`Span::end`] would. Build `attributes` lazily: they are not
    /// asked for unless the span is recorded.
    pub fn record<A: IntoIterator<Item = KeyValue>>(
        &self,
        name: &'static str,
        kind: SpanKind,
        traceparent: Option<&str>,
        (start, end): (SystemTime, SystemTime),
        attributes: impl FnOnce() -> A,
    ) {
        if let Some(mut span) = self.start(name, kind, traceparent, start) {
            for attribute in attributes() {
                span.0.set_attribute(attribute);
            }
            span.end(end);
        }
    }
}

/// A span under way; the size of a pointer, as an `Option` too. Dropping it ends it.
#[derive(Debug)]
pub struct Span(Box<SdkSpan>);

impl Span {
    /// The W3C header that makes what follows a child of this span.
    pub fn traceparent(&self) -> String {
        format(self.0.span_context())
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    /// Marks the span as failed.
    pub fn fail(&mut self, reason: &'static str) {
        self.0.set_status(opentelemetry::trace::Status::error(reason));
    }

    /// Ends it at `end`.
    pub fn end(mut self, end: SystemTime) {
        self.0.end_with_timestamp(end);
    }
}

/// Reads a W3C `traceparent`. `None` where it is malformed, which by the standard means: as if there were none.
pub fn parse(traceparent: &str) -> Option<SpanContext> {
    let bytes = traceparent.as_bytes();
    if bytes.len() < TRACEPARENT_BYTES || !(bytes[2] == b'-' && bytes[35] == b'-' && bytes[52] == b'-') {
        return None;
    }
    let version = hex(&bytes[0..2])?;
    // Version 0 ends here; a later one may go on after another dash.
    let ends = bytes
        .get(TRACEPARENT_BYTES)
        .is_none_or(|next| version != 0 && *next == b'-');
    if version == 0xff || !ends {
        return None;
    }
    let trace = TraceId::from(hex(&bytes[3..35])?);
    let span = SpanId::from(u64::try_from(hex(&bytes[36..52])?).ok()?);
    let flags = TraceFlags::new(u8::try_from(hex(&bytes[53..55])?).ok()?) & TraceFlags::SAMPLED;
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    context.is_valid().then_some(context)
}

/// Writes a W3C `traceparent`.
pub fn format(context: &SpanContext) -> String {
    let mut text = String::with_capacity(TRACEPARENT_BYTES);
    let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
    // Writing into a String cannot fail.
    write!(text, "00-{trace:032x}-{span:016x}-{flags:02x}").unwrap_or_default();
    text
}

/// Lowercase hexadecimal digits, as the standard demands; at most 32.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

#[cfg(test)]
#[path = "telemetry_tests.rs"]
mod tests;
