//! A gateway of a few lines for the tests: it keeps the contract, and cuts connections as often as it is told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use sluice_proto::pb::decision_service_server::{DecisionService, DecisionServiceServer};
use sluice_proto::pb::ingest_service_server::{IngestService, IngestServiceServer};
use sluice_proto::pb::publish_request::Message as Published;
use sluice_proto::pb::publish_response::Message as Answer;
use sluice_proto::pb::subscribe_open::Start;
use sluice_proto::pb::subscribe_request::Message as Asked;
use sluice_proto::pb::subscribe_response::Message as Delivered;
use sluice_proto::pb::{self, PublishRequest, PublishResponse, SubscribeRequest, SubscribeResponse};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::Target;

const KEY: &str = "a-key";
/// Positions after the last decision that a subscription's filter lets nothing pass of.
pub(crate) const PASSED_OVER: u64 = 100;
/// Answers that may wait for the client.
const ANSWERS: usize = 64;

/// How the gateway behaves.
#[derive(Clone, Default)]
pub(crate) struct Script {
    /// Credit in events or decisions that a session begins with.
    pub(crate) credit: i64,
    /// A stream ends after so many events or decisions.
    pub(crate) cut_after: u64,
    /// With this, or as a lost connection does.
    pub(crate) cut_with: Option<Code>,
    /// With Drain, and all acks before; or without, and the newest acks missing.
    pub(crate) drain: bool,
    /// A publishing stream ends when it had nothing to say for so long.
    pub(crate) idle: Option<Duration>,
    /// The second session ends with this.
    pub(crate) refusal: Option<Status>,
    /// Decisions that there are.
    pub(crate) decisions: u64,
}

#[derive(Default)]
pub(crate) struct Seen {
    /// Every event stored, with its sequence number.
    pub(crate) stored: Vec<(u64, Bytes)>,
    pub(crate) most_unacknowledged: i64,
    pub(crate) streams: u64,
}

#[derive(Clone)]
pub(crate) struct Fake {
    script: Script,
    seen: Arc<Mutex<Seen>>,
}

impl Fake {
    /// A running gateway and how to reach it.
    pub(crate) async fn start(script: Script) -> (Self, Target) {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let target = Target::new(&format!("http://{}", listener.local_addr().unwrap()), KEY).unwrap();
        let fake = Self {
            script,
            seen: Arc::default(),
        };
        let server = tonic::transport::Server::builder()
            .add_service(IngestServiceServer::new(fake.clone()))
            .add_service(DecisionServiceServer::new(fake.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        (fake, target)
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let key = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        if key != Some(&format!("Bearer {KEY}")) {
            return Err(Status::unauthenticated("unknown key"));
        }
        self.seen().streams += 1;
        match &self.script.refusal {
            Some(refusal) if self.seen().streams > 1 => Err(refusal.clone()),
            _ => Ok(()),
        }
    }

    fn note(&self, unacknowledged: i64) {
        let most = &mut self.seen().most_unacknowledged;
        *most = (*most).max(unacknowledged);
    }

    /// The next message; none at the stream's end, which comes when the client is silent for too long.
    async fn next(&self, requests: &mut Streaming<PublishRequest>) -> Option<Published> {
        let request = match self.script.idle {
            Some(idle) => timeout(idle, requests.message()).await.ok()?,
            None => requests.message().await,
        };
        request.ok()??.message
    }

    async fn publish(
        self,
        mut requests: Streaming<PublishRequest>,
        answers: mpsc::Sender<Result<PublishResponse, Status>>,
    ) {
        let say = async |message| {
            answers
                .send(Ok(PublishResponse { message: Some(message) }))
                .await
                .is_ok()
        };
        let Ok(Some(PublishRequest {
            message: Some(Published::Open(open)),
        })) = requests.message().await
        else {
            return;
        };
        let mut next = number(&open.resume_token).max(1);
        let credit = pb::Credit {
            events: self.script.credit,
            bytes: 1_000_000,
        };
        let ready = pb::PublishReady {
            next_sequence: next,
            credit: Some(credit),
            ..pb::PublishReady::default()
        };
        say(Answer::Ready(ready)).await;
        let (mut taken, mut unacknowledged) = (0, Vec::new());
        while let Some(Published::Batch(batch)) = self.next(&mut requests).await {
            assert_eq!(batch.first_sequence, next, "sequence numbers are contiguous");
            for event in batch.events {
                if !event.is_empty() {
                    self.seen().stored.push((next, event));
                }
                unacknowledged.push(next);
                next += 1;
                taken += 1;
            }
            self.note(unacknowledged.len() as i64);
            let cut = taken >= self.script.cut_after;
            if cut && !self.script.drain {
                // Acknowledge the newest only: a hole is left before it.
                if let Some(newest) = unacknowledged.pop().filter(|_| unacknowledged.len() > 1) {
                    say(ack(newest, newest, unacknowledged[0])).await;
                }
                drop(
                    answers
                        .send(Err(Status::new(
                            self.script.cut_with.unwrap_or(Code::Unavailable),
                            "cut",
                        )))
                        .await,
                );
                return;
            }
            for sequence in unacknowledged.drain(..) {
                say(ack(sequence, sequence, sequence + 1)).await;
                say(Answer::Credit(pb::Credit { events: 1, bytes: 0 })).await;
            }
            if cut {
                let resume_token = Bytes::copy_from_slice(&next.to_be_bytes());
                let deadline = Some(prost_types::Duration { seconds: 5, nanos: 0 });
                say(Answer::Drain(pb::Drain { deadline, resume_token })).await;
            }
        }
    }

    async fn subscribe(
        self,
        mut requests: Streaming<SubscribeRequest>,
        answers: mpsc::Sender<Result<SubscribeResponse, Status>>,
    ) {
        let say = async |message| {
            answers
                .send(Ok(SubscribeResponse { message: Some(message) }))
                .await
                .is_ok()
        };
        let Ok(Some(SubscribeRequest {
            message: Some(Asked::Open(open)),
        })) = requests.message().await
        else {
            return;
        };
        let mut next = match &open.start {
            Some(Start::Token(token)) => number(token),
            _ => 1,
        };
        let token = |next: u64| Bytes::copy_from_slice(&next.to_be_bytes());
        say(Delivered::Ready(pb::SubscribeReady {
            token: token(next),
            fell_back: false,
        }))
        .await;
        let (mut credit, mut sent) = (u64::from(open.credit), 0);
        while next <= self.script.decisions {
            if credit == 0 {
                match requests.message().await {
                    Ok(Some(SubscribeRequest {
                        message: Some(Asked::Credit(more)),
                    })) => credit += u64::from(more.decisions),
                    _ => return,
                }
                continue;
            }
            if sent >= self.script.cut_after {
                drop(
                    answers
                        .send(Err(Status::new(
                            self.script.cut_with.unwrap_or(Code::Unavailable),
                            "cut",
                        )))
                        .await,
                );
                return;
            }
            let count = credit.min(3).min(self.script.decisions + 1 - next);
            let decision = |number: u64| pb::FraudDecision {
                event_id: number.to_string(),
                ..pb::FraudDecision::default()
            };
            let decisions = (next..next + count).map(decision).collect();
            (next, credit, sent) = (next + count, credit - count, sent + count);
            say(Delivered::Batch(pb::DecisionBatch {
                decisions,
                token: token(next),
            }))
            .await;
        }
        // Others' decisions come after them.
        let token = token(next + PASSED_OVER);
        say(Delivered::Progress(pb::Progress { token })).await;
        while let Ok(Some(_credit)) = requests.message().await {}
    }
}

fn ack(first_sequence: u64, last_sequence: u64, settled_below: u64) -> Answer {
    Answer::Ack(pb::Ack {
        first_sequence,
        last_sequence,
        status: pb::AckStatus::Stored.into(),
        resume_token: Bytes::copy_from_slice(&settled_below.to_be_bytes()),
        ..pb::Ack::default()
    })
}

fn number(token: &[u8]) -> u64 {
    token.try_into().map_or(0, u64::from_be_bytes)
}

#[tonic::async_trait]
impl IngestService for Fake {
    type PublishStream = ReceiverStream<Result<PublishResponse, Status>>;

    async fn publish(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        self.admit(&request)?;
        let (answers, stream) = mpsc::channel(ANSWERS);
        tokio::spawn(self.clone().publish(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn publish_one(
        &self,
        request: Request<pb::PublishOneRequest>,
    ) -> Result<Response<pb::PublishOneResponse>, Status> {
        self.admit(&request)?;
        let position = Some(pb::Position {
            partition: 1,
            offset: 2,
        });
        Ok(Response::new(pb::PublishOneResponse { position }))
    }

    async fn decide(&self, _request: Request<pb::DecideRequest>) -> Result<Response<pb::DecideResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

#[tonic::async_trait]
impl DecisionService for Fake {
    type SubscribeStream = ReceiverStream<Result<SubscribeResponse, Status>>;
    type WatchStream = ReceiverStream<Result<pb::WatchResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        self.admit(&request)?;
        let (answers, stream) = mpsc::channel(ANSWERS);
        tokio::spawn(self.clone().subscribe(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn watch(&self, _request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
}
