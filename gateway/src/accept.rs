//! Owns the accepting of connections: how many may be open, and that one which never speaks HTTP/2 does not stay.
//!
//! Comes before tonic, which reads from what is accepted here.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::metrics::Counted;

/// How long a new connection may take to send HTTP/2's preface.
pub const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Length of HTTP/2's preface.
const PREFACE_BYTES: usize = 24;
/// How long accepting rests after an error, which is mostly a lack of file descriptors.
pub const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections for ever, no more than `limit` at a time. Further ones wait in the listener's backlog.
pub fn connections(listener: TcpListener, limit: u32, gauge: Gauge) -> impl Stream<Item = io::Result<Connection>> {
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
            stream,
            unread: PREFACE_BYTES,
            deadline: Box::pin(tokio::time::sleep_until(Instant::now() + PREFACE_TIMEOUT)),
            _permit: permit,
            _counted: Counted::new(&gauge),
        });
        Some((connection, (listener, room, gauge)))
    })
}

/// A connection; its room is free again when it is dropped.
pub struct Connection {
    stream: TcpStream,
    /// Bytes of the preface that have not come yet.
    unread: usize,
    deadline: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
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
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
