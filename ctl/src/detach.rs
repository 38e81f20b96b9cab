//! `sluicectl ledger detach`: takes old rows of one partition out of the ledger, by detaching the partition's table and putting
//! a new one with what is young enough in its place. All of it is one transaction; the old table stays until somebody drops it.
//!
//! What is not settled stays: rows that are not committed, whose money is still under way, or of which nobody was told.

use std::time::UNIX_EPOCH;

use anyhow::bail;
use sqlx::{Connection, PgConnection};

use crate::options::Detach;
use crate::postgres;

/// Locks in the order in which lanes and the saga take them, so that nobody waits for each other: the partition's owner, the
/// saga's, and then the table. Lanes wait meanwhile; one that waits for eight seconds takes over again.
const BOUNDS: &str = "SET LOCAL lock_timeout = '10s'";
const LOCK_OWNER: &str = "SELECT watermark FROM part_owner WHERE part = $1 FOR UPDATE";
/// With a new epoch, so that what the runner has read before and stores after this is refused: it begins again.
const LOCK_SAGA: &str = "UPDATE saga_owner SET epoch = epoch + 1 WHERE part = $1 RETURNING notified";
const YOUNGEST: &str = "SELECT least( \
     (SELECT min(off) FROM ledger WHERE part = $1 AND prepared_at >= to_timestamp($2)), \
     (SELECT min(off) FROM saga WHERE part = $1 \
      AND (NOT notified OR state NOT IN ('CAPTURED', 'RELEASED', 'REFUNDED'))))";
const RECORD: &str = "INSERT INTO ledger_detached (part, below, name, row_count) VALUES ($1, $2, $3, $4)";

/// Takes out what is old and settled.
pub(crate) fn detach(options: &Detach) -> anyhow::Result<String> {
    let part = options.partition;
    let before_s = options
        .before
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    let done = postgres::run(&options.postgres.url, async |connection| {
        take_out(connection, part, before_s, options.without_rail).await
    })?;
    Ok(match done {
        Done::Detached(rows, name) => {
            format!("{rows} rows of partition {part} are in table {name}, which can be dropped\n")
        }
        Done::Nothing => format!("partition {part} has no row that is old enough and settled\n"),
        Done::NoSaga => bail!(
            "no saga has come to partition {part}, and a rail that is set up later captures what is in the ledger: where there \
             will be none, say --without-rail"
        ),
    })
}

enum Done {
    /// So many rows went into this table.
    Detached(i64, String),
    Nothing,
    /// Nobody knows whether the payments are settled.
    NoSaga,
}

async fn take_out(
    connection: &mut PgConnection,
    part: i32,
    before_s: f64,
    without_rail: bool,
) -> Result<Done, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    sqlx::query(BOUNDS).execute(&mut *transaction).await?;
    let watermark: Option<i64> = sqlx::query_scalar(LOCK_OWNER)
        .bind(part)
        .fetch_optional(&mut *transaction)
        .await?;
    let notified: Option<i64> = sqlx::query_scalar(LOCK_SAGA)
        .bind(part)
        .fetch_optional(&mut *transaction)
        .await?;
    if notified.is_none() && !without_rail {
        return Ok(Done::NoSaga);
    }
    let youngest: Option<i64> = sqlx::query_scalar(YOUNGEST)
        .bind(part)
        .bind(before_s)
        .fetch_one(&mut *transaction)
        .await?;
    let Some(below) = [watermark, notified, youngest].into_iter().flatten().min() else {
        return Ok(Done::Nothing);
    };
    let old: i64 = sqlx::query_scalar("SELECT count(*) FROM ledger WHERE part = $1 AND off < $2")
        .bind(part)
        .bind(below)
        .fetch_one(&mut *transaction)
        .await?;
    if old == 0 {
        return Ok(Done::Nothing);
    }
    let name = format!("ledger_p{part}_below_{below}");
    let swap = format!(
        "ALTER TABLE ledger DETACH PARTITION ledger_p{part}; \
         ALTER TABLE ledger_p{part} RENAME TO {name}; \
         CREATE TABLE ledger_p{part} PARTITION OF ledger FOR VALUES IN ({part}); \
         INSERT INTO ledger_p{part} SELECT * FROM {name} WHERE off >= {below}; \
         DELETE FROM {name} WHERE off >= {below}; \
         CREATE TABLE saga_{name} AS SELECT * FROM saga WHERE part = {part} AND off < {below}; \
         DELETE FROM saga WHERE part = {part} AND off < {below}; \
         CREATE TABLE saga_step_{name} AS SELECT s.* FROM saga_step s JOIN {name} l USING (part, tenant, event_id); \
         DELETE FROM saga_step s USING {name} l WHERE s.part = {part} AND s.tenant = l.tenant AND s.event_id = l.event_id"
    );
    sqlx::raw_sql(&swap).execute(&mut *transaction).await?;
    sqlx::query(RECORD)
        .bind(part)
        .bind(below)
        .bind(&name)
        .bind(old)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(Done::Detached(old, name))
}
