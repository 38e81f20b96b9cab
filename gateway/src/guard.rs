//! Owns what a long stream owes to its caller's credentials: it ends when they expire or are taken back, unless fresh ones
//! come in time.
//!
//! Comes between a stream's requests and its driver, which sees nothing but requests, or the status with which to end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
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

/// A caller as its newest credentials make it: for whoever does something for it while its stream is not read.
#[derive(Clone)]
pub struct Standing(Arc<Mutex<Caller>>);

impl Standing {
    /// The caller as it opened its stream.
    pub fn new(caller: Caller) -> Self {
        Self(Arc::new(Mutex::new(caller)))
    }

    /// The caller.
    pub fn caller(&self) -> Caller {
        self.0.lock().clone()
    }

    /// Why its credentials are no longer good, if they are not.
    pub fn lapsed(&self) -> Option<Failure> {
        lapsed(&self.0.lock())
    }
}

/// A stream of requests that ends with its caller's credentials. After its end, which it tells once, it stays pending until
/// the credentials are no longer good, so that a driver that goes on without requests still learns of it.
pub struct Guarded<S> {
    /// `None` once the client has said everything.
    inner: Option<S>,
    auth: Arc<Auth>,
    standing: Standing,
    expiry: Option<Pin<Box<Sleep>>>,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Guarded<S> {
    /// Guards the requests of this caller.
    pub fn new(inner: S, standing: Standing, auth: Arc<Auth>) -> Self {
        let caller = standing.caller();
        Self {
            inner: Some(inner),
            auth,
            standing,
            expiry: expiry(&caller),
            revoked: waiting(&caller.revoked),
        }
    }

    fn refresh(&mut self, credentials: &str) -> Result<(), Failure> {
        let fresh = self.auth.by_credentials(credentials)?;
        let mut caller = self.standing.0.lock();
        if !fresh.is_same_as(&caller) {
            return Err(auth::refused("the fresh credentials are another principal's"));
        }
        if !fresh.may_as(&caller) {
            // The stream was opened for what the earlier ones allowed, and does not learn what the fresh ones do.
            return Err(auth::refused("the fresh credentials have other roles or topics"));
        }
        self.expiry = expiry(&fresh);
        self.revoked = waiting(&fresh.revoked);
        *caller = fresh;
        Ok(())
    }
}

fn expiry(caller: &Caller) -> Option<Pin<Box<Sleep>>> {
    let left = caller.expires?.duration_since(SystemTime::now()).unwrap_or_default();
    Some(Box::pin(tokio::time::sleep_until(Instant::now() + left)))
}

/// Why a caller's credentials are no longer good, if they are not: for what is served on a thread that may block.
pub fn lapsed(caller: &Caller) -> Option<Failure> {
    if caller.revoked.is_cancelled() {
        return Some(taken_back());
    }
    let expires = caller.expires?;
    (expires <= SystemTime::now()).then(expired)
}

fn taken_back() -> Failure {
    auth::refused("the credentials were taken back")
}

fn expired() -> Failure {
    auth::refused("the token has expired")
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
                return Poll::Ready(Some(Err(taken_back().into())));
            }
            if let Some(expiry) = &mut self.expiry
                && expiry.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Some(Err(expired().into())));
            }
            let Some(inner) = &mut self.inner else {
                return Poll::Pending;
            };
            let next = ready!(inner.poll_next_unpin(cx));
            if next.is_none() {
                self.inner = None;
            }
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use futures_util::{FutureExt, stream};

    use super::*;

    type Requests = stream::Iter<std::vec::IntoIter<Result<pb::SubscribeRequest, Status>>>;

    fn guarded(caller: &Caller, requests: Vec<pb::SubscribeRequest>) -> Guarded<Requests> {
        let auth = Auth::load(None, SocketAddr::from(([127, 0, 0, 1], 50051))).expect("loopback");
        let requests: Vec<_> = requests.into_iter().map(Ok).collect();
        Guarded::new(stream::iter(requests), Standing::new(caller.clone()), Arc::new(auth))
    }

    #[test]
    fn a_stream_without_further_requests_still_ends_with_its_credentials() {
        let caller = Caller::of("acme");
        let credit = Subscribe::Credit(pb::SubscribeCredit { decisions: 1 });
        let mut requests = guarded(&caller, vec![pb::SubscribeRequest { message: Some(credit) }]);
        assert!(matches!(requests.next().now_or_never(), Some(Some(Ok(_)))));
        assert!(matches!(requests.next().now_or_never(), Some(None)));
        assert!(requests.next().now_or_never().is_none(), "the end is told once");
        assert_eq!(lapsed(&caller), None);
        caller.revoked.cancel();
        let Some(Some(Err(status))) = requests.next().now_or_never() else {
            panic!("the stream outlives its credentials");
        };
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        assert!(lapsed(&caller).is_some());
    }

    #[tokio::test]
    async fn a_stream_without_further_requests_ends_when_its_token_expires() {
        let caller = Caller {
            expires: Some(SystemTime::now() + Duration::from_millis(20)),
            ..Caller::of("acme")
        };
        let mut requests = guarded(&caller, Vec::new());
        let mut next = requests.next().await;
        // Unless the token expired first.
        if next.is_none() {
            next = requests.next().await;
        }
        let Some(Err(status)) = next else {
            panic!("the stream outlives its token");
        };
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
    }
}
