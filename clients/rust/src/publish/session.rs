//! The driver of a publishing session: one task that holds the stream, and all control flow of publishing.
//!
//! Takes events from the publisher's queue, moves batches and answers between `window` and the stream, and opens the
//! next session when one is lost. Ends when the publisher is gone and everything is settled, or for a reason that
//! another attempt does not mend.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use sluice_proto::pb::ingest_service_client::IngestServiceClient;
use sluice_proto::pb::publish_request::Message as Request;
use sluice_proto::pb::publish_response::Message as Response;
use sluice_proto::pb::{Drain, PublishOpen, PublishRequest, PublishResponse};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::window::{Submission, Window};
use super::{Builder, Error, Shared};
use crate::backoff::{Backoff, pause};
use crate::refusal::Refusal;

/// Requests between the driver and the transport. Few, so that events which arrive meanwhile share the next batch.
const OUTGOING_REQUESTS: usize = 2;
/// How long the gateway may take to answer Open.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the gateway may take to end a stream whose client is done.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest response; acks with positions are the largest.
const MAX_RESPONSE_BYTES: usize = 16 * 1024 * 1024;

/// An open stream.
pub(super) struct Session {
    outgoing: mpsc::Sender<PublishRequest>,
    incoming: Streaming<PublishResponse>,
}

/// Why a session is over.
enum End {
    /// Everything is done.
    Finished,
    /// To be opened again.
    Lost(Refusal),
    /// Not to be opened again.
    Fatal(Error),
}

pub(super) struct Driver {
    options: Builder,
    queue: mpsc::Receiver<Submission>,
    /// The publisher is gone and the queue is empty.
    queue_closed: bool,
    window: Window,
    resume_token: Bytes,
    backoff: Backoff,
    shared: Arc<Shared>,
}

impl Driver {
    pub(super) fn new(
        options: Builder,
        queue: mpsc::Receiver<Submission>,
        backoff: Backoff,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            window: Window::new(options.max_in_flight),
            options,
            queue,
            queue_closed: false,
            resume_token: Bytes::new(),
            backoff,
            shared,
        }
    }

    /// Opens a stream and resumes the session on it.
    pub(super) async fn open(&mut self) -> Result<Session, Error> {
        let channel = self.options.target.connect().await?;
        let mut client = IngestServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let (outgoing, requests) = mpsc::channel(OUTGOING_REQUESTS);
        let open = Request::Open(PublishOpen {
            producer_id: self.options.producer_id.clone(),
            epoch: self.options.epoch,
            resume_token: self.resume_token.clone(),
            max_in_flight: self.options.max_in_flight,
            want_positions: self.options.want_positions,
            last_sent_sequence: self.window.sent(),
        });
        // There is room: the channel was made just now.
        drop(outgoing.try_send(PublishRequest { message: Some(open) }));
        let request = self.options.target.request(ReceiverStream::new(requests));
        let answer = async {
            let mut incoming = client.publish(request).await?.into_inner();
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
        self.window
            .resume(&ready)
            .map_err(|_nonsense| Refusal::unexpected("the gateway resumes where the session never was"))?;
        self.learn(ready.resume_token);
        self.shared.sessions.fetch_add(1, Ordering::Relaxed);
        Ok(Session { outgoing, incoming })
    }

    /// Publishes until there is nothing more to do.
    pub(super) async fn run(mut self, first: Session) -> Result<(), Error> {
        let mut end = self.serve(first).await;
        loop {
            let refusal = match end {
                End::Finished => return Ok(()),
                End::Fatal(error) => return Err(self.fail(error)),
                // The publisher went away with nothing left to deliver.
                End::Lost(_) if self.window.is_empty() && self.queue.is_closed() && self.queue.is_empty() => {
                    return Ok(());
                }
                End::Lost(refusal) => refusal,
            };
            let Some(wait) = self.backoff.wait(Instant::now()) else {
                return Err(self.fail(Error::GaveUp {
                    after: self.options.patience,
                    last: refusal.to_string(),
                }));
            };
            pause(wait.max(refusal.retry_after.unwrap_or_default())).await;
            end = match self.open().await {
                Ok(session) => self.serve(session).await,
                Err(Error::Unreachable(unreachable)) => End::Lost(Refusal::unexpected(&unreachable.to_string())),
                Err(Error::Unauthenticated(refusal) | Error::Fenced(refusal) | Error::Refused(refusal)) => {
                    sort(refusal)
                }
                Err(error @ (Error::GaveUp { .. } | Error::TooLarge { .. } | Error::Ended)) => End::Fatal(error),
            };
        }
    }

    /// Drives one stream. That it lasted is progress, also where there was nothing to send.
    async fn serve(&mut self, session: Session) -> End {
        let began = Instant::now();
        let end = self.drive(session).await;
        self.backoff.lasted(began.elapsed());
        end
    }

    /// Moves events and answers over one stream until it ends.
    async fn drive(&mut self, mut session: Session) -> End {
        let mut arrived = Vec::new();
        // The gateway is leaving, and acknowledges until then.
        let mut draining: Option<Instant> = None;
        // The transport takes no more requests; the responses say why.
        let mut deaf = false;
        loop {
            if self.queue_closed && self.window.is_empty() {
                farewell(session).await;
                return End::Finished;
            }
            if draining.is_some() && self.window.is_answered() {
                return End::Lost(Refusal::unexpected("the gateway is draining"));
            }
            let sending = draining.is_none() && !deaf;
            let room = self.window.room();
            tokio::select! {
                biased;
                response = session.incoming.message() => match response {
                    Ok(Some(response)) => draining = self.receive(response).or(draining),
                    Ok(None) => return End::Lost(Refusal::unexpected("the gateway ended the stream")),
                    Err(status) => return ended(status.into()),
                },
                permit = session.outgoing.reserve(), if sending && self.window.sendable() => match permit {
                    Ok(permit) => {
                        self.take_waiting();
                        if let Some(batch) = self.window.next_batch() {
                            permit.send(PublishRequest { message: Some(Request::Batch(batch)) });
                        }
                    }
                    Err(_gone) => deaf = true,
                },
                count = self.queue.recv_many(&mut arrived, room), if sending && room > 0 && !self.queue_closed => {
                    self.queue_closed = count == 0;
                    arrived.drain(..).for_each(|submission| self.window.push(submission));
                }
                () = sleep_until(draining.unwrap_or_else(Instant::now)), if draining.is_some() => {
                    return End::Lost(Refusal::unexpected("the gateway drained"));
                }
            }
        }
    }

    /// Moves what waits in the queue into the window, so that it shares the batch that is about to be sent.
    fn take_waiting(&mut self) {
        while self.window.room() > 0
            && let Ok(submission) = self.queue.try_recv()
        {
            self.window.push(submission);
        }
    }

    /// Takes one answer in. Returns until when the gateway still acknowledges, if it said that it leaves.
    fn receive(&mut self, response: PublishResponse) -> Option<Instant> {
        match response.message {
            Some(Response::Ack(ack)) => {
                self.window.acknowledge(&ack);
                self.backoff.progress();
                self.learn(ack.resume_token);
            }
            Some(Response::Credit(credit)) => self.window.credit(credit),
            Some(Response::Throttle(_quota)) => {
                self.shared.throttles.fetch_add(1, Ordering::Relaxed);
            }
            Some(Response::Drain(Drain { deadline, resume_token })) => {
                self.learn(resume_token);
                let deadline = deadline.and_then(|deadline| Duration::try_from(deadline).ok());
                return Some(Instant::now() + deadline.unwrap_or_default());
            }
            // A later version may say more; Ready comes only first.
            Some(Response::Ping(_) | Response::Ready(_)) | None => {}
        }
        None
    }

    fn learn(&mut self, token: Bytes) {
        if !token.is_empty() {
            self.resume_token = token;
        }
    }

    /// Tells everyone who waits, now and later, why the session is over.
    fn fail(&mut self, error: Error) -> Error {
        // It is set here only, once.
        drop(self.shared.ended.set(error.clone()));
        self.queue.close();
        self.window.fail(&error);
        while let Ok(submission) = self.queue.try_recv() {
            submission.answer(Err(error.clone().of_event(false)));
        }
        error
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

/// Ends the stream from this side and lets the gateway end it too, so that it does not take us for lost.
async fn farewell(session: Session) {
    let Session {
        outgoing, mut incoming, ..
    } = session;
    drop(outgoing);
    let ended = async { while let Ok(Some(_late)) = incoming.message().await {} };
    // Everything is settled: whether the gateway says goodbye in time changes nothing.
    drop(timeout(FAREWELL_TIMEOUT, ended).await);
}
