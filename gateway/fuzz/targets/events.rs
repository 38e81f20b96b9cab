//! Fuzzes what reads a client's bytes: whatever they are, they become an event that fits its schema, or a refusal with its
//! reason and remedy. Nothing panics, overflows or is stored that does not come back as it was checked.
//!
//! The first byte chooses: the bytes of an event, the record of a custom event, a resume token, or an event whose fields are
//! filled from the bytes, so that the checks behind the decoding are met as well.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use sluice_gateway::auth::Caller;
use sluice_gateway::ingest::decode::{self, Edge};
use sluice_gateway::ingest::encode::{Encoders, SchemaIds, Scratch};
use sluice_gateway::ingest::route::Routing;
use sluice_gateway::ingest::token::{Owner, Signer};
use sluice_gateway::privacy::Privacy;
use sluice_gateway_fuzz::{CUSTOM, Input, NOW, SCHEMA_ID, caller, routing};
use sluice_proto::avro::Decoder;
use sluice_proto::event::{Checked, MetricRecord, PaymentRecord, SystemRecord, UserActionRecord};
use sluice_proto::google_type::Money;
use sluice_proto::pb;
use sluice_proto::pb::event::Payload;

struct World {
    caller: Caller,
    privacy: Privacy,
    routing: std::sync::Arc<Routing>,
    encoders: Encoders,
    signer: Signer,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let ids = SchemaIds {
        payments: 1,
        user_actions: 2,
        system_events: 3,
        metric_events: 4,
    };
    World {
        caller: caller(),
        privacy: Privacy::default(),
        routing: routing(),
        encoders: Encoders::new(ids).expect("our schemas"),
        signer: Signer::load(None, ([127, 0, 0, 1], 1).into(), Duration::from_secs(60)).expect("the built-in secret"),
    }
});

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    match choice % 4 {
        0 => event(bytes),
        1 => {
            let record = [&[0][..], &SCHEMA_ID.to_be_bytes(), bytes].concat();
            let event = pb::Event {
                event_id: "0190163d-8694-739b-aea5-966c26f8ad91".to_owned(),
                occurred_at: Some(prost_types::Timestamp {
                    seconds: NOW / 1_000_000,
                    nanos: 0,
                }),
                payload: Some(Payload::Custom(pb::CustomEvent {
                    r#type: CUSTOM.to_owned(),
                    subject: "s".to_owned(),
                    record: record.into(),
                })),
                ..pb::Event::default()
            };
            self::event(&event.encode_to_vec());
        }
        2 => event(&filled(&mut Input(bytes)).encode_to_vec()),
        _ => {
            let owner = Owner {
                tenant: "fuzz",
                producer_id: "p",
                epoch: 1,
            };
            // Nobody can make a token without the secret, and so no input is one.
            assert!(WORLD.signer.read(bytes, owner, NOW / 1_000).is_err());
        }
    }
});

fn filled(input: &mut Input<'_>) -> pb::Event {
    let text = |input: &mut Input<'_>| {
        let length = usize::from(input.byte());
        String::from_utf8_lossy(input.bytes(length)).into_owned()
    };
    let long = |input: &mut Input<'_>| i64::from_be_bytes(input.array());
    let double = |input: &mut Input<'_>| f64::from_be_bytes(input.array());
    let attributes = |input: &mut Input<'_>| (0..input.byte() % 4).map(|_| (text(input), text(input))).collect();
    let event_id = uuid::Uuid::from_u128(u128::from_be_bytes(input.array())).to_string();
    let occurred_at = match input.byte() % 4 {
        0 => prost_types::Timestamp {
            seconds: long(input),
            nanos: i32::from_be_bytes(input.array()),
        },
        _ => prost_types::Timestamp {
            seconds: NOW / 1_000_000,
            nanos: 0,
        },
    };
    let payload = match input.byte() % 4 {
        0 => Payload::Payment(pb::PaymentEvent {
            account_id: text(input),
            amount: Some(Money {
                currency_code: ["EUR", "JPY", "KWD", "XXX"][usize::from(input.byte() % 4)].to_owned(),
                units: long(input) >> (input.byte() % 64),
                nanos: i32::from_be_bytes(input.array()),
            }),
            merchant_id: text(input),
            merchant_category: text(input),
            terminal_id: text(input),
            method: i32::from(input.byte() % 8),
            device_id: text(input),
            location: (input.byte() % 2 == 0).then(|| pb::Location {
                country_code: text(input),
                place: text(input),
                latitude: Some(double(input)),
                longitude: (input.byte() % 4 != 0).then(|| double(input)),
            }),
        }),
        1 => Payload::UserAction(pb::UserActionEvent {
            user_id: text(input),
            action: text(input),
            device_id: text(input),
            attributes: attributes(input),
        }),
        2 => Payload::System(pb::SystemEvent {
            source: text(input),
            kind: text(input),
            severity: i32::from(input.byte() % 8),
            message: text(input),
            attributes: attributes(input),
        }),
        _ => Payload::Metric(pb::MetricEvent {
            name: text(input),
            value: double(input),
            unit: text(input),
            attributes: attributes(input),
        }),
    };
    pb::Event {
        event_id,
        occurred_at: Some(occurred_at),
        topic: ["", "", "spare", "nowhere"][usize::from(input.byte() % 4)].to_owned(),
        payload: Some(payload),
    }
}

fn event(bytes: &[u8]) {
    let world = &*WORLD;
    let edge = Edge {
        caller: &world.caller,
        now: NOW,
        privacy: &world.privacy,
        routing: &world.routing,
    };
    let event = match decode::event(bytes, edge) {
        Ok(event) => event,
        Err(failure) => {
            let error = failure.into_event_error();
            assert!(!error.reason.is_empty() && !error.remedy.is_empty(), "{error:?}");
            assert!(error.certainly_not_stored && !error.retriable, "{error:?}");
            return;
        }
    };
    let mut scratch = Scratch::default();
    let tenant = &world.caller.tenant;
    let record = world
        .encoders
        .encode(&event, tenant, &mut scratch)
        .expect("what is checked fits");
    assert!(record.key.starts_with("fuzz/"));
    // The reader gets back what was checked.
    match &event.checked {
        Checked::Payment(payment) => {
            let decoder = Decoder::<PaymentRecord>::new(1).expect("our schema");
            assert_eq!(&decoder.decode(record.payload).expect("decodes"), &**payment);
        }
        Checked::UserAction(action) => {
            let decoder = Decoder::<UserActionRecord>::new(2).expect("our schema");
            assert_eq!(&decoder.decode(record.payload).expect("decodes"), action);
        }
        Checked::System(system) => {
            let decoder = Decoder::<SystemRecord>::new(3).expect("our schema");
            assert_eq!(&decoder.decode(record.payload).expect("decodes"), system);
        }
        Checked::Metric(metric) => {
            let decoder = Decoder::<MetricRecord>::new(4).expect("our schema");
            assert_eq!(&decoder.decode(record.payload).expect("decodes"), metric);
        }
        Checked::Custom(custom) => assert_eq!(record.payload, &custom.record[..]),
    }
}
