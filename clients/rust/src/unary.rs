//! Publishing one event in one call, for callers that have one event now and then.
//!
//! Comes after [`Target`]. Many events go through a [`crate::Publisher`], which costs far less for each.

use sluice_proto::pb::ingest_service_client::IngestServiceClient;
use sluice_proto::pb::{Event, Position, PublishOneRequest};
use tonic::transport::Channel;

use crate::refusal::Refusal;
use crate::target::{Target, Unreachable};

/// Why an event was not published, or not surely.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The connection could not be made.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The gateway refused the event, or the connection broke: see [`Refusal::certainly_not_stored`].
    #[error("the event was not published: {0}")]
    Refused(Refusal),
}

/// A connection for single calls. Clones share it.
#[derive(Clone, Debug)]
pub struct Unary {
    target: Target,
    client: IngestServiceClient<Channel>,
}

impl Unary {
    /// Connects.
    ///
    /// # Errors
    /// When the gateway cannot be reached.
    pub async fn connect(target: Target) -> Result<Self, Error> {
        let client = IngestServiceClient::new(target.connect().await?);
        Ok(Self { target, client })
    }

    /// Publishes one event and waits until it is stored. Nothing is tried again: after an error that is retriable, send
    /// the same event, with the same event_id, again.
    ///
    /// Not cancel-safe: when dropped, the event may or may not be stored.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn publish_one(&self, event: Event) -> Result<Position, Error> {
        let request = self.target.request(PublishOneRequest { event: Some(event) });
        let response = self
            .client
            .clone()
            .publish_one(request)
            .await
            .map_err(|status| Error::Refused(status.into()))?;
        Ok(response.into_inner().position.unwrap_or_default())
    }
}
