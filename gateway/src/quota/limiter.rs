//! Owns one bound: a rate with a burst, kept by governor's GCRA, of which this gateway has its share.
//!
//! Comes after [`super::Quotas`], which knows whose bound it is. governor's limits cannot be changed, so a changed one is a
//! new limiter that begins as full as the old one was.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::Rate;

/// A burst is taken in so many parts: who waits for all of it at once loses what comes while it is full.
const PARTS: u32 = 16;
/// governor counts time in nanoseconds. Units that come no more often than this keep a rate right to a thousandth.
const SHORTEST_PERIOD_S: f64 = 1e-6;

type Inner = RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>;

#[derive(Debug)]
pub(super) struct Limiter {
    inner: Inner,
    clock: DefaultClock,
    /// Events or bytes that one of governor's cells stands for.
    unit: u64,
    burst: NonZeroU32,
    /// In which a unit comes.
    period: Duration,
}

impl Limiter {
    /// One of so many gateways' part of a rate, with this part of its burst left.
    pub(super) fn new(rate: Rate, gateways: u32, left: f64) -> Self {
        let gateways = f64::from(gateways.max(1));
        let (per_s, burst) = (rate.per_s / gateways, rate.burst / gateways);
        let unit = (per_s * SHORTEST_PERIOD_S).ceil().max(1.0);
        let period = Duration::from_secs_f64(unit / per_s);
        let burst = NonZeroU32::new((burst / unit) as u32).unwrap_or(NonZeroU32::MIN);
        #[expect(clippy::expect_used, reason = "no period is shorter than the shortest")]
        let quota = Quota::with_period(period)
            .expect("longer than nothing")
            .allow_burst(burst);
        let clock = DefaultClock::default();
        let inner = RateLimiter::direct_with_clock(quota, clock.clone()).with_middleware();
        if let Some(used) = NonZeroU32::new((f64::from(burst.get()) * (1.0 - left)) as u32) {
            // There is room for all of the burst.
            drop(inner.check_n(used));
        }
        Self {
            inner,
            clock,
            unit: unit as u64,
            burst,
            period,
        }
    }

    /// How long it takes to be full again.
    pub(super) fn refill(&self) -> Duration {
        self.period * self.burst.get()
    }

    /// Which part of the burst is left. For a limiter that will not be used any more: looking takes one unit.
    pub(super) fn left(&self) -> f64 {
        self.inner.check().map_or(0.0, |state| {
            f64::from(state.remaining_burst_capacity() + 1) / f64::from(self.burst.get())
        })
    }

    /// Takes as much of `due` as there is.
    ///
    /// # Errors
    /// How long to wait for the rest, or for half a burst where the rest is more.
    pub(super) fn pay(&self, due: &mut u64) -> Result<(), Duration> {
        let part = NonZeroU32::new(self.burst.get() / PARTS).unwrap_or(NonZeroU32::MIN);
        while let Some(rest) = NonZeroU32::new(u32::try_from(due.div_ceil(self.unit)).unwrap_or(u32::MAX)) {
            let units = rest.min(part);
            let Ok(checked) = self.inner.check_n(units) else {
                unreachable!("never more than the burst at once");
            };
            checked.map_err(|not_until| {
                let further = (rest.get() - units.get()).min(self.burst.get() / 2);
                not_until.wait_time_from(self.clock.now()) + self.period * further
            })?;
            *due = due.saturating_sub(u64::from(units.get()) * self.unit);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn rate(per_s: u32, burst: u32) -> Rate {
        Rate {
            per_s: per_s as f64,
            burst: burst as f64,
        }
    }

    fn pay(limiter: &Limiter, mut due: u64) -> (u64, Duration) {
        match limiter.pay(&mut due) {
            Ok(()) => (due, Duration::ZERO),
            Err(wait) => (due, wait),
        }
    }

    #[test]
    fn a_burst_is_there_at_once_and_the_rest_has_to_be_waited_for() {
        let limiter = Limiter::new(rate(1, 20), 1, 1.0);
        assert_eq!(pay(&limiter, 15).0, 0);
        let (left, wait) = pay(&limiter, 10);
        assert!(
            left == 5 && (Duration::from_secs(4)..=Duration::from_secs(5)).contains(&wait),
            "{wait:?}"
        );
        // What is more than a burst is waited for in halves of one.
        let (left, wait) = pay(&Limiter::new(rate(1, 20), 1, 1.0), 50);
        assert!(
            left == 30 && (Duration::from_secs(10)..=Duration::from_secs(11)).contains(&wait),
            "{wait:?}"
        );
    }

    #[test]
    fn gateways_share_rate_and_burst() {
        let limiter = Limiter::new(rate(4, 100), 4, 1.0);
        assert_eq!(pay(&limiter, 25).0, 0);
        let (left, wait) = pay(&limiter, 10);
        assert!(
            left == 10 && (Duration::from_secs(9)..=Duration::from_secs(10)).contains(&wait),
            "{wait:?}"
        );
        assert_eq!(
            pay(&Limiter::new(rate(1, 1), 9, 1.0), 1).0,
            0,
            "a share is never nothing"
        );
    }

    #[test]
    fn a_changed_limiter_is_as_full_as_the_one_before() {
        let old = Limiter::new(rate(1, 20), 1, 1.0);
        assert_eq!(pay(&old, 15).0, 0);
        let new = Limiter::new(rate(1, 100), 1, old.left());
        assert_eq!(pay(&new, 25).0, 0);
        assert_eq!(pay(&new, 2).0, 2);
        assert_eq!(new.refill(), Duration::from_secs(100));
    }

    #[test]
    fn high_rates_are_counted_in_larger_units() {
        let limiter = Limiter::new(rate(3_000_000_000, 3_000_000_000), 1, 1.0);
        assert_eq!((limiter.unit, limiter.burst.get()), (3_000, 1_000_000));
        assert_eq!(limiter.refill(), Duration::from_secs(1));
    }
}
