//! Owns the step from a Kafka record to a checked payment or a rule set, or to the reason why it is neither.
//!
//! Comes after [`crate::consume`], before [`crate::state`]. Replay reads the same way, so that the same records are left
//! out; [`crate::refill`] reads decisions with the same care for versions.

use std::panic::catch_unwind;
use std::sync::Arc;

use rdkafka::Message;
use sluice_kafka::error;
use sluice_kafka::registry::Registry;
use sluice_proto::avro;
use sluice_proto::event::PaymentRecord;
use sluice_proto::{headers, validate};

use crate::dead_letter::Kind;
use crate::rules::RuleSet;

const MICROS_PER_MILLI: i64 = 1_000;
/// Longest trace context that is passed on, in bytes: it goes into a header of the decision, which has to fit. W3C's has 55.
const MAX_TRACEPARENT_BYTES: usize = 64;

/// What a record of the payments topic is.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every record is a payment, and a box for each would be an allocation for each"
)]
pub(crate) enum Record {
    Payment(Input),
    /// In force from the next record of its partition on.
    Rules(Arc<RuleSet>),
}

/// A payment with what its record says about it.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) payment: PaymentRecord,
    /// The record's timestamp, in microseconds since the Unix epoch.
    pub(crate) appended_at: i64,
}

/// Why a record cannot be decided.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It never can: it is a dead letter.
    Letter { kind: Kind, error: String },
    /// The schema registry does not say now what the record's schema is.
    Registry(error::Registry),
}

/// Reads records of one type, of any version of their schema.
pub(crate) struct Versions<T> {
    avro: avro::Decoder<T>,
    registry: Arc<Registry>,
}

impl<T: avro::Record> Versions<T> {
    /// A reader that knows this version's schema under its id. `registry` is asked for the others, and should not be
    /// patient: the lane has its own way of waiting.
    pub(crate) fn new(schema_id: i32, registry: Arc<Registry>) -> Result<Self, avro::DecodeError> {
        Ok(Self {
            avro: avro::Decoder::new(schema_id)?,
            registry,
        })
    }

    /// Reads one record, which is not checked.
    pub(crate) fn read(&mut self, message: &impl Message) -> Result<T, Failure> {
        let bytes = message.payload().ok_or_else(|| unreadable("the record has no value"))?;
        let record = match self.avro.decode(bytes) {
            Err(avro::DecodeError::UnknownSchema(id)) => {
                self.learn(id)?;
                self.avro.decode(bytes)
            }
            decoded => decoded,
        };
        record.map_err(unreadable)
    }

    fn learn(&mut self, id: i32) -> Result<(), Failure> {
        let number = u32::try_from(id).map_err(|_| unreadable(format!("schema id {id} is negative")))?;
        match self.registry.schema_by_id(number) {
            Ok(schema) => self.avro.learn(id, &schema).map_err(unreadable),
            // Whoever may write here may forge an id, which must not stop a lane. No other answer is about the record: what
            // is wrong with the registry, its credentials or a proxy today may be right when the record is replayed.
            Err(error) if error.is_not_found() => Err(unreadable(error)),
            Err(error) => Err(Failure::Registry(error)),
        }
    }
}

/// The first byte of a record that carries the id of its schema. No rule set begins with it, because it is no character of a
/// YAML document, so that only of other records it has to be asked what they are.
const FRAMED: u8 = 0;

/// Reads payments, and the rule sets between them.
pub(crate) struct Decoder(Versions<PaymentRecord>);

impl Decoder {
    /// See [`Versions::new`].
    pub(crate) fn new(schema_id: i32, registry: Arc<Registry>) -> Result<Self, avro::DecodeError> {
        Versions::new(schema_id, registry).map(Self)
    }

    /// Reads and checks one record.
    pub(crate) fn decode(&mut self, message: &impl Message) -> Result<Record, Failure> {
        if message.payload().and_then(<[u8]>::first) != Some(&FRAMED) {
            let read = sluice_kafka::headers::read(message.headers(), [headers::CONTROL]);
            if let [Some(control)] = read.map_err(unreadable)? {
                return rule_set(control, message.payload()).map(Record::Rules);
            }
        }
        let record = self.0.read(message)?;
        let occurred_at = record.occurred_at;
        let appended_at = message
            .timestamp()
            .to_millis()
            .map_or(occurred_at, |millis| millis.saturating_mul(MICROS_PER_MILLI));
        let payment = validate::payment(record, appended_at).map_err(|violation| Failure::Letter {
            kind: Kind::Validation,
            error: violation.to_string(),
        })?;
        let mut payment = payment.into_record();
        payment.traceparent = payment.traceparent.filter(|text| text.len() <= MAX_TRACEPARENT_BYTES);
        Ok(Record::Payment(Input { payment, appended_at }))
    }
}

/// Whoever may write to Kafka may write anything here. One bad document must not stop a lane for ever, so that even a
/// panic of a parser makes no more than a dead letter.
fn rule_set(control: &[u8], document: Option<&[u8]>) -> Result<Arc<RuleSet>, Failure> {
    if control != headers::RULE_SET.as_bytes() {
        let control = String::from_utf8_lossy(control);
        return Err(unreadable(format!("{} {control:?} is not known", headers::CONTROL)));
    }
    let refused = |error: String| Failure::Letter {
        kind: Kind::RuleSet,
        error,
    };
    let text = std::str::from_utf8(document.unwrap_or_default()).map_err(|error| refused(error.to_string()))?;
    match catch_unwind(|| RuleSet::parse(text)) {
        Ok(Ok(rules)) => Ok(Arc::new(rules)),
        Ok(Err(error)) => Err(refused(error.to_string())),
        Err(_panic) => Err(refused("the document cannot be read".to_owned())),
    }
}

fn unreadable(error: impl ToString) -> Failure {
    Failure::Letter {
        kind: Kind::Deserialization,
        error: error.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    use rdkafka::Timestamp;
    use rdkafka::message::OwnedMessage;
    use sluice_proto::avro::Encoder;

    use super::*;
    use crate::rules::BUILT_IN;
    use crate::testing::{T0, payment};

    const SCHEMA: i32 = 1;

    /// A decoder that asks a registry for every schema but its own.
    fn decoder_with(registry: &str) -> Decoder {
        let registry = Registry::with_patience(registry, Duration::ZERO);
        Decoder::new(SCHEMA, Arc::new(registry)).expect("the schema is ours")
    }

    /// A decoder that asks nobody.
    pub(crate) fn decoder() -> Decoder {
        decoder_with("http://127.0.0.1:1")
    }

    /// A payment as it stands in partition 0.
    pub(crate) fn record(payment: &PaymentRecord, offset: i64) -> OwnedMessage {
        written(payment, offset, SCHEMA)
    }

    fn written(payment: &PaymentRecord, offset: i64, schema_id: i32) -> OwnedMessage {
        let mut bytes = Vec::new();
        let encoder = Encoder::new(schema_id).expect("the schema is ours");
        encoder.encode(payment, &mut bytes).expect("it fits");
        let (topic, time) = ("payments".to_owned(), Timestamp::CreateTime(T0 / MICROS_PER_MILLI));
        OwnedMessage::new(Some(bytes), None, topic, time, 0, offset, None)
    }

    /// A registry that answers one request like this.
    fn registry(status: u16, body: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        std::thread::spawn(move || {
            let (mut stream, _address) = listener.accept().expect("accept");
            let request = BufReader::new(stream.try_clone().expect("clone")).lines();
            let read = request.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()));
            assert!(read.count() > 0, "nothing was asked");
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 {status} -\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            )
            .expect("answer");
        });
        url
    }

    #[test]
    fn only_a_schema_that_is_not_found_makes_a_dead_letter() {
        for (status, body, is_letter) in [
            (404, r#"{"error_code":40403,"message":"Schema not found"}"#, true),
            (401, "", false),
            (403, "", false),
            (409, "", false),
            (503, "", false),
            (200, "<html>sign in</html>", false),
        ] {
            let mut decoder = decoder_with(&registry(status, body));
            let message = written(&payment(), 0, SCHEMA + 1);
            let refused = decoder.decode(&message).expect_err("unknown");
            assert_eq!(
                matches!(refused, Failure::Letter { .. }),
                is_letter,
                "{status}: {refused:?}"
            );
        }
    }

    #[test]
    fn a_trace_context_that_is_too_long_for_one_is_none() {
        let with = |traceparent: String| {
            let traceparent = Some(traceparent);
            let payment = PaymentRecord {
                traceparent,
                ..payment()
            };
            match decoder().decode(&record(&payment, 0)).expect("a payment") {
                Record::Payment(input) => input.payment.traceparent,
                Record::Rules(_) => panic!("a rule set"),
            }
        };
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned();
        assert_eq!(with(good.clone()), Some(good));
        assert_eq!(with("0".repeat(999_000)), None);
    }

    fn error_of(control: &str, document: Option<&[u8]>) -> Option<(Kind, String)> {
        match rule_set(control.as_bytes(), document) {
            Ok(_) => None,
            Err(Failure::Letter { kind, error }) => Some((kind, error)),
            Err(Failure::Registry(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn a_control_record_is_a_rule_set_or_a_dead_letter() {
        assert!(error_of(headers::RULE_SET, Some(BUILT_IN.as_bytes())).is_none());
        for document in [None, Some(&b""[..]), Some(b"\xff"), Some(b"version: 1")] {
            let (kind, error) = error_of(headers::RULE_SET, document).expect("refused");
            assert_eq!(kind, Kind::RuleSet, "{document:?}");
            assert!(!error.is_empty());
        }
        let (kind, error) = error_of("surprise", Some(BUILT_IN.as_bytes())).expect("refused");
        assert_eq!(
            (kind, error.as_str()),
            (Kind::Deserialization, "sluice-record \"surprise\" is not known")
        );
    }
}
