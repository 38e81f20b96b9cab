//! A processor that starts again goes on from a snapshot, its own or Kafka's, and from the log where there is none that can
//! be used; its decisions are the same in each case.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sluice_proto::{pb, topics};
use sluice_tests::checker::{self, Expected};
use sluice_tests::run::on_prepared;
use sluice_tests::session::Session;
use sluice_tests::stack::{self, Options, Stack};
use sluice_tests::subscription::{Subscription, rules};
use sluice_tests::topics::{consumed, delete_before};
use sluice_tests::{events, wait};

/// Payments of one account, of which those from the sixth on are too many for a minute.
const PAYMENTS: usize = 9;
const ALLOWED: usize = 5;

/// Publishes half of the payments, stops and starts the processor with something done in between, and publishes the rest.
/// Whatever was remembered, and however, the decisions must be those of an uninterrupted run.
async fn interrupted(
    stack: &mut Stack,
    between: impl AsyncFnOnce(&mut Stack) -> Result<()>,
    restored: impl Fn(&str) -> bool,
) -> Result<()> {
    let expected = decided(stack, between, restored).await?;
    checker::check(stack, &expected).await?;
    Ok(())
}

/// The same where not everything that the checker reads is there at the end.
async fn decided(
    stack: &mut Stack,
    between: impl AsyncFnOnce(&mut Stack) -> Result<()>,
    restored: impl Fn(&str) -> bool,
) -> Result<Expected> {
    stack.start_all().await?;
    let tenant = stack.tenant();
    let url = stack.gateway_url();
    let mut subscription = Subscription::open(&url, &tenant.key).await?;
    let mut session = Session::open(&url, &tenant.key, "interrupted").await?;
    let payments: Vec<pb::Event> = (0..PAYMENTS).map(|_number| events::payment("interrupted")).collect();
    session.store(&payments[..4]).await?;
    subscription.decided(&events::ids(&payments[..4])).await?;
    between(stack).await?;
    stack.start_processor(0)?;
    stack.ready().await?;
    let page = metrics(stack).await?;
    assert!(restored(&page), "{page}");
    session.store(&payments[4..]).await?;
    // A repetition from before is recognised as well.
    session.store(&payments[..2]).await?;
    subscription.decided(&events::ids(&payments)).await?;
    for (index, event) in payments.iter().enumerate() {
        let fired = rules(&subscription.decisions[&event.event_id]);
        let expected: &[&str] = if index < ALLOWED { &[] } else { &["HIGH_FREQUENCY"] };
        assert_eq!(fired, expected, "payment {index}");
    }
    Ok(Expected::all(&tenant.name, &payments))
}

async fn metrics(stack: &Stack) -> Result<String> {
    stack::page(stack.processor_admin(0), "/metrics").await
}

fn has(page: &str, line: &str) -> bool {
    page.lines().any(|found| found == line)
}

fn options(more: &[(&str, &str)]) -> Options {
    let env = more
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Options {
        processor_env: env.collect(),
        ..Options::default()
    }
}

fn with_directory(stack: &mut Stack) -> PathBuf {
    let directory = stack.directory().join("snapshots");
    stack.set_processor_env("SLUICE_SNAPSHOT_DIR", &directory.display().to_string());
    directory
}

fn snapshots(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    let all: Vec<PathBuf> = entries.collect::<Result<_>>()?;
    ensure!(!all.is_empty(), "there is no snapshot in {}", directory.display());
    Ok(all)
}

#[test]
fn a_processor_that_was_stopped_goes_on_from_its_last_snapshot() {
    on_prepared(options(&[]), async |stack| {
        let directory = with_directory(stack);
        let stop = async |stack: &mut Stack| {
            stack.processor(0)?.terminate().await?;
            snapshots(&directory).map(|_all| ())
        };
        interrupted(stack, stop, |page| {
            has(page, "processor_snapshots_restored_total{place=\"directory\"} 1")
                && has(page, "processor_replayed_events_total 0")
        })
        .await
    });
}

#[test]
fn what_is_remembered_outlives_the_records_of_an_idle_partition() {
    on_prepared(options(&[]), async |stack| {
        with_directory(stack);
        let expire = async |stack: &mut Stack| {
            stack.processor(0)?.terminate().await?;
            let offsets = consumed(stack).await?;
            delete_before(stack, topics::PAYMENTS, &offsets).await
        };
        let restored = |page: &str| has(page, "processor_snapshots_restored_total{place=\"directory\"} 1");
        decided(stack, expire, restored).await.map(drop)
    });
}

#[test]
fn a_snapshot_that_was_cut_off_is_replaced_by_a_replay() {
    on_prepared(options(&[]), async |stack| {
        let directory = with_directory(stack);
        let cut = async |stack: &mut Stack| {
            stack.processor(0)?.terminate().await?;
            for path in snapshots(&directory)? {
                let bytes = std::fs::read(&path)?;
                std::fs::write(path, &bytes[..bytes.len() / 2])?;
            }
            Ok(())
        };
        interrupted(stack, cut, |page| {
            has(page, "processor_snapshots_rejected_total 1") && has(page, "processor_replayed_events_total 4")
        })
        .await
    });
}

#[test]
fn a_processor_elsewhere_goes_on_from_the_topic() {
    on_prepared(options(&[("SLUICE_SNAPSHOT_INTERVAL_S", "1")]), async |stack| {
        let kill = async |stack: &mut Stack| {
            wait::until("a snapshot is in the topic", async || {
                let page = metrics(stack).await?;
                Ok(has(&page, "processor_snapshots_written_total{place=\"topic\"} 1").then_some(()))
            })
            .await
            .context("no snapshot")?;
            stack.processor(0)?.kill_9()
        };
        interrupted(stack, kill, |page| {
            has(page, "processor_snapshots_restored_total{place=\"topic\"} 1")
        })
        .await
    });
}
