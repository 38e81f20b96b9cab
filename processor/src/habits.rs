//! Owns what is usual for an account: the hours at which it pays, its devices and its countries.
//!
//! Comes below [`crate::account`]. It is small and copied as a whole into the undo log. What it remembers reaches back a
//! few days and no further, so that it is a function of those days' payments alone.

use crate::calendar::{self, HISTORY_DAYS, HISTORY_US, SECOND_US};
use serde::{Deserialize, Serialize};

/// Devices and countries that are remembered of each account: the ones seen last.
const REMEMBERED: usize = 6;
/// On how many of the days before its own an account must have paid for its hours to count as known.
const DAYS_TO_KNOW: u32 = 3;
const HOURS: usize = 24;
const DAYS_MASK: u8 = (1 << HISTORY_DAYS) - 1;

/// What is usual for an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Habits {
    hours: Hours,
    devices: Recent,
    countries: Recent,
}

/// How a payment differs from what is usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unusual {
    pub(crate) hour: bool,
    pub(crate) device: bool,
    pub(crate) country: bool,
}

impl Habits {
    /// Compares a payment with what is usual, and takes it in. Devices and countries go by a number that stands for them.
    pub(crate) fn observe(&mut self, time: i64, device: Option<u32>, country: Option<u32>) -> Unusual {
        let (day, hour, second) = (calendar::day(time), calendar::hour(time), calendar::second(time));
        let unusual = Unusual {
            hour: self.hours.is_unusual(day, hour),
            device: device.is_some_and(|device| self.devices.is_new(device, second)),
            country: country.is_some_and(|country| self.countries.is_new(country, second)),
        };
        self.hours.see(day, hour);
        if let Some(device) = device {
            self.devices.see(device, second);
        }
        if let Some(country) = country {
            self.countries.see(country, second);
        }
        unusual
    }
}

/// In which hours of which days the account paid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Hours {
    /// The newest day.
    newest: i32,
    /// For each hour, a bit for each day: the lowest is the newest day's. Eight days suffice, because no payment that is
    /// in time can lie more than two days behind the newest.
    days: [u8; HOURS],
}

impl Hours {
    fn see(&mut self, day: i32, hour: usize) {
        let ahead = day.saturating_sub(self.newest);
        if ahead > 0 {
            for days in &mut self.days {
                *days = days.checked_shl(ahead.unsigned_abs()).unwrap_or(0);
            }
            self.newest = day;
        }
        let back = self.newest.saturating_sub(day).unsigned_abs();
        self.days[hour] |= 1_u8.checked_shl(back).unwrap_or(0);
    }

    /// Whether the account paid on enough of the days before this one, and never within an hour of this hour of the day.
    fn is_unusual(&self, day: i32, hour: usize) -> bool {
        let back = self.newest.saturating_sub(day.saturating_sub(1));
        let before = |days: u8| {
            let shifted = if back >= 0 {
                days.checked_shr(back.unsigned_abs())
            } else {
                days.checked_shl(back.unsigned_abs())
            };
            shifted.unwrap_or(0) & DAYS_MASK
        };
        let near = [hour + HOURS - 1, hour, hour + 1];
        if near.iter().any(|hour| before(self.days[hour % HOURS]) != 0) {
            return false;
        }
        let active = self.days.iter().fold(0, |all, days| all | before(*days));
        active.count_ones() >= DAYS_TO_KNOW
    }
}

/// Things that were seen, each with the last second at which it was. The order says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Recent {
    seen: [Seen; REMEMBERED],
}

/// A free place has the second 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    second: u32,
    what: u32,
}

impl Recent {
    /// Whether others were seen within the history, and this was not. What has no history is not new to it.
    fn is_new(&self, what: u32, second: u32) -> bool {
        let oldest = second.saturating_sub((HISTORY_US / SECOND_US) as u32).max(1);
        let mut known = self.seen.iter().filter(|seen| seen.second >= oldest).peekable();
        known.peek().is_some() && known.all(|seen| seen.what != what)
    }

    /// Takes it in, in the place of the one that was not seen for longest.
    fn see(&mut self, what: u32, second: u32) {
        let same = self.seen.iter_mut().find(|seen| seen.second > 0 && seen.what == what);
        if let Some(seen) = same {
            seen.second = seen.second.max(second);
            return;
        }
        let new = Seen { second, what };
        // Of two that were last seen at once the number decides, and not the place: places depend on older history.
        if let Some(oldest) = self.seen.iter_mut().min_by_key(|seen| (seen.second, seen.what))
            && (oldest.second, oldest.what) < (second, what)
        {
            *oldest = new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::{DAY_US, HOUR_US};
    use crate::testing::T0;

    fn at(day: i64, hour: i64) -> i64 {
        T0 + day * DAY_US + hour * HOUR_US
    }

    fn hour_is_unusual(habits: &Habits, time: i64) -> bool {
        let mut copy = *habits;
        copy.observe(time, None, None).hour
    }

    #[test]
    fn an_hour_is_unusual_once_three_days_are_known_that_lack_it() {
        let mut habits = Habits::default();
        for day in 0..3 {
            assert!(!habits.observe(at(day, 12), None, None).hour, "too little is known");
        }
        assert!(hour_is_unusual(&habits, at(3, 3)));
        for hour in [11, 12, 13] {
            assert!(!hour_is_unusual(&habits, at(3, hour)), "{hour} is near noon");
        }
        assert!(hour_is_unusual(&habits, at(5, 3)), "all three days are within five");
        assert!(!hour_is_unusual(&habits, at(6, 3)), "only two days are left");
        habits.observe(at(3, 23), None, None);
        assert!(!hour_is_unusual(&habits, at(4, 0)), "midnight is near 23");
    }

    #[test]
    fn days_out_of_order_are_the_same_days() {
        let mut habits = Habits::default();
        for day in [1, 0, 2] {
            habits.observe(at(day, 12), None, None);
        }
        assert!(hour_is_unusual(&habits, at(3, 3)));
        assert!(!hour_is_unusual(&habits, at(2, 3)), "its own day does not count");
    }

    #[test]
    fn a_device_is_new_beside_others_that_are_known() {
        let mut habits = Habits::default();
        let device = |habits: &mut Habits, time, device| habits.observe(time, Some(device), None).device;
        assert!(!device(&mut habits, at(0, 0), 1), "the first one has nothing beside it");
        assert!(device(&mut habits, at(0, 1), 2));
        assert!(!device(&mut habits, at(0, 2), 2));
        assert!(
            !habits.observe(at(0, 3), None, None).device,
            "no device is not a new one"
        );
        assert!(!device(&mut habits, at(5, 2), 2), "five days later it is known");
        assert!(device(&mut habits, at(5, 2), 1), "and the other one is forgotten");
        assert!(!device(&mut habits, at(11, 0), 3), "nothing is known any more");
    }

    #[test]
    fn the_ones_seen_last_are_remembered_whatever_the_order() {
        let mut recent = Recent::default();
        for what in [3, 1, 2, 7, 5, 6, 4] {
            recent.see(what, 1_000 + what);
        }
        let known: Vec<bool> = (1..=7).map(|what| !recent.is_new(what, 1_010)).collect();
        assert_eq!(known, [false, true, true, true, true, true, true]);
        recent.see(1, 1_001);
        assert!(recent.is_new(1, 1_010), "older than all that are remembered");
    }
}
