//! How long decisions took, counted by size, so that a run of any length takes the same room.
//!
//! Filled by [`crate::traffic`] as decisions come; read by [`crate::chaos::soak`].

/// Each size is so much larger than the one before: a figure is so exact.
const STEP: f64 = 1.1;
/// The largest size is about ten minutes.
const SIZES: usize = 140;

/// Delays in milliseconds, from making an event to receiving its decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delays([u64; SIZES]);

impl Default for Delays {
    fn default() -> Self {
        Self([0; SIZES])
    }
}

impl Delays {
    /// Counts one.
    pub fn add(&mut self, delay_ms: u64) {
        let size = (delay_ms.max(1) as f64).log(STEP).ceil() as usize;
        self.0[size.min(SIZES - 1)] += 1;
    }

    /// Those of both.
    pub fn and(mut self, other: &Self) -> Self {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
        self
    }

    /// Those that came since an earlier look; all where that was of something else.
    pub fn since(&self, before: &Self) -> Self {
        let mut since = self.clone();
        for (count, before) in since.0.iter_mut().zip(before.0) {
            match count.checked_sub(before) {
                Some(more) => *count = more,
                None => return self.clone(),
            }
        }
        since
    }

    /// The delay in milliseconds that this part of them, from 0 to 1, does not exceed; none where there are none.
    pub fn quantile_ms(&self, part: f64) -> Option<f64> {
        let all: u64 = self.0.iter().sum();
        let wanted = (all as f64 * part).ceil().max(1.0) as u64;
        let mut below = 0;
        let size = self.0.iter().position(|count| {
            below += count;
            below >= wanted
        })?;
        Some(STEP.powi(i32::try_from(size).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_as_exact_as_a_step() {
        let mut delays = Delays::default();
        assert_eq!(delays.quantile_ms(0.5), None);
        for delay_ms in 1..=1_000 {
            delays.add(delay_ms);
        }
        let near = |part, expected: f64| {
            let found: f64 = delays.quantile_ms(part).unwrap_or_default();
            assert!(found >= expected && found <= expected * STEP, "{found} for {expected}");
        };
        near(0.5, 500.0);
        near(0.99, 990.0);
        let before = delays.clone();
        delays.add(10);
        assert_eq!(delays.since(&before).quantile_ms(0.5).map(f64::round), Some(11.0));
    }
}
