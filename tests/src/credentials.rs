//! Credentials for tests: hashes of keys, certificates of an authority of one's own, signed tokens.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PublicKeyData};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::wait;

/// The SHA-256 of a key, in hexadecimal digits.
pub fn hash(key: &str) -> String {
    let hash = digest(&SHA256, key.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An authority that signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, in PEM.
    pub pem: String,
}

/// A certificate with its key, in PEM.
pub struct Signed {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        Ok(Self { issuer, pem })
    }

    /// A certificate of this authority with a common name and alternative names.
    ///
    /// # Errors
    /// When a name is none.
    pub fn sign(&self, common_name: &str, names: &[&str]) -> Result<Signed> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, common_name);
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        let key = key.serialize_pem();
        Ok(Signed { certificate, key })
    }

    /// A connection to a gateway that this authority vouches for, with a certificate of one's own or none.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn connect(&self, url: &str, own: Option<&Signed>) -> Result<Channel> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.pem))
            .domain_name("localhost");
        if let Some(own) = own {
            tls = tls.identity(Identity::from_pem(&own.certificate, &own.key));
        }
        let endpoint = Endpoint::from_shared(url.to_owned())?.tls_config(tls)?;
        Ok(endpoint.connect_timeout(wait::SOON).connect().await?)
    }
}

impl Signed {
    /// Writes both to files in a directory; returns the certificate's and the key's.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&self, directory: &Path) -> Result<(PathBuf, PathBuf)> {
        let (certificate, key) = (directory.join("gateway.pem"), directory.join("gateway.key"));
        std::fs::write(&key, &self.key)?;
        std::fs::write(&certificate, &self.certificate)?;
        Ok((certificate, key))
    }
}

/// Who signs tokens.
pub struct Signer {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    /// A signer with one of the algorithms ES256, EdDSA and RS256.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(id: &'static str, algorithm: Algorithm) -> Result<Self> {
        let pair = KeyPair::generate_for(match algorithm {
            Algorithm::EdDSA => &rcgen::PKCS_ED25519,
            Algorithm::RS256 => &rcgen::PKCS_RSA_SHA256,
            _ => &rcgen::PKCS_ECDSA_P256_SHA256,
        })?;
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let public = pair.der_bytes();
        let jwk = match algorithm {
            Algorithm::EdDSA => json!({"kty": "OKP", "crv": "Ed25519", "x": text(public)}),
            Algorithm::RS256 => {
                // A sequence of two numbers, of 257 bytes with a leading zero and of three.
                let modulus = &public[9..9 + 256];
                json!({"kty": "RSA", "n": text(modulus), "e": text(&public[public.len() - 3..])})
            }
            _ => json!({"kty": "EC", "crv": "P-256", "x": text(&public[1..33]), "y": text(&public[33..65])}),
        };
        let der = pair.serialize_der();
        let key = match algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_der(&der),
            // The key itself, behind what PKCS #8 puts before it.
            Algorithm::RS256 => EncodingKey::from_rsa_der(&der[26..]),
            _ => EncodingKey::from_ec_der(&der),
        };
        let mut jwk = jwk;
        jwk["kid"] = id.into();
        Ok(Self {
            id,
            algorithm,
            key,
            jwk,
        })
    }

    /// The set of these signers' public keys.
    pub fn jwks(signers: &[&Self]) -> String {
        let keys: Vec<&Value> = signers.iter().map(|signer| &signer.jwk).collect();
        json!({ "keys": keys }).to_string()
    }

    /// A token with these claims.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self, claims: &Value) -> Result<String> {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.to_owned());
        Ok(encode(&header, claims, &self.key)?)
    }
}

/// An issuer's page of public keys, which change.
pub struct KeyPage {
    /// Where it is.
    pub url: String,
    body: watch::Sender<Option<String>>,
    asked: watch::Receiver<u64>,
}

impl KeyPage {
    /// Serves a set of keys until it is dropped.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn serve(jwks: String) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}/jwks.json", listener.local_addr()?);
        let (body, current) = watch::channel(Some(jwks));
        let (count, asked) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                let mut buffer = [0; 1_024];
                // The request has no body.
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut buffer).await {
                        Ok(read @ 1..) => request.extend_from_slice(&buffer[..read]),
                        _ => break,
                    }
                }
                let body = current.borrow().clone();
                let status = if body.is_some() {
                    "200 OK"
                } else {
                    "503 Service Unavailable"
                };
                let body = body.unwrap_or_default();
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                // Who asked may be gone, and asks again.
                drop(stream.write_all(answer.as_bytes()).await);
                count.send_modify(|count| *count += 1);
            }
        });
        Ok(Self { url, body, asked })
    }

    /// Puts another set in its place, or an error where there is none.
    pub fn change(&self, jwks: Option<String>) {
        self.body.send_replace(jwks);
    }

    /// Waits until it was asked once more, and has answered.
    ///
    /// # Errors
    /// When it is not.
    pub async fn asked_again(&mut self) -> Result<()> {
        let before = *self.asked.borrow_and_update();
        let again = self.asked.wait_for(|count| *count > before);
        wait::soon("the page is asked", again).await?.map(drop)?;
        Ok(())
    }
}

/// A token that nobody signed, and one that is signed with what is public, as if that were a shared secret.
///
/// # Errors
/// When it cannot be made.
pub fn forged(kid: &str, public: &str, claims: &Value) -> Result<[String; 2]> {
    let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = format!(
        "{}.{}.",
        text(&json!({"alg": "none", "typ": "JWT", "kid": kid})),
        text(claims)
    );
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(kid.to_owned());
    let confused = encode(&header, claims, &EncodingKey::from_secret(public.as_bytes()))?;
    Ok([unsigned, confused])
}

/// The time in so many seconds, as claims have it.
pub fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs() as i64 + seconds
}
