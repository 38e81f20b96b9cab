//! A raw publishing client: it sends exactly what a test says, credit or not, and remembers every answer.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use sluice_proto::pb;
use sluice_proto::pb::ingest_service_client::IngestServiceClient;
use sluice_proto::pb::publish_request::Message as Ask;
use sluice_proto::pb::publish_response::Message as Answer;
use sluice_proto::wire::EventBatch;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::events;
use crate::wait;

/// Requests that wait for the transport.
const OUTGOING_REQUESTS: usize = 16;

/// A connection to a gateway.
///
/// # Errors
/// When it cannot be made.
pub async fn connect(url: &str) -> Result<Channel> {
    let endpoint = tonic::transport::Endpoint::from_shared(url.to_owned())?.connect_timeout(wait::SOON);
    Ok(endpoint.connect().await?)
}

/// A request with credentials.
///
/// # Panics
/// When the key cannot travel in metadata.
pub fn authorized<T>(message: T, key: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {key}").parse().expect("the key is visible ASCII");
    request.metadata_mut().insert("authorization", value);
    request
}

/// Publishes one event by the unary call.
///
/// # Errors
/// The outer error is the harness's, the inner one the gateway's answer.
pub async fn publish_one(url: &str, key: &str, event: pb::Event) -> Result<Result<pb::Position, Status>> {
    let mut client = IngestServiceClient::new(connect(url).await?);
    let request = authorized(pb::PublishOneRequest { event: Some(event) }, key);
    let answer = wait::soon("PublishOne answers", client.publish_one(request)).await?;
    Ok(match answer {
        Ok(response) => Ok(response
            .into_inner()
            .position
            .context("PublishOne answers without a position")?),
        Err(status) => Err(status),
    })
}

/// What a session was told about one event.
#[derive(Clone, Debug, PartialEq)]
pub struct Fate {
    /// The ack's status.
    pub status: pb::AckStatus,
    /// The ack's error.
    pub error: Option<pb::EventError>,
    /// The event's position, when positions were asked for.
    pub position: Option<pb::Position>,
}

/// A publishing stream.
#[derive(Debug)]
pub struct Session {
    requests: mpsc::Sender<pb::PublishRequest>,
    responses: Streaming<pb::PublishResponse>,
    next: u64,
    /// The answer to Open.
    pub ready: pb::PublishReady,
    /// Credit that is left, in events.
    pub credit_events: i64,
    /// Credit that is left, in bytes.
    pub credit_bytes: i64,
    /// What became of each sequence number; those that were told twice are in `repeated`.
    pub fates: BTreeMap<u64, Fate>,
    /// Sequence numbers that were acknowledged more than once, which is allowed only after they were sent again.
    pub repeated: Vec<u64>,
    /// The newest resume token.
    pub token: Bytes,
    /// Every throttle message.
    pub throttles: Vec<pb::Throttle>,
    /// The drain message, when there was one.
    pub drain: Option<pb::Drain>,
}

impl Session {
    /// Opens a session that wants positions.
    ///
    /// # Errors
    /// When the gateway does not answer Ready.
    pub async fn open(url: &str, key: &str, producer_id: &str) -> Result<Self> {
        let open = pb::PublishOpen {
            producer_id: producer_id.to_owned(),
            epoch: 1,
            want_positions: true,
            ..pb::PublishOpen::default()
        };
        Self::open_with(authorized((), key), url, open).await
    }

    /// Opens a session as the message says, with the metadata of the request.
    ///
    /// # Errors
    /// When the gateway does not answer Ready; the gateway's status is the error's source.
    pub async fn open_with(metadata: Request<()>, url: &str, open: pb::PublishOpen) -> Result<Self> {
        let (requests, mut responses) = stream(metadata, url).await?;
        send(&requests, Ask::Open(open)).await?;
        let first = wait::soon("Publish answers Open", responses.message()).await??;
        let Some(Answer::Ready(ready)) = first.and_then(|response| response.message) else {
            bail!("Publish does not begin with Ready");
        };
        let credit = ready.credit.unwrap_or_default();
        Ok(Self {
            requests,
            responses,
            next: ready.next_sequence,
            credit_events: credit.events,
            credit_bytes: credit.bytes,
            token: ready.resume_token.clone(),
            ready,
            fates: BTreeMap::new(),
            repeated: Vec::new(),
            throttles: Vec::new(),
            drain: None,
        })
    }

    /// The sequence number of the next event.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// Sends a message as it is.
    ///
    /// # Errors
    /// When the stream ended.
    pub async fn send(&self, message: Ask) -> Result<()> {
        wait::soon("the gateway reads", send(&self.requests, message)).await?
    }

    /// Sends a message if the transport has room for it now.
    pub fn try_send(&self, message: Ask) -> bool {
        let request = pb::PublishRequest { message: Some(message) };
        self.requests.try_send(request).is_ok()
    }

    /// Sends encoded events in one batch with the next sequence numbers, whatever the credit; returns the first.
    ///
    /// # Errors
    /// When the stream ended.
    pub async fn send_batch(&mut self, events: Vec<Bytes>) -> Result<u64> {
        let first_sequence = self.next;
        self.next += events.len() as u64;
        self.credit_events -= events.len() as i64;
        self.credit_bytes -= events.iter().map(|event| event.len() as i64).sum::<i64>();
        self.send(Ask::Batch(EventBatch { first_sequence, events })).await?;
        Ok(first_sequence)
    }

    /// Sends events as far as credit goes, in batches of at most so many, and waits for credit where it does not.
    ///
    /// # Errors
    /// When the stream ended.
    pub async fn publish(&mut self, events: &[pb::Event], batch_events: usize) -> Result<()> {
        for batch in events.chunks(batch_events) {
            let batch: Vec<Bytes> = batch.iter().map(events::encoded).collect();
            let (count, bytes) = (
                batch.len() as i64,
                batch.iter().map(|event| event.len() as i64).sum::<i64>(),
            );
            while self.credit_events < count || self.credit_bytes < bytes {
                self.hear().await?;
            }
            self.send_batch(batch).await?;
        }
        Ok(())
    }

    /// Reads answers until every event that was sent has its fate.
    ///
    /// # Errors
    /// When the stream ends before.
    pub async fn settle(&mut self) -> Result<()> {
        while (self.fates.len() as u64) < self.next - self.ready.next_sequence {
            self.hear().await?;
        }
        Ok(())
    }

    /// Publishes events and waits until each of them is stored.
    ///
    /// # Errors
    /// When one is not.
    pub async fn store(&mut self, events: &[pb::Event]) -> Result<()> {
        let first = self.next;
        self.publish(events, 64).await?;
        self.settle().await?;
        for (sequence, fate) in self.fates.range(first..) {
            ensure!(
                fate.status == pb::AckStatus::Stored,
                "event {sequence} was not stored: {fate:?}"
            );
        }
        Ok(())
    }

    /// The fate of one event.
    ///
    /// # Errors
    /// When the stream ends before it is told.
    pub async fn fate(&mut self, sequence: u64) -> Result<Fate> {
        loop {
            if let Some(fate) = self.fates.get(&sequence) {
                return Ok(fate.clone());
            }
            self.hear().await?;
        }
    }

    /// Reads one answer and takes it in.
    ///
    /// # Errors
    /// When the stream ended; a status of the gateway is the error's source.
    pub async fn hear(&mut self) -> Result<Answer> {
        match self.next_answer().await? {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => bail!("the gateway ended the stream"),
            Err(status) => Err(status).context("the gateway ended the stream"),
        }
    }

    /// Reads one answer and takes it in; the inner value is how the stream ended.
    ///
    /// # Errors
    /// When nothing comes, or what comes breaks the contract.
    pub async fn next_answer(&mut self) -> Result<Result<Option<Answer>, Status>> {
        let response = match wait::soon("the gateway says something", self.responses.message()).await? {
            Ok(Some(response)) => response,
            Ok(None) => return Ok(Ok(None)),
            Err(status) => return Ok(Err(status)),
        };
        let answer = response.message.context("an empty answer")?;
        match &answer {
            Answer::Ready(_) => bail!("a second Ready"),
            Answer::Ack(ack) => self.take_ack(ack)?,
            Answer::Credit(credit) => {
                self.credit_events += credit.events;
                self.credit_bytes += credit.bytes;
            }
            Answer::Throttle(throttle) => self.throttles.push(throttle.clone()),
            Answer::Drain(drain) => {
                if self.token.is_empty() {
                    self.token = drain.resume_token.clone();
                }
                self.drain = Some(drain.clone());
            }
            Answer::Ping(_) => {}
        }
        Ok(Ok(Some(answer)))
    }

    /// Reads answers until the stream ends; returns the status it ended with.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn end(&mut self) -> Result<Result<(), Status>> {
        let end = async {
            loop {
                match self.next_answer().await? {
                    Ok(Some(_)) => {}
                    Ok(None) => return Ok(Ok(())),
                    Err(status) => return Ok(Err(status)),
                }
            }
        };
        // Pings keep the stream from ever being silent.
        wait::soon("the stream ends", end).await?
    }

    /// Says that nothing more comes, and reads until the gateway ends the stream.
    ///
    /// # Errors
    /// When it ends with an error.
    pub async fn close(mut self) -> Result<()> {
        let (closed, _inbox) = mpsc::channel(1);
        self.requests = closed;
        self.end().await?.context("the gateway ended the stream")
    }

    fn take_ack(&mut self, ack: &pb::Ack) -> Result<()> {
        ensure!(ack.first_sequence <= ack.last_sequence, "an ack of nothing: {ack:?}");
        let count = (ack.last_sequence - ack.first_sequence + 1) as usize;
        let status = ack.status();
        ensure!(
            (status == pb::AckStatus::Error) == ack.error.is_some(),
            "error and status differ: {ack:?}"
        );
        let positions = ack.positions.len();
        ensure!(
            positions == 0 || positions == count,
            "{positions} positions for {count} events"
        );
        if !ack.resume_token.is_empty() {
            self.token = ack.resume_token.clone();
        }
        for (index, sequence) in (ack.first_sequence..=ack.last_sequence).enumerate() {
            let fate = Fate {
                status,
                error: ack.error.clone(),
                position: ack.positions.get(index).copied(),
            };
            match self.fates.entry(sequence) {
                Entry::Occupied(_) => self.repeated.push(sequence),
                Entry::Vacant(free) => {
                    free.insert(fate);
                }
            }
        }
        Ok(())
    }
}

/// A publishing stream on which nothing was sent yet.
///
/// # Errors
/// When it cannot be opened; the gateway's status is the error's source.
pub async fn stream(
    metadata: Request<()>,
    url: &str,
) -> Result<(mpsc::Sender<pb::PublishRequest>, Streaming<pb::PublishResponse>)> {
    let mut client = IngestServiceClient::new(connect(url).await?);
    let (requests, outgoing) = mpsc::channel(OUTGOING_REQUESTS);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    *request.metadata_mut() = metadata.metadata().clone();
    let response = wait::soon("Publish answers", client.publish(request)).await??;
    Ok((requests, response.into_inner()))
}

async fn send(requests: &mpsc::Sender<pb::PublishRequest>, message: Ask) -> Result<()> {
    let request = pb::PublishRequest { message: Some(message) };
    ok_or_ended(requests.send(request).await)
}

fn ok_or_ended<T>(sent: std::result::Result<(), mpsc::error::SendError<T>>) -> Result<()> {
    sent.map_err(|_ended| anyhow::anyhow!("the stream has ended"))
}
