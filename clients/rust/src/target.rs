//! Where the gateway is and who calls it: address, credentials, trace context, and the connection made of them.
//!
//! Comes before every operation; each session makes a connection of its own, so that a drained gateway is left behind.

use std::fmt;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that vanished is noticed after the interval and the timeout together.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * STREAM_WINDOW_BYTES;

/// Why a target cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The address is not a URI such as `http://127.0.0.1:50051`.
    #[error("{target:?} is not an address such as http://127.0.0.1:50051")]
    Address {
        /// The address as given.
        target: String,
    },
    /// The key or the trace context has characters that cannot travel in metadata.
    #[error("{0} has characters other than visible ASCII")]
    Metadata(&'static str),
}

/// The gateway could not be reached.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot connect to {target}: {cause}")]
pub struct Unreachable {
    /// The address.
    pub target: String,
    /// Why not.
    pub cause: String,
}

/// The gateway's address with the caller's credentials.
#[derive(Clone)]
pub struct Target {
    endpoint: Endpoint,
    authorization: MetadataValue<Ascii>,
    traceparent: Option<MetadataValue<Ascii>>,
}

impl Target {
    /// A gateway, such as `http://127.0.0.1:50051`, and the caller's API key. Connects to nothing yet.
    ///
    /// # Errors
    /// When the address or the key cannot be used at all.
    pub fn new(address: &str, api_key: &str) -> Result<Self, Error> {
        let invalid = || Error::Address {
            target: address.to_owned(),
        };
        let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_invalid| invalid())?;
        if endpoint.uri().scheme().is_none() || endpoint.uri().host().is_none() {
            return Err(invalid());
        }
        let mut authorization: MetadataValue<Ascii> = format!("Bearer {api_key}")
            .parse()
            .map_err(|_invalid| Error::Metadata("the API key"))?;
        authorization.set_sensitive(true);
        Ok(Self {
            endpoint: endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES),
            authorization,
            traceparent: None,
        })
    }

    /// The same target with a W3C `traceparent` that travels with every event to its decision.
    ///
    /// # Errors
    /// When it has characters other than visible ASCII.
    pub fn with_traceparent(mut self, traceparent: &str) -> Result<Self, Error> {
        let value = traceparent
            .parse()
            .map_err(|_invalid| Error::Metadata("the traceparent"))?;
        self.traceparent = Some(value);
        Ok(self)
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Result<Channel, Unreachable> {
        self.endpoint.connect().await.map_err(|error| Unreachable {
            target: self.address(),
            cause: innermost(&error),
        })
    }

    /// A request with the caller's credentials.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.authorization.clone());
        if let Some(traceparent) = &self.traceparent {
            metadata.insert("traceparent", traceparent.clone());
        }
        request
    }

    /// The address, for messages.
    pub(crate) fn address(&self) -> String {
        let address = self.endpoint.uri().to_string();
        address.trim_end_matches('/').to_owned()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

/// The transport's own message is "transport error"; what went wrong is at the end of the chain.
fn innermost(error: &tonic::transport::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        assert!(Target::new("http://127.0.0.1:50051", "key").is_ok());
        assert!(Target::new("127.0.0.1:50051", "key").is_err());
        assert!(Target::new("not an address", "key").is_err());
        assert!(Target::new("http://localhost:1", "ke\ny").is_err());
    }

    #[test]
    fn the_key_is_not_shown() {
        let target = Target::new("http://127.0.0.1:50051", "secret-key").unwrap();
        let request = target.request(());
        assert!(!format!("{target:?} {:?}", request.metadata()).contains("secret"));
    }
}
