//! A network that a test can cut, hold up or lead elsewhere: a TCP proxy in front of the gateway or of Postgres.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const BUFFER_BYTES: usize = 16 * 1_024;

/// Passes bytes on in both directions, until it is told to drop every connection.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    generation: watch::Sender<u64>,
    stalled: watch::Sender<bool>,
    target: watch::Sender<SocketAddr>,
    connections: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A proxy in front of an address.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        Self::start_on(Ipv4Addr::LOCALHOST, target).await
    }

    /// The same on another network's address of this machine.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start_on(network: Ipv4Addr, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((network, 0)).await?;
        let address = listener.local_addr()?;
        let (generation, generations) = watch::channel(0);
        let (stalled, stalls) = watch::channel(false);
        let (target, targets) = watch::channel(target);
        let connections = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((client, _peer)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let target = *targets.borrow();
                tokio::spawn(pass(client, target, generations.clone(), stalls.clone()));
            }
        });
        Ok(Self {
            address,
            generation,
            stalled,
            target,
            connections,
            task,
        })
    }

    /// The URL by which a client goes through it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Drops every connection at once. New ones are passed on.
    pub fn cut(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Passes nothing on until told otherwise, as a network that loses everything: the connections stay, and what was sent
    /// comes later.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    /// Leads new connections to another address. Those that are open stay.
    pub fn lead_to(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    /// Where new connections are led.
    pub fn target(&self) -> SocketAddr {
        *self.target.borrow()
    }

    /// How many connections were made through it.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

/// Both sockets close when this returns: with unread bytes in them, by a reset.
async fn pass(
    mut client: TcpStream,
    target: SocketAddr,
    mut generations: watch::Receiver<u64>,
    stalls: watch::Receiver<bool>,
) {
    generations.mark_unchanged();
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let both = async {
        // An end of the bytes is passed on, and the other direction goes on; a reset ends both, or the other side would wait
        // for one that is gone.
        tokio::try_join!(
            one_way(from_client, to_server, stalls.clone()),
            one_way(from_server, to_client, stalls.clone())
        )
    };
    tokio::select! {
        // How the bytes end is for the two ends to see.
        _ended = both => {}
        _cut = generations.changed() => {}
    }
}

/// Passes bytes on in one direction until they end, which is passed on too.
async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut stalls: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        // Without a proxy there is nobody to pass anything on for.
        if stalls.wait_for(|stalled| !stalled).await.is_err() || count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}

/// A proxy in front of Postgres, and the database's URL by way of it.
///
/// # Errors
/// When the URL names no server, or no port is free.
pub async fn postgres(url: &str) -> Result<(Proxy, String)> {
    postgres_on(Ipv4Addr::LOCALHOST, url).await
}

/// The same on another network's address of this machine.
///
/// # Errors
/// When the URL names no server, or no port is free.
pub async fn postgres_on(network: Ipv4Addr, url: &str) -> Result<(Proxy, String)> {
    let (before, rest) = url.split_once('@').unwrap_or(("", url));
    let (server, database) = rest.split_once('/').unwrap_or((rest, ""));
    let target = tokio::net::lookup_host(server).await?.next();
    let target = target.with_context(|| format!("{server} has no address"))?;
    let proxy = Proxy::start_on(network, target).await?;
    let through = format!("{before}@{}/{database}", proxy.address());
    Ok((proxy, through))
}

/// A proxy in front of what serves a URL of http, and the URL by way of it.
///
/// # Errors
/// When the URL names no server, or no port is free.
pub async fn http(url: &str) -> Result<(Proxy, String)> {
    http_on(Ipv4Addr::LOCALHOST, url).await
}

/// The same on another network's address of this machine.
///
/// # Errors
/// When the URL names no server, or no port is free.
pub async fn http_on(network: Ipv4Addr, url: &str) -> Result<(Proxy, String)> {
    let rest = url.trim_start_matches("http://");
    let (server, path) = rest.split_once('/').unwrap_or((rest, ""));
    let target = tokio::net::lookup_host(server).await?.next();
    let target = target.with_context(|| format!("{server} has no address"))?;
    let proxy = Proxy::start_on(network, target).await?;
    let through = format!("{}/{path}", proxy.url());
    Ok((proxy, through))
}
