//! How tests have the stand-in: started as a process, given faults, and asked for its book.
//!
//! The processor reaches it by [`Rail::url`].

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::book::{Entry, Totals};
use super::faults::Faults;
use super::server::Load;
use crate::process::Process;
use crate::{servers, wait};

/// Longest wait for an answer to who looks on: a rail that is stopped does not hold them up.
const GLANCE: Duration = Duration::from_millis(800);
/// Longest wait for any other answer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Largest page, in bytes: some 150 for each payment.
const MAX_PAGE_BYTES: u64 = 256 * 1_024 * 1_024;

/// A running stand-in.
#[derive(Debug)]
pub struct Rail {
    /// Its process.
    pub process: Process,
    address: SocketAddr,
}

impl Rail {
    /// Starts one with its log in this directory, and waits until it is there.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(directory: &std::path::Path) -> Result<Self> {
        let address = servers::free_address()?;
        let program = servers::binary("sluice-rail")?;
        let arguments = [address.to_string()];
        let process = Process::start("rail", &program, &[&arguments[0]], &[], directory)?;
        let mut rail = Self { process, address };
        wait::until("the rail is ready", async || {
            rail.process.must_run()?;
            Ok(rail.get("/health/ready").await.ok())
        })
        .await?;
        Ok(rail)
    }

    /// Base URL of its calls.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Orders faults, instead of those before.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn order(&self, faults: Faults) -> Result<()> {
        let (url, body) = (format!("{}/faults", self.url()), serde_json::to_string(&faults)?);
        let status = tokio::task::spawn_blocking(move || {
            let agent: ureq::Agent = ureq::Agent::config_builder().proxy(None).build().into();
            Ok::<_, ureq::Error>(agent.put(&url).send(&body)?.status())
        });
        let status = status.await??;
        ensure!(status.is_success(), "the rail does not take faults: {status}");
        Ok(())
    }

    /// Its book, by key.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn book(&self) -> Result<HashMap<String, Entry>> {
        Ok(serde_json::from_str(&self.get("/book").await?)?)
    }

    /// Money that it moved so far.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn totals(&self) -> Result<Totals> {
        totals(&self.url()).await
    }

    /// What it was asked in each second since the Unix epoch.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn load(&self) -> Result<BTreeMap<u64, Load>> {
        Ok(serde_json::from_str(&self.get("/calls").await?)?)
    }

    async fn get(&self, path: &str) -> Result<String> {
        page(format!("{}{path}", self.url()), TIMEOUT).await
    }
}

/// Money that the rail at this URL moved so far.
///
/// # Errors
/// When it does not answer.
pub async fn totals(url: &str) -> Result<Totals> {
    Ok(serde_json::from_str(&page(format!("{url}/totals"), GLANCE).await?)?)
}

async fn page(url: String, timeout: Duration) -> Result<String> {
    let fetch = move || -> Result<String> {
        let config = ureq::Agent::config_builder().proxy(None).timeout_global(Some(timeout));
        let agent: ureq::Agent = config.build().into();
        let mut answer = agent.get(&url).call()?;
        Ok(answer.body_mut().with_config().limit(MAX_PAGE_BYTES).read_to_string()?)
    };
    tokio::task::spawn_blocking(fetch).await?
}
