//! Owns the first stage of an event: from the bytes that a client sent to an event that may be stored.
//!
//! Comes after `admit`, before `encode`. One bad event is its own error and nobody else's.

use prost::Message;
use sluice_proto::bounds::MAX_EVENT_BYTES;
use sluice_proto::event::Checked;
use sluice_proto::pb::{self, ErrorCode};
use sluice_proto::validate;

use crate::privacy::Privacy;
use crate::status::Failure;

/// Reads and checks one event. `now` is in microseconds since the Unix epoch.
///
/// # Errors
/// `EVENT_TOO_LARGE`, `EVENT_UNREADABLE`, `EVENT_INVALID`.
pub fn event(bytes: &[u8], tenant: &str, now: i64, privacy: &Privacy) -> Result<Checked, Failure> {
    size(bytes.len())?;
    let mut event = pb::Event::decode(bytes).map_err(|error| {
        Failure::new(
            ErrorCode::EventUnreadable,
            error.to_string(),
            "encode a sluice.v1.Event, with text in UTF-8",
        )
    })?;
    privacy.apply(&mut event)?;
    Ok(validate::event(event, tenant, now)?)
}

/// Checks one event that was decoded with its request.
///
/// # Errors
/// `EVENT_TOO_LARGE`, `EVENT_INVALID`.
pub fn decoded(mut event: pb::Event, tenant: &str, now: i64, privacy: &Privacy) -> Result<Checked, Failure> {
    size(event.encoded_len())?;
    privacy.apply(&mut event)?;
    Ok(validate::event(event, tenant, now)?)
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

    fn code(bytes: &[u8]) -> ErrorCode {
        event(bytes, "dev", 0, &Privacy::default()).expect_err("refused").code()
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
