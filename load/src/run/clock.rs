//! Time of a run: nanoseconds since its start, and an alarm that wakes to the microsecond.
//!
//! Comes before the schedule and everything that measures. The runtime's own timer counts in milliseconds, which would
//! add up to a millisecond to every latency that is measured from an intended moment; the alarm is the kernel's timerfd.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::unix::AsyncFd;

use crate::now_micros;

pub(crate) const NS_PER_US: u64 = 1_000;
pub(crate) const NS_PER_MS: u64 = 1_000_000;
pub(crate) const NS_PER_S: u64 = 1_000_000_000;

/// When a run began, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    start_micros: i64,
}

impl Clock {
    /// Begins now.
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
            start_micros: now_micros(),
        }
    }

    /// Nanoseconds since the start.
    pub(crate) fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// A moment of the run in microseconds since the Unix epoch.
    pub(crate) fn wall_micros(&self, at_ns: u64) -> i64 {
        self.start_micros + (at_ns / NS_PER_US) as i64
    }
}

/// Wakes one task at one moment at a time.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: AsyncFd<OwnedFd>,
    armed_ns: Option<u64>,
}

impl Alarm {
    /// An alarm that is not set. Must be called within the runtime.
    ///
    /// # Errors
    /// The operating system's, when there are no more file descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // The descriptor is ours alone and stays open as long as it is registered, which the older constructor leaves to
        // its callers; the newer one asks the same of them in an unsafe block.
        #[expect(deprecated, reason = "sound for a descriptor that is owned")]
        let timer = AsyncFd::new(timer)?;
        Ok(Self { timer, armed_ns: None })
    }

    /// Waits until a moment of the run; one that has passed costs nothing.
    ///
    /// Cancel-safe: called again with the same moment, it goes on waiting.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) async fn at(&mut self, clock: &Clock, at_ns: u64) -> io::Result<()> {
        if self.armed_ns != Some(at_ns) {
            let left_ns = at_ns.saturating_sub(clock.now_ns());
            if left_ns == 0 {
                return Ok(());
            }
            self.arm(left_ns)?;
            self.armed_ns = Some(at_ns);
        }
        loop {
            let mut ready = self.timer.readable().await?;
            let mut expirations = [0; size_of::<u64>()];
            if let Ok(read) = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut expirations)?)) {
                read?;
                self.armed_ns = None;
                return Ok(());
            }
        }
    }

    fn arm(&self, left_ns: u64) -> io::Result<()> {
        let moment = |ns: u64| Timespec {
            tv_sec: (ns / NS_PER_S) as i64,
            tv_nsec: (ns % NS_PER_S) as i64,
        };
        let once = Itimerspec {
            it_interval: moment(0),
            it_value: moment(left_ns),
        };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_never_wakes_early_and_can_be_set_again() {
        let clock = Clock::start();
        let mut alarm = Alarm::new().unwrap();
        for step in 1..=3 {
            let at_ns = step * 2 * NS_PER_MS;
            alarm.at(&clock, at_ns).await.unwrap();
            assert!(clock.now_ns() >= at_ns);
        }
        alarm.at(&clock, 0).await.unwrap();
    }
}
