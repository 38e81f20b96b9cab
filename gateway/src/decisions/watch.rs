//! Owns the watch: a subscription for clients that can only listen, such as a browser through gRPC-Web.
//!
//! Comes between `service` and `subscribe`: it makes the one message that such a client cannot send, and drops those that it
//! has no use for.

use futures_util::{Stream, StreamExt, future, stream};
use sluice_proto::pb::subscribe_open::Start;
use sluice_proto::pb::subscribe_request::Message as Request;
use sluice_proto::pb::subscribe_response::Message as Response;
use sluice_proto::pb::{self, ErrorCode};
use tonic::Status;

use crate::ingest;
use crate::status::Failure;

/// The subscription's Open.
///
/// # Errors
/// `REQUEST_INVALID` where it says more than one start.
pub fn opening(watch: pb::WatchRequest) -> Result<pb::SubscribeOpen, Failure> {
    let starts = [
        (!watch.token.is_empty()).then_some(Start::Token(watch.token)),
        watch.earliest.then_some(Start::Earliest(pb::Earliest {})),
        watch.since.map(Start::Since),
    ];
    let mut starts = starts.into_iter().flatten();
    let (start, more) = (starts.next(), starts.next());
    if more.is_some() {
        let remedy = "set one of token, earliest and since, or none";
        return Err(Failure::new(ErrorCode::RequestInvalid, "says two places to begin", remedy).field("token"));
    }
    Ok(pb::SubscribeOpen {
        start,
        filter: watch.filter,
        on_expired: watch.on_expired,
        ..pb::SubscribeOpen::default()
    })
}

/// What the client of a watch would send: Open, and then nothing for as long as it listens.
pub fn requests(open: pb::SubscribeOpen) -> impl Stream<Item = Result<pb::SubscribeRequest, Status>> + Unpin {
    let open = pb::SubscribeRequest {
        message: Some(Request::Open(open)),
    };
    stream::once(future::ready(Ok(open))).chain(stream::pending())
}

/// A subscription's answer as a watch tells it.
pub fn answer(response: Result<pb::SubscribeResponse, Status>) -> Result<pb::WatchResponse, Status> {
    let only = |token| pb::WatchResponse {
        decisions: Vec::new(),
        token,
    };
    match response?.message {
        Some(Response::Batch(batch)) => Ok(pb::WatchResponse {
            decisions: batch.decisions,
            token: batch.token,
        }),
        Some(Response::Ready(ready)) => Ok(only(ready.token)),
        Some(Response::Progress(progress)) => Ok(only(progress.token)),
        // A watch has no cursor.
        Some(Response::Committed(committed)) => Ok(only(committed.token)),
        Some(Response::Drain(_)) | None => Err(ingest::draining().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_begins_in_one_place() {
        let open = opening(pb::WatchRequest {
            earliest: true,
            ..pb::WatchRequest::default()
        });
        assert!(matches!(open.expect("valid").start, Some(Start::Earliest(_))));
        assert!(opening(pb::WatchRequest::default()).expect("valid").start.is_none());
        let both = opening(pb::WatchRequest {
            earliest: true,
            token: vec![1].into(),
            ..pb::WatchRequest::default()
        });
        assert_eq!(both.expect_err("refused").code(), ErrorCode::RequestInvalid);
    }
}
