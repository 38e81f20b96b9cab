//! Owns what a long stream owes to its caller's credentials: it ends when they expire or are taken back, unless fresh ones
//! come in time.
//!
//! Comes between a stream's requests and its driver, which sees nothing but requests, or the status with which to end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use futures_util::{Stream, StreamExt};
use sluice_proto::pb;
use sluice_proto::pb::publish_request::Message as Publish;
use sluice_proto::pb::subscribe_request::Message as Subscribe;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use crate::auth::{self, Auth, Caller};
use crate::status::Failure;

/// A request that may bring fresh credentials instead of anything for the driver.
pub trait Refreshing {
    /// The credentials, if it is such a request.
    fn credentials(&self) -> Option<&str>;
}

impl Refreshing for pb::PublishRequest {
    fn credentials(&self) -> Option<&str> {
        match &self.message {
            Some(Publish::Refresh(refresh)) => Some(&refresh.credentials),
            _ => None,
        }
    }
}

impl Refreshing for pb::SubscribeRequest {
    fn credentials(&self) -> Option<&str> {
        match &self.message {
            Some(Subscribe::Refresh(refresh)) => Some(&refresh.credentials),
            _ => None,
        }
    }
}

/// A stream of requests that ends with its caller's credentials.
pub struct Guarded<S> {
    inner: S,
    auth: Arc<Auth>,
    caller: Caller,
    expiry: Option<Pin<Box<Sleep>>>,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Guarded<S> {
    /// Guards the requests of this caller.
    pub fn new(inner: S, caller: Caller, auth: Arc<Auth>) -> Self {
        Self {
            inner,
            auth,
            expiry: expiry(&caller),
            revoked: waiting(&caller.revoked),
            caller,
        }
    }

    fn refresh(&mut self, credentials: &str) -> Result<(), Failure> {
        let fresh = self.auth.by_credentials(credentials)?;
        if !fresh.is_same_as(&self.caller) {
            return Err(auth::refused("the fresh credentials are another principal's"));
        }
        if !fresh.may_as(&self.caller) {
            // The stream was opened for what the earlier ones allowed, and does not learn what the fresh ones do.
            return Err(auth::refused("the fresh credentials have other roles or topics"));
        }
        self.expiry = expiry(&fresh);
        self.revoked = waiting(&fresh.revoked);
        self.caller = fresh;
        Ok(())
    }
}

fn expiry(caller: &Caller) -> Option<Pin<Box<Sleep>>> {
    let left = caller.expires?.duration_since(SystemTime::now()).unwrap_or_default();
    Some(Box::pin(tokio::time::sleep_until(Instant::now() + left)))
}

fn waiting(revoked: &CancellationToken) -> Pin<Box<WaitForCancellationFutureOwned>> {
    Box::pin(revoked.clone().cancelled_owned())
}

impl<S, T> Stream for Guarded<S>
where
    S: Stream<Item = Result<T, Status>> + Unpin,
    T: Refreshing,
{
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if self.revoked.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Some(Err(auth::refused("the credentials were taken back").into())));
            }
            if let Some(expiry) = &mut self.expiry
                && expiry.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Some(Err(auth::refused("the token has expired").into())));
            }
            let next = ready!(self.inner.poll_next_unpin(cx));
            let Some(credentials) = next.as_ref().and_then(|next| next.as_ref().ok()?.credentials()) else {
                return Poll::Ready(next);
            };
            let credentials = credentials.to_owned();
            if let Err(failure) = self.refresh(&credentials) {
                return Poll::Ready(Some(Err(failure.into())));
            }
        }
    }
}
