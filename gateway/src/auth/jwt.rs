//! Owns signed tokens (JWT): whose signatures count, and which principal a token makes its bearer.
//!
//! An issuer's keys come as a JWKS from a file or a URL; a reload of the principals reads them again. RS256, ES256 and EdDSA
//! count; issuer, audience and expiry must be there and fit.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{Caller, Role, keys};

/// How far an issuer's clock may be from this one's.
pub(super) const LEEWAY: Duration = Duration::from_secs(30);
/// How long an issuer may take to tell its keys.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a URL is asked for its keys.
pub(super) const FETCH_EVERY: Duration = Duration::from_secs(15);
/// Most bytes of a JWKS.
pub(super) const MAX_JWKS_BYTES: u64 = 256 * 1_024;

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invalid {
    Unknown,
    Expired,
    Claims,
}

impl Invalid {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "the API key is unknown, or the token's signature is none of a known issuer",
            Self::Expired => "the token has expired",
            Self::Claims => "the token's issuer, audience, tenant or roles are missing or wrong",
        }
    }
}

/// An issuer as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    issuer: String,
    audience: String,
    /// A path, or a URL with its scheme.
    jwks: String,
    /// The tenant of all its tokens; else the claim `tenant` says it.
    tenant: Option<String>,
    /// The roles of all its tokens; else the claim `roles` says them.
    roles: Option<Vec<Role>>,
    /// The topics that all its tokens may publish to; else the claim `topics` says them, if any.
    topics: Option<Vec<String>>,
}

#[derive(Clone)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// An issuer with its keys.
#[derive(Clone)]
pub(super) struct Issuer {
    entry: Entry,
    keys: Vec<Key>,
    read: Instant,
    pub(super) revoked: CancellationToken,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: u64,
    tenant: Option<String>,
    roles: Option<Vec<Role>>,
    topics: Option<Vec<String>>,
}

impl Issuer {
    /// Reads the issuer's keys. A path is relative to the directory of `beside`. A URL that was asked lately, or does not
    /// answer, leaves the `older` keys in use.
    pub(super) fn read(entry: Entry, beside: &Path, older: &[Self]) -> Result<Self, String> {
        if let Some(tenant) = &entry.tenant {
            keys::tenant(tenant)?;
        }
        let older = older.iter().find(|older| older.entry == entry);
        let revoked = older.map(|older| older.revoked.clone()).unwrap_or_default();
        let is_remote = entry.jwks.contains("://");
        if let Some(older) = older.filter(|older| is_remote && older.read.elapsed() < FETCH_EVERY) {
            return Ok(older.clone());
        }
        let text = if is_remote {
            fetch(&entry.jwks).map_err(|error| format!("does not tell its keys at {}: {error}", entry.jwks))
        } else {
            let path = beside.parent().unwrap_or(beside).join(&entry.jwks);
            std::fs::read_to_string(&path).map_err(|error| format!("has no keys in {}: {error}", path.display()))
        };
        match (text.and_then(|text| usable(&text)), older) {
            (Ok(keys), _) => Ok(Self {
                entry,
                keys,
                read: Instant::now(),
                revoked,
            }),
            (Err(error), Some(older)) if is_remote => {
                tracing::warn!(error, "an issuer's earlier keys stay in use");
                let read = Instant::now();
                Ok(Self { read, ..older.clone() })
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Whether both are the same entry; its keys may have changed.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.entry == other.entry
    }

    fn caller(&self, claims: Claims) -> Option<Caller> {
        let tenant = self.entry.tenant.as_ref().or(claims.tenant.as_ref())?;
        let tenant = keys::tenant(tenant).ok()?;
        let roles = self.entry.roles.clone().or(claims.roles)?;
        let subject = claims.sub.as_deref().unwrap_or("-");
        Some(Caller {
            tenant: tenant.into(),
            name: format!("{}#{subject}", self.entry.issuer).into(),
            roles: Arc::from(roles),
            topics: self.entry.topics.clone().or(claims.topics).map(Arc::from),
            // A time beyond what the clock can tell never comes.
            expires: UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp).saturating_add(LEEWAY)),
            revoked: self.revoked.clone(),
        })
    }
}

/// The keys of a JWKS whose signatures count.
fn usable(text: &str) -> Result<Vec<Key>, String> {
    let set: JwkSet = serde_json::from_str(text).map_err(|error| format!("has a JWKS that is none: {error}"))?;
    let mut keys = Vec::new();
    for jwk in &set.keys {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(_) => Algorithm::ES256,
            AlgorithmParameters::OctetKeyPair(_) => Algorithm::EdDSA,
            // A shared secret in a public set would let anybody sign.
            AlgorithmParameters::OctetKey(_) => continue,
        };
        let key = DecodingKey::from_jwk(jwk).map_err(|error| format!("has a key that cannot be used: {error}"))?;
        let id = jwk.common.key_id.clone();
        keys.push(Key { id, algorithm, key });
    }
    if keys.is_empty() {
        return Err("has no key for RS256, ES256 or EdDSA".to_owned());
    }
    Ok(keys)
}

fn fetch(url: &str) -> Result<String, ureq::Error> {
    let config = ureq::Agent::config_builder().timeout_global(Some(FETCH_TIMEOUT));
    let agent: ureq::Agent = config.build().into();
    let mut response = agent.get(url).call()?;
    response.body_mut().with_config().limit(MAX_JWKS_BYTES).read_to_string()
}

/// The bearer of a token.
pub(super) fn check(issuers: &[Issuer], token: &str) -> Result<Caller, Invalid> {
    let header = decode_header(token).map_err(|_| Invalid::Unknown)?;
    let mut invalid = Invalid::Unknown;
    for issuer in issuers {
        let fits = |key: &&Key| key.algorithm == header.alg && (header.kid.is_none() || header.kid == key.id);
        for key in issuer.keys.iter().filter(fits) {
            let mut rules = Validation::new(key.algorithm);
            rules.leeway = LEEWAY.as_secs();
            rules.set_issuer(&[&issuer.entry.issuer]);
            rules.set_audience(&[&issuer.entry.audience]);
            rules.set_required_spec_claims(&["exp", "iss", "aud"]);
            rules.validate_nbf = true;
            match decode::<Claims>(token, &key.key, &rules) {
                Ok(decoded) => return issuer.caller(decoded.claims).ok_or(Invalid::Claims),
                Err(error) => invalid = reason(error.kind()).unwrap_or(invalid),
            }
        }
    }
    Err(invalid)
}

/// What is wrong with a token whose signature counts.
fn reason(kind: &jsonwebtoken::errors::ErrorKind) -> Option<Invalid> {
    use jsonwebtoken::errors::ErrorKind;
    match kind {
        ErrorKind::ExpiredSignature => Some(Invalid::Expired),
        ErrorKind::InvalidIssuer
        | ErrorKind::InvalidAudience
        | ErrorKind::ImmatureSignature
        | ErrorKind::MissingRequiredClaim(_)
        | ErrorKind::Json(_) => Some(Invalid::Claims),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_may_expire_at_any_time() {
        let issuer = Issuer {
            entry: Entry {
                issuer: "https://id.example".to_owned(),
                audience: "sluice".to_owned(),
                jwks: "jwks.json".to_owned(),
                tenant: Some("acme".to_owned()),
                roles: Some(vec![Role::Publish]),
                topics: None,
            },
            keys: Vec::new(),
            read: Instant::now(),
            revoked: CancellationToken::new(),
        };
        let expires = |exp| {
            let claims = Claims {
                sub: None,
                exp,
                tenant: None,
                roles: None,
                topics: None,
            };
            issuer.caller(claims).expect("a caller").expires
        };
        assert_eq!(expires(0), Some(UNIX_EPOCH + LEEWAY));
        assert_eq!(expires(u64::MAX - 1), None);
        assert_eq!(expires(u64::MAX), None);
    }
}
