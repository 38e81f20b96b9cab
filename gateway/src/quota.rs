//! Owns the quota of events a second that each tenant has.
//!
//! Comes before decoding, so that a tenant over its quota costs little; the session waits where a unary call is refused.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// What the quota is called on the wire.
pub const EVENTS_PER_SECOND: &str = "tenant.events_per_second";
/// How often tenants that have their whole burst again are forgotten.
pub const FORGET_EVERY: Duration = Duration::from_secs(60);

type Limiter = DefaultKeyedRateLimiter<Arc<str>>;

/// The quotas of all tenants; one bucket for each tenant that published lately.
pub struct Quotas {
    limiter: Limiter,
    clock: DefaultClock,
    burst_events: NonZeroU32,
}

/// The quota does not have as many events now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    /// Events that are not covered yet.
    pub left: u32,
    /// When some more of them will be.
    pub retry_after: Duration,
}

impl Quotas {
    /// Gives each tenant `per_second` events, and as many as `burst_events` at once.
    pub fn new(per_second: NonZeroU32, burst_events: NonZeroU32) -> Self {
        let quota = Quota::per_second(per_second).allow_burst(burst_events);
        Self {
            limiter: RateLimiter::keyed(quota),
            clock: DefaultClock::default(),
            burst_events,
        }
    }

    /// Takes `events` from the tenant's quota, in pieces where they are more than a burst.
    ///
    /// # Errors
    /// [`Spent`]: what was taken before stays taken; call again for what is left.
    pub fn take(&self, tenant: &Arc<str>, events: u32) -> Result<(), Spent> {
        let mut left = events;
        while let Some(piece) = NonZeroU32::new(left.min(self.burst_events.get())) {
            match self.limiter.check_key_n(tenant, piece) {
                Ok(Ok(())) => left -= piece.get(),
                Ok(Err(not_until)) => {
                    return Err(Spent {
                        left,
                        retry_after: not_until.wait_time_from(self.clock.now()),
                    });
                }
                // A piece is never larger than the burst; if it were, letting it pass is the lesser harm.
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Forgets tenants that are indistinguishable from new ones.
    pub fn forget_idle(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(per_second: u32, burst: u32) -> Quotas {
        let positive = |number| NonZeroU32::new(number).expect("positive");
        Quotas::new(positive(per_second), positive(burst))
    }

    #[test]
    fn tenants_do_not_share_a_quota() {
        let quotas = quotas(1, 10);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert_eq!(quotas.take(&a, 10), Ok(()));
        let spent = quotas.take(&a, 5).expect_err("spent");
        assert_eq!(spent.left, 5);
        assert!(spent.retry_after > Duration::from_secs(3), "{spent:?}");
        assert_eq!(quotas.take(&b, 10), Ok(()));
    }

    #[test]
    fn more_than_a_burst_is_taken_in_pieces() {
        let quotas = quotas(1, 10);
        let tenant: Arc<str> = "a".into();
        assert_eq!(quotas.take(&tenant, 25).expect_err("spent").left, 15);
    }

    #[test]
    fn idle_tenants_are_forgotten() {
        let quotas = quotas(1_000_000_000, 1);
        assert_eq!(quotas.take(&"a".into(), 1), Ok(()));
        assert_eq!(quotas.limiter.len(), 1);
        while !quotas.limiter.is_empty() {
            quotas.forget_idle();
        }
    }
}
