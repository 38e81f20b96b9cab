//! The ledger in Postgres, as anybody with a query sees it.

use anyhow::{Context, Result};
use sqlx::postgres::PgRow;
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
    /// The rules that fired, as `rule@version`.
    pub reasons: Vec<String>,
    /// Version of the rules.
    pub rule_set_version: String,
    /// Too late for the rules that need history.
    pub late: bool,
    /// When the payment happened, in microseconds since the Unix epoch.
    pub occurred_at: i64,
    /// Epoch of the lane that wrote the row.
    pub epoch: i64,
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
    let query = format!("{ROWS} ORDER BY part, off");
    let rows = sqlx::query(&query).fetch_all(connection).await?;
    rows.iter().map(entry).collect()
}

/// The rows of one partition from an offset on.
///
/// # Errors
/// When the ledger is not as it is documented.
pub async fn read_from(connection: &mut PgConnection, partition: i32, offset: i64) -> Result<Vec<Entry>> {
    let query = format!("{ROWS} WHERE part = $1 AND off >= $2 ORDER BY off");
    let rows = sqlx::query(&query).bind(partition).bind(offset);
    rows.fetch_all(connection).await?.iter().map(entry).collect()
}

const ROWS: &str = "SELECT part, off, tenant, event_id::text, account_id, trim_scale(amount)::text AS amount, currency, \
                    outcome, score, reasons, rule_set_version, late, epoch, status, \
                    (extract(epoch FROM occurred_at) * 1000000)::bigint AS occurred_us FROM transactions";

fn entry(row: &PgRow) -> Result<Entry> {
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
        reasons: row.try_get("reasons")?,
        rule_set_version: row.try_get("rule_set_version")?,
        late: row.try_get("late")?,
        occurred_at: row.try_get("occurred_us")?,
        epoch: row.try_get("epoch")?,
        committed: row.try_get::<&str, _>("status")? == "COMMITTED",
    })
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

/// Prepared rows that a takeover removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compensation {
    /// Their partition.
    pub partition: i32,
    /// Epoch of the takeover.
    pub epoch: i64,
    /// Lowest offset removed.
    pub first: i64,
    /// Highest offset removed.
    pub last: i64,
    /// How many.
    pub rows: i64,
}

/// Every compensation, in the order in which they happened.
///
/// # Errors
/// When the ledger is not as it is documented.
pub async fn compensations(connection: &mut PgConnection) -> Result<Vec<Compensation>> {
    let query = "SELECT part, epoch, first_off, last_off, row_count FROM compensation ORDER BY id";
    let rows: Vec<(i32, i64, i64, i64, i64)> = sqlx::query_as(query).fetch_all(connection).await?;
    let compensation = |(partition, epoch, first, last, rows)| Compensation {
        partition,
        epoch,
        first,
        last,
        rows,
    };
    Ok(rows.into_iter().map(compensation).collect())
}

/// Who owns a partition's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The partition.
    pub partition: i32,
    /// Counted up at each takeover.
    pub epoch: i64,
    /// Rows below are committed.
    pub watermark: i64,
    /// The processor and lane that took it over last.
    pub instance: String,
    /// When, in microseconds since the Unix epoch.
    pub taken_over_at: i64,
}

/// The owners of all partitions.
///
/// # Errors
/// When the ledger is not as it is documented.
pub async fn owners(connection: &mut PgConnection) -> Result<Vec<Owner>> {
    let query = "SELECT part, epoch, watermark, instance, (extract(epoch FROM taken_over_at) * 1000000)::bigint \
                 FROM part_owner ORDER BY part";
    let rows: Vec<(i32, i64, i64, String, i64)> = sqlx::query_as(query).fetch_all(connection).await?;
    let owner = |(partition, epoch, watermark, instance, taken_over_at)| Owner {
        partition,
        epoch,
        watermark,
        instance,
        taken_over_at,
    };
    Ok(rows.into_iter().map(owner).collect())
}
