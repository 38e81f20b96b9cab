//! What traffic is made of: payments from a seed, ordinary and odd ones, so that every rule and every exception is met.
//!
//! Comes before [`crate::traffic`], which publishes. Times are those of publishing, and ids are new, because brokers and
//! ledgers outlive a run; everything else follows from the seed.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use sluice_proto::pb;

use crate::events;

/// Payments of an account in a row: as many as no rule minds, so that one more that should not count is noticed.
const IN_A_ROW: u64 = 5;
/// Accounts that pay all the time.
const HOT_ACCOUNTS: u32 = 4;
/// Events that may be published again.
const REMEMBERED: usize = 4_096;
/// Of the repetitions, so many in a hundred repeat what was published just before.
const AT_ONCE: u32 = 70;
/// How far back late payments happened: beyond the allowed lateness.
const LATE: Duration = Duration::from_secs(3_600);
/// For how long [`Pace::Fast`] can be kept up, because payments do not come from the future.
const FAST_FOR: Duration = Duration::from_secs(4 * 3_600);
/// How far a client's clock may be ahead.
const AHEAD: Duration = Duration::from_secs(20);
const UNITS_OVER_THE_LIMIT: i64 = 15_000;
/// What no other payment costs.
const UNITS_IN_CONFLICT: i64 = 77;
const CITIES: [(&str, &str, f64, f64); 5] = [
    ("FR", "Paris", 48.856_6, 2.352_2),
    ("DE", "Berlin", 52.52, 13.405),
    ("JP", "Tokyo", 35.676_2, 139.650_3),
    ("BR", "São Paulo", -23.550_5, -46.633_3),
    ("US", "New York", 40.712_8, -74.006),
];

/// Shares of odd payments, in a hundred, and how fast they come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Payments of one tick of 10 ms.
    pub tick_events: usize,
    /// After so many ticks there is a pause, in which the processor has nothing to do; 0 for never.
    pub pause_after_ticks: u64,
    /// Ordinary accounts, which pay in turn; 0 for new ones all the time.
    pub accounts: u64,
    /// Payments of accounts that pay all the time.
    pub hot: u32,
    /// Payments over the limit of LARGE_AMOUNT.
    pub large: u32,
    /// Payments with a place and coordinates.
    pub placed: u32,
    /// Payments that are published again.
    pub repeated: u32,
    /// Payments that have the id of an earlier one, and another amount.
    pub conflicting: u32,
    /// Payments that happened an hour ago.
    pub late: u32,
    /// Payments of a client whose clock is ahead.
    pub ahead: u32,
    /// Events that the gateway refuses.
    pub invalid: u32,
    /// When the payments happen.
    pub pace: Pace,
}

/// How the payments' own time goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As the wall clock's.
    Real,
    /// So many times as fast since then, when it was as far behind as it can catch up with in [`FAST_FOR`]; so what is
    /// remembered for hours of payments' time fills sooner.
    Fast(SystemTime, u32),
}

impl Pace {
    /// What a payment's clock shows now.
    fn now(self) -> SystemTime {
        let now = SystemTime::now();
        match self {
            Self::Real => now,
            Self::Fast(since, times) => {
                let behind = (FAST_FOR * times.saturating_sub(1))
                    .saturating_sub(now.duration_since(since).unwrap_or_default() * times.saturating_sub(1));
                now - behind
            }
        }
    }
}

impl Mix {
    /// Payments that no rule minds and that are published once, 2,000 a second.
    pub const PLAIN: Self = Self {
        tick_events: 20,
        pause_after_ticks: 0,
        accounts: 0,
        hot: 0,
        large: 0,
        placed: 0,
        repeated: 0,
        conflicting: 0,
        late: 0,
        ahead: 0,
        invalid: 0,
        pace: Pace::Real,
    };
    /// Something of everything, 1,000 a second with pauses.
    pub const ODD: Self = Self {
        tick_events: 10,
        pause_after_ticks: 40,
        accounts: 0,
        hot: 10,
        large: 3,
        placed: 15,
        repeated: 4,
        conflicting: 1,
        late: 3,
        ahead: 1,
        invalid: 1,
        pace: Pace::Real,
    };
}

/// The accounts that pay all the time.
pub fn hot_accounts() -> Vec<String> {
    (0..HOT_ACCOUNTS).map(hot_account).collect()
}

fn hot_account(number: u32) -> String {
    format!("hot-{number}")
}

/// An event to be published.
#[derive(Clone, Debug)]
pub struct Next {
    /// The event.
    pub event: pb::Event,
    /// Whether the gateway must take it.
    pub valid: bool,
}

/// The source of one run's events.
#[derive(Debug)]
pub struct Generator {
    mix: Mix,
    rng: Rng,
    made: u64,
    past: VecDeque<pb::Event>,
}

impl Generator {
    /// Events of this mix from this seed.
    pub fn new(mix: Mix, seed: u64) -> Self {
        Self {
            mix,
            rng: Rng::with_seed(seed),
            made: 0,
            past: VecDeque::new(),
        }
    }

    /// The next event.
    pub fn make(&mut self) -> Next {
        if self.of_a_hundred(self.mix.invalid) {
            let event = events::with(events::payment(""), |payment| payment.account_id.clear());
            return Next { event, valid: false };
        }
        if self.of_a_hundred(self.mix.repeated)
            && let Some(event) = self.again()
        {
            return Next { event, valid: true };
        }
        if self.of_a_hundred(self.mix.conflicting)
            && let Some(event) = self.again()
        {
            let event = events::with(event, |payment| {
                payment.amount = Some(events::euros(UNITS_IN_CONFLICT, 0))
            });
            return Next { event, valid: true };
        }
        let event = self.payment();
        if self.past.len() == REMEMBERED {
            self.past.pop_front();
        }
        self.past.push_back(event.clone());
        Next { event, valid: true }
    }

    fn payment(&mut self) -> pb::Event {
        self.made += 1;
        let account = if self.of_a_hundred(self.mix.hot) {
            hot_account(self.rng.u32(..HOT_ACCOUNTS))
        } else {
            let turn = self.made / IN_A_ROW;
            format!("account-{}", turn.checked_rem(self.mix.accounts).unwrap_or(turn))
        };
        let mut event = events::payment(&account);
        if self.of_a_hundred(self.mix.large) {
            event = events::with(event, |payment| {
                payment.amount = Some(events::euros(UNITS_OVER_THE_LIMIT, 0))
            });
        }
        if self.of_a_hundred(self.mix.placed)
            && let Some((country, place, latitude, longitude)) = self.rng.choice(CITIES)
        {
            event = events::at(event, country, place, latitude, longitude);
        }
        let mut time = self.mix.pace.now();
        if self.of_a_hundred(self.mix.late) {
            time -= LATE;
        } else if self.of_a_hundred(self.mix.ahead) {
            time += AHEAD;
        }
        events::occurred(event, time)
    }

    fn again(&mut self) -> Option<pb::Event> {
        if self.of_a_hundred(AT_ONCE) {
            return self.past.back().cloned();
        }
        self.rng.choice(&self.past).cloned()
    }

    fn of_a_hundred(&mut self, share: u32) -> bool {
        share > 0 && self.rng.u32(..100) < share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_pace_comes_near_the_wall_clock() {
        let now = SystemTime::now();
        let behind = |since| {
            now.duration_since(Pace::Fast(since, 4).now())
                .unwrap_or_default()
                .as_secs()
        };
        assert_eq!(behind(now).div_ceil(60), 3 * 4 * 60);
        assert_eq!(behind(now - FAST_FOR / 4).div_ceil(60), 3 * 3 * 60);
        assert_eq!(behind(now - 2 * FAST_FOR), 0);
    }

    #[test]
    fn a_mix_has_its_odd_ones_and_plain_has_none() {
        let mut odd = Generator::new(Mix::ODD, 7);
        let made: Vec<Next> = (0..10_000).map(|_| odd.make()).collect();
        let ids: std::collections::HashSet<_> = made.iter().map(|next| &next.event.event_id).collect();
        let invalid = made.iter().filter(|next| !next.valid).count();
        assert!((50..200).contains(&invalid), "{invalid} are invalid");
        assert!((9_300..9_700).contains(&ids.len()), "{} ids", ids.len());
        let mut plain = Generator::new(Mix::PLAIN, 7);
        let ids: std::collections::HashSet<_> = (0..1_000).map(|_| plain.make().event.event_id).collect();
        assert_eq!(ids.len(), 1_000);
    }
}
