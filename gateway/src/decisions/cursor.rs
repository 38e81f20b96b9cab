//! Owns a subscription's position in every partition of the decisions, and the token that it becomes for clients.
//!
//! Opaque to clients. Layout of version 1: the version (1 byte), the number of partitions (2 bytes), then the next offset
//! of each partition (8 bytes); all big-endian.

use sluice_proto::pb::ErrorCode;

use crate::status::Failure;

const VERSION: u8 = 1;
/// The high-watermark of a partition of which nothing was seen.
const NOTHING: i64 = -1;

/// A position in every partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Offset of the next decision to look at, by partition.
    pub next: Vec<i64>,
    /// Highest source offset seen, by partition. A decision that is not above it was seen before: the filter of the
    /// high-watermark.
    high: Vec<i64>,
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
        let first = source_offset > self.high[partition];
        if first {
            self.high[partition] = source_offset;
        }
        first
    }
}

/// The token of a position.
pub fn write(next: &[i64]) -> Vec<u8> {
    let mut token = Vec::with_capacity(1 + 2 + 8 * next.len());
    token.push(VERSION);
    token.extend(u16::try_from(next.len()).unwrap_or(u16::MAX).to_be_bytes());
    for offset in next {
        token.extend(offset.to_be_bytes());
    }
    token
}

/// The position of a token, for a topic of so many partitions.
///
/// # Errors
/// `TOKEN_INVALID`.
pub fn read(token: &[u8], partitions: usize) -> Result<Vec<i64>, Failure> {
    let refused = |reason: &'static str| {
        let remedy = "send the newest token of an earlier subscription, or choose another start";
        Failure::new(ErrorCode::TokenInvalid, reason, remedy).field("open.token")
    };
    let malformed = || refused("is not a token of this version");
    let [VERSION, rest @ ..] = token else {
        return Err(malformed());
    };
    let (count, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
    let (offsets, []) = rest.as_chunks::<8>() else {
        return Err(malformed());
    };
    let count: usize = u16::from_be_bytes(*count).into();
    let next: Vec<i64> = offsets.iter().map(|bytes| i64::from_be_bytes(*bytes)).collect();
    if next.len() != count || next.iter().any(|offset| *offset < 0) {
        return Err(malformed());
    }
    if count != partitions {
        return Err(refused("belongs to a topic with another number of partitions"));
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_position() {
        let next = vec![0, 7, i64::MAX];
        assert_eq!(read(&write(&next), 3), Ok(next));
    }

    #[test]
    fn garbage_and_other_topics_tokens_are_refused() {
        let token = write(&[1, 2]);
        assert!(read(&token, 3).is_err());
        assert!(read(&write(&[-1, 2]), 2).is_err());
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
