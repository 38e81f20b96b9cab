//! Owns the reading of the audit log for auditors: the lines of their own tenant, from the topic that all gateways write.
//!
//! Comes after `service`. Each call reads with a consumer of its own, on a thread that may block, as fast as its client takes
//! the lines. A call that ends well has given all of them; any other says why it ends.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::message::Message as _;
use sluice_kafka::config::Isolation;
use sluice_kafka::error;
use sluice_kafka::scan::{self, Ranges, Scanner};
use sluice_proto::pb::{self, ErrorCode};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Line;
use crate::auth::Caller;
use crate::status::Failure;
use crate::{guard, ingest};

/// Calls that read at a time.
pub const MAX_READERS: usize = 4;
/// Lines that wait for a slow client.
pub const WAITING_LINES: usize = 64;
/// How long a client may take no line before its call ends, so that others get their turn.
pub const LINE_TIMEOUT: Duration = Duration::from_secs(10);
/// When a caller should try again after all readers were in use.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The quota that is spent then.
pub const READERS: &str = "gateway.audit_readers";

/// How to read the audit log's topic.
#[derive(Clone, Debug)]
pub struct Source {
    /// How to reach Kafka.
    pub kafka: sluice_kafka::Config,
    /// The topic, with the installation's prefix.
    pub topic: String,
    /// Its partitions.
    pub partitions: i32,
}

/// Reads for auditors; without a source there is nothing to read.
#[derive(Clone, Debug)]
pub struct Reader {
    source: Option<Source>,
    room: Arc<Semaphore>,
    draining: CancellationToken,
}

impl Reader {
    /// A reader of this source, whose calls end when the gateway drains.
    pub fn new(source: Option<Source>, draining: CancellationToken) -> Self {
        Self {
            source,
            room: Arc::new(Semaphore::new(MAX_READERS)),
            draining,
        }
    }

    /// The entries of the caller's tenant that were written since a time, in milliseconds since the Unix epoch, up to now.
    ///
    /// # Errors
    /// `UNIMPLEMENTED`, `QUOTA_EXCEEDED`; what fails later ends the stream.
    pub fn entries(
        &self,
        caller: &Caller,
        since_ms: i64,
    ) -> Result<ReceiverStream<Result<pb::ReadAuditResponse, Status>>, Failure> {
        let source = self.source.clone().ok_or_else(|| {
            let remedy = "set SLUICE_AUDIT_TOPIC, or read the file that SLUICE_AUDIT_LOG names";
            Failure::new(ErrorCode::Unimplemented, "the gateway writes no audit topic", remedy)
        })?;
        let room = self.room.clone().try_acquire_owned().map_err(|_| {
            Failure::new(
                ErrorCode::QuotaExceeded,
                "too many calls read the audit log",
                "wait, and call again",
            )
            .quota(READERS)
            .retry_after(RETRY_AFTER)
        })?;
        let (lines, stream) = mpsc::channel(WAITING_LINES + 1);
        // Room for how the call ends, however many lines wait before it.
        let Ok(last) = lines.clone().try_reserve_owned() else {
            unreachable!("nothing was sent yet");
        };
        let (caller, draining) = (caller.clone(), self.draining.clone());
        tokio::task::spawn_blocking(move || {
            let _room = room;
            let ended = source
                .read(&caller, since_ms, &lines, &draining)
                .unwrap_or_else(|error| {
                    tracing::warn!(%error, "the audit log cannot be read");
                    Some(Failure::new(
                        ErrorCode::BrokerUnavailable,
                        "the audit log cannot be read now",
                        "call again",
                    ))
                });
            if let Some(failure) = ended {
                last.send(Err(failure.into()));
            }
        });
        Ok(ReceiverStream::new(stream))
    }
}

impl Source {
    /// Gives the lines to the client. `Some` where it does not get all of them, with why, unless it is gone.
    fn read(
        &self,
        caller: &Caller,
        since_ms: i64,
        lines: &mpsc::Sender<Result<pb::ReadAuditResponse, Status>>,
        draining: &CancellationToken,
    ) -> Result<Option<Failure>, scan::Error> {
        let runtime = Handle::current();
        let scanner = Scanner::new(&self.kafka, Isolation::ReadUncommitted)?;
        let ranges = self.ranges(&scanner, since_ms)?;
        let ended = scanner.read(&self.topic, &ranges, |message| {
            if lines.is_closed() {
                return ControlFlow::Break(None);
            }
            if draining.is_cancelled() {
                return ControlFlow::Break(Some(ingest::draining()));
            }
            if let Some(failure) = guard::lapsed(caller) {
                return ControlFlow::Break(Some(failure));
            }
            // Anybody may write to a topic; what is no line is not ours.
            let line = message
                .payload()
                .and_then(|bytes| serde_json::from_slice::<Line>(bytes).ok());
            let Some(line) = line.filter(|line| line.tenant.as_deref() == Some(&*caller.tenant)) else {
                return ControlFlow::Continue(());
            };
            match runtime.block_on(lines.send_timeout(Ok(response(line)), LINE_TIMEOUT)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(SendTimeoutError::Closed(_)) => ControlFlow::Break(None),
                Err(SendTimeoutError::Timeout(_)) => ControlFlow::Break(Some(unread())),
            }
        })?;
        Ok(ended.flatten())
    }

    fn ranges(&self, scanner: &Scanner, since_ms: i64) -> Result<Ranges, error::Consumer> {
        let mut ranges = Ranges::new();
        for partition in 0..self.partitions {
            let ends = scanner.ends(&self.topic, partition)?;
            if let Some(from) = scanner.since(&self.topic, partition, since_ms)? {
                ranges.insert(partition, from..ends.end);
            }
        }
        Ok(ranges)
    }
}

fn unread() -> Failure {
    Failure::new(
        ErrorCode::QuotaExceeded,
        "the client takes no entries, and others wait for the reader",
        "call again with the time of the last entry as since, and read without a pause",
    )
    .quota(READERS)
    .retry_after(RETRY_AFTER)
}

fn response(line: Line) -> pb::ReadAuditResponse {
    pb::ReadAuditResponse {
        entry: Some(pb::AuditEntry {
            time: line.time.parse().ok(),
            event: line.event,
            call: line.call,
            peer: line.peer.unwrap_or_default(),
            principal: line.principal.unwrap_or_default(),
            code: line.code.unwrap_or_default(),
            reason: line.reason.unwrap_or_default(),
            gateway: line.gateway,
        }),
    }
}
