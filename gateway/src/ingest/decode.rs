//! Owns the first stage of an event: from the bytes that a client sent to an event that may be stored, and where.
//!
//! Comes after `admit`, before `encode`. Inside of it, `privacy` changes what must not be stored as it came, the contract's
//! checks look at every field, and `route` finds the topic. One bad event is its own error and nobody else's.

use std::sync::Arc;

use prost::Message;
use sluice_proto::avro::PREFIX_BYTES;
use sluice_proto::bounds::MAX_EVENT_BYTES;
use sluice_proto::event::{Checked, CustomRecord};
use sluice_proto::pb::{self, ErrorCode};
use sluice_proto::shape::Shape;
use sluice_proto::validate;

use super::route::{Routing, TopicId};
use crate::auth::Caller;
use crate::privacy::Privacy;
use crate::status::Failure;

/// An event that may be stored.
#[derive(Debug)]
pub struct Event {
    /// Its content.
    pub checked: Checked,
    /// Where it goes.
    pub topic: TopicId,
    /// The schema of its record, where that is a custom type's.
    pub shape: Option<Arc<Shape>>,
}

/// What an event is checked against.
#[derive(Clone, Copy)]
pub struct Edge<'a> {
    /// Who sent it.
    pub caller: &'a Caller,
    /// The time in microseconds since the Unix epoch.
    pub now: i64,
    /// What becomes of personal data.
    pub privacy: &'a Privacy,
    /// Where events go.
    pub routing: &'a Routing,
}

/// Reads and checks one event.
///
/// # Errors
/// `EVENT_TOO_LARGE`, `EVENT_UNREADABLE`, `EVENT_INVALID`, `PERMISSION_DENIED`.
pub fn event(bytes: &[u8], edge: Edge<'_>) -> Result<Event, Failure> {
    size(bytes.len())?;
    let event = pb::Event::decode(bytes).map_err(|error| {
        Failure::new(
            ErrorCode::EventUnreadable,
            error.to_string(),
            "encode a sluice.v1.Event, with text in UTF-8",
        )
    })?;
    check(event, edge)
}

/// Checks one event that was decoded with its request.
///
/// # Errors
/// `EVENT_TOO_LARGE`, `EVENT_INVALID`, `PERMISSION_DENIED`.
pub fn decoded(event: pb::Event, edge: Edge<'_>) -> Result<Event, Failure> {
    size(event.encoded_len())?;
    check(event, edge)
}

fn check(mut event: pb::Event, edge: Edge<'_>) -> Result<Event, Failure> {
    edge.privacy.apply(&mut event)?;
    let named = std::mem::take(&mut event.topic);
    let mut checked = validate::event(event, &edge.caller.tenant, edge.now)?;
    let topic = edge.routing.of(&checked, &named, edge.caller)?;
    let shape = match &mut checked {
        Checked::Custom(record) => Some(custom(record, edge)?),
        _ => None,
    };
    Ok(Event { checked, topic, shape })
}

/// Checks the record of a custom type, and takes card numbers out of it where they are to be masked.
fn custom(record: &mut CustomRecord, edge: Edge<'_>) -> Result<Arc<Shape>, Failure> {
    let (shape, texts) = edge.routing.check(record)?;
    let mut changed = None;
    for text in texts {
        let range = text.range.start + PREFIX_BYTES..text.range.end + PREFIX_BYTES;
        // The check has seen that it is UTF-8.
        let mut plain = String::from_utf8_lossy(&record.record[range.clone()]).into_owned();
        let field = || format!("custom.record.{}", text.field);
        if edge.privacy.text(field, &mut plain)? {
            // Masking leaves the length, and so the record's form.
            changed.get_or_insert_with(|| record.record.to_vec())[range].copy_from_slice(plain.as_bytes());
        }
    }
    if let Some(changed) = changed {
        record.record = changed.into();
    }
    Ok(shape)
}

fn size(bytes: usize) -> Result<(), Failure> {
    if bytes <= MAX_EVENT_BYTES {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::EventTooLarge,
        format!("the event has {bytes} bytes, more than {MAX_EVENT_BYTES}"),
        "shorten its attributes and texts",
    )
    .fact("bytes", bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::route::Table;

    fn code(bytes: &[u8]) -> ErrorCode {
        let metrics = sluice_kafka::Metrics::default();
        let edge = Edge {
            caller: &Caller::of("dev"),
            now: 0,
            privacy: &Privacy::default(),
            routing: &Routing::new(&Table::default(), &sluice_kafka::Topics::new(""), "", &metrics),
        };
        event(bytes, edge).expect_err("refused").code()
    }

    #[test]
    fn each_kind_of_bad_event_has_its_code() {
        assert_eq!(code(b"\xff\xff\xff"), ErrorCode::EventUnreadable);
        // Field 1, two bytes that are not UTF-8.
        assert_eq!(code(b"\x0a\x02\xc3\x28"), ErrorCode::EventUnreadable);
        assert_eq!(code(b""), ErrorCode::EventInvalid);
        assert_eq!(code(&vec![0; MAX_EVENT_BYTES + 1]), ErrorCode::EventTooLarge);
    }
}
