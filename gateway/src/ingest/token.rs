//! Owns the resume token of a session: which producer it belongs to, and below which sequence number all is settled.
//!
//! Opaque to clients. Layout of version 1: the version (1 byte), the next sequence number and the epoch (8 bytes each,
//! big-endian), the length of the producer_id (1 byte), the producer_id, the tenant.

use sluice_proto::pb::ErrorCode;

use crate::status::Failure;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 1 + 8 + 8 + 1;

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

/// The token of a session in which everything below `next` is settled.
pub fn write(owner: Owner<'_>, next: u64) -> Vec<u8> {
    let mut token = Vec::with_capacity(HEAD_BYTES + owner.producer_id.len() + owner.tenant.len());
    token.push(VERSION);
    token.extend(next.to_be_bytes());
    token.extend(owner.epoch.to_be_bytes());
    // A producer_id has at most 64 bytes.
    token.push(owner.producer_id.len() as u8);
    token.extend(owner.producer_id.as_bytes());
    token.extend(owner.tenant.as_bytes());
    token
}

/// The sequence number to go on with.
///
/// # Errors
/// `TOKEN_INVALID` for what is not a token, or is another producer's, epoch's or tenant's.
pub fn read(token: &[u8], owner: Owner<'_>) -> Result<u64, Failure> {
    let refused = |reason: &'static str| {
        let remedy = "send the newest token of this producer_id and epoch, or none to begin at 1";
        Failure::new(ErrorCode::TokenInvalid, reason, remedy).field("open.resume_token")
    };
    let malformed = || refused("is not a resume token of this version");
    let [VERSION, rest @ ..] = token else {
        return Err(malformed());
    };
    let (next, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
    let (epoch, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
    let (length, rest) = rest.split_first().ok_or_else(malformed)?;
    let (producer_id, tenant) = rest.split_at_checked((*length).into()).ok_or_else(malformed)?;
    let next = u64::from_be_bytes(*next);
    if next < super::sequence::FIRST {
        return Err(malformed());
    }
    if tenant != owner.tenant.as_bytes() || producer_id != owner.producer_id.as_bytes() {
        return Err(refused("belongs to another producer_id"));
    }
    if u64::from_be_bytes(*epoch) != owner.epoch {
        return Err(refused("belongs to another epoch"));
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner<'static> = Owner {
        tenant: "acme",
        producer_id: "checkout-1",
        epoch: 7,
    };

    #[test]
    fn a_token_comes_back_to_its_owner() {
        assert_eq!(read(&write(OWNER, 42), OWNER), Ok(42));
    }

    #[test]
    fn others_tokens_and_garbage_are_refused() {
        let token = write(OWNER, 42);
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
            assert!(read(&token, other).is_err(), "{other:?}");
        }
        for length in 0..token.len() {
            assert!(read(&token[..length], OWNER).is_err(), "{length}");
        }
        assert!(read(b"garbage", OWNER).is_err());
        assert!(read(&write(OWNER, 0), OWNER).is_err());
        let failure = read(b"", OWNER).expect_err("empty");
        assert_eq!(failure.code(), ErrorCode::TokenInvalid);
    }
}
