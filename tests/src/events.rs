//! Events to publish: plain ones, which a test changes where it matters.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message;
use sluice_proto::google_type::Money;
use sluice_proto::pb;
use sluice_proto::pb::event::Payload;
use uuid::Uuid;

/// A payment of 12.34 EUR that happened just now, which no rule minds.
pub fn payment(account: &str) -> pb::Event {
    let now = SystemTime::now();
    pb::Event {
        event_id: Uuid::now_v7().to_string(),
        occurred_at: Some(now.into()),
        payload: Some(Payload::Payment(pb::PaymentEvent {
            account_id: account.to_owned(),
            amount: Some(euros(12, 340_000_000)),
            merchant_id: "merchant-1".to_owned(),
            merchant_category: "5411".to_owned(),
            terminal_id: "terminal-1".to_owned(),
            method: pb::PaymentMethod::CardPresent.into(),
            device_id: "device-1".to_owned(),
            location: None,
        })),
        ..pb::Event::default()
    }
}

/// Payments of as many accounts, one each in turn, no account often enough for a rule.
pub fn payments(prefix: &str, count: usize) -> Vec<pb::Event> {
    (0..count)
        .map(|number| payment(&format!("{prefix}-{}", number / 4)))
        .collect()
}

/// An amount in euros.
pub fn euros(units: i64, nanos: i32) -> Money {
    Money {
        currency_code: "EUR".to_owned(),
        units,
        nanos,
    }
}

/// The event with its payment changed.
///
/// # Panics
/// When the event is no payment.
pub fn with(mut event: pb::Event, change: impl FnOnce(&mut pb::PaymentEvent)) -> pb::Event {
    let Some(Payload::Payment(payment)) = &mut event.payload else {
        panic!("the event is no payment");
    };
    change(payment);
    event
}

/// The event, so long ago.
pub fn ago(event: pb::Event, age: Duration) -> pb::Event {
    occurred(event, SystemTime::now() - age)
}

/// The event, so far in the future.
pub fn ahead(event: pb::Event, by: Duration) -> pb::Event {
    occurred(event, SystemTime::now() + by)
}

/// The event, at this time.
pub fn occurred(mut event: pb::Event, at: SystemTime) -> pb::Event {
    event.occurred_at = Some(at.into());
    event
}

/// The event at a place.
pub fn at(event: pb::Event, country: &str, place: &str, latitude: f64, longitude: f64) -> pb::Event {
    with(event, |payment| {
        payment.location = Some(pb::Location {
            country_code: country.to_owned(),
            place: place.to_owned(),
            latitude: Some(latitude),
            longitude: Some(longitude),
        });
    })
}

/// The ids of events.
pub fn ids(events: &[pb::Event]) -> Vec<String> {
    events.iter().map(|event| event.event_id.clone()).collect()
}

/// The event's bytes, as they travel in a batch.
pub fn encoded(event: &pb::Event) -> Bytes {
    event.encode_to_vec().into()
}
