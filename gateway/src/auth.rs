//! Owns the API keys: who may call, and as which tenant.
//!
//! Comes before the services, as an interceptor; what comes after it finds the [`Caller`] in the request's extensions.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use sluice_proto::pb::ErrorCode;
use sluice_proto::validate;
use tonic::metadata::MetadataMap;

use crate::status::Failure;

/// The key that works without a keys file, on loopback only.
pub const DEV_KEY: &str = "sluice-dev-key";
/// The tenant of [`DEV_KEY`].
pub const DEV_TENANT: &str = "dev";
/// Shortest key of a keys file, in bytes.
pub const MIN_KEY_BYTES: usize = 12;
/// Longest key that is looked at, in bytes.
pub const MAX_KEY_BYTES: usize = 512;

/// The keys cannot be used.
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

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The tenant that owns everything the caller publishes and sees.
    pub tenant: Arc<str>,
    /// The principal, as quotas and logs name it. Never a secret.
    pub name: Arc<str>,
}

struct Known {
    key: Box<[u8]>,
    caller: Caller,
}

/// All keys. They are found by a hash with a secret seed and then compared in constant time, so that the time that an
/// answer takes tells nothing about any key.
pub struct Keys {
    seed: RandomState,
    callers: HashMap<u64, Vec<Known>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    key: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: String,
    tenant: String,
    name: Option<String>,
}

impl Keys {
    /// The keys of a file, or the development key where there is none and only this machine can connect.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(path: Option<&Path>, listen: SocketAddr) -> Result<Self, Error> {
        let mut keys = Self {
            seed: RandomState::new(),
            callers: HashMap::new(),
        };
        let Some(path) = path else {
            if !listen.ip().is_loopback() {
                return Err(Error::Open(listen));
            }
            keys.insert(DEV_KEY, DEV_TENANT, DEV_TENANT);
            return Ok(keys);
        };
        let invalid = |reason: String| Error::Invalid {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        // The parser's own words would quote the line, and with it a key.
        let file: File = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            invalid(format!(
                "line {line}: expected [[key]] entries with key = \"…\" and tenant = \"…\""
            ))
        })?;
        for (number, entry) in (1..).zip(&file.key) {
            if !(MIN_KEY_BYTES..=MAX_KEY_BYTES).contains(&entry.key.len()) {
                let reason = format!(
                    "key {number} has {} bytes, not {MIN_KEY_BYTES} to {MAX_KEY_BYTES}",
                    entry.key.len()
                );
                return Err(invalid(reason));
            }
            validate::tenant(&entry.tenant).map_err(|violation| invalid(format!("key {number}: {violation}")))?;
            let name = entry.name.clone().unwrap_or_else(|| format!("key-{number}"));
            if !keys.insert(&entry.key, &entry.tenant, &name) {
                return Err(invalid(format!("key {number} is there twice")));
            }
        }
        if file.key.is_empty() {
            return Err(invalid("there is no [[key]]".to_owned()));
        }
        Ok(keys)
    }

    fn insert(&mut self, key: &str, tenant: &str, name: &str) -> bool {
        if self.find(key.as_bytes()).is_some() {
            return false;
        }
        let hash = self.hash(key.as_bytes());
        let known = Known {
            key: key.as_bytes().into(),
            caller: Caller {
                tenant: tenant.into(),
                name: name.into(),
            },
        };
        self.callers.entry(hash).or_default().push(known);
        true
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.seed.build_hasher();
        hasher.write(key);
        hasher.finish()
    }

    fn find(&self, key: &[u8]) -> Option<&Caller> {
        let candidates = self.callers.get(&self.hash(key))?;
        let found = candidates.iter().find(|known| constant_time_eq(&known.key, key));
        found.map(|known| &known.caller)
    }

    /// The caller of a request, by `authorization: Bearer KEY` or `x-api-key: KEY`.
    ///
    /// # Errors
    /// `UNAUTHENTICATED`, with what is missing or that the key is unknown.
    pub fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Failure> {
        const REMEDY: &str = "send the metadata authorization: Bearer KEY, or x-api-key: KEY";
        let refused = |reason: &'static str| Failure::new(ErrorCode::Unauthenticated, reason, REMEDY);
        let key = match (metadata.get("authorization"), metadata.get("x-api-key")) {
            (Some(value), _) => {
                let (scheme, key) = split_once(value.as_bytes(), b' ')
                    .ok_or_else(|| refused("authorization is not of the form Bearer KEY"))?;
                if !scheme.eq_ignore_ascii_case(b"bearer") {
                    return Err(refused("authorization is not of the scheme Bearer"));
                }
                key
            }
            (None, Some(value)) => value.as_bytes(),
            (None, None) => return Err(refused("the credentials are missing")),
        };
        if key.len() > MAX_KEY_BYTES {
            return Err(refused("the API key is unknown"));
        }
        self.find(key).cloned().ok_or_else(|| refused("the API key is unknown"))
    }
}

fn split_once(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == separator)?;
    Some((&bytes[..at], bytes[at + 1..].trim_ascii()))
}

/// Compares every byte whatever the first difference; only the lengths show.
fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(name: &'static str, value: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert(name, value.parse().expect("ascii"));
        metadata
    }

    fn local() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 50051))
    }

    fn file(text: &str) -> Result<Keys, Error> {
        let path = std::env::temp_dir().join(format!("sluice-keys-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, text).expect("write");
        let keys = Keys::load(Some(&path), SocketAddr::from(([0, 0, 0, 0], 1)));
        std::fs::remove_file(&path).expect("remove");
        keys
    }

    #[test]
    fn the_development_key_works_on_loopback_only() {
        let keys = Keys::load(None, local()).expect("loopback");
        let caller = keys.authenticate(&metadata("authorization", "Bearer sluice-dev-key"));
        assert_eq!(&*caller.expect("known").tenant, "dev");
        assert!(keys.authenticate(&metadata("x-api-key", "sluice-dev-key")).is_ok());
        let open = Keys::load(None, SocketAddr::from(([0, 0, 0, 0], 50051)));
        assert!(open.err().expect("refused").to_string().contains("SLUICE_API_KEYS"));
    }

    #[test]
    fn a_file_replaces_the_development_key() {
        let keys = file("[[key]]\nkey = \"secret-of-acme\"\ntenant = \"acme\"\n").expect("valid");
        let caller = keys.authenticate(&metadata("authorization", "bearer  secret-of-acme"));
        assert_eq!(&*caller.expect("known").tenant, "acme");
        for value in [
            "Bearer sluice-dev-key",
            "Bearer secret-of-acm",
            "Bearer ",
            "Basic c2VjcmV0",
            "secret-of-acme",
        ] {
            let failure = keys.authenticate(&metadata("authorization", value)).expect_err(value);
            assert_eq!(failure.code(), ErrorCode::Unauthenticated, "{value}");
        }
        assert!(keys.authenticate(&MetadataMap::new()).is_err());
    }

    #[test]
    fn a_bad_file_is_refused_without_showing_a_key() {
        for text in [
            "",
            "key = []",
            "[[key]]\nkey = \"long-enough-key\"\n",
            "[[key]]\nkey = \"short\"\ntenant = \"acme\"\n",
            "[[key]]\nkey = \"long-enough-key\"\ntenant = \"a/b\"\n",
            "[[key]]\nkey = \"long-enough-key\"\ntenant = \"a\"\nrole = \"x\"\n",
            "[[key]]\nkey = \"long-enough-key\"\ntenant = \"a\"\n[[key]]\nkey = \"long-enough-key\"\ntenant = \"b\"\n",
            "[[key]]\nkey = \"long-enough-key\ntenant = \"acme\"\n",
        ] {
            let error = file(text).err().expect(text).to_string();
            assert!(!error.contains("long-enough-key"), "{error}");
        }
    }
}
