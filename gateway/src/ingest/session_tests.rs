//! How a session ends: a client that does not read its answers, one that has said everything, and what the last status says.

use std::task::Poll;

use futures_util::stream;
use prost::Message as _;
use sluice_proto::google_type::Money;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::*;
use crate::auth;
use crate::ingest::fixture::NOW;

const TENANT: &str = "acme";
/// A session that takes longer to end hangs.
const LIMIT: Duration = Duration::from_secs(30);

type Responses = mpsc::Receiver<Result<pb::PublishResponse, Status>>;

fn asked() -> pb::PublishOpen {
    pb::PublishOpen {
        producer_id: "p".to_owned(),
        epoch: 1,
        ..pb::PublishOpen::default()
    }
}

async fn opened(shared: &Arc<Shared>) -> Session {
    let caller = Caller::of(TENANT);
    let opened = open::open(shared, &caller, asked()).await.expect("the session opens");
    Session::new(shared.clone(), Standing::new(caller), None, opened)
}

fn batch(first_sequence: u64) -> Request {
    let payment = pb::PaymentEvent {
        account_id: "a".to_owned(),
        merchant_id: "m".to_owned(),
        amount: Some(Money {
            currency_code: "EUR".to_owned(),
            units: 1,
            nanos: 0,
        }),
        ..pb::PaymentEvent::default()
    };
    let event = pb::Event {
        event_id: uuid::Uuid::from_u128(1).to_string(),
        occurred_at: Some(prost_types::Timestamp {
            seconds: NOW / 1_000_000,
            nanos: 0,
        }),
        payload: Some(pb::event::Payload::Payment(payment)),
        ..pb::Event::default()
    };
    let events = vec![event.encode_to_vec().into()];
    Request::Batch(wire::EventBatch { first_sequence, events })
}

/// Runs a session whose stream says this, its end among it, and then nothing.
fn run_on(shared: &Arc<Shared>, said: Vec<Option<Result<Request, Status>>>) -> Responses {
    let mut said = said.into_iter();
    let inbound = stream::poll_fn(move |_context| {
        let Some(next) = said.next() else { return Poll::Pending };
        let request = |message| pb::PublishRequest { message: Some(message) };
        Poll::Ready(next.map(|next| next.map(request)))
    });
    let (outbound, responses) = mpsc::channel(RESPONSES);
    let standing = Standing::new(Caller::of(TENANT));
    tokio::spawn(run(shared.clone(), standing, None, inbound, outbound));
    responses
}

/// The status with which a session ends, and what it says of certainly_not_stored.
async fn ends(mut responses: Responses) -> (Code, bool) {
    let status = async {
        loop {
            match responses.recv().await.expect("the stream ends with a status") {
                Ok(_answer) => {}
                Err(status) => break status,
            }
        }
    };
    let status = tokio::time::timeout(LIMIT, status).await.expect("the session ends");
    let details = status.get_error_details();
    let info = details.error_info().expect("the status says why");
    (status.code(), info.metadata["certainly_not_stored"] == "true")
}

/// Waits until an event is on its way to Kafka.
async fn accepted(shared: &Shared) {
    let accepted = async {
        while shared.metrics.accepted.get() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, accepted).await.expect("an event is taken");
}

/// A newer session comes, and goes.
fn take_over(shared: &Shared) {
    drop(shared.fences.claim(&TENANT.into(), "p", 2).expect("a newer epoch"));
}

#[tokio::test]
async fn a_batch_that_waits_is_given_up_with_its_credentials() {
    let shared = Arc::new(Shared::of_tests());
    let mut session = opened(&shared).await;
    let Request::Batch(waiting) = batch(1) else {
        unreachable!("a batch was made");
    };
    session.batch = Some(Batch {
        first: 1,
        events: waiting.events,
        duplicates: Vec::new(),
        next: 0,
        due: Due::of(1, 1),
    });
    session.hold = Some((Instant::now() + LIMIT, Withheld::Quota));
    session.work(Instant::now());
    assert!(session.batch.is_some() && session.end.is_none());
    session.standing.caller().revoked.cancel();
    session.work(Instant::now());
    assert!(session.batch.is_none(), "nothing of it is stored any more");
    let ended = session.failure().map(|failure| failure.code());
    assert_eq!(ended, Some(ErrorCode::Unauthenticated));
    assert_eq!(shared.metrics.accepted.get(), 0);
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answers_does_not_keep_its_session_awake() {
    let shared = Arc::new(Shared::of_tests());
    let mut session = opened(&shared).await;
    assert!(!session.outbox.is_empty(), "Ready waits for the client");
    let later = session.last_sent + PING_EVERY * 2;
    session.work(later);
    assert!(session.wake_at() > later);
    session.outbox.clear();
    assert_eq!(session.wake_at(), session.last_sent + PING_EVERY);
    session.work(later);
    assert!(matches!(session.outbox.front(), Some(Response::Ping(_))));
}

#[tokio::test]
async fn a_client_that_has_said_everything_is_drained_in_time() {
    let shared = Arc::new(Shared::of_tests());
    let mut session = opened(&shared).await;
    let permit = session.window.admit(1);
    session.receive(None);
    assert!(!session.reads() && !session.is_over(session.drain_at));
    assert!(session.wake_at() <= session.drain_at);
    session.work(session.drain_at);
    assert!(matches!(session.outbox.back(), Some(Response::Drain(_))));
    assert!(!session.is_over(Instant::now()));
    assert!(session.is_over(Instant::now() + DRAIN_TIMEOUT));
    session.window.release(permit);
    session.outbox.clear();
    assert!(session.is_over(Instant::now()), "everything is settled and told");
}

#[tokio::test]
async fn a_client_that_has_said_everything_is_fenced_and_loses_its_credentials_as_any_other() {
    let shared = Arc::new(Shared::of_tests());
    let open = || Some(Ok(Request::Open(asked())));
    let responses = run_on(&shared, vec![open(), Some(Ok(batch(1))), None]);
    accepted(&shared).await;
    take_over(&shared);
    assert_eq!(ends(responses).await, (Code::Aborted, false));

    let shared = Arc::new(Shared::of_tests());
    let lapsed = Status::from(auth::refused("the token has expired"));
    let responses = run_on(&shared, vec![open(), Some(Ok(batch(1))), None, Some(Err(lapsed))]);
    assert_eq!(ends(responses).await, (Code::Unauthenticated, false));
}

#[tokio::test]
async fn the_last_status_does_not_call_absent_what_was_not_acknowledged() {
    let shared = Arc::new(Shared::of_tests());
    let open = || Some(Ok(Request::Open(asked())));
    let gap = || Some(Ok(batch(9)));
    let responses = run_on(&shared, vec![open(), gap()]);
    assert_eq!(ends(responses).await, (Code::FailedPrecondition, true));
    let responses = run_on(&shared, vec![open(), Some(Ok(batch(1))), gap()]);
    assert_eq!(ends(responses).await, (Code::FailedPrecondition, false));
}
