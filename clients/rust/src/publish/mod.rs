//! Publishing over a session: what callers see of it.
//!
//! A [`Publisher`] encodes each event once and hands it to the session's driver (`session`), which numbers it (`window`),
//! sends it as far as credit goes, keeps it until it is acknowledged, and answers the event's [`Ticket`].

mod session;
mod window;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use sluice_proto::{bounds, pb};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::backoff::Backoff;
use crate::refusal::Refusal;
use crate::target::{Target, Unreachable};
use session::Driver;
use window::Submission;

/// Events that wait for room in the window, besides those in it.
const QUEUE_EVENTS: usize = 256;
const DEFAULT_PATIENCE: Duration = Duration::from_secs(300);

/// What became of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Stored by all in-sync replicas.
    Stored {
        /// Where, when positions were asked for.
        position: Option<pb::Position>,
    },
    /// The gateway had this sequence number before and did not store it again.
    Duplicate,
    /// The session went past the event while the connection was lost, and the answer was lost with it. The event was
    /// stored or refused; to be sure, publish it again with the same event_id, which decides it once in any case.
    Settled,
    /// Not stored, or not surely: the error says which, and whether publishing it again may help.
    Error(pb::EventError),
}

/// An outcome with its event's place in the session.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The event's sequence number.
    pub sequence: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// When the answer arrived.
    pub settled_at: Instant,
}

/// Why a session could not be opened, or ended for good. A lost connection is none of these: it is made again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The first connection could not be made.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The API key is missing or unknown.
    #[error("the API key was refused: {0}")]
    Unauthenticated(Refusal),
    /// A newer session of the same producer_id took over.
    #[error("another session took over this producer_id: {0}")]
    Fenced(Refusal),
    /// The gateway refused the session for another reason that trying again does not mend.
    #[error("the gateway refused the session: {0}")]
    Refused(Refusal),
    /// The connection was lost and could not be made again in time. Unsettled events may or may not be stored.
    #[error("no session for {} s, at last because {last}", after.as_secs())]
    GaveUp {
        /// For how long it was tried.
        after: Duration,
        /// What went wrong last.
        last: String,
    },
    /// The event exceeds what the contract allows; it was not sent.
    #[error("the event has {bytes} encoded bytes, more than {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The publisher has ended, and the event was not settled before.
    #[error("the publisher has ended")]
    Ended,
}

impl From<Refusal> for Error {
    /// Sorts a refusal that is not retriable.
    fn from(refusal: Refusal) -> Self {
        match (refusal.status, refusal.error) {
            (tonic::Code::Unauthenticated, _) | (_, pb::ErrorCode::Unauthenticated) => Self::Unauthenticated(refusal),
            (tonic::Code::Aborted, _) | (_, pb::ErrorCode::Fenced) => Self::Fenced(refusal),
            _ => Self::Refused(refusal),
        }
    }
}

impl Error {
    /// The same for one event, which was sent or never was.
    fn of_event(self, sent: bool) -> Self {
        match self {
            Self::Unauthenticated(refusal) => Self::Unauthenticated(refusal.of_event(sent)),
            Self::Fenced(refusal) => Self::Fenced(refusal.of_event(sent)),
            Self::Refused(refusal) => Self::Refused(refusal.of_event(sent)),
            Self::Unreachable(_) | Self::GaveUp { .. } | Self::TooLarge { .. } | Self::Ended => self,
        }
    }
}

/// How to publish.
#[derive(Clone, Debug)]
pub struct Builder {
    target: Target,
    producer_id: String,
    epoch: u64,
    max_in_flight: u32,
    want_positions: bool,
    patience: Duration,
}

impl Builder {
    /// At most so many events are kept unacknowledged; 0, the default, leaves it to the gateway.
    pub fn max_in_flight(mut self, events: u32) -> Self {
        self.max_in_flight = events;
        self
    }

    /// Asks for the position of every stored event.
    pub fn want_positions(mut self, want: bool) -> Self {
        self.want_positions = want;
        self
    }

    /// For how long a lost session is tried to be opened again; 5 minutes unless told.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Opens the session and waits until the gateway is ready for events. The first attempt is the only one.
    ///
    /// Cancel-safe: when dropped, no session is left.
    ///
    /// # Errors
    /// When the gateway cannot be reached or refuses the session.
    pub async fn connect(self) -> Result<Publisher, Error> {
        let (queue, submissions) = mpsc::channel(QUEUE_EVENTS);
        let shared = Arc::new(Shared::default());
        let backoff = Backoff::new(self.patience);
        let mut driver = Driver::new(self, submissions, backoff, Arc::clone(&shared));
        let session = driver.open().await?;
        let task = tokio::spawn(driver.run(session));
        Ok(Publisher { queue, shared, task })
    }
}

/// What the driver tells the publisher besides tickets.
#[derive(Debug, Default)]
struct Shared {
    /// Why the session ended for good.
    ended: OnceLock<Error>,
    sessions: AtomicU64,
    throttles: AtomicU64,
}

/// A publishing session that survives lost connections.
///
/// Dropping it does not lose events: a task goes on until what was accepted is settled. [`Publisher::close`] waits for
/// that.
#[derive(Debug)]
pub struct Publisher {
    queue: mpsc::Sender<Submission>,
    shared: Arc<Shared>,
    task: JoinHandle<Result<(), Error>>,
}

impl Publisher {
    /// A publisher named `producer_id`, which is stable across restarts, in its life number `epoch`, which must be higher
    /// than in any earlier life; the wall clock in milliseconds will do.
    pub fn builder(target: Target, producer_id: impl Into<String>, epoch: u64) -> Builder {
        Builder {
            target,
            producer_id: producer_id.into(),
            epoch,
            max_in_flight: 0,
            want_positions: false,
            patience: DEFAULT_PATIENCE,
        }
    }

    /// Publishes an event. Waits while there is no credit and the window is full, then returns a ticket for the event's
    /// outcome. Events are sent in the order in which these calls return.
    ///
    /// Cancel-safe: when dropped before it returns, the event is not published.
    ///
    /// # Errors
    /// When the event is too large, or the session has ended for good.
    pub async fn publish(&self, event: pb::Event) -> Result<Ticket, Error> {
        self.publish_encoded(event.encode_to_vec().into()).await
    }

    /// Publishes an event that is already encoded.
    ///
    /// Cancel-safe, as [`Publisher::publish`] is.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub async fn publish_encoded(&self, event: Bytes) -> Result<Ticket, Error> {
        if event.len() > bounds::MAX_EVENT_BYTES {
            return Err(Error::TooLarge {
                bytes: event.len(),
                limit: bounds::MAX_EVENT_BYTES,
            });
        }
        let permit = self.queue.reserve().await.map_err(|_closed| self.shared.why())?;
        let (reply, answer) = oneshot::channel();
        permit.send(Submission { event, reply });
        Ok(Ticket {
            answer,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Publishes events one after the other; what is ready together travels together.
    ///
    /// Not cancel-safe: when dropped, the first of them may be published and their tickets are lost.
    ///
    /// # Errors
    /// As [`Publisher::publish`]; the events before the failed one are published, and their tickets are lost.
    pub async fn publish_all(&self, events: impl IntoIterator<Item = pb::Event>) -> Result<Vec<Ticket>, Error> {
        let mut tickets = Vec::new();
        for event in events {
            tickets.push(self.publish(event).await?);
        }
        Ok(tickets)
    }

    /// How many sessions were opened so far: 1, and one more for each time that the connection was lost.
    pub fn sessions(&self) -> u64 {
        self.shared.sessions.load(Ordering::Relaxed)
    }

    /// How often the gateway said that a quota holds this session back.
    pub fn throttles(&self) -> u64 {
        self.shared.throttles.load(Ordering::Relaxed)
    }

    /// Waits until everything accepted is settled, then ends the session.
    ///
    /// Cancel-safe: when dropped, the events are still delivered in the background.
    ///
    /// # Errors
    /// When the session ended for good before.
    pub async fn close(self) -> Result<(), Error> {
        drop(self.queue);
        self.task.await.unwrap_or(Err(Error::Ended))
    }
}

impl Shared {
    fn why(&self) -> Error {
        self.ended.get().cloned().unwrap_or(Error::Ended)
    }
}

/// The outcome of one event, to be awaited. Dropping it does not take the event back. An error means that the session ended
/// for good before the event was settled: one that was sent may be stored, and [`Refusal::certainly_not_stored`] tells.
#[derive(Debug)]
pub struct Ticket {
    answer: oneshot::Receiver<Result<Receipt, Error>>,
    shared: Arc<Shared>,
}

impl Future for Ticket {
    type Output = Result<Receipt, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer)
            .poll(context)
            .map(|answer| answer.unwrap_or_else(|_dropped| Err(self.shared.why())))
    }
}
