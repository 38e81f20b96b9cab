//! A publishing stream: takes arrivals, sends them when they are due and credit allows, takes the answers, and resumes
//! after a lost connection.
//!
//! Comes after the feed; `window` keeps the numbers, `pace` tells the server's delays from our own.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use sluice_client::Refusal;
use sluice_proto::pb::ingest_service_client::IngestServiceClient;
use sluice_proto::pb::publish_request::Message as Request;
use sluice_proto::pb::publish_response::Message as Response;
use sluice_proto::pb::{Ack, AckStatus, PublishOpen, PublishReady, PublishRequest, PublishResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::clock::{Alarm, NS_PER_MS};
use super::connect::Server;
use super::feed::Arrival;
use super::ledger::add;
use super::options::Stop;
use super::pace::{Hold, Pace};
use super::record::Metric;
use super::shared::{Backoff, Phase, SharedRef, code, cut, ended, error_name};
use super::window::{Entry, Window};
use crate::source::Kind;

/// How often a worker that is held back or has nothing to do looks around.
const LOOK_EVERY_NS: u64 = 100 * NS_PER_MS;
/// How long the gateway may take to answer Open, and to end a stream whose client is done.
const READY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
const FAREWELL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);
const MAX_RESPONSE_BYTES: usize = 16 * 1024 * 1024;

/// An open stream.
pub(crate) struct Session {
    outgoing: mpsc::Sender<PublishRequest>,
    incoming: Streaming<PublishResponse>,
    ready: PublishReady,
}

impl Session {
    /// Opens or resumes a session.
    ///
    /// # Errors
    /// What the server said.
    pub(crate) async fn open(server: &Server, channel: Channel, open: PublishOpen) -> Result<Self, Refusal> {
        let mut client = IngestServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let message = Some(Request::Open(open));
        let (outgoing, incoming, first) = server
            .open(PublishRequest { message }, READY_TIMEOUT, async |requests| {
                client.publish(requests).await
            })
            .await?;
        match first.and_then(|response| response.message) {
            Some(Response::Ready(ready)) => Ok(Self {
                outgoing,
                incoming,
                ready,
            }),
            _ => Err(Status::unavailable("the server did not begin with Ready").into()),
        }
    }
}

/// Why a stream is over.
enum End {
    Finished,
    Cut,
    Lost(Refusal),
}

/// One publishing stream.
pub(crate) struct Publisher {
    shared: SharedRef,
    worker: usize,
    open: PublishOpen,
    window: Window,
    pace: Pace,
    alarm: Alarm,
    phase: watch::Receiver<Phase>,
    pending: Option<Arrival>,
    exhausted: bool,
}

impl Publisher {
    pub(crate) fn new(shared: SharedRef, worker: usize, open: PublishOpen) -> std::io::Result<Self> {
        Ok(Self {
            phase: shared.phase.subscribe(),
            shared,
            worker,
            open,
            window: Window::new(),
            pace: Pace::default(),
            alarm: Alarm::new()?,
            pending: None,
            exhausted: false,
        })
    }

    /// How errors and outages call it.
    fn name(&self) -> String {
        format!("publisher {}", self.worker)
    }

    /// Publishes until there is nothing more to do.
    ///
    /// # Errors
    /// When the source cannot be read or the alarm fails.
    pub(crate) async fn run(mut self, first: Session) -> anyhow::Result<()> {
        let mut session = Some(first);
        while let Some(open) = session.take() {
            let (shared, now_ns) = (&self.shared, self.shared.clock.now_ns());
            let missed = |entry: &Entry| settled_unheard(shared, self.worker, entry, now_ns);
            if let Err(_nonsense) = self.window.resume(&open.ready, missed) {
                let refusal = Status::internal("the server resumes where the session never was").into();
                self.shared.fail(&self.name(), &refusal);
                break;
            }
            self.learn(open.ready.resume_token.clone());
            match self.drive(open).await? {
                End::Finished => return Ok(()),
                End::Cut => break,
                End::Lost(refusal) => session = self.reopen(refusal).await?,
            }
        }
        self.close_account();
        Ok(())
    }

    /// Moves arrivals and answers over one stream until it ends.
    async fn drive(&mut self, mut session: Session) -> anyhow::Result<End> {
        let shared = SharedRef::clone(&self.shared);
        // The gateway is leaving, and acknowledges until then.
        let mut draining: Option<u64> = None;
        // The transport takes no more requests; the responses say why.
        let mut deaf = false;
        loop {
            let now_ns = shared.clock.now_ns();
            self.fill(now_ns)?;
            if self.exhausted && self.pending.is_none() && self.window.is_settled() {
                farewell(session).await;
                return Ok(End::Finished);
            }
            if draining.is_some_and(|until_ns| now_ns >= until_ns || self.window.is_answered()) {
                return Ok(End::Lost(Status::unavailable("the server is draining").into()));
            }
            let sendable = !deaf && draining.is_none() && self.window.has_unsent();
            let permitted = sendable && self.window.permits();
            if sendable && (!permitted || session.outgoing.capacity() == 0) {
                let why = if permitted { Hold::Transport } else { Hold::Credit };
                shared.note_held(self.worker, self.pace.hold(why, now_ns));
                shared.note_held(self.worker, self.pace.so_far(now_ns));
            }
            let wake_ns = match &self.pending {
                Some(arrival) if arrival.intended_ns > now_ns => arrival.intended_ns,
                _ => now_ns / LOOK_EVERY_NS * LOOK_EVERY_NS + LOOK_EVERY_NS,
            };
            tokio::select! {
                biased;
                permit = session.outgoing.reserve(), if permitted => match permit {
                    Ok(permit) => {
                        if let Some(message) = self.next_message() {
                            permit.send(message);
                        }
                    }
                    Err(_gone) => deaf = true,
                },
                response = session.incoming.message() => match response {
                    Ok(Some(response)) => draining = self.receive(response).or(draining),
                    Ok(None) => return Ok(End::Lost(ended(None))),
                    Err(status) => return Ok(End::Lost(ended(Some(status)))),
                },
                () = cut(&mut self.phase) => return Ok(End::Cut),
                woken = self.alarm.at(&shared.clock, wake_ns) => woken?,
            }
        }
    }

    /// Takes the next arrival, and puts it into the window when it is due.
    fn fill(&mut self, now_ns: u64) -> anyhow::Result<()> {
        if self.window.has_unsent() {
            return Ok(());
        }
        let closed = self.shared.settings.closed_loop;
        let is_active = self.shared.is_active(self.worker, now_ns);
        if !is_active && self.pending.is_none() {
            self.exhausted = self.shared.feed.lock().has_ended();
        }
        let may_take = !self.exhausted && self.pending.is_none() && (!closed || self.window.is_settled()) && is_active;
        if may_take {
            self.pending = self.shared.feed.lock().take(self.shared.settings.batch)?;
            self.exhausted = self.pending.is_none();
        }
        if let Some(mut arrival) = self.pending.take_if(|arrival| arrival.intended_ns <= now_ns) {
            if closed {
                arrival.intended_ns = now_ns;
            }
            self.window.push(arrival);
        }
        Ok(())
    }

    /// What is sent now, entered in the account before it goes.
    fn next_message(&mut self) -> Option<PublishRequest> {
        let shared = SharedRef::clone(&self.shared);
        let now_ns = shared.clock.now_ns();
        shared.note_held(self.worker, self.pace.free(now_ns));
        let batch = self.window.next_batch(now_ns)?;
        add(&shared.ledger.resent, batch.again);
        let mut count = 0;
        let mut intended_ns = now_ns;
        let mut follow = shared.follow.as_ref().map(|follow| follow.lock());
        for entry in self.window.entries(batch.fresh) {
            count += 1;
            intended_ns = entry.intended_ns;
            let number = entry.item.number;
            match (&mut follow, entry.item.kind) {
                (Some(follow), Kind::Fresh(injected)) => {
                    follow.publishing(number, self.worker, intended_ns, injected);
                }
                (Some(follow), Kind::Poison) => follow.skip(number),
                (_, Kind::Copy) | (None, _) => {}
            }
            match entry.item.kind {
                Kind::Fresh(_) => {}
                Kind::Copy => add(&shared.ledger.copies_sent, 1),
                Kind::Poison => add(&shared.ledger.poison_sent, 1),
            }
        }
        drop(follow);
        if count > 0 {
            // Unsent events of the window are of one arrival.
            let late = self.pace.send(intended_ns, now_ns);
            add(&shared.ledger.sent, count);
            shared.recorder.sent(self.worker, count, late.stall_ns, late.slip_ns);
        }
        let message = Some(Request::Batch(batch.message));
        Some(PublishRequest { message })
    }

    /// Takes one answer. Returns until when the gateway still acknowledges, if it said that it leaves.
    fn receive(&mut self, response: PublishResponse) -> Option<u64> {
        match response.message {
            Some(Response::Ack(ack)) => self.acknowledged(&ack),
            Some(Response::Credit(credit)) => self.window.credit(credit),
            Some(Response::Throttle(_quota)) => add(&self.shared.ledger.throttles, 1),
            Some(Response::Drain(drain)) => {
                add(&self.shared.ledger.drains, 1);
                self.learn(drain.resume_token);
                let deadline = drain.deadline.unwrap_or_default();
                let left_ms = deadline.seconds.max(0) as u64 * 1_000 + deadline.nanos.max(0) as u64 / 1_000_000;
                return Some(self.shared.clock.now_ns() + left_ms * NS_PER_MS);
            }
            Some(Response::Ping(_) | Response::Ready(_)) | None => {}
        }
        None
    }

    fn acknowledged(&mut self, ack: &Ack) {
        let (shared, worker) = (SharedRef::clone(&self.shared), self.worker);
        let now_ns = shared.clock.now_ns();
        let status = ack.status();
        // Events that were due and sent together are recorded together.
        let mut run: Option<(u64, u64, u64)> = None;
        let record = |(intended_ns, sent_ns, count): (u64, u64, u64)| {
            let latencies = [
                (Metric::Ack, now_ns.saturating_sub(intended_ns)),
                (Metric::Service, now_ns.saturating_sub(sent_ns)),
            ];
            shared.recorder.answered(worker, now_ns, count, &latencies);
        };
        let odd = self.window.settle(ack, |entry| {
            let sent_ns = entry.sent_ns.unwrap_or(entry.intended_ns);
            if status == AckStatus::Error {
                let late_ns = now_ns.saturating_sub(entry.intended_ns);
                refused(
                    &shared,
                    worker,
                    entry.item.kind,
                    entry.item.number,
                    ack,
                    now_ns,
                    late_ns,
                );
                return;
            }
            match &mut run {
                Some((intended_ns, sent, count)) if *intended_ns == entry.intended_ns && *sent == sent_ns => {
                    *count += 1
                }
                _ => {
                    if let Some(run) = run.replace((entry.intended_ns, sent_ns, 1)) {
                        record(run);
                    }
                }
            }
            let count = if status == AckStatus::Duplicate {
                &shared.ledger.acknowledged_as_duplicate
            } else {
                &shared.ledger.stored
            };
            add(count, 1);
        });
        run.into_iter().for_each(record);
        add(&shared.ledger.duplicates, odd);
        self.learn(ack.resume_token.clone());
    }

    fn learn(&mut self, token: Bytes) {
        if !token.is_empty() {
            self.open.resume_token = token;
        }
    }

    /// Resumes after a lost connection, for as long as patience lasts. `None` when it cannot, or must end.
    async fn reopen(&mut self, lost: Refusal) -> anyhow::Result<Option<Session>> {
        let shared = SharedRef::clone(&self.shared);
        let mut now_ns = shared.clock.now_ns();
        let outage = shared
            .ledger
            .lost_connection(self.name(), shared.seconds(now_ns), lost.to_string());
        let mut backoff = Backoff::new(now_ns);
        let mut last = lost;
        loop {
            shared.note_held(self.worker, self.pace.hold(Hold::Connection, now_ns));
            shared.note_held(self.worker, self.pace.so_far(now_ns));
            let until_ns = backoff
                .until(now_ns, shared.settings.patience)
                .filter(|_| last.retriable());
            let Some(until_ns) = until_ns else {
                shared.fail(&self.name(), &last);
                return Ok(None);
            };
            self.open.last_sent_sequence = self.window.sent();
            tokio::select! {
                woken = self.alarm.at(&shared.clock, until_ns) => woken?,
                () = cut(&mut self.phase) => return Ok(None),
            }
            let opened = Session::open(&shared.server, shared.channel(self.worker), self.open.clone()).await;
            now_ns = shared.clock.now_ns();
            match opened {
                Ok(session) => {
                    shared.note_held(self.worker, self.pace.free(now_ns));
                    shared.ledger.resumed(outage, shared.seconds(now_ns));
                    return Ok(Some(session));
                }
                Err(refusal) => last = refusal,
            }
        }
    }

    /// What is left when the stream ends before its time.
    fn close_account(&mut self) {
        let (sent, mut unsent) = self.window.unsettled();
        unsent += self.pending.take().map_or(0, |arrival| {
            let is_due = arrival.intended_ns <= self.shared.clock.now_ns();
            if is_due { arrival.items.len() as u64 } else { 0 }
        });
        let ledger = &self.shared.ledger;
        match self.shared.settings.stop {
            Stop::Wait => {
                add(&ledger.lost, sent);
                add(&ledger.unsent, unsent);
            }
            Stop::Close if sent > 0 => {
                ledger.error("Canceled", "cut off at the end of the duration", sent);
                add(&ledger.unsent, unsent);
            }
            Stop::Close => add(&ledger.unsent, unsent),
            Stop::Ignore => add(&ledger.ignored, sent + unsent),
        }
    }
}

/// An event was settled while no connection stood: now is when its client learns that.
fn settled_unheard(shared: &SharedRef, worker: usize, entry: &Entry, now_ns: u64) {
    add(&shared.ledger.settled, 1);
    if entry.item.kind == Kind::Poison {
        // Whether it was refused was not heard, so that it proves nothing.
        shared.ledger.poison_sent.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let sent_ns = entry.sent_ns.unwrap_or(entry.intended_ns);
    let latencies = [
        (Metric::Ack, now_ns.saturating_sub(entry.intended_ns)),
        (Metric::Service, now_ns.saturating_sub(sent_ns)),
    ];
    shared.recorder.answered(worker, now_ns, 1, &latencies);
}

/// An event was answered with an error.
fn refused(shared: &SharedRef, worker: usize, kind: Kind, number: u64, ack: &Ack, now_ns: u64, late_ns: u64) {
    if kind == Kind::Poison {
        add(&shared.ledger.poison_refused, 1);
        shared.recorder.answered(worker, now_ns, 1, &[]);
        return;
    }
    let error = ack.error.clone().unwrap_or_default();
    let name = error_name(error.code());
    let message = format!("{name}: {} {}; {}", error.field, error.reason, error.remedy);
    shared.ledger.error(&name, &message, 1);
    shared.recorder.failed(worker, now_ns, 1, late_ns, &name);
    if let Some(follow) = &shared.follow {
        follow.lock().refused(number, error.certainly_not_stored);
    }
}

/// Ends the stream from this side and lets the gateway end it too.
async fn farewell(session: Session) {
    let Session {
        outgoing, mut incoming, ..
    } = session;
    drop(outgoing);
    let ended = async { while let Ok(Some(_late)) = incoming.message().await {} };
    // Everything is settled: whether the gateway says goodbye in time changes nothing.
    drop(timeout(FAREWELL_TIMEOUT, ended).await);
}

/// For messages about a session that could not be opened.
pub(crate) fn cannot_open(what: &str, server: &Server, refusal: &Refusal) -> anyhow::Error {
    anyhow::anyhow!("{} refused the {what} ({}): {refusal}", server.authority, code(refusal))
}
