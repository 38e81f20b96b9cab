//! Single calls: `PublishOne` and `Decide`, one at a time for each worker, as ghz makes them.
//!
//! Comes after the feed. A call that is due while every worker waits for an answer is late, and its latency says so.

use bytes::Bytes;
use sluice_client::Refusal;
use sluice_proto::pb::{DecideResponse, PublishOneResponse};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::clock::{Alarm, NS_PER_MS};
use super::ledger::add;
use super::options::Stop;
use super::pace::{Hold, Pace};
use super::record::Metric;
use super::shared::{Phase, SharedRef, code, cut};
use crate::source::{Item, Kind};

const PUBLISH_ONE: &str = "/sluice.v1.IngestService/PublishOne";
const DECIDE: &str = "/sluice.v1.IngestService/Decide";
/// How often a worker that the concurrency schedule does not want looks around.
const LOOK_EVERY_NS: u64 = 100 * NS_PER_MS;

/// `PublishOneRequest` and `DecideRequest` with the event still encoded: on the wire they are the same.
#[derive(Clone, PartialEq, prost::Message)]
struct EncodedRequest {
    #[prost(bytes = "bytes", tag = "1")]
    event: Bytes,
}

/// A worker that calls.
pub(crate) struct Caller {
    shared: SharedRef,
    worker: usize,
    decides: bool,
    channel: Channel,
    pace: Pace,
    /// When the last call was made and answered.
    last: (u64, u64),
    alarm: Alarm,
    phase: watch::Receiver<Phase>,
}

impl Caller {
    pub(crate) fn new(shared: SharedRef, worker: usize, decides: bool) -> std::io::Result<Self> {
        Ok(Self {
            channel: shared.channel(worker),
            phase: shared.phase.subscribe(),
            shared,
            worker,
            decides,
            pace: Pace::default(),
            last: (0, 0),
            alarm: Alarm::new()?,
        })
    }

    /// Calls until there is nothing more to do.
    ///
    /// # Errors
    /// When the source cannot be read or the alarm fails.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let shared = SharedRef::clone(&self.shared);
        while *self.phase.borrow() == Phase::Running {
            let now_ns = shared.clock.now_ns();
            if !shared.is_active(self.worker, now_ns) {
                if !self.wait_until(now_ns + LOOK_EVERY_NS).await? {
                    break;
                }
                if shared.feed.lock().has_ended() {
                    break;
                }
                continue;
            }
            // The lock is held for taking only.
            let arrival = shared.feed.lock().take(1)?;
            let Some(mut arrival) = arrival else { break };
            if !self.wait_until(arrival.intended_ns).await? {
                let due = u64::from(arrival.intended_ns <= shared.clock.now_ns());
                match shared.settings.stop {
                    Stop::Wait | Stop::Close => add(&shared.ledger.unsent, due),
                    Stop::Ignore => add(&shared.ledger.ignored, due),
                }
                break;
            }
            for item in arrival.items.drain(..) {
                self.call(item, arrival.intended_ns).await;
            }
        }
        Ok(())
    }

    /// Whether the moment came before the end.
    async fn wait_until(&mut self, at_ns: u64) -> std::io::Result<bool> {
        tokio::select! {
            biased;
            () = cut(&mut self.phase) => Ok(false),
            woken = self.alarm.at(&self.shared.clock, at_ns) => woken.map(|()| true),
        }
    }

    async fn call(&mut self, item: Item, intended_ns: u64) {
        let shared = SharedRef::clone(&self.shared);
        let sent_ns = shared.clock.now_ns();
        let intended_ns = if shared.settings.closed_loop {
            sent_ns
        } else {
            intended_ns
        };
        let late = self.pace.send(intended_ns, sent_ns);
        add(&shared.ledger.sent, 1);
        match item.kind {
            Kind::Fresh(_) => {}
            Kind::Copy => add(&shared.ledger.copies_sent, 1),
            Kind::Poison => add(&shared.ledger.poison_sent, 1),
        }
        shared.recorder.sent(self.worker, 1, late.stall_ns, late.slip_ns);
        // The worker was held back while it waited for an answer and this call was due: of what it is late by, the backlog is
        // not counted again with each call.
        let (asked_ns, answered_ns) = self.last;
        let held_ns = answered_ns.saturating_sub(asked_ns.max(intended_ns));
        if held_ns > 0 {
            shared.note_held(self.worker, Some((Hold::Concurrency, held_ns)));
        }
        let (kind, number) = (item.kind, item.number);
        let mut phase = self.phase.clone();
        let answer = tokio::select! {
            biased;
            answer = self.send(item.bytes, number) => answer,
            () = cut(&mut phase) => {
                match shared.settings.stop {
                    Stop::Wait => add(&shared.ledger.lost, 1),
                    Stop::Close => shared.ledger.error("Canceled", "cut off at the end of the duration", 1),
                    Stop::Ignore => add(&shared.ledger.ignored, 1),
                }
                return;
            }
        };
        let now_ns = shared.clock.now_ns();
        self.pace.owe(now_ns - sent_ns);
        self.last = (sent_ns, now_ns);
        let latency_ns = now_ns.saturating_sub(intended_ns);
        match answer {
            Ok(()) => {
                let metric = if self.decides { Metric::Decision } else { Metric::Ack };
                let latencies = [(metric, latency_ns), (Metric::Service, now_ns - sent_ns)];
                shared.recorder.answered(self.worker, now_ns, 1, &latencies);
                add(&shared.ledger.stored, 1);
                add(&shared.ledger.decided, u64::from(self.decides));
            }
            Err(status) if kind == Kind::Poison && status.code() == Code::InvalidArgument => {
                add(&shared.ledger.poison_refused, 1);
                shared.recorder.answered(self.worker, now_ns, 1, &[]);
            }
            Err(status) => {
                let refusal = Refusal::from(status);
                // gRPC's code, as ghz counts; the contract's own is in the message.
                let name = format!("{:?}", refusal.status);
                shared.ledger.error(&name, &format!("{}: {refusal}", code(&refusal)), 1);
                shared.recorder.failed(self.worker, now_ns, 1, latency_ns, &name);
            }
        }
    }

    async fn send(&self, event: Bytes, number: u64) -> Result<(), Status> {
        let mut request = self.shared.server.request(EncodedRequest { event });
        request.set_timeout(self.shared.settings.timeout);
        let mut client = Grpc::new(self.channel.clone());
        let calling = async {
            client
                .ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            if self.decides {
                let path = PathAndQuery::from_static(DECIDE);
                let codec = ProstCodec::<EncodedRequest, DecideResponse>::default();
                let response = client.unary(request, path, codec).await?.into_inner();
                let decided = response.decision.unwrap_or_default().event_id;
                match self.shared.ids.number(&decided) {
                    Some(other) if other != number => Err(Status::data_loss("the decision is another payment's")),
                    _ => Ok(()),
                }
            } else {
                let path = PathAndQuery::from_static(PUBLISH_ONE);
                let codec = ProstCodec::<EncodedRequest, PublishOneResponse>::default();
                client.unary(request, path, codec).await.map(drop)
            }
        };
        timeout(self.shared.settings.timeout, calling)
            .await
            .unwrap_or_else(|_elapsed| Err(Status::deadline_exceeded("no answer within --timeout")))
    }
}
