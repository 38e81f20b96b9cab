//! The records of a benchmark, prepared before the clock starts: each as the event that a client sends and as the Kafka
//! record that the gateway would make of it.
//!
//! Used by every sender, so that all of them send the same.

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use prost::Message;
use sluice_proto::avro::{Encoder, Record as _};
use sluice_proto::event::{Checked, PaymentRecord};
use sluice_proto::{topics, validate};

use crate::generate::{Generator, Options};
use crate::now_micros;

/// The tenant of the development key.
pub(super) const TENANT: &str = "dev";
/// Event time runs at this rate, whatever the real one: so many accounts, and so many payments of each.
const EVENT_RATE_PER_S: f64 = 1_000.0;
const SEED: u64 = 1;

/// One payment in both forms.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// The encoded `sluice.v1.Event`.
    pub(super) event: Bytes,
    pub(super) event_id: String,
    pub(super) key: String,
    /// The record's value.
    pub(super) payload: Bytes,
}

/// Payments up to now.
pub(super) fn prepare(count: u32, schema_id: i32) -> anyhow::Result<Vec<Record>> {
    prepare_until(now_micros(), count, schema_id)
}

/// Payments up to a moment that is not in the future, in microseconds since the Unix epoch.
pub(super) fn prepare_until(last_micros: i64, count: u32, schema_id: i32) -> anyhow::Result<Vec<Record>> {
    let generator = Generator::new(Options {
        seed: SEED,
        salt: fastrand::u64(..),
        start_micros: last_micros - micros_of(count),
        rate_per_s: EVENT_RATE_PER_S,
    });
    let encoder = Encoder::<PaymentRecord>::new(schema_id)?;
    let mut buffer = Vec::new();
    let mut arena = BytesMut::with_capacity(count as usize * 512);
    let mut keep = |bytes: &[u8]| {
        arena.extend_from_slice(bytes);
        arena.split().freeze()
    };
    let mut records = Vec::with_capacity(count as usize);
    for generated in generator.take(count as usize) {
        let event = keep(&generated.event.encode_to_vec());
        let Checked::Payment(payment) = validate::event(generated.event, TENANT, last_micros)? else {
            anyhow::bail!("the generator made something other than a payment");
        };
        buffer.clear();
        encoder
            .encode(&payment, &mut buffer)
            .context("a payment does not fit its schema")?;
        records.push(Record {
            event,
            event_id: generated.id.to_string(),
            key: topics::key(TENANT, &payment.account_id),
            payload: keep(&buffer),
        });
    }
    Ok(records)
}

/// How much time these many payments take by their own clock, in microseconds.
pub(super) fn micros_of(count: u32) -> i64 {
    (f64::from(count) / EVENT_RATE_PER_S * 1e6) as i64
}

/// The value of the `schema` header.
pub(super) const SCHEMA: &str = PaymentRecord::SCHEMA_NAME;
