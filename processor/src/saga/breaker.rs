//! Owns whether the rail may be called, and how much at once: a circuit breaker with a ramp after each recovery. It has no
//! clock; times are since any fixed moment.
//!
//! Asked by [`super::work`] before each round of calls, and told how each of them ended.

use std::collections::VecDeque;
use std::time::Duration;

/// Calls that are looked back on at most.
const MAX_WINDOW_CALLS: usize = 1_000;
/// How far back calls count.
const WINDOW: Duration = Duration::from_secs(10);
/// So many calls must have been made before their failures mean anything.
const MIN_CALLS: usize = 10;
/// It opens when so many in a hundred of them failed.
const FAILED_PERCENT: usize = 50;
/// Calls that try, one payment each, whether the rail is back.
const PROBES: usize = 3;
/// Payments in the first second after a recovery. Each further second allows twice as many.
pub(crate) const RAMP_FIRST_PAYMENTS: usize = 100;
/// For how many seconds the ramp goes on: then it allows more than any rail takes.
const RAMP_S: u64 = 12;

/// What the breaker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    /// Calls are made.
    Closed,
    /// A few calls try.
    HalfOpen,
    /// No call is made.
    Open,
}

/// How much may be asked of the rail now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowance {
    pub(crate) calls: usize,
    /// Over all calls.
    pub(crate) payments: usize,
}

#[derive(Debug)]
enum State {
    /// Since when, where a recovery came before.
    Closed(Option<Duration>),
    /// Until when.
    Open(Duration),
    HalfOpen {
        sent: usize,
        good: usize,
    },
}

/// The breaker.
#[derive(Debug)]
pub(crate) struct Breaker {
    open_for: Duration,
    state: State,
    /// When each call ended, and whether well.
    calls: VecDeque<(Duration, bool)>,
    /// Payments of the ramp's second of this number.
    ramped: (u64, usize),
}

impl Breaker {
    /// A closed one, which tries `open_for` after it opened whether the rail is back.
    pub(crate) fn new(open_for: Duration) -> Self {
        Self {
            open_for,
            state: State::Closed(None),
            calls: VecDeque::new(),
            ramped: (0, 0),
        }
    }

    /// What it does.
    pub(crate) const fn mode(&self) -> Mode {
        match self.state {
            State::Closed(_) => Mode::Closed,
            State::HalfOpen { .. } => Mode::HalfOpen,
            State::Open(_) => Mode::Open,
        }
    }

    /// How much of `most` may be asked now.
    pub(crate) fn allow(&mut self, now: Duration, most: Allowance) -> Allowance {
        if let State::Open(until) = self.state
            && now >= until
        {
            self.state = State::HalfOpen { sent: 0, good: 0 };
        }
        match self.state {
            State::Open(_) => Allowance { calls: 0, payments: 0 },
            State::HalfOpen { sent, .. } => {
                let calls = most.calls.min(PROBES.saturating_sub(sent));
                Allowance {
                    calls,
                    payments: calls.min(most.payments),
                }
            }
            State::Closed(since) => {
                let left = since.map_or(usize::MAX, |since| self.ramp(now.saturating_sub(since)));
                Allowance {
                    calls: most.calls.min(left),
                    payments: most.payments.min(left),
                }
            }
        }
    }

    /// What the ramp leaves in this second.
    fn ramp(&mut self, since: Duration) -> usize {
        let second = since.as_secs();
        if second >= RAMP_S {
            return usize::MAX;
        }
        if self.ramped.0 != second {
            self.ramped = (second, 0);
        }
        (RAMP_FIRST_PAYMENTS << second).saturating_sub(self.ramped.1)
    }

    /// A call is made with so many payments.
    pub(crate) fn took(&mut self, payments: usize) {
        match &mut self.state {
            State::HalfOpen { sent, .. } => *sent += 1,
            State::Closed(Some(_)) => self.ramped.1 += payments,
            State::Closed(None) | State::Open(_) => {}
        }
    }

    /// A call ended.
    pub(crate) fn ended(&mut self, now: Duration, well: bool) {
        match &mut self.state {
            // A call that was made before it opened tells nothing new.
            State::Open(_) => {}
            State::HalfOpen { good, .. } => {
                if !well {
                    self.open(now);
                    return;
                }
                *good += 1;
                if *good >= PROBES {
                    self.state = State::Closed(Some(now));
                    self.ramped = (0, 0);
                }
            }
            State::Closed(_) => {
                self.calls.push_back((now, well));
                while self.calls.len() > MAX_WINDOW_CALLS
                    || self
                        .calls
                        .front()
                        .is_some_and(|(then, _)| now.saturating_sub(*then) > WINDOW)
                {
                    self.calls.pop_front();
                }
                let failed = self.calls.iter().filter(|(_, well)| !well).count();
                if self.calls.len() >= MIN_CALLS && failed * 100 >= self.calls.len() * FAILED_PERCENT {
                    self.open(now);
                }
            }
        }
    }

    fn open(&mut self, now: Duration) {
        self.state = State::Open(now + self.open_for);
        self.calls.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPEN_FOR: Duration = Duration::from_secs(60);
    const MOST: Allowance = Allowance {
        calls: 4,
        payments: 800,
    };

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// One call of so many payments, if it may be made.
    fn call(breaker: &mut Breaker, now: Duration, payments: usize, well: bool) -> usize {
        let allowed = breaker.allow(now, MOST);
        if allowed.calls == 0 || allowed.payments == 0 {
            return 0;
        }
        let payments = payments.min(allowed.payments);
        breaker.took(payments);
        breaker.ended(now, well);
        payments
    }

    #[test]
    fn it_opens_at_half_tries_after_a_while_and_closes_after_its_probes() {
        let mut breaker = Breaker::new(OPEN_FOR);
        for number in 0..9 {
            call(&mut breaker, at(number), 1, number % 2 == 0);
            assert_eq!(breaker.mode(), Mode::Closed, "too few calls to tell");
        }
        call(&mut breaker, at(9), 1, false);
        assert_eq!(breaker.mode(), Mode::Open);
        assert_eq!(breaker.allow(at(60_008), MOST).calls, 0);
        let probes = breaker.allow(at(60_009), MOST);
        assert_eq!(
            (breaker.mode(), probes.calls, probes.payments),
            (Mode::HalfOpen, PROBES, PROBES)
        );
        call(&mut breaker, at(60_009), 1, true);
        call(&mut breaker, at(60_009), 1, false);
        assert_eq!(breaker.mode(), Mode::Open, "a probe that fails opens it again");
        for _probe in 0..PROBES {
            call(&mut breaker, at(120_010), 1, true);
        }
        assert_eq!(breaker.mode(), Mode::Closed);
    }

    #[test]
    fn no_herd_comes_after_a_recovery() {
        let mut breaker = Breaker::new(OPEN_FOR);
        for _call in 0..MIN_CALLS {
            call(&mut breaker, at(0), 1, false);
        }
        for _probe in 0..PROBES {
            call(&mut breaker, at(60_000), 1, true);
        }
        let mut by_second = [0; 14];
        for ms in (60_000..74_000).step_by(10) {
            by_second[(ms as usize - 60_000) / 1_000] += call(&mut breaker, at(ms), 200, true);
        }
        assert_eq!(by_second[0], RAMP_FIRST_PAYMENTS);
        assert_eq!(by_second[1], 2 * RAMP_FIRST_PAYMENTS);
        assert_eq!(by_second[13], 20_000, "all that was asked for");
    }

    #[test]
    fn old_calls_do_not_count() {
        let mut breaker = Breaker::new(OPEN_FOR);
        for _call in 0..MIN_CALLS - 1 {
            call(&mut breaker, at(0), 1, false);
        }
        call(&mut breaker, at(10_001), 1, false);
        assert_eq!(breaker.mode(), Mode::Closed);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Whatever happens: an open breaker lets nothing through, a half-open one no more than its probes, and the first
        /// second after it closed no more than the ramp.
        #[test]
        fn it_keeps_its_bounds(steps in prop::collection::vec((0_u64..20_000, 1_usize..300, any::<bool>()), 1..300)) {
            let mut breaker = Breaker::new(OPEN_FOR);
            let (mut now, mut probes, mut closed, mut opened): (_, _, Option<Duration>, _) = (at(0), 0, None, None);
            let mut first_second = 0;
            for (wait, payments, well) in steps {
                now += at(wait);
                breaker.allow(now, MOST);
                let before = breaker.mode();
                let sent = call(&mut breaker, now, payments, well);
                match before {
                    Mode::Open => {
                        prop_assert_eq!(sent, 0);
                        prop_assert!(now < opened.unwrap_or_default() + OPEN_FOR);
                    }
                    Mode::HalfOpen => {
                        probes += sent;
                        prop_assert!(probes <= PROBES);
                    }
                    Mode::Closed => {
                        if closed.is_some_and(|since| now - since < at(1_000)) {
                            first_second += sent;
                            prop_assert!(first_second <= RAMP_FIRST_PAYMENTS);
                        }
                    }
                }
                match (before, breaker.mode()) {
                    (Mode::Open, _) => {}
                    (_, Mode::Open) => (opened, probes) = (Some(now), 0),
                    (Mode::HalfOpen, Mode::Closed) => (closed, first_second) = (Some(now), 0),
                    _ => {}
                }
            }
        }
    }
}
