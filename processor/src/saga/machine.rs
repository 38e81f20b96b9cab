//! Owns what may become of a payment's money: a state machine without I/O, clock or chance.
//!
//! [`super::work`] gives it what was said and what the rail answered, and asks it what to do next; what comes out is
//! stored by [`super::store`] before anything follows from it. A payment is never captured twice, because every call carries
//! its key and the rail keeps keys apart; and it is never released while it may be captured, because a release is the rail's
//! own word that it will never capture.

/// Times that the rail leaves a capture undone, or puts it off, before it is given up and released. Waits grow meanwhile, so that
/// this is a quarter of a minute or more.
pub(crate) const MAX_CAPTURE_ATTEMPTS: u16 = 8;
/// So many of them are counted at most where nobody knows whether the rail was there.
const MAX_UNKNOWN_ATTEMPTS: u16 = MAX_CAPTURE_ATTEMPTS / 2;
/// From so many attempts on a payment counts as stuck. What releases or refunds has no other way out than to go on, at the
/// longest wait.
pub(crate) const STUCK_ATTEMPTS: u16 = 16;

/// Where a payment's money is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// It waits for a verdict or its deadline.
    Held,
    /// To be captured.
    Capturing,
    /// The rail is to confirm that it will never capture.
    Releasing,
    /// Captured, and to be given back.
    Refunding,
    /// For good, unless it is taken back.
    Captured,
    /// For good.
    Released,
    /// For good.
    Refunded,
}

impl Stage {
    /// Every stage.
    pub(crate) const ALL: [Self; 7] = [
        Self::Held,
        Self::Capturing,
        Self::Releasing,
        Self::Refunding,
        Self::Captured,
        Self::Released,
        Self::Refunded,
    ];

    /// The stage's name in the ledger.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "HELD",
            Self::Capturing => "CAPTURING",
            Self::Releasing => "RELEASING",
            Self::Refunding => "REFUNDING",
            Self::Captured => "CAPTURED",
            Self::Released => "RELEASED",
            Self::Refunded => "REFUNDED",
        }
    }

    /// The stage of this name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.as_str() == name)
    }
}

/// What the rail can be asked for, always about a payment's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    /// Move the money; at most once, however often it is asked for.
    Capture,
    /// Never capture.
    Cancel,
    /// Give back what was captured; at most once.
    Refund,
    /// Say how it stands.
    Query,
}

/// How a payment stands at the rail after a call, by the rail's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Standing {
    /// Nothing was done.
    None,
    /// The money was moved.
    Captured,
    /// The rail will not move it, and never will.
    Refused,
    /// It was told never to.
    Cancelled,
    /// The money was moved and moved back.
    Refunded,
}

/// Why a call brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Trouble {
    /// It never reached the rail.
    Transient,
    /// The rail does not know it as a call, or does not allow it.
    Rejected,
    /// The rail says that it did nothing, and that it may be asked again.
    Retriable,
    /// It may have been done.
    Unknown,
}

/// What is said of a payment from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Word {
    /// A review ends well.
    Approve,
    /// A review ends badly.
    Decline,
    /// The payment is taken back.
    Cancel,
}

/// What is to be done about a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing before a word is said.
    Wait,
    /// This call.
    Call(Operation),
    /// Nothing.
    Done,
}

/// One payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Payment {
    pub(crate) stage: Stage,
    /// The outcome of the last call is not known.
    pub(crate) doubt: bool,
    /// Where it turns out to be captured, it is to be given back.
    pub(crate) cancelled: bool,
    /// Calls in this stage that did not lead on.
    pub(crate) attempts: u16,
}

impl Payment {
    /// A payment at the beginning of a stage.
    pub(crate) const fn at(stage: Stage) -> Self {
        Self {
            stage,
            doubt: false,
            cancelled: false,
            attempts: 0,
        }
    }

    /// The same after somebody else may have called the rail about it.
    pub(crate) const fn in_doubt(mut self) -> Self {
        self.doubt = matches!(self.stage, Stage::Capturing | Stage::Releasing | Stage::Refunding);
        self
    }

    /// What to do.
    pub(crate) const fn next(&self) -> Next {
        let operation = match self.stage {
            Stage::Held => return Next::Wait,
            Stage::Captured | Stage::Released | Stage::Refunded => return Next::Done,
            Stage::Capturing => Operation::Capture,
            Stage::Releasing => Operation::Cancel,
            Stage::Refunding => Operation::Refund,
        };
        Next::Call(if self.doubt { Operation::Query } else { operation })
    }

    /// Somebody said something. Gives back whether it mattered.
    pub(crate) fn hear(&mut self, word: Word) -> bool {
        match (self.stage, word) {
            (Stage::Held, Word::Approve) => self.enter(Stage::Capturing),
            // Also where nothing was ever asked of the rail: Postgres may lose that a hold has ended, and then another word, or the
            // deadline, would end it the other way. The rail does not forget.
            (Stage::Held, Word::Decline) => self.enter(Stage::Releasing),
            (Stage::Held, Word::Cancel) => {
                self.enter(Stage::Releasing);
                self.cancelled = true;
            }
            (Stage::Capturing, Word::Cancel) => {
                let doubt = self.doubt;
                self.enter(Stage::Releasing);
                (self.doubt, self.cancelled) = (doubt, true);
            }
            (Stage::Releasing, Word::Cancel) if !self.cancelled => self.cancelled = true,
            (Stage::Captured, Word::Cancel) => {
                self.enter(Stage::Refunding);
                self.cancelled = true;
            }
            _ => return false,
        }
        true
    }

    /// The rail answered.
    pub(crate) fn answered(&mut self, asked: Operation, standing: Standing) {
        match (self.stage, standing) {
            (Stage::Held | Stage::Captured | Stage::Released | Stage::Refunded, _) => {}
            (_, Standing::Refunded) => self.enter(Stage::Refunded),
            (Stage::Capturing, Standing::Captured) => self.enter(Stage::Captured),
            (Stage::Capturing | Stage::Releasing, Standing::Refused | Standing::Cancelled) => {
                self.enter(Stage::Released);
            }
            (Stage::Releasing, Standing::Captured) if self.cancelled => self.enter(Stage::Refunding),
            // The release came too late, and nobody but us wanted it.
            (Stage::Releasing, Standing::Captured) => self.enter(Stage::Captured),
            (Stage::Capturing | Stage::Releasing, Standing::None) | (Stage::Refunding, Standing::Captured) => {
                self.doubt = false;
                if asked != Operation::Query {
                    self.count();
                }
                self.give_up();
            }
            // It said that the money was moved. Whatever this means, only asking again can tell.
            (Stage::Refunding, Standing::None | Standing::Refused | Standing::Cancelled) => {
                self.doubt = true;
                self.count();
            }
        }
    }

    /// The call brought no answer.
    pub(crate) fn failed(&mut self, trouble: Trouble) {
        match trouble {
            // That is no attempt at a capture: neither an outage nor a mistake in how the rail is set up must release what waits
            // for its end.
            Trouble::Transient | Trouble::Rejected if self.stage == Stage::Capturing => {}
            Trouble::Transient | Trouble::Rejected | Trouble::Retriable => self.count(),
            Trouble::Unknown => {
                self.doubt = true;
                // Nor does an outage that looks like this.
                if self.stage != Stage::Capturing || self.attempts < MAX_UNKNOWN_ATTEMPTS {
                    self.count();
                }
            }
        }
        self.give_up();
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.doubt = false;
        self.attempts = 0;
    }

    fn count(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
    }

    /// A capture that does not succeed becomes a release.
    fn give_up(&mut self) {
        if self.stage == Stage::Capturing && self.attempts >= MAX_CAPTURE_ATTEMPTS {
            let doubt = self.doubt;
            self.enter(Stage::Releasing);
            self.doubt = doubt;
        }
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
