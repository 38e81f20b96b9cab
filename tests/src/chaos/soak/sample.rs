//! What the servers that nobody kills take, and how long decisions take, looked at while traffic flows.
//!
//! Comes beside [`super::run`]; [`super::report`] compares the first of it with the last.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::traffic::{Observer, no_delays};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(10);

/// What one process takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Resident memory.
    pub memory_mib: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

/// One look.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// When, since the beginning.
    pub at: Duration,
    /// What each process took, in the order in which they were given.
    pub taken: Vec<Taken>,
    /// The median and the 99th percentile of the decisions' delays since the look before, in milliseconds.
    pub delay_ms: Option<(f64, f64)>,
}

/// Looks until it is told to end.
#[derive(Debug)]
pub struct Sampler {
    flowing: watch::Sender<Vec<Observer>>,
    stop: oneshot::Sender<()>,
    looking: JoinHandle<Result<Vec<Sample>>>,
}

impl Sampler {
    /// Begins to look at these processes.
    pub fn start(pids: Vec<u32>) -> Self {
        let (flowing, flows) = watch::channel(Vec::new());
        let (stop, stopped) = oneshot::channel();
        let looking = tokio::spawn(look(pids, flows, stopped));
        Self { flowing, stop, looking }
    }

    /// From now on this traffic flows; none where everything is at rest, when nothing is looked at.
    pub fn flows(&self, traffic: Vec<Observer>) {
        self.flowing.send_replace(traffic);
    }

    /// Looks no more, and tells what it saw.
    ///
    /// # Errors
    /// When a process was gone.
    pub async fn end(self) -> Result<Vec<Sample>> {
        self.stop.send(()).ok();
        self.looking.await?
    }
}

async fn look(
    pids: Vec<u32>,
    flows: watch::Receiver<Vec<Observer>>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<Vec<Sample>> {
    let began = Instant::now();
    let mut ticks = tokio::time::interval(EVERY);
    let mut samples = Vec::new();
    let mut before = no_delays();
    loop {
        tokio::select! {
            _told = &mut stopped => return Ok(samples),
            _tick = ticks.tick() => {}
        }
        let observers = flows.borrow().clone();
        if observers.is_empty() {
            before = no_delays();
            continue;
        }
        let mut delays = no_delays();
        for observer in &observers {
            delays.add(observer.delays())?;
        }
        let mut new = delays.clone();
        if new.subtract(&before).is_err() {
            // The look before was at other traffic.
            new.clone_from(&delays);
        }
        before = delays;
        samples.push(Sample {
            at: began.elapsed(),
            taken: pids.iter().map(|pid| taken(*pid)).collect::<Result<_>>()?,
            delay_ms: (!new.is_empty()).then(|| [0.5, 0.99].map(|part| new.value_at_quantile(part) as f64).into()),
        });
    }
}

fn taken(pid: u32) -> Result<Taken> {
    let told = || format!("process {pid} is gone");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(told)?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|rest| rest.split_whitespace().next());
        Ok(value.with_context(told)?.parse()?)
    };
    Ok(Taken {
        memory_mib: field("VmRSS:")? / 1_024,
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).with_context(told)?.count() as u64,
        threads: field("Threads:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_takes_something() {
        let taken = taken(std::process::id()).expect("this process is there");
        assert!(
            taken.memory_mib > 0 && taken.descriptors >= 3 && taken.threads >= 1,
            "{taken:?}"
        );
    }
}
