//! What becomes of the money: captured, held, released and given back, by the rules, by people and by the clock.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_proto::pb;
use sluice_proto::pb::SettleAction;
use sluice_tests::checker::Violations;
use sluice_tests::money::{self, Sample};
use sluice_tests::rail::client::Rail;
use sluice_tests::rail::faults::Faults;
use sluice_tests::run::{on_own, on_prepared};
use sluice_tests::session::Session;
use sluice_tests::stack::{Options, Stack, Tenant};
use sluice_tests::subscription::Subscription;
use sluice_tests::{checker, events, ledger, topics, wait};
use sqlx::PgConnection;

/// Seconds that a review waits.
const DEADLINE_S: u32 = 20;

/// More than a new runner suspects of each partition.
const FIRST: usize = 4_000;
/// How long the rail is away.
const OUTAGE: Duration = Duration::from_secs(5);
/// From one look at the breaker to the next.
const LOOK: Duration = Duration::from_millis(250);

/// Everything that runs, with a rail and short deadlines.
async fn start(stack: &mut Stack, deadline_s: u32) -> Result<Rail> {
    let rail = Rail::start(stack.directory()).await?;
    stack.set_processor_env("SLUICE_RAIL", &rail.url());
    stack.set_processor_env("SLUICE_RAIL_TIMEOUT_MS", "500");
    stack.set_processor_env("SLUICE_RAIL_BREAKER_OPEN_MS", "1500");
    stack.set_processor_env("SLUICE_REVIEW_DEADLINE_S", &deadline_s.to_string());
    stack.start_all().await?;
    Ok(rail)
}

/// A payment that is sent to review.
fn large(account: &str) -> pb::Event {
    events::with(events::payment(account), |payment| {
        payment.amount = Some(events::euros(20_000, 0));
    })
}

/// Two payments, of which the second is declined: nobody is in Paris and in Tokyo within a minute.
fn travelled(account: &str) -> [pb::Event; 2] {
    let at =
        |country, place, latitude, longitude| events::at(events::payment(account), country, place, latitude, longitude);
    [at("FR", "Paris", 48.85, 2.35), at("JP", "Tokyo", 35.68, 139.65)]
}

/// Publishes, and waits for the decisions.
async fn publish(stack: &Stack, tenant: &Tenant, name: &str, payments: &[pb::Event]) -> Result<Subscription> {
    let url = stack.gateway_url();
    let mut subscription = Subscription::open(&url, &tenant.key).await?;
    Session::open(&url, &tenant.key, name).await?.store(payments).await?;
    subscription.decided(&events::ids(payments)).await?;
    Ok(subscription)
}

/// Waits until a payment has this state of its own.
async fn enters(connection: &mut PgConnection, event: &pb::Event, state: &str) -> Result<()> {
    let query = "SELECT state FROM saga WHERE event_id = $1::text::uuid";
    wait::until(&format!("{} is {state}", event.event_id), async || {
        let found: Option<String> = sqlx::query_scalar(query)
            .bind(&event.event_id)
            .fetch_optional(&mut *connection)
            .await?;
        Ok(found.filter(|found| found == state).map(drop))
    })
    .await
}

fn part_of(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// Replaces the first such part by another of its length.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) -> Result<()> {
    let at = part_of(bytes, from).context("it is not in there")?;
    bytes[at..at + from.len()].copy_from_slice(to);
    Ok(())
}

async fn count(connection: &mut PgConnection, query: &str) -> Result<i64> {
    Ok(sqlx::query_scalar(query).fetch_one(connection).await?)
}

/// Everything is settled, and the rail's book and the topic of settlements say the same.
async fn reconciled(stack: &Stack, rail: &Rail, connection: &mut PgConnection) -> Result<money::States> {
    money::settled(connection).await?;
    let mut violations = Violations::default();
    let states = money::reconcile(stack, rail, &mut violations).await?;
    let violations = violations.into_vec();
    ensure!(violations.is_empty(), "{}", checker::tell(&violations));
    Ok(states)
}

#[test]
fn what_is_approved_is_captured_and_costs_one_row() {
    on_prepared(Options::default(), async |stack| {
        let rail = start(stack, 3_600).await?;
        let tenant = stack.tenant();
        let mut payments = events::payments("plain", 40);
        payments.extend(travelled("traveller"));
        payments.push(large("rich"));
        publish(stack, &tenant, "trivial", &payments).await?;
        let mut connection = ledger::connect(stack).await?;
        let states = reconciled(stack, &rail, &mut connection).await?;
        let expected = [("CAPTURED", 41), ("HELD", 1), ("RELEASED", 1)];
        assert_eq!(states, expected.map(|(state, count)| (state.to_owned(), count)).into());
        // 42 payments of 12.34 and one of 20,000.
        let sample = money::sample(&mut connection).await?;
        let cents = 123_400;
        let expected = Sample {
            reserved: 42 * cents + 200_000_000,
            captured: 41 * cents,
            released: cents,
            held: 200_000_000,
            refunded: 0,
            payments: 43,
            broken: 0,
        };
        assert_eq!(sample, expected);
        assert_eq!(
            count(&mut connection, "SELECT count(*) FROM saga").await?,
            1,
            "only the review"
        );
        assert_eq!(count(&mut connection, "SELECT count(*) FROM open_reviews").await?, 1);
        Ok(())
    });
}

/// Waits until the saga has come to every payment.
async fn passed(stack: &Stack, connection: &mut PgConnection) -> Result<()> {
    topics::consumed(stack).await?;
    ledger::settled(connection).await?;
    let behind = "SELECT count(*) FROM part_owner o LEFT JOIN saga_owner s USING (part) \
        WHERE coalesce(s.settled, 0) < o.watermark";
    wait::until("the saga has come to every payment", async || {
        Ok((count(connection, behind).await? == 0).then_some(()))
    })
    .await
}

/// It knows one key for payments of several accounts that have one event_id.
#[test]
fn a_payment_that_the_rail_rejects_holds_up_nobody_else() {
    on_prepared(Options::default(), async |stack| {
        let _rail = start(stack, 3_600).await?;
        let tenant = stack.tenant();
        let mut connection = ledger::connect(stack).await?;
        // At first the rail is asked what it knows of a key, because an earlier runner may have asked for the payment.
        let url = stack.gateway_url();
        let mut session = Session::open(&url, &tenant.key, "rejected").await?;
        session.store(&events::payments("first", FIRST)).await?;
        passed(stack, &mut connection).await?;
        let first = events::payment("same-0");
        let same = (1..12).map(|number| pb::Event {
            event_id: first.event_id.clone(),
            ..events::payment(&format!("same-{number}"))
        });
        let mut payments: Vec<pb::Event> = std::iter::once(first.clone()).chain(same).collect();
        payments.extend(events::payments("plain", 50));
        session.store(&payments).await?;
        passed(stack, &mut connection).await?;
        let rejected = count(&mut connection, "SELECT count(*) FROM saga WHERE state = 'CAPTURING'").await?;
        let decided = count(&mut connection, "SELECT count(*) FROM ledger").await?;
        let plain = i64::try_from(FIRST)? + 50;
        assert_eq!(rejected, decided - plain - 1, "one of them was captured");
        ensure!(rejected > 0, "all accounts are in one partition");
        let others = "SELECT count(*) FROM saga WHERE state <> 'CAPTURING' OR account_id NOT LIKE 'same%'";
        assert_eq!(count(&mut connection, others).await?, 0, "no other payment waits");
        Ok(())
    });
}

#[test]
fn without_a_rail_everything_stays_reserved() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        publish(stack, &tenant, "unmoved", &events::payments("unmoved", 10)).await?;
        let mut connection = ledger::connect(stack).await?;
        ledger::settled(&mut connection).await?;
        let sample = money::sample(&mut connection).await?;
        assert_eq!((sample.reserved, sample.held, sample.broken), (1_234_000, 1_234_000, 0));
        // A rail that is set up later is to find them.
        let postgres = stack.database_url()?;
        let line = ["ledger", "detach", "--partition", "0", "--postgres", &postgres];
        let refused = stack.sluicectl(&[&line[..], &["--before", "2020-01-01T00:00:00Z"]].concat());
        let told = refused.err().context("rows were detached that nobody has settled")?;
        ensure!(format!("{told:#}").contains("--without-rail"), "{told:#}");
        Ok(())
    });
}

#[test]
fn a_review_ends_by_the_first_word_or_by_its_deadline() {
    on_prepared(Options::default(), async |stack| {
        let rail = start(stack, DEADLINE_S).await?;
        let tenant = stack.tenant();
        let reviews: Vec<pb::Event> = (0..5).map(|number| large(&format!("rich-{number}"))).collect();
        let [approved, declined, cancelled, waiting, twice] = &reviews[..] else {
            unreachable!("five were made");
        };
        publish(stack, &tenant, "reviews", &reviews).await?;
        let mut connection = ledger::connect(stack).await?;
        for event in [approved, cancelled, waiting, twice] {
            enters(&mut connection, event, "HELD").await?;
        }
        let say = async |event: &pb::Event, action| {
            let number = reviews.iter().position(|review| review.event_id == event.event_id);
            let account = format!("rich-{}", number.context("a review")?);
            money::settle(stack, &tenant, (&account, &event.event_id), action).await
        };
        say(approved, SettleAction::Approve).await?;
        say(cancelled, SettleAction::Cancel).await?;
        say(twice, SettleAction::Decline).await?;
        say(twice, SettleAction::Approve).await?;
        let registry = stack.servers().registry.clone();
        let line = ["review", "decline", &tenant.name, "rich-1", &declined.event_id];
        let options = ["--reason", "stolen", "--actor", "desk", "--registry", &registry];
        stack.sluicectl(&[&line[..], &options[..]].concat())?;
        // Somebody who writes to Kafka says what Postgres has no room for.
        let said = topics::read(stack, sluice_proto::topics::VERDICTS).await?;
        let mut forged = said
            .into_iter()
            .find(|record| part_of(&record.payload, b"stolen").is_some());
        let forged = forged.as_mut().context("the verdict is in the topic")?;
        replace(&mut forged.payload, b"stolen", b"st\0len")?;
        let nobodys = uuid::Uuid::now_v7().to_string();
        replace(&mut forged.payload, declined.event_id.as_bytes(), nobodys.as_bytes())?;
        topics::write_again(stack, sluice_proto::topics::VERDICTS, vec![forged.clone()]).await?;
        enters(&mut connection, approved, "CAPTURED").await?;
        for event in [declined, cancelled, twice] {
            enters(&mut connection, event, "RELEASED").await?;
        }
        let url = stack.database_url()?;
        let listed = stack.sluicectl(&["review", "list", "--postgres", &url, "--tenant", &tenant.name])?;
        ensure!(
            listed.contains(&waiting.event_id) && !listed.contains(&declined.event_id),
            "{listed}"
        );
        // Nobody says anything of the last one.
        enters(&mut connection, waiting, "RELEASED").await?;
        let held_s = "SELECT extract(epoch FROM changed_at - created_at)::bigint FROM saga ORDER BY 1 DESC LIMIT 1";
        let held_s = count(&mut connection, held_s).await?;
        ensure!(held_s >= i64::from(DEADLINE_S) - 1, "it was released after {held_s} s");
        // A word that comes too late changes nothing.
        say(waiting, SettleAction::Approve).await?;
        let states = reconciled(stack, &rail, &mut connection).await?;
        let expected = [("CAPTURED", 1), ("RELEASED", 4)];
        assert_eq!(states, expected.map(|(state, count)| (state.to_owned(), count)).into());
        let current =
            "SELECT count(*) FROM predictions WHERE current AND version = 2 AND source IN ('ANALYST', 'DEADLINE')";
        assert_eq!(
            count(&mut connection, current).await?,
            4,
            "a cancellation is no verdict"
        );
        let kept = "SELECT count(*) FROM predictions WHERE NOT current AND version = 1 AND outcome = 'REVIEW'";
        assert_eq!(count(&mut connection, kept).await?, 4, "the rules' judgement is kept");
        Ok(())
    });
}

#[test]
fn a_payment_is_taken_back_before_and_after_its_capture() {
    on_prepared(Options::default(), async |stack| {
        let rail = start(stack, 3_600).await?;
        let tenant = stack.tenant();
        let (captured, never) = (events::payment("captured"), events::payment("never"));
        // Before it even exists: the reservation that comes later is refused.
        money::settle(stack, &tenant, ("never", &never.event_id), SettleAction::Cancel).await?;
        let mut connection = ledger::connect(stack).await?;
        wait::until("the cancellation is kept", async || {
            Ok((count(&mut connection, "SELECT count(*) FROM saga_step").await? == 1).then_some(()))
        })
        .await?;
        publish(stack, &tenant, "taken-back", &[captured.clone(), never.clone()]).await?;
        enters(&mut connection, &never, "RELEASED").await?;
        money::settled(&mut connection).await?;
        money::settle(stack, &tenant, ("captured", &captured.event_id), SettleAction::Cancel).await?;
        enters(&mut connection, &captured, "REFUNDED").await?;
        let states = reconciled(stack, &rail, &mut connection).await?;
        let expected = [("REFUNDED", 1), ("RELEASED", 1)];
        assert_eq!(states, expected.map(|(state, count)| (state.to_owned(), count)).into());
        Ok(())
    });
}

#[test]
fn only_a_principal_with_the_role_may_review() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let mut client = pb::review_service_client::ReviewServiceClient::new(
            sluice_tests::session::connect(&stack.gateway_url()).await?,
        );
        let request = pb::SettleRequest {
            event_id: uuid::Uuid::now_v7().to_string(),
            account_id: "a".to_owned(),
            action: SettleAction::Approve.into(),
            reason: String::new(),
        };
        let refused = client
            .settle(sluice_tests::session::authorized(request, &tenant.key))
            .await;
        let status = refused.err().context("the call was let through")?;
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
        Ok(())
    });
}

#[test]
fn a_rail_that_is_away_holds_everything_and_meets_no_herd_when_it_is_back() {
    on_prepared(Options::default(), async |stack| {
        let rail = start(stack, 3_600).await?;
        let away = Faults {
            away: true,
            ..Faults::default()
        };
        rail.order(away).await?;
        let tenant = stack.tenant();
        publish(stack, &tenant, "away", &events::payments("away", 2_000)).await?;
        let page = async |stack: &Stack| sluice_tests::stack::page(stack.processor_admin(0), "/metrics").await;
        wait::until("the breaker is open", async || {
            let open = page(stack)
                .await?
                .lines()
                .any(|line| line == "processor_rail_breaker_state 2");
            Ok(open.then_some(()))
        })
        .await?;
        let mut connection = ledger::connect(stack).await?;
        let sample = money::sample(&mut connection).await?;
        assert_eq!((sample.captured, sample.broken), (0, 0));
        // A verdict is one of a review: of an approved payment it says nothing, also while that waits for the rail.
        let newest = "SELECT account_id, event_id::text FROM ledger ORDER BY off DESC LIMIT 1";
        let (account, id): (String, String) = sqlx::query_as(newest).fetch_one(&mut connection).await?;
        money::settle(stack, &tenant, (&account, &id), SettleAction::Decline).await?;
        assert_eq!(
            count(&mut connection, "SELECT count(*) FROM saga").await?,
            0,
            "an outage makes no rows"
        );
        // The trace of the breaker: each look is one character, and a look is due every quarter of a second.
        let (began, mut trace) = (std::time::Instant::now(), String::new());
        let look = async |stack: &Stack, trace: &mut String| -> Result<()> {
            let page = page(stack).await?;
            let state = page
                .lines()
                .find_map(|line| line.strip_prefix("processor_rail_breaker_state "));
            trace.push(match state.context("no state")? {
                "0" => '.',
                "1" => '?',
                _ => '#',
            });
            Ok(())
        };
        wait::until("the outage has gone on for a while", async || {
            if began.elapsed() >= LOOK * trace.len() as u32 {
                look(stack, &mut trace).await?;
            }
            Ok((began.elapsed() > OUTAGE).then_some(()))
        })
        .await?;
        rail.order(Faults::default()).await?;
        let back = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_secs();
        wait::until("everything is captured", async || {
            if began.elapsed() >= LOOK * trace.len() as u32 {
                look(stack, &mut trace).await?;
            }
            let captured = money::sample(&mut connection).await?.captured;
            Ok((captured == 2_000 * 123_400).then_some(()))
        })
        .await?;
        let states = reconciled(stack, &rail, &mut connection).await?;
        assert_eq!(states.get("CAPTURED"), Some(&2_000));
        let judged_again = "SELECT count(*) FROM predictions WHERE version = 2";
        assert_eq!(count(&mut connection, judged_again).await?, 0);
        let load = rail.load().await?;
        let after = load.range(back..).map(|(_, load)| load.payments);
        // Probes, then a hundred in the first second and twice as many in each that follows; a second of the wall clock has
        // parts of two of them.
        for (second, payments) in after.clone().enumerate().take(4) {
            let most = 3 + 100 * ((1 << second) + (1 << (second + 1)));
            trace.push_str(&format!(" {payments}"));
            ensure!(
                payments <= most,
                "{payments} payments in second {second} after the rail was back: {load:?}"
            );
        }
        println!("{trace}");
        Ok(())
    });
}

#[test]
fn the_check_notices_money_that_does_not_add_up() {
    on_prepared(Options::default(), async |stack| {
        let rail = start(stack, 3_600).await?;
        let tenant = stack.tenant();
        let mut payments = events::payments("checked", 10);
        payments.push(large("rich"));
        publish(stack, &tenant, "checked", &payments).await?;
        let mut connection = ledger::connect(stack).await?;
        reconciled(stack, &rail, &mut connection).await?;
        for damage in [
            "DELETE FROM saga",
            "UPDATE saga SET amount = amount + 1",
            "UPDATE saga_owner SET settled = settled - 1 WHERE part = (SELECT part FROM saga)",
            "UPDATE ledger SET outcome = 'REVIEW' WHERE outcome = 'APPROVE'",
        ] {
            let mut transaction = sqlx::Connection::begin(&mut connection).await?;
            sqlx::raw_sql("UPDATE saga_owner SET notified = 0")
                .execute(&mut *transaction)
                .await?;
            sqlx::raw_sql(damage).execute(&mut *transaction).await?;
            let broken = money::broken(&mut transaction).await?;
            ensure!(!broken.is_empty(), "nobody notices: {damage}");
            transaction.rollback().await?;
        }
        Ok(())
    });
}
