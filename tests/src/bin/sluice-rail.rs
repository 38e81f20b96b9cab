//! sluice-rail: the stand-in for a payment rail, for tests and trials: `sluice-rail 127.0.0.1:7000`. Nothing is kept when it
//! ends.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result};
use sluice_tests::rail::server;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-rail: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<()> {
    let address: SocketAddr = std::env::args()
        .nth(1)
        .context("usage: sluice-rail ADDRESS:PORT")?
        .parse()
        .context("the address is none")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(server::serve(address))
}
