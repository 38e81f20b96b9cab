//! How long to wait before the next connection: jittered, exponential, and reset by progress only.
//!
//! Comes after a session was lost, before the next one is opened.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// The waits between the attempts of one stream.
#[derive(Debug)]
pub(crate) struct Backoff {
    /// Upper end of the next wait.
    next: Duration,
    /// Since when there was no progress.
    since: Option<Instant>,
    /// How long to go on without progress.
    patience: Duration,
}

impl Backoff {
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            next: FIRST,
            since: None,
            patience,
        }
    }

    /// Something got through: the next wait is short again.
    pub(crate) fn progress(&mut self) {
        self.next = FIRST;
        self.since = None;
    }

    /// A stream stood for so long before it was lost. One that outlasts every wait got through; one that is dropped at once
    /// did not.
    pub(crate) fn lasted(&mut self, time: Duration) {
        if time >= LONGEST.min(self.patience) {
            self.progress();
        }
    }

    /// How long to wait now, or `None` when there was no progress for too long. A random part of the wait keeps the
    /// clients of a restarted gateway from coming back all at once.
    pub(crate) fn wait(&mut self, now: Instant) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) >= self.patience {
            return None;
        }
        let longest = self.next;
        self.next = (longest * 2).min(LONGEST);
        Some(longest.mul_f64(0.5 + 0.5 * fastrand::f64()))
    }
}

/// Waits out the time between two attempts.
#[expect(
    clippy::disallowed_methods,
    reason = "a backoff is a wait for time to pass and nothing else"
)]
pub(crate) async fn pause(wait: Duration) {
    tokio::time::sleep(wait).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_progress_resets_them() {
        let mut backoff = Backoff::new(Duration::from_secs(60));
        let now = Instant::now();
        let waits: Vec<Duration> = (0..12).map(|_| backoff.wait(now).unwrap()).collect();
        assert!(waits[0] <= FIRST && waits[0] >= FIRST / 2);
        assert!(waits.iter().all(|wait| *wait <= LONGEST));
        assert!(waits[11] >= LONGEST / 2);
        backoff.progress();
        assert!(backoff.wait(now).unwrap() <= FIRST);
    }

    #[test]
    fn a_stream_that_lasted_is_progress_and_one_that_is_dropped_at_once_is_not() {
        let mut backoff = Backoff::new(Duration::from_secs(60));
        let mut now = Instant::now();
        for _hour in 0..3 {
            assert!(backoff.wait(now).unwrap() <= FIRST);
            now += Duration::from_secs(3_600);
            backoff.lasted(Duration::from_secs(3_600));
        }
        for _second in 0..60 {
            assert!(backoff.wait(now).is_some());
            now += Duration::from_secs(1);
            backoff.lasted(Duration::from_millis(900));
        }
        assert!(backoff.wait(now).is_none());
    }

    #[test]
    fn patience_ends_without_progress() {
        let mut backoff = Backoff::new(Duration::from_secs(60));
        let now = Instant::now();
        assert!(backoff.wait(now).is_some());
        assert!(backoff.wait(now + Duration::from_secs(59)).is_some());
        assert!(backoff.wait(now + Duration::from_secs(60)).is_none());
        backoff.progress();
        assert!(backoff.wait(now + Duration::from_secs(61)).is_some());
    }
}
