//! Avro in the Confluent wire format: a zero byte, the schema's id in the registry (4 bytes, big-endian), the datum.
//!
//! Records are written with the schemas of this crate. They are read with the schema they were written with, straight
//! into the Rust type: fields that the type does not know are passed over, and fields that the writer did not know take
//! their default, which is what BACKWARD_TRANSITIVE compatibility needs.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{LazyLock, Mutex, PoisonError};

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::decision::Decision;
use crate::event::{MetricRecord, PaymentRecord, SystemRecord, UserActionRecord};
use crate::features::AccountFeatures;
use crate::settlement::{Settlement, Verdict};
use crate::topics;

/// Bytes before the datum.
pub const PREFIX_BYTES: usize = 5;
const MAGIC: u8 = 0;
/// Most bytes that a length in a record may claim: no record that Kafka takes here is larger, and room is made before it is
/// known whether the bytes are there.
const MAX_VALUE_BYTES: usize = 1_024 * 1_024;

/// A Rust type with its Avro schema and the topic it is stored in.
pub trait Record: Serialize + DeserializeOwned {
    /// The schema as JSON.
    const SCHEMA_JSON: &'static str;
    /// The schema's full name, for the `schema` header.
    const SCHEMA_NAME: &'static str;
    /// The topic, before an installation's prefix.
    const TOPIC: &'static str;
    /// The parsed schema.
    fn schema() -> &'static Schema;
}

macro_rules! record {
    ($type:ty, $topic:expr, $name:literal, $file:literal) => {
        impl Record for $type {
            const SCHEMA_JSON: &'static str = include_str!(concat!("../avro/", $file));
            const SCHEMA_NAME: &'static str = $name;
            const TOPIC: &'static str = $topic;

            fn schema() -> &'static Schema {
                static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
                    // Before anything is decoded: it counts from the first time on, for the whole process.
                    apache_avro::util::max_allocation_bytes(MAX_VALUE_BYTES);
                    // The schema is part of this crate, and its tests parse it.
                    Schema::parse_str(<$type>::SCHEMA_JSON).expect("a schema of this crate parses")
                });
                &SCHEMA
            }
        }
    };
}

record!(
    PaymentRecord,
    topics::PAYMENTS,
    "sluice.v1.PaymentEvent",
    "payment_event.avsc"
);
record!(
    Decision,
    topics::DECISIONS,
    "sluice.v1.FraudDecision",
    "fraud_decision.avsc"
);
record!(
    UserActionRecord,
    topics::USER_ACTIONS,
    "sluice.v1.UserActionEvent",
    "user_action_event.avsc"
);
record!(
    SystemRecord,
    topics::SYSTEM_EVENTS,
    "sluice.v1.SystemEvent",
    "system_event.avsc"
);
record!(
    MetricRecord,
    topics::METRIC_EVENTS,
    "sluice.v1.MetricEvent",
    "metric_event.avsc"
);
record!(
    AccountFeatures,
    topics::FEATURES,
    "sluice.v1.AccountFeatures",
    "account_features.avsc"
);
record!(Verdict, topics::VERDICTS, "sluice.v1.Verdict", "verdict.avsc");
record!(
    Settlement,
    topics::SETTLEMENTS,
    "sluice.v1.Settlement",
    "settlement.avsc"
);

/// Why a record could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode {schema}: {source}")]
pub struct EncodeError {
    schema: &'static str,
    source: Box<apache_avro::Error>,
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not the Confluent wire format.
    #[error("not in the schema registry's wire format: {0}")]
    Framing(&'static str),
    /// The schema has to be fetched from the registry first: see [`Decoder::learn`].
    #[error("schema id {0} is not known")]
    UnknownSchema(i32),
    /// The datum does not fit its schema, or the type.
    #[error("malformed record: {0}")]
    Datum(Box<apache_avro::Error>),
    /// A schema from the registry does not parse.
    #[error("schema id {id} does not parse: {source}")]
    Schema {
        /// The schema's id.
        id: i32,
        /// Why not.
        source: Box<apache_avro::Error>,
    },
    /// Bytes are left after the datum.
    #[error("{0} bytes left after the record")]
    Trailing(usize),
}

/// Writes records of one type.
pub struct Encoder<T> {
    writer: GenericDatumWriter<'static>,
    prefix: [u8; PREFIX_BYTES],
    record: PhantomData<fn(&T)>,
}

impl<T: Record> Encoder<T> {
    /// An encoder for the schema's id in the registry.
    ///
    /// # Errors
    /// When the schema cannot be resolved.
    pub fn new(schema_id: i32) -> Result<Self, EncodeError> {
        let writer = GenericDatumWriter::builder(T::schema())
            .human_readable(false)
            .build()
            .map_err(|source| encode_error::<T>(source))?;
        let mut prefix = [MAGIC; PREFIX_BYTES];
        prefix[1..].copy_from_slice(&schema_id.to_be_bytes());
        Ok(Self {
            writer,
            prefix,
            record: PhantomData,
        })
    }

    /// Appends a record, prefix included, to a buffer.
    ///
    /// # Errors
    /// When the value does not fit the schema; the buffer's content is then undefined.
    pub fn encode(&self, record: &T, buffer: &mut Vec<u8>) -> Result<(), EncodeError> {
        buffer.extend_from_slice(&self.prefix);
        self.writer
            .write_ser(buffer, record)
            .map(|_written| ())
            .map_err(|source| encode_error::<T>(source))
    }
}

fn encode_error<T: Record>(source: apache_avro::Error) -> EncodeError {
    EncodeError {
        schema: T::SCHEMA_NAME,
        source: Box::new(source),
    }
}

/// Reads records of one type, whatever version of the schema they were written with.
pub struct Decoder<T> {
    readers: HashMap<i32, GenericDatumReader<'static>>,
    /// The schema of nearly every record, kept out of the map.
    newest: (i32, GenericDatumReader<'static>),
    record: PhantomData<fn() -> T>,
}

impl<T: Record> Decoder<T> {
    /// A decoder that knows this crate's version of the schema under its id in the registry.
    ///
    /// # Errors
    /// When the schema cannot be resolved.
    pub fn new(schema_id: i32) -> Result<Self, DecodeError> {
        Ok(Self {
            readers: HashMap::new(),
            newest: (schema_id, reader(schema_id, T::schema())?),
            record: PhantomData,
        })
    }

    /// Takes in another version of the schema. It stays for the life of the process, once for all decoders; a registry holds
    /// few.
    ///
    /// # Errors
    /// When the JSON is not an Avro schema.
    pub fn learn(&mut self, schema_id: i32, schema_json: &str) -> Result<(), DecodeError> {
        let schema = kept(schema_json).map_err(|source| DecodeError::Schema {
            id: schema_id,
            source: Box::new(source),
        })?;
        self.readers.insert(schema_id, reader(schema_id, schema)?);
        Ok(())
    }

    /// Reads one record with its prefix.
    ///
    /// # Errors
    /// See [`DecodeError`]; after `UnknownSchema`, [`Decoder::learn`] and try again.
    pub fn decode(&self, bytes: &[u8]) -> Result<T, DecodeError> {
        let Some((prefix, mut datum)) = bytes.split_first_chunk::<PREFIX_BYTES>() else {
            return Err(DecodeError::Framing("shorter than the prefix"));
        };
        let [MAGIC, id @ ..] = *prefix else {
            return Err(DecodeError::Framing("the first byte is not zero"));
        };
        let id = i32::from_be_bytes(id);
        let reader = if id == self.newest.0 {
            &self.newest.1
        } else {
            self.readers.get(&id).ok_or(DecodeError::UnknownSchema(id))?
        };
        let record = reader
            .read_deser(&mut datum)
            .map_err(|source| DecodeError::Datum(Box::new(source)))?;
        if datum.is_empty() {
            Ok(record)
        } else {
            Err(DecodeError::Trailing(datum.len()))
        }
    }
}

/// The schema of this JSON, parsed when it is first asked for.
fn kept(json: &str) -> Result<&'static Schema, apache_avro::Error> {
    static KEPT: LazyLock<Mutex<HashMap<String, &'static Schema>>> = LazyLock::new(Mutex::default);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(schema) = kept.get(json) {
        return Ok(schema);
    }
    let schema: &'static Schema = Box::leak(Box::new(Schema::parse_str(json)?));
    kept.insert(json.to_owned(), schema);
    Ok(schema)
}

fn reader(id: i32, schema: &'static Schema) -> Result<GenericDatumReader<'static>, DecodeError> {
    GenericDatumReader::builder(schema)
        .human_readable(false)
        .build()
        .map_err(|source| DecodeError::Schema {
            id,
            source: Box::new(source),
        })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use apache_avro::types::Value;

    use super::*;
    use crate::decision::{Outcome, Reason, Verdict};
    use crate::event::EventId;
    use crate::money::Amount;

    fn payment(ten_thousandths: i64) -> PaymentRecord {
        PaymentRecord {
            event_id: EventId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
            tenant: "acme".into(),
            account_id: "a-1".into(),
            amount: Amount::from_ten_thousandths(ten_thousandths),
            currency: "EUR".into(),
            occurred_at: 1_700_000_000_123_456,
            merchant_id: "m-1".into(),
            merchant_category: Some("5411".into()),
            terminal_id: None,
            method: "WALLET".into(),
            device_id: None,
            country: Some("BE".into()),
            place: Some("Brüssel".into()),
            latitude: Some(50.85),
            longitude: Some(4.35),
            traceparent: None,
        }
    }

    fn encoded<T: Record>(record: &T, id: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        Encoder::new(id).unwrap().encode(record, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn payments_come_back() {
        for ten_thousandths in [
            0,
            1,
            127,
            128,
            32_767,
            32_768,
            123_400,
            i64::MAX,
            -1,
            -128,
            -129,
            i64::MIN,
        ] {
            let record = payment(ten_thousandths);
            let decoder = Decoder::<PaymentRecord>::new(7).unwrap();
            assert_eq!(decoder.decode(&encoded(&record, 7)).unwrap(), record);
        }
    }

    #[test]
    fn decisions_come_back() {
        let reason = Reason {
            rule_id: "LARGE_AMOUNT".into(),
            rule_version: "1".into(),
            contribution: 0.6,
            detail: "12,000.00 EUR is over 10,000".into(),
        };
        let verdict = Verdict {
            outcome: Outcome::Review,
            score: 0.6,
            reasons: vec![reason],
            late: true,
        };
        let decision = Decision::new(payment(120_000_000), verdict, Arc::from("1-abc"), 3, 1 << 40);
        let decoder = Decoder::<Decision>::new(2).unwrap();
        assert_eq!(decoder.decode(&encoded(&decision, 2)).unwrap(), decision);
    }

    #[test]
    fn a_generic_reader_agrees() {
        let bytes = encoded(&payment(-123_400), 7);
        let reader = GenericDatumReader::builder(PaymentRecord::schema()).build().unwrap();
        let Value::Record(fields) = reader.read_value(&mut &bytes[PREFIX_BYTES..]).unwrap() else {
            panic!("a payment is a record");
        };
        let Value::Decimal(amount) = &fields[3].1 else {
            panic!("an amount is a decimal, not {:?}", fields[3]);
        };
        let unscaled: Vec<u8> = amount.try_into().unwrap();
        assert_eq!(unscaled, [0xfe, 0x1d, 0xf8], "-123,400 in the fewest bytes");
        assert_eq!(fields[4].1, Value::String("EUR".into()));
    }

    #[test]
    fn another_version_of_the_schema_is_learnt() {
        let newer = PaymentRecord::SCHEMA_JSON.replace(
            r#"{"name": "currency""#,
            r#"{"name": "priority", "type": "int", "default": 0}, {"name": "currency""#,
        );
        let schema = Schema::parse_str(&newer).unwrap();
        let mut value = generic(&payment(5));
        value.insert(4, ("priority".into(), Value::Int(9)));
        let datum = GenericDatumWriter::builder(&schema)
            .build()
            .unwrap()
            .write_value_to_vec(Value::Record(value))
            .unwrap();
        let bytes = [&[0, 0, 0, 0, 9][..], &datum].concat();
        let mut decoder = Decoder::<PaymentRecord>::new(7).unwrap();
        assert!(matches!(decoder.decode(&bytes), Err(DecodeError::UnknownSchema(9))));
        decoder.learn(9, &newer).unwrap();
        assert_eq!(decoder.decode(&bytes).unwrap(), payment(5));
        assert!(
            std::ptr::eq(kept(&newer).unwrap(), kept(&newer).unwrap()),
            "parsed once"
        );
    }

    #[test]
    fn a_field_that_its_writer_did_not_know_has_the_schemas_default() {
        let method = PaymentRecord::SCHEMA_JSON
            .lines()
            .find(|line| line.contains(r#""name": "method""#))
            .unwrap();
        let older = PaymentRecord::SCHEMA_JSON.replace(method, "");
        let schema = Schema::parse_str(&older).unwrap();
        let mut value = generic(&payment(5));
        value.retain(|(name, _)| name != "method");
        let datum = GenericDatumWriter::builder(&schema)
            .build()
            .unwrap()
            .write_value_to_vec(Value::Record(value))
            .unwrap();
        let mut decoder = Decoder::<PaymentRecord>::new(7).unwrap();
        decoder.learn(8, &older).unwrap();
        let decoded = decoder.decode(&[&[0, 0, 0, 0, 8][..], &datum].concat()).unwrap();
        assert_eq!(decoded.method, "UNSPECIFIED");
    }

    /// The generic form of a payment, as a foreign writer would build it.
    fn generic(record: &PaymentRecord) -> Vec<(String, Value)> {
        let bytes = encoded(record, 1);
        let reader = GenericDatumReader::builder(PaymentRecord::schema()).build().unwrap();
        match reader.read_value(&mut &bytes[PREFIX_BYTES..]).unwrap() {
            Value::Record(fields) => fields,
            other => panic!("a payment is a record, not {other:?}"),
        }
    }

    #[test]
    fn damage_is_an_error() {
        let decoder = Decoder::<PaymentRecord>::new(7).unwrap();
        let good = encoded(&payment(1), 7);
        for length in 0..good.len() {
            assert!(decoder.decode(&good[..length]).is_err(), "cut to {length} bytes");
        }
        // The first field is a text, whose length comes first: 100,000,000, in zigzag.
        let claims = [&good[..PREFIX_BYTES], &[0x80, 0x84, 0xaf, 0x5f]].concat();
        let claimed = format!("{:?}", decoder.decode(&claims));
        assert!(
            claimed.contains("Unable to allocate"),
            "no room is made for it: {claimed}"
        );
        let mut longer = good.clone();
        longer.push(0);
        assert!(matches!(decoder.decode(&longer), Err(DecodeError::Trailing(1))));
        let mut magic = good;
        magic[0] = 1;
        assert!(matches!(decoder.decode(&magic), Err(DecodeError::Framing(_))));
    }
}
