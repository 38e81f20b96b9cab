//! Backpressure: credit, quotas, and a gateway that stops reading.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_proto::pb;
use sluice_proto::pb::publish_request::Message as Ask;
use sluice_proto::wire::EventBatch;
use sluice_tests::checker::{self, Expected};
use sluice_tests::events;
use sluice_tests::run::{on_own, on_shared};
use sluice_tests::session::{Session, authorized, publish_one};
use sluice_tests::stack::{Options, Stack};
use tonic::Code;
use tonic_types::StatusExt;

/// How long a stream must take nothing to count as not read.
const STALL: Duration = Duration::from_secs(2);

async fn open(stack: &Stack, key: &str, max_in_flight: u32) -> Result<Session> {
    let open = pb::PublishOpen {
        producer_id: "flow".to_owned(),
        epoch: 1,
        max_in_flight,
        ..pb::PublishOpen::default()
    };
    Session::open_with(authorized((), key), &stack.gateway_url(), open).await
}

#[test]
fn credit_adds_up() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let mut session = open(stack, &tenant.key, 16).await?;
        assert_eq!(
            session.credit_events, 16,
            "a client may ask for less than the gateway would grant"
        );
        let limits = session.ready.limits.context("no limits")?;
        assert_eq!((limits.max_in_flight, limits.max_batch_events), (16, 1_024));
        let bytes = session.credit_bytes;
        let payments = events::payments("credit", 300);
        // `publish` waits for credit whenever there is none, so that it hangs where credit is lost.
        session.publish(&payments, 5).await?;
        session.settle().await?;
        while session.credit_events < 16 || session.credit_bytes < bytes {
            session.hear().await?;
        }
        assert_eq!(
            (session.credit_events, session.credit_bytes),
            (16, bytes),
            "all of it came back, and no more"
        );
        session.close().await?;
        checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        Ok(())
    });
}

fn slow() -> Options {
    let burst = ("SLUICE_QUOTA_BURST_EVENTS".to_owned(), "20".to_owned());
    Options {
        quota_events_per_s: 40,
        gateway_env: vec![burst],
        ..Options::default()
    }
}

#[test]
fn a_spent_quota_is_told_and_refuses_nothing_on_a_stream() {
    on_own(slow(), async |stack| {
        let (tenant, other) = (stack.tenant(), stack.tenant());
        let mut session = open(stack, &tenant.key, 0).await?;
        let payments = events::payments("quota", 100);
        session.store(&payments).await?;
        let throttle = session
            .throttles
            .first()
            .context("no Throttle, and the quota was spent")?;
        assert_eq!(throttle.quota, "tenant.events_per_second");
        let wait = throttle.retry_after.context("no retry_after")?;
        assert!(
            wait.seconds >= 0 && wait.nanos >= 0 && (wait.seconds, wait.nanos) != (0, 0),
            "{wait:?}"
        );

        let refused = refused_call(stack, &tenant.key).await?;
        assert_eq!(refused.code(), Code::ResourceExhausted);
        let details = refused.get_error_details();
        let delay = details
            .retry_info()
            .and_then(|info| info.retry_delay)
            .context("no RetryInfo")?;
        assert!(!delay.is_zero());
        let quota = details.quota_failure().context("no QuotaFailure")?;
        assert_eq!(quota.violations[0].subject, "tenant.events_per_second");
        let info = details.error_info().context("no ErrorInfo")?;
        assert_eq!(
            (info.reason.as_str(), info.metadata["certainly_not_stored"].as_str()),
            ("QUOTA_EXCEEDED", "true")
        );

        // Another tenant has a quota of its own.
        publish_one(&stack.gateway_url(), &other.key, events::payment("other")).await??;
        Ok(())
    });
}

/// Calls until the quota is spent.
async fn refused_call(stack: &Stack, key: &str) -> Result<tonic::Status> {
    let url = stack.gateway_url();
    for _call in 0..1_000 {
        let calls = (0..8).map(|_call| publish_one(&url, key, events::payment("refused")));
        for answer in join_all(calls).await {
            if let Err(status) = answer? {
                return Ok(status);
            }
        }
    }
    anyhow::bail!("the quota was never spent")
}

/// Runs the calls beside each other.
async fn join_all<T: Send + 'static>(calls: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut calls: Vec<_> = calls.map(Box::pin).collect();
    let mut answers: Vec<Option<T>> = calls.iter().map(|_call| None).collect();
    std::future::poll_fn(|context| {
        for (call, answer) in calls.iter_mut().zip(&mut answers) {
            if answer.is_none()
                && let std::task::Poll::Ready(value) = call.as_mut().poll(context)
            {
                *answer = Some(value);
            }
        }
        if answers.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    answers.into_iter().flatten().collect()
}

#[test]
fn a_stream_that_has_no_credit_is_not_read() {
    let burst = ("SLUICE_QUOTA_BURST_EVENTS".to_owned(), "1".to_owned());
    let options = Options {
        quota_events_per_s: 1,
        gateway_env: vec![burst],
        ..Options::default()
    };
    on_own(options, async |stack| {
        let (tenant, other) = (stack.tenant(), stack.tenant());
        let mut greedy = open(stack, &tenant.key, 4).await?;
        // 512 KiB a message, whatever the credit. Windows and buffers on the way take some of them, and then no more.
        let event = events::encoded(&events::with(events::payment("greedy"), |payment| {
            payment.terminal_id = "x".repeat(32 * 1_024);
        }));
        let mut sent = 0_u64;
        loop {
            let message = Ask::Batch(EventBatch {
                first_sequence: 1 + 16 * sent,
                events: vec![event.clone(); 16],
            });
            if tokio::time::timeout(STALL, greedy.send(message)).await.is_err() {
                break;
            }
            sent += 1;
            ensure!(sent < 200, "the gateway read {sent} messages without credit");
        }
        // Nobody else notices.
        publish_one(&stack.gateway_url(), &other.key, events::payment("other")).await??;
        greedy.hear().await?;
        stack.must_run()
    });
}
