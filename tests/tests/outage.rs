//! A broker that does not answer for a while. Alone in its program, because cargo runs one program after the other, and every
//! other test needs the broker too.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_tests::process;
use sluice_tests::run::on_own;
use sluice_tests::servers::Servers;
use sluice_tests::stack::{self, Options, Stack};
use sluice_tests::traffic::Traffic;
use sluice_tests::wait;

const OUTAGE: Duration = Duration::from_secs(30);
/// How much longer than the outage the test may take to notice that it is over.
const PATIENCE: Duration = Duration::from_secs(60);
/// Fewer events than are published in a second, so that credit is spent at once.
const IN_FLIGHT: u32 = 1_000;
const MAX_RSS_KIB: u64 = 256 * 1_024;

/// Lets the broker go on when the test ends, however it ends.
struct Paused(u32);

impl Paused {
    fn new(pid: u32) -> Result<Self> {
        process::signal(pid, "STOP")?;
        Ok(Self(pid))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        drop(process::signal(self.0, "CONT"));
    }
}

async fn metric(stack: &Stack, name: &str) -> Result<f64> {
    let page = stack::page(stack.gateway_admin(), "/metrics").await?;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {name} in\n{page}"))?.parse()?)
}

fn rss_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.context("no VmRSS")?.trim().trim_end_matches(" kB");
    Ok(kib.parse()?)
}

#[test]
fn a_broker_that_pauses_costs_credit_and_nothing_else() {
    let options = Options {
        gateway_env: vec![("SLUICE_MAX_IN_FLIGHT_EVENTS".to_owned(), IN_FLIGHT.to_string())],
        ..Options::default()
    };
    on_own(options, async |stack| {
        let broker = Servers::from_env()?.kafka_pid;
        let url = stack.gateway_url();
        let mut traffic = Traffic::start(stack, &url, &url).await?;
        traffic.flows(500).await?;

        let accepted = async || metric(stack, "sluice_gateway_events_accepted_total").await;
        let (paused, since) = (Paused::new(broker)?, Instant::now());
        let before = accepted().await?;
        wait::within(OUTAGE + PATIENCE, "the outage", async || {
            Ok((since.elapsed() > OUTAGE).then_some(()))
        })
        .await?;
        // Of the tens of thousands that would have been published, the gateway took what credit there was.
        let taken = accepted().await? - before;
        ensure!(
            taken <= f64::from(IN_FLIGHT),
            "{taken} events were taken while nothing could be stored"
        );
        assert_eq!(
            metric(stack, "sluice_gateway_sessions").await? as u32,
            1,
            "the stream is open"
        );
        let rss_kib = rss_kib(stack.gateway()?.pid())?;
        ensure!(rss_kib < MAX_RSS_KIB, "the gateway has {rss_kib} KiB");
        drop(paused);

        traffic.flows(500).await?;
        let outcomes = traffic.finish(stack).await?;
        assert_eq!(outcomes.publish_sessions, 1, "the stream stayed open");
        println!("{} payments, {taken} of them taken in the outage", outcomes.payments);
        stack.must_run()
    });
}
