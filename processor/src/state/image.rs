//! Owns a partition's state as bytes: what a snapshot holds, and what makes one fit to be restored.
//!
//! Made by the lane between two batches; sealed, kept and found again by [`crate::snapshot`]; restored in
//! [`crate::takeover`]. An image is a version, the values below in postcard's encoding, and a checksum over all of it. What
//! is remembered does not depend on the rules, so that they are only named: their documents are in a topic of their own.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Key, Name, Seen, State};
use crate::account::Account;
use crate::merchant::Merchant;
use crate::rules::RuleSet;

/// Counted up whenever the encoding of anything in an image changes; a test holds the encoding fast.
const VERSION: u16 = 3;
const MAGIC: &[u8; 6] = b"sluice";
const CHECKSUM_BYTES: usize = 4;
/// Fewer bytes than any payment, account or merchant takes: what a count may promise at most.
const MIN_ENTRY_BYTES: usize = 8;

/// Why bytes are no image, or one that cannot be used here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Cut off, or something else.
    #[error("it is not a snapshot")]
    Foreign,
    /// Written by another version of this program, which may remember other things.
    #[error("it has version {0}, and this program reads version {VERSION}")]
    Version(u16),
    /// Damaged.
    #[error("its checksum is wrong")]
    Checksum,
    /// Of another topic or partition.
    #[error("it is of partition {partition} of {topic} in cluster {cluster}")]
    Origin {
        /// Kafka's name for the cluster.
        cluster: String,
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
    },
    /// Made under another option.
    #[error("it was made with an allowed lateness of {0} us")]
    Lateness(i64),
    /// The rule set that was in force then is not the one that the topic of rule sets tells.
    #[error("it was made under rule set {0}, which is not known to have been in force there")]
    Rules(String),
    /// The checksum is right and the content is not: a mistake of this program.
    #[error("it cannot be read: {0}")]
    Malformed(#[from] postcard::Error),
    /// The same, where bytes are left over.
    #[error("{0} bytes are left over")]
    Trailing(usize),
}

/// The partition that a state belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Kafka's name for the cluster.
    pub(crate) cluster: String,
    /// The payments topic, with its prefix.
    pub(crate) topic: String,
    pub(crate) partition: i32,
}

/// A state as bytes, and the offset of the first record that is not in it.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) partition: i32,
    pub(crate) next: i64,
    bytes: Vec<u8>,
}

/// What comes before the payments and the accounts.
#[derive(Serialize, Deserialize)]
struct Header {
    origin: Origin,
    next: i64,
    lateness_us: i64,
    /// Version of the rule set in force.
    rules: String,
    stream_time: i64,
    swept_seen_at: i64,
    swept_past_at: i64,
    seen: u64,
    accounts: u64,
    merchants: u64,
}

impl Image {
    /// How many bytes it has.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds the checksum. Not done where the image is made, because the lane waits there.
    pub(crate) fn seal(self) -> Vec<u8> {
        let mut bytes = self.bytes;
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

impl State {
    /// The state as of its last merge; nothing may have been observed since. `size_hint` is about how many bytes it takes.
    pub(crate) fn image(&self, origin: Origin, next: i64, size_hint: usize) -> Result<Image, Error> {
        debug_assert!(self.undo.steps.is_empty(), "an image is made between batches");
        let Self {
            lateness_us,
            rules,
            stream_time,
            seen,
            accounts,
            merchants,
            swept_seen_at,
            swept_past_at,
            undo: _,
        } = self;
        let partition = origin.partition;
        let mut bytes = Vec::with_capacity(size_hint);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let header = Header {
            origin,
            next,
            lateness_us: *lateness_us,
            rules: rules.version().to_string(),
            stream_time: *stream_time,
            swept_seen_at: *swept_seen_at,
            swept_past_at: *swept_past_at,
            seen: seen.len() as u64,
            accounts: accounts.len() as u64,
            merchants: merchants.len() as u64,
        };
        bytes = postcard::to_extend(&header, bytes)?;
        for payment in seen {
            bytes = postcard::to_extend(&payment, bytes)?;
        }
        for account in accounts {
            bytes = postcard::to_extend(&account, bytes)?;
        }
        for merchant in merchants {
            bytes = postcard::to_extend(&merchant, bytes)?;
        }
        Ok(Image { partition, next, bytes })
    }

    /// The state of a sealed image, and the offset of the first record that is not in it. `rules_at` tells the rule set
    /// in force at that offset, if it can.
    pub(crate) fn from_image(
        image: &[u8],
        origin: &Origin,
        lateness_us: i64,
        rules_at: impl FnOnce(i64) -> Option<Arc<RuleSet>>,
    ) -> Result<(Self, i64), Error> {
        let mut rest = content(image)?;
        let header: Header = take(&mut rest)?;
        if header.origin != *origin {
            let Origin {
                cluster,
                topic,
                partition,
            } = header.origin;
            return Err(Error::Origin {
                cluster,
                topic,
                partition,
            });
        }
        if header.lateness_us != lateness_us {
            return Err(Error::Lateness(header.lateness_us));
        }
        let rules = rules_at(header.next).filter(|rules| *rules.version() == *header.rules);
        let mut state = Self::new(lateness_us, rules.ok_or(Error::Rules(header.rules))?);
        state.stream_time = header.stream_time;
        state.swept_seen_at = header.swept_seen_at;
        state.swept_past_at = header.swept_past_at;
        state.seen.reserve(room(header.seen, rest));
        for _ in 0..header.seen {
            let (key, seen): (Key, Seen) = take(&mut rest)?;
            state.seen.insert(key, seen);
        }
        state.accounts.reserve(room(header.accounts, rest));
        for _ in 0..header.accounts {
            let (key, account): (Name, Box<Account>) = take(&mut rest)?;
            state.accounts.insert(key, account);
        }
        state.merchants.reserve(room(header.merchants, rest));
        for _ in 0..header.merchants {
            let (key, merchant): (Name, Merchant) = take(&mut rest)?;
            state.merchants.insert(key, merchant);
        }
        match rest.len() {
            0 => Ok((state, header.next)),
            left => Err(Error::Trailing(left)),
        }
    }
}

/// What stands between version and checksum, after checking both.
fn content(image: &[u8]) -> Result<&[u8], Error> {
    let rest = image.strip_prefix(MAGIC).ok_or(Error::Foreign)?;
    let (version, rest) = rest.split_first_chunk().ok_or(Error::Foreign)?;
    let version = u16::from_le_bytes(*version);
    if version != VERSION {
        return Err(Error::Version(version));
    }
    let (content, checksum) = rest.split_last_chunk::<CHECKSUM_BYTES>().ok_or(Error::Foreign)?;
    let covered = &image[..image.len() - CHECKSUM_BYTES];
    if crc32fast::hash(covered) != u32::from_le_bytes(*checksum) {
        return Err(Error::Checksum);
    }
    Ok(content)
}

fn take<T: DeserializeOwned>(rest: &mut &[u8]) -> Result<T, Error> {
    let (value, left) = postcard::take_from_bytes(rest)?;
    *rest = left;
    Ok(value)
}

/// Room for so many entries, if the bytes can hold them.
fn room(entries: u64, bytes: &[u8]) -> usize {
    usize::try_from(entries).map_or(0, |entries| entries.min(bytes.len() / MIN_ENTRY_BYTES))
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
