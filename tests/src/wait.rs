//! Waiting for a condition itself, with a bound: the only way in which a test waits for anything.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, MissedTickBehavior};

/// How long anything may take that should happen at once. Generous, because the machine may be busy with other tests:
/// it bounds a failure, and never the time of a test that passes.
pub const SOON: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(25);

/// Looks until the probe finds something, and returns it.
///
/// # Errors
/// When it found nothing within [`SOON`], or failed.
pub async fn until<T>(what: &str, probe: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    within(SOON, what, probe).await
}

/// Looks until the probe finds something, and returns it.
///
/// # Errors
/// When it found nothing within the limit, or failed.
pub async fn within<T>(limit: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("not within {} s: {what}", limit.as_secs());
        }
    }
}

/// Lets time pass where time is what does the harm: a network that is bad, a process that stands still.
pub async fn pause(time: Duration) {
    drop(tokio::time::timeout(time, std::future::pending::<()>()).await);
}

/// Waits for a future, but not for ever.
///
/// # Errors
/// When it takes longer than [`SOON`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    match tokio::time::timeout(SOON, future).await {
        Ok(value) => Ok(value),
        Err(_elapsed) => bail!("not within {} s: {what}", SOON.as_secs()),
    }
}
