//! When each event is due, and how many workers are at it: absolute, decided before the run, whatever the server does.
//!
//! Comes after the options and before the feed. A schedule is a sequence of segments of constant rate; the cursor goes
//! through them once, in the order of the events.

use std::time::Duration;

use super::clock::NS_PER_S;

/// A line is made of segments of this length.
const LINE_SEGMENT: Duration = Duration::from_millis(100);
const HOURS: usize = 24;
/// How busy each hour of the day is, on average 1: a night's trough, noon, and the evening's peak of card payments.
const DAY: [f64; HOURS] = [
    0.35, 0.22, 0.16, 0.14, 0.16, 0.26, 0.50, 0.80, 1.05, 1.20, 1.30, 1.45, 1.62, 1.50, 1.35, 1.35, 1.45, 1.62, 1.72,
    1.62, 1.40, 1.17, 0.92, 0.69,
];

/// How a quantity changes: ghz's three shapes for the rate and for the concurrency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    /// The same all the time.
    Const(f64),
    /// From `start` by `step` every so often.
    Step(Ramp),
    /// From `start`, steadily, by `step` a second.
    Line(Ramp),
    /// A day's rhythm around a mean, the day compressed to `day`.
    Daily {
        /// The mean.
        mean: f64,
        /// How long a day takes.
        day: Duration,
    },
}

/// A quantity that goes up or down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ramp {
    pub(crate) start: f64,
    pub(crate) step: f64,
    pub(crate) every: Duration,
    /// It stays here once it is reached.
    pub(crate) end: Option<f64>,
    /// After so long it stays where it is.
    pub(crate) max: Option<Duration>,
}

impl Ramp {
    fn after(&self, steps: f64) -> f64 {
        let value = self.start + self.step * steps;
        let value = match self.end {
            Some(end) if self.step >= 0.0 => value.min(end),
            Some(end) => value.max(end),
            None => value,
        };
        value.max(0.0)
    }

    /// The segment from which on nothing changes.
    fn last(&self, every_ns: u64, step: f64) -> u64 {
        let by_end = match self.end {
            Some(end) if step != 0.0 => ((end - self.start) / step).max(0.0).ceil() as u64,
            // Downwards it ends at nothing.
            _ if step < 0.0 => (self.start / -step).ceil() as u64,
            _ => u64::MAX,
        };
        let by_time = self.max.map_or(u64::MAX, |max| max.as_nanos() as u64 / every_ns.max(1));
        by_end.min(by_time)
    }
}

/// A stretch of time with one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Segment {
    pub(crate) value: f64,
    /// `None` for ever.
    pub(crate) length_ns: Option<u64>,
}

impl Shape {
    /// The segment of a number, counted from 0.
    pub(crate) fn segment(&self, number: u64) -> Segment {
        let (every, ramp, per_s) = match self {
            Self::Const(value) => {
                return Segment {
                    value: *value,
                    length_ns: None,
                };
            }
            Self::Daily { mean, day } => {
                return Segment {
                    value: mean * DAY[(number % HOURS as u64) as usize],
                    length_ns: Some((day.as_nanos() as u64 / HOURS as u64).max(1)),
                };
            }
            Self::Step(ramp) => (ramp.every, ramp, 1.0),
            Self::Line(ramp) => (LINE_SEGMENT, ramp, LINE_SEGMENT.as_secs_f64()),
        };
        let every_ns = (every.as_nanos() as u64).max(1);
        let last = ramp.last(every_ns, ramp.step * per_s);
        // A line's segment has the value of its middle.
        let middle = if per_s == 1.0 { 0.0 } else { 0.5 };
        if number >= last {
            let value = ramp.after(last as f64 * per_s);
            return Segment { value, length_ns: None };
        }
        Segment {
            value: ramp.after((number as f64 + middle) * per_s),
            length_ns: Some(every_ns),
        }
    }

    /// The value at a moment.
    pub(crate) fn at(&self, at_ns: u64) -> f64 {
        match self.segment(0).length_ns {
            None => self.segment(0).value,
            Some(length_ns) => self.segment(at_ns / length_ns).value,
        }
    }

    /// The largest value that it comes to, as far as it is bounded by itself or by the time given.
    pub(crate) fn peak(&self, within: Option<Duration>) -> f64 {
        match self {
            Self::Const(value) => *value,
            Self::Daily { mean, .. } => mean * DAY.iter().fold(0.0, |most: f64, hour| most.max(*hour)),
            Self::Step(ramp) | Self::Line(ramp) => {
                let per_ns = if matches!(self, Self::Line(_)) {
                    NS_PER_S as f64
                } else {
                    ramp.every.as_nanos() as f64
                };
                let until = ramp.max.into_iter().chain(within).min();
                let reached = until.map_or(ramp.start, |until| ramp.after(until.as_nanos() as f64 / per_ns));
                ramp.end.unwrap_or(reached).max(ramp.start)
            }
        }
    }
}

/// Goes through a schedule of rates once.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    shape: Shape,
    number: u64,
    start_ns: u64,
    /// Events due before this segment.
    before: f64,
}

impl Cursor {
    pub(crate) fn new(shape: Shape) -> Self {
        Self {
            shape,
            number: 0,
            start_ns: 0,
            before: 0.0,
        }
    }

    /// When an event is due, counted from 0; `None` when the rate has sunk to nothing before. Events are asked for in
    /// their order.
    pub(crate) fn due_ns(&mut self, event: u64) -> Option<u64> {
        loop {
            let segment = self.shape.segment(self.number);
            let into = event as f64 - self.before;
            match segment.length_ns {
                Some(length_ns) => {
                    let holds = segment.value * length_ns as f64 / NS_PER_S as f64;
                    if into < holds {
                        return Some(self.start_ns + (into / segment.value * NS_PER_S as f64) as u64);
                    }
                    self.pass(holds, length_ns);
                }
                None if segment.value > 0.0 => {
                    return Some(self.start_ns + (into / segment.value * NS_PER_S as f64) as u64);
                }
                None => return None,
            }
        }
    }

    /// How many events are due before a moment. Moments are asked for in their order.
    pub(crate) fn due_by(&mut self, at_ns: u64) -> u64 {
        loop {
            let segment = self.shape.segment(self.number);
            match segment.length_ns {
                Some(length_ns) if at_ns >= self.start_ns + length_ns => {
                    self.pass(segment.value * length_ns as f64 / NS_PER_S as f64, length_ns);
                }
                _ => {
                    let into = segment.value * (at_ns - self.start_ns) as f64 / NS_PER_S as f64;
                    return (self.before + into).ceil() as u64;
                }
            }
        }
    }

    fn pass(&mut self, holds: f64, length_ns: u64) {
        self.before += holds;
        self.start_ns += length_ns;
        self.number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(start: f64, step: f64, every_s: u64, end: Option<f64>, max_s: Option<u64>) -> Ramp {
        Ramp {
            start,
            step,
            every: Duration::from_secs(every_s),
            end,
            max: max_s.map(Duration::from_secs),
        }
    }

    #[test]
    fn a_constant_rate_is_exact_after_a_million_events() {
        let mut cursor = Cursor::new(Shape::Const(1_000.0));
        assert_eq!(cursor.due_ns(0), Some(0));
        assert_eq!(cursor.due_ns(1), Some(1_000_000));
        assert_eq!(cursor.due_ns(1_000_000), Some(1_000 * NS_PER_S));
    }

    #[test]
    fn steps_hold_and_end() {
        let shape = Shape::Step(ramp(100.0, 50.0, 2, Some(200.0), None));
        assert_eq!(
            [0, 1, 2, 3, 9].map(|number| shape.segment(number).value),
            [100.0, 150.0, 200.0, 200.0, 200.0]
        );
        let mut cursor = Cursor::new(shape);
        // 200 in the first two seconds, 300 in the next two, then 200 a second.
        assert_eq!(cursor.due_ns(200), Some(2 * NS_PER_S));
        assert_eq!(cursor.due_ns(500), Some(4 * NS_PER_S));
        assert_eq!(cursor.due_ns(700), Some(5 * NS_PER_S));
        assert_eq!(Cursor::new(shape).due_by(5 * NS_PER_S), 700);
        assert_eq!(shape.peak(None), 200.0);
    }

    #[test]
    fn a_line_has_the_area_of_its_triangle_and_stays_after_its_longest_duration() {
        let shape = Shape::Line(ramp(0.0, 100.0, 1, None, Some(10)));
        let mut cursor = Cursor::new(shape);
        // Half of 10 s times 1,000 a second.
        assert!(cursor.due_by(10 * NS_PER_S).abs_diff(5_000) <= 1);
        assert!(cursor.due_by(11 * NS_PER_S).abs_diff(6_000) <= 1);
    }

    #[test]
    fn a_rate_that_sinks_to_nothing_ends() {
        let mut cursor = Cursor::new(Shape::Step(ramp(10.0, -5.0, 1, None, None)));
        assert!(cursor.due_ns(14).is_some());
        assert_eq!(cursor.due_ns(15), None);
    }

    #[test]
    fn a_day_has_its_mean() {
        let mean: f64 = DAY.iter().sum::<f64>() / HOURS as f64;
        assert!((mean - 1.0).abs() < 0.005, "{mean}");
        let day = Duration::from_secs(24);
        let mut cursor = Cursor::new(Shape::Daily { mean: 100.0, day });
        assert!(cursor.due_by(24 * NS_PER_S).abs_diff(2_400) < 12);
    }
}
