//! A subscription: takes decisions, gives credit back, and goes on with the newest token after a lost connection.
//!
//! Comes after the server's committed decisions. With `follow` each decision is matched with its event; alone, the order
//! of each partition is checked, and the latency is from the decision's own time.

use std::collections::HashMap;

use bytes::Bytes;
use sluice_client::Refusal;
use sluice_proto::pb::decision_service_client::DecisionServiceClient;
use sluice_proto::pb::subscribe_open::Start;
use sluice_proto::pb::subscribe_request::Message as Request;
use sluice_proto::pb::subscribe_response::Message as Response;
use sluice_proto::pb::{
    DecisionBatch, FraudDecision, Latest, SubscribeCredit, SubscribeOpen, SubscribeRequest, SubscribeResponse,
};
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::clock::Alarm;
use super::connect::Server;
use super::follow::Verdict;
use super::ledger::add;
use super::record::Metric;
use super::shared::{Backoff, Phase, SharedRef, cut, ended};

/// The first answer waits for the gateway to find where to begin.
const READY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);
const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;
/// Credit is given back when this part of it was used.
const REPLENISH_PART: u32 = 4;
const NS_PER_S_I64: i64 = 1_000_000_000;

/// An open subscription.
pub(crate) struct Subscription {
    outgoing: mpsc::Sender<SubscribeRequest>,
    incoming: Streaming<SubscribeResponse>,
    token: Bytes,
}

impl Subscription {
    /// Opens a subscription: from now on, or after a token.
    ///
    /// # Errors
    /// What the server said.
    pub(crate) async fn open(
        server: &Server,
        channel: Channel,
        credit: u32,
        token: Option<Bytes>,
    ) -> Result<Self, Refusal> {
        let mut client = DecisionServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let start = token.map_or(Start::Latest(Latest {}), Start::Token);
        let open = SubscribeOpen {
            start: Some(start),
            credit,
            ..SubscribeOpen::default()
        };
        let message = Some(Request::Open(open));
        let (outgoing, incoming, first) = server
            .open(SubscribeRequest { message }, READY_TIMEOUT, async |requests| {
                client.subscribe(requests).await
            })
            .await?;
        match first.and_then(|response| response.message) {
            Some(Response::Ready(ready)) => Ok(Self {
                outgoing,
                incoming,
                token: ready.token,
            }),
            _ => Err(Status::unavailable("the server did not begin with Ready").into()),
        }
    }
}

/// One subscription that lasts across connections.
pub(crate) struct Subscriber {
    shared: SharedRef,
    /// Among the subscribers.
    number: usize,
    /// Among all workers.
    worker: usize,
    token: Bytes,
    used: u32,
    alarm: Alarm,
    phase: watch::Receiver<Phase>,
    /// The highest offset of each partition, when nothing is followed.
    offsets: HashMap<i32, i64>,
}

impl Subscriber {
    pub(crate) fn new(shared: SharedRef, number: usize, worker: usize) -> std::io::Result<Self> {
        Ok(Self {
            phase: shared.phase.subscribe(),
            shared,
            number,
            worker,
            token: Bytes::new(),
            used: 0,
            alarm: Alarm::new()?,
            offsets: HashMap::new(),
        })
    }

    fn name(&self) -> String {
        format!("subscriber {}", self.number)
    }

    /// Receives until it is cut off.
    ///
    /// # Errors
    /// When the alarm fails.
    pub(crate) async fn run(mut self, first: Subscription) -> anyhow::Result<()> {
        let mut open = first;
        loop {
            self.token = open.token.clone();
            self.used = 0;
            let Some(lost) = self.drive(open).await else {
                return Ok(());
            };
            match self.reopen(lost).await? {
                Some(again) => open = again,
                None => return Ok(()),
            }
        }
    }

    /// Receives over one stream. `None` when it is to end.
    async fn drive(&mut self, mut open: Subscription) -> Option<Refusal> {
        loop {
            let response = tokio::select! {
                biased;
                response = open.incoming.message() => response,
                () = cut(&mut self.phase) => return None,
            };
            let response = match response {
                Ok(Some(response)) => response,
                Ok(None) => return Some(ended(None)),
                Err(status) => return Some(ended(Some(status))),
            };
            match response.message {
                Some(Response::Batch(batch)) => self.receive(batch),
                Some(Response::Progress(progress)) => self.token = progress.token,
                Some(Response::Drain(drain)) => {
                    add(&self.shared.ledger.drains, 1);
                    self.token = drain.token;
                    return Some(Status::unavailable("the server is draining").into());
                }
                Some(Response::Ready(_) | Response::Committed(_)) | None => {}
            }
            if self.used >= self.shared.settings.credit.div_ceil(REPLENISH_PART) {
                let decisions = std::mem::take(&mut self.used);
                let message = Some(Request::Credit(SubscribeCredit { decisions }));
                // When the stream is gone, the responses say why.
                drop(open.outgoing.send(SubscribeRequest { message }).await);
            }
        }
    }

    fn receive(&mut self, batch: DecisionBatch) {
        let now_ns = self.shared.clock.now_ns();
        self.used += batch.decisions.len() as u32;
        for decision in &batch.decisions {
            if self.shared.follow.is_some() {
                self.follow(decision, now_ns);
            } else {
                self.count(decision, now_ns);
            }
        }
        self.token = batch.token;
    }

    fn follow(&self, decision: &FraudDecision, now_ns: u64) {
        let shared = &self.shared;
        let (Some(follow), Some(number)) = (&shared.follow, shared.ids.number(&decision.event_id)) else {
            return;
        };
        let mut follow = follow.lock();
        match follow.decided(number, self.number, &decision.account_id) {
            Verdict::First {
                intended_ns,
                anywhere,
                reordered,
                injected,
            } => {
                if anywhere {
                    add(&shared.ledger.decided, 1);
                    add(&shared.ledger.reordered, u64::from(reordered));
                    follow.judged(injected, decision.reasons.iter().map(|reason| reason.rule_id.as_str()));
                }
                drop(follow);
                let latency_ns = now_ns.saturating_sub(intended_ns);
                shared.recorder.also(self.worker, now_ns, Metric::Decision, latency_ns);
            }
            Verdict::Again => add(&shared.ledger.duplicates, 1),
            Verdict::Foreign => {}
        }
    }

    fn count(&mut self, decision: &FraudDecision, now_ns: u64) {
        let shared = &self.shared;
        let source = decision.source.unwrap_or_default();
        let highest = self.offsets.entry(source.partition).or_insert(i64::MIN);
        if source.offset <= *highest {
            add(&shared.ledger.duplicates, 1);
            return;
        }
        *highest = source.offset;
        add(&shared.ledger.decided, 1);
        let at = decision.decided_at.unwrap_or_default();
        let decided_ns = at.seconds * NS_PER_S_I64 + i64::from(at.nanos);
        let latency_ns = shared.clock.wall_micros(now_ns) * 1_000 - decided_ns;
        let latencies = [(Metric::Delivery, latency_ns.max(0) as u64)];
        shared.recorder.answered(self.worker, now_ns, 1, &latencies);
    }

    /// Goes on after a lost connection, for as long as patience lasts.
    async fn reopen(&mut self, lost: Refusal) -> anyhow::Result<Option<Subscription>> {
        let shared = SharedRef::clone(&self.shared);
        let mut now_ns = shared.clock.now_ns();
        let outage = shared
            .ledger
            .lost_connection(self.name(), shared.seconds(now_ns), lost.to_string());
        let mut backoff = Backoff::new(now_ns);
        let mut last = lost;
        loop {
            let until_ns = backoff
                .until(now_ns, shared.settings.patience)
                .filter(|_| last.retriable());
            let Some(until_ns) = until_ns else {
                shared.fail(&self.name(), &last);
                return Ok(None);
            };
            tokio::select! {
                woken = self.alarm.at(&shared.clock, until_ns) => woken?,
                () = cut(&mut self.phase) => return Ok(None),
            }
            let channel = shared.channel(self.worker);
            let token = Some(self.token.clone());
            let opened = Subscription::open(&shared.server, channel, shared.settings.credit, token).await;
            now_ns = shared.clock.now_ns();
            match opened {
                Ok(open) => {
                    shared.ledger.resumed(outage, shared.seconds(now_ns));
                    return Ok(Some(open));
                }
                Err(refusal) => last = refusal,
            }
        }
    }
}
