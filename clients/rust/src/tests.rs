//! The client against a gateway that keeps the contract and cuts connections: nothing is lost, nothing comes twice.

use std::time::Duration;

use tonic::{Code, Status};

use crate::fake::{Fake, PASSED_OVER, Script};
use crate::publish::{self, Outcome, Publisher};
use crate::subscribe::{self, Subscriber};
use crate::{Target, Unary, pb};

const EVENTS: u64 = 200;

fn event(number: u64) -> pb::Event {
    pb::Event {
        event_id: number.to_string(),
        ..pb::Event::default()
    }
}

async fn publish_all(script: Script, max_in_flight: u32) -> (Fake, u64) {
    let (fake, target) = Fake::start(script).await;
    let builder = Publisher::builder(target, "tests", 1).max_in_flight(max_in_flight);
    let publisher = builder.connect().await.unwrap();
    let tickets = publisher.publish_all((1..=EVENTS).map(event)).await.unwrap();
    for (index, ticket) in tickets.into_iter().enumerate() {
        let receipt = ticket.await.unwrap();
        assert_eq!(receipt.sequence, index as u64 + 1);
        assert_eq!(receipt.outcome, Outcome::Stored { position: None });
    }
    let sessions = publisher.sessions();
    publisher.close().await.unwrap();
    (fake, sessions)
}

/// The events as first stored, by sequence number.
fn stored(fake: &Fake) -> Vec<u64> {
    let mut stored: Vec<u64> = fake.seen().stored.iter().map(|(sequence, _event)| *sequence).collect();
    stored.sort_unstable();
    stored.dedup();
    stored
}

#[tokio::test]
async fn every_event_is_stored_though_connections_are_cut() {
    let script = Script {
        credit: 16,
        cut_after: 30,
        ..Script::default()
    };
    let (fake, sessions) = publish_all(script, 0).await;
    assert_eq!(stored(&fake), Vec::from_iter(1..=EVENTS));
    assert!(sessions > 2, "{sessions} sessions");
    assert!(fake.seen().most_unacknowledged <= 16);
}

/// As when the entry of its principal was changed: the key itself is still good.
#[tokio::test]
async fn a_stream_whose_principal_changed_is_opened_again() {
    let script = Script {
        credit: 16,
        cut_after: 30,
        cut_with: Some(Code::Unauthenticated),
        decisions: EVENTS,
        ..Script::default()
    };
    let (fake, sessions) = publish_all(script.clone(), 0).await;
    assert_eq!(stored(&fake), Vec::from_iter(1..=EVENTS));
    assert!(sessions > 2, "{sessions} sessions");
    let (_fake, target) = Fake::start(script).await;
    let mut subscriber = Subscriber::builder(target).open().await.unwrap();
    for number in 1..=EVENTS {
        assert_eq!(subscriber.next().await.unwrap().unwrap().event_id, number.to_string());
    }
    assert!(subscriber.sessions() > 2);
}

#[tokio::test]
async fn a_position_moves_on_while_the_filter_lets_nothing_pass() {
    let script = Script {
        cut_after: EVENTS,
        decisions: 3,
        ..Script::default()
    };
    let (_fake, target) = Fake::start(script).await;
    let mut subscriber = Subscriber::builder(target).open().await.unwrap();
    let behind = (4 + PASSED_OVER).to_be_bytes();
    for _decision in 1..=3 {
        assert_ne!(subscriber.token()[..], behind, "a decision was not taken yet");
        subscriber.next().await.unwrap().unwrap();
    }
    let moved_on = async {
        while subscriber.token()[..] != behind {
            tokio::task::yield_now().await;
        }
    };
    let moved_on = tokio::time::timeout(Duration::from_secs(10), moved_on).await;
    assert!(moved_on.is_ok(), "the position stands still");
}

#[tokio::test]
async fn draining_loses_and_repeats_nothing() {
    let script = Script {
        credit: 16,
        cut_after: 30,
        drain: true,
        ..Script::default()
    };
    let (fake, sessions) = publish_all(script, 8).await;
    assert_eq!(fake.seen().stored.len() as u64, EVENTS);
    assert!(sessions > 2, "{sessions} sessions");
    assert!(fake.seen().most_unacknowledged <= 8, "the caller's bound is kept");
}

#[tokio::test]
async fn a_fenced_session_ends_with_its_reason() {
    let script = Script {
        credit: 16,
        cut_after: 10,
        refusal: Some(Status::aborted("a newer session took over")),
        ..Script::default()
    };
    let (_fake, target) = Fake::start(script).await;
    let publisher = Publisher::builder(target, "tests", 1).connect().await.unwrap();
    let mut fenced = false;
    for number in 1..=EVENTS {
        match publisher.publish(event(number)).await {
            Ok(ticket) => fenced |= matches!(ticket.await, Err(publish::Error::Fenced(_))),
            Err(error) => {
                assert!(matches!(error, publish::Error::Fenced(_)), "{error}");
                fenced = true;
            }
        }
    }
    assert!(fenced);
    assert!(matches!(publisher.close().await, Err(publish::Error::Fenced(_))));
}

#[tokio::test]
async fn what_cannot_begin_says_why() {
    let (fake, target) = Fake::start(Script::default()).await;
    let address = target.address();
    let stranger = Target::new(&address, "another-key").unwrap();
    let publisher = Publisher::builder(stranger.clone(), "tests", 1).connect().await;
    assert!(matches!(publisher, Err(publish::Error::Unauthenticated(_))));
    let subscriber = Subscriber::builder(stranger.clone()).open().await;
    assert!(matches!(subscriber, Err(subscribe::Error::Unauthenticated(_))));
    assert_eq!(fake.seen().streams, 0);
    let nobody = Target::new("http://127.0.0.1:1", "a-key").unwrap();
    let error = Publisher::builder(nobody, "tests", 1).connect().await.unwrap_err();
    assert!(
        error.to_string().starts_with("cannot connect to http://127.0.0.1:1: "),
        "{error}"
    );
}

#[tokio::test]
async fn patience_has_an_end() {
    let script = Script {
        credit: 16,
        cut_after: 1,
        refusal: Some(Status::unavailable("down")),
        ..Script::default()
    };
    let (_fake, target) = Fake::start(script).await;
    let builder = Publisher::builder(target, "tests", 1).patience(Duration::from_millis(200));
    let publisher = builder.connect().await.unwrap();
    let ticket = publisher.publish(event(1)).await.unwrap();
    assert!(matches!(ticket.await, Err(publish::Error::GaveUp { .. })));
}

#[tokio::test]
async fn a_publisher_with_nothing_to_say_goes_on_from_session_to_session() {
    let script = Script {
        credit: 16,
        cut_after: EVENTS,
        idle: Some(Duration::from_millis(1_500)),
        ..Script::default()
    };
    let (fake, target) = Fake::start(script).await;
    // Less than a session lasts: without one it is only for a moment each time.
    let builder = Publisher::builder(target, "tests", 1).patience(Duration::from_millis(500));
    let publisher = builder.connect().await.unwrap();
    let third = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        while publisher.sessions() < 3 {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), third).await.unwrap();
    let receipt = publisher.publish(event(1)).await.unwrap().await.unwrap();
    assert_eq!(receipt.outcome, Outcome::Stored { position: None });
    publisher.close().await.unwrap();
    assert_eq!(stored(&fake), [1]);
}

#[tokio::test]
async fn decisions_come_once_and_in_order_though_connections_are_cut() {
    let script = Script {
        cut_after: 20,
        decisions: EVENTS,
        ..Script::default()
    };
    let (_fake, target) = Fake::start(script).await;
    let mut subscriber = Subscriber::builder(target.clone()).credit(7).open().await.unwrap();
    for number in 1..=EVENTS / 2 {
        assert_eq!(subscriber.next().await.unwrap().unwrap().event_id, number.to_string());
    }
    assert!(subscriber.sessions() > 2);
    let token = subscriber.token();
    drop(subscriber);
    // In another life, what was taken of an unfinished batch comes again, and nothing is left out.
    let mut later = Subscriber::builder(target)
        .start(subscribe::Start::Token(token))
        .open()
        .await
        .unwrap();
    let first: u64 = later.next().await.unwrap().unwrap().event_id.parse().unwrap();
    assert!((EVENTS / 2 - 2..=EVENTS / 2 + 1).contains(&first), "{first}");
    for number in first + 1..=EVENTS {
        assert_eq!(later.next().await.unwrap().unwrap().event_id, number.to_string());
    }
}

#[tokio::test]
async fn a_lost_token_ends_the_subscription() {
    let script = Script {
        cut_after: 3,
        decisions: EVENTS,
        refusal: Some(Status::new(Code::OutOfRange, "no longer stored")),
        ..Script::default()
    };
    let (_fake, target) = Fake::start(script).await;
    let mut subscriber = Subscriber::builder(target).open().await.unwrap();
    let ended = loop {
        match subscriber.next().await {
            Ok(decision) => assert!(decision.is_some()),
            Err(error) => break error,
        }
    };
    assert!(matches!(ended, subscribe::Error::Refused(_)), "{ended}");
    assert!(subscriber.next().await.unwrap().is_none());
}

#[tokio::test]
async fn one_event_in_one_call() {
    let (_fake, target) = Fake::start(Script::default()).await;
    let unary = Unary::connect(target).await.unwrap();
    assert_eq!(unary.publish_one(event(1)).await.unwrap().offset, 2);
}
