//! Owns the accepting of connections: how many may be open, their TLS handshakes, and that one which never speaks HTTP/2
//! does not stay.
//!
//! Comes before tonic, which reads from what is accepted here. Handshakes are done beside each other, each with the newest
//! certificate.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::metrics::Counted;
use crate::tls::Tls;

/// How long a new connection may take to send HTTP/2's preface.
pub const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at a time; further connections wait to be accepted.
pub const MAX_HANDSHAKES: usize = 1_024;
/// Connections that the operating system keeps while none is accepted.
pub const BACKLOG: u32 = 1_024;
/// Length of HTTP/2's preface.
const PREFACE_BYTES: usize = 24;
/// How long accepting rests after an error, which is mostly a lack of file descriptors.
pub const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Listens. With `shared`, several processes may listen on one address, and the operating system spreads connections over
/// them (`SO_REUSEPORT`).
///
/// # Errors
/// The operating system's.
pub fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(shared)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections for ever, no more than `limit` at a time. Further ones wait in the listener's backlog. Those whose
/// handshake fails are passed over.
pub fn connections(
    listener: TcpListener,
    limit: u32,
    gauge: Gauge,
    tls: Option<Arc<Tls>>,
) -> impl Stream<Item = io::Result<Connection>> {
    accepted(listener, limit, gauge)
        .map(move |accepted| handshake(accepted, tls.clone()))
        .buffer_unordered(MAX_HANDSHAKES)
        .filter_map(std::future::ready)
}

async fn handshake(accepted: io::Result<Connection>, tls: Option<Arc<Tls>>) -> Option<io::Result<Connection>> {
    let (mut connection, tls) = match (accepted, tls) {
        (Ok(connection), Some(tls)) => (connection, tls),
        (accepted, _) => return Some(accepted),
    };
    let Io::Plain(stream) = connection.io else {
        return Some(Ok(connection));
    };
    let handshake = tls.acceptor().accept(stream);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => {
            connection.io = Io::Tls(Box::new(stream));
            connection.deadline = Box::pin(tokio::time::sleep_until(Instant::now() + PREFACE_TIMEOUT));
            Some(Ok(connection))
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_elapsed) => None,
    }
}

fn accepted(listener: TcpListener, limit: u32, gauge: Gauge) -> impl Stream<Item = io::Result<Connection>> {
    let room = Arc::new(Semaphore::new(limit as usize));
    stream::unfold((listener, room, gauge), |(listener, room, gauge)| async move {
        let permit = room.clone().acquire_owned().await.ok()?;
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep_until(Instant::now() + ERROR_PAUSE).await;
                }
            }
        };
        let connection = stream.set_nodelay(true).map(|()| Connection {
            io: Io::Plain(stream),
            unread: PREFACE_BYTES,
            deadline: Box::pin(tokio::time::sleep_until(Instant::now() + PREFACE_TIMEOUT)),
            _permit: permit,
            _counted: Counted::new(&gauge),
        });
        Some((connection, (listener, room, gauge)))
    })
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// The certificate that it showed, in DER; its chain is verified.
    pub certificate: Option<Arc<[u8]>>,
}

/// A connection; its room is free again when it is dropped.
pub struct Connection {
    io: Io,
    /// Bytes of the preface that have not come yet.
    unread: usize,
    deadline: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match &self.io {
            Io::Plain(stream) => Peer {
                address: stream.peer_addr().ok(),
                certificate: None,
            },
            Io::Tls(stream) => {
                let (stream, session) = stream.get_ref();
                let certificates = session.peer_certificates();
                Peer {
                    address: stream.peer_addr().ok(),
                    certificate: certificates
                        .and_then(|chain| chain.first())
                        .map(|first| Arc::from(&**first)),
                }
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        };
        if self.unread > 0 {
            self.unread = self.unread.saturating_sub(buffer.filled().len() - before);
            if read.is_pending() && self.deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
