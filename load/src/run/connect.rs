//! The way to the server: its address, TLS, the metadata of every call, and the connections that the workers share.
//!
//! Comes after the options. TLS is done here and not by the transport, because the transport cannot be told to trust
//! whatever certificate there is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status, Streaming};
use tower::service_fn;

use super::options::ServerArgs;
use crate::DEVELOPMENT_KEY;

/// Messages between a worker and the transport. Few, because what waits here counts as sent.
const OUTGOING_REQUESTS: usize = 4;
const HTTP2: &[u8] = b"h2";
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// The server and how to call it.
#[derive(Clone)]
pub(crate) struct Server {
    /// `host:port`, for messages and reports.
    pub(crate) authority: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    metadata: MetadataMap,
    connect_timeout: Duration,
    keepalive: Duration,
}

impl Server {
    /// Checks the address, the certificates and the metadata. Connects to nothing yet.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub(crate) fn new(args: &ServerArgs) -> anyhow::Result<Self> {
        let host = args.address.as_ref().unwrap_or(&args.host);
        let (scheme, authority) = host.split_once("://").unwrap_or(("", host));
        let secure = match scheme {
            "" => !args.insecure,
            "http" => false,
            "https" if args.insecure => bail!("--insecure and an address that begins with https contradict each other"),
            "https" => true,
            _ => bail!(
                "{:?} is not an address such as 127.0.0.1:50051 or http://127.0.0.1:50051",
                host
            ),
        };
        let authority = authority.trim_end_matches('/').to_owned();
        let uri: Uri = format!("http://{authority}")
            .parse()
            .with_context(|| format!("{:?} is not an address such as 127.0.0.1:50051", host))?;
        let name = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if name.is_empty() || uri.port_u16().is_none() {
            bail!(
                "{:?} is not an address such as 127.0.0.1:50051: it needs a host and a port",
                host
            );
        }
        let tls = if secure {
            let name = args.cname.clone().unwrap_or(name);
            let name =
                ServerName::try_from(name.clone()).with_context(|| format!("{name:?} is not a server's name"))?;
            Some((TlsConnector::from(Arc::new(tls_config(args)?)), name))
        } else {
            None
        };
        Ok(Self {
            authority,
            tls,
            metadata: metadata(args)?,
            connect_timeout: args.connect_timeout,
            keepalive: args.keepalive,
        })
    }

    /// A new connection. One that is lost later is made again by the transport at the next call.
    ///
    /// # Errors
    /// When there is no server, or its certificate is not to be trusted.
    pub(crate) async fn connect(&self) -> anyhow::Result<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.authority))?
            .http2_keep_alive_interval(self.keepalive)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        let server = self.clone();
        let connector = service_fn(move |_uri: Uri| {
            let server = server.clone();
            async move { server.dial().await.map_err(std::io::Error::other) }
        });
        endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| anyhow::anyhow!("cannot connect to {}: {}", self.authority, innermost(&error)))
    }

    async fn dial(&self) -> anyhow::Result<TokioIo<Box<dyn Bytestream>>> {
        let connecting = async {
            let stream = TcpStream::connect(&self.authority).await?;
            stream.set_nodelay(true)?;
            let stream: Box<dyn Bytestream> = match &self.tls {
                None => Box::new(stream),
                Some((connector, name)) => {
                    let stream = connector
                        .connect(name.clone(), stream)
                        .await
                        .context("no TLS session")?;
                    if stream.get_ref().1.alpn_protocol() != Some(HTTP2) {
                        bail!("the server does not speak HTTP/2 over TLS");
                    }
                    Box::new(stream)
                }
            };
            Ok(TokioIo::new(stream))
        };
        timeout(self.connect_timeout, connecting)
            .await
            .with_context(|| format!("no connection within {:?}", self.connect_timeout))?
            // One line with the whole chain, because the transport shows the innermost error only.
            .map_err(|error| anyhow::anyhow!("{error:#}"))
    }

    /// A request with the metadata of every call.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request
    }

    /// Opens a stream in both directions: sends the message that opens it, and waits so long for the first answer.
    /// Gives its way out, its way in, and that answer.
    ///
    /// # Errors
    /// What the server said, or UNAVAILABLE where it said nothing in time.
    pub(super) async fn open<Q, A>(
        &self,
        first: Q,
        patience: Duration,
        call: impl AsyncFnOnce(tonic::Request<ReceiverStream<Q>>) -> Result<Response<Streaming<A>>, Status>,
    ) -> Result<(mpsc::Sender<Q>, Streaming<A>, Option<A>), Status> {
        let (outgoing, requests) = mpsc::channel(OUTGOING_REQUESTS);
        // There is room: the channel was made just now.
        drop(outgoing.try_send(first));
        let answer = async {
            let mut incoming = call(self.request(ReceiverStream::new(requests))).await?.into_inner();
            let first = incoming.message().await?;
            Ok((first, incoming))
        };
        let (first, incoming) = timeout(patience, answer)
            .await
            .unwrap_or_else(|_elapsed| Err(Status::unavailable("the server did not answer Open")))?;
        Ok((outgoing, incoming, first))
    }
}

/// What a connection is made of.
trait Bytestream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Bytestream for T {}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn metadata(args: &ServerArgs) -> anyhow::Result<MetadataMap> {
    let mut map = MetadataMap::new();
    let key = args
        .api_key
        .as_deref()
        .or(args.cert.is_none().then_some(DEVELOPMENT_KEY));
    if let Some(key) = key {
        let mut key: AsciiMetadataValue = format!("Bearer {key}")
            .parse()
            .context("the API key has characters other than visible ASCII")?;
        key.set_sensitive(true);
        map.insert("authorization", key);
    }
    let text = match (&args.metadata, &args.metadata_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read the metadata in {}", path.display()))?
        }
        (None, None) => return Ok(map),
    };
    for (name, value) in texts("the metadata", &text)? {
        let name: AsciiMetadataKey = name
            .to_lowercase()
            .parse()
            .with_context(|| format!("{name:?} is not a name for metadata"))?;
        let value = value
            .parse()
            .with_context(|| format!("the metadata {name} has a value other than visible ASCII"))?;
        map.insert(name, value);
    }
    Ok(map)
}

/// A JSON object of texts.
pub(crate) fn texts(what: &str, text: &str) -> anyhow::Result<std::collections::BTreeMap<String, String>> {
    serde_json::from_str(text).with_context(|| format!("{what} is not a JSON object of texts"))
}

fn tls_config(args: &ServerArgs) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = if args.skip_tls {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustAnything(provider)))
    } else {
        builder.with_root_certificates(roots(args.cacert.as_deref())?)
    };
    let mut config = match (&args.cert, &args.key) {
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("cannot use the private key in {}", key.display()))?;
            builder
                .with_client_auth_cert(certificates(cert)?, private)
                .with_context(|| format!("cannot use the certificate in {}", cert.display()))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let cannot = || format!("cannot use the certificates in {}", path.display());
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(cannot)?;
    if certificates.is_empty() {
        bail!("{}: there is none", cannot());
    }
    Ok(certificates)
}

fn roots(cacert: Option<&Path>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match cacert {
        Some(path) => {
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .with_context(|| format!("cannot trust a certificate in {}", path.display()))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                bail!(
                    "the system has no certificate authorities: name some with --cacert, or use --insecure for no TLS"
                );
            }
        }
    }
    Ok(roots)
}

/// For `--skipTLS`: the session is encrypted, and nobody knows with whom.
#[derive(Debug)]
struct TrustAnything(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
