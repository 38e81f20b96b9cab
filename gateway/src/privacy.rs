//! Owns what becomes of personal data before an event is stored: configured fields are masked, hashed with a key or dropped,
//! and a primary account number (PAN) in a text is refused or masked.
//!
//! Comes inside of `decode`, between reading an event and checking it, so that what is stored is what was checked.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use serde::Deserialize;
use sluice_proto::pb::event::Payload;
use sluice_proto::pb::{self, ErrorCode};
use uuid::Uuid;
use uuid::fmt::{Hyphenated, Simple};

use crate::status::Failure;

/// Digits of a primary account number, by ISO/IEC 7812.
pub const PAN_DIGITS: RangeInclusive<usize> = 13..=19;
/// Fewest digits of such a number's first group and of every other one, where other numbers are joined to it. Cards have
/// 4-4-4-4, 4-4-4-4-3, 4-6-5, 4-6-4 or 6-13; the groups of dates, times and lists of small numbers are shorter.
const GROUP_DIGITS: [usize; 2] = [4, 3];
/// Fewest bytes of the key that fields are hashed with.
pub const MIN_KEY_BYTES: usize = 32;
/// Characters at the end of a field that masking leaves.
pub const UNMASKED: usize = 4;
/// Bytes of a keyed hash that stand for a field, in hexadecimal digits: enough that two values never meet.
pub const HASH_BYTES: usize = 16;

/// The rules cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the privacy rules in {path} cannot be used: {reason}")]
pub struct Error {
    path: PathBuf,
    reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    /// Leave the last characters.
    Mask,
    /// Replace by a keyed hash: equal values stay equal.
    Hash,
    /// Leave nothing.
    Drop,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Pan {
    #[default]
    Refuse,
    Mask,
    Allow,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    pan: Pan,
    hash_key_file: Option<PathBuf>,
    #[serde(default)]
    field: Vec<Field>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Field {
    name: String,
    action: Action,
}

/// Fields that rules may name, beside `user_action.attributes.KEY` and the like.
const FIELDS: [&str; 6] = [
    "payment.terminal_id",
    "payment.device_id",
    "payment.location",
    "payment.location.place",
    "user_action.device_id",
    "system.message",
];
const ATTRIBUTES: [&str; 3] = ["user_action.attributes.", "system.attributes.", "metric.attributes."];

/// The rules.
#[derive(Default)]
pub struct Privacy {
    pan: Pan,
    key: Option<hmac::Key>,
    fields: BTreeMap<String, Action>,
}

impl Privacy {
    /// Reads the rules of a file; without one, account numbers in texts are refused and nothing else is changed.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let invalid = |reason: String| Error {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
        let file: File = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        let key = match &file.hash_key_file {
            None => None,
            Some(name) => {
                let bytes = std::fs::read(path.parent().unwrap_or(path).join(name));
                let bytes = bytes.map_err(|error| invalid(format!("hash_key_file: {error}")))?;
                if bytes.len() < MIN_KEY_BYTES {
                    return Err(invalid(format!("hash_key_file has fewer than {MIN_KEY_BYTES} bytes")));
                }
                Some(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
            }
        };
        let mut fields = BTreeMap::new();
        for Field { name, action } in file.field {
            let is_attribute = ATTRIBUTES.iter().any(|prefix| name.starts_with(prefix));
            if !FIELDS.contains(&name.as_str()) && !is_attribute {
                return Err(invalid(format!("{name} is no field that a rule may name")));
            }
            if name == "payment.location" && action != Action::Drop {
                return Err(invalid("payment.location can only be dropped".to_owned()));
            }
            if action == Action::Hash && key.is_none() {
                return Err(invalid(format!(
                    "{name} is to be hashed, and there is no hash_key_file"
                )));
            }
            fields.insert(name, action);
        }
        Ok(Self {
            pan: file.pan,
            key,
            fields,
        })
    }

    /// Changes the event as the rules say.
    ///
    /// # Errors
    /// `EVENT_INVALID` for an account number in a text, without the number.
    pub fn apply(&self, event: &mut pb::Event) -> Result<(), Failure> {
        match &mut event.payload {
            Some(Payload::Payment(payment)) => {
                self.field("payment.terminal_id", &mut payment.terminal_id);
                self.field("payment.device_id", &mut payment.device_id);
                if self.fields.contains_key("payment.location") {
                    payment.location = None;
                }
                if let Some(location) = &mut payment.location {
                    self.field("payment.location.place", &mut location.place);
                    self.text(|| "payment.location.place", &mut location.place)?;
                }
            }
            Some(Payload::UserAction(action)) => {
                self.field("user_action.device_id", &mut action.device_id);
                self.attributes("user_action.attributes", &mut action.attributes)?;
            }
            Some(Payload::System(system)) => {
                self.field("system.message", &mut system.message);
                self.text(|| "system.message", &mut system.message)?;
                self.attributes("system.attributes", &mut system.attributes)?;
            }
            Some(Payload::Metric(metric)) => self.attributes("metric.attributes", &mut metric.attributes)?,
            // Their texts are known once the record is checked against its schema.
            Some(Payload::Custom(_)) | None => {}
        }
        Ok(())
    }

    fn attributes(&self, name: &'static str, attributes: &mut HashMap<String, String>) -> Result<(), Failure> {
        if !self.fields.is_empty() {
            attributes.retain(|key, value| match self.fields.get(&format!("{name}.{key}")) {
                Some(Action::Drop) => false,
                Some(action) => {
                    self.change(*action, value);
                    true
                }
                None => true,
            });
        }
        for (key, value) in attributes {
            // A masked key could be another one's, so that this is refused even where texts are masked.
            if self.pan != Pan::Allow && account_number(key, 0).is_some() {
                return Err(refusal(name));
            }
            self.text(|| name, value)?;
        }
        Ok(())
    }

    fn field(&self, name: &str, value: &mut String) {
        if let Some(action) = self.fields.get(name).filter(|_| !value.is_empty()) {
            self.change(*action, value);
        }
    }

    fn change(&self, action: Action, value: &mut String) {
        match (action, &self.key) {
            (Action::Mask, _) => {
                let kept = value.chars().count().saturating_sub(UNMASKED);
                *value = value
                    .chars()
                    .enumerate()
                    .map(|(at, c)| if at < kept { '*' } else { c })
                    .collect();
            }
            (Action::Hash, Some(key)) => {
                let tag = hmac::sign(key, value.as_bytes());
                *value = tag.as_ref()[..HASH_BYTES]
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
            }
            // Hashing without a key is refused when the rules are read.
            (Action::Drop | Action::Hash, _) => value.clear(),
        }
    }

    /// Looks for account numbers in a text, and says whether it changed it. Changing leaves the text's length. A UUID has
    /// none, however its digits fall.
    ///
    /// # Errors
    /// As [`Privacy::apply`].
    pub fn text<F>(&self, name: impl Fn() -> F, text: &mut String) -> Result<bool, Failure>
    where
        F: Into<Box<str>>,
    {
        if self.pan == Pan::Allow {
            return Ok(false);
        }
        let mut from = 0;
        while let Some(range) = account_number(text, from) {
            if self.pan == Pan::Refuse {
                return Err(refusal(name()));
            }
            from = range.end;
            let masked = text[range.clone()].replace(|c: char| c.is_ascii_digit(), "*");
            text.replace_range(range, &masked);
        }
        Ok(from > 0)
    }
}

/// The refusal of a text, which does not repeat it.
fn refusal(field: impl Into<Box<str>>) -> Failure {
    let remedy = "never send card numbers in texts";
    let reason = "looks like it contains a primary account number";
    Failure::new(ErrorCode::EventInvalid, reason, remedy).field(field)
}

/// Where a text has, at `from` or after it, a number of 13 to 19 digits that begins as card numbers do and passes Luhn's
/// check. It is made of whole groups of digits, joined by single spaces or hyphens; of those that begin with the same
/// group it is the longest. `from` is not within a group. Looking is linear in the text's length and allocates nothing.
fn account_number(text: &str, from: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let mut at = from;
    loop {
        let start = at + bytes[at..].iter().position(u8::is_ascii_digit)?;
        let found = longest(bytes, start).filter(|end| !is_in_uuid(bytes, start..*end));
        if let Some(end) = found {
            return Some(start..end);
        }
        at = start + leading_digits(&bytes[start..]);
    }
}

/// The end of the longest account number that begins with the group of digits at `start`. Where other numbers are joined
/// to it, its groups must be as long as [`GROUP_DIGITS`] says; where none is, any will do.
fn longest(bytes: &[u8], start: usize) -> Option<usize> {
    // The dates of this century begin with 20, and no card number does.
    if !(b'2'..=b'6').contains(&bytes[start]) || bytes[start..].starts_with(b"20") {
        return None;
    }
    let opens_run = !matches!(&bytes[..start], [.., digit, b' ' | b'-'] if digit.is_ascii_digit());
    let mut is_usual = true;
    let (mut digits, mut sums) = (0_usize, [0_u32; 2]);
    let (mut at, mut found) = (start, None);
    loop {
        let group = &bytes[at..at + leading_digits(&bytes[at..])];
        is_usual &= group.len() >= GROUP_DIGITS[usize::from(digits > 0)];
        if digits + group.len() > *PAN_DIGITS.end() || !(is_usual || opens_run) {
            return found;
        }
        for digit in group {
            let digit = u32::from(digit - b'0');
            // Luhn doubles every second digit, counted from the number's end, which is not known yet: so there is a sum
            // for an even number of digits, and one for an odd number.
            sums[digits % 2] += if digit > 4 { 2 * digit - 9 } else { 2 * digit };
            sums[1 - digits % 2] += digit;
            digits += 1;
        }
        at += group.len();
        let ends_run = !matches!(&bytes[at..], [b' ' | b'-', digit, ..] if digit.is_ascii_digit());
        let is_apart = is_usual || (opens_run && ends_run);
        if is_apart && PAN_DIGITS.contains(&digits) && sums[digits % 2].is_multiple_of(10) {
            found = Some(at);
        }
        if ends_run {
            return found;
        }
        at += 1;
    }
}

fn leading_digits(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

/// Whether a part of a text lies in a UUID, whose digits fall as they like.
fn is_in_uuid(bytes: &[u8], part: Range<usize>) -> bool {
    [Hyphenated::LENGTH, Simple::LENGTH].into_iter().any(|length| {
        let last = bytes.len().min(part.start + length);
        let mut around = bytes[part.end.saturating_sub(length)..last].windows(length);
        around.any(|uuid| Uuid::try_parse_ascii(uuid).is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<Privacy, Error> {
        let directory = std::env::temp_dir().join(format!("sluice-privacy-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).expect("directory");
        std::fs::write(directory.join("key"), [7; MIN_KEY_BYTES]).expect("write");
        std::fs::write(directory.join("rules"), text).expect("write");
        let loaded = Privacy::load(Some(&directory.join("rules")));
        std::fs::remove_dir_all(&directory).expect("remove");
        loaded
    }

    fn system(message: &str) -> pb::Event {
        pb::Event {
            payload: Some(Payload::System(pb::SystemEvent {
                message: message.to_owned(),
                attributes: [("mail".to_owned(), "a@example.org".to_owned())].into(),
                ..pb::SystemEvent::default()
            })),
            ..pb::Event::default()
        }
    }

    fn of(event: &pb::Event) -> &pb::SystemEvent {
        match &event.payload {
            Some(Payload::System(system)) => system,
            _ => panic!("no system event"),
        }
    }

    #[test]
    fn account_numbers_are_found_and_other_numbers_are_not() {
        for text in [
            "4111111111111111",
            "card 4111 1111 1111 1111.",
            "x5500-0000-0000-0004",
            "é378282246310005",
            "41 11 11 11 11 11 11 11",
            "2026-11-20 4111111111111111",
            "4111111111111111 123",
            "4111-1111-1111-1111-2026-11-20",
            "exp 12/27 4111 1111 1111 1111",
            "3782 822463 10005 2027 123",
            "1 4111111111111111",
        ] {
            assert!(account_number(text, 0).is_some(), "{text}");
        }
        for text in [
            "",
            "4111111111111112",
            "1234567890123",
            "41111111",
            "9111111111111111",
            "order 20260101",
            // Some of their digits pass the check.
            "20261120123009",
            "2026-11-20 2026-11-21 2026-11-22",
            "10 20 30 40 50 60 70 80 90 100 110 120",
            "3 5 8 13 21 34 55 89 144 233 377",
            "22 33 44 55 66 77 88 99 11 22 33",
        ] {
            assert!(account_number(text, 0).is_none(), "{text}");
        }
    }

    #[test]
    fn the_longest_of_the_numbers_that_begin_together_is_found() {
        let text = "to 6304 0000 0000 0000 000 17";
        assert_eq!(account_number(text, 0), Some(3..26));
    }

    #[test]
    fn every_account_number_is_masked_and_its_neighbours_are_not() {
        let rules = rules("pan = \"mask\"").expect("valid");
        let mut event = system("2026-11-20 4111111111111111 5500 0000 0000 0004 17");
        let masked = "2026-11-20 **************** **** **** **** **** 17";
        rules.apply(&mut event).expect("masked");
        assert_eq!(of(&event).message, masked);
        let mut event = system(&"4111111111111111 ".repeat(1_000));
        rules.apply(&mut event).expect("masked");
        assert_eq!(of(&event).message, "**************** ".repeat(1_000));
    }

    #[test]
    fn an_account_number_in_a_key_is_refused_unless_told() {
        let attributes = HashMap::from([("card 4111111111111111".to_owned(), "1".to_owned())]);
        let mut event = pb::Event {
            payload: Some(Payload::Metric(pb::MetricEvent {
                attributes,
                ..pb::MetricEvent::default()
            })),
            ..pb::Event::default()
        };
        for text in ["", "pan = \"mask\""] {
            let refused = rules(text).expect("valid").apply(&mut event).expect_err("refused");
            assert_eq!(refused.code(), ErrorCode::EventInvalid);
            assert!(!refused.to_string().contains("4111"), "{refused}");
        }
        rules("pan = \"allow\"")
            .expect("valid")
            .apply(&mut event)
            .expect("allowed");
    }

    #[test]
    fn an_account_number_is_refused_unless_told_and_never_repeated() {
        let mut event = system("paid with 4111111111111111");
        let refused = Privacy::default().apply(&mut event).expect_err("refused");
        assert_eq!(refused.code(), ErrorCode::EventInvalid);
        assert!(!refused.to_string().contains("4111"), "{refused}");
        rules("pan = \"mask\"")
            .expect("valid")
            .apply(&mut event)
            .expect("masked");
        assert_eq!(of(&event).message, "paid with ****************");
        let mut event = system("paid with 4111111111111111");
        rules("pan = \"allow\"")
            .expect("valid")
            .apply(&mut event)
            .expect("allowed");
        assert!(of(&event).message.contains("4111"));
    }

    #[test]
    fn a_uuid_is_no_account_number() {
        assert!(account_number("4-222222222222", 0).is_some());
        let uuid = "aaaaaaaa-aaaa-4aaa-aaa4-222222222222";
        for text in [uuid, &format!("device-{uuid} was seen")] {
            Privacy::default().apply(&mut system(text)).expect("a UUID passes");
        }
        let beside = &mut system(&format!("{uuid} 4111111111111111"));
        assert!(Privacy::default().apply(beside).is_err());
    }

    #[test]
    fn fields_are_masked_hashed_and_dropped() {
        let rules = rules(
            "hash_key_file = \"key\"\n[[field]]\nname = \"system.message\"\naction = \"mask\"\n\
             [[field]]\nname = \"system.attributes.mail\"\naction = \"hash\"\n\
             [[field]]\nname = \"payment.location\"\naction = \"drop\"\n",
        )
        .expect("valid");
        let mut event = system("a secret word");
        rules.apply(&mut event).expect("applied");
        assert_eq!(of(&event).message, "*********word");
        let hashed = of(&event).attributes["mail"].clone();
        assert_eq!(hashed.len(), 2 * HASH_BYTES);
        let mut again = system("");
        rules.apply(&mut again).expect("applied");
        assert_eq!(of(&again).attributes["mail"], hashed, "equal values stay equal");
        let mut payment = pb::Event {
            payload: Some(Payload::Payment(pb::PaymentEvent {
                location: Some(pb::Location::default()),
                ..pb::PaymentEvent::default()
            })),
            ..pb::Event::default()
        };
        rules.apply(&mut payment).expect("applied");
        assert!(matches!(payment.payload, Some(Payload::Payment(payment)) if payment.location.is_none()));
    }

    #[test]
    fn senseless_rules_are_refused() {
        for text in [
            "pan = \"perhaps\"",
            "hash_key_file = \"none\"",
            "[[field]]\nname = \"payment.account_id\"\naction = \"drop\"",
            "[[field]]\nname = \"payment.device_id\"\naction = \"hash\"",
            "[[field]]\nname = \"payment.location\"\naction = \"mask\"",
        ] {
            assert!(rules(text).is_err(), "{text}");
        }
    }
}
