//! Tests of the state machine: single turns, and every order of requests, answers, retries, compensations, duplicates and
//! late arrivals against a rail that keeps its promise and a network that keeps none.

use proptest::prelude::*;

use super::*;

/// What the rail knows of the payment's key. It is asked in any order, twice, and late.
#[derive(Debug)]
struct Rail {
    standing: Standing,
    captures: usize,
    refunds: usize,
    refuses: bool,
}

impl Rail {
    fn take(&mut self, operation: Operation) -> Standing {
        match (operation, self.standing) {
            (Operation::Capture, Standing::None) if self.refuses => self.standing = Standing::Refused,
            (Operation::Capture, Standing::None) => {
                self.standing = Standing::Captured;
                self.captures += 1;
            }
            (Operation::Cancel, Standing::None) => self.standing = Standing::Cancelled,
            (Operation::Refund, Standing::Captured) => {
                self.standing = Standing::Refunded;
                self.refunds += 1;
            }
            _ => {}
        }
        self.standing
    }
}

/// What becomes of one call.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    /// The rail answers without doing it.
    Undone,
    NeverSent,
    Refused,
    /// Done, and the answer is lost.
    AnswerLost,
    /// It is still on its way when the caller gives it up.
    Delayed,
    /// Done, and the caller dies before it can store the answer.
    CallerDies,
    /// Not done yet, and the caller dies.
    CallerDiesEarly,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Word(Word),
    Call(Fate),
    /// A call of long ago arrives, and perhaps arrives again later.
    Late(usize, bool),
    /// Postgres loses what was stored last, and so many times before.
    Forgotten(usize),
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![Just(Word::Approve), Just(Word::Decline), Just(Word::Cancel)]
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Answered),
        1 => Just(Fate::Undone),
        1 => Just(Fate::NeverSent),
        1 => Just(Fate::Refused),
        2 => Just(Fate::AnswerLost),
        2 => Just(Fate::Delayed),
        1 => Just(Fate::CallerDies),
        1 => Just(Fate::CallerDiesEarly),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => word().prop_map(Event::Word),
        4 => fate().prop_map(Event::Call),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(which, again)| Event::Late(which, again)),
        1 => (1_usize..4).prop_map(Event::Forgotten),
    ]
}

fn is_final(payment: Payment) -> bool {
    payment.next() == Next::Done
}

struct World {
    payment: Payment,
    rail: Rail,
    under_way: Vec<Operation>,
    /// As it was stored before, the newest last.
    stored: Vec<Payment>,
    /// Somebody was told that it is released.
    told: bool,
}

impl World {
    fn new(stage: Stage, refuses: bool) -> Self {
        let rail = Rail {
            standing: Standing::None,
            captures: 0,
            refunds: 0,
            refuses,
        };
        Self {
            payment: Payment::at(stage),
            rail,
            under_way: Vec::new(),
            stored: Vec::new(),
            told: false,
        }
    }

    fn meet(&mut self, event: Event) {
        if !matches!(event, Event::Forgotten(_)) {
            self.stored.push(self.payment);
        }
        match event {
            Event::Forgotten(count) => {
                for _lost in 0..count {
                    if let Some(before) = self.stored.pop() {
                        self.payment = before.in_doubt();
                    }
                }
            }
            Event::Word(word) => {
                self.payment.hear(word);
            }
            Event::Late(which, again) => {
                if !self.under_way.is_empty() {
                    let which = which % self.under_way.len();
                    self.rail.take(self.under_way[which]);
                    if !again {
                        self.under_way.swap_remove(which);
                    }
                }
            }
            Event::Call(fate) => {
                if let Next::Call(operation) = self.payment.next() {
                    self.call(operation, fate);
                }
            }
        }
    }

    fn call(&mut self, operation: Operation, fate: Fate) {
        match fate {
            Fate::Answered => {
                let standing = self.rail.take(operation);
                self.payment.answered(operation, standing);
            }
            Fate::Undone => self.payment.answered(operation, self.rail.standing),
            Fate::NeverSent => self.payment.failed(Trouble::Transient),
            Fate::Refused => self.payment.failed(Trouble::Retriable),
            Fate::AnswerLost => {
                self.rail.take(operation);
                self.payment.failed(Trouble::Unknown);
            }
            Fate::Delayed => {
                self.under_way.push(operation);
                self.payment.failed(Trouble::Unknown);
            }
            Fate::CallerDies => {
                self.rail.take(operation);
                self.payment = self.payment.in_doubt();
            }
            Fate::CallerDiesEarly => {
                self.under_way.push(operation);
                self.payment = self.payment.in_doubt();
            }
        }
    }

    /// What must hold at every moment.
    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert!(self.rail.captures <= 1, "captured twice");
        prop_assert!(
            self.rail.refunds <= self.rail.captures,
            "refunded what was not captured"
        );
        let standing = self.rail.standing;
        prop_assert!(
            !self.told || self.rail.captures == 0,
            "captured after it was told to be released"
        );
        match self.payment.stage {
            // What became of it may be forgotten.
            Stage::Held => {}
            // That it was given back may be forgotten.
            Stage::Captured => prop_assert!(matches!(standing, Standing::Captured | Standing::Refunded)),
            Stage::Refunding => prop_assert!(matches!(standing, Standing::Captured | Standing::Refunded)),
            Stage::Refunded => prop_assert_eq!(standing, Standing::Refunded),
            Stage::Released => {
                prop_assert!(!matches!(standing, Standing::Captured | Standing::Refunded));
                // Nothing that is still under way can capture it: either nothing is, or the rail has its key.
                prop_assert!(standing != Standing::None || !self.under_way.contains(&Operation::Capture));
            }
            Stage::Capturing | Stage::Releasing => {}
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn money_is_moved_once_or_never_whatever_happens(
        held in any::<bool>(),
        refuses in prop::bool::weighted(0.2),
        events in prop::collection::vec(event(), 0..60),
        last in word(),
    ) {
        let mut world = World::new(if held { Stage::Held } else { Stage::Capturing }, refuses);
        for event in events {
            let before = world.payment;
            world.meet(event);
            world.told |= world.payment.stage == Stage::Released;
            world.check()?;
            if is_final(before) && !matches!(event, Event::Word(Word::Cancel) | Event::Forgotten(_)) {
                prop_assert_eq!(world.payment, before, "what is final changes by a cancellation alone");
            }
        }
        // From here on everything works, and a hold ends.
        world.meet(Event::Word(last));
        for _call in 0..6 {
            world.meet(Event::Call(Fate::Answered));
            world.check()?;
        }
        prop_assert!(is_final(world.payment), "{:?}", world.payment);
        let settled = world.payment.stage;
        while !world.under_way.is_empty() {
            world.meet(Event::Late(0, false));
            world.check()?;
        }
        prop_assert_eq!(world.payment.stage, settled);
        if world.payment.cancelled {
            prop_assert!(settled != Stage::Captured, "what was taken back stays captured");
        }
    }
}

#[test]
fn an_unknown_outcome_is_asked_for_before_anything_else() {
    let mut payment = Payment::at(Stage::Capturing);
    payment.failed(Trouble::Unknown);
    assert_eq!(payment.next(), Next::Call(Operation::Query));
    payment.answered(Operation::Query, Standing::None);
    assert_eq!(payment.next(), Next::Call(Operation::Capture));
    payment.failed(Trouble::Unknown);
    payment.answered(Operation::Query, Standing::Captured);
    assert_eq!(payment.stage, Stage::Captured);
}

#[test]
fn what_the_rail_rejects_is_an_attempt_at_all_but_a_capture() {
    for (stage, attempts) in [(Stage::Capturing, 0), (Stage::Releasing, 3), (Stage::Refunding, 3)] {
        let mut payment = Payment::at(stage);
        for _call in 0..3 {
            payment.failed(Trouble::Rejected);
        }
        assert_eq!((payment.stage, payment.attempts), (stage, attempts));
    }
}

#[test]
fn an_outage_releases_nothing_and_refusals_do() {
    let mut payment = Payment::at(Stage::Capturing);
    for _call in 0..1_000 {
        payment.failed(Trouble::Transient);
    }
    assert_eq!(payment, Payment::at(Stage::Capturing));
    for _call in 0..MAX_CAPTURE_ATTEMPTS {
        payment.failed(Trouble::Retriable);
    }
    assert_eq!(payment.next(), Next::Call(Operation::Cancel));
    payment.answered(Operation::Cancel, Standing::Cancelled);
    assert_eq!(payment.stage, Stage::Released);
}

#[test]
fn a_capture_that_is_given_up_and_was_done_stays_captured() {
    let mut payment = Payment::at(Stage::Capturing);
    for _call in 0..1_000 {
        payment.failed(Trouble::Unknown);
    }
    assert_eq!(
        payment.stage,
        Stage::Capturing,
        "nobody knows whether the rail was there"
    );
    for _call in 0..MAX_CAPTURE_ATTEMPTS {
        payment.failed(Trouble::Retriable);
    }
    assert_eq!(
        (payment.stage, payment.next()),
        (Stage::Releasing, Next::Call(Operation::Query))
    );
    payment.answered(Operation::Query, Standing::Captured);
    assert_eq!(payment.stage, Stage::Captured);
}

#[test]
fn a_cancellation_refunds_what_is_captured_and_releases_what_is_not() {
    let mut captured = Payment::at(Stage::Captured);
    assert!(captured.hear(Word::Cancel));
    assert_eq!(captured.next(), Next::Call(Operation::Refund));
    assert!(!captured.hear(Word::Cancel), "twice is once");
    captured.answered(Operation::Refund, Standing::Refunded);
    assert_eq!(captured.stage, Stage::Refunded);

    let mut capturing = Payment::at(Stage::Capturing);
    assert!(capturing.hear(Word::Cancel));
    assert_eq!(capturing.next(), Next::Call(Operation::Cancel));
    capturing.answered(Operation::Cancel, Standing::Captured);
    assert_eq!(capturing.next(), Next::Call(Operation::Refund));
}

#[test]
fn the_first_word_about_a_review_is_the_only_one() {
    let mut payment = Payment::at(Stage::Held);
    assert!(payment.hear(Word::Decline));
    assert!(!payment.hear(Word::Approve));
    assert_eq!(payment.next(), Next::Call(Operation::Cancel));
    payment.answered(Operation::Cancel, Standing::Cancelled);
    assert_eq!(payment.stage, Stage::Released);
}

#[test]
fn every_stage_is_found_by_its_name() {
    for stage in Stage::ALL {
        assert_eq!(Stage::parse(stage.as_str()), Some(stage));
    }
}
