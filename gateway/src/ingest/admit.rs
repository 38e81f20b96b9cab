//! Owns the room for events: the window of a session, in events and bytes, and the gate of the unary calls. Admitting an
//! event yields a [`Permit`], which `publish` consumes and the delivery report gives back.
//!
//! Comes before `decode`. What is given back becomes credit, in chunks, so that credit costs little beside the acks.

use std::sync::Arc;

use sluice_proto::pb;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of encoded events of one session that may be unacknowledged. With 64 KiB the largest event, hundreds of those;
/// of usual ones more than the events' own limit.
pub const WINDOW_BYTES: i64 = 8 * 1_024 * 1_024;
/// The window is granted again in chunks of this part of it: small enough that a client never runs dry while the rest is
/// on its way, large enough to be rare.
pub const GRANT_PART: i64 = 8;
/// Unary calls that may wait for Kafka at a time, over all connections.
pub const MAX_CALLS: usize = 8_192;

/// Room for one event. Given back to where it came from when the event's fate is known.
#[derive(Debug)]
#[must_use = "dropping a session's permit loses its room for ever"]
pub struct Permit {
    bytes: u32,
    _call: Option<OwnedSemaphorePermit>,
}

/// A session's window.
#[derive(Debug)]
pub struct Window {
    /// What `limit_events` never exceeds.
    most_events: u32,
    limit_events: i64,
    limit_bytes: i64,
    /// May exceed the limits: the last batch is taken whole, since a batch larger than the window would never fit.
    held_events: i64,
    held_bytes: i64,
    /// Given back by settled events, not yet granted to the client again; below zero while a smaller window is made up for.
    owed_events: i64,
    owed_bytes: i64,
}

impl Window {
    /// A window of so many events, now and at most.
    pub fn new(events: u32, most_events: u32) -> Self {
        Self {
            most_events,
            limit_events: events.min(most_events).into(),
            limit_bytes: WINDOW_BYTES,
            held_events: 0,
            held_bytes: 0,
            owed_events: 0,
            owed_bytes: 0,
        }
    }

    /// Changes how many events may be unacknowledged. Credit cannot be taken back, so a smaller window shows in what is
    /// granted again.
    pub fn resize(&mut self, events: u32) {
        let change = i64::from(events.min(self.most_events)) - self.limit_events;
        self.limit_events += change;
        self.owed_events += change;
    }

    /// Whether at least half of the window is in use.
    pub const fn is_used(&self) -> bool {
        self.held_events * 2 >= self.limit_events
    }

    /// What the client may send at first.
    pub const fn initial_credit(&self) -> pb::Credit {
        pb::Credit {
            events: self.limit_events,
            bytes: self.limit_bytes,
        }
    }

    /// Whether there is room, so that the stream is read.
    pub const fn is_open(&self) -> bool {
        self.held_events < self.limit_events && self.held_bytes < self.limit_bytes
    }

    /// Whether no event is between admission and its fate.
    pub const fn is_idle(&self) -> bool {
        self.held_events == 0
    }

    /// Takes room for one event of so many bytes. Call it for events that were read while the window was open; it never
    /// refuses, and so may drive the room below zero.
    pub fn admit(&mut self, bytes: usize) -> Permit {
        // A request is far smaller than 4 GiB, and so is each of its events.
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.held_events += 1;
        self.held_bytes += i64::from(bytes);
        Permit { bytes, _call: None }
    }

    /// Takes the room of a settled event back, to be granted again.
    pub fn release(&mut self, permit: Permit) {
        self.owed_events += 1;
        self.owed_bytes += i64::from(permit.bytes);
        self.cancel(permit);
    }

    /// Takes the room of an event back that will be admitted again.
    pub fn cancel(&mut self, permit: Permit) {
        self.held_events -= 1;
        self.held_bytes -= i64::from(permit.bytes);
    }

    /// What to grant the client now: a chunk, or all there is when nothing is under way, since a client that waits for
    /// more than it has would otherwise wait for ever.
    pub fn grant(&mut self) -> Option<pb::Credit> {
        let events = self.owed_events.max(0);
        let enough = events * GRANT_PART >= self.limit_events
            || self.owed_bytes * GRANT_PART >= self.limit_bytes
            || self.is_idle();
        if !enough || (events == 0 && self.owed_bytes == 0) {
            return None;
        }
        self.owed_events -= events;
        let bytes = std::mem::take(&mut self.owed_bytes);
        Some(pb::Credit { events, bytes })
    }
}

/// Room for unary calls.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CALLS)))
    }
}

impl Gate {
    /// Room for one call, if there is some. The permit may be dropped.
    pub fn admit(&self, bytes: usize) -> Option<Permit> {
        let call = self.0.clone().try_acquire_owned().ok()?;
        Some(Permit {
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            _call: Some(call),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credit(events: i64, bytes: i64) -> Option<pb::Credit> {
        Some(pb::Credit { events, bytes })
    }

    #[test]
    fn a_window_closes_when_events_or_bytes_are_spent() {
        let mut window = Window::new(2, 1_000);
        assert_eq!(Some(window.initial_credit()), credit(2, WINDOW_BYTES));
        let first = window.admit(10);
        assert!(window.is_open());
        let second = window.admit(10);
        assert!(!window.is_open());
        window.release(first);
        assert!(window.is_open());
        window.release(second);
        let large = window.admit(WINDOW_BYTES as usize);
        assert!(!window.is_open());
        window.release(large);
        assert!(window.is_open() && window.is_idle());
    }

    #[test]
    fn an_oversized_batch_drives_the_room_below_zero_and_comes_back_whole() {
        let mut window = Window::new(2, 1_000);
        let permits: Vec<_> = (0..5).map(|_| window.admit(1)).collect();
        assert!(!window.is_open());
        permits.into_iter().for_each(|permit| window.release(permit));
        assert_eq!(window.grant(), credit(5, 5));
        assert!(window.is_open());
    }

    #[test]
    fn credit_is_granted_in_chunks_and_the_rest_when_nothing_is_under_way() {
        let mut window = Window::new(800, 1_000);
        let mut permits: Vec<_> = (0..150).map(|_| window.admit(3)).collect();
        let mut release = |window: &mut Window, count| {
            for permit in permits.drain(..count) {
                window.release(permit);
            }
        };
        release(&mut window, 99);
        assert_eq!(window.grant(), None);
        release(&mut window, 1);
        assert_eq!(window.grant(), credit(100, 300));
        release(&mut window, 49);
        assert_eq!(window.grant(), None);
        release(&mut window, 1);
        assert_eq!(window.grant(), credit(50, 150));
        assert_eq!(window.grant(), None);
    }

    #[test]
    fn a_smaller_window_is_made_up_for_and_a_larger_one_granted() {
        let mut window = Window::new(800, 1_000);
        let mut permits: Vec<_> = (0..800).map(|_| window.admit(1)).collect();
        assert!(window.is_used() && !window.is_open());
        window.resize(500);
        permits.drain(..300).for_each(|permit| window.release(permit));
        assert_eq!(window.grant(), None, "these were one window's too many");
        assert!(!window.is_open());
        permits.drain(..100).for_each(|permit| window.release(permit));
        assert_eq!(window.grant(), credit(100, 400));
        window.resize(1_000);
        assert_eq!(window.grant(), credit(500, 0));
        permits.drain(..).for_each(|permit| window.release(permit));
        assert!(!window.is_used());
        assert_eq!(window.grant(), credit(400, 400));
        assert_eq!(window.grant(), None);
    }

    #[test]
    fn bytes_come_back_while_a_smaller_window_is_made_up_for() {
        let mut window = Window::new(100, 1_000);
        let permit = window.admit(7);
        window.resize(10);
        window.release(permit);
        assert_eq!(window.grant(), credit(0, 7));
    }

    #[test]
    fn a_cancelled_event_is_not_granted() {
        let mut window = Window::new(8, 1_000);
        let permit = window.admit(5);
        window.cancel(permit);
        assert!(window.is_idle());
        assert_eq!(window.grant(), None);
    }

    #[test]
    fn the_gate_has_a_bound_and_opens_again() {
        let gate = Gate(Arc::new(Semaphore::new(1)));
        let permit = gate.admit(1).expect("room");
        assert!(gate.admit(1).is_none());
        drop(permit);
        assert!(gate.admit(1).is_some());
    }
}
