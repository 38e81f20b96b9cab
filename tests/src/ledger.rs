//! The ledger in Postgres, as anybody with a query sees it.

use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection, Row};

use crate::stack::Stack;
use crate::wait;

/// A row of the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Partition of the payment.
    pub partition: i32,
    /// Offset of the payment.
    pub offset: i64,
    /// The tenant.
    pub tenant: String,
    /// The payment's id.
    pub event_id: String,
    /// The account.
    pub account: String,
    /// The amount in its shortest decimal form, such as `12.34`.
    pub amount: String,
    /// The currency.
    pub currency: String,
    /// APPROVE, REVIEW or DECLINE.
    pub outcome: String,
    /// The score.
    pub score: f64,
    /// Whether the row lies below its partition's watermark.
    pub committed: bool,
}

/// A connection to the installation's database.
///
/// # Errors
/// When Postgres does not answer.
pub async fn connect(stack: &Stack) -> Result<PgConnection> {
    PgConnection::connect(&stack.database_url()?)
        .await
        .context("cannot reach the ledger")
}

/// Every row, by partition and offset.
///
/// # Errors
/// When the ledger is not as it is documented.
pub async fn read(connection: &mut PgConnection) -> Result<Vec<Entry>> {
    let query = "SELECT part, off, tenant, event_id::text, account_id, trim_scale(amount)::text AS amount, currency, \
                 outcome, score, status FROM transactions ORDER BY part, off";
    let rows = sqlx::query(query).fetch_all(connection).await?;
    let entry = |row: &sqlx::postgres::PgRow| {
        Ok(Entry {
            partition: row.try_get("part")?,
            offset: row.try_get("off")?,
            tenant: row.try_get("tenant")?,
            event_id: row.try_get("event_id")?,
            account: row.try_get("account_id")?,
            amount: row.try_get("amount")?,
            currency: row.try_get("currency")?,
            outcome: row.try_get("outcome")?,
            score: row.try_get("score")?,
            committed: row.try_get::<&str, _>("status")? == "COMMITTED",
        })
    };
    rows.iter().map(entry).collect()
}

/// Waits until no row is PREPARED any more.
///
/// # Errors
/// When some stay so.
pub async fn settled(connection: &mut PgConnection) -> Result<()> {
    let query = "SELECT count(*) FROM transactions WHERE status = 'PREPARED'";
    wait::until("no row of the ledger is PREPARED", async || {
        let prepared: i64 = sqlx::query_scalar(query).fetch_one(&mut *connection).await?;
        Ok((prepared == 0).then_some(()))
    })
    .await
}
