//! The bookkeeping of a publishing session: sequence numbers, credit, what is unacknowledged, and where to resume.
//!
//! Fed by the driver in `session`: events come in from the queue, batches go out as far as credit allows, answers settle
//! sequence numbers in any order. Does no I/O, so that every rule of the contract is tested here.
//!
//! An event is kept until it is settled. A resumed session passes over the numbers that the gateway says are settled. Those
//! that only this side knows to be settled have an empty event in their place, since numbers stay contiguous: the gateway
//! refuses it, nobody waits for the answer, and nothing is stored twice.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use sluice_proto::bounds;
use sluice_proto::pb;
use sluice_proto::wire::EventBatch;
use tokio::sync::oneshot;

use super::{Error, Outcome, Receipt};

/// Bytes that an event adds to a request besides its own: field tag and length.
const EVENT_FRAMING_BYTES: usize = 6;
/// Bytes of a request besides its events, generously.
const REQUEST_FRAMING_BYTES: usize = 64;
/// Bytes of events from which on no more come in, whatever their number: more than a gateway grants a session.
const MAX_HELD_BYTES: usize = 16 * 1_024 * 1_024;

/// An event that waits for a sequence number, and whoever waits for its outcome.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) event: Bytes,
    pub(super) reply: oneshot::Sender<Result<Receipt, Error>>,
}

/// The gateway asks for sequence numbers that make no sense.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nonsense;

/// Everything numbered and not yet passed by the front.
#[derive(Debug)]
pub(super) struct Window {
    /// One entry for each number from `base` on; `None` once settled.
    entries: VecDeque<Option<Submission>>,
    /// Bytes of their events.
    held_bytes: usize,
    /// The sequence number of the first entry.
    base: u64,
    /// The next sequence number to send in this session.
    next: u64,
    /// The highest number that was sent in any session.
    sent: u64,
    /// Ranges from `next` on that the gateway says are settled, both ends included.
    settled: VecDeque<(u64, u64)>,
    /// Sent in this session and not settled.
    unanswered: usize,
    credit_events: i64,
    credit_bytes: i64,
    max_in_flight: usize,
    max_batch_events: usize,
    max_request_bytes: usize,
    /// What the caller asked for; the gateway may grant less.
    wanted_in_flight: usize,
}

impl Window {
    pub(super) fn new(wanted_in_flight: u32) -> Self {
        let wanted_in_flight = match wanted_in_flight {
            0 => bounds::MAX_IN_FLIGHT_EVENTS,
            wanted => wanted.min(bounds::MAX_IN_FLIGHT_EVENTS),
        } as usize;
        Self {
            entries: VecDeque::new(),
            held_bytes: 0,
            base: 1,
            next: 1,
            sent: 0,
            settled: VecDeque::new(),
            unanswered: 0,
            credit_events: 0,
            credit_bytes: 0,
            max_in_flight: wanted_in_flight,
            max_batch_events: bounds::MAX_BATCH_EVENTS,
            max_request_bytes: bounds::MAX_REQUEST_BYTES,
            wanted_in_flight,
        }
    }

    /// How many more events may come in.
    pub(super) fn room(&self) -> usize {
        if self.held_bytes >= MAX_HELD_BYTES {
            return 0;
        }
        self.max_in_flight.saturating_sub(self.entries.len())
    }

    /// Nothing is waiting to be sent or settled.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Everything that was sent in this session is settled.
    pub(super) fn is_answered(&self) -> bool {
        self.unanswered == 0
    }

    /// The highest number that was sent in any session; 0 before the first.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Numbers an event.
    pub(super) fn push(&mut self, submission: Submission) {
        self.held_bytes += submission.event.len();
        self.entries.push_back(Some(submission));
    }

    /// A session begins, the first one or a resumed one. Lower numbers than the gateway's next are settled, and what
    /// became of those that were still waited for is not known any more.
    pub(super) fn resume(&mut self, ready: &pb::PublishReady) -> Result<(), Nonsense> {
        let next = ready.next_sequence.max(1);
        if self.base.saturating_sub(next) > u64::from(bounds::MAX_IN_FLIGHT_EVENTS) {
            return Err(Nonsense);
        }
        let end = self.end();
        let settled = ready
            .settled
            .iter()
            .map(|range| (range.first_sequence, range.last_sequence));
        self.settled = settled.collect();
        // What was never sent cannot be settled: it would be taken for what is sent next.
        if self
            .settled
            .iter()
            .any(|(first, last)| first > last || *last >= end.max(next))
        {
            return Err(Nonsense);
        }
        let limits = ready.limits.unwrap_or_default();
        let or = |limit: u32, default: usize| if limit == 0 { default } else { limit as usize };
        self.max_in_flight = or(limits.max_in_flight, self.wanted_in_flight).min(self.wanted_in_flight);
        self.max_batch_events = or(limits.max_batch_events, bounds::MAX_BATCH_EVENTS);
        self.max_request_bytes = or(limits.max_request_bytes, bounds::MAX_REQUEST_BYTES);
        (self.credit_events, self.credit_bytes) = (0, 0);
        self.credit(ready.credit.unwrap_or_default());
        self.next = next;
        self.unanswered = 0;
        for sequence in self.base..next.min(end) {
            self.settle_one(sequence, Outcome::Settled);
        }
        for (first, last) in self.settled.clone() {
            for sequence in first.max(self.base)..=last {
                self.settle_one(sequence, Outcome::Settled);
            }
        }
        self.advance();
        self.pass_settled();
        if next > end {
            self.base = next;
        }
        Ok(())
    }

    /// Moves on to the next number that the gateway waits for.
    fn pass_settled(&mut self) {
        while let Some((first, last)) = self.settled.front().copied()
            && first <= self.next
        {
            self.next = self.next.max(last + 1);
            self.settled.pop_front();
        }
    }

    /// More permission; the gateway may also take some back.
    pub(super) fn credit(&mut self, credit: pb::Credit) {
        self.credit_events = self.credit_events.saturating_add(credit.events);
        self.credit_bytes = self.credit_bytes.saturating_add(credit.bytes);
    }

    /// Whether there is something to send and permission to send it.
    pub(super) fn sendable(&self) -> bool {
        self.next < self.end() && self.permits(self.bytes_of(self.next))
    }

    /// The next events to send, as many as credit and the bounds of a batch allow.
    pub(super) fn next_batch(&mut self) -> Option<EventBatch> {
        let first_sequence = self.next;
        let mut events = Vec::new();
        let mut request_bytes = REQUEST_FRAMING_BYTES;
        let until = self.settled.front().map_or(self.end(), |(first, _)| *first);
        while self.next < until && events.len() < self.max_batch_events {
            let bytes = self.bytes_of(self.next);
            request_bytes += bytes + EVENT_FRAMING_BYTES;
            let fits = events.is_empty() || request_bytes <= self.max_request_bytes;
            if !fits || !self.permits(bytes) {
                break;
            }
            let event = self.waiting(self.next).map(|submission| submission.event.clone());
            self.unanswered += usize::from(event.is_some());
            events.push(event.unwrap_or_default());
            self.credit_events -= 1;
            self.credit_bytes -= bytes as i64;
            self.next += 1;
        }
        self.sent = self.sent.max(self.next - 1);
        self.pass_settled();
        (!events.is_empty()).then_some(EventBatch { first_sequence, events })
    }

    /// Settles what an ack says.
    pub(super) fn acknowledge(&mut self, ack: &pb::Ack) {
        let first = ack.first_sequence.max(self.base);
        let last = ack.last_sequence.min(self.next.saturating_sub(1));
        for sequence in first..=last {
            let position = ack.positions.get((sequence - ack.first_sequence) as usize).copied();
            let outcome = match ack.status() {
                pb::AckStatus::Stored => Outcome::Stored { position },
                pb::AckStatus::Duplicate => Outcome::Duplicate,
                pb::AckStatus::Error | pb::AckStatus::Unspecified => {
                    Outcome::Error(ack.error.clone().unwrap_or_default())
                }
            };
            if self.settle_one(sequence, outcome) {
                self.unanswered -= 1;
            }
        }
        self.advance();
    }

    /// The session is over for good: everything still waiting learns why. What was sent may be stored, whatever the reason
    /// says of itself.
    pub(super) fn fail(&mut self, error: &Error) {
        for (sequence, entry) in (self.base..).zip(self.entries.drain(..)) {
            if let Some(submission) = entry {
                submission.answer(Err(error.clone().of_event(sequence <= self.sent)));
            }
        }
    }

    /// The number after the last event.
    fn end(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// The event of a number, unless it is settled.
    fn waiting(&self, sequence: u64) -> Option<&Submission> {
        let index = sequence.checked_sub(self.base)?;
        self.entries.get(index as usize)?.as_ref()
    }

    fn bytes_of(&self, sequence: u64) -> usize {
        self.waiting(sequence).map_or(0, |submission| submission.event.len())
    }

    /// An event larger than all the credit there is may go alone, or it would never go.
    fn permits(&self, bytes: usize) -> bool {
        self.credit_events > 0
            && self.unanswered < self.max_in_flight
            && (self.credit_bytes >= bytes as i64 || (self.unanswered == 0 && self.credit_bytes > 0))
    }

    fn settle_one(&mut self, sequence: u64, outcome: Outcome) -> bool {
        let entry = sequence
            .checked_sub(self.base)
            .and_then(|index| self.entries.get_mut(index as usize))
            .and_then(Option::take);
        let Some(submission) = entry else { return false };
        self.held_bytes -= submission.event.len();
        submission.answer(Ok(Receipt {
            sequence,
            outcome,
            settled_at: Instant::now(),
        }));
        true
    }

    fn advance(&mut self) {
        while let Some(None) = self.entries.front() {
            self.entries.pop_front();
            self.base += 1;
        }
    }
}

impl Submission {
    pub(super) fn answer(self, answer: Result<Receipt, Error>) {
        // Whoever dropped the ticket does not want to know.
        drop(self.reply.send(answer));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    type Reply = oneshot::Receiver<Result<Receipt, Error>>;

    fn ready(next_sequence: u64, events: i64, bytes: i64) -> pb::PublishReady {
        pb::PublishReady {
            next_sequence,
            credit: Some(pb::Credit { events, bytes }),
            limits: Some(pb::Limits {
                max_event_bytes: 100,
                max_batch_events: 4,
                max_request_bytes: 10_000,
                max_in_flight: 100,
            }),
            ..pb::PublishReady::default()
        }
    }

    fn filled(count: u8, events: i64, bytes: i64) -> (Window, Vec<Reply>) {
        let mut window = Window::new(0);
        window.resume(&ready(1, events, bytes)).unwrap();
        let replies = (1..=count).map(|content| push(&mut window, &[content; 10])).collect();
        (window, replies)
    }

    fn push(window: &mut Window, event: &[u8]) -> Reply {
        let (reply, receiver) = oneshot::channel();
        window.push(Submission {
            event: Bytes::copy_from_slice(event),
            reply,
        });
        receiver
    }

    fn ack(first: u64, last: u64, status: pb::AckStatus) -> pb::Ack {
        pb::Ack {
            first_sequence: first,
            last_sequence: last,
            status: status.into(),
            ..pb::Ack::default()
        }
    }

    fn lengths(batch: Option<EventBatch>) -> Option<(u64, Vec<usize>)> {
        batch.map(|batch| (batch.first_sequence, batch.events.iter().map(Bytes::len).collect()))
    }

    fn outcome(reply: &mut Reply) -> Outcome {
        reply.try_recv().unwrap().unwrap().outcome
    }

    #[test]
    fn credit_in_events_bounds_what_is_sent() {
        let (mut window, _replies) = filled(6, 5, 1_000);
        assert_eq!(lengths(window.next_batch()), Some((1, vec![10; 4])));
        assert_eq!(lengths(window.next_batch()), Some((5, vec![10])));
        assert!(!window.sendable());
        assert_eq!(window.next_batch(), None);
        window.credit(pb::Credit { events: -2, bytes: 0 });
        window.credit(pb::Credit { events: 2, bytes: 0 });
        assert!(!window.sendable(), "credit is a sum");
        window.credit(pb::Credit { events: 1, bytes: 0 });
        assert_eq!(lengths(window.next_batch()), Some((6, vec![10])));
    }

    #[test]
    fn credit_in_bytes_bounds_what_is_sent() {
        let (mut window, _replies) = filled(3, 100, 25);
        assert_eq!(lengths(window.next_batch()), Some((1, vec![10, 10])));
        assert!(!window.sendable());
        window.acknowledge(&ack(1, 2, pb::AckStatus::Stored));
        assert!(window.sendable(), "alone, an event may exceed the credit");
        assert_eq!(lengths(window.next_batch()), Some((3, vec![10])));
    }

    #[test]
    fn answers_settle_in_any_order_and_the_front_moves() {
        let (mut window, mut replies) = filled(3, 100, 1_000);
        window.next_batch().unwrap();
        let mut stored = ack(2, 3, pb::AckStatus::Stored);
        stored.positions = vec![
            pb::Position {
                partition: 1,
                offset: 7,
            },
            pb::Position {
                partition: 2,
                offset: 9,
            },
        ];
        window.acknowledge(&stored);
        assert_eq!(window.entries.len(), 3);
        window.acknowledge(&ack(1, 1, pb::AckStatus::Duplicate));
        assert!(window.is_empty() && window.is_answered());
        assert_eq!(outcome(&mut replies[0]), Outcome::Duplicate);
        let position = Some(pb::Position {
            partition: 2,
            offset: 9,
        });
        assert_eq!(outcome(&mut replies[2]), Outcome::Stored { position });
    }

    #[test]
    fn an_ack_of_unsent_numbers_settles_nothing() {
        let (mut window, mut replies) = filled(2, 1, 1_000);
        window.next_batch().unwrap();
        window.acknowledge(&ack(1, 50, pb::AckStatus::Stored));
        assert!(replies[1].try_recv().is_err());
        window.acknowledge(&ack(1, 1, pb::AckStatus::Stored));
        assert_eq!(window.unanswered, 0);
    }

    #[test]
    fn resuming_sends_again_what_is_not_settled_and_nothing_else() {
        let (mut window, mut replies) = filled(5, 100, 1_000);
        while window.next_batch().is_some() {}
        window.acknowledge(&ack(1, 1, pb::AckStatus::Stored));
        window.acknowledge(&ack(3, 3, pb::AckStatus::Stored));
        window.resume(&ready(2, 100, 1_000)).unwrap();
        // The third has its place taken, because numbers stay contiguous.
        assert_eq!(lengths(window.next_batch()), Some((2, vec![10, 0, 10, 10])));
        window.acknowledge(&ack(3, 3, pb::AckStatus::Error));
        window.acknowledge(&ack(2, 5, pb::AckStatus::Stored));
        assert!(window.is_empty() && window.is_answered());
        assert_eq!(outcome(&mut replies[2]), Outcome::Stored { position: None });
    }

    #[test]
    fn resuming_later_settles_without_claiming_to_know() {
        let (mut window, mut replies) = filled(3, 100, 1_000);
        while window.next_batch().is_some() {}
        window.resume(&ready(3, 100, 1_000)).unwrap();
        assert_eq!(outcome(&mut replies[0]), Outcome::Settled);
        assert_eq!(outcome(&mut replies[1]), Outcome::Settled);
        assert_eq!(lengths(window.next_batch()), Some((3, vec![10])));
        window.resume(&ready(9, 100, 1_000)).unwrap();
        assert!(window.is_empty());
        let _reply = push(&mut window, b"more");
        assert_eq!(lengths(window.next_batch()), Some((9, vec![4])));
    }

    #[test]
    fn resuming_before_everything_fills_up_and_far_before_is_nonsense() {
        let (mut window, _replies) = filled(2, 100, 1_000);
        window.next_batch().unwrap();
        window.acknowledge(&ack(1, 2, pb::AckStatus::Stored));
        window.resume(&ready(1, 100, 1_000)).unwrap();
        let _reply = push(&mut window, b"more");
        assert_eq!(lengths(window.next_batch()), Some((1, vec![0, 0, 4])));
        window.base = 1_000_000;
        assert_eq!(window.resume(&ready(1, 100, 1_000)), Err(Nonsense));
    }

    #[test]
    fn resuming_passes_over_what_the_gateway_has() {
        let (mut window, mut replies) = filled(8, 100, 1_000);
        while window.next_batch().is_some() {}
        assert_eq!(window.sent(), 8);
        let range = |first_sequence, last_sequence| pb::SequenceRange {
            first_sequence,
            last_sequence,
        };
        let mut resumed = ready(2, 100, 1_000);
        resumed.settled = vec![range(4, 5), range(8, 8)];
        window.resume(&resumed).unwrap();
        for settled in [0, 3, 4, 7] {
            assert_eq!(outcome(&mut replies[settled]), Outcome::Settled, "{settled}");
        }
        assert_eq!(lengths(window.next_batch()), Some((2, vec![10, 10])));
        assert_eq!(lengths(window.next_batch()), Some((6, vec![10, 10])));
        let _reply = push(&mut window, b"more");
        assert_eq!(lengths(window.next_batch()), Some((9, vec![4])));
        window.acknowledge(&ack(2, 9, pb::AckStatus::Stored));
        assert!(window.is_empty() && window.is_answered());
        // Nothing is settled that was never sent.
        let mut nonsense = ready(10, 100, 1_000);
        nonsense.settled = vec![range(12, 12)];
        assert_eq!(window.resume(&nonsense), Err(Nonsense));
    }

    #[test]
    fn what_was_sent_in_any_session_may_be_stored_when_the_last_one_fails() {
        let (mut window, mut replies) = filled(4, 3, 1_000);
        window.next_batch().unwrap();
        window.acknowledge(&ack(1, 1, pb::AckStatus::Stored));
        // The session that fails has no credit: the second and third were sent in the one before, and the fourth never was.
        window.resume(&ready(2, 0, 1_000)).unwrap();
        let fenced = Status::with_error_details(
            Code::Aborted,
            "fenced",
            ErrorDetails::with_error_info("FENCED", "sluice.v1", HashMap::new()),
        );
        window.fail(&Error::Fenced(fenced.into()));
        for (index, not_stored) in [(1, false), (2, false), (3, true)] {
            let Err(Error::Fenced(refusal)) = replies[index].try_recv().unwrap() else {
                panic!("{index} was not fenced");
            };
            assert_eq!(refusal.certainly_not_stored(), not_stored, "{index}");
        }
        assert!(window.is_empty());
    }

    #[test]
    fn the_gateway_may_grant_less_room() {
        let mut window = Window::new(8);
        assert_eq!(window.room(), 8);
        let mut small = ready(1, 100, 1_000);
        small.limits.as_mut().unwrap().max_in_flight = 2;
        window.resume(&small).unwrap();
        let _replies = [push(&mut window, b"a"), push(&mut window, b"b")];
        assert_eq!(window.room(), 0);
    }
}
