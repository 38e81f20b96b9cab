//! Owns TLS: the certificate that the gateway shows, which clients' certificates it trusts, and reading both again.
//!
//! Comes before `accept`, which does each connection's handshake with the newest configuration. TLS 1.3 only.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio_rustls::TlsAcceptor;

/// The files of TLS, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The gateway's certificate, then those between it and its root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The roots of clients' certificates; none: clients show no certificate.
    pub client_roots: Option<PathBuf>,
}

/// TLS cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {path} for TLS: {reason}")]
pub struct Error {
    path: PathBuf,
    reason: String,
}

/// The newest configuration.
pub struct Tls {
    files: Files,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(files: Files) -> Result<Self, Error> {
        let config = RwLock::new(read(&files)?);
        Ok(Self { files, config })
    }

    /// Reads the files again, for the connections from now on. Blocks.
    ///
    /// # Errors
    /// See [`Error`]: then everything stays as it was.
    pub fn reload(&self) -> Result<(), Error> {
        let config = read(&self.files)?;
        *self.config.write() = config;
        Ok(())
    }

    /// What the next handshake is done with.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.config.read().clone().into()
    }
}

fn read(files: &Files) -> Result<Arc<ServerConfig>, Error> {
    let fault = |path: &Path| {
        let path = path.to_owned();
        move |error: &dyn std::fmt::Display| Error {
            path,
            reason: error.to_string(),
        }
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| fault(&files.certificate)(&error))?;
    let builder = match &files.client_roots {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(path)? {
                roots.add(root).map_err(|error| fault(path)(&error))?;
            }
            // A client without one may have a key or a token.
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .allow_unauthenticated()
                .build();
            builder.with_client_cert_verifier(verifier.map_err(|error| fault(path)(&error))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| fault(&files.key)(&error))?;
    let chain = certificates(&files.certificate)?;
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| fault(&files.certificate)(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let fault = |reason: String| Error {
        path: path.to_owned(),
        reason,
    };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| fault(error.to_string()))?;
    let certificates: Vec<_> = read
        .collect::<Result<_, _>>()
        .map_err(|error| fault(error.to_string()))?;
    if certificates.is_empty() {
        return Err(fault("there is no certificate in it".to_owned()));
    }
    Ok(certificates)
}
