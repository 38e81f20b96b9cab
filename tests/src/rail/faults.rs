//! What goes wrong at the stand-in: which calls fail, and how, by the shares that were ordered.
//!
//! Asked by [`super::server`] once for each call.

use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// Shares of calls, in a hundred, of which each meets one thing at most; and shares of payments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Calls that are refused with 503, so that nothing was done.
    pub unavailable: u32,
    /// Calls that fail with 500 although everything was done.
    pub failed_done: u32,
    /// Calls that fail with 500, and nothing was done.
    pub failed_undone: u32,
    /// Calls that are done and never answered.
    pub silent_done: u32,
    /// Calls that are never answered, and done only when the caller has long given up.
    pub silent_late: u32,
    /// Captures of single payments that are left undone by a call that is answered.
    pub undone: u32,
    /// Captures of single payments that the rail refuses for good.
    pub refused: u32,
    /// Every call is refused with 503.
    pub away: bool,
}

/// What a call meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meets {
    /// Nothing.
    Nothing,
    /// 503, and nothing is done.
    Unavailable,
    /// 500, and it is done.
    FailedDone,
    /// 500, and nothing is done.
    FailedUndone,
    /// No answer, and it is done at once.
    SilentDone,
    /// No answer, and it is done later.
    SilentLate,
}

impl Faults {
    /// What the next call meets.
    pub fn next(&self, rng: &mut Rng) -> Meets {
        if self.away {
            return Meets::Unavailable;
        }
        let mut left = rng.u32(..100);
        for (share, meets) in [
            (self.unavailable, Meets::Unavailable),
            (self.failed_done, Meets::FailedDone),
            (self.failed_undone, Meets::FailedUndone),
            (self.silent_done, Meets::SilentDone),
            (self.silent_late, Meets::SilentLate),
        ] {
            if left < share {
                return meets;
            }
            left -= share;
        }
        Meets::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_meet_what_was_ordered() {
        let mut rng = Rng::with_seed(1);
        let faults = Faults {
            unavailable: 10,
            silent_late: 5,
            ..Faults::default()
        };
        let met: Vec<Meets> = (0..10_000).map(|_| faults.next(&mut rng)).collect();
        let count = |of| met.iter().filter(|met| **met == of).count();
        assert!((900..1_100).contains(&count(Meets::Unavailable)));
        assert!((400..600).contains(&count(Meets::SilentLate)));
        assert_eq!(count(Meets::FailedDone), 0);
        let away = Faults {
            away: true,
            ..Faults::default()
        };
        assert_eq!(away.next(&mut rng), Meets::Unavailable);
    }
}
