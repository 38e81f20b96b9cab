//! Owns the saga's side of Postgres: its own connection, and every statement that it runs there.
//!
//! Used by [`super::runner`] between two calls of the rail. Everything that follows from a round is stored in one
//! transaction, which the epoch of each partition's owner guards. After any error the connection is in an unknown state:
//! drop the store and connect again.

use sluice_kafka::fail;
use sluice_proto::money::Amount;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row as _};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use uuid::Uuid;

use super::machine::{Payment, Stage};
use crate::ledger::{self, TIMEOUT};

/// What can go wrong between the saga and Postgres.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Another runner took one of the partitions.
    #[error("another processor moves the partition's money by now")]
    Fenced,
    /// The connection, or a statement.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// A row is not as this program writes it.
    #[error("the saga has a state {0:?}")]
    State(String),
    /// The connection's own runtime could not be built.
    #[error("no runtime for the connection: {0}")]
    Runtime(#[from] std::io::Error),
}

/// A partition as its runner owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) part: i32,
    pub(crate) epoch: i64,
    /// See the columns of `saga_owner`.
    pub(crate) settled: i64,
    pub(crate) notified: i64,
    pub(crate) verdicts: i64,
    pub(crate) clock_ms: i64,
}

/// Which payment, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) part: i32,
    pub(crate) off: i64,
    pub(crate) tenant: String,
    pub(crate) event_id: Uuid,
    pub(crate) account_id: String,
    pub(crate) amount: Amount,
    pub(crate) currency: String,
}

/// A committed row of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decided {
    pub(crate) subject: Subject,
    /// APPROVE, REVIEW or DECLINE.
    pub(crate) outcome: String,
}

/// A row of the saga.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) subject: Subject,
    pub(crate) payment: Payment,
    pub(crate) due_ms: i64,
    /// Of the owner that wrote the row last.
    pub(crate) epoch: i64,
}

/// What was said of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) part: i32,
    pub(crate) tenant: String,
    pub(crate) event_id: Uuid,
    /// VERDICT or CANCEL.
    pub(crate) step: &'static str,
    pub(crate) outcome: &'static str,
    pub(crate) actor: String,
    pub(crate) reason: String,
}

/// A payment's identity.
pub(crate) type Key = (i32, String, Uuid);
/// What was said, as it is read: of which payment, which step, which outcome.
pub(crate) type Said = (Key, String, String);

/// What a round leaves behind; all or nothing.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) positions: Vec<Position>,
    /// New and changed rows.
    pub(crate) rows: Vec<Open>,
    pub(crate) steps: Vec<Step>,
    /// Places of rows whose state stands in the topic of settlements.
    pub(crate) notified: Vec<(i32, i64)>,
}

/// A runner's connection.
pub(crate) struct Store {
    runtime: Runtime,
    connection: PgConnection,
}

const SUBJECT: &str = "part, off, tenant, event_id, account_id, (amount * 10000)::bigint AS amount, currency";

impl Store {
    /// Connects to the ledger's database.
    pub(crate) fn connect(url: &str) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connection = runtime.block_on(ledger::connect(url))?;
        Ok(Self { runtime, connection })
    }

    /// The partitions whose lanes have one of these names, with their watermarks.
    pub(crate) fn lanes(&mut self, topic: &str, names: &[String]) -> Result<Vec<(i32, i64)>, Error> {
        const SQL: &str =
            "SELECT part, watermark FROM part_owner WHERE topic = $1 AND instance = ANY($2) ORDER BY part";
        self.call("tell whose partitions are whose", async |connection| {
            sqlx::query_as(SQL).bind(topic).bind(names).fetch_all(connection).await
        })
    }

    /// Takes these partitions: counts their epochs up, so that any earlier runner's writes change nothing from here on.
    pub(crate) fn take(&mut self, parts: &[i32], instance: &str) -> Result<Vec<Position>, Error> {
        const SQL: &str = "INSERT INTO saga_owner (part, epoch, settled, notified, verdicts, clock_ms, instance) \
             SELECT part, 1, 0, 0, 0, 0, $2 FROM unnest($1) AS part ORDER BY part \
             ON CONFLICT (part) DO UPDATE \
             SET epoch = saga_owner.epoch + 1, instance = excluded.instance, taken_over_at = now() \
             RETURNING part, epoch, settled, notified, verdicts, clock_ms";
        let rows: Vec<(i32, i64, i64, i64, i64, i64)> = self.call("take partitions", async |connection| {
            sqlx::query_as(SQL)
                .bind(parts)
                .bind(instance)
                .fetch_all(connection)
                .await
        })?;
        let position = |(part, epoch, settled, notified, verdicts, clock_ms)| Position {
            part,
            epoch,
            settled,
            notified,
            verdicts,
            clock_ms,
        };
        Ok(rows.into_iter().map(position).collect())
    }

    /// Committed rows of a partition from one offset to another, in order.
    pub(crate) fn decided(&mut self, part: i32, from: i64, to: i64, limit: usize) -> Result<Vec<Decided>, Error> {
        let sql = format!(
            "SELECT {SUBJECT}, outcome FROM ledger WHERE part = $1 AND off >= $2 AND off < $3 ORDER BY off LIMIT $4"
        );
        let rows = self.call("read committed rows", async |connection| {
            let query = sqlx::query(&sql).bind(part).bind(from).bind(to).bind(limit as i64);
            query.fetch_all(connection).await
        })?;
        let decided = |row: &PgRow| {
            Ok(Decided {
                subject: subject(row)?,
                outcome: row.try_get("outcome")?,
            })
        };
        rows.iter()
            .map(decided)
            .collect::<Result<_, _>>()
            .map_err(failed("read a row"))
    }

    /// What was said of these payments.
    pub(crate) fn said(&mut self, of: &[&Subject]) -> Result<Vec<Said>, Error> {
        const SQL: &str = "SELECT part, tenant, event_id, step, outcome FROM saga_step \
             WHERE (part, tenant, event_id) IN (SELECT * FROM unnest($1::int[], $2::text[], $3::uuid[]))";
        let parts: Vec<i32> = of.iter().map(|subject| subject.part).collect();
        let tenants: Vec<&str> = of.iter().map(|subject| subject.tenant.as_str()).collect();
        let ids: Vec<Uuid> = of.iter().map(|subject| subject.event_id).collect();
        let rows: Vec<(i32, String, Uuid, String, String)> = self.call("tell what was said", async |connection| {
            let query = sqlx::query_as(SQL).bind(parts).bind(tenants).bind(ids);
            query.fetch_all(connection).await
        })?;
        Ok(rows
            .into_iter()
            .map(|(part, tenant, id, step, outcome)| ((part, tenant, id), step, outcome))
            .collect())
    }

    /// Whether a step was taken.
    pub(crate) fn has_said(&mut self, part: i32, tenant: &str, event_id: Uuid, step: &str) -> Result<bool, Error> {
        const SQL: &str = "SELECT EXISTS (SELECT FROM saga_step \
             WHERE part = $1 AND tenant = $2 AND event_id = $3 AND step = $4)";
        self.call("tell what was said", async |connection| {
            let query = sqlx::query_scalar(SQL)
                .bind(part)
                .bind(tenant)
                .bind(event_id)
                .bind(step);
            query.fetch_one(connection).await
        })
    }

    /// Rows about which something is to be done now, by each partition's clock; where the rail is not to be called, only
    /// holds that end.
    pub(crate) fn due(&mut self, clocks: &[(i32, i64)], calls: bool, limit: usize) -> Result<Vec<Open>, Error> {
        // A lateral join, so that each partition's due rows are found by the index and no others are looked at.
        let sql = format!(
            "SELECT {SUBJECT}, state, doubt, cancelled, attempts, due_ms, epoch \
             FROM unnest($1::int[], $2::bigint[]) AS mine (own, now_ms) CROSS JOIN LATERAL (SELECT * FROM saga \
             WHERE part = own AND due_ms <= now_ms AND state IN ('HELD', 'CAPTURING', 'RELEASING', 'REFUNDING') \
             AND ($4 OR state = 'HELD') ORDER BY due_ms LIMIT $3) AS due LIMIT $3"
        );
        let parts: Vec<i32> = clocks.iter().map(|clock| clock.0).collect();
        let now: Vec<i64> = clocks.iter().map(|clock| clock.1).collect();
        let rows = self.call("tell what is due", async |connection| {
            let query = sqlx::query(&sql).bind(parts).bind(now).bind(limit as i64).bind(calls);
            query.fetch_all(connection).await
        })?;
        rows.iter().map(open).collect()
    }

    /// The saga's row of a payment.
    pub(crate) fn find(&mut self, part: i32, tenant: &str, event_id: Uuid) -> Result<Option<Open>, Error> {
        let sql = format!(
            "SELECT {SUBJECT}, state, doubt, cancelled, attempts, due_ms, epoch FROM saga \
             WHERE part = $1 AND tenant = $2 AND event_id = $3"
        );
        let row = self.call("find a payment", async |connection| {
            let query = sqlx::query(&sql).bind(part).bind(tenant).bind(event_id);
            query.fetch_optional(connection).await
        })?;
        row.as_ref().map(open).transpose()
    }

    /// The ledger's row of a payment, below an offset.
    pub(crate) fn find_decided(
        &mut self,
        part: i32,
        tenant: &str,
        event_id: Uuid,
        below: i64,
    ) -> Result<Option<Decided>, Error> {
        let sql = format!(
            "SELECT {SUBJECT}, outcome FROM ledger WHERE part = $1 AND tenant = $2 AND event_id = $3 AND off < $4"
        );
        let row = self.call("find a decision", async |connection| {
            let query = sqlx::query(&sql).bind(part).bind(tenant).bind(event_id).bind(below);
            query.fetch_optional(connection).await
        })?;
        let decided = |row: PgRow| {
            Ok(Decided {
                subject: subject(&row)?,
                outcome: row.try_get("outcome")?,
            })
        };
        row.map(decided).transpose().map_err(failed("read a row"))
    }

    /// Trivially settled payments of a partition that the topic of settlements has still to be told of, in order.
    pub(crate) fn unnotified(&mut self, position: &Position, limit: usize) -> Result<Vec<Decided>, Error> {
        let sql = format!(
            "SELECT {SUBJECT}, outcome FROM ledger l WHERE part = $1 AND off >= $2 AND off < $3 \
             AND outcome IN ('APPROVE', 'DECLINE') \
             AND NOT EXISTS (SELECT FROM saga s WHERE s.part = l.part AND s.off = l.off) ORDER BY off LIMIT $4"
        );
        let (part, from, to) = (position.part, position.notified, position.settled);
        let rows = self.call("tell what is settled", async |connection| {
            let query = sqlx::query(&sql).bind(part).bind(from).bind(to).bind(limit as i64);
            query.fetch_all(connection).await
        })?;
        let decided = |row: &PgRow| {
            Ok(Decided {
                subject: subject(row)?,
                outcome: row.try_get("outcome")?,
            })
        };
        rows.iter()
            .map(decided)
            .collect::<Result<_, _>>()
            .map_err(failed("read a row"))
    }

    /// The same of rows of the saga.
    pub(crate) fn unnotified_rows(&mut self, parts: &[i32], limit: usize) -> Result<Vec<Open>, Error> {
        let sql = format!(
            "SELECT {SUBJECT}, state, doubt, cancelled, attempts, due_ms, epoch FROM saga \
             WHERE part = ANY($1) AND NOT notified AND state IN ('CAPTURED', 'RELEASED', 'REFUNDED') \
             ORDER BY part, off LIMIT $2"
        );
        let rows = self.call("tell what is settled", async |connection| {
            sqlx::query(&sql)
                .bind(parts)
                .bind(limit as i64)
                .fetch_all(connection)
                .await
        })?;
        rows.iter().map(open).collect()
    }

    /// Stores a round, if the partitions are still this runner's.
    pub(crate) fn store(&mut self, round: &Round) -> Result<(), Error> {
        fail::pass("saga.storing");
        let stored = self.call("store a round", async |connection| {
            let mut transaction = connection.begin().await?;
            if !set_positions(&mut transaction, &round.positions).await? {
                transaction.rollback().await?;
                return Ok(false);
            }
            write_rows(&mut transaction, &round.rows).await?;
            write_steps(&mut transaction, &round.steps, &round.positions).await?;
            mark_notified(&mut transaction, &round.notified).await?;
            transaction.commit().await?;
            Ok(true)
        })?;
        fail::pass("saga.stored");
        if stored { Ok(()) } else { Err(Error::Fenced) }
    }

    fn call<T>(
        &mut self,
        what: &'static str,
        operation: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let connection = &mut self.connection;
        let done = self
            .runtime
            .block_on(async { timeout(TIMEOUT, operation(connection)).await });
        done.map_err(|_| ledger::Error::Timeout(what))?.map_err(failed(what))
    }
}

fn failed(what: &'static str) -> impl Fn(sqlx::Error) -> Error {
    move |source| Error::Ledger(ledger::failed(what)(source))
}

/// Says whether all of them are still owned. In the order of the partitions, so that no two runners wait for each other.
async fn set_positions(connection: &mut PgConnection, positions: &[Position]) -> Result<bool, sqlx::Error> {
    const SQL: &str = "UPDATE saga_owner SET settled = mine.settled, notified = mine.notified, \
         verdicts = mine.verdicts, clock_ms = mine.clock_ms \
         FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) \
         AS mine (part, epoch, settled, notified, verdicts, clock_ms) \
         WHERE saga_owner.part = mine.part AND saga_owner.epoch = mine.epoch";
    let mut positions = positions.to_vec();
    positions.sort_unstable_by_key(|position| position.part);
    let parts: Vec<i32> = positions.iter().map(|position| position.part).collect();
    let column = |value: fn(&Position) -> i64| positions.iter().map(value).collect::<Vec<i64>>();
    let done = sqlx::query(SQL)
        .bind(parts)
        .bind(column(|it| it.epoch))
        .bind(column(|it| it.settled))
        .bind(column(|it| it.notified))
        .bind(column(|it| it.verdicts))
        .bind(column(|it| it.clock_ms))
        .execute(connection)
        .await?;
    Ok(done.rows_affected() == positions.len() as u64 || !fail::safeguard("saga-fencing"))
}

async fn write_rows(connection: &mut PgConnection, rows: &[Open]) -> Result<(), sqlx::Error> {
    const SQL: &str = "INSERT INTO saga (part, off, tenant, event_id, account_id, amount, currency, state, doubt, \
         cancelled, attempts, due_ms, epoch, notified) \
         SELECT part, off, tenant, event_id, account_id, amount / 10000.0, currency, state, doubt, cancelled, attempts, \
         due_ms, epoch, false FROM unnest($1::int[], $2::bigint[], $3::text[], $4::uuid[], $5::text[], $6::bigint[], \
         $7::text[], $8::text[], $9::boolean[], $10::boolean[], $11::int[], $12::bigint[], $13::bigint[]) \
         AS mine (part, off, tenant, event_id, account_id, amount, currency, state, doubt, cancelled, attempts, due_ms, epoch) \
         ON CONFLICT (part, off) DO UPDATE SET state = excluded.state, doubt = excluded.doubt, \
         cancelled = excluded.cancelled, attempts = excluded.attempts, due_ms = excluded.due_ms, epoch = excluded.epoch, \
         notified = saga.notified AND saga.state = excluded.state, changed_at = now()";
    if rows.is_empty() {
        return Ok(());
    }
    let numbers = |value: fn(&Open) -> i64| rows.iter().map(value).collect::<Vec<i64>>();
    let texts = |value: fn(&Open) -> &str| rows.iter().map(value).collect::<Vec<&str>>();
    let flags = |value: fn(&Open) -> bool| rows.iter().map(value).collect::<Vec<bool>>();
    sqlx::query(SQL)
        .bind(rows.iter().map(|row| row.subject.part).collect::<Vec<i32>>())
        .bind(numbers(|row| row.subject.off))
        .bind(texts(|row| &row.subject.tenant))
        .bind(rows.iter().map(|row| row.subject.event_id).collect::<Vec<Uuid>>())
        .bind(texts(|row| &row.subject.account_id))
        .bind(numbers(|row| row.subject.amount.ten_thousandths()))
        .bind(texts(|row| &row.subject.currency))
        .bind(texts(|row| row.payment.stage.as_str()))
        .bind(flags(|row| row.payment.doubt))
        .bind(flags(|row| row.payment.cancelled))
        .bind(
            rows.iter()
                .map(|row| i32::from(row.payment.attempts))
                .collect::<Vec<i32>>(),
        )
        .bind(numbers(|row| row.due_ms))
        .bind(numbers(|row| row.epoch))
        .execute(connection)
        .await?;
    Ok(())
}

/// A step that is there already is an error: whoever writes it has looked before, and nobody else may write.
async fn write_steps(connection: &mut PgConnection, steps: &[Step], owners: &[Position]) -> Result<(), sqlx::Error> {
    const SQL: &str = "INSERT INTO saga_step (part, tenant, event_id, step, outcome, actor, reason, epoch) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    for step in steps {
        let epoch = owners
            .iter()
            .find(|owner| owner.part == step.part)
            .map_or(0, |owner| owner.epoch);
        sqlx::query(SQL)
            .bind(step.part)
            .bind(&step.tenant)
            .bind(step.event_id)
            .bind(step.step)
            .bind(step.outcome)
            .bind(&step.actor)
            .bind(&step.reason)
            .bind(epoch)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn mark_notified(connection: &mut PgConnection, places: &[(i32, i64)]) -> Result<(), sqlx::Error> {
    const SQL: &str = "UPDATE saga SET notified = true \
         WHERE (part, off) IN (SELECT * FROM unnest($1::int[], $2::bigint[]))";
    if places.is_empty() {
        return Ok(());
    }
    let parts: Vec<i32> = places.iter().map(|place| place.0).collect();
    let offs: Vec<i64> = places.iter().map(|place| place.1).collect();
    sqlx::query(SQL).bind(parts).bind(offs).execute(connection).await?;
    Ok(())
}

fn subject(row: &PgRow) -> Result<Subject, sqlx::Error> {
    Ok(Subject {
        part: row.try_get("part")?,
        off: row.try_get("off")?,
        tenant: row.try_get("tenant")?,
        event_id: row.try_get("event_id")?,
        account_id: row.try_get("account_id")?,
        amount: Amount::from_ten_thousandths(row.try_get("amount")?),
        currency: row.try_get("currency")?,
    })
}

fn open(row: &PgRow) -> Result<Open, Error> {
    let read = || -> Result<_, sqlx::Error> {
        let attempts: i32 = row.try_get("attempts")?;
        let state: String = row.try_get("state")?;
        let payment = Payment {
            stage: Stage::Held,
            doubt: row.try_get("doubt")?,
            cancelled: row.try_get("cancelled")?,
            attempts: u16::try_from(attempts).unwrap_or(u16::MAX),
        };
        let open = Open {
            subject: subject(row)?,
            payment,
            due_ms: row.try_get("due_ms")?,
            epoch: row.try_get("epoch")?,
        };
        Ok((open, state))
    };
    let (mut open, state) = read().map_err(failed("read a row"))?;
    open.payment.stage = Stage::parse(&state).ok_or(Error::State(state))?;
    Ok(open)
}
