//! Owns the lane's side of the ledger: its Postgres connection and every statement that it runs there.
//!
//! Comes before Kafka's commit point: what is prepared here becomes committed when the watermark passes it, and a takeover
//! removes what never was. A batch is prepared on a thread of the ledger's own, while the lane sees to Kafka; every other
//! call blocks the lane's thread. Each takes up to [`TIMEOUT`]. After any error but [`Error::Conflict`] the connection is
//! in an unknown state: drop the ledger and connect again.

mod absent;
mod rows;

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use sluice_kafka::fail;
use sluice_proto::money::Amount;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError};
use sqlx::{Connection, Executor};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use uuid::Uuid;

use crate::world::Books;

pub(crate) use absent::NoLedger;
pub(crate) use rows::Rows;

/// How long one call may take before Postgres counts as down. Shorter than Kafka's default transaction timeout, so that a
/// batch is taken back by its lane and not by the broker.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// How long Postgres lets a lane that went silent hold its locks, in milliseconds.
const SILENT_TRANSACTION_MS: u32 = 10_000;
/// How long a statement waits for a lock: it is given up before its lane gives it up, or it would go on waiting, and everybody who
/// comes after it with it.
const BOUND_WAITING: &str = "SET lock_timeout = '8s'";
/// Serialises the creation of the ledger's partitions; an arbitrary number.
const CREATION_LOCK: i64 = 0x736c_7569_6365;
/// Postgres' code for a violated unique constraint.
const UNIQUE_VIOLATION: &str = "23505";

/// What can go wrong between a lane and the ledger.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another lane took one of the partitions over.
    #[error("another lane owns the partition by now")]
    Fenced,
    /// A server that lost its newest transactions took over from another one.
    #[error("the ledger has lost what this lane wrote")]
    Forgotten,
    /// A payment's event_id is in the ledger already. Nothing was written, and the connection can be used on.
    #[error("an event_id is in the ledger already")]
    Conflict,
    /// No answer in time.
    #[error("postgres did not {0} within {limit} s", limit = TIMEOUT.as_secs())]
    Timeout(&'static str),
    /// Anything else.
    #[error("postgres could not {what}: {source}")]
    Database {
        /// What was tried.
        what: &'static str,
        /// The driver's error.
        source: sqlx::Error,
    },
    /// The connection's own runtime could not be built.
    #[error("no runtime for the connection: {0}")]
    Runtime(#[from] std::io::Error),
    /// The connection is still at a batch, or was lost with one. It is a mistake of this program.
    #[error("the connection is not free")]
    Busy,
}

/// A partition as its lane owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) part: i32,
    pub(crate) epoch: i64,
    /// Where the committed rows end.
    pub(crate) watermark: i64,
}

/// Prepared rows that a takeover removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compensated {
    pub(crate) part: i32,
    pub(crate) rows: i64,
    pub(crate) first_off: i64,
    pub(crate) last_off: i64,
}

/// Rows that were missing and are written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refilled {
    pub(crate) rows: i64,
    pub(crate) first_off: i64,
    pub(crate) last_off: i64,
}

/// A payment's identity within the ledger.
pub(crate) type Key = (i32, String, Uuid);

/// What must be the same when a payment comes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Microseconds since the Unix epoch.
    pub(crate) occurred_at: i64,
    pub(crate) account_id: String,
    pub(crate) amount: Amount,
    pub(crate) currency: String,
}

/// One lane's connection.
pub(crate) struct Ledger {
    runtime: Runtime,
    /// With a batch while one is being prepared.
    connection: Option<PgConnection>,
    topic: String,
    run: Uuid,
}

/// A batch that is being prepared. Dropping it leaves the outcome open, and the ledger of no use.
pub(crate) struct Preparing(JoinHandle<(PgConnection, Rows, Result<(), Error>)>);

/// Books that a lane can open by itself.
pub(crate) trait Open: Books + Sized {
    /// Opens the books of this payments topic in the database of this URL.
    ///
    /// # Errors
    /// When Postgres does not take the connection.
    fn open(url: &str, topic: &str, run: Uuid) -> Result<Self, Error>;
}

impl Open for Ledger {
    fn open(url: &str, topic: &str, run: Uuid) -> Result<Self, Error> {
        const WHAT: &str = "bound its waiting for locks";
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("ledger")
            .enable_all()
            .build()?;
        let connection = runtime.block_on(async {
            let mut connection = connect(url).await?;
            let bound = timeout(TIMEOUT, connection.execute(BOUND_WAITING)).await;
            bound.map_err(|_| Error::Timeout(WHAT))?.map_err(failed(WHAT))?;
            Ok::<_, Error>(connection)
        })?;
        Ok(Self {
            runtime,
            connection: Some(connection),
            topic: topic.to_owned(),
            run,
        })
    }
}

impl Ledger {
    fn call<T>(
        &mut self,
        what: &'static str,
        operation: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let connection = self.connection.as_mut().ok_or(Error::Busy)?;
        let done = self
            .runtime
            .block_on(async { timeout(TIMEOUT, operation(connection)).await });
        outcome(what, done)
    }
}

impl Books for Ledger {
    type Preparing = Preparing;

    fn bump_epochs(&mut self, parts: &[i32], instance: &str) -> Result<Vec<Owner>, Error> {
        const SQL: &str = "INSERT INTO part_owner (topic, part, epoch, watermark, instance) \
             SELECT $1, part, 1, 0, $3 FROM unnest($2) AS part ORDER BY part \
             ON CONFLICT (topic, part) DO UPDATE \
             SET epoch = part_owner.epoch + $4, instance = excluded.instance, taken_over_at = now() \
             RETURNING part, epoch, watermark";
        let topic = self.topic.clone();
        self.call("take ownership of partitions", async move |connection| {
            create_partitions(connection, parts).await?;
            let rows: Vec<(i32, i64, i64)> = sqlx::query_as(SQL)
                .bind(topic)
                .bind(parts)
                .bind(instance)
                .bind(i64::from(fail::safeguard("epoch")))
                .fetch_all(connection)
                .await?;
            Ok(rows
                .into_iter()
                .map(|(part, epoch, watermark)| Owner { part, epoch, watermark })
                .collect())
        })
    }

    fn compensate(&mut self, owners: &[Owner], reason: &str) -> Result<Vec<Compensated>, Error> {
        const REMOVE: &str = "WITH removed AS (DELETE FROM ledger WHERE part = $1 AND off >= $2 RETURNING off) \
             SELECT count(*), min(off), max(off) FROM removed";
        const RECORD: &str = "INSERT INTO compensation (topic, part, epoch, first_off, last_off, row_count, reason, run) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        let (topic, run) = (self.topic.clone(), self.run);
        self.call("compensate prepared rows", async move |connection| {
            let mut transaction = connection.begin().await?;
            set_watermarks(&mut transaction, &topic, owners).await?;
            let mut compensated = Vec::new();
            for owner in owners {
                if !fail::safeguard("compensation") {
                    continue;
                }
                let removed: (i64, Option<i64>, Option<i64>) = sqlx::query_as(REMOVE)
                    .bind(owner.part)
                    .bind(owner.watermark)
                    .fetch_one(&mut *transaction)
                    .await?;
                let (rows, Some(first_off), Some(last_off)) = removed else {
                    continue;
                };
                sqlx::query(RECORD)
                    .bind(&topic)
                    .bind(owner.part)
                    .bind(owner.epoch)
                    .bind(first_off)
                    .bind(last_off)
                    .bind(rows)
                    .bind(reason)
                    .bind(run)
                    .execute(&mut *transaction)
                    .await?;
                compensated.push(Compensated {
                    part: owner.part,
                    rows,
                    first_off,
                    last_off,
                });
            }
            transaction.commit().await?;
            Ok(compensated)
        })
    }

    fn prepare(&mut self, owners: Vec<Owner>, mut rows: Rows) -> Result<Preparing, Error> {
        let mut connection = self.connection.take().ok_or(Error::Busy)?;
        let topic = self.topic.clone();
        Ok(Preparing(self.runtime.spawn(async move {
            let done = timeout(TIMEOUT, prepare(&mut connection, &topic, &owners, &mut rows)).await;
            (connection, rows, outcome("prepare a batch", done))
        })))
    }

    fn finish(&mut self, preparing: Preparing) -> Result<Rows, Error> {
        let (connection, rows, done) = match self.runtime.block_on(preparing.0) {
            Ok(ended) => ended,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(_cancelled) => return Err(Error::Busy),
        };
        self.connection = Some(connection);
        done.map(|()| rows)
    }

    fn flush(&mut self, owners: &[Owner]) -> Result<(), Error> {
        let topic = self.topic.clone();
        self.call("set a watermark", async move |connection| {
            let mut transaction = connection.begin().await?;
            set_watermarks(&mut transaction, &topic, owners).await?;
            transaction.commit().await?;
            Ok(())
        })
    }

    fn confirm(&mut self, owners: &[Owner]) -> Result<(), Error> {
        const SQL: &str = "SELECT count(*) FROM part_owner \
             JOIN unnest($2::int[], $3::bigint[], $4::bigint[]) AS mine (part, epoch, watermark) \
             USING (part, epoch, watermark) WHERE topic = $1";
        let column = |value: fn(&Owner) -> i64| owners.iter().map(value).collect::<Vec<i64>>();
        let parts: Vec<i32> = owners.iter().map(|owner| owner.part).collect();
        let (epochs, watermarks) = (column(|owner| owner.epoch), column(|owner| owner.watermark));
        let topic = self.topic.clone();
        let found: i64 = self.call("confirm what is written", async move |connection| {
            Ok(sqlx::query_scalar(SQL)
                .bind(topic)
                .bind(parts)
                .bind(epochs)
                .bind(watermarks)
                .fetch_one(connection)
                .await?)
        })?;
        if found == owners.len() as i64 || !fail::safeguard("watermark") {
            Ok(())
        } else {
            Err(Error::Forgotten)
        }
    }

    fn newest(&mut self, part: i32, below: i64) -> Result<Option<(i64, Uuid)>, Error> {
        const SQL: &str = "SELECT off, event_id FROM ledger WHERE part = $1 AND off < $2 ORDER BY off DESC LIMIT 1";
        self.call("look for the newest row", async move |connection| {
            Ok(sqlx::query_as(SQL)
                .bind(part)
                .bind(below)
                .fetch_optional(connection)
                .await?)
        })
    }

    fn holds(&mut self, part: i32, off: i64) -> Result<bool, Error> {
        const SQL: &str = "SELECT EXISTS (SELECT 1 FROM ledger WHERE part = $1 AND off = $2)";
        self.call("look for a row", async move |connection| {
            Ok(sqlx::query_scalar(SQL)
                .bind(part)
                .bind(off)
                .fetch_one(connection)
                .await?)
        })
    }

    fn refill(&mut self, owner: Owner, rows: &mut Rows) -> Result<Option<Refilled>, Error> {
        let topic = self.topic.clone();
        self.call("fill rows in again", async move |connection| {
            let mut transaction = connection.begin().await?;
            set_watermarks(&mut transaction, &topic, &[owner]).await?;
            transaction.execute(rows::CREATE_REFILL).await?;
            let mut copy = transaction.copy_in_raw(rows::COPY_REFILL).await?;
            copy.send(rows.finish()).await?;
            copy.finish().await?;
            let filled = sqlx::query_as(rows::MOVE_REFILL).fetch_one(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(match filled {
                (rows, Some(first_off), Some(last_off)) => Some(Refilled {
                    rows,
                    first_off,
                    last_off,
                }),
                (_, _, _) => None,
            })
        })
    }

    fn known(&mut self, keys: &[Key]) -> Result<HashMap<Key, Content>, Error> {
        const SQL: &str = "SELECT part, tenant, event_id, (extract(epoch FROM occurred_at) * 1000000)::bigint, account_id, \
             (amount * 10000)::bigint, currency FROM ledger \
             WHERE (part, tenant, event_id) IN (SELECT * FROM unnest($1::int[], $2::text[], $3::uuid[]))";
        let parts: Vec<i32> = keys.iter().map(|key| key.0).collect();
        let tenants: Vec<&str> = keys.iter().map(|key| key.1.as_str()).collect();
        let ids: Vec<Uuid> = keys.iter().map(|key| key.2).collect();
        self.call("look payments up", async move |connection| {
            let rows: Vec<(i32, String, Uuid, i64, String, i64, String)> = sqlx::query_as(SQL)
                .bind(parts)
                .bind(tenants)
                .bind(ids)
                .fetch_all(connection)
                .await?;
            Ok(rows
                .into_iter()
                .map(
                    |(part, tenant, id, occurred_at, account_id, ten_thousandths, currency)| {
                        let content = Content {
                            occurred_at,
                            account_id,
                            amount: Amount::from_ten_thousandths(ten_thousandths),
                            currency,
                        };
                        ((part, tenant, id), content)
                    },
                )
                .collect())
        })
    }
}

fn outcome<T>(what: &'static str, done: Result<Result<T, Failure>, Elapsed>) -> Result<T, Error> {
    match done {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Failure::Fenced)) => Err(Error::Fenced),
        Ok(Err(Failure::Database(source))) if is_unique_violation(&source) => Err(Error::Conflict),
        Ok(Err(Failure::Database(source))) => Err(Error::Database { what, source }),
        Err(_elapsed) => Err(Error::Timeout(what)),
    }
}

/// An error before it is known which call it belongs to.
enum Failure {
    Fenced,
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// Connects to the database of this URL, as every connection of the processor is made.
pub(crate) async fn connect(url: &str) -> Result<PgConnection, Error> {
    const WHAT: &str = "accept a connection";
    let options = PgConnectOptions::from_str(url)
        .map_err(failed(WHAT))?
        .application_name("sluice-processor")
        .options([
            ("idle_in_transaction_session_timeout", SILENT_TRANSACTION_MS.to_string()),
            // That does not count while Postgres waits for the data of a COPY, so that a host that is gone has to be noticed by
            // its silence, or its locks would outlive it by hours: after 5 s, and three probes 2 s apart.
            ("tcp_keepalives_idle", "5".to_owned()),
            ("tcp_keepalives_interval", "2".to_owned()),
            ("tcp_keepalives_count", "3".to_owned()),
            // The migrations' notices are of no interest.
            ("client_min_messages", "warning".to_owned()),
        ]);
    let connecting = timeout(TIMEOUT, PgConnection::connect_with(&options)).await;
    connecting.map_err(|_| Error::Timeout(WHAT))?.map_err(failed(WHAT))
}

async fn prepare(connection: &mut PgConnection, topic: &str, owners: &[Owner], rows: &mut Rows) -> Result<(), Failure> {
    fail::pass("ledger.preparing");
    let mut transaction = connection.begin().await?;
    set_watermarks(&mut transaction, topic, owners).await?;
    if !rows.is_empty() {
        let mut copy = transaction.copy_in_raw(rows::COPY).await?;
        copy.send(rows.finish()).await?;
        if let Err(error) = copy.finish().await {
            // Rolled back here and not at the next use, because the connection goes on after a conflict.
            transaction.rollback().await?;
            return Err(error.into());
        }
    }
    transaction.commit().await?;
    fail::pass("ledger.prepared");
    Ok(())
}

/// Rows are given in the order of their partitions, so that two lanes in a takeover hardly ever wait for each other. Postgres
/// promises no order; where they do wait, it refuses one of them, which takes over again.
async fn set_watermarks(connection: &mut PgConnection, topic: &str, owners: &[Owner]) -> Result<(), Failure> {
    const SQL: &str = "UPDATE part_owner SET watermark = mine.watermark \
         FROM unnest($2::int[], $3::bigint[], $4::bigint[]) AS mine (part, epoch, watermark) \
         WHERE part_owner.topic = $1 AND part_owner.part = mine.part AND part_owner.epoch = mine.epoch";
    if !fail::safeguard("watermark") {
        return Ok(());
    }
    let mut owners = owners.to_vec();
    owners.sort_unstable_by_key(|owner| owner.part);
    let column = |value: fn(&Owner) -> i64| owners.iter().map(value).collect::<Vec<i64>>();
    let parts: Vec<i32> = owners.iter().map(|owner| owner.part).collect();
    let done = sqlx::query(SQL)
        .bind(topic)
        .bind(parts)
        .bind(column(|owner| owner.epoch))
        .bind(column(|owner| owner.watermark))
        .execute(connection)
        .await?;
    if done.rows_affected() == owners.len() as u64 || !fail::safeguard("fencing") {
        Ok(())
    } else {
        Err(Failure::Fenced)
    }
}

/// Creating a partition locks the whole ledger for a moment, so it is done only where one is missing.
async fn create_partitions(connection: &mut PgConnection, parts: &[i32]) -> Result<(), sqlx::Error> {
    const MISSING: &str = "SELECT part FROM unnest($1::int[]) AS part WHERE to_regclass(format('ledger_p%s', part)) IS NULL ORDER BY part";
    let missing = async |connection: &mut PgConnection| -> Result<Vec<(i32,)>, sqlx::Error> {
        sqlx::query_as(MISSING).bind(parts).fetch_all(connection).await
    };
    if missing(connection).await?.is_empty() {
        return Ok(());
    }
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(CREATION_LOCK)
        .execute(&mut *transaction)
        .await?;
    for (part,) in missing(&mut transaction).await? {
        let create = format!("CREATE TABLE ledger_p{part} PARTITION OF ledger FOR VALUES IN ({part})");
        transaction.execute(create.as_str()).await?;
    }
    transaction.commit().await
}

fn is_unique_violation(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .is_some_and(|error| error.code() == UNIQUE_VIOLATION)
}

pub(crate) fn failed(what: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |source| Error::Database { what, source }
}
