//! Owns who may call: from a request's credentials to its [`Caller`], and what the caller may do.
//!
//! Comes before the services, as an interceptor; what comes after it finds the [`Caller`] in the request's extensions.
//! `keys` reads the file of principals, `jwt` checks signed tokens.

mod jwt;
mod keys;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;
use serde::Deserialize;
use sluice_proto::pb::ErrorCode;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;

use crate::accept::Peer;
use crate::status::Failure;
use keys::Known;

/// The key that works without a keys file, on loopback only.
pub const DEV_KEY: &str = "sluice-dev-key";
/// The tenant of [`DEV_KEY`].
pub const DEV_TENANT: &str = "dev";
/// Longest credentials that are looked at, in bytes: a signed token with some claims.
pub const MAX_CREDENTIALS_BYTES: usize = 8 * 1_024;

const REMEDY: &str = "send the metadata authorization: Bearer KEY, or x-api-key: KEY, or a client certificate";

/// The principals cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Anybody could connect, and everybody knows the development key.
    #[error(
        "listening on {0} needs API keys: set SLUICE_API_KEYS to a file of [[key]] entries, or listen on a loopback \
         address"
    )]
    Open(SocketAddr),
    /// The file cannot be read.
    #[error("cannot read the API keys in {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file makes no sense.
    #[error("the API keys in {path} are invalid: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Publish events.
    Publish,
    /// Receive decisions.
    Subscribe,
    /// Publish a payment and wait for its decision.
    Decide,
    /// Read the tenant's part of the audit log.
    Audit,
    /// End reviews and take payments back.
    Review,
}

impl Role {
    /// What a principal has unless its entry says otherwise. Whoever may move money or read the audit log is named.
    pub const USUAL: [Self; 3] = [Self::Publish, Self::Subscribe, Self::Decide];
    /// What the development key has: everything but the audit log.
    pub const DEVELOPMENT: [Self; 4] = [Self::Publish, Self::Subscribe, Self::Decide, Self::Review];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Decide => "decide",
            Self::Audit => "audit",
            Self::Review => "review",
        })
    }
}

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The tenant that owns everything the caller publishes and sees.
    pub tenant: Arc<str>,
    /// The principal, as quotas and logs name it. Never a secret.
    pub name: Arc<str>,
    /// What it may do.
    pub roles: Arc<[Role]>,
    /// The topics that it may publish to, without the installation's prefix, and that its events may name; `None` for
    /// every topic of its events' types, and no other.
    pub topics: Option<Arc<[String]>>,
    /// When its token expires; a key or a certificate has no such time here.
    pub expires: Option<SystemTime>,
    /// Cancelled when the principal is taken out of the file.
    pub revoked: CancellationToken,
}

impl Caller {
    /// Checks that the caller has a role.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`, with the role.
    pub fn must(&self, role: Role) -> Result<(), Failure> {
        if self.roles.contains(&role) {
            return Ok(());
        }
        let reason = format!("the caller lacks the role {role}");
        let failure = Failure::new(ErrorCode::PermissionDenied, reason, "call with a principal that has it");
        Err(failure.fact("role", role))
    }

    /// Whether the caller may publish to a topic, which is named without the installation's prefix.
    pub fn may_write(&self, topic: &str) -> bool {
        let listed = |topics: &Arc<[String]>| topics.iter().any(|listed| listed == topic);
        self.topics.as_ref().is_none_or(listed)
    }

    /// Whether both may do the same.
    pub fn may_as(&self, other: &Self) -> bool {
        self.roles == other.roles && self.topics == other.topics
    }

    /// Whether both are the same principal, so that the one's credentials may follow the other's on a stream.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.tenant == other.tenant && self.name == other.name
    }
}

#[cfg(test)]
impl Caller {
    /// Somebody of a tenant who may do everything.
    pub(crate) fn of(tenant: &str) -> Self {
        keys::caller(tenant, tenant, keys::May::default())
    }
}

/// All principals, as the file has them now.
pub struct Auth {
    path: Option<PathBuf>,
    known: RwLock<Arc<Known>>,
}

impl Auth {
    /// The principals of a file, or the development key where there is none and only this machine can connect.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(path: Option<&Path>, listen: SocketAddr) -> Result<Self, Error> {
        if path.is_none() && !listen.ip().is_loopback() {
            return Err(Error::Open(listen));
        }
        let known = path.map_or_else(|| Ok(Known::development()), |path| Known::read(path, None))?;
        Ok(Self {
            path: path.map(Path::to_owned),
            known: RwLock::new(Arc::new(known)),
        })
    }

    /// Reads the file again. Principals that are gone or have changed are revoked, and their streams end. Blocks.
    ///
    /// # Errors
    /// See [`Error`]: then everything stays as it was.
    pub fn reload(&self) -> Result<(), Error> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let current = self.known.read().clone();
        let mut known = Known::read(path, Some(&current))?;
        known.follow(&current);
        *self.known.write() = Arc::new(known);
        Ok(())
    }

    /// The caller of a request: by `authorization: Bearer KEY-OR-TOKEN`, by `x-api-key: KEY`, or by the certificate of its
    /// connection.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with what is missing, unknown or no longer valid.
    pub fn authenticate(&self, metadata: &MetadataMap, peer: Option<&Peer>) -> Result<Caller, Failure> {
        let known = self.known.read().clone();
        match (metadata.get("authorization"), metadata.get("x-api-key")) {
            (Some(value), _) => {
                let (scheme, credentials) = split_once(value.as_bytes(), b' ')
                    .ok_or_else(|| refused("authorization is not of the form Bearer KEY"))?;
                if !scheme.eq_ignore_ascii_case(b"bearer") {
                    return Err(refused("authorization is not of the scheme Bearer"));
                }
                by_credentials(&known, credentials)
            }
            (None, Some(value)) => by_credentials(&known, value.as_bytes()),
            (None, None) => match peer.and_then(|peer| peer.certificate.as_deref()) {
                Some(certificate) => known
                    .by_certificate(certificate)
                    .ok_or_else(|| refused("the client certificate belongs to no principal")),
                None => Err(refused("the credentials are missing")),
            },
        }
    }

    /// The caller of credentials that come inside of a stream.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`.
    pub fn by_credentials(&self, credentials: &str) -> Result<Caller, Failure> {
        by_credentials(&self.known.read().clone(), credentials.as_bytes())
    }
}

fn by_credentials(known: &Known, credentials: &[u8]) -> Result<Caller, Failure> {
    if credentials.len() > MAX_CREDENTIALS_BYTES {
        return Err(refused("the API key is unknown"));
    }
    if let Some(caller) = known.by_key(credentials) {
        return Ok(caller);
    }
    match std::str::from_utf8(credentials) {
        Ok(token) if token.split('.').count() == 3 => known.by_token(token).map_err(|error| refused(error.as_str())),
        _ => Err(refused("the API key is unknown")),
    }
}

pub(crate) fn refused(reason: &'static str) -> Failure {
    Failure::new(ErrorCode::Unauthenticated, reason, REMEDY)
}

fn split_once(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == separator)?;
    Some((&bytes[..at], bytes[at + 1..].trim_ascii()))
}

#[cfg(test)]
#[path = "auth/tests.rs"]
mod tests;
