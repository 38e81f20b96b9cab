//! Receiving decisions: each one once, in order, across lost connections.
//!
//! A task holds the stream and opens it again with the newest token; what it receives waits in a queue for
//! [`Subscriber::next`]. Credit is given back as decisions are taken, so that at most the credit's worth waits here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sluice_proto::pb;
use sluice_proto::pb::decision_service_client::DecisionServiceClient;
use sluice_proto::pb::subscribe_open;
use sluice_proto::pb::subscribe_request::Message as Request;
use sluice_proto::pb::subscribe_response::Message as Response;
use sluice_proto::pb::{FraudDecision, SubscribeCredit, SubscribeOpen, SubscribeRequest, SubscribeResponse};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::backoff::{Backoff, pause};
use crate::refusal::Refusal;
use crate::target::{Target, Unreachable};

/// Decisions on their way or waiting, unless told otherwise.
const DEFAULT_CREDIT: u32 = 4_096;
const DEFAULT_PATIENCE: Duration = Duration::from_secs(300);
/// Requests between the task and the transport.
const OUTGOING_REQUESTS: usize = 4;
/// How long the gateway may take to answer Open.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// Credit is given back when this part of it was taken, to keep the messages few.
const REPLENISH_PART: u32 = 4;
/// Largest response: a batch of as many decisions as the credit allows.
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;

/// Where a subscription begins.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// With the decisions committed from now on.
    Latest,
    /// With the oldest decisions still stored.
    Earliest,
    /// With the decisions written at this time or later.
    Since(SystemTime),
    /// After the decisions that came with this token: see [`Subscriber::token`].
    Token(Bytes),
}

/// Why a subscription could not be opened, or ended for good. A lost connection is none of these: it is made again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The first connection could not be made.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The API key is missing or unknown.
    #[error("the API key was refused: {0}")]
    Unauthenticated(Refusal),
    /// The gateway refused the subscription for another reason that trying again does not mend.
    #[error("the gateway refused the subscription: {0}")]
    Refused(Refusal),
    /// The connection was lost and could not be made again in time.
    #[error("no subscription for {} s, at last because {last}", after.as_secs())]
    GaveUp {
        /// For how long it was tried.
        after: Duration,
        /// What went wrong last.
        last: String,
    },
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match (refusal.status, refusal.error) {
            (tonic::Code::Unauthenticated, _) | (_, pb::ErrorCode::Unauthenticated) => Self::Unauthenticated(refusal),
            _ => Self::Refused(refusal),
        }
    }
}

/// What to receive.
#[derive(Clone, Debug)]
pub struct Builder {
    target: Target,
    start: Start,
    filter: pb::DecisionFilter,
    credit: u32,
    patience: Duration,
}

impl Builder {
    /// Where to begin; [`Start::Latest`] unless told.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Which decisions to receive; all unless told.
    pub fn filter(mut self, filter: pb::DecisionFilter) -> Self {
        self.filter = filter;
        self
    }

    /// At most so many decisions are on their way or wait to be taken; 4,096 unless told, at least 1.
    pub fn credit(mut self, decisions: u32) -> Self {
        self.credit = decisions.max(1);
        self
    }

    /// For how long a lost subscription is tried to be opened again; 5 minutes unless told.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Opens the subscription and waits until it stands: with [`Start::Latest`], every decision committed after this
    /// returns is received. The first attempt is the only one.
    ///
    /// Cancel-safe: when dropped, no subscription is left.
    ///
    /// # Errors
    /// When the gateway cannot be reached or refuses the subscription.
    pub async fn open(self) -> Result<Subscriber, Error> {
        let (deliveries, received) = mpsc::channel(self.credit as usize);
        let shared = Arc::new(Shared::default());
        let mut driver = Driver {
            deliveries,
            backoff: Backoff::new(self.patience),
            delivered: 0,
            credited: 0,
            token: match &self.start {
                Start::Token(token) => Some(token.clone()),
                Start::Latest | Start::Earliest | Start::Since(_) => None,
            },
            options: self,
            shared: Arc::clone(&shared),
        };
        let session = driver.open().await?;
        let token = driver.token.clone().unwrap_or_default();
        let task = tokio::spawn(driver.run(session));
        Ok(Subscriber {
            received,
            shared,
            task,
            waiting: VecDeque::new(),
            waiting_token: token.clone(),
            token,
        })
    }
}

/// Between the task and the subscriber.
#[derive(Debug, Default)]
struct Shared {
    /// Decisions taken so far.
    taken: AtomicU64,
    was_taken: Notify,
    sessions: AtomicU64,
    /// The newest position that came without decisions, and how many decisions had come before it.
    progress: Mutex<(u64, Bytes)>,
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, (u64, Bytes)> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Decisions with the position after the last of them.
type Delivery = Result<(Vec<FraudDecision>, Bytes), Error>;

/// A subscription that survives lost connections. Dropping it ends it.
#[derive(Debug)]
pub struct Subscriber {
    received: mpsc::Receiver<Delivery>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
    waiting: VecDeque<FraudDecision>,
    /// The position after everything in `waiting`.
    waiting_token: Bytes,
    token: Bytes,
}

impl Subscriber {
    /// A subscription at this gateway.
    pub fn builder(target: Target) -> Builder {
        Builder {
            target,
            start: Start::Latest,
            filter: pb::DecisionFilter::default(),
            credit: DEFAULT_CREDIT,
            patience: DEFAULT_PATIENCE,
        }
    }

    /// The next decision; `None` after an error was returned.
    ///
    /// Cancel-safe: when dropped, no decision is lost.
    ///
    /// # Errors
    /// When the subscription ended for good.
    pub async fn next(&mut self) -> Result<Option<FraudDecision>, Error> {
        loop {
            if let Some(decision) = self.waiting.pop_front() {
                if self.waiting.is_empty() {
                    self.token.clone_from(&self.waiting_token);
                }
                self.shared.taken.fetch_add(1, Ordering::AcqRel);
                self.shared.was_taken.notify_one();
                return Ok(Some(decision));
            }
            match self.received.recv().await {
                Some(Ok((decisions, token))) => {
                    // What was passed over before them stays behind.
                    self.token = self.token();
                    self.waiting = decisions.into();
                    self.waiting_token = token;
                }
                Some(Err(error)) => return Err(error),
                None => return Ok(None),
            }
        }
    }

    /// The position to begin from in another life, to be stored with what the decisions caused. Decisions come in
    /// batches, and the position is behind the newest batch that was taken whole: what was taken of the batch after
    /// that comes again. It also moves while the filter lets nothing pass, so store it now and then: what is older than the
    /// topic keeps expires.
    pub fn token(&self) -> Bytes {
        let (before, progress) = &*self.shared.progress();
        if !progress.is_empty() && *before == self.shared.taken.load(Ordering::Acquire) {
            progress.clone()
        } else {
            self.token.clone()
        }
    }

    /// How often the subscription was opened so far: 1, and one more for each time that the connection was lost.
    pub fn sessions(&self) -> u64 {
        self.shared.sessions.load(Ordering::Relaxed)
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Session {
    outgoing: mpsc::Sender<SubscribeRequest>,
    incoming: Streaming<SubscribeResponse>,
}

enum End {
    Lost(Refusal),
    Fatal(Error),
    /// The subscriber is gone.
    Unwanted,
}

struct Driver {
    options: Builder,
    /// The newest position; none before the first Ready.
    token: Option<Bytes>,
    /// Decisions received so far.
    delivered: u64,
    /// How far the credit reaches that this session was given, in decisions received.
    credited: u64,
    deliveries: mpsc::Sender<Delivery>,
    backoff: Backoff,
    shared: Arc<Shared>,
}

impl Driver {
    async fn open(&mut self) -> Result<Session, Error> {
        let channel = self.options.target.connect().await?;
        let mut client = DecisionServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let (outgoing, requests) = mpsc::channel(OUTGOING_REQUESTS);
        // The credit of an earlier session went with it, and what waits here counts against the new one.
        self.credited = self.delivered;
        let credit = self.missing_credit();
        let open = Request::Open(SubscribeOpen {
            filter: Some(self.options.filter.clone()),
            credit,
            start: Some(self.start()),
            ..SubscribeOpen::default()
        });
        // There is room: the channel was made just now.
        drop(outgoing.try_send(SubscribeRequest { message: Some(open) }));
        let request = self.options.target.request(ReceiverStream::new(requests));
        let answer = async {
            let mut incoming = client.subscribe(request).await?.into_inner();
            let first = incoming.message().await?;
            Ok::<_, tonic::Status>((first, incoming))
        };
        let (first, incoming) = timeout(READY_TIMEOUT, answer)
            .await
            .map_err(|_elapsed| Refusal::unexpected("the gateway did not answer Open"))?
            .map_err(Refusal::from)?;
        let Some(Response::Ready(ready)) = first.and_then(|response| response.message) else {
            return Err(Refusal::unexpected("the gateway did not begin with Ready").into());
        };
        self.credited += u64::from(credit);
        self.learn(ready.token);
        self.shared.sessions.fetch_add(1, Ordering::Relaxed);
        Ok(Session { outgoing, incoming })
    }

    fn start(&self) -> subscribe_open::Start {
        if let Some(token) = &self.token {
            return subscribe_open::Start::Token(token.clone());
        }
        match &self.options.start {
            Start::Latest => subscribe_open::Start::Latest(pb::Latest {}),
            Start::Earliest => subscribe_open::Start::Earliest(pb::Earliest {}),
            Start::Since(time) => subscribe_open::Start::Since((*time).into()),
            Start::Token(token) => subscribe_open::Start::Token(token.clone()),
        }
    }

    async fn run(mut self, first: Session) {
        let mut end = self.drive(first).await;
        loop {
            let refusal = match end {
                End::Unwanted => return,
                End::Fatal(error) => return self.fail(error).await,
                End::Lost(refusal) => refusal,
            };
            let Some(wait) = self.backoff.wait(Instant::now()) else {
                let after = self.options.patience;
                let last = refusal.to_string();
                return self.fail(Error::GaveUp { after, last }).await;
            };
            pause(wait.max(refusal.retry_after.unwrap_or_default())).await;
            end = match self.open().await {
                Ok(session) => self.drive(session).await,
                Err(Error::Unreachable(unreachable)) => End::Lost(Refusal::unexpected(&unreachable.to_string())),
                Err(Error::Unauthenticated(refusal) | Error::Refused(refusal)) => sort(refusal),
                Err(error @ Error::GaveUp { .. }) => End::Fatal(error),
            };
        }
    }

    /// Receives over one stream until it ends.
    async fn drive(&mut self, mut session: Session) -> End {
        let shared = Arc::clone(&self.shared);
        loop {
            tokio::select! {
                response = session.incoming.message() => match response {
                    Ok(Some(response)) => {
                        if let Some(end) = self.receive(response).await {
                            return end;
                        }
                    }
                    Ok(None) => return End::Lost(Refusal::unexpected("the gateway ended the stream")),
                    Err(status) => return ended(status.into()),
                },
                () = shared.was_taken.notified() => {
                    if let Some(credit) = self.replenish()
                        && session.outgoing.send(credit).await.is_err()
                    {
                        // The transport takes no more requests; the responses say why.
                        let last = session.incoming.message().await.err().map(Refusal::from);
                        return ended(last.unwrap_or_else(|| Refusal::unexpected("the gateway ended the stream")));
                    }
                }
            }
        }
    }

    async fn receive(&mut self, response: SubscribeResponse) -> Option<End> {
        match response.message {
            Some(Response::Batch(batch)) => {
                self.learn(batch.token.clone());
                self.backoff.progress();
                self.delivered += batch.decisions.len() as u64;
                let delivered = self.deliveries.send(Ok((batch.decisions, batch.token))).await;
                delivered.is_err().then_some(End::Unwanted)
            }
            Some(Response::Progress(progress)) => {
                *self.shared.progress() = (self.delivered, progress.token.clone());
                self.learn(progress.token);
                self.backoff.progress();
                None
            }
            Some(Response::Drain(drain)) => {
                self.learn(drain.token);
                Some(End::Lost(Refusal::unexpected("the gateway is draining")))
            }
            // A later version may say more; Ready comes only first.
            Some(Response::Ready(_) | Response::Committed(_)) | None => None,
        }
    }

    /// What is missing until the gateway may send as many decisions as there is room for.
    fn missing_credit(&self) -> u32 {
        let reach = self.shared.taken.load(Ordering::Acquire) + u64::from(self.options.credit);
        u32::try_from(reach.saturating_sub(self.credited)).unwrap_or(u32::MAX)
    }

    /// Gives credit back once enough was taken.
    fn replenish(&mut self) -> Option<SubscribeRequest> {
        let decisions = self.missing_credit();
        if decisions < self.options.credit.div_ceil(REPLENISH_PART) {
            return None;
        }
        self.credited += u64::from(decisions);
        let message = Some(Request::Credit(SubscribeCredit { decisions }));
        Some(SubscribeRequest { message })
    }

    fn learn(&mut self, token: Bytes) {
        if !token.is_empty() {
            self.token = Some(token);
        }
    }

    async fn fail(&self, error: Error) {
        // Without a subscriber there is nobody to tell.
        drop(self.deliveries.send(Err(error)).await);
    }
}

/// How a stream ends that stood. One also ends where its principal's entry changed: whether the key is still good, Open tells.
fn ended(refusal: Refusal) -> End {
    match refusal.status {
        tonic::Code::Unauthenticated => End::Lost(refusal),
        _ => sort(refusal),
    }
}

fn sort(refusal: Refusal) -> End {
    if refusal.retriable() {
        End::Lost(refusal)
    } else {
        End::Fatal(refusal.into())
    }
}
