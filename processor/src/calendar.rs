//! Owns how an event time becomes a whole second, minute, hour or day, always in UTC, and how far back an account's or a
//! merchant's past matters.
//!
//! Comes below [`crate::account`], [`crate::habits`], [`crate::merchant`] and [`crate::state`].

/// One second, in microseconds.
pub(crate) const SECOND_US: i64 = 1_000_000;
/// One minute, in microseconds.
pub(crate) const MINUTE_US: i64 = 60 * SECOND_US;
/// One hour, in microseconds.
pub(crate) const HOUR_US: i64 = 60 * MINUTE_US;
const MINUTES_OF_HOUR: i32 = 60;
/// One day, in microseconds.
pub(crate) const DAY_US: i64 = 24 * HOUR_US;
/// Days before a payment's own day that its features look back on. Together with that day, the lateness and a margin it
/// is less than the week for which Kafka keeps the payments, so that a replay finds everything that matters.
pub(crate) const HISTORY_DAYS: i32 = 5;
/// The same as a span back from a payment's time, in microseconds.
pub(crate) const HISTORY_US: i64 = HISTORY_DAYS as i64 * DAY_US;

/// The second of a time, counted from the Unix epoch; it ends in 2106.
pub(crate) fn second(time: i64) -> u32 {
    time.div_euclid(SECOND_US).clamp(0, i64::from(u32::MAX)) as u32
}

/// The minute of a time, counted from the Unix epoch.
pub(crate) fn minute(time: i64) -> i32 {
    whole(time, MINUTE_US)
}

/// The minute with which the hour of a minute begins.
pub(crate) fn first_minute_of_hour(minute: i32) -> i32 {
    minute.saturating_sub(minute.rem_euclid(MINUTES_OF_HOUR))
}

/// The day of a time, counted from the Unix epoch.
pub(crate) fn day(time: i64) -> i32 {
    whole(time, DAY_US)
}

/// The hour of the day, from 0 to 23.
pub(crate) fn hour(time: i64) -> usize {
    time.div_euclid(HOUR_US).rem_euclid(24) as usize
}

fn whole(time: i64, unit_us: i64) -> i32 {
    time.div_euclid(unit_us).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_its_second_minute_hour_and_day() {
        let time = 2 * DAY_US + 3 * HOUR_US + 4 * MINUTE_US + 5 * SECOND_US + 6;
        assert_eq!((day(time), hour(time)), (2, 3));
        assert_eq!(minute(time), (2 * 24 + 3) * 60 + 4);
        assert_eq!(second(time), ((2 * 24 + 3) * 60 + 4) * 60 + 5);
        assert_eq!((day(-1), hour(-1), second(-1)), (-1, 23, 0));
        assert_eq!(day(i64::MIN), -106_751_992);
        assert_eq!([59, 60, 119, -1].map(first_minute_of_hour), [0, 60, 60, -60]);
    }
}
