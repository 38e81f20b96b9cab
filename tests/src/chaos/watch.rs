//! Looks on while a trial runs: epochs must rise with every takeover, and no transaction may hold the decisions back for
//! longer than its timeout allows.
//!
//! Comes beside [`super::world`]; what it saw goes to the checker's violations.

use std::collections::HashMap;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use sluice_proto::topics;
use sqlx::{Connection, PgConnection};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::checker::{Invariant, Violations};
use crate::ledger::{self, Owner};
use crate::stack::Stack;
use crate::wait;

/// How often it looks.
const EVERY: Duration = Duration::from_millis(100);
/// How long an answer of the broker may take.
const ANSWER: Duration = Duration::from_secs(10);

/// A look-out over one installation.
#[derive(Debug)]
pub struct Watch {
    stop_epochs: oneshot::Sender<()>,
    epochs: JoinHandle<Vec<String>>,
    stop_stable: mpsc::Sender<()>,
    stable: JoinHandle<Result<()>>,
    /// The longest time so far for which an open transaction held back what was written after it.
    held_back: watch::Receiver<Duration>,
}

impl Watch {
    /// Begins to look.
    ///
    /// # Errors
    /// When the consumers cannot be made.
    pub fn start(stack: &Stack) -> Result<Self> {
        let (stop_epochs, epochs_stopped) = oneshot::channel();
        let (stop_stable, stable_stopped) = mpsc::channel();
        let (longest, held_back) = watch::channel(Duration::ZERO);
        let kafka = stack.servers().kafka.clone();
        let consumer = |isolation: &str| -> Result<BaseConsumer> {
            let mut config = ClientConfig::new();
            config
                .set("bootstrap.servers", &kafka)
                .set("isolation.level", isolation);
            Ok(config.set("group.id", "sluice-tests-watch").create()?)
        };
        let (stable, all) = (consumer("read_committed")?, consumer("read_uncommitted")?);
        let (topic, partitions) = (stack.topic(topics::DECISIONS), stack.partitions());
        let offsets = move || watch_offsets(&stable, &all, &topic, partitions, &stable_stopped, &longest);
        Ok(Self {
            stop_epochs,
            epochs: tokio::spawn(watch_epochs(stack.database_url()?, epochs_stopped)),
            stop_stable,
            stable: tokio::task::spawn_blocking(offsets),
            held_back,
        })
    }

    /// Waits until decisions were held back for longer than this.
    ///
    /// # Errors
    /// When they are not.
    pub async fn holds_back(&mut self, longer_than: Duration) -> Result<()> {
        let held = self.held_back.wait_for(|longest| *longest > longer_than);
        wait::soon("decisions are held back", held)
            .await?
            .context("nobody looks")?;
        Ok(())
    }

    /// Looks no more, and tells what must not have been: epochs that did not rise, or decisions held back for longer than
    /// the limit.
    ///
    /// # Errors
    /// When it could not look.
    pub async fn end(self, limit: Duration, violations: &mut Violations) -> Result<()> {
        self.stop_epochs.send(()).ok();
        self.stop_stable.send(()).ok();
        for seen in self.epochs.await? {
            violations.add(Invariant::Epochs, seen);
        }
        self.stable.await??;
        let longest = *self.held_back.borrow();
        if longest > limit {
            let (longest, limit) = (longest.as_millis(), limit.as_millis());
            violations.add(
                Invariant::Epochs,
                format!("the last stable offset stood still for {longest} ms, and {limit} ms are allowed"),
            );
        }
        Ok(())
    }
}

async fn watch_epochs(url: String, mut stopped: oneshot::Receiver<()>) -> Vec<String> {
    let mut ticks = tokio::time::interval(EVERY);
    let mut connection: Option<PgConnection> = None;
    let mut last: HashMap<i32, Owner> = HashMap::new();
    let mut faults = Vec::new();
    loop {
        tokio::select! {
            _told = &mut stopped => {
                if last.is_empty() {
                    faults.push("nobody could look at the epochs".to_owned());
                }
                return faults;
            }
            _tick = ticks.tick() => {}
        }
        if connection.is_none() {
            connection = PgConnection::connect(&url).await.ok();
        }
        let Some(open) = &mut connection else { continue };
        match ledger::owners(open).await {
            Ok(owners) => {
                for owner in owners {
                    faults.extend(compare(last.get(&owner.partition), &owner));
                    last.insert(owner.partition, owner);
                }
            }
            // Postgres may be what is broken, or has no tables yet.
            Err(_error) => connection = None,
        }
    }
}

fn compare(before: Option<&Owner>, now: &Owner) -> Option<String> {
    let before = before?;
    let taken_over = now.taken_over_at != before.taken_over_at;
    let wrong = now.epoch < before.epoch || (taken_over && now.epoch <= before.epoch);
    wrong.then(|| format!("the epoch did not rise from {before:?} to {now:?}"))
}

fn watch_offsets(
    stable: &BaseConsumer,
    all: &BaseConsumer,
    topic: &str,
    partitions: i32,
    stopped: &mpsc::Receiver<()>,
    longest: &watch::Sender<Duration>,
) -> Result<()> {
    let mut stands_since: HashMap<i32, (i64, Instant)> = HashMap::new();
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(EVERY) {
        for partition in 0..partitions {
            let end_of = |consumer: &BaseConsumer| {
                let offsets = consumer.fetch_watermarks(topic, partition, ANSWER);
                offsets.map(|(_first, end)| end)
            };
            // The end first, so that what is committed meanwhile does not look held back.
            let (Ok(end), Ok(last_stable)) = (end_of(all), end_of(stable)) else {
                // A broker may be what is broken. What stands still goes on standing.
                continue;
            };
            let now = Instant::now();
            let since = stands_since.entry(partition).or_insert((last_stable, now));
            if last_stable != since.0 || last_stable >= end {
                *since = (last_stable, now);
            }
            let held = now - since.1;
            longest.send_if_modified(|longest| {
                let more = held > *longest;
                if more {
                    *longest = held;
                }
                more
            });
        }
    }
    let seen = stands_since.len();
    ensure!(
        i32::try_from(seen)? == partitions,
        "the ends of {seen} partitions of {partitions} could be looked at"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_must_rise_with_each_takeover_and_never_fall() {
        let owner = |epoch, taken_over_at| Owner {
            partition: 0,
            epoch,
            watermark: 0,
            instance: String::new(),
            taken_over_at,
        };
        assert_eq!(compare(None, &owner(1, 1)), None);
        assert_eq!(compare(Some(&owner(1, 1)), &owner(1, 1)), None);
        assert_eq!(compare(Some(&owner(1, 1)), &owner(3, 2)), None);
        assert!(compare(Some(&owner(1, 1)), &owner(1, 2)).is_some());
        assert!(compare(Some(&owner(2, 1)), &owner(1, 2)).is_some());
    }
}
