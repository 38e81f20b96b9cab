//! Owns what a dead letter says about its record: the kinds of error and the headers.
//!
//! Comes after [`crate::decode`] or a conflict in [`crate::ledger`], before [`crate::publish`].

use rdkafka::message::{Header, OwnedHeaders};
use sluice_proto::headers;

use crate::world::Record;

/// Most bytes of an error in words: it may quote the record, and the letter must fit whatever the record says.
const MAX_ERROR_BYTES: usize = 1_024;

/// Why a record is a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// It cannot be read.
    Deserialization,
    /// It can be read, but breaks the contract.
    Validation,
    /// Its event_id belongs to another payment of the tenant.
    Conflict,
    /// It says that it is a rule set, and is none.
    RuleSet,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 4] = [Self::Deserialization, Self::Validation, Self::Conflict, Self::RuleSet];

    /// The kind's name in the header `error_type`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Deserialization => "DESERIALIZATION_ERROR",
            Self::Validation => "VALIDATION_ERROR",
            Self::Conflict => "CONFLICT",
            Self::RuleSet => "RULE_SET_ERROR",
        }
    }
}

/// The record's own headers, as far as they are wanted, and those of the dead letter.
pub(crate) fn letter_headers(message: &impl Record, kind: Kind, error: &str, with_own: bool) -> OwnedHeaders {
    let own = if with_own { message.detached_headers() } else { None };
    let retries = retries(message).to_string();
    let error = &error[..error.floor_char_boundary(MAX_ERROR_BYTES)];
    let text = |key, value| Header {
        key,
        value: Some(value),
    };
    own.unwrap_or_default()
        .insert(text(headers::ERROR_TYPE, kind.as_str()))
        .insert(text(headers::ERROR, error))
        .insert(text(headers::RETRY_COUNT, &retries))
        .insert(text(headers::SOURCE_TOPIC, message.topic()))
        .insert(text(headers::SOURCE_PARTITION, &message.partition().to_string()))
        .insert(text(headers::SOURCE_OFFSET, &message.offset().to_string()))
}

/// How often the record was a dead letter before and was driven again.
fn retries(message: &impl Record) -> u32 {
    let count = sluice_kafka::headers::read(message.headers(), [headers::RETRY_COUNT]);
    let count = count
        .ok()
        .and_then(|[count]| sluice_kafka::headers::text(count)?.parse().ok());
    count.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::OwnedMessage;

    use super::*;

    /// What the letter about this error says.
    fn told(error: &str) -> String {
        let message = OwnedMessage::new(None, None, "payments".to_owned(), Timestamp::NotAvailable, 3, 7, None);
        let letter = letter_headers(&message, Kind::Deserialization, error, true);
        let [told] = sluice_kafka::headers::read(Some(&letter), [headers::ERROR]).expect("readable");
        sluice_kafka::headers::text(told).expect("text").to_owned()
    }

    #[test]
    fn a_long_error_is_cut_between_characters() {
        assert_eq!(told("short"), "short");
        let whole = "x".repeat(MAX_ERROR_BYTES);
        assert_eq!(told(&whole), whole);
        let long = format!("x{}", "é".repeat(MAX_ERROR_BYTES));
        assert_eq!(told(&long), &long[..MAX_ERROR_BYTES - 1]);
    }
}
