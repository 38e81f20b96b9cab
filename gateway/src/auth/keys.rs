//! Owns the file of principals: keys by their hashes, certificates by their names, issuers of tokens.
//!
//! Comes before `auth`, which asks it who somebody is.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use serde::Deserialize;
use sluice_proto::validate;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::jwt::{self, Issuer};
use super::{Caller, DEV_KEY, DEV_TENANT, Error, Role};

/// Bytes of a SHA-256 hash.
const HASH_BYTES: usize = 32;
/// Characters of a key's hash that name its principal where the entry has no name.
const NAME_CHARACTERS: usize = 12;

type Hash = [u8; HASH_BYTES];

/// How a certificate is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    /// By its subject's distinguished name.
    Name(String),
    /// By a DNS name, URI or e-mail address among its alternative names.
    Alternative(String),
}

/// Everybody in one version of the file.
pub(super) struct Known {
    /// By the key's hash: comparing hashes tells nothing about any key.
    keys: HashMap<Hash, Caller>,
    certificates: HashMap<Subject, Caller>,
    issuers: Vec<Issuer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    key: Vec<Key>,
    #[serde(default)]
    certificate: Vec<Certificate>,
    #[serde(default)]
    issuer: Vec<jwt::Entry>,
}

/// What a principal may do, as its entry says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct May {
    pub(super) roles: Option<Vec<Role>>,
    pub(super) topics: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    sha256: String,
    tenant: String,
    name: Option<String>,
    roles: Option<Vec<Role>>,
    topics: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Certificate {
    subject: Option<String>,
    san: Option<String>,
    tenant: String,
    name: Option<String>,
    roles: Option<Vec<Role>>,
    topics: Option<Vec<String>>,
}

impl Known {
    /// The development key alone.
    pub(super) fn development() -> Self {
        let may = May {
            roles: Some(Role::DEVELOPMENT.to_vec()),
            ..May::default()
        };
        let caller = caller(DEV_TENANT, DEV_TENANT, may);
        Self {
            keys: HashMap::from([(hash(DEV_KEY.as_bytes()), caller)]),
            certificates: HashMap::new(),
            issuers: Vec::new(),
        }
    }

    /// Reads the file, and the keys of the issuers that it names. Blocks.
    pub(super) fn read(path: &Path, older: Option<&Self>) -> Result<Self, Error> {
        let invalid = |reason: String| Error::Invalid {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        // The parser's own words would quote the line, and with it perhaps a key.
        let file: File = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            invalid(format!(
                "line {line}: expected [[key]] entries with sha256 = \"HASH OF THE KEY\" and tenant = \"…\", [[certificate]] \
                 entries with subject or san, [[issuer]] entries with issuer, audience and jwks"
            ))
        })?;
        let mut known = Self {
            keys: HashMap::new(),
            certificates: HashMap::new(),
            issuers: Vec::new(),
        };
        for (number, entry) in (1..).zip(file.key) {
            known
                .add_key(entry)
                .map_err(|reason| invalid(format!("key {number} {reason}")))?;
        }
        for (number, entry) in (1..).zip(file.certificate) {
            let added = known.add_certificate(entry);
            added.map_err(|reason| invalid(format!("certificate {number} {reason}")))?;
        }
        for (number, entry) in (1..).zip(file.issuer) {
            let older = older.map_or(&[][..], |older| &older.issuers);
            let issuer = Issuer::read(entry, path, older);
            known
                .issuers
                .push(issuer.map_err(|reason| invalid(format!("issuer {number} {reason}")))?);
        }
        if known.keys.is_empty() && known.certificates.is_empty() && known.issuers.is_empty() {
            return Err(invalid("there is no [[key]], [[certificate]] or [[issuer]]".to_owned()));
        }
        Ok(known)
    }

    fn add_key(&mut self, entry: Key) -> Result<(), String> {
        let hash = unhex(&entry.sha256)
            .ok_or("has a sha256 that is not 64 hexadecimal digits: make it with printf %s KEY | sha256sum")?;
        let tenant = tenant(&entry.tenant)?;
        let name = entry
            .name
            .unwrap_or_else(|| format!("key-{}", &entry.sha256[..NAME_CHARACTERS]));
        let may = May {
            roles: entry.roles,
            topics: entry.topics,
        };
        let caller = caller(tenant, &name, may);
        match self.keys.insert(hash, caller) {
            None => Ok(()),
            Some(_) => Err("is there twice".to_owned()),
        }
    }

    fn add_certificate(&mut self, entry: Certificate) -> Result<(), String> {
        let subject = match (entry.subject, entry.san) {
            (Some(name), None) => Subject::Name(name),
            (None, Some(name)) => Subject::Alternative(name),
            _ => return Err("needs either subject or san".to_owned()),
        };
        let named = match &subject {
            Subject::Name(name) | Subject::Alternative(name) => name.clone(),
        };
        let tenant = tenant(&entry.tenant)?;
        let may = May {
            roles: entry.roles,
            topics: entry.topics,
        };
        let caller = caller(tenant, &entry.name.unwrap_or(named), may);
        match self.certificates.insert(subject, caller) {
            None => Ok(()),
            Some(_) => Err("is there twice".to_owned()),
        }
    }

    /// Takes over, from an older version, who stays as they were, and revokes everybody else of it.
    pub(super) fn follow(&mut self, older: &Self) {
        follow(&mut self.keys, &older.keys);
        follow(&mut self.certificates, &older.certificates);
        for issuer in &older.issuers {
            if !self.issuers.iter().any(|newer| newer.is_as(issuer)) {
                issuer.revoked.cancel();
            }
        }
    }

    pub(super) fn by_key(&self, key: &[u8]) -> Option<Caller> {
        self.keys.get(&hash(key)).cloned()
    }

    /// The principal of a certificate that the connection has verified, by its alternative names, then by its subject.
    pub(super) fn by_certificate(&self, der: &[u8]) -> Option<Caller> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        let alternatives = alternatives.iter().flat_map(|names| &names.value.general_names);
        let found = alternatives.filter_map(text_of).find_map(|name| {
            let subject = Subject::Alternative(name.to_owned());
            self.certificates.get(&subject)
        });
        let by_name = || self.certificates.get(&Subject::Name(certificate.subject().to_string()));
        found.or_else(by_name).cloned()
    }

    pub(super) fn by_token(&self, token: &str) -> Result<Caller, jwt::Invalid> {
        jwt::check(&self.issuers, token)
    }
}

fn follow<K: std::hash::Hash + Eq>(newer: &mut HashMap<K, Caller>, older: &HashMap<K, Caller>) {
    for (key, before) in older {
        match newer.get_mut(key) {
            Some(now) if now.is_same_as(before) && now.may_as(before) => now.revoked = before.revoked.clone(),
            _ => before.revoked.cancel(),
        }
    }
}

fn text_of<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    match name {
        GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) => Some(text),
        _ => None,
    }
}

pub(super) fn caller(tenant: &str, name: &str, may: May) -> Caller {
    Caller {
        tenant: tenant.into(),
        name: name.into(),
        roles: may.roles.map_or_else(|| Arc::from(Role::USUAL), Arc::from),
        topics: may.topics.map(Arc::from),
        expires: None,
        revoked: CancellationToken::new(),
    }
}

/// Checks a tenant's name.
pub(super) fn tenant(name: &str) -> Result<&str, String> {
    validate::tenant(name).map_err(|violation| format!("{violation}"))?;
    Ok(name)
}

fn hash(key: &[u8]) -> Hash {
    let mut hash = [0; HASH_BYTES];
    hash.copy_from_slice(digest(&SHA256, key).as_ref());
    hash
}

fn unhex(text: &str) -> Option<Hash> {
    let mut hash = [0; HASH_BYTES];
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    if pairs.len() != HASH_BYTES {
        return None;
    }
    for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
        let digit = |character: u8| {
            char::from(character)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(hash)
}
