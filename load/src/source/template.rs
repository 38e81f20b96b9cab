//! Texts with actions in double braces, as ghz has them: `{{.RequestNumber}}`, `{{.UUID}}`, `{{randomInt 1 9}}`.
//!
//! Used by the caller's data. Each action stands alone; Go's pipelines and conditions are not known here.

use anyhow::{Context, bail, ensure};
use uuid::Uuid;

use crate::now_micros;

const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
/// Bounds of ghz's `randomString`.
const MIN_LENGTH: usize = 2;
const MAX_LENGTH: usize = 16;

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    RequestNumber,
    Uuid,
    Timestamp,
    UnixS,
    UnixMs,
    UnixNs,
    RandomString(usize, usize),
    RandomInt(i64, i64),
}

/// A text to be filled in.
#[derive(Clone, Debug)]
pub(super) struct Template {
    parts: Vec<Part>,
}

impl Template {
    /// Finds the actions in a text.
    ///
    /// # Errors
    /// When there is one that is not known.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            parts.push(Part::Text(before.to_owned()));
            let (action, after) = after.split_once("}}").context("{{ without }} in the data")?;
            parts.push(parse_action(action)?);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self { parts })
    }

    /// Whether it is the same each time.
    pub(super) fn is_constant(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }

    /// The text for an event.
    pub(super) fn fill(&self, number: u64) -> String {
        let now = now_micros();
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(words) => text.push_str(words),
                Part::RequestNumber => text.push_str(&number.to_string()),
                Part::Uuid => text.push_str(&Uuid::now_v7().to_string()),
                Part::Timestamp => text.push_str(&crate::generate::timestamp(now).to_string()),
                Part::UnixS => text.push_str(&(now / 1_000_000).to_string()),
                Part::UnixMs => text.push_str(&(now / 1_000).to_string()),
                Part::UnixNs => text.push_str(&(now * 1_000).to_string()),
                Part::RandomString(least, most) => {
                    let length = fastrand::usize(least..=most);
                    text.extend((0..length).map(|_| char::from(LETTERS[fastrand::usize(..LETTERS.len())])));
                }
                Part::RandomInt(least, most) => text.push_str(&fastrand::i64(least..=most).to_string()),
            }
        }
        text
    }
}

fn parse_action(action: &str) -> anyhow::Result<Part> {
    let action = action.trim().trim_matches('-').trim();
    let words: Vec<&str> = action.split_whitespace().collect();
    let range = |default: (i64, i64)| -> anyhow::Result<(i64, i64)> {
        let number = |word: &str| {
            word.parse::<i64>()
                .with_context(|| format!("{word:?} in {{{{{action}}}}} is not a number"))
        };
        let (least, most) = match words[1..] {
            [] => default,
            [least, most] => (number(least)?, number(most)?),
            _ => bail!("{{{{{action}}}}} needs two numbers or none"),
        };
        ensure!(least <= most, "{{{{{action}}}}} has an empty range");
        Ok((least, most))
    };
    Ok(match words.first().copied().unwrap_or_default() {
        ".RequestNumber" => Part::RequestNumber,
        ".UUID" | "newUUID" => Part::Uuid,
        ".Timestamp" => Part::Timestamp,
        ".TimestampUnix" => Part::UnixS,
        ".TimestampUnixMilli" => Part::UnixMs,
        ".TimestampUnixNano" => Part::UnixNs,
        "randomString" => {
            let (least, most) = range((MIN_LENGTH as i64, MAX_LENGTH as i64))?;
            ensure!(least >= 0, "{{{{{action}}}}} has a negative length");
            Part::RandomString(least as usize, most as usize)
        }
        "randomInt" => {
            let (least, most) = range((0, i64::from(i32::MAX)))?;
            Part::RandomInt(least, most)
        }
        _ => bail!("{{{{{action}}}}} is not known: see the loader's page for what is"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_filled_in() {
        let template =
            Template::parse(r#"{"a":"{{.RequestNumber}}","b":{{randomInt 5 5}},"c":"{{randomString 3 3}}"}"#).unwrap();
        assert!(!template.is_constant());
        let text = template.fill(42);
        assert!(text.starts_with(r#"{"a":"42","b":5,"c":""#), "{text}");
        assert_eq!(text.len(), r#"{"a":"42","b":5,"c":"xyz"}"#.len());
    }

    #[test]
    fn what_is_not_known_is_said() {
        assert!(Template::parse("{}").unwrap().is_constant());
        for bad in ["{{.Nothing}}", "{{randomInt 1}}", "{{randomInt 9 1}}", "{{.UUID"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }
}
