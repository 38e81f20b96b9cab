//! Owns a subscription's position in every partition of the decisions, and the token that it becomes for clients.
//!
//! Opaque to clients. Layout of version 2: the version (1 byte), the number of partitions (2 bytes), then for each
//! partition the next offset and the high-watermark (8 bytes each); all big-endian. Version 1 had no high-watermarks.

use sluice_kafka::fail;
use sluice_proto::pb::ErrorCode;

use crate::status::Failure;

const VERSION: u8 = 2;
const VERSION_WITHOUT_HIGH: u8 = 1;
/// The high-watermark of a partition of which nothing was seen.
pub const NOTHING: i64 = -1;

/// A position in every partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Offset of the next decision to look at, by partition.
    pub next: Vec<i64>,
    /// Highest source offset seen, by partition. A decision that is not above it was seen before: the filter of the
    /// high-watermark.
    pub high: Vec<i64>,
}

impl Cursor {
    /// At these offsets, with nothing seen.
    pub fn new(next: Vec<i64>) -> Self {
        Self {
            high: vec![NOTHING; next.len()],
            next,
        }
    }

    /// Passes a decision: `true` where it is the first one for its source offset.
    pub fn pass(&mut self, partition: usize, offset: i64, source_offset: i64) -> bool {
        self.next[partition] = self.next[partition].max(offset + 1);
        let first = source_offset > self.high[partition] || !fail::safeguard("high-watermark");
        if first {
            self.high[partition] = source_offset;
        }
        first
    }

    /// Moves on to another position, where that is ahead.
    pub fn advance(&mut self, to: &Self) {
        let ahead = |mine: &mut Vec<i64>, other: &[i64]| {
            for (mine, other) in mine.iter_mut().zip(other) {
                *mine = (*mine).max(*other);
            }
        };
        ahead(&mut self.next, &to.next);
        ahead(&mut self.high, &to.high);
    }

    /// The token of the position.
    pub fn token(&self) -> Vec<u8> {
        let mut token = Vec::with_capacity(1 + 2 + 16 * self.next.len());
        token.push(VERSION);
        token.extend(u16::try_from(self.next.len()).unwrap_or(u16::MAX).to_be_bytes());
        for (next, high) in self.next.iter().zip(&self.high) {
            token.extend(next.to_be_bytes());
            token.extend(high.to_be_bytes());
        }
        token
    }

    /// The position of a token, for a topic of so many partitions. `field` is where the client sent it.
    ///
    /// # Errors
    /// `TOKEN_INVALID`.
    pub fn read(token: &[u8], partitions: usize, field: &'static str) -> Result<Self, Failure> {
        let refused = |reason: &'static str| {
            let remedy = "send the newest token of an earlier subscription, or choose another start";
            Failure::new(ErrorCode::TokenInvalid, reason, remedy).field(field)
        };
        let malformed = || refused("is not a token of this version");
        let (version, rest) = token.split_first().ok_or_else(malformed)?;
        let (count, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
        let (numbers, []) = rest.as_chunks::<8>() else {
            return Err(malformed());
        };
        let count: usize = u16::from_be_bytes(*count).into();
        let numbers: Vec<i64> = numbers.iter().map(|bytes| i64::from_be_bytes(*bytes)).collect();
        let cursor = match *version {
            VERSION_WITHOUT_HIGH if numbers.len() == count => Self::new(numbers),
            VERSION if numbers.len() == 2 * count => Self {
                next: numbers.iter().step_by(2).copied().collect(),
                high: numbers.iter().skip(1).step_by(2).copied().collect(),
            },
            _ => return Err(malformed()),
        };
        if cursor.next.iter().any(|next| *next < 0) || cursor.high.iter().any(|high| *high < NOTHING) {
            return Err(malformed());
        }
        if count != partitions {
            return Err(refused("belongs to a topic with another number of partitions"));
        }
        Ok(cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(token: &[u8], partitions: usize) -> Result<Cursor, Failure> {
        Cursor::read(token, partitions, "open.token")
    }

    #[test]
    fn a_token_is_the_position() {
        let mut cursor = Cursor::new(vec![0, 7, i64::MAX]);
        assert_eq!(read(&cursor.token(), 3), Ok(cursor.clone()));
        assert!(cursor.pass(1, 7, 42));
        let again = read(&cursor.token(), 3).expect("valid");
        assert_eq!((again.next[1], again.high[1], again.high[0]), (8, 42, NOTHING));
    }

    #[test]
    fn a_token_without_high_watermarks_is_read() {
        let token = [&[1, 0, 1][..], &9_i64.to_be_bytes()].concat();
        assert_eq!(read(&token, 1), Ok(Cursor::new(vec![9])));
    }

    #[test]
    fn garbage_and_other_topics_tokens_are_refused() {
        let token = Cursor::new(vec![1, 2]).token();
        assert!(read(&token, 3).is_err());
        assert!(read(&Cursor::new(vec![-1, 2]).token(), 2).is_err());
        for length in 0..token.len() {
            assert!(read(&token[..length], 2).is_err(), "{length}");
        }
        assert!(read(&[&token[..], b"x"].concat(), 2).is_err());
        assert!(read(b"nonsense", 2).is_err());
    }

    #[test]
    fn a_source_offset_passes_once() {
        let mut cursor = Cursor::new(vec![0, 0]);
        assert!(cursor.pass(0, 10, 5));
        assert!(!cursor.pass(0, 12, 5));
        assert!(!cursor.pass(0, 13, 4));
        assert!(cursor.pass(0, 14, 6));
        assert!(cursor.pass(1, 3, 5));
        assert_eq!(cursor.next, [15, 4]);
    }
}
