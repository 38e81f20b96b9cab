//! One query on the ledger's database, for commands that show or check the ledger.

use std::time::Duration;

use anyhow::Context;
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

/// How long Postgres may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects, runs what is given, and closes.
pub(crate) fn run<T>(
    url: &str,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connecting = timeout(CONNECT_TIMEOUT, PgConnection::connect(url)).await;
        // The URL may hold a password, so it is not repeated.
        let mut connection = connecting
            .context("the ledger's database did not accept a connection in time")?
            .context("the ledger's database cannot be reached")?;
        let done = work(&mut connection).await.context("the ledger")?;
        connection.close().await?;
        Ok(done)
    })
}
