//! Owns the resume token of a session: whose it is, which sequence numbers are settled, and since when the others may
//! have been sent. Authenticated, so that a client cannot make the gateway search what it did not cause.
//!
//! Comes from `ack`'s knowledge, goes to the client with the acks, and comes back with Open. Opaque to clients. Layout of
//! version 2: the version (1 byte), a code over all the rest (32 bytes of HMAC-SHA-256), then big-endian the next sequence
//! number, the epoch, the time since when unsettled events were sent and the time of issue in milliseconds since the Unix
//! epoch (8 bytes each), the number of settled ranges (1 byte) and for each the distance of its first number from the next
//! sequence number and its length (4 bytes each), the length of the producer_id (1 byte), the producer_id, the tenant.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::hmac;
use sluice_proto::pb::ErrorCode;

use crate::status::Failure;

/// Shortest secret, in bytes.
pub const MIN_SECRET_BYTES: usize = 32;
/// Most secrets: one that signs, and those that signed before.
pub const MAX_SECRETS: usize = 8;
/// Most settled ranges that a token carries; those that do not fit are looked for in Kafka.
pub const MAX_RANGES: usize = 32;
/// The secret that works on loopback without a file of secrets.
const DEV_SECRET: &[u8] = b"sluice-dev-token-secret-for-loopback-only";
const VERSION: u8 = 2;
/// A whole HMAC-SHA-256.
const CODE_BYTES: usize = 32;
const RANGE_BYTES: usize = 8;

/// The secrets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Anybody could connect, and everybody knows the development secret.
    #[error(
        "listening on {0} needs a secret for resume tokens: set SLUICE_TOKEN_SECRETS to a file with a random line of at \
         least {MIN_SECRET_BYTES} bytes, the same for all gateways, or listen on a loopback address"
    )]
    Open(std::net::SocketAddr),
    /// The file cannot be read.
    #[error("cannot read the token secrets in {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file makes no sense.
    #[error(
        "the token secrets in {0} are invalid: expected 1 to {MAX_SECRETS} lines of at least {MIN_SECRET_BYTES} bytes"
    )]
    Invalid(PathBuf),
}

/// Whose session it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The caller's tenant.
    pub tenant: &'a str,
    /// The session's producer, already validated.
    pub producer_id: &'a str,
    /// The producer's epoch.
    pub epoch: u64,
}

/// How far a session has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Everything below is settled.
    pub next: u64,
    /// Settled ranges above, both ends included, ascending and apart from each other.
    pub above: Vec<(u64, u64)>,
    /// Everything that is not settled was sent to Kafka at this time or later, in milliseconds since the Unix epoch.
    pub since_ms: i64,
}

/// Makes and checks tokens.
#[derive(Clone)]
pub struct Signer {
    /// The first signs, all are accepted.
    keys: Vec<hmac::Key>,
    max_age_ms: i64,
}

impl Signer {
    /// A signer with the secrets of a file, one a line, or with the development secret where only this machine can
    /// connect. Older tokens than `max_age` are refused.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(path: Option<&Path>, listen: std::net::SocketAddr, max_age: Duration) -> Result<Self, Error> {
        let Some(path) = path else {
            if !listen.ip().is_loopback() {
                return Err(Error::Open(listen));
            }
            return Ok(Self::new([DEV_SECRET], max_age));
        };
        let text = std::fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        let lines = || text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let secrets: Vec<&[u8]> = lines().filter(|line| !line.is_empty()).collect();
        let long_enough = secrets.iter().all(|secret| secret.len() >= MIN_SECRET_BYTES);
        if secrets.is_empty() || secrets.len() > MAX_SECRETS || !long_enough {
            return Err(Error::Invalid(path.to_owned()));
        }
        Ok(Self::new(secrets, max_age))
    }

    fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>, max_age: Duration) -> Self {
        let key = |secret| hmac::Key::new(hmac::HMAC_SHA256, secret);
        Self {
            keys: secrets.into_iter().map(key).collect(),
            max_age_ms: i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX),
        }
    }

    /// The token of a session that has come so far, at the time `now_ms`.
    pub fn write(&self, owner: Owner<'_>, progress: &Progress, now_ms: i64) -> Vec<u8> {
        let ranges = &progress.above[..progress.above.len().min(MAX_RANGES)];
        let names = owner.producer_id.len() + owner.tenant.len();
        let mut token = Vec::with_capacity(1 + CODE_BYTES + 4 * 8 + 2 + ranges.len() * RANGE_BYTES + names);
        token.push(VERSION);
        token.extend([0; CODE_BYTES]);
        token.extend(progress.next.to_be_bytes());
        token.extend(owner.epoch.to_be_bytes());
        token.extend(progress.since_ms.to_be_bytes());
        token.extend(now_ms.to_be_bytes());
        token.push(ranges.len() as u8);
        for (first, last) in ranges {
            // A window has at most 65,536 events.
            token.extend(((first - progress.next) as u32).to_be_bytes());
            token.extend(((last - first + 1) as u32).to_be_bytes());
        }
        // A producer_id has at most 64 bytes.
        token.push(owner.producer_id.len() as u8);
        token.extend(owner.producer_id.as_bytes());
        token.extend(owner.tenant.as_bytes());
        if let Some(key) = self.keys.first() {
            let code = hmac::sign(key, &token[1 + CODE_BYTES..]);
            token[1..=CODE_BYTES].copy_from_slice(code.as_ref());
        }
        token
    }

    /// How far the session had come.
    ///
    /// # Errors
    /// `TOKEN_INVALID` for what is not a token of ours, is another producer's, epoch's or tenant's, or is expired.
    pub fn read(&self, token: &[u8], owner: Owner<'_>, now_ms: i64) -> Result<Progress, Failure> {
        let refused = |reason: &'static str| {
            let remedy = "send the newest token of this producer_id and epoch, or none and a higher epoch";
            Failure::new(ErrorCode::TokenInvalid, reason, remedy).field("open.resume_token")
        };
        let malformed = || refused("is not a resume token of this installation and version");
        let [VERSION, rest @ ..] = token else {
            return Err(malformed());
        };
        let (code, body) = rest.split_first_chunk::<CODE_BYTES>().ok_or_else(malformed)?;
        let signed = |key: &hmac::Key| hmac::verify(key, body, code).is_ok();
        if !self.keys.iter().any(signed) {
            return Err(malformed());
        }
        let read = parse(body).ok_or_else(malformed)?;
        if read.tenant != owner.tenant.as_bytes() || read.producer_id != owner.producer_id.as_bytes() {
            return Err(refused("belongs to another producer_id"));
        }
        if read.epoch != owner.epoch {
            return Err(refused("belongs to another epoch"));
        }
        if now_ms.saturating_sub(read.issued_ms) > self.max_age_ms {
            return Err(refused("has expired").out_of_range());
        }
        Ok(read.progress)
    }
}

struct Parsed<'a> {
    progress: Progress,
    epoch: u64,
    issued_ms: i64,
    producer_id: &'a [u8],
    tenant: &'a [u8],
}

/// Takes an authentic token apart; `None` only for one of another layout.
fn parse(body: &[u8]) -> Option<Parsed<'_>> {
    let (next, rest) = body.split_first_chunk()?;
    let (epoch, rest) = rest.split_first_chunk()?;
    let (since, rest) = rest.split_first_chunk()?;
    let (issued, rest) = rest.split_first_chunk()?;
    let (count, rest) = rest.split_first()?;
    let (ranges, rest) = rest.split_at_checked(usize::from(*count) * RANGE_BYTES)?;
    let (length, rest) = rest.split_first()?;
    let (producer_id, tenant) = rest.split_at_checked((*length).into())?;
    let next = u64::from_be_bytes(*next);
    let (chunks, _) = ranges.as_chunks::<RANGE_BYTES>();
    let above = chunks.iter().map(|[a, b, c, d, e, f, g, h]| {
        let first = next + u64::from(u32::from_be_bytes([*a, *b, *c, *d]));
        (first, first + u64::from(u32::from_be_bytes([*e, *f, *g, *h])) - 1)
    });
    Some(Parsed {
        progress: Progress {
            next,
            above: above.collect(),
            since_ms: i64::from_be_bytes(*since),
        },
        epoch: u64::from_be_bytes(*epoch),
        issued_ms: i64::from_be_bytes(*issued),
        producer_id,
        tenant,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const OWNER: Owner<'static> = Owner {
        tenant: "acme",
        producer_id: "checkout-1",
        epoch: 7,
    };
    const HOUR: Duration = Duration::from_secs(3_600);
    const NOW: i64 = 1_000_000;

    fn signer(secrets: &[&'static [u8]]) -> Signer {
        Signer::new(secrets.iter().copied(), HOUR)
    }

    fn progress() -> Progress {
        Progress {
            next: 42,
            above: vec![(44, 44), (50, 70)],
            since_ms: 999_000,
        }
    }

    #[test]
    fn a_token_comes_back_to_its_owner() {
        let signer = signer(&[b"one"]);
        let token = signer.write(OWNER, &progress(), NOW);
        assert_eq!(signer.read(&token, OWNER, NOW + 1), Ok(progress()));
    }

    #[test]
    fn ranges_that_do_not_fit_are_left_out() {
        let signer = signer(&[b"one"]);
        let mut progress = progress();
        progress.above = (0..100).map(|number| (50 + 2 * number, 50 + 2 * number)).collect();
        let token = signer.write(OWNER, &progress, NOW);
        progress.above.truncate(MAX_RANGES);
        assert_eq!(signer.read(&token, OWNER, NOW), Ok(progress));
    }

    #[test]
    fn others_tokens_forged_ones_and_garbage_are_refused() {
        let signer = signer(&[b"one"]);
        let token = signer.write(OWNER, &progress(), NOW);
        for other in [
            Owner {
                tenant: "evil",
                ..OWNER
            },
            Owner {
                producer_id: "checkout-2",
                ..OWNER
            },
            Owner { epoch: 8, ..OWNER },
        ] {
            assert!(signer.read(&token, other, NOW).is_err(), "{other:?}");
        }
        for length in 0..token.len() {
            assert!(signer.read(&token[..length], OWNER, NOW).is_err(), "{length}");
        }
        for index in 0..token.len() {
            let mut forged = token.clone();
            forged[index] ^= 1;
            let failure = signer.read(&forged, OWNER, NOW).expect_err("forged");
            assert_eq!(failure.code(), ErrorCode::TokenInvalid, "{index}");
        }
        assert!(signer.read(b"garbage", OWNER, NOW).is_err());
    }

    #[test]
    fn a_secret_can_be_replaced_and_a_token_expires() {
        let (old, both, new) = (signer(&[b"one"]), signer(&[b"two", b"one"]), signer(&[b"two"]));
        let token = old.write(OWNER, &progress(), NOW);
        assert!(both.read(&token, OWNER, NOW).is_ok());
        assert!(new.read(&token, OWNER, NOW).is_err());
        assert!(new.read(&both.write(OWNER, &progress(), NOW), OWNER, NOW).is_ok());
        let hour_ms = HOUR.as_millis() as i64;
        assert!(old.read(&token, OWNER, NOW + hour_ms).is_ok());
        let expired = old.read(&token, OWNER, NOW + hour_ms + 1).expect_err("expired");
        assert!(expired.to_string().contains("expired"), "{expired}");
    }

    #[test]
    fn secrets_are_long_and_few() {
        let listen = std::net::SocketAddr::from(([0, 0, 0, 0], 1));
        assert!(matches!(Signer::load(None, listen, HOUR), Err(Error::Open(_))));
        assert!(Signer::load(None, std::net::SocketAddr::from(([127, 0, 0, 1], 1)), HOUR).is_ok());
        let path = std::env::temp_dir().join(format!("sluice-secrets-{}", uuid::Uuid::new_v4()));
        let long = "x".repeat(MIN_SECRET_BYTES);
        for (text, valid) in [
            (String::new(), false),
            ("short\n".to_owned(), false),
            (format!("{long}\n\nshort\n"), false),
            (format!("{long}\n").repeat(MAX_SECRETS + 1), false),
            (format!("{long}\n  {long}y\r\n"), true),
        ] {
            std::fs::write(&path, &text).expect("write");
            assert_eq!(Signer::load(Some(&path), listen, HOUR).is_ok(), valid, "{text:?}");
        }
        std::fs::remove_file(&path).expect("remove");
    }
}
