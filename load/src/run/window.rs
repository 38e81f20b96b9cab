//! The bookkeeping of a publishing session: sequence numbers, credit, what is unanswered, and where to resume.
//!
//! Fed by `publish`. Does no I/O. An event that was settled already when a session resumes before it is sent again empty,
//! because numbers must stay contiguous; the gateway answers it and nobody waits for that.

use std::collections::VecDeque;

use bytes::Bytes;
use sluice_proto::bounds;
use sluice_proto::pb;
use sluice_proto::wire::EventBatch;

use super::feed::Arrival;
use crate::source::{Item, Kind};

/// Bytes that an event adds to a request besides its own.
const EVENT_FRAMING_BYTES: usize = 6;
const REQUEST_FRAMING_BYTES: usize = 64;

/// An event with its sequence number.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) item: Item,
    pub(crate) intended_ns: u64,
    /// When it was sent first.
    pub(crate) sent_ns: Option<u64>,
    settled: bool,
    /// It was sent again empty, and its answer means nothing.
    empty: bool,
}

/// The gateway resumes where the session never was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Nonsense;

/// A message to send.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) message: EventBatch,
    /// The entries in it that are sent for the first time, as positions in the window.
    pub(crate) fresh: std::ops::Range<usize>,
    /// Events in it that were sent before.
    pub(crate) again: u64,
}

/// Everything numbered and not settled.
#[derive(Debug)]
pub(crate) struct Window {
    entries: VecDeque<Entry>,
    /// The sequence number of the first entry.
    base: u64,
    /// The next one to send in this session.
    next: u64,
    /// The highest one that was sent in any session.
    sent: u64,
    unsettled: usize,
    credit_events: i64,
    credit_bytes: i64,
    max_batch_events: usize,
    max_request_bytes: usize,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            base: 1,
            next: 1,
            sent: 0,
            unsettled: 0,
            credit_events: 0,
            credit_bytes: 0,
            max_batch_events: bounds::MAX_BATCH_EVENTS,
            max_request_bytes: bounds::MAX_REQUEST_BYTES,
        }
    }

    /// Numbers events, to be sent next.
    pub(crate) fn push(&mut self, arrival: Arrival) {
        self.unsettled += arrival.items.len();
        self.entries.extend(arrival.items.into_iter().map(|item| Entry {
            item,
            intended_ns: arrival.intended_ns,
            sent_ns: None,
            settled: false,
            empty: false,
        }));
    }

    /// Whether something is to be sent.
    pub(crate) fn has_unsent(&self) -> bool {
        self.next < self.base + self.entries.len() as u64
    }

    /// Whether credit covers the next event.
    pub(crate) fn permits(&self) -> bool {
        let next = self.entries.get((self.next - self.base) as usize);
        next.is_some_and(|entry| self.credit_events > 0 && self.credit_bytes >= entry.item.bytes.len() as i64)
    }

    /// Nothing is waited for.
    pub(crate) fn is_settled(&self) -> bool {
        self.unsettled == 0
    }

    /// The highest number that was sent in any session; 0 before the first.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether nothing that was sent is waited for.
    pub(crate) fn is_answered(&self) -> bool {
        self.unsettled as u64 <= self.base + self.entries.len() as u64 - self.next
    }

    /// More permission; the gateway may also take some back.
    pub(crate) fn credit(&mut self, credit: pb::Credit) {
        self.credit_events = self.credit_events.saturating_add(credit.events);
        self.credit_bytes = self.credit_bytes.saturating_add(credit.bytes);
    }

    /// A session begins or goes on. Shows each event that was settled while nobody listened.
    pub(crate) fn resume(&mut self, ready: &pb::PublishReady, mut missed: impl FnMut(&Entry)) -> Result<(), Nonsense> {
        let next = ready.next_sequence.max(1);
        if self.base.saturating_sub(next) > u64::from(bounds::MAX_IN_FLIGHT_EVENTS) {
            return Err(Nonsense);
        }
        let limits = ready.limits.unwrap_or_default();
        let or = |limit: u32, default: usize| if limit == 0 { default } else { limit as usize };
        self.max_batch_events = or(limits.max_batch_events, bounds::MAX_BATCH_EVENTS);
        self.max_request_bytes = or(limits.max_request_bytes, bounds::MAX_REQUEST_BYTES);
        (self.credit_events, self.credit_bytes) = (0, 0);
        self.credit(ready.credit.unwrap_or_default());
        while self.base > next {
            self.base -= 1;
            self.entries.push_front(settled_place());
        }
        while self.base < next
            && let Some(entry) = self.entries.pop_front()
        {
            self.base += 1;
            if !entry.settled {
                self.unsettled -= 1;
                missed(&entry);
            }
        }
        for range in &ready.settled {
            for sequence in range.first_sequence.max(self.base)..=range.last_sequence.min(self.sent) {
                let place = self.entries.get_mut((sequence - self.base) as usize);
                if let Some(entry) = place.filter(|entry| !entry.settled) {
                    entry.settled = true;
                    self.unsettled -= 1;
                    missed(entry);
                }
            }
        }
        self.base = self.base.max(next);
        self.next = next;
        self.entries.iter_mut().for_each(|entry| entry.empty = entry.settled);
        Ok(())
    }

    /// The next message, as large as credit and the bounds of a message allow.
    pub(crate) fn next_batch(&mut self, now_ns: u64) -> Option<Batch> {
        let first_sequence = self.next;
        let first = (self.next - self.base) as usize;
        let mut events = Vec::new();
        let mut bytes = REQUEST_FRAMING_BYTES;
        let mut again = 0;
        let mut fresh = first..first;
        while events.len() < self.max_batch_events && self.permits() {
            let at = (self.next - self.base) as usize;
            let entry = &mut self.entries[at];
            let event = if entry.empty {
                Bytes::new()
            } else {
                entry.item.bytes.clone()
            };
            bytes += event.len() + EVENT_FRAMING_BYTES;
            if bytes > self.max_request_bytes && !events.is_empty() {
                break;
            }
            if entry.sent_ns.is_none() {
                entry.sent_ns = Some(now_ns);
                fresh.end = at + 1;
            } else {
                again += u64::from(!entry.empty);
                fresh = at + 1..at + 1;
            }
            self.credit_events -= 1;
            self.credit_bytes -= event.len() as i64;
            self.next += 1;
            events.push(event);
        }
        self.sent = self.sent.max(self.next - 1);
        let message = EventBatch { first_sequence, events };
        (!message.events.is_empty()).then_some(Batch { message, fresh, again })
    }

    /// Entries of the window.
    pub(crate) fn entries(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = &Entry> {
        self.entries.range(range)
    }

    /// Settles the numbers of an answer and shows each that was waited for. Returns how many were answered before, or
    /// never sent.
    pub(crate) fn settle(&mut self, ack: &pb::Ack, mut each: impl FnMut(&Entry)) -> u64 {
        let mut odd = 0;
        let last = ack.last_sequence.min(self.next.saturating_sub(1));
        odd += ack.last_sequence - last.max(ack.first_sequence.saturating_sub(1)).min(ack.last_sequence);
        for sequence in ack.first_sequence..=last {
            let entry = sequence
                .checked_sub(self.base)
                .and_then(|index| self.entries.get_mut(index as usize));
            match entry {
                Some(entry) if entry.empty => entry.empty = false,
                Some(entry) if !entry.settled => {
                    entry.settled = true;
                    self.unsettled -= 1;
                    each(entry);
                }
                _ => odd += 1,
            }
        }
        while self.entries.front().is_some_and(|entry| entry.settled && !entry.empty) && self.base < self.next {
            self.entries.pop_front();
            self.base += 1;
        }
        odd
    }

    /// What is not settled, for the account at the end: how many were sent, and how many were not.
    pub(crate) fn unsettled(&self) -> (u64, u64) {
        let open = self.entries.iter().filter(|entry| !entry.settled);
        open.fold((0, 0), |(sent, unsent), entry| match entry.sent_ns {
            Some(_) => (sent + 1, unsent),
            None => (sent, unsent + 1),
        })
    }
}

/// Stands for an event that was settled and forgotten.
fn settled_place() -> Entry {
    Entry {
        item: Item {
            bytes: Bytes::new(),
            number: 0,
            kind: Kind::Copy,
        },
        intended_ns: 0,
        sent_ns: Some(0),
        settled: true,
        empty: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(numbers: std::ops::Range<u64>) -> Arrival {
        let item = |number| Item {
            bytes: Bytes::from_static(b"0123456789"),
            number,
            kind: Kind::Fresh(None),
        };
        Arrival {
            intended_ns: 5,
            items: numbers.map(item).collect(),
        }
    }

    fn ready(next_sequence: u64, events: i64) -> pb::PublishReady {
        let credit = Some(pb::Credit { events, bytes: 10_000 });
        pb::PublishReady {
            next_sequence,
            credit,
            ..pb::PublishReady::default()
        }
    }

    fn ack(first_sequence: u64, last_sequence: u64) -> pb::Ack {
        pb::Ack {
            first_sequence,
            last_sequence,
            ..pb::Ack::default()
        }
    }

    /// Resumes, and counts what was settled meanwhile.
    fn resume(window: &mut Window, ready: &pb::PublishReady) -> Result<u64, Nonsense> {
        let mut missed = 0;
        window.resume(ready, |_| missed += 1)?;
        Ok(missed)
    }

    fn lengths(batch: Batch) -> (u64, Vec<usize>, u64) {
        let lengths = batch.message.events.iter().map(Bytes::len).collect();
        (batch.message.first_sequence, lengths, batch.again)
    }

    #[test]
    fn a_batch_is_divided_where_credit_ends() {
        let mut window = Window::new();
        resume(&mut window, &ready(1, 2)).unwrap();
        window.push(arrival(0..3));
        let batch = window.next_batch(7).unwrap();
        assert_eq!(batch.fresh, 0..2);
        assert_eq!(lengths(batch), (1, vec![10, 10], 0));
        assert!(window.has_unsent() && !window.permits());
        window.credit(pb::Credit { events: 5, bytes: 0 });
        assert_eq!(window.next_batch(8).unwrap().fresh, 2..3);
        let mut settled = Vec::new();
        assert_eq!(
            window.settle(&ack(1, 3), |entry| settled.push((entry.item.number, entry.sent_ns))),
            0
        );
        assert_eq!(settled, [(0, Some(7)), (1, Some(7)), (2, Some(8))]);
        assert!(window.is_settled());
        assert_eq!(window.settle(&ack(2, 2), |_| ()), 1, "answered twice");
        assert_eq!(window.settle(&ack(4, 9), |_| ()), 6, "never sent");
    }

    #[test]
    fn resuming_sends_again_what_is_open_and_places_for_the_rest() {
        let mut window = Window::new();
        resume(&mut window, &ready(1, 100)).unwrap();
        window.push(arrival(0..4));
        window.next_batch(1).unwrap();
        assert_eq!(window.settle(&ack(1, 1), |_| ()), 0);
        assert_eq!(window.settle(&ack(3, 3), |_| ()), 0);
        assert_eq!(resume(&mut window, &ready(2, 100)), Ok(0));
        assert_eq!(lengths(window.next_batch(2).unwrap()), (2, vec![10, 0, 10], 2));
        let mut settled = 0;
        assert_eq!(window.settle(&ack(2, 4), |entry| settled += entry.sent_ns.unwrap()), 0);
        assert_eq!(settled, 2, "first sendings count");
        assert!(window.is_settled() && window.entries.is_empty());
    }

    #[test]
    fn answers_that_were_lost_are_counted_and_older_tokens_are_filled_up() {
        let mut window = Window::new();
        resume(&mut window, &ready(1, 100)).unwrap();
        window.push(arrival(0..3));
        window.next_batch(1).unwrap();
        let mut missed = Vec::new();
        window
            .resume(&ready(3, 100), |entry| missed.push((entry.item.number, entry.sent_ns)))
            .unwrap();
        assert_eq!(missed, [(0, Some(1)), (1, Some(1))], "each with when it was sent");
        assert_eq!(window.unsettled(), (1, 0));
        assert_eq!(resume(&mut window, &ready(1, 100)), Ok(0));
        assert_eq!(lengths(window.next_batch(2).unwrap()), (1, vec![0, 0, 10], 1));
        assert_eq!(window.settle(&ack(1, 3), |_| ()), 0);
        assert!(window.is_settled());
        window.push(arrival(3..6));
        window.next_batch(3).unwrap();
        let range = pb::SequenceRange {
            first_sequence: 5,
            last_sequence: 6,
        };
        let known = pb::PublishReady {
            settled: vec![range],
            ..ready(4, 100)
        };
        assert_eq!((window.sent(), resume(&mut window, &known)), (6, Ok(2)));
        assert_eq!(lengths(window.next_batch(4).unwrap()), (4, vec![10, 0, 0], 1));
        assert_eq!(window.settle(&ack(4, 6), |_| ()), 0);
        assert!(window.is_settled());
        window.base = 1_000_000;
        assert_eq!(resume(&mut window, &ready(1, 100)), Err(Nonsense));
    }
}
