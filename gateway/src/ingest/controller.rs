//! Owns how many events a session may have unacknowledged: a window that follows the time to the acknowledgement, the same
//! for every session, so that no session is served at another's cost.
//!
//! Sessions ask it for the window when they open and whenever they acknowledge, and tell it what they saw; the server ticks
//! it. While the 99th percentile is over the target the window shrinks by a tenth a tick; while it is well below and
//! sessions use what they have, the window grows by a tenth. A window and not a rate, because the two are one by Little's
//! law (rate = window / latency), and a window needs no guess at the rate to begin with.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;

/// How often the window may change.
pub const TICK: Duration = Duration::from_millis(100);
/// The window at the start, in events.
pub const START_EVENTS: u32 = 10_000;
/// The window never shrinks below, in events: two milliseconds of a session at 32,000 events a second.
pub const MIN_EVENTS: u32 = 64;
/// Acknowledgements without which there is no talk of a 99th percentile.
const ENOUGH_ACKS: u64 = 100;
/// The share of acknowledgements beyond the 99th percentile.
const BEYOND_P99: u64 = 100;
/// Of the target: above it, the window shrinks.
const SHRINK_FROM: f64 = 1.2;
/// Of the target: below it, the window may grow.
const GROW_UNTIL: f64 = 0.8;
const SHRINK: f64 = 0.9;
const GROW: f64 = 1.1;

/// The controller of one gateway.
#[derive(Debug)]
pub struct Controller {
    max_events: u32,
    grow_until: Duration,
    shrink_from: Duration,
    window: AtomicU32,
    acks: AtomicU64,
    slow: AtomicU64,
    too_slow: AtomicU64,
    used: AtomicBool,
    metric: Gauge,
}

/// What one session saw since it last told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    acks: u64,
    slow: u64,
    too_slow: u64,
}

impl Controller {
    /// A controller with this target for the 99th percentile. `metric` shows the window.
    pub fn new(target: Duration, max_events: u32, metric: Gauge) -> Self {
        let window = START_EVENTS.min(max_events);
        metric.set(window.into());
        Self {
            max_events,
            grow_until: target.mul_f64(GROW_UNTIL),
            shrink_from: target.mul_f64(SHRINK_FROM),
            window: window.into(),
            acks: AtomicU64::default(),
            slow: AtomicU64::default(),
            too_slow: AtomicU64::default(),
            used: AtomicBool::default(),
            metric,
        }
    }

    /// Events that a session may have unacknowledged now.
    pub fn window(&self) -> u32 {
        self.window.load(Ordering::Relaxed)
    }

    /// Adds one acknowledgement, `took` after the event was handed to Kafka.
    pub fn see(&self, seen: &mut Seen, took: Duration) {
        seen.acks += 1;
        seen.slow += u64::from(took >= self.grow_until);
        seen.too_slow += u64::from(took > self.shrink_from);
    }

    /// Takes what a session saw. `used` says that the session had at least half of its window in use.
    pub fn tell(&self, seen: Seen, used: bool) {
        self.acks.fetch_add(seen.acks, Ordering::Relaxed);
        self.slow.fetch_add(seen.slow, Ordering::Relaxed);
        self.too_slow.fetch_add(seen.too_slow, Ordering::Relaxed);
        if used {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Sets the window by what was seen since the last tick. Too few acknowledgements are kept for the next one.
    pub fn tick(&self) {
        if self.acks.load(Ordering::Relaxed) < ENOUGH_ACKS {
            return;
        }
        // Sessions tell their three numbers one after the other, so that a tick in between may divide them: a tick's error.
        let acks = self.acks.swap(0, Ordering::Relaxed);
        let slow = self.slow.swap(0, Ordering::Relaxed);
        let too_slow = self.too_slow.swap(0, Ordering::Relaxed);
        let used = self.used.swap(false, Ordering::Relaxed);
        let factor = if too_slow * BEYOND_P99 > acks {
            SHRINK
        } else if used && slow * BEYOND_P99 <= acks {
            GROW
        } else {
            return;
        };
        let window = (f64::from(self.window()) * factor).round() as u32;
        let window = window.clamp(MIN_EVENTS.min(self.max_events), self.max_events);
        self.window.store(window, Ordering::Relaxed);
        self.metric.set(window.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(100);

    fn controller(max_events: u32) -> Controller {
        Controller::new(TARGET, max_events, Gauge::default())
    }

    /// A tick after a thousand acks of which so many took so long, the rest a millisecond.
    fn tick(controller: &Controller, slow: u64, took_ms: u64, used: bool) -> u32 {
        let mut seen = Seen::default();
        for ack in 0..1_000 {
            let took_ms = if ack < slow { took_ms } else { 1 };
            controller.see(&mut seen, Duration::from_millis(took_ms));
        }
        controller.tell(seen, used);
        controller.tick();
        controller.window()
    }

    #[test]
    fn the_window_follows_the_99th_percentile() {
        let controller = controller(65_536);
        assert_eq!(controller.window(), START_EVENTS);
        assert_eq!(tick(&controller, 11, 121, true), 9_000, "p99 over 1.2 of the target");
        assert_eq!(
            tick(&controller, 10, 121, true),
            9_900,
            "the slowest hundredth does not count"
        );
        assert_eq!(tick(&controller, 11, 100, true), 9_900, "between the two");
        assert_eq!(tick(&controller, 11, 79, true), 10_890, "p99 below 0.8 of the target");
        assert_eq!(tick(&controller, 0, 0, false), 10_890, "nobody needs more");
    }

    #[test]
    fn the_window_has_bounds() {
        let controller = controller(20_000);
        for _ in 0..100 {
            tick(&controller, 0, 0, true);
        }
        assert_eq!(controller.window(), 20_000);
        for _ in 0..100 {
            tick(&controller, 1_000, 500, true);
        }
        assert_eq!(controller.window(), MIN_EVENTS);
        assert_eq!(self::controller(8).window(), 8);
    }

    #[test]
    fn a_few_acks_are_kept_for_the_next_tick() {
        let controller = controller(65_536);
        let mut seen = Seen::default();
        (0..60).for_each(|_| controller.see(&mut seen, TARGET * 2));
        for expected in [START_EVENTS, 9_000] {
            controller.tell(seen, true);
            controller.tick();
            assert_eq!(controller.window(), expected);
        }
    }
}
