//! A network that a test can cut or lead elsewhere: a TCP proxy in front of the gateway.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Passes bytes on in both directions, until it is told to drop every connection.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    generation: watch::Sender<u64>,
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
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (generation, generations) = watch::channel(0);
        let (target, targets) = watch::channel(target);
        let connections = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((client, _peer)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let target = *targets.borrow();
                tokio::spawn(pass(client, target, generations.clone()));
            }
        });
        Ok(Self {
            address,
            generation,
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

    /// Leads new connections to another address. Those that are open stay.
    pub fn lead_to(&self, target: SocketAddr) {
        self.target.send_replace(target);
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
async fn pass(mut client: TcpStream, target: SocketAddr, mut generations: watch::Receiver<u64>) {
    generations.mark_unchanged();
    let Ok(mut gateway) = TcpStream::connect(target).await else {
        return;
    };
    tokio::select! {
        // How the bytes end is for the two ends to see.
        _ended = tokio::io::copy_bidirectional(&mut client, &mut gateway) => {}
        _cut = generations.changed() => {}
    }
}
