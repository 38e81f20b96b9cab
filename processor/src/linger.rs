//! Owns for how long a lane gathers payments for a batch, between the delay of decisions that is aimed at and the work that
//! batches cost.
//!
//! Comes before [`crate::consume`], which gathers; told of each batch by the lane. Every batch costs Kafka and Postgres the
//! same again, whatever is in it. A lane that meets its target has time to spare, and gathers for less, so that a lone payment
//! is decided at once. One that does not is short of time: larger batches give some back.

use std::time::Duration;

/// Batches after which the linger is set anew: a second or two of them, when payments keep coming.
const WINDOW_BATCHES: usize = 100;
/// The part of a window's batches that may miss the target.
const MISSED_BATCHES: usize = WINDOW_BATCHES / 100;
/// Shortest linger: what the broker needs to answer the fetch that is under way.
const SHORTEST: Duration = Duration::from_millis(1);
/// Where a lane begins, unless its longest linger is shorter.
const FIRST: Duration = Duration::from_millis(5);
/// Up fast and down slowly, because a lane that falls behind has more to lose.
const UP: f64 = 1.25;
const DOWN: f64 = 0.9;
/// Below this part of the target the linger falls; from here to the target it stays.
const COMFORT: f64 = 0.8;

/// Sets a lane's linger by the delays of its payments.
#[derive(Debug)]
pub(crate) struct Controller {
    target: Duration,
    longest: Duration,
    linger: Duration,
    /// Of the window so far: of each batch the longest.
    delays: Vec<Duration>,
}

impl Controller {
    /// `target` is for the 99th percentile of the time from the append of a payment to the commit of its decision; the linger
    /// is never over `longest`.
    pub(crate) fn new(target: Duration, longest: Duration) -> Self {
        Self {
            target,
            longest,
            linger: FIRST.min(longest),
            delays: Vec::with_capacity(WINDOW_BATCHES),
        }
    }

    /// For how long to wait for more payments after the first one of a batch.
    pub(crate) fn linger(&self) -> Duration {
        self.linger
    }

    /// Takes in a batch that was committed, by the delay of its oldest payment. At the end of a window it sets the linger,
    /// and tells the 99th percentile of the window's delays.
    pub(crate) fn observe(&mut self, delay: Duration) -> Option<Duration> {
        self.delays.push(delay);
        if self.delays.len() < WINDOW_BATCHES {
            return None;
        }
        self.delays.sort_unstable();
        let p99 = self.delays[WINDOW_BATCHES - 1 - MISSED_BATCHES];
        self.delays.clear();
        let factor = if p99 > self.target {
            UP
        } else if p99 < self.target.mul_f64(COMFORT) {
            DOWN
        } else {
            1.0
        };
        self.linger = self.linger.mul_f64(factor).max(SHORTEST).min(self.longest);
        Some(p99)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(60);
    const LONGEST: Duration = Duration::from_millis(20);

    /// Runs so many windows in which every batch has this delay.
    fn after(controller: &mut Controller, windows: usize, delay_ms: u64) -> Duration {
        for _batch in 0..windows * WINDOW_BATCHES {
            controller.observe(Duration::from_millis(delay_ms));
        }
        controller.linger()
    }

    #[test]
    fn a_lane_that_meets_its_target_lingers_less() {
        let mut controller = Controller::new(TARGET, LONGEST);
        assert_eq!(controller.linger(), FIRST);
        assert_eq!(after(&mut controller, 1, 20), FIRST.mul_f64(DOWN));
        assert_eq!(after(&mut controller, 100, 20), SHORTEST);
        assert_eq!(after(&mut controller, 100, 50), SHORTEST, "near its target it stays");
    }

    #[test]
    fn a_lane_that_falls_behind_lingers_longer() {
        let mut controller = Controller::new(TARGET, LONGEST);
        assert_eq!(after(&mut controller, 1, 61), FIRST.mul_f64(UP));
        assert_eq!(after(&mut controller, 100, 5_000), LONGEST);
    }

    #[test]
    fn one_batch_of_a_window_may_be_late() {
        let mut controller = Controller::new(TARGET, LONGEST);
        controller.observe(Duration::from_secs(9));
        for _batch in 2..WINDOW_BATCHES {
            assert_eq!(controller.observe(Duration::from_millis(7)), None);
        }
        let p99 = controller.observe(Duration::from_millis(8));
        assert_eq!(p99, Some(Duration::from_millis(8)));
    }

    #[test]
    fn the_longest_linger_goes_before_the_shortest() {
        let mut controller = Controller::new(TARGET, Duration::ZERO);
        assert_eq!(after(&mut controller, 2, 100), Duration::ZERO);
    }
}
