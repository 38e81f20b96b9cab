//! What a takeover makes right: rows that a crash left prepared, rows that Postgres lost, and a processor that was asleep
//! while others took its partitions.

use anyhow::Result;
use sluice_proto::pb;
use sluice_tests::checker::{self, Expected};
use sluice_tests::run::{on_own, on_prepared};
use sluice_tests::session::Session;
use sluice_tests::stack::Options;
use sluice_tests::subscription::Subscription;
use sluice_tests::traffic::Traffic;
use sluice_tests::{events, ledger, wait};
use sqlx::PgConnection;

/// A row as a lane leaves it that dies between Postgres' commit and Kafka's; its verdict differs from the one that the
/// payment gets, so that a row that stays is found out.
const PREPARED: &str = "INSERT INTO ledger (part, off, tenant, event_id, account_id, amount, currency, occurred_at, \
    outcome, score, reasons, rule_set_version, late, epoch, run) SELECT $1, $2, $3, $4::text::uuid, 'account', 1, 'EUR', \
    now(), 'DECLINE', 1, '{}', 'none', false, epoch, gen_random_uuid() FROM part_owner WHERE part = $1";

/// What a replica remembers that was behind, or a backup.
const FAILED_OVER: &str = "UPDATE part_owner o SET watermark = least(watermark, (SELECT coalesce(min(off), 0) + 10 \
    FROM ledger l WHERE l.part = o.part)); \
    DELETE FROM ledger l USING part_owner o WHERE l.part = o.part AND l.off >= o.watermark";
/// Turns an id into another one, and back.
const INVERSE: &str = "CREATE OR REPLACE FUNCTION event_id_of(uuid) RETURNS uuid LANGUAGE sql IMMUTABLE AS \
    $$ SELECT reverse(replace($1::text, '-', ''))::uuid $$";
/// A database without a backup.
const CREATED_ANEW: &str = "TRUNCATE ledger, part_owner";

#[test]
fn rows_that_a_crash_left_prepared_are_compensated() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let mut session = Session::open(&url, &tenant.key, "compensated").await?;
        let (before, after) = (events::payments("before", 40), events::payments("after", 20));
        session.store(&before).await?;
        subscription.decided(&events::ids(&before)).await?;
        stack.processor(0)?.terminate().await?;

        session.store(&after).await?;
        let mut connection = ledger::connect(stack).await?;
        for (event, fate) in after.iter().zip(session.fates.values().skip(before.len())) {
            let pb::Position { partition, offset } = fate.position.unwrap_or_default();
            let row = sqlx::query(PREPARED).bind(partition).bind(offset);
            row.bind(&tenant.name)
                .bind(&event.event_id)
                .execute(&mut connection)
                .await?;
        }
        stack.start_processor(0)?;
        let payments = [before, after].concat();
        subscription.decided(&events::ids(&payments)).await?;
        checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        let compensated = "SELECT coalesce(sum(row_count), 0)::bigint FROM compensation WHERE reason <> ''";
        let rows: i64 = sqlx::query_scalar(compensated).fetch_one(&mut connection).await?;
        assert_eq!(rows, 20, "each row that was removed is recorded");
        Ok(())
    });
}

#[test]
fn committed_rows_that_postgres_lost_are_filled_in_again() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let payments = events::payments("lost", 200);
        Session::open(&url, &tenant.key, "lost").await?.store(&payments).await?;
        subscription.decided(&events::ids(&payments)).await?;
        let mut connection = ledger::connect(stack).await?;
        for loss in [FAILED_OVER, CREATED_ANEW] {
            stack.processor(0)?.terminate().await?;
            sqlx::raw_sql(loss).execute(&mut connection).await?;
            let left = rows(&mut connection).await?;
            assert!(left < 100, "{left} rows are left after {loss}");
            stack.start_processor(0)?;
            wait::until("the ledger is whole again", async || {
                Ok((rows(&mut connection).await? == 200).then_some(()))
            })
            .await?;
            checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        }
        Ok(())
    });
}

#[test]
fn offsets_that_contradict_the_ledger_change_nothing() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let mut session = Session::open(&url, &tenant.key, "contradicted").await?;
        let (before, after) = (
            events::payments("contradicted", 40),
            events::payments("contradicted", 8),
        );
        session.store(&before).await?;
        subscription.decided(&events::ids(&before)).await?;
        let mut connection = ledger::connect(stack).await?;
        ledger::settled(&mut connection).await?;
        for (what, back, said) in [
            (
                "UPDATE part_owner SET watermark = watermark + 1000000 WHERE watermark > 0",
                "UPDATE part_owner SET watermark = watermark - 1000000 WHERE watermark > 1000000",
                "one of them was reset or replaced",
            ),
            (
                "UPDATE ledger SET event_id = event_id_of(event_id)",
                "UPDATE ledger SET event_id = event_id_of(event_id)",
                "the topic or the database was replaced",
            ),
        ] {
            stack.processor(0)?.terminate().await?;
            sqlx::raw_sql(INVERSE).execute(&mut connection).await?;
            sqlx::raw_sql(what).execute(&mut connection).await?;
            stack.start_processor(0)?;
            let log = stack.processor(0)?.log().to_owned();
            wait::until("the lane says what is wrong", async || {
                Ok(std::fs::read_to_string(&log)?.contains(said).then_some(()))
            })
            .await?;
            assert_eq!(rows(&mut connection).await?, 40, "{what}: nothing is removed");
            sqlx::raw_sql(back).execute(&mut connection).await?;
            stack.ready().await?;
        }
        session.store(&after).await?;
        subscription.decided(&events::ids(&after)).await?;
        let payments = [before, after].concat();
        checker::check(stack, &Expected::all(&tenant.name, &payments)).await?;
        Ok(())
    });
}

async fn rows(connection: &mut PgConnection) -> Result<i64> {
    let query = sqlx::query_scalar("SELECT count(*) FROM ledger");
    Ok(query.fetch_one(connection).await?)
}

/// A short one, because what a sleeping processor left open holds back the next one for as long.
fn two_processors() -> Options {
    Options {
        processors: 2,
        processor_env: vec![("SLUICE_TRANSACTION_TIMEOUT_MS".to_owned(), "5000".to_owned())],
        ..Options::default()
    }
}

#[test]
fn a_processor_that_slept_through_its_takeover_changes_nothing_when_it_wakes() {
    on_prepared(two_processors(), async |stack| -> Result<()> {
        stack.start_gateway()?;
        stack.start_processor(0)?;
        stack.ready().await?;
        let url = stack.gateway_url();
        let mut traffic = Traffic::start(stack, &url, &url).await?;
        traffic.flows(500).await?;
        // Stopped in the middle of whatever it does, it does not know that others go on.
        stack.processor(0)?.signal("STOP")?;
        stack.start_processor(1)?;
        traffic.flows(1_000).await?;
        stack.processor(0)?.signal("CONT")?;
        traffic.flows(1_000).await?;
        traffic.finish(stack).await?;
        stack.must_run()
    });
}
