//! What all workers of a run share, and how they are told to stop.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sluice_client::Refusal;
use sluice_proto::pb::ErrorCode;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;

use super::clock::{Clock, NS_PER_S};
use super::connect::Server;
use super::feed::Feed;
use super::follow::Follow;
use super::ledger::Ledger;
use super::options::Stop;
use super::pace::Hold;
use super::record::Recorder;
use super::schedule::Shape;
use crate::source::Ids;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing new is sent beyond the schedule; answers are waited for.
    Running,
    /// Everything ends now.
    Cut,
}

/// How workers behave.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) batch: usize,
    pub(crate) max_in_flight: u32,
    /// The next event is sent when the last one was answered, and measured from its sending.
    pub(crate) closed_loop: bool,
    pub(crate) concurrency: Shape,
    pub(crate) stop: Stop,
    pub(crate) timeout: Duration,
    pub(crate) patience: Duration,
    pub(crate) credit: u32,
}

/// What all workers of a run share.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) server: Server,
    pub(crate) channels: Vec<Channel>,
    pub(crate) settings: Settings,
    pub(crate) feed: Mutex<Feed>,
    pub(crate) recorder: Recorder,
    pub(crate) ledger: Ledger,
    /// For end-to-end only.
    pub(crate) follow: Option<Mutex<Follow>>,
    pub(crate) ids: Ids,
    pub(crate) phase: watch::Sender<Phase>,
    /// Why a worker could not go on.
    pub(crate) failures: Mutex<Vec<String>>,
}

impl Shared {
    /// A worker's connection.
    pub(crate) fn channel(&self, worker: usize) -> Channel {
        self.channels[worker % self.channels.len()].clone()
    }

    /// Whether the concurrency schedule has a worker at work now.
    pub(crate) fn is_active(&self, worker: usize, now_ns: u64) -> bool {
        (worker as f64) < self.settings.concurrency.at(now_ns).max(1.0)
    }

    /// A moment in seconds.
    pub(crate) fn seconds(&self, at_ns: u64) -> f64 {
        at_ns as f64 / NS_PER_S as f64
    }

    /// Notes what held a worker back.
    pub(crate) fn note_held(&self, worker: usize, held: Option<(Hold, u64)>) {
        if let Some((why, held_ns)) = held {
            self.recorder.held(worker, why, held_ns);
        }
    }

    /// A worker cannot go on.
    pub(crate) fn fail(&self, worker: &str, refusal: &Refusal) {
        self.ledger.error(&code(refusal), &refusal.to_string(), 1);
        self.failures.lock().push(format!("{worker}: {refusal}"));
    }
}

/// Lets a task end when told.
pub(crate) async fn cut(phase: &mut watch::Receiver<Phase>) {
    // The sender lives as long as the run.
    drop(phase.wait_for(|phase| *phase == Phase::Cut).await);
}

/// The contract's code of a refusal, or gRPC's.
pub(crate) fn code(refusal: &Refusal) -> String {
    if refusal.error == ErrorCode::Unspecified {
        format!("{:?}", refusal.status)
    } else {
        error_name(refusal.error)
    }
}

/// A code of the contract, as reports have it.
pub(crate) fn error_name(error: ErrorCode) -> String {
    error.as_str_name().trim_start_matches("ERROR_CODE_").to_owned()
}

/// What a stream that ended said.
pub(crate) fn ended(status: Option<Status>) -> Refusal {
    status
        .unwrap_or_else(|| Status::unavailable("the server ended the stream"))
        .into()
}

/// Waits that grow from one attempt to the next.
#[derive(Debug)]
pub(crate) struct Backoff {
    next_ns: u64,
    since_ns: u64,
}

const FIRST_WAIT_NS: u64 = 20_000_000;
const LONGEST_WAIT_NS: u64 = 500_000_000;

impl Backoff {
    pub(crate) fn new(now_ns: u64) -> Self {
        Self {
            next_ns: FIRST_WAIT_NS,
            since_ns: now_ns,
        }
    }

    /// Until when to wait, or `None` when it took too long already.
    pub(crate) fn until(&mut self, now_ns: u64, patience: Duration) -> Option<u64> {
        if now_ns - self.since_ns >= patience.as_nanos() as u64 {
            return None;
        }
        let wait_ns = self.next_ns;
        self.next_ns = (wait_ns * 2).min(LONGEST_WAIT_NS);
        Some(now_ns + wait_ns)
    }
}

/// A handle that workers keep.
pub(crate) type SharedRef = Arc<Shared>;
