//! A raw subscribing client: it sends exactly what a test says, and hands over every answer.

use anyhow::{Context, Result, bail, ensure};
use sluice_proto::pb;
use sluice_proto::pb::decision_service_client::DecisionServiceClient;
use sluice_proto::pb::subscribe_request::Message as Ask;
use sluice_proto::pb::subscribe_response::Message as Answer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::session::{authorized, connect};
use crate::wait;

/// Requests that wait for the transport.
const OUTGOING_REQUESTS: usize = 16;

/// A subscribing stream.
#[derive(Debug)]
pub struct Stream {
    requests: mpsc::Sender<pb::SubscribeRequest>,
    responses: Streaming<pb::SubscribeResponse>,
    /// The answer to Open.
    pub ready: pb::SubscribeReady,
    /// The newest position.
    pub token: bytes::Bytes,
    /// Every position that was said to be stored.
    pub committed: Vec<bytes::Bytes>,
}

impl Stream {
    /// Opens a subscription.
    ///
    /// # Errors
    /// When the gateway refuses: its status is the error's source.
    pub async fn open(url: &str, key: &str, open: pb::SubscribeOpen) -> Result<Self> {
        let mut client = DecisionServiceClient::new(connect(url).await?);
        let (requests, outgoing) = mpsc::channel(OUTGOING_REQUESTS);
        let message = Some(Ask::Open(open));
        requests.send(pb::SubscribeRequest { message }).await?;
        let call = client.subscribe(authorized(ReceiverStream::new(outgoing), key));
        let mut responses = wait::soon("Subscribe answers", call).await??.into_inner();
        let first = wait::soon("Subscribe answers Open", responses.message()).await??;
        let Some(Answer::Ready(ready)) = first.and_then(|response| response.message) else {
            bail!("Subscribe does not begin with Ready");
        };
        Ok(Self {
            requests,
            responses,
            token: ready.token.clone(),
            ready,
            committed: Vec::new(),
        })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the stream ended.
    pub async fn send(&self, message: Ask) -> Result<()> {
        let request = pb::SubscribeRequest { message: Some(message) };
        Ok(wait::soon("the gateway reads", self.requests.send(request)).await??)
    }

    /// The next answer, or how the stream ended.
    ///
    /// # Errors
    /// When nothing comes.
    pub async fn next(&mut self) -> Result<Result<Option<Answer>, Status>> {
        let response = match wait::soon("the gateway says something", self.responses.message()).await? {
            Ok(Some(response)) => response,
            Ok(None) => return Ok(Ok(None)),
            Err(status) => return Ok(Err(status)),
        };
        let answer = response.message.context("an empty answer")?;
        match &answer {
            Answer::Ready(_) => bail!("a second Ready"),
            Answer::Batch(batch) => self.token = batch.token.clone(),
            Answer::Progress(progress) => self.token = progress.token.clone(),
            Answer::Drain(drain) => self.token = drain.token.clone(),
            Answer::Committed(committed) => self.committed.push(committed.token.clone()),
        }
        Ok(Ok(Some(answer)))
    }

    /// Receives so many decisions, and returns their events' ids in order.
    ///
    /// # Errors
    /// When the stream ends before, or more come at once.
    pub async fn decisions(&mut self, count: usize) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        while ids.len() < count {
            match self.next().await? {
                Ok(Some(Answer::Batch(batch))) => {
                    ids.extend(batch.decisions.into_iter().map(|decision| decision.event_id));
                }
                Ok(Some(_)) => {}
                Ok(None) => bail!("the stream ended after {} of {count} decisions", ids.len()),
                Err(status) => return Err(status).context("the stream ended"),
            }
        }
        ensure!(ids.len() == count, "{} decisions came, not {count}", ids.len());
        Ok(ids)
    }

    /// Stores the newest position, and waits until the gateway says that it did.
    ///
    /// # Errors
    /// When the stream ends before.
    pub async fn commit(&mut self) -> Result<()> {
        let token = self.token.clone();
        self.send(Ask::Commit(pb::SubscribeCommit { token: token.clone() }))
            .await?;
        while self.committed.last() != Some(&token) {
            if self.next().await??.is_none() {
                bail!("the stream ended");
            }
        }
        Ok(())
    }

    /// Receives the progress of an idle subscription.
    ///
    /// # Errors
    /// When a decision comes, or the stream ends.
    pub async fn progress(&mut self) -> Result<()> {
        loop {
            match self.next().await?? {
                Some(Answer::Progress(_)) => return Ok(()),
                Some(Answer::Batch(batch)) => bail!("{} decisions came", batch.decisions.len()),
                Some(_) => {}
                None => bail!("the stream ended"),
            }
        }
    }

    /// Reads on until the stream ends with a status.
    ///
    /// # Errors
    /// When it ends well.
    pub async fn refused(&mut self) -> Result<Status> {
        loop {
            match self.next().await? {
                Err(status) => return Ok(status),
                Ok(Some(_)) => {}
                Ok(None) => bail!("the stream ended without an error"),
            }
        }
    }
}
