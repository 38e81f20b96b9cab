//! The subscription loop: the driver of one subscribing stream. It collects decisions from the rings as far as the client's
//! credit goes, and from `catch_up` while it is behind them.
//!
//! Comes after `service`, which made the stream. It owns the subscription's state and waits in one place.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use sluice_kafka::fail;
use sluice_proto::pb::subscribe_request::Message as Request;
use sluice_proto::pb::subscribe_response::Message as Response;
use sluice_proto::pb::{self, ErrorCode, ExpiredPosition};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

use super::catch_up::{self, Steps};
use super::commit::Held;
use super::cursor::Cursor;
use super::decode::Entry;
use super::filter::Filter;
use super::mailbox::{Mailbox, Overflowed};
use super::route::Found;
use super::start::{self, Asked};
use super::{Shared, commit};
use crate::auth::Caller;
use crate::metrics::Counted;
use crate::status::{self, Failure};

/// Most decisions of one answer.
pub const BATCH_DECISIONS: usize = 256;
/// How long a subscription is silent before it tells how far it has come.
pub const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Answers that wait in the stream's channel.
pub const RESPONSES: usize = 4;
/// How long the last answer may take to be queued.
pub const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a subscription's answers go.
pub type Outbound = mpsc::Sender<Result<pb::SubscribeResponse, Status>>;

/// What holds a subscription back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The credit that the client gives, and the transport.
    Credit,
    /// The transport alone.
    Transport,
}

/// Why a subscription is over.
enum Over {
    /// The client went away, or has said that it will send no more credit and has none left.
    Gone,
    /// The gateway shuts down.
    Draining,
    /// Something went wrong.
    Failed(Failure),
}

impl From<Failure> for Over {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Waits for room for a reader.
type Queued = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send + Sync>>;

struct Subscription {
    shared: Arc<Shared>,
    filter: Filter,
    cursor: Cursor,
    on_expired: ExpiredPosition,
    /// The position after what the client was sent.
    delivered: Cursor,
    /// The position that was asked for had expired.
    fell_back: bool,
    /// The named cursor.
    held: Option<Held>,
    /// Decisions that wait for credit.
    backlog: VecDeque<Arc<Entry>>,
    credit: u64,
    /// Whether deliveries use credit up; those of a watch do not.
    counts: bool,
    arrival: Arrival,
    steps: Option<Steps>,
    /// The place in the queue for a reader, kept from turn to turn.
    queued: Option<Queued>,
    /// There may be more than was collected.
    more: bool,
    /// The client has closed its side.
    closed: bool,
    last_sent: Instant,
}

/// Serves one stream to its end. After its own end `inbound` must be pending, or tell why the subscription has to end, as a
/// guarded one does.
pub async fn run<S>(shared: Arc<Shared>, caller: Caller, flow: Flow, mut inbound: S, outbound: Outbound)
where
    S: Stream<Item = Result<pb::SubscribeRequest, Status>> + Unpin,
{
    let _open = Counted::new(&shared.metrics.subscribers);
    let draining = shared.draining.clone();
    let mut subscription = None;
    let over = tokio::select! {
        biased;
        () = outbound.closed() => Over::Gone,
        () = draining.cancelled() => Over::Draining,
        over = serve(shared, caller, flow, &mut subscription, &mut inbound, &outbound) => over,
    };
    let last = match over {
        Over::Gone => return,
        Over::Draining => match subscription {
            Some(subscription) => Ok(response(Response::Drain(pb::SubscribeDrain {
                deadline: prost_types::Duration::try_from(Duration::ZERO).ok(),
                token: subscription.delivered.token().into(),
            }))),
            None => Err(crate::ingest::draining()),
        },
        Over::Failed(failure) => {
            tracing::info!(code = ?failure.code(), %failure, "subscription ended by an error");
            Err(failure)
        }
    };
    // A client that does not read its answers is not waited for.
    let told = outbound.send(last.map_err(Status::from));
    drop(tokio::time::timeout(LAST_WORD_TIMEOUT, told).await);
}

/// Opens the subscription and serves it. Cancel-safe: the subscription's state is the caller's.
async fn serve<S>(
    shared: Arc<Shared>,
    caller: Caller,
    flow: Flow,
    place: &mut Option<Subscription>,
    inbound: &mut S,
    outbound: &Outbound,
) -> Over
where
    S: Stream<Item = Result<pb::SubscribeRequest, Status>> + Unpin,
{
    let opened = match opening(inbound.next().await) {
        Ok(open) => Subscription::open(shared, caller, flow, open).await,
        Err(over) => return over,
    };
    match opened {
        Ok(subscription) => match place.insert(subscription).drive(inbound, outbound).await {
            Ok(()) => Over::Gone,
            Err(over) => over,
        },
        Err(failure) => Over::Failed(failure),
    }
}

fn opening(request: Option<Result<pb::SubscribeRequest, Status>>) -> Result<pb::SubscribeOpen, Over> {
    match request {
        Some(Ok(pb::SubscribeRequest {
            message: Some(Request::Open(open)),
        })) => Ok(open),
        Some(Ok(_)) => Err(Over::Failed(Failure::new(
            ErrorCode::SessionNotOpen,
            "the first message is not Open",
            "send Open before anything else",
        ))),
        Some(Err(status)) => Err(status::unreadable_request(&status).map_or(Over::Gone, Over::Failed)),
        None => Err(Over::Gone),
    }
}

const fn response(message: Response) -> pb::SubscribeResponse {
    pb::SubscribeResponse { message: Some(message) }
}

impl Subscription {
    async fn open(shared: Arc<Shared>, caller: Caller, flow: Flow, open: pb::SubscribeOpen) -> Result<Self, Failure> {
        let on_expired = ExpiredPosition::try_from(open.on_expired).map_err(|_| {
            let remedy = "name REFUSE, EARLIEST or LATEST";
            Failure::new(ErrorCode::RequestInvalid, "is no choice", remedy).field("open.on_expired")
        })?;
        let filter = Filter::new(caller.tenant, open.filter.unwrap_or_default())?;
        let held = match open.cursor.as_str() {
            "" => None,
            name => Some(shared.cursors.take(filter.tenant(), name).await?),
        };
        // First of all: what is appended from now on rings.
        let arrival = Arrival::new(&shared, &filter);
        let asked = Asked {
            start: open.start,
            on_expired,
        };
        let stored = held.as_ref().and_then(|held| held.stored.clone());
        let is_new = stored.is_none();
        let begin = start::resolve(&shared, asked, stored).await?;
        if let Some(held) = held.as_ref().filter(|_| is_new) {
            // What is decided before the client's first commit would be missed otherwise, should the stream be lost.
            held.commit(begin.cursor.clone());
        }
        Ok(Self {
            on_expired,
            delivered: begin.cursor.clone(),
            cursor: begin.cursor,
            fell_back: begin.fell_back,
            held,
            filter,
            backlog: VecDeque::new(),
            credit: match flow {
                Flow::Credit => open.credit.into(),
                Flow::Transport => u64::MAX,
            },
            counts: flow == Flow::Credit,
            arrival,
            steps: None,
            queued: None,
            more: true,
            closed: false,
            last_sent: Instant::now(),
            shared,
        })
    }

    async fn drive<S>(&mut self, inbound: &mut S, outbound: &Outbound) -> Result<(), Over>
    where
        S: Stream<Item = Result<pb::SubscribeRequest, Status>> + Unpin,
    {
        let ready = pb::SubscribeReady {
            token: self.delivered.token().into(),
            fell_back: self.fell_back,
        };
        self.send(outbound, Response::Ready(ready)).await?;
        let mut timer = pin!(tokio::time::sleep_until(self.last_sent + PROGRESS_EVERY));
        loop {
            self.collect();
            self.deliver(outbound).await?;
            if self.closed && self.credit == 0 {
                return Ok(());
            }
            let hungry = self.credit > 0 && self.backlog.is_empty();
            let reads_steps = hungry && self.steps.is_some();
            let reads_rings = hungry && self.steps.is_none() && self.more;
            let behind = reads_rings && !self.arrival.follows() && self.is_behind();
            if !behind {
                self.queued = None;
            } else if self.queued.is_none() {
                self.queued = Some(Box::pin(self.shared.catch_ups.clone().acquire_owned()));
            }
            tokio::select! {
                biased;
                // Also after the client has closed its side: the credentials may still run out.
                request = inbound.next() => self.receive(request).await?,
                state = changed(&mut self.held), if self.held.is_some() => self.tell(state, outbound).await?,
                step = next_step(&mut self.steps), if reads_steps => self.take_step(step)?,
                () = std::future::ready(()), if reads_rings && !behind => {}
                room = turn(&mut self.queued), if behind => {
                    self.queued = None;
                    let room = room.map_err(|_| Over::Draining)?;
                    let (cursor, filter) = (self.cursor.clone(), self.filter.clone());
                    self.steps = Some(catch_up::begin(self.shared.clone(), cursor, filter, self.on_expired, room));
                }
                () = self.arrival.rung(), if !behind => self.more = true,
                () = &mut timer => {
                    let now = Instant::now();
                    if self.last_sent + PROGRESS_EVERY <= now {
                        self.progress(outbound).await?;
                    }
                    timer.as_mut().reset(self.last_sent + PROGRESS_EVERY);
                }
            }
        }
    }

    fn is_behind(&self) -> bool {
        let starts = self.shared.router.starts();
        self.cursor.next.iter().zip(starts).any(|(next, start)| *next < start)
    }

    /// Takes what the rings have, as far as credit goes.
    fn collect(&mut self) {
        if !self.more || self.steps.is_some() || !self.backlog.is_empty() || self.credit == 0 {
            return;
        }
        let limit = usize::try_from(self.credit).unwrap_or(usize::MAX).min(BATCH_DECISIONS);
        let mut entries = Vec::new();
        let (cursor, router) = (&mut self.cursor, &self.shared.router);
        self.more = match &mut self.arrival {
            Arrival::Mailbox { mailbox, follows } if *follows => {
                match router.collect_from(mailbox, cursor, &self.filter, limit, &mut entries) {
                    Ok(found) => found != Found::All,
                    Err(Overflowed) => {
                        *follows = false;
                        true
                    }
                }
            }
            arrival => {
                let found = router.collect(cursor, &self.filter, limit, &mut entries);
                let caught_up = found == Found::All && arrival.follow();
                // The mailbox has what came meanwhile.
                found != Found::All || caught_up
            }
        };
        self.backlog.extend(entries);
        if self.backlog.is_empty() {
            self.delivered.clone_from(&self.cursor);
        }
    }

    /// Sends what waits, as far as credit goes.
    async fn deliver(&mut self, outbound: &Outbound) -> Result<(), Over> {
        while self.credit > 0 && !self.backlog.is_empty() {
            let count = usize::try_from(self.credit)
                .unwrap_or(usize::MAX)
                .min(BATCH_DECISIONS)
                .min(self.backlog.len());
            let mut delivered = self.delivered.clone();
            let mut decisions = Vec::with_capacity(count);
            for entry in self.backlog.drain(..count) {
                let partition = usize::try_from(entry.partition).unwrap_or_default();
                delivered.pass(partition, entry.offset, entry.decision.source_offset);
                decisions.push(entry.to_pb());
            }
            if self.backlog.is_empty() {
                // Also past what did not pass the filter.
                delivered.clone_from(&self.cursor);
            }
            let batch = pb::DecisionBatch {
                decisions,
                token: delivered.token().into(),
            };
            fail::pass("gateway.delivering");
            self.send(outbound, Response::Batch(batch)).await?;
            // Not before: a drain may have interrupted the sending, and then tells where this is.
            self.delivered = delivered;
            if self.counts {
                self.credit -= count as u64;
            }
            self.shared.metrics.delivered.inc_by(count as u64);
        }
        Ok(())
    }

    /// Tells how far the subscription has come, over what is not for it. Something is sent in any case: also where decisions
    /// wait for credit, the position is that of what was delivered.
    async fn progress(&mut self, outbound: &Outbound) -> Result<(), Over> {
        self.more = true;
        self.collect();
        if self.credit > 0 && !self.backlog.is_empty() {
            return self.deliver(outbound).await;
        }
        let progress = pb::Progress {
            token: self.delivered.token().into(),
        };
        self.send(outbound, Response::Progress(progress)).await
    }

    async fn send(&mut self, outbound: &Outbound, message: Response) -> Result<(), Over> {
        if outbound.capacity() == 0 {
            // A place in the queue, or the reader that it came to, would wait for a client that does not read.
            self.queued = None;
        }
        let sent = outbound.send(Ok(response(message))).await;
        self.last_sent = Instant::now();
        sent.map_err(|_| Over::Gone)
    }

    fn take_step(&mut self, step: Option<Result<catch_up::Step, Failure>>) -> Result<(), Over> {
        match step {
            Some(step) => {
                let step = step?;
                self.cursor = step.cursor;
                self.backlog.extend(step.entries);
                if self.backlog.is_empty() {
                    self.delivered.clone_from(&self.cursor);
                }
            }
            None => {
                self.steps = None;
                self.more = true;
            }
        }
        Ok(())
    }

    /// Tells what became of the cursor.
    async fn tell(&mut self, state: commit::State, outbound: &Outbound) -> Result<(), Over> {
        if let Some(cursor) = state.committed {
            let token = cursor.token().into();
            self.send(outbound, Response::Committed(pb::SubscribeCommitted { token }))
                .await?;
        }
        state.lost.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Stores the cursor's position.
    async fn commit(&self, token: &[u8]) -> Result<(), Failure> {
        let Some(held) = &self.held else {
            let remedy = "name a cursor in Open";
            return Err(Failure::new(ErrorCode::RequestInvalid, "has no cursor to store", remedy).field("commit"));
        };
        let cursor = Cursor::read(token, self.shared.router.partitions(), "commit.token")?;
        start::exists(&self.shared, &cursor).await?;
        held.commit(cursor);
        Ok(())
    }

    async fn receive(&mut self, request: Option<Result<pb::SubscribeRequest, Status>>) -> Result<(), Over> {
        let invalid = |reason, remedy| Err(Failure::new(ErrorCode::RequestInvalid, reason, remedy).into());
        match request {
            Some(Ok(pb::SubscribeRequest { message })) => match message {
                Some(Request::Credit(credit)) => {
                    self.credit = self.credit.saturating_add(credit.decisions.into());
                    Ok(())
                }
                Some(Request::Commit(commit)) => Ok(self.commit(&commit.token).await?),
                Some(Request::Open(_)) => invalid(
                    "the subscription is open already",
                    "send Open as the first message only",
                ),
                // The guard before has taken refreshes out.
                Some(Request::Refresh(_)) | None => {
                    invalid("the message has no content", "set one of open, credit, commit, refresh")
                }
            },
            Some(Err(status)) => Err(status::unreadable_request(&status).map_or(Over::Gone, Over::Failed)),
            // What credit is left is still served.
            None => {
                self.closed = true;
                Ok(())
            }
        }
    }
}

/// How a subscription learns that there is something for it.
enum Arrival {
    /// Its tenant's bell rings, and it looks through the rings.
    Bell(watch::Receiver<()>),
    /// It names accounts, and what is decided about them is put aside for it.
    Mailbox {
        mailbox: Mailbox,
        /// It has seen the rings to their end, and takes what is in the mailbox from there.
        follows: bool,
    },
}

impl Arrival {
    fn new(shared: &Shared, filter: &Filter) -> Self {
        let accounts = filter.accounts();
        if accounts.is_empty() {
            return Self::Bell(shared.router.bell(filter.tenant()));
        }
        Self::Mailbox {
            mailbox: shared.router.mailbox(filter.tenant(), accounts),
            follows: false,
        }
    }

    /// Waits until something came. Cancel-safe.
    async fn rung(&mut self) {
        match self {
            // The router, which the subscription holds, has the other end.
            Self::Bell(bell) => drop(bell.changed().await),
            Self::Mailbox { mailbox, .. } => mailbox.rung().await,
        }
    }

    const fn follows(&self) -> bool {
        matches!(self, Self::Mailbox { follows: true, .. })
    }

    /// Goes over to the mailbox, if there is one.
    const fn follow(&mut self) -> bool {
        match self {
            Self::Bell(_) => false,
            Self::Mailbox { follows, .. } => {
                *follows = true;
                true
            }
        }
    }
}

async fn turn(queued: &mut Option<Queued>) -> Result<OwnedSemaphorePermit, AcquireError> {
    match queued {
        Some(queued) => queued.await,
        None => std::future::pending().await,
    }
}

async fn next_step(steps: &mut Option<Steps>) -> Option<Result<catch_up::Step, Failure>> {
    match steps {
        Some(steps) => steps.recv().await,
        None => std::future::pending().await,
    }
}

async fn changed(held: &mut Option<Held>) -> commit::State {
    match held {
        Some(held) => held.changed().await,
        None => std::future::pending().await,
    }
}
