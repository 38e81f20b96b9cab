//! Owns how long a lane waits after a failure before it tries again.
//!
//! Used by [`crate::lane`] alone, which polls its group meanwhile.

use std::time::{Duration, Instant};

/// The wait after a first failure; it doubles with each further one in a row.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Open for a while after each failure, longer each time, until something succeeds.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    /// Opens after a failure, and says for how long.
    pub(crate) fn open(&mut self, now: Instant) -> Duration {
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.min(16)).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        self.open_until = Some(now + wait);
        wait
    }

    /// Whether trying makes sense.
    pub(crate) fn is_closed(&self, now: Instant) -> bool {
        self.open_until.is_none_or(|until| now >= until)
    }

    /// Forgets the failures, because something succeeded.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
        self.open_until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_start_over_after_a_success() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        assert!(breaker.is_closed(now));
        let waits: Vec<u128> = (0..8).map(|_| breaker.open(now).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert!(!breaker.is_closed(now + Duration::from_millis(4_999)));
        assert!(breaker.is_closed(now + LONGEST_WAIT));
        breaker.reset();
        assert!(breaker.is_closed(now));
        assert_eq!(breaker.open(now), FIRST_WAIT);
    }
}
