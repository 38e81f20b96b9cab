//! Why an event was sent later than intended: held back by the server, or by the loader itself.
//!
//! Used by every publishing worker. While a worker is held back it runs up a debt; an event that is sent late is late
//! because of the debt as far as the debt reaches, and because of the loader beyond it. The debt is gone when the worker
//! has caught up with the schedule. So a backlog that a stall left is the stall's, and a loader that cannot keep up is
//! told from it.

use super::clock::NS_PER_MS;

/// A worker that is less late than this has caught up.
const CAUGHT_UP_NS: u64 = NS_PER_MS;

/// What holds a worker back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The gateway gave no credit.
    Credit,
    /// The connection took no more bytes.
    Transport,
    /// There was no connection.
    Connection,
    /// Every worker waited for an answer.
    Concurrency,
}

impl Hold {
    pub(crate) const ALL: [Self; 4] = [Self::Credit, Self::Transport, Self::Connection, Self::Concurrency];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Credit => "credit",
            Self::Transport => "transport",
            Self::Connection => "connection",
            Self::Concurrency => "concurrency",
        }
    }
}

/// How late an event was, by cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Late {
    pub(crate) stall_ns: u64,
    pub(crate) slip_ns: u64,
}

/// One worker's debt.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    debt_ns: u64,
    held: Option<(Hold, u64)>,
}

impl Pace {
    /// The worker would send and cannot. Returns what it was held back by before, when that was something else.
    pub(crate) fn hold(&mut self, why: Hold, now_ns: u64) -> Option<(Hold, u64)> {
        match self.held {
            Some((held, _since)) if held == why => None,
            _ => {
                let before = self.free(now_ns);
                self.held = Some((why, now_ns));
                before
            }
        }
    }

    /// The worker can send again. Returns what held it back, and for how long, if anything did.
    pub(crate) fn free(&mut self, now_ns: u64) -> Option<(Hold, u64)> {
        let (why, since_ns) = self.held.take()?;
        let held_ns = now_ns.saturating_sub(since_ns);
        self.debt_ns += held_ns;
        Some((why, held_ns))
    }

    /// The worker is held back still. Returns by what, and for how long since it was asked last.
    pub(crate) fn so_far(&mut self, now_ns: u64) -> Option<(Hold, u64)> {
        let held = self.free(now_ns)?;
        self.held = Some((held.0, now_ns));
        Some(held)
    }

    /// The worker could not send for so long, because it waited for an answer.
    pub(crate) fn owe(&mut self, waited_ns: u64) {
        self.debt_ns += waited_ns;
    }

    /// An event is sent now.
    pub(crate) fn send(&mut self, intended_ns: u64, now_ns: u64) -> Late {
        let late_ns = now_ns.saturating_sub(intended_ns);
        let stall_ns = late_ns.min(self.debt_ns);
        if late_ns < CAUGHT_UP_NS {
            self.debt_ns = 0;
        }
        Late {
            stall_ns,
            slip_ns: late_ns - stall_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = NS_PER_MS;

    #[test]
    fn a_backlog_is_the_stalls_and_the_rest_is_ours() {
        let mut pace = Pace::default();
        assert_eq!(pace.hold(Hold::Credit, 10 * MS), None);
        assert_eq!(pace.hold(Hold::Credit, 11 * MS), None);
        assert_eq!(pace.free(110 * MS), Some((Hold::Credit, 100 * MS)));
        // Due in the midst of the stall, sent after it.
        assert_eq!(
            pace.send(60 * MS, 112 * MS),
            Late {
                stall_ns: 52 * MS,
                slip_ns: 0
            }
        );
        // Later than the stall explains.
        assert_eq!(
            pace.send(60 * MS, 200 * MS),
            Late {
                stall_ns: 100 * MS,
                slip_ns: 40 * MS
            }
        );
        // Caught up: the stall explains nothing any more.
        pace.send(201 * MS, 201 * MS);
        assert_eq!(
            pace.send(210 * MS, 230 * MS),
            Late {
                stall_ns: 0,
                slip_ns: 20 * MS
            }
        );
    }

    #[test]
    fn another_reason_ends_the_first() {
        let mut pace = Pace::default();
        pace.hold(Hold::Credit, 0);
        assert_eq!(pace.hold(Hold::Connection, 5 * MS), Some((Hold::Credit, 5 * MS)));
        assert_eq!(pace.so_far(7 * MS), Some((Hold::Connection, 2 * MS)));
    }
}
