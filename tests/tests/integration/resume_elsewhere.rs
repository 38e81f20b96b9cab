//! Sessions that go on at another gateway after theirs was killed: what the second one says is stored is stored, little is
//! sent again, nothing is lost and nothing is decided twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use sluice_client::{Outcome, Publisher, Target};
use sluice_proto::{headers, pb, topics};
use sluice_tests::checker::{self, Expected};
use sluice_tests::proxy::Proxy;
use sluice_tests::run::{on_own, on_own_within};
use sluice_tests::session::{Session, authorized};
use sluice_tests::stack::{Gateway, Options, Stack};
use sluice_tests::{events, topics as log, wait};
use tokio::time::Duration;
use tonic::Code;
use tonic_types::StatusExt;

/// How often a gateway is killed; more where the variable says so.
const ROUNDS: usize = 5;
const ROUNDS_VARIABLE: &str = "RESUME_ROUNDS";
/// Payments of a round, and how many of them are settled before the kill.
const ROUND_EVENTS: usize = 6_000;
const SETTLED_BEFORE: usize = 150;
/// A round takes about two seconds, most of them for the start of a gateway.
const ROUND_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn a_client_goes_on_at_another_gateway_each_time_its_own_is_killed() {
    let rounds = std::env::var(ROUNDS_VARIABLE)
        .map_or(Ok(ROUNDS), |text| text.parse())
        .expect("a number");
    let limit = Duration::from_secs(240) + ROUND_LIMIT * rounds as u32;
    on_own_within(limit, Options::default(), async |stack| {
        let tenant = stack.tenant();
        let mut active = stack.another_gateway("gateway-a")?;
        let mut standby = stack.another_gateway("gateway-b")?;
        active.ready().await?;
        standby.ready().await?;
        let proxy = Proxy::start(active.address).await?;
        let target = Target::new(&proxy.url(), &tenant.key)?;
        let publisher = Publisher::builder(target, "wanderer", 1)
            .want_positions(true)
            .connect()
            .await?;
        let publisher = Arc::new(publisher);
        let mut expected = Expected::of(&tenant.name);
        let mut unsettled = 0;
        for round in 0..rounds {
            let payments = events::payments(&format!("round-{round}"), ROUND_EVENTS);
            expected.published.extend(events::ids(&payments));
            let mut settling = tokio::task::JoinSet::new();
            let before = publisher.sessions();
            let (mut killed, mut after_the_kill) = (false, 0);
            for (payment, ticket) in payments.iter().zip(publisher.publish_all(payments.clone()).await?) {
                let (id, publisher) = (payment.event_id.clone(), Arc::clone(&publisher));
                settling.spawn(async move {
                    let receipt = ticket.await;
                    (id, receipt, publisher.sessions())
                });
            }
            while let Some(settled) = wait::soon("a payment is settled", settling.join_next()).await? {
                let (id, receipt, session) = settled?;
                after_the_kill += usize::from(session > before);
                let position = match receipt?.outcome {
                    Outcome::Stored { position } => position,
                    Outcome::Duplicate | Outcome::Settled => None,
                    Outcome::Error(error) => anyhow::bail!("{id} was refused: {error:?}"),
                };
                expected.acked.insert(id, position);
                if !killed && settling.len() <= ROUND_EVENTS - SETTLED_BEFORE {
                    active.process.kill_9()?;
                    proxy.lead_to(standby.address);
                    proxy.cut();
                    killed = true;
                }
            }
            ensure!(after_the_kill > 0, "everything was settled before the kill");
            unsettled += after_the_kill;
            active = std::mem::replace(&mut standby, stack.another_gateway("gateway-next")?);
            standby.ready().await?;
        }
        let sessions = publisher.sessions();
        let publisher = Arc::into_inner(publisher).context("a payment is not settled")?;
        publisher.close().await?;
        assert_eq!(
            expected.acked.len(),
            rounds * ROUND_EVENTS,
            "not everything was settled"
        );
        let found = checker::check(stack, &expected).await?;
        assert_eq!(found.decisions.len(), rounds * ROUND_EVENTS);
        let repeated = found.payments.len() - found.decisions.len();
        println!(
            "{rounds} kills, {sessions} sessions, {unsettled} payments unsettled at a kill, {repeated} stored twice"
        );
        ensure!(sessions > rounds as u64, "{sessions} sessions in {rounds} rounds");
        // Without a look at what is stored, most of the unsettled would be there twice.
        ensure!(
            repeated * 10 <= unsettled,
            "{repeated} of {unsettled} were stored twice"
        );
        Ok(())
    });
}

fn resumed(token: &bytes::Bytes, epoch: u64, sent: u64) -> pb::PublishOpen {
    pb::PublishOpen {
        producer_id: "raw".to_owned(),
        epoch,
        resume_token: token.clone(),
        want_positions: true,
        last_sent_sequence: sent,
        ..pb::PublishOpen::default()
    }
}

/// The sequence numbers of the raw producer that are in the topic.
async fn stored(stack: &Stack, tenant: &str) -> Result<BTreeMap<u64, usize>> {
    let mut numbers = BTreeMap::new();
    for record in log::read(stack, topics::PAYMENTS).await? {
        if record.is_of(tenant) {
            *numbers.entry(record.header(headers::SEQUENCE)?.parse()?).or_default() += 1;
        }
    }
    Ok(numbers)
}

fn settled(ready: &pb::PublishReady) -> BTreeSet<u64> {
    let ranges = ready
        .settled
        .iter()
        .flat_map(|range| range.first_sequence..=range.last_sequence);
    (1..ready.next_sequence).chain(ranges).collect()
}

async fn two_gateways(stack: &Stack) -> Result<[Gateway; 2]> {
    let mut both = [stack.another_gateway("gateway-a")?, stack.another_gateway("gateway-b")?];
    for gateway in &mut both {
        gateway.ready().await?;
    }
    Ok(both)
}

#[test]
fn what_ready_says_is_settled_is_exactly_what_is_stored() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let [mut first, second] = two_gateways(stack).await?;
        let payments = events::payments("raw", 3_000);
        let mut session = Session::open_with(
            authorized((), &tenant.key),
            &first.url(),
            resumed(&bytes::Bytes::new(), 1, 0),
        )
        .await?;
        session.publish(&payments[..2_000], 64).await?;
        while session.fates.len() < 100 {
            session.hear().await?;
        }
        let token = session.token.clone();
        first.process.kill_9()?;
        ensure!(session.end().await?.is_err(), "the kill was not noticed");

        for sent in [2_000, 0] {
            // With and without the client's word on what it sent.
            let open = resumed(&token, 1, sent);
            let again = Session::open_with(authorized((), &tenant.key), &second.url(), open).await?;
            let in_topic: BTreeSet<u64> = stored(stack, &tenant.name).await?.into_keys().collect();
            ensure!(!again.ready.in_doubt, "nothing stands in the way of an answer");
            assert_eq!(settled(&again.ready), in_topic);
            let known: BTreeSet<u64> = session.fates.keys().copied().collect();
            ensure!(in_topic.is_superset(&known), "an acknowledged payment is not stored");
        }
        // The token that Ready carries leads to the same place, and what is passed over need not be sent.
        let open = resumed(&token, 1, 2_000);
        let third = Session::open_with(authorized((), &tenant.key), &second.url(), open).await?;
        let open = resumed(&third.ready.resume_token, 1, 2_000);
        let mut fourth = Session::open_with(authorized((), &tenant.key), &second.url(), open).await?;
        assert_eq!(settled(&fourth.ready), settled(&third.ready));
        let all = settled(&fourth.ready);
        // This client sends everything again from the first gap: what is settled comes back as such.
        let next = fourth.ready.next_sequence;
        fourth.publish(&payments[next as usize - 1..], 64).await?;
        fourth.settle().await?;
        for (sequence, fate) in &fourth.fates {
            let expected = if all.contains(sequence) {
                pb::AckStatus::Duplicate
            } else {
                pb::AckStatus::Stored
            };
            assert_eq!(fate.status, expected, "{sequence}");
        }
        fourth.close().await?;
        let numbers = stored(stack, &tenant.name).await?;
        assert_eq!(numbers.len(), 3_000);
        ensure!(numbers.values().all(|times| *times == 1), "something was stored twice");
        checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        Ok(())
    });
}

#[test]
fn tokens_are_for_their_owner_their_time_and_nobody_forges_them() {
    let options = Options {
        gateway_env: vec![("SLUICE_TOKEN_MAX_AGE_S".to_owned(), "1".to_owned())],
        ..Options::default()
    };
    on_own(options, async |stack| {
        let (tenant, other) = (stack.tenant(), stack.tenant());
        let url = stack.gateway_url();
        let open = resumed(&bytes::Bytes::new(), 1, 0);
        let mut session = Session::open_with(authorized((), &tenant.key), &url, open).await?;
        session.store(&events::payments("raw", 10)).await?;
        let token = session.token.clone();
        session.close().await?;

        let mut forged = token.to_vec();
        let last = forged.len() - 1;
        forged[last / 2] ^= 1;
        let refused = async |key: &str, token: &[u8], epoch: u64| -> Result<(Code, String)> {
            let open = resumed(&token.to_vec().into(), epoch, 10);
            let error = Session::open_with(authorized((), key), &url, open).await.err();
            let error = error.context("a bad token was accepted")?;
            let status = error.downcast_ref::<tonic::Status>().context("no status")?;
            let details = status.get_error_details();
            let reason = details.error_info().map(|info| info.reason.clone());
            Ok((status.code(), reason.unwrap_or_default()))
        };
        let invalid = (Code::InvalidArgument, "TOKEN_INVALID".to_owned());
        assert_eq!(refused(&tenant.key, &forged, 1).await?, invalid);
        assert_eq!(refused(&tenant.key, b"garbage", 1).await?, invalid);
        assert_eq!(refused(&other.key, &token, 1).await?, invalid);
        assert_eq!(refused(&tenant.key, &token, 2).await?, invalid);
        let expired = wait::until("the token expires", async || {
            let open = resumed(&token, 1, 10);
            let opened = Session::open_with(authorized((), &tenant.key), &url, open).await;
            let status = opened.err().and_then(|error| error.downcast::<tonic::Status>().ok());
            Ok(status)
        });
        assert_eq!(expired.await?.code(), Code::OutOfRange);
        Ok(())
    });
}

#[test]
fn an_older_epoch_is_refused_where_a_newer_one_stored_events_elsewhere() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let [first, second] = two_gateways(stack).await?;
        let payments = events::payments("epochs", 30);
        let open = |token: &bytes::Bytes, epoch| resumed(token, epoch, 0);
        let none = bytes::Bytes::new();
        let mut older = Session::open_with(authorized((), &tenant.key), &first.url(), open(&none, 1)).await?;
        older.store(&payments[..10]).await?;
        let token = older.token.clone();
        let mut newer = Session::open_with(authorized((), &tenant.key), &second.url(), open(&none, 2)).await?;
        newer.store(&payments[10..]).await?;
        drop(older);
        let error = Session::open_with(authorized((), &tenant.key), &first.url(), open(&token, 1)).await;
        let error = error.err().context("an older epoch was let in")?;
        let status = error.downcast_ref::<tonic::Status>().context("no status")?;
        assert_eq!(status.code(), Code::Aborted, "{status:?}");
        let details = status.get_error_details();
        assert_eq!(details.error_info().context("no ErrorInfo")?.metadata["epoch"], "2");
        newer.close().await?;
        checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        Ok(())
    });
}

#[test]
fn a_session_is_asked_to_go_when_it_is_old_and_nothing_is_lost() {
    let options = Options {
        gateway_env: vec![("SLUICE_MAX_SESSION_AGE_S".to_owned(), "1".to_owned())],
        ..Options::default()
    };
    on_own(options, async |stack| {
        let tenant = stack.tenant();
        let mut session = Session::open(&stack.gateway_url(), &tenant.key, "aged").await?;
        session.end().await??;
        let drain = session.drain.clone().context("the stream ended without Drain")?;
        ensure!(!drain.resume_token.is_empty(), "no resume token");

        let target = Target::new(&stack.gateway_url(), &tenant.key)?;
        let publisher = Publisher::builder(target, "long", 1).connect().await?;
        let mut payments = Vec::new();
        while publisher.sessions() < 4 {
            let more = events::payments(&format!("aged-{}", payments.len()), 20);
            for ticket in publisher.publish_all(more.clone()).await? {
                let outcome = ticket.await?.outcome;
                ensure!(matches!(outcome, Outcome::Stored { .. }), "{outcome:?}");
            }
            payments.extend(more);
        }
        publisher.close().await?;
        let found = checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        assert_eq!(found.payments.len(), payments.len(), "something was stored twice");
        Ok(())
    });
}
