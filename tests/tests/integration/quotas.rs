//! Quotas of tenants and principals: told by name, changed while the gateway runs, and shared between gateways.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_client::{Publisher, Target};
use sluice_tests::events;
use sluice_tests::run::on_own;
use sluice_tests::session::{Session, publish_one};
use sluice_tests::stack::{self, Options};
use sluice_tests::wait;
use tokio::task::JoinSet;
use tonic_types::StatusExt;

/// The quota that two gateways share, in events a second, and its burst.
const SHARED_PER_S: u64 = 2_000;
const SHARED_BURST: u64 = 200;
/// Events of each publisher that use the burst up, and then those that are timed.
const WARM_UP: usize = 1_000;
const TIMED: usize = 5_000;
/// Enough that the quota always has something to wait for, however long an acknowledgement takes.
const IN_FLIGHT: u32 = 1_000;

fn with_file() -> Result<(Options, std::path::PathBuf)> {
    let path = std::env::temp_dir().join(format!("sluice-quotas-{}", uuid::Uuid::new_v4()));
    std::fs::write(&path, "")?;
    let options = Options {
        gateway_env: vec![("SLUICE_QUOTAS".to_owned(), path.display().to_string())],
        ..Options::default()
    };
    Ok((options, path))
}

#[test]
fn a_quota_of_bytes_is_told_by_name_and_changes_while_the_gateway_runs() {
    let (options, path) = with_file().expect("a file");
    on_own(options, async |stack| {
        let (tenant, other) = (stack.tenant(), stack.tenant());
        let url = stack.gateway_url();
        std::fs::write(
            &path,
            format!(
                "[[tenant]]\nname = \"{}\"\nbytes_per_s = 1000\nburst_bytes = 2000\n",
                tenant.name
            ),
        )?;
        let refused = wait::until("the quota counts", async || {
            Ok(publish_one(&url, &tenant.key, events::payment("bytes")).await?.err())
        });
        let status = refused.await?;
        let details = status.get_error_details();
        let quota = details.quota_failure().context("no QuotaFailure")?;
        assert_eq!(quota.violations[0].subject, "tenant.bytes_per_second");
        ensure!(details.retry_info().is_some(), "no RetryInfo");
        publish_one(&url, &other.key, events::payment("bytes")).await??;

        let mut session = Session::open(&url, &tenant.key, "bytes").await?;
        // What the quota does not cover waits.
        session.publish(&events::payments("bytes", 20), 10).await?;
        session.settle().await?;
        let throttle = session.throttles.first().context("no Throttle")?;
        assert_eq!(throttle.quota, "tenant.bytes_per_second");

        // A session that waits long notices a raised quota too.
        let started = Instant::now();
        session.publish(&events::payments("bytes", 400), 400).await?;
        std::fs::write(&path, "")?;
        session.store(&events::payments("bytes", 1)).await?;
        ensure!(started.elapsed() < Duration::from_secs(40), "the quota was not raised");
        std::fs::remove_file(&path)?;
        Ok(())
    });
}

async fn publish(url: String, key: String, name: &str, count: usize) -> Result<()> {
    let publisher = Publisher::builder(Target::new(&url, &key)?, name, 1)
        .max_in_flight(IN_FLIGHT)
        .connect()
        .await?;
    let tickets = publisher.publish_all(events::payments(name, count)).await?;
    for ticket in tickets {
        ticket.await?;
    }
    publisher.close().await?;
    Ok(())
}

#[test]
fn two_gateways_hold_one_quota_together() {
    let (options, path) = with_file().expect("a file");
    on_own(options, async |stack| {
        let tenant = stack.tenant();
        std::fs::write(
            &path,
            format!(
                "[[tenant]]\nname = \"{}\"\nevents_per_s = {SHARED_PER_S}\nburst_events = {SHARED_BURST}\n",
                tenant.name
            ),
        )?;
        let mut second = stack.another_gateway("gateway-b")?;
        second.ready().await?;
        for admin in [stack.gateway_admin(), second.admin] {
            wait::until("the gateways know each other", async || {
                let page = stack::page(admin, "/metrics").await?;
                Ok(page.lines().any(|line| line == "sluice_gateway_peers 2").then_some(()))
            })
            .await?;
        }
        let urls = [stack.gateway_url(), second.url()];
        let both = async |name: &str, count: usize| -> Result<Duration> {
            let started = Instant::now();
            let names = [format!("{name}-a"), format!("{name}-b")];
            let (first, second) = tokio::join!(
                publish(urls[0].clone(), tenant.key.clone(), &names[0], count),
                publish(urls[1].clone(), tenant.key.clone(), &names[1], count)
            );
            first?;
            second?;
            Ok(started.elapsed())
        };
        both("warm", WARM_UP).await?;
        let took = both("timed", TIMED).await?;
        let rate = (2 * TIMED) as f64 / took.as_secs_f64();
        println!("{rate:.0} events a second through two gateways, with a quota of {SHARED_PER_S}");
        let off = (rate / SHARED_PER_S as f64 - 1.0).abs();
        ensure!(
            off <= 0.05,
            "{rate:.0} events a second, and the quota is {SHARED_PER_S}"
        );

        // A gateway that is gone leaves its share to the others.
        second.process.kill_9()?;
        wait::until("the share is taken over", async || {
            let page = stack::page(stack.gateway_admin(), "/metrics").await?;
            Ok(page.lines().any(|line| line == "sluice_gateway_peers 1").then_some(()))
        })
        .await?;
        std::fs::remove_file(&path)?;
        Ok(())
    });
}

#[test]
fn a_principals_quota_is_its_own() {
    let (options, path) = with_file().expect("a file");
    on_own(options, async |stack| {
        let (tenant, other) = (stack.tenant(), stack.tenant());
        let url = stack.gateway_url();
        // The tests' keys are named as their tenants are.
        std::fs::write(
            &path,
            format!(
                "[[principal]]\ntenant = \"{}\"\nname = \"{}\"\nevents_per_s = 1\n",
                tenant.name, tenant.name
            ),
        )?;
        let mut calls = JoinSet::new();
        let refused = wait::until("the quota counts", async || {
            Ok(publish_one(&url, &tenant.key, events::payment("principal"))
                .await?
                .err())
        });
        let status = refused.await?;
        let details = status.get_error_details();
        let quota = details.quota_failure().context("no QuotaFailure")?;
        assert_eq!(quota.violations[0].subject, "principal.events_per_second");
        for _call in 0..10 {
            let (url, key) = (url.clone(), other.key.clone());
            calls.spawn(async move { publish_one(&url, &key, events::payment("principal")).await });
        }
        while let Some(answer) = calls.join_next().await {
            answer???;
        }
        std::fs::remove_file(&path)?;
        Ok(())
    });
}
