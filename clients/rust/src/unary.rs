//! Publishing one event in one call, with or without its decision, for callers that have one event now and then.
//!
//! Comes after [`Target`]. Many events go through a [`crate::Publisher`], which costs far less for each.

use std::time::Duration;

use sluice_proto::pb::ingest_service_client::IngestServiceClient;
use sluice_proto::pb::{DecideRequest, Event, FraudDecision, Position, PublishOneRequest};
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

    /// Publishes one payment and waits for its decision, at most for `deadline`. Where the refusal's error is
    /// `DecisionPending` the payment is stored and will be decided: decide it again, with the same event_id, to learn how.
    ///
    /// Not cancel-safe, as [`Unary::publish_one`] is not.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn decide(&self, payment: Event, deadline: Duration) -> Result<FraudDecision, Error> {
        let mut request = self.target.request(DecideRequest { event: Some(payment) });
        request.set_timeout(deadline);
        let response = self
            .client
            .clone()
            .decide(request)
            .await
            .map_err(|status| Error::Refused(status.into()))?;
        Ok(response.into_inner().decision.unwrap_or_default())
    }
}
