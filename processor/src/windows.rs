//! Owns the sliding window of one account: the exact times of its recent payments.
//!
//! Comes below [`crate::account`], which decides what is inserted and when old times can no longer matter.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Times of payments in ascending order, in microseconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    times: VecDeque<i64>,
}

impl Window {
    /// Adds a payment's time, wherever it belongs.
    pub(crate) fn insert(&mut self, time: i64) {
        // Nearly every payment is the account's newest.
        if self.times.back().is_none_or(|&newest| newest <= time) {
            self.times.push_back(time);
        } else {
            let place = self.times.partition_point(|&earlier| earlier <= time);
            self.times.insert(place, time);
        }
    }

    /// Takes one payment of this time out again. Equal times cannot be told apart, so that any of them will do.
    pub(crate) fn remove(&mut self, time: i64) {
        if let Ok(place) = self.times.binary_search(&time) {
            self.times.remove(place);
        }
    }

    /// How many payments lie after one time, up to and including another.
    pub(crate) fn count(&self, after: i64, up_to: i64) -> usize {
        let end = if self.times.back().is_some_and(|&newest| newest <= up_to) {
            self.times.len()
        } else {
            self.times.partition_point(|&time| time <= up_to)
        };
        end - self.times.partition_point(|&time| time <= after)
    }

    /// Forgets everything up to and including a time.
    pub(crate) fn forget(&mut self, up_to: i64) {
        while self.times.front().is_some_and(|&oldest| oldest <= up_to) {
            self.times.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(times: &[i64]) -> Window {
        let mut window = Window::default();
        for &time in times {
            window.insert(time);
        }
        window
    }

    #[test]
    fn counts_a_half_open_interval_whatever_the_order_of_arrival() {
        let window = window(&[30, 10, 20, 20, 40]);
        assert_eq!(window.count(10, 30), 3, "10 is out, 30 is in");
        assert_eq!(window.count(9, 40), 5);
        assert_eq!(window.count(40, 50), 0);
    }

    #[test]
    fn removing_undoes_inserting() {
        let before = window(&[10, 20, 20]);
        for time in [5, 15, 20, 25] {
            let mut after = before.clone();
            after.insert(time);
            after.remove(time);
            assert_eq!(after, before, "{time}");
        }
    }

    #[test]
    fn forgets_the_old() {
        let mut window = window(&[10, 20, 30]);
        window.forget(20);
        assert_eq!(window, self::window(&[30]));
    }
}
