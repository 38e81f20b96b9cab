//! Where the servers are that `./dev test` started once for all tests, and where our binaries are.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail};

/// Ports that the harness gives out: below the range from which the kernel takes those of outgoing connections, so that
/// none of these is taken between the moment it was found free and the moment it is bound.
const PORTS: std::ops::Range<u16> = 20_100..28_000;

/// The servers that every stack shares.
#[derive(Clone, Debug)]
pub struct Servers {
    /// Kafka's bootstrap servers.
    pub kafka: String,
    /// URL of a Postgres role that may create databases.
    pub postgres: String,
    /// Base URL of the schema registry's Confluent API.
    pub registry: String,
    /// The broker's process.
    pub kafka_pid: u32,
}

impl Servers {
    /// Reads them from the environment.
    ///
    /// # Errors
    /// When a variable is missing: the tests do not run without servers, and do not skip either.
    pub fn from_env() -> Result<Self> {
        let read = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set: run ./dev test"));
        Ok(Self {
            kafka: read("SLUICE_TEST_KAFKA")?,
            postgres: read("SLUICE_TEST_POSTGRES")?,
            registry: read("SLUICE_TEST_REGISTRY")?,
            kafka_pid: read("SLUICE_TEST_KAFKA_PID")?.parse()?,
        })
    }
}

/// The directory of the binaries: this executable is in it, or in its `deps`.
///
/// # Errors
/// When the executable's own path is not known.
pub fn binaries() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let directory = this.parent().context("the executable is in no directory")?;
    // A test's executable is in a directory of its own beside the binaries.
    let is_test = directory.ends_with("deps");
    Ok(directory.parent().filter(|_| is_test).unwrap_or(directory).to_owned())
}

/// The path of one of our binaries.
///
/// # Errors
/// When it was not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = binaries()?.join(name);
    if !path.is_file() {
        bail!("{} is missing: run ./dev test, which builds it", path.display());
    }
    Ok(path)
}

/// The path of one of our binaries as it was built with points at which faults can be injected.
///
/// # Errors
/// When it was not built.
pub fn faulty_binary(name: &str) -> Result<PathBuf> {
    let path = binaries()?.join("failpoints").join(name);
    if !path.is_file() {
        bail!("{} is missing: run ./dev chaos, which builds it", path.display());
    }
    Ok(path)
}

/// The repository's root.
pub fn root() -> PathBuf {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_directory.parent().unwrap_or(crate_directory).to_owned()
}

/// A directory for the logs and files of one stack.
///
/// # Errors
/// When it cannot be made.
pub fn scratch(name: &str) -> Result<PathBuf> {
    let binaries = binaries()?;
    let directory = binaries.parent().unwrap_or(&binaries).join("tmp/stacks").join(name);
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

/// An address on loopback that nothing listens on and that no other caller gets.
///
/// # Errors
/// When no port is free.
pub fn free_address() -> Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    // Another run of the tests on this machine begins elsewhere in the range.
    let first = (std::process::id() % u32::from(span)) as u16;
    for _attempt in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % span;
        let port = PORTS.start + (first + step) % span;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port is free between {} and {}", PORTS.start, PORTS.end);
}
