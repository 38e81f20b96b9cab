//! Whether the money adds up: by SQL at every moment, and against the rail's own book once everything is settled.
//!
//! Comes beside a trial or a test on an installation with a rail; what it finds goes to the checker's violations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_proto::avro::PREFIX_BYTES;
use sluice_proto::event::EventId;
use sluice_proto::money::Amount;
use sluice_proto::pb;
use sluice_proto::pb::review_service_client::ReviewServiceClient;
use sluice_proto::settlement::Settlement;
use sluice_proto::topics;
use sqlx::{Connection, PgConnection};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use crate::checker::{self, Invariant, Violations};
use crate::rail::book::{Entry, Standing};
use crate::rail::client::{self, Rail};
use crate::session::{authorized, connect};
use crate::stack::{Stack, Tenant};
use crate::{ledger, wait};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);
/// How long the saga may take to settle everything once nothing is broken any more: longer than its longest wait.
const SETTLE: Duration = Duration::from_secs(150);
/// Rows of `money_broken` that are told.
const TOLD: usize = 5;

/// All money, in ten-thousandths, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Of every committed payment.
    pub reserved: i64,
    /// Moved by the rail.
    pub captured: i64,
    /// Never to be moved.
    pub released: i64,
    /// Neither yet.
    pub held: i64,
    /// Moved back, of what is captured.
    pub refunded: i64,
    /// Committed payments.
    pub payments: i64,
    /// Accounts of which the money does not add up.
    pub broken: i64,
}

/// Looks once, in one statement, and so at one moment.
///
/// # Errors
/// When Postgres does not answer.
pub async fn sample(connection: &mut PgConnection) -> Result<Sample> {
    let query = "SELECT coalesce(sum(reserved) * 10000, 0)::bigint, coalesce(sum(captured) * 10000, 0)::bigint, \
                 coalesce(sum(released) * 10000, 0)::bigint, coalesce(sum(held) * 10000, 0)::bigint, \
                 coalesce(sum(refunded) * 10000, 0)::bigint, coalesce(sum(payments), 0)::bigint, \
                 count(*) FILTER (WHERE reserved <> captured + released + held OR refunded > captured \
                 OR payments <> payments_settled_or_held) FROM money";
    let row: (i64, i64, i64, i64, i64, i64, i64) = sqlx::query_as(query).fetch_one(connection).await?;
    let (reserved, captured, released, held, refunded, payments, broken) = row;
    Ok(Sample {
        reserved,
        captured,
        released,
        held,
        refunded,
        payments,
        broken,
    })
}

/// The accounts whose money does not add up, as text; a few of them.
///
/// # Errors
/// When Postgres does not answer.
pub async fn broken(connection: &mut PgConnection) -> Result<Vec<String>> {
    let query = format!("SELECT money_broken::text FROM money_broken LIMIT {TOLD}");
    Ok(sqlx::query_scalar(&query).fetch_all(connection).await?)
}

/// What an audit saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How often it looked.
    pub samples: usize,
    /// How often the rail answered meanwhile.
    pub with_rail: usize,
    /// What was wrong.
    pub wrong: Vec<String>,
    /// The last look.
    pub last: Sample,
}

/// Looks every second, in the background.
#[derive(Debug)]
pub struct Audit {
    stop: oneshot::Sender<()>,
    looking: JoinHandle<Result<Seen>>,
}

impl Audit {
    /// Begins to look.
    ///
    /// # Errors
    /// When the installation has no database.
    pub fn start(stack: &Stack, rail: &Rail) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let looking = tokio::spawn(look(stack.database_url()?, rail.url(), stopped));
        Ok(Self { stop, looking })
    }

    /// Looks no more, and tells what it saw.
    ///
    /// # Errors
    /// When it could not look.
    pub async fn end(self) -> Result<Seen> {
        // An audit that has ended says why below.
        self.stop.send(()).ok();
        let seen = self.looking.await??;
        ensure!(seen.samples > 0 && seen.with_rail > 0, "nobody could look at the money");
        Ok(seen)
    }
}

async fn look(database: String, rail: String, mut stopped: oneshot::Receiver<()>) -> Result<Seen> {
    let mut connection = PgConnection::connect(&database).await?;
    let mut seen = Seen::default();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = &mut stopped => return Ok(seen),
        }
        let now = sample(&mut connection).await?;
        seen.samples += 1;
        if now.broken > 0 {
            let accounts = broken(&mut connection).await?;
            seen.wrong
                .push(format!("{} accounts do not add up, such as {accounts:?}", now.broken));
        }
        // The rail is ahead of what is stored about it, never behind.
        if let Ok(totals) = client::totals(&rail).await {
            seen.with_rail += 1;
            if now.captured > totals.captured || now.refunded > totals.refunded {
                seen.wrong
                    .push(format!("stored is more than was moved: {now:?}, {totals:?}"));
            }
        }
        seen.last = now;
    }
}

/// Waits until everything that is committed is settled or held for a person.
///
/// # Errors
/// When something stays open.
pub async fn settled(connection: &mut PgConnection) -> Result<()> {
    none_in(connection, "state IN ('CAPTURING', 'RELEASING', 'REFUNDING')").await
}

/// The same where every hold ends soon: waits for that, too.
///
/// # Errors
/// When something stays open.
pub async fn ended(connection: &mut PgConnection) -> Result<()> {
    none_in(connection, "state IN ('HELD', 'CAPTURING', 'RELEASING', 'REFUNDING')").await
}

async fn none_in(connection: &mut PgConnection, open: &str) -> Result<()> {
    let query = format!(
        "SELECT (SELECT coalesce(sum(o.watermark - coalesce(s.settled, 0)), 0) FROM part_owner o \
         LEFT JOIN saga_owner s USING (part))::bigint, \
         (SELECT count(*) FROM saga WHERE {open} OR (state IN ('CAPTURED', 'RELEASED', 'REFUNDED') AND NOT notified)), \
         (SELECT coalesce(sum(settled - notified), 0) FROM saga_owner)::bigint"
    );
    // What is PREPARED is not there yet for the saga, and will be.
    ledger::settled(connection).await?;
    let mut last = (0, 0, 0);
    let done = wait::within(SETTLE, "the money of every payment is settled", async || {
        last = sqlx::query_as(&query).fetch_one(&mut *connection).await?;
        Ok((last == (0_i64, 0_i64, 0_i64)).then_some(()))
    })
    .await;
    done.with_context(|| format!("offsets behind, rows under way, offsets not told: {last:?}"))
}

/// How many payments ended in each state.
pub type States = BTreeMap<String, usize>;

/// Compares every payment with the rail's book and with what was told of it. Only for an installation that is settled.
///
/// # Errors
/// When something does not answer.
pub async fn reconcile(stack: &Stack, rail: &Rail, violations: &mut Violations) -> Result<States> {
    type Row = (String, Uuid, i64, String, String, i32, i64, String);
    let query = "SELECT l.tenant, l.event_id, (l.amount * 10000)::bigint, l.account_id, l.currency, l.part, l.off, \
                 coalesce(s.state, CASE WHEN l.off >= o.settled THEN 'OPEN' WHEN l.outcome = 'APPROVE' THEN 'CAPTURED' \
                 WHEN l.outcome = 'DECLINE' THEN 'RELEASED' ELSE 'LOST' END) \
                 FROM ledger l JOIN saga_owner o USING (part) LEFT JOIN saga s USING (part, off)";
    let mut connection = ledger::connect(stack).await?;
    let payments: Vec<Row> = sqlx::query_as(query).fetch_all(&mut connection).await?;
    let mut book = by_payment(rail.book().await?);
    let mut told = told(stack).await?;
    let mut states = States::new();
    let mut wrong = |what: String| violations.add(Invariant::Money, what);
    for (tenant, event_id, amount, account, currency, part, off, state) in payments {
        let key = format!("{tenant}/{event_id}");
        let entries = book.remove(&key).unwrap_or_default();
        for entry in &entries {
            if (entry.amount, &entry.account, &entry.currency) != (amount, &account, &currency) {
                wrong(format!(
                    "{key} is {amount} {currency} of {account} here, and {entry:?} at the rail"
                ));
            }
        }
        if !fits(&state, &entries) {
            wrong(format!("{key} is {state} here, and {entries:?} at the rail"));
        }
        let settlements = told.remove(&key).unwrap_or_default();
        let kinds = settlements.iter().map(|settlement| settlement.kind.as_str()).collect();
        if !tells(&state, &kinds) {
            wrong(format!("{key} is {state}, and what was told of it is {kinds:?}"));
        }
        let event_id = EventId::new(event_id);
        for settlement in settlements {
            let should = Settlement {
                settlement_id: format!("{event_id}:{}", settlement.kind.as_str()),
                event_id,
                tenant: tenant.clone(),
                account_id: account.clone(),
                amount: Amount::from_ten_thousandths(amount),
                currency: currency.clone(),
                kind: settlement.kind,
                source_partition: part,
                source_offset: off,
            };
            if settlement != should {
                wrong(format!("{should:?} was told as {settlement:?}"));
            }
        }
        *states.entry(state).or_default() += 1;
    }
    for (key, entries) in book.into_iter().take(TOLD) {
        wrong(format!("the rail has {key}, which is no payment: {entries:?}"));
    }
    for (key, settlements) in told.into_iter().take(TOLD) {
        wrong(format!("{key}, which is no payment, was told as {settlements:?}"));
    }
    for account in broken(&mut connection).await? {
        wrong(format!("the money of an account does not add up: {account}"));
    }
    Ok(states)
}

/// The book's entries by payment, of which one may have several when it was called by several keys.
fn by_payment(book: impl IntoIterator<Item = (String, Entry)>) -> BTreeMap<String, Vec<Entry>> {
    let mut payments: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    for (key, entry) in book {
        let payment = key.splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
        payments.entry(payment).or_default().push(entry);
    }
    payments
}

/// Whether the rail may know this of a payment in this state: its money was moved once, by whatever keys, or not at all.
fn fits(state: &str, entries: &[Entry]) -> bool {
    let captures: u32 = entries.iter().map(|entry| entry.captures).sum();
    let refunds: u32 = entries.iter().map(|entry| entry.refunds).sum();
    let only = |standings: &[Standing]| entries.iter().all(|entry| standings.contains(&entry.standing));
    match state {
        "CAPTURED" => (captures, refunds) == (1, 0),
        "REFUNDED" => (captures, refunds) == (1, 1),
        "RELEASED" => captures == 0 && only(&[Standing::None, Standing::Refused, Standing::Cancelled]),
        "HELD" => captures == 0 && only(&[Standing::None]),
        _ => false,
    }
}

/// Whether the settlements may tell this of a payment in this state.
fn tells(state: &str, kinds: &BTreeSet<&'static str>) -> bool {
    let is = |wanted: &[&str]| kinds.iter().eq(wanted.iter());
    match state {
        "CAPTURED" | "RELEASED" => is(&[state]),
        // It may be refunded before its capture was told.
        "REFUNDED" => is(&["CAPTURED", "REFUNDED"]) || is(&["REFUNDED"]),
        "HELD" => kinds.is_empty(),
        _ => false,
    }
}

/// What the topic of settlements tells of each payment.
async fn told(stack: &Stack) -> Result<BTreeMap<String, Vec<Settlement>>> {
    let mut told: BTreeMap<String, Vec<Settlement>> = BTreeMap::new();
    for record in crate::topics::read(stack, topics::SETTLEMENTS).await? {
        ensure!(record.payload.len() > PREFIX_BYTES, "a settlement is empty");
        let settlement: Settlement = checker::decode(&record)?;
        let key = format!("{}/{}", settlement.tenant, settlement.event_id);
        told.entry(key).or_default().push(settlement);
    }
    Ok(told)
}

/// Says something of a payment by way of the gateway.
///
/// # Errors
/// When the gateway refuses.
pub async fn settle(
    stack: &Stack,
    tenant: &Tenant,
    (account, event_id): (&str, &str),
    action: pb::SettleAction,
) -> Result<()> {
    let mut client = ReviewServiceClient::new(connect(&stack.gateway_url()).await?);
    let request = pb::SettleRequest {
        event_id: event_id.to_owned(),
        account_id: account.to_owned(),
        action: action.into(),
        reason: "said by a test".to_owned(),
    };
    client.settle(authorized(request, &tenant.reviewer_key())).await?;
    Ok(())
}

/// Payments in a state of their own, as account and id; a few.
///
/// # Errors
/// When Postgres does not answer.
pub async fn some(connection: &mut PgConnection, state: &str, limit: i64) -> Result<Vec<(String, String)>> {
    let query = "SELECT account_id, event_id::text FROM saga WHERE state = $1 ORDER BY random() LIMIT $2";
    Ok(sqlx::query_as(query)
        .bind(state)
        .bind(limit)
        .fetch_all(connection)
        .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_and_the_topic_must_say_the_same() {
        let entry = |standing, captures, refunds| Entry {
            standing,
            account: "a".to_owned(),
            currency: "EUR".to_owned(),
            amount: 1,
            captures,
            refunds,
        };
        let captured = entry(Standing::Captured, 1, 0);
        assert!(fits("CAPTURED", std::slice::from_ref(&captured)));
        assert!(!fits("CAPTURED", &[captured.clone(), captured.clone()]), "by two keys");
        assert!(!fits("CAPTURED", &[]));
        assert!(fits("REFUNDED", &[entry(Standing::Refunded, 1, 1)]));
        assert!(fits("RELEASED", &[]));
        assert!(!fits("RELEASED", std::slice::from_ref(&captured)));
        assert!(!fits("HELD", &[entry(Standing::Cancelled, 0, 0)]));
        assert!(!fits("LOST", &[]));
        let book = ["t/1", "t/1/77", "t/2"].map(|key| (key.to_owned(), captured.clone()));
        let counts: Vec<usize> = by_payment(book).values().map(Vec::len).collect();
        assert_eq!(counts, [2, 1]);
        assert!(tells("REFUNDED", &["CAPTURED", "REFUNDED"].into()));
        assert!(!tells("RELEASED", &["CAPTURED", "RELEASED"].into()));
        assert!(!tells("CAPTURED", &BTreeSet::new()));
    }
}
