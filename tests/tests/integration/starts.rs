//! Where a subscription begins, what it tells when there is nothing to tell, and the watch.

use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use sluice_proto::pb::decision_service_client::DecisionServiceClient;
use sluice_proto::pb::subscribe_open::Start;
use sluice_proto::pb::{self, SubscribeOpen};
use sluice_tests::run::on_shared;
use sluice_tests::session::{Session, authorized, connect};
use sluice_tests::subscribe::Stream;
use sluice_tests::{events, wait};
use tonic::{Code, Streaming};

fn from(start: Start) -> SubscribeOpen {
    SubscribeOpen {
        start: Some(start),
        credit: 1_000,
        ..SubscribeOpen::default()
    }
}

#[test]
fn a_subscription_begins_where_it_is_told() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let (url, key) = (stack.gateway_url(), &tenant.key);
        let mut session = Session::open(&url, key, "starts").await?;
        let payments = events::payments("starts", 30);
        let mut live = Stream::open(&url, key, from(Start::Latest(pb::Latest {}))).await?;
        session.store(&payments[..10]).await?;
        let first = live.decisions(10).await?;
        let token = live.token.clone();
        let between = SystemTime::now();
        session.store(&payments[10..20]).await?;
        let second = live.decisions(10).await?;
        let mut latest = Stream::open(&url, key, from(Start::Latest(pb::Latest {}))).await?;
        session.store(&payments[20..]).await?;
        let third = live.decisions(10).await?;

        let sorted = |mut ids: Vec<String>| {
            ids.sort();
            ids
        };
        let all = sorted([&first[..], &second, &third].concat());
        let later = sorted([&second[..], &third].concat());
        for (start, expected) in [
            (Start::Earliest(pb::Earliest {}), &all),
            (Start::Since(SystemTime::UNIX_EPOCH.into()), &all),
            (Start::Since(between.into()), &later),
            (Start::Token(token), &later),
        ] {
            let what = format!("{start:?}");
            let mut stream = Stream::open(&url, key, from(start)).await?;
            assert_eq!(&sorted(stream.decisions(expected.len()).await?), expected, "{what}");
        }
        assert_eq!(sorted(latest.decisions(10).await?), sorted(third));
        Ok(())
    });
}

#[test]
fn an_idle_subscription_tells_how_far_it_has_come() {
    on_shared(async |stack| {
        let (quiet, busy) = (stack.tenant(), stack.tenant());
        let url = stack.gateway_url();
        let mut idle = Stream::open(&url, &quiet.key, from(Start::Latest(pb::Latest {}))).await?;
        let mut others = Stream::open(&url, &busy.key, from(Start::Latest(pb::Latest {}))).await?;
        let mut session = Session::open(&url, &busy.key, "busy").await?;
        session.store(&events::payments("busy", 20)).await?;
        others.decisions(20).await?;
        let before = idle.token.clone();
        while idle.token == before {
            idle.progress().await?;
        }
        // The position is past what was not for it.
        let mut resumed = Stream::open(&url, &quiet.key, from(Start::Token(idle.token.clone()))).await?;
        resumed.progress().await?;
        Ok(())
    });
}

async fn watched(watch: &mut Streaming<pb::WatchResponse>, count: usize) -> Result<(Vec<String>, bytes::Bytes)> {
    let (mut ids, mut token) = (Vec::new(), bytes::Bytes::new());
    while ids.len() < count {
        let Some(response) = wait::soon("the watch says something", watch.message()).await?? else {
            bail!("the watch ended after {} decisions", ids.len());
        };
        ids.extend(response.decisions.into_iter().map(|decision| decision.event_id));
        token = response.token;
    }
    Ok((ids, token))
}

#[test]
fn a_watch_delivers_without_credit_and_goes_on_after_a_token() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut client = DecisionServiceClient::new(connect(&url).await?);
        let request = authorized(pb::WatchRequest::default(), &tenant.key);
        let mut watch = client.watch(request).await?.into_inner();
        let first = watch.message().await?.context("no first answer")?;
        assert!(first.decisions.is_empty() && !first.token.is_empty(), "{first:?}");
        let mut session = Session::open(&url, &tenant.key, "watched").await?;
        let payments = events::payments("watched", 20);
        session.store(&payments[..10]).await?;
        let (ids, token) = watched(&mut watch, 10).await?;
        drop(watch);
        session.store(&payments[10..]).await?;
        let request = pb::WatchRequest {
            token: token.clone(),
            ..pb::WatchRequest::default()
        };
        let mut watch = client.watch(authorized(request, &tenant.key)).await?.into_inner();
        let (more, _token) = watched(&mut watch, 10).await?;
        assert!(more.iter().all(|id| !ids.contains(id)), "{more:?}");

        let senseless = pb::WatchRequest {
            token,
            earliest: true,
            ..pb::WatchRequest::default()
        };
        let refused = client.watch(authorized(senseless, &tenant.key)).await;
        assert_eq!(refused.err().context("two starts")?.code(), Code::InvalidArgument);
        Ok(())
    });
}
