//! Named cursors: stored by the server, one subscriber each, seen by Kafka's tools.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use sluice_proto::pb::subscribe_open::Start;
use sluice_proto::pb::subscribe_request::Message as Ask;
use sluice_proto::pb::{self, SubscribeOpen};
use sluice_tests::run::{on_own, on_shared};
use sluice_tests::session::Session;
use sluice_tests::stack::{Options, Stack};
use sluice_tests::subscribe::Stream;
use sluice_tests::{command, events, servers};
use tonic::{Code, Status};

fn at(cursor: &str) -> SubscribeOpen {
    SubscribeOpen {
        cursor: cursor.to_owned(),
        credit: 1_000,
        ..SubscribeOpen::default()
    }
}

async fn lag(stack: &Stack, group: &str) -> Result<String> {
    let mut show = Command::new(servers::binary("sluicectl")?);
    show.args(["lag", "--group", group]).envs(stack.common_env());
    command::succeed(show).await
}

/// How many records a page of `sluicectl lag` counts.
fn behind(page: &str) -> Result<u64> {
    let last = page.lines().last().context("an empty page")?;
    let number = last.split_whitespace().rev().nth(1).context("no number")?;
    number.parse().with_context(|| page.to_owned())
}

#[test]
fn a_cursor_goes_on_where_it_was_committed_and_kafkas_tools_see_its_lag() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut session = Session::open(&url, &tenant.key, "cursor").await?;
        let payments = events::payments("cursor", 30);
        let mut first = Stream::open(&url, &tenant.key, at("desk")).await?;
        session.store(&payments[..10]).await?;
        first.decisions(10).await?;
        first.commit().await?;
        session.store(&payments[10..20]).await?;
        let uncommitted = first.decisions(10).await?;
        drop(first);
        session.store(&payments[20..]).await?;

        let group = format!("cursor/{}/desk", tenant.name);
        let page = lag(stack, &group).await?;
        ensure!(
            page.contains(&stack.topic("decisions")) && behind(&page)? >= 10,
            "{page}"
        );
        // Earliest is for a new cursor; this one has a position.
        let mut second = Stream::open(
            &url,
            &tenant.key,
            SubscribeOpen {
                start: Some(Start::Earliest(pb::Earliest {})),
                ..at("desk")
            },
        )
        .await?;
        let again = second.decisions(20).await?;
        ensure!(uncommitted.iter().all(|id| again.contains(id)), "{again:?}");
        second.commit().await?;
        drop(second);
        let mut third = Stream::open(&url, &tenant.key, at("desk")).await?;
        third.progress().await?;
        Ok(())
    });
}

#[test]
fn a_new_cursor_misses_nothing_before_its_first_commit() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut first = Stream::open(&url, &tenant.key, at("fresh")).await?;
        // The position where it begins is stored without being asked for.
        while first.committed.is_empty() {
            first.next().await??.context("the stream ended")?;
        }
        drop(first);
        let mut session = Session::open(&url, &tenant.key, "fresh").await?;
        session.store(&events::payments("fresh", 5)).await?;
        let mut second = Stream::open(&url, &tenant.key, at("fresh")).await?;
        second.decisions(5).await?;
        Ok(())
    });
}

#[test]
fn cursors_of_the_same_name_are_each_tenants_own() {
    on_shared(async |stack| {
        let (one, other) = (stack.tenant(), stack.tenant());
        let url = stack.gateway_url();
        let mut of_one = Stream::open(&url, &one.key, at("same")).await?;
        let mut of_other = Stream::open(&url, &other.key, at("same")).await?;
        let mut session = Session::open(&url, &one.key, "same").await?;
        session.store(&events::payments("same", 5)).await?;
        of_one.decisions(5).await?;
        of_one.commit().await?;
        of_other.progress().await?;
        Ok(())
    });
}

fn is_taken_over(status: &Status) {
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert!(status.message().contains("took the cursor over"), "{status:?}");
}

#[test]
fn a_newcomer_takes_the_cursor_over() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut session = Session::open(&url, &tenant.key, "taken").await?;
        let mut older = Stream::open(&url, &tenant.key, at("taken")).await?;
        let mut newer = Stream::open(&url, &tenant.key, at("taken")).await?;
        is_taken_over(&older.refused().await?);
        session.store(&events::payments("taken", 5)).await?;
        newer.decisions(5).await?;
        newer.commit().await?;

        // The same across gateways, which know of each other through the group alone.
        let mut gateway = stack.another_gateway("gateway-other")?;
        gateway.ready().await?;
        let mut newest = Stream::open(&gateway.url(), &tenant.key, at("taken")).await?;
        session.store(&events::payments("taken", 5)).await?;
        newest.decisions(5).await?;
        newest.commit().await?;
        let committed = newest.token.clone();
        // Whatever the older one still commits is refused.
        let token = newer.ready.token.clone();
        drop(newer.send(Ask::Commit(pb::SubscribeCommit { token })).await);
        is_taken_over(&newer.refused().await?);
        drop(newest);
        let last = Stream::open(&url, &tenant.key, at("taken")).await?;
        assert_eq!(last.ready.token, committed);
        Ok(())
    });
}

#[test]
fn senseless_cursors_and_commits_are_refused() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let refused = Stream::open(&url, &tenant.key, at("a/b")).await;
        let error = refused.err().context("a cursor with a slash")?;
        let status = error.downcast_ref::<Status>().context("no status")?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let without = Stream::open(&url, &tenant.key, at("")).await?;
        let beyond = {
            // Version 1 of a token: partitions, then an offset that no partition has.
            let partitions = stack.partitions() as u16;
            let offsets = (0..partitions).flat_map(|_| (1_i64 << 40).to_be_bytes());
            [&[1][..], &partitions.to_be_bytes(), &offsets.collect::<Vec<u8>>()].concat()
        };
        let with = Stream::open(&url, &tenant.key, at("senseless")).await?;
        for (mut stream, token, code) in [
            (without, Vec::new(), Code::InvalidArgument),
            (with, beyond, Code::OutOfRange),
        ] {
            let token = token.into();
            stream.send(Ask::Commit(pb::SubscribeCommit { token })).await?;
            let status = stream.refused().await?;
            assert_eq!(status.code(), code, "{status:?}");
        }
        Ok(())
    });
}
