//! Owns the saga's thread: rounds one after the other, a rest when there is nothing to do, and new connections after a
//! failure.
//!
//! Started by [`crate::processor`] where a rail is configured, beside the lanes; [`super::work`] is what it does.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use sluice_kafka::Config;

use super::breaker::Breaker;
use super::machine::Word;
use super::work::{Error, Session};
use crate::lane::Settings;

/// The rest after a round in which there was nothing to do.
const IDLE_REST: Duration = Duration::from_millis(50);
/// The first and the longest rest after a round that failed.
const FAILED_REST: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What the saga was asked to do.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How to reach Kafka.
    pub(crate) kafka: Config,
    /// The URL of the ledger's database.
    pub(crate) postgres: String,
    /// Base URL of the rail.
    pub(crate) rail: String,
    /// How long a call of the rail may take.
    pub(crate) timeout: Duration,
    /// How long the breaker stays open.
    pub(crate) open_for: Duration,
    /// How long a review waits for a verdict.
    pub(crate) review_deadline: Duration,
    /// What is said of it then.
    pub(crate) at_deadline: Word,
    /// Schema ids of the two topics.
    pub(crate) verdict_schema: i32,
    pub(crate) settlement_schema: i32,
}

/// Runs until the other end of `stop` is dropped. What goes wrong is tried again: a saga that cannot go on holds money,
/// and nothing else.
pub(crate) fn run(settings: &Settings, options: &Options, stop: &Receiver<()>) {
    let since = Instant::now();
    let mut breaker = Breaker::new(options.open_for);
    let mut failures = 0_u32;
    loop {
        let ended = work(settings, options, &mut breaker, since, stop, &mut failures);
        let Err(error) = ended else {
            tracing::info!("saga ended");
            return;
        };
        let rest = FAILED_REST.0.saturating_mul(1 << failures.min(16)).min(FAILED_REST.1);
        failures = failures.saturating_add(1);
        settings.metrics.saga_failed();
        tracing::error!(%error, rest_ms = rest.as_millis() as u64, "the saga begins again");
        if !goes_on(stop, rest) {
            return;
        }
    }
}

fn work(
    settings: &Settings,
    options: &Options,
    breaker: &mut Breaker,
    since: Instant,
    stop: &Receiver<()>,
    failures: &mut u32,
) -> Result<(), Error> {
    let mut session = Session::open(settings, options, breaker, since)?;
    loop {
        let busy = session.round()?;
        *failures = 0;
        let rest = if busy { Duration::ZERO } else { IDLE_REST };
        if !goes_on(stop, rest) {
            return Ok(());
        }
    }
}

/// Rests, and says whether to go on.
fn goes_on(stop: &Receiver<()>, rest: Duration) -> bool {
    matches!(stop.recv_timeout(rest), Err(RecvTimeoutError::Timeout))
}
