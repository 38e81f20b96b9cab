//! Owns how long a payment waits before the rail is asked about it again, by the class of what went wrong.
//!
//! Used by [`super::work`] alone.

use std::time::Duration;

use super::machine::Trouble;

/// First and longest wait after a call that never arrived. The breaker waits longer when this goes on.
const TRANSIENT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// After a call that the rail does not take, until somebody mends that.
const REJECTED: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// After the rail's word that it did nothing, or an answer that leads nowhere.
const RETRIABLE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// After a call whose outcome is not known: the question how it stands costs nothing.
const UNKNOWN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// The wait after so many attempts; `chance`, from 0 to 1, spreads those that failed together over half of it.
pub(crate) fn wait(trouble: Trouble, attempts: u16, chance: f64) -> Duration {
    let (first, longest) = match trouble {
        Trouble::Transient => TRANSIENT,
        Trouble::Rejected => REJECTED,
        Trouble::Retriable => RETRIABLE,
        Trouble::Unknown => UNKNOWN,
    };
    let whole = first
        .saturating_mul(1 << attempts.saturating_sub(1).min(16))
        .min(longest);
    whole.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_are_spread_over_their_second_half() {
        let waits: Vec<u128> = (1..5).map(|n| wait(Trouble::Retriable, n, 0.0).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1_600]);
        assert_eq!(wait(Trouble::Unknown, u16::MAX, 0.0), Duration::from_secs(60));
        assert_eq!(wait(Trouble::Transient, 0, 1.0), Duration::from_millis(250));
    }
}
