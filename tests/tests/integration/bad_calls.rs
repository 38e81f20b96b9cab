//! Calls and streams that break the contract: each gets its own clear status, and the gateway goes on as if nothing was.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use sluice_proto::bounds;
use sluice_proto::error_code;
use sluice_proto::pb::decision_service_client::DecisionServiceClient;
use sluice_proto::pb::publish_request::Message as Ask;
use sluice_proto::pb::subscribe_request::Message as SubscribeAsk;
use sluice_proto::pb::{self, AckStatus, ErrorCode};
use sluice_proto::wire::EventBatch;
use sluice_tests::checker::{self, Expected};
use sluice_tests::proxy::Proxy;
use sluice_tests::run::on_shared;
use sluice_tests::session::{Session, authorized, connect, publish_one, stream};
use sluice_tests::stack::{self, Stack};
use sluice_tests::subscription::Subscription;
use sluice_tests::{events, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

/// Checks that a status has the code, the error code with its facts, a reason and a remedy.
fn check_status(what: &str, status: &Status, code: Code, error: ErrorCode) -> Result<()> {
    ensure!(status.code() == code, "{what}: {status:?}");
    let details = status.get_error_details();
    let info = details
        .error_info()
        .with_context(|| format!("{what}: no ErrorInfo: {status:?}"))?;
    let name = error.as_str_name().trim_start_matches("ERROR_CODE_");
    ensure!(info.reason == name && info.domain == "sluice.v1", "{what}: {info:?}");
    let facts = error_code::facts(error);
    for (name, fact) in [
        ("retriable", facts.retriable),
        ("certainly_not_stored", facts.certainly_not_stored),
    ] {
        ensure!(
            info.metadata.get(name) == Some(&fact.to_string()),
            "{what}: {name} is wrong: {info:?}"
        );
    }
    let (reason, remedy) = status
        .message()
        .split_once(": ")
        .with_context(|| format!("{what}: {status:?}"))?;
    ensure!(!reason.is_empty() && !remedy.is_empty(), "{what}: {status:?}");
    Ok(())
}

/// The status inside of an error of the harness.
fn status_of(error: &anyhow::Error) -> Result<&Status> {
    error
        .downcast_ref::<Status>()
        .with_context(|| format!("not a status: {error:#}"))
}

/// Sends messages on a new stream and returns the status with which it ends.
async fn ends_with(url: &str, key: &str, messages: Vec<Option<Ask>>) -> Result<Status> {
    let (requests, mut responses) = stream(authorized((), key), url).await?;
    for message in messages {
        // The gateway may have refused an earlier one already.
        drop(requests.send(pb::PublishRequest { message }).await);
    }
    loop {
        match wait::soon("the stream ends", responses.message()).await? {
            Ok(Some(_response)) => {}
            Ok(None) => anyhow::bail!("the stream ended without an error"),
            Err(status) => return Ok(status),
        }
    }
}

fn open(producer_id: &str) -> pb::PublishOpen {
    pb::PublishOpen {
        producer_id: producer_id.to_owned(),
        epoch: 1,
        ..pb::PublishOpen::default()
    }
}

fn batch(first_sequence: u64, count: usize) -> Option<Ask> {
    let events = events::payments("batch", count).iter().map(events::encoded).collect();
    Some(Ask::Batch(EventBatch { first_sequence, events }))
}

/// A payment still goes in, and its decision comes out.
async fn healthy(stack: &Stack) -> Result<()> {
    let tenant = stack.tenant();
    let url = stack.gateway_url();
    let mut subscription = Subscription::open(&url, &tenant.key).await?;
    let payment = events::payment("healthy");
    Session::open(&url, &tenant.key, "healthy")
        .await?
        .store(std::slice::from_ref(&payment))
        .await?;
    subscription.decision(&payment).await?;
    stack::page(stack.gateway_admin(), "/health/ready").await?;
    Ok(())
}

#[test]
fn a_caller_without_a_known_key_is_told_so_at_every_call() {
    on_shared(async |stack| {
        let url = stack.gateway_url();
        let unknown = authorized((), "nobody-has-this-key");
        let mut basic = Request::new(());
        basic.metadata_mut().insert("authorization", "Basic abc".parse()?);
        for (what, metadata) in [
            ("no key", Request::new(())),
            ("an unknown key", unknown),
            ("another scheme", basic),
        ] {
            let refused = Session::open_with(metadata, &url, open("nobody")).await;
            let error = refused.err().with_context(|| format!("{what}: a session was opened"))?;
            check_status(
                what,
                status_of(&error)?,
                Code::Unauthenticated,
                ErrorCode::Unauthenticated,
            )?;
        }
        let one = publish_one(&url, "nobody-has-this-key", events::payment("nobody")).await?;
        let status = one.err().context("an event was stored")?;
        check_status("PublishOne", &status, Code::Unauthenticated, ErrorCode::Unauthenticated)?;
        let status = subscribe(&url, "nobody-has-this-key", Vec::new()).await?;
        check_status("Subscribe", &status, Code::Unauthenticated, ErrorCode::Unauthenticated)?;
        healthy(stack).await
    });
}

#[test]
fn a_publishing_stream_that_makes_no_sense_ends_with_its_status() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let opened = || Some(Ask::Open(open("nonsense")));
        let nameless = Some(Ask::Open(open("")));
        let long_name = Some(Ask::Open(open(&"p".repeat(bounds::MAX_PRODUCER_ID_BYTES + 1))));
        let bad_token = Some(Ask::Open(pb::PublishOpen {
            resume_token: Bytes::from_static(b"not a token"),
            ..open("nonsense")
        }));
        let invalid = (Code::InvalidArgument, ErrorCode::RequestInvalid);
        let too_large = vec![Bytes::from(vec![0; bounds::MAX_EVENT_BYTES]); 70];
        let too_large = Some(Ask::Batch(EventBatch {
            first_sequence: 1,
            events: too_large,
        }));
        let cases = [
            (
                "events before Open",
                vec![batch(1, 1)],
                (Code::FailedPrecondition, ErrorCode::SessionNotOpen),
            ),
            (
                "nothing before Open",
                vec![None],
                (Code::FailedPrecondition, ErrorCode::SessionNotOpen),
            ),
            ("a second Open", vec![opened(), opened()], invalid),
            ("an empty message", vec![opened(), None], invalid),
            ("an empty batch", vec![opened(), batch(1, 0)], invalid),
            (
                "too many events in a batch",
                vec![opened(), batch(1, bounds::MAX_BATCH_EVENTS + 1)],
                invalid,
            ),
            ("a request over the size bound", vec![opened(), too_large], invalid),
            ("no producer_id", vec![nameless], invalid),
            ("an oversized producer_id", vec![long_name], invalid),
            (
                "a token that is none",
                vec![bad_token],
                (Code::InvalidArgument, ErrorCode::TokenInvalid),
            ),
            (
                "a gap",
                vec![opened(), batch(5, 1)],
                (Code::FailedPrecondition, ErrorCode::SequenceGap),
            ),
        ];
        for (what, messages, (code, error)) in cases {
            let status = ends_with(&url, &tenant.key, messages)
                .await
                .with_context(|| what.to_owned())?;
            check_status(what, &status, code, error)?;
        }
        let status = ends_with(&url, &tenant.key, vec![Some(Ask::Open(open("")))]).await?;
        let details = status.get_error_details();
        let bad = details.bad_request().context("no BadRequest")?;
        assert!(bad.field_violations[0].field.ends_with("producer_id"), "{bad:?}");
        checker::check(stack, &Expected::of(&tenant.name)).await?;
        healthy(stack).await
    });
}

#[test]
fn after_a_gap_the_session_opens_again_where_it_was() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let payments = events::payments("gap", 6);
        let mut session = Session::open(&url, &tenant.key, "gap").await?;
        session.store(&payments[..3]).await?;
        let token = session.token.clone();
        session.send(batch(9, 1).context("a batch")?).await?;
        let status = session.end().await?.err().context("the stream goes on after a gap")?;
        check_status("a gap", &status, Code::FailedPrecondition, ErrorCode::SequenceGap)?;
        let again = pb::PublishOpen {
            resume_token: token,
            want_positions: true,
            ..open("gap")
        };
        let mut session = Session::open_with(authorized((), &tenant.key), &url, again).await?;
        assert_eq!(session.ready.next_sequence, 4);
        session.store(&payments[3..]).await?;
        checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        Ok(())
    });
}

#[test]
fn a_repeated_sequence_is_acknowledged_as_a_duplicate_and_not_stored_again() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let payments = events::payments("repeated", 8);
        let mut session = Session::open(&url, &tenant.key, "repeated").await?;
        session.store(&payments).await?;
        session.fates.clear();
        let events = payments.iter().map(events::encoded).collect();
        session
            .send(Ask::Batch(EventBatch {
                first_sequence: 1,
                events,
            }))
            .await?;
        for sequence in 1..=8 {
            assert_eq!(session.fate(sequence).await?.status, AckStatus::Duplicate);
        }
        let found = checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        assert_eq!(found.payments.len(), 8, "a repeated sequence was stored again");
        // The credit of what was not stored comes back too.
        let more = events::payments("after", 20);
        session.store(&more).await?;
        session.close().await
    });
}

#[test]
fn a_newer_session_of_a_producer_fences_the_older_one() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut older = Session::open(&url, &tenant.key, "fenced").await?;
        older.store(&events::payments("fenced", 2)).await?;
        let newer = pb::PublishOpen {
            epoch: 2,
            ..open("fenced")
        };
        let mut newer = Session::open_with(authorized((), &tenant.key), &url, newer).await?;
        assert_eq!(newer.ready.next_sequence, 1, "a new epoch begins at 1");
        let status = older.end().await?.err().context("the older session goes on")?;
        check_status("fenced", &status, Code::Aborted, ErrorCode::Fenced)?;
        newer.store(&events::payments("fenced", 2)).await?;
        let status = ends_with(&url, &tenant.key, vec![Some(Ask::Open(open("fenced")))]).await?;
        check_status("an older epoch", &status, Code::Aborted, ErrorCode::Fenced)?;
        newer.close().await
    });
}

/// Subscribes, sends messages, and returns the status with which the stream ends.
async fn subscribe(url: &str, key: &str, messages: Vec<Option<SubscribeAsk>>) -> Result<Status> {
    let mut client = DecisionServiceClient::new(connect(url).await?);
    let messages: Vec<_> = messages
        .into_iter()
        .map(|message| pb::SubscribeRequest { message })
        .collect();
    let request = authorized(tokio_stream::iter(messages), key);
    let mut responses = match wait::soon("Subscribe answers", client.subscribe(request)).await? {
        Ok(response) => response.into_inner(),
        Err(status) => return Ok(status),
    };
    loop {
        match wait::soon("the stream ends", responses.message()).await? {
            Ok(Some(_response)) => {}
            Ok(None) => anyhow::bail!("the stream ended without an error"),
            Err(status) => return Ok(status),
        }
    }
}

#[test]
fn a_subscription_that_makes_no_sense_ends_with_its_status() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let open = || {
            Some(SubscribeAsk::Open(pb::SubscribeOpen {
                credit: 10,
                ..pb::SubscribeOpen::default()
            }))
        };
        let credit = Some(SubscribeAsk::Credit(pb::SubscribeCredit { decisions: 1 }));
        let token = Some(SubscribeAsk::Open(pb::SubscribeOpen {
            start: Some(pb::subscribe_open::Start::Token(Bytes::from_static(b"not a token"))),
            ..pb::SubscribeOpen::default()
        }));
        let cases = [
            (
                "credit before Open",
                vec![credit],
                (Code::FailedPrecondition, ErrorCode::SessionNotOpen),
            ),
            (
                "a second Open",
                vec![open(), open()],
                (Code::InvalidArgument, ErrorCode::RequestInvalid),
            ),
            (
                "an empty message",
                vec![open(), None],
                (Code::InvalidArgument, ErrorCode::RequestInvalid),
            ),
            (
                "a token that is none",
                vec![token],
                (Code::InvalidArgument, ErrorCode::TokenInvalid),
            ),
        ];
        for (what, messages, (code, error)) in cases {
            let status = subscribe(&url, &tenant.key, messages)
                .await
                .with_context(|| what.to_owned())?;
            check_status(what, &status, code, error)?;
        }
        healthy(stack).await
    });
}

#[test]
fn garbage_on_the_port_ends_its_own_connection_only() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let mut session = Session::open(&stack.gateway_url(), &tenant.key, "beside-garbage").await?;
        let http1 = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec();
        let after_preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), vec![0xff; 4_096]].concat();
        for (what, bytes) in [
            ("noise", vec![0x16; 4_096]),
            ("HTTP/1.1", http1),
            ("noise after the preface", after_preface),
        ] {
            let mut socket = TcpStream::connect(stack.gateway_address()).await?;
            // The gateway may hang up while this is still being sent.
            drop(socket.write_all(&bytes).await);
            drop(socket.shutdown().await);
            let mut answer = Vec::new();
            // An answer is allowed, going on to listen is not; a reset is an end as well.
            drop(wait::soon(&format!("{what}: the connection ends"), socket.read_to_end(&mut answer)).await?);
        }
        session.store(&events::payments("beside-garbage", 5)).await?;
        healthy(stack).await
    });
}

#[test]
fn a_client_that_vanishes_leaves_nothing_behind() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let proxy = Proxy::start(stack.gateway_address()).await?;
        let payments = events::payments("vanished", 200);
        let mut vanishing = Session::open(&proxy.url(), &tenant.key, "vanished").await?;
        vanishing.publish(&payments, 50).await?;
        vanishing.fate(1).await?;
        proxy.cut();
        let ended = vanishing.end().await?;
        assert!(ended.is_err(), "the stream ended well on a cut connection");
        // What it had stored is decided, and its producer may come back.
        let mut back = Session::open(&stack.gateway_url(), &tenant.key, "vanished").await?;
        let more = events::payments("back", 10);
        back.store(&more).await?;
        let mut expected = Expected::all(&tenant.name, &more);
        expected.published.extend(events::ids(&payments));
        for (sequence, fate) in &vanishing.fates {
            let payment = &payments[(sequence - vanishing.ready.next_sequence) as usize];
            expected.acked.insert(payment.event_id.clone(), fate.position);
        }
        checker::check(stack, &expected).await?;
        Ok(())
    });
}
