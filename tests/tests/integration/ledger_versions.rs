//! The ledger's tables over time: migrations that several processors apply at once, a database of the first version with
//! data in it, rows and decisions that must agree, and queries that must find an index.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use sluice_proto::pb::SettleAction;
use sluice_proto::topics;
use sluice_tests::rail::client::Rail;
use sluice_tests::run::{on_own, on_prepared};
use sluice_tests::session::Session;
use sluice_tests::stack::{GROUP, Options, Stack};
use sluice_tests::subscription::Subscription;
use sluice_tests::{events, ledger, money, servers, wait};
use sqlx::migrate::Migrator;
use sqlx::{Connection, PgConnection};

/// Where the processor has its migrations.
fn migrations() -> PathBuf {
    servers::root().join("processor/migrations")
}

async fn count(connection: &mut PgConnection, query: &str) -> Result<i64> {
    Ok(sqlx::query_scalar(query).fetch_one(connection).await?)
}

#[test]
fn three_processors_that_start_together_apply_each_migration_once() {
    let options = Options {
        processors: 3,
        lanes: 1,
        ..Options::default()
    };
    on_own(options, async |stack| {
        let mut connection = ledger::connect(stack).await?;
        let applied = count(&mut connection, "SELECT count(*) FROM _sqlx_migrations WHERE success").await?;
        let there = std::fs::read_dir(migrations())?.count();
        assert_eq!(usize::try_from(applied)?, there);
        stack.must_run()
    });
}

#[test]
fn a_database_of_the_first_version_is_brought_up_to_date_with_its_data() {
    on_prepared(Options::default(), async |stack| {
        let first = stack.directory().join("first");
        std::fs::create_dir_all(&first)?;
        std::fs::copy(migrations().join("0001_ledger.sql"), first.join("0001_ledger.sql"))?;
        let mut connection = ledger::connect(stack).await?;
        Migrator::new(first).await?.run(&mut connection).await?;
        let data = format!(
            "CREATE TABLE ledger_p0 PARTITION OF ledger FOR VALUES IN (0); \
             INSERT INTO part_owner (topic, part, epoch, watermark, instance) VALUES ('{}', 0, 7, 0, 'before'); \
             INSERT INTO ledger (part, off, tenant, event_id, account_id, amount, currency, occurred_at, outcome, score, \
             reasons, rule_set_version, late, epoch, run) SELECT 0, -n, 'old', gen_random_uuid(), 'a', 1, 'EUR', now(), \
             'APPROVE', 0, '{{}}', 'v', false, 1, gen_random_uuid() FROM generate_series(1, 500) AS n",
            stack.topic(topics::PAYMENTS)
        );
        sqlx::raw_sql(&data).execute(&mut connection).await?;
        stack.start_all().await?;
        let kept = "SELECT count(*) FROM transactions WHERE tenant = 'old' AND processing_type = 'STREAM' AND batch = 0 \
                    AND status = 'COMMITTED'";
        assert_eq!(count(&mut connection, kept).await?, 500);
        let reserved = "SELECT (sum(reserved) * 10000)::bigint FROM money WHERE tenant = 'old'";
        assert_eq!(
            count(&mut connection, reserved).await?,
            5_000_000,
            "what was decided before is reserved"
        );
        // A processor of the first version that still runs writes the columns that it knows.
        let older = "INSERT INTO ledger (part, off, tenant, event_id, account_id, amount, currency, occurred_at, outcome, \
             score, reasons, rule_set_version, late, epoch, run) SELECT 0, -1000, 'old', gen_random_uuid(), 'a', 1, 'EUR', \
             now(), 'APPROVE', 0, '{}', 'v', false, 1, gen_random_uuid()";
        sqlx::raw_sql(older).execute(&mut connection).await?;
        assert_eq!(count(&mut connection, kept).await?, 501);
        // An older processor that starts now finds migrations that it does not know.
        sqlx::raw_sql("INSERT INTO _sqlx_migrations SELECT 9999, 'of the future', now(), true, '\\x00', 1")
            .execute(&mut connection)
            .await?;
        stack.processor(0)?.terminate().await?;
        stack.start_processor(0)?;
        stack.ready().await
    });
}

async fn verify(stack: &Stack) -> Result<String> {
    let (postgres, registry) = (stack.database_url()?, stack.servers().registry.clone());
    let line = ["ledger", "verify", "--group", GROUP];
    let options = ["--postgres", postgres.as_str(), "--registry", registry.as_str()];
    stack.sluicectl(&[&line[..], &options[..]].concat())
}

#[test]
fn verify_names_what_an_older_backup_lost_and_a_takeover_brings_it_back() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let payments = events::payments("verified", 120);
        Session::open(&url, &tenant.key, "verified")
            .await?
            .store(&payments)
            .await?;
        subscription.decided(&events::ids(&payments)).await?;
        let said = verify(stack).await?;
        ensure!(said.contains("120 decisions compared"), "{said}");

        stack.processor(0)?.terminate().await?;
        let mut connection = ledger::connect(stack).await?;
        let restored = "UPDATE part_owner SET watermark = 0; DELETE FROM ledger WHERE off >= 5";
        sqlx::raw_sql(restored).execute(&mut connection).await?;
        let left = count(&mut connection, "SELECT count(*) FROM ledger").await?;
        let refused = verify(stack).await.err().context("verify saw nothing")?.to_string();
        ensure!(
            refused.contains(&format!("{} differences", 120 - left)) && refused.contains("no row of"),
            "{refused}"
        );
        stack.start_processor(0)?;
        stack.ready().await?;
        wait::until("the ledger is whole again", async || {
            Ok((count(&mut connection, "SELECT count(*) FROM ledger").await? == 120).then_some(()))
        })
        .await?;
        verify(stack).await?;
        let lineage = "SELECT count(*) FROM ledger WHERE processing_type = 'BATCH'";
        assert_eq!(
            count(&mut connection, lineage).await?,
            120 - left,
            "and says where its rows come from"
        );
        let changed = "UPDATE ledger SET score = 0.123 WHERE (part, off) = (SELECT part, off FROM ledger LIMIT 1)";
        sqlx::raw_sql(changed).execute(&mut connection).await?;
        let refused = verify(stack).await.err().context("verify saw nothing")?.to_string();
        ensure!(
            refused.contains("1 differences") && refused.contains("0.123"),
            "{refused}"
        );
        Ok(())
    });
}

#[test]
fn old_rows_are_detached_and_everything_goes_on() {
    on_prepared(Options::default(), async |stack| {
        let rail = Rail::start(stack.directory()).await?;
        stack.set_processor_env("SLUICE_RAIL", &rail.url());
        stack.start_all().await?;
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let mut session = Session::open(&url, &tenant.key, "detached").await?;
        let (old, young) = (events::payments("old", 100), events::payments("young", 60));
        let review = events::with(events::payment("rich"), |payment| {
            payment.amount = Some(events::euros(20_000, 0))
        });
        session.store(std::slice::from_ref(&review)).await?;
        session.store(&old).await?;
        subscription.decided(&events::ids(&old)).await?;
        subscription.decided(std::slice::from_ref(&review.event_id)).await?;
        let mut connection = ledger::connect(stack).await?;
        let cancelled = &old[0].event_id;
        money::settle(stack, &tenant, ("old-0", cancelled), SettleAction::Cancel).await?;
        wait::until("the payment is taken back", async || {
            let refunded = "SELECT count(*) FROM saga WHERE state = 'REFUNDED' AND notified";
            Ok((count(&mut connection, refunded).await? == 1).then_some(()))
        })
        .await?;
        money::settled(&mut connection).await?;
        let detach = |before: &str, stack: &Stack| -> Result<()> {
            let postgres = stack.database_url()?;
            for partition in 0..stack.partitions() {
                let partition = partition.to_string();
                let line = ["ledger", "detach", "--partition", partition.as_str()];
                stack.sluicectl(&[&line[..], &["--before", before, "--postgres", postgres.as_str()]].concat())?;
            }
            Ok(())
        };
        detach("2020-01-01T00:00:00Z", stack)?;
        assert_eq!(
            count(&mut connection, "SELECT count(*) FROM ledger").await?,
            101,
            "nothing is so old"
        );
        detach("2100-01-01T00:00:00Z", stack)?;
        let held = "SELECT min(off) FROM saga WHERE state = 'HELD'";
        let part = "SELECT part::bigint FROM saga WHERE state = 'HELD'";
        let (held, part) = (count(&mut connection, held).await?, count(&mut connection, part).await?);
        let left = count(&mut connection, "SELECT count(*) FROM ledger").await?;
        let beside = format!("SELECT count(*) FROM ledger WHERE part = {part} AND off >= {held}");
        assert_eq!(
            left,
            count(&mut connection, &beside).await?,
            "what is held, and what came after it, stays"
        );
        let mut steps = count(&mut connection, "SELECT count(*) FROM saga_step").await?;
        let names: Vec<String> = sqlx::query_scalar("SELECT name FROM ledger_detached")
            .fetch_all(&mut connection)
            .await?;
        for name in names {
            steps += count(&mut connection, &format!("SELECT count(*) FROM saga_step_{name}")).await?;
        }
        assert_eq!(steps, 1, "who took a payment back is not forgotten");
        session.store(&young).await?;
        subscription.decided(&events::ids(&young)).await?;
        money::settled(&mut connection).await?;
        ensure!(
            money::broken(&mut connection).await?.is_empty(),
            "the money does not add up"
        );
        let rows = "SELECT (SELECT count(*) FROM ledger) + (SELECT sum(row_count)::bigint FROM ledger_detached)";
        assert_eq!(count(&mut connection, rows).await?, 161, "none is lost");
        verify(stack).await?;
        stack.must_run()
    });
}

/// The queries that docs/operations.md and the saga rest on.
const QUERIES: [&str; 6] = [
    "SELECT * FROM transactions WHERE part = 1 AND off BETWEEN 100 AND 200",
    "SELECT * FROM transactions WHERE (part, tenant, event_id) IN \
     (SELECT part, 't', '00000000-0000-0000-0000-000000000007'::uuid FROM part_owner)",
    "SELECT * FROM predictions WHERE part = 1 AND tenant = 't' AND event_id = '00000000-0000-0000-0000-000000000007'",
    "SELECT part, off FROM ledger WHERE part = 1 AND off >= 500 AND off < 20000 ORDER BY off LIMIT 200",
    "SELECT * FROM saga WHERE part = 1 AND due_ms <= 5 AND state IN ('HELD', 'CAPTURING', 'RELEASING', 'REFUNDING') \
     ORDER BY due_ms LIMIT 200",
    "SELECT * FROM saga WHERE part = ANY('{0,1}') AND NOT notified AND state IN ('CAPTURED', 'RELEASED', 'REFUNDED') \
     ORDER BY part, off LIMIT 200",
];

#[test]
fn documented_queries_use_indexes() {
    on_own(Options::default(), async |stack| {
        let mut connection = ledger::connect(stack).await?;
        let data = "INSERT INTO ledger (part, off, tenant, event_id, account_id, amount, currency, occurred_at, outcome, \
             score, reasons, rule_set_version, late, epoch, run) SELECT n % 4, 1000000 + n, 't', gen_random_uuid(), 'a', 1, \
             'EUR', now(), 'APPROVE', 0, '{}', 'v', false, 1, gen_random_uuid() FROM generate_series(1, 80000) AS n; \
             INSERT INTO saga (part, off, tenant, event_id, account_id, amount, currency, state, doubt, cancelled, attempts, \
             due_ms, notified, epoch) SELECT n % 4, 1000000 + n, 't', gen_random_uuid(), 'a', 1, 'EUR', \
             CASE WHEN n % 10 = 0 THEN 'HELD' ELSE 'CAPTURED' END, false, false, 0, n, true, 1 \
             FROM generate_series(1, 20000) AS n; ANALYZE";
        sqlx::raw_sql(data).execute(&mut connection).await?;
        for query in QUERIES {
            let plan: Vec<String> = sqlx::query_scalar(&format!("EXPLAIN {query}"))
                .fetch_all(&mut connection)
                .await?;
            let plan = plan.join("\n");
            let scans = |table: &str| plan.contains(&format!("Seq Scan on {table}"));
            ensure!(!scans("ledger_p") && !scans("saga "), "{query}\n{plan}");
        }
        // A ledger that is far ahead of its group would be compensated away with the next takeover.
        connection.close().await?;
        Ok(())
    });
}
