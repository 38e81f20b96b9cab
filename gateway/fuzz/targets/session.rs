//! Fuzzes the session loop: whatever a client sends, the stream begins with Ready or a status, every sequence number that
//! was taken is acknowledged once, nobody is granted more credit than was spent, and the session ends.
//!
//! The loop is the gateway's own, with its producer on librdkafka's built-in broker, which stores everything in memory.

#![no_main]

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use rdkafka::ClientConfig;
use sluice_gateway::audit::{Audit, Places};
use sluice_gateway::guard::Standing;
use sluice_gateway::ingest::controller::Controller;
use sluice_gateway::ingest::encode::{Encoders, SchemaIds};
use sluice_gateway::ingest::lanes::Lanes;
use sluice_gateway::ingest::{Shared, admit, fence, publish, resume, session, token};
use sluice_gateway::metrics::Metrics;
use sluice_gateway::privacy::Privacy;
use sluice_gateway::quota::{Limits, Quotas};
use sluice_gateway_fuzz::{Input, NOW, caller, routing};
use sluice_kafka::telemetry::Tracer;
use sluice_proto::google_type::Money;
use sluice_proto::pb::publish_request::Message as Ask;
use sluice_proto::pb::publish_response::Message as Answer;
use sluice_proto::pb::{self, AckStatus};
use sluice_proto::wire::EventBatch;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// Requests of one session.
const MAX_REQUESTS: usize = 24;
/// Events of one batch.
const MAX_BATCH: u8 = 12;
/// Most bytes of an event that is no event.
const MAX_GARBAGE: usize = 40;
/// A session that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(20);

struct World {
    shared: Arc<Shared>,
    runtime: Runtime,
    /// The newest token of each producer, for a later session.
    tokens: Mutex<BTreeMap<u8, Bytes>>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| World {
    shared: Arc::new(shared()),
    runtime: tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime"),
    tokens: Mutex::default(),
});

fn shared() -> Shared {
    let metrics = Metrics::default();
    let routing = routing();
    let mut config = ClientConfig::new();
    config
        .set("test.mock.num.brokers", "1")
        .set("linger.ms", "0")
        .set("enable.idempotence", "true");
    let ids = SchemaIds {
        payments: 1,
        user_actions: 2,
        system_events: 3,
        metric_events: 4,
    };
    // Searches find nothing: what a token tells is all that is known.
    let scanner = resume::Scanner::new(sluice_kafka::Config::default(), Vec::new()).expect("a scanner");
    let lanes = Lanes::new(&vec![1; routing.names().len()]);
    let publisher =
        publish::Publisher::new(config, routing.clone(), lanes, metrics.clone(), "fuzz").expect("a producer");
    let lifetime = Duration::from_secs(3_600);
    Shared {
        audit: Audit::open(Places::default(), "fuzz", metrics.audit_lost.clone()).expect("no audit log"),
        privacy: Privacy::default(),
        routing,
        encoders: Encoders::new(ids).expect("our schemas"),
        publisher,
        quotas: Arc::new(Quotas::load(None, Limits::default()).expect("no file")),
        fences: fence::Fences::default(),
        signer: token::Signer::load(None, ([127, 0, 0, 1], 1).into(), lifetime).expect("the built-in secret"),
        scanner: Arc::new(scanner),
        gate: admit::Gate::default(),
        controller: Controller::new(Duration::from_millis(100), 1_000, metrics.window.clone()),
        metrics,
        tracer: Tracer::off(),
        draining: CancellationToken::new(),
        max_in_flight_events: 1_000,
        max_session_age: lifetime,
        clock: || NOW,
    }
}

fuzz_target!(|data: &[u8]| {
    let world = &*WORLD;
    let (requests, plan) = plan(&mut Input(data));
    world.runtime.block_on(async {
        let (outbound, mut responses) = mpsc::channel(session::RESPONSES);
        let inbound = tokio_stream::iter(requests);
        let running = session::run(world.shared.clone(), Standing::new(caller()), None, inbound, outbound);
        let hearing = async {
            let mut heard = Vec::new();
            while let Some(response) = responses.recv().await {
                heard.push(response);
            }
            heard
        };
        let both = tokio::time::timeout(LIMIT, async { tokio::join!(running, hearing) });
        let ((), heard) = both.await.expect("the session ends");
        check(&plan, heard);
    });
});

/// What the requests amount to.
struct Plan {
    producer: u8,
    /// How often each number was sent before something ended the session, if anything did.
    sent: BTreeMap<u64, u32>,
    events: i64,
    /// The connection breaks before everything is said.
    breaks: bool,
    /// It breaks before anything is said, so that there is nobody to tell anything.
    silent: bool,
}

fn plan(input: &mut Input<'_>) -> (VecDeque<Result<pb::PublishRequest, Status>>, Plan) {
    let mut requests = VecDeque::new();
    let producer = input.byte() % 4;
    let mut plan = Plan {
        producer,
        sent: BTreeMap::new(),
        events: 0,
        breaks: false,
        silent: false,
    };
    let open = open(producer, input);
    let mut next = 1_u64;
    if input.byte() % 16 != 0 {
        requests.push_back(request(Ask::Open(open.clone())));
    }
    while !input.is_empty() && requests.len() < MAX_REQUESTS {
        requests.push_back(match input.byte() % 16 {
            0 => request(Ask::Open(open.clone())),
            1 => Ok(pb::PublishRequest { message: None }),
            2 => request(Ask::Refresh(pb::PublishRefresh::default())),
            3 => {
                plan.breaks = true;
                let kinds = [Status::internal("x"), Status::out_of_range("x"), Status::unknown("x")];
                Err(kinds[usize::from(input.byte() % 3)].clone())
            }
            kind => {
                // Mostly the number that comes next; else a repetition, a gap, or any number at all.
                let first_sequence = match kind {
                    4 => u64::from_be_bytes(input.array()),
                    5 | 6 => next.saturating_add((input.byte() % 8).into()).saturating_sub(4),
                    _ => next,
                };
                let count = input.byte() % MAX_BATCH;
                let events: Vec<Bytes> = (0..count).map(|_| event(input)).collect();
                for number in (0..u64::from(count)).filter_map(|index| first_sequence.checked_add(index)) {
                    *plan.sent.entry(number).or_default() += 1;
                }
                plan.events += i64::from(count);
                next = next.max(first_sequence.saturating_add(u64::from(count)));
                request(Ask::Batch(EventBatch { first_sequence, events }))
            }
        });
    }
    plan.silent = requests.front().is_none_or(Result::is_err);
    (requests, plan)
}

fn request(message: Ask) -> Result<pb::PublishRequest, Status> {
    Ok(pb::PublishRequest { message: Some(message) })
}

fn open(producer: u8, input: &mut Input<'_>) -> pb::PublishOpen {
    let resume_token = match input.byte() % 4 {
        0 => Bytes::copy_from_slice(input.bytes(20)),
        1 => WORLD
            .tokens
            .lock()
            .expect("no panic")
            .get(&producer)
            .cloned()
            .unwrap_or_default(),
        _ => Bytes::new(),
    };
    pb::PublishOpen {
        producer_id: format!("producer-{producer}"),
        epoch: u64::from(input.byte() % 2),
        resume_token,
        max_in_flight: u32::from(input.byte()),
        want_positions: input.byte() % 2 == 0,
        last_sent_sequence: u64::from(input.byte()),
    }
}

fn event(input: &mut Input<'_>) -> Bytes {
    let mut event = pb::Event {
        event_id: uuid::Uuid::from_u128(u128::from(input.byte()) + 1).to_string(),
        occurred_at: Some(prost_types::Timestamp {
            seconds: NOW / 1_000_000,
            nanos: 0,
        }),
        ..pb::Event::default()
    };
    match input.byte() % 4 {
        0 => {
            let length = usize::from(input.byte()) % MAX_GARBAGE;
            return Bytes::copy_from_slice(input.bytes(length));
        }
        1 => {
            event.topic = ["", "spare", "decisions"][usize::from(input.byte() % 3)].to_owned();
            event.payload = Some(pb::event::Payload::Metric(pb::MetricEvent {
                name: "m".to_owned(),
                value: f64::from(input.byte()),
                ..pb::MetricEvent::default()
            }));
        }
        _ => {
            event.payload = Some(pb::event::Payload::Payment(pb::PaymentEvent {
                account_id: format!("a-{}", input.byte() % 4),
                merchant_id: "m".to_owned(),
                amount: Some(Money {
                    currency_code: "EUR".to_owned(),
                    units: i64::from(input.byte()),
                    nanos: 0,
                }),
                ..pb::PaymentEvent::default()
            }));
        }
    }
    event.encode_to_vec().into()
}

/// Sessions so far, and events of theirs that were stored.
static SEEN: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
/// So often it is looked at whether anything is stored at all: else the fuzzer would only ever meet refusals.
const LOOK_EVERY: u64 = 10_000;

fn check(plan: &Plan, heard: Vec<Result<pb::PublishResponse, Status>>) {
    let sessions = SEEN[0].fetch_add(1, Ordering::Relaxed) + 1;
    let stored = SEEN[1].load(Ordering::Relaxed);
    assert!(
        !sessions.is_multiple_of(LOOK_EVERY) || stored > 0,
        "nothing was stored in {sessions} sessions"
    );
    let mut heard = heard.into_iter();
    let ready = match heard.next() {
        None => {
            assert!(plan.silent, "neither Ready nor a status");
            return;
        }
        Some(Err(status)) => {
            refused(&status);
            assert!(heard.next().is_none(), "something follows the status");
            return;
        }
        Some(Ok(response)) => match response.message {
            Some(Answer::Ready(ready)) => ready,
            other => panic!("the stream begins with {other:?}"),
        },
    };
    let mut fates: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
    let mut granted = 0;
    let mut ended = None;
    for response in heard {
        assert!(ended.is_none(), "something follows the status");
        let answer = match response {
            Ok(response) => response.message.expect("an answer has content"),
            Err(status) => {
                refused(&status);
                ended = Some(status);
                continue;
            }
        };
        match answer {
            Answer::Ack(ack) => {
                assert!(ack.first_sequence <= ack.last_sequence, "{ack:?}");
                for number in ack.first_sequence..=ack.last_sequence {
                    let (told, repeated) = fates.entry(number).or_default();
                    match ack.status() {
                        AckStatus::Duplicate => *repeated += 1,
                        AckStatus::Error => {
                            let error = ack.error.as_ref().expect("an error says what it is");
                            assert_ne!(error.code(), pb::ErrorCode::Internal, "{error:?}");
                            *told += 1;
                        }
                        AckStatus::Stored => {
                            *told += 1;
                            SEEN[1].fetch_add(1, Ordering::Relaxed);
                        }
                        AckStatus::Unspecified => panic!("{ack:?}"),
                    }
                }
                if !ack.resume_token.is_empty() {
                    let mut tokens = WORLD.tokens.lock().expect("no panic");
                    tokens.insert(plan.producer, ack.resume_token);
                }
            }
            Answer::Credit(credit) => granted += credit.events,
            Answer::Ready(_) => panic!("a second Ready"),
            Answer::Throttle(_) | Answer::Drain(_) | Answer::Ping(_) => {}
        }
    }
    assert!(granted <= plan.events, "{granted} granted for {} sent", plan.events);
    for (number, (told, repeated)) in &fates {
        let sent = plan.sent.get(number).copied().unwrap_or_default();
        assert!(
            *told <= 1 && told + repeated <= sent,
            "{number}: {told} and {repeated} for {sent} sent"
        );
    }
    if ended.is_none() && !plan.breaks {
        // It ended because the client had said everything, and so everything has its fate.
        let untold = plan.sent.iter().find(|(number, sent)| {
            let (told, repeated) = fates.get(number).copied().unwrap_or_default();
            told + repeated != **sent
        });
        assert!(
            untold.is_none(),
            "{untold:?} of {fates:?}, from {}",
            ready.next_sequence
        );
    }
}

/// A defect of ours is never the answer to a request.
fn refused(status: &Status) {
    let known = [
        Code::InvalidArgument,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unauthenticated,
    ];
    assert!(known.contains(&status.code()), "{status:?}");
}
