//! Owns what a client is told about its events: delivery reports of one session, the acks that they become, and the
//! sequence number below which all is settled.
//!
//! Comes after `publish`, on both sides of a thread: Kafka's thread settles, the session loop collects.

use std::collections::BTreeMap;
use std::time::Instant;

use parking_lot::Mutex;
use sluice_proto::pb;
use tokio::sync::Notify;

use super::admit::Permit;
use crate::status::Failure;

/// What became of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// Stored in Kafka by all in-sync replicas.
    Stored(pb::Position),
    /// Not stored, or not surely.
    Failed(Box<Failure>),
}

/// An event whose fate is known.
#[derive(Debug)]
pub struct Settled {
    /// Its number in the session.
    pub sequence: u64,
    /// Its room, to be given back.
    pub permit: Permit,
    /// When it was handed to Kafka; `None` where it was refused before.
    pub sent: Option<Instant>,
    /// What became of it.
    pub fate: Fate,
}

/// Delivery reports on their way from Kafka's thread to the session loop. As long as the session's window: an event holds
/// its permit until it is collected.
#[derive(Debug, Default)]
pub struct Settlements {
    queue: Mutex<Vec<Settled>>,
    bell: Notify,
}

impl Settlements {
    /// Adds a report. Only the first after a collection rings, so that a burst of reports wakes the session once.
    pub fn settle(&self, settled: Settled) {
        let first = {
            let mut queue = self.queue.lock();
            queue.push(settled);
            queue.len() == 1
        };
        if first {
            self.bell.notify_one();
        }
    }

    /// Waits for a report after the last collection. Cancel-safe.
    pub async fn rung(&self) {
        self.bell.notified().await;
    }

    /// Moves all reports to the end of `into`.
    pub fn collect(&self, into: &mut Vec<Settled>) {
        let mut queue = self.queue.lock();
        if into.is_empty() {
            // Both vectors keep their room.
            std::mem::swap(&mut *queue, into);
        } else {
            into.append(&mut queue);
        }
    }
}

/// Makes acks, and remembers below which sequence number all is settled.
#[derive(Debug)]
pub struct Acks {
    /// Everything below is settled.
    floor: u64,
    /// Settled ranges above the floor: from the first number to the one after the last. Never adjacent.
    above: BTreeMap<u64, u64>,
    want_positions: bool,
}

impl Acks {
    /// Acks of a session in which everything below `next` is settled.
    pub const fn new(next: u64, want_positions: bool) -> Self {
        Self {
            floor: next,
            above: BTreeMap::new(),
            want_positions,
        }
    }

    /// Everything below is settled: where a resumed session goes on.
    pub const fn floor(&self) -> u64 {
        self.floor
    }

    /// Makes as few acks as there are contiguous ranges of one fate, in the order of the sequence numbers. Leaves the
    /// events, without their failures, for their permits to be released.
    pub fn coalesce(&mut self, settled: &mut [Settled]) -> Vec<pb::Ack> {
        // Reports come as runs of ascending numbers, one for each partition, which a stable sort merges.
        settled.sort_by_key(|event| event.sequence);
        let mut acks: Vec<pb::Ack> = Vec::new();
        let mut failure: Option<Box<Failure>> = None;
        for event in settled {
            let continues = acks.last().is_some_and(|ack| ack.last_sequence + 1 == event.sequence)
                && match &event.fate {
                    Fate::Stored(_) => failure.is_none(),
                    Fate::Failed(other) => failure.as_ref() == Some(other),
                };
            if !continues {
                failure = None;
                acks.push(pb::Ack {
                    first_sequence: event.sequence,
                    ..pb::Ack::default()
                });
            }
            let Some(ack) = acks.last_mut() else { continue };
            ack.last_sequence = event.sequence;
            match &event.fate {
                Fate::Stored(position) => {
                    ack.set_status(pb::AckStatus::Stored);
                    if self.want_positions {
                        ack.positions.push(*position);
                    }
                }
                Fate::Failed(why) if !continues => {
                    ack.set_status(pb::AckStatus::Error);
                    ack.error = Some(why.as_ref().clone().into_event_error());
                    failure = Some(why.clone());
                }
                Fate::Failed(_) => {}
            }
        }
        for ack in &acks {
            self.settle(ack.first_sequence, ack.last_sequence);
        }
        acks
    }

    /// Notes that the numbers from `first` to `last`, both included, are settled.
    fn settle(&mut self, first: u64, last: u64) {
        let mut start = first;
        let mut end = last + 1;
        if let Some((before, before_end)) = self.above.range(..start).next_back().map(|(a, b)| (*a, *b))
            && before_end == start
        {
            self.above.remove(&before);
            start = before;
        }
        if let Some(after_end) = self.above.remove(&end) {
            end = after_end;
        }
        if start == self.floor {
            self.floor = end;
        } else {
            self.above.insert(start, end);
        }
    }
}

/// The ack of sequence numbers that were received before.
pub fn duplicate(first: u64, last: u64) -> pb::Ack {
    pb::Ack {
        first_sequence: first,
        last_sequence: last,
        status: pb::AckStatus::Duplicate.into(),
        ..pb::Ack::default()
    }
}

#[cfg(test)]
mod tests {
    use sluice_proto::pb::ErrorCode;

    use super::*;
    use crate::ingest::admit::Window;

    fn settled(sequence: u64, fate: Fate) -> Settled {
        Settled {
            sequence,
            permit: Window::new(1).admit(1),
            sent: None,
            fate,
        }
    }

    fn stored(sequence: u64) -> Settled {
        settled(
            sequence,
            Fate::Stored(pb::Position {
                partition: 0,
                offset: sequence as i64,
            }),
        )
    }

    fn failed(sequence: u64, reason: &'static str) -> Settled {
        let failure = Failure::new(ErrorCode::BrokerUnavailable, reason, "try again");
        settled(sequence, Fate::Failed(Box::new(failure)))
    }

    fn ranges(acks: &[pb::Ack]) -> Vec<(u64, u64, pb::AckStatus)> {
        acks.iter()
            .map(|ack| (ack.first_sequence, ack.last_sequence, ack.status()))
            .collect()
    }

    #[test]
    fn contiguous_numbers_of_one_fate_become_one_ack() {
        use pb::AckStatus::{Error, Stored};
        let mut acks = Acks::new(1, false);
        let mut events = vec![
            stored(4),
            stored(1),
            stored(2),
            failed(5, "down"),
            failed(6, "down"),
            failed(7, "late"),
            stored(8),
            stored(3),
            stored(10),
        ];
        let made = acks.coalesce(&mut events);
        assert_eq!(
            ranges(&made),
            [
                (1, 4, Stored),
                (5, 6, Error),
                (7, 7, Error),
                (8, 8, Stored),
                (10, 10, Stored)
            ]
        );
        assert_eq!(made[1].error.as_ref().expect("error").reason, "down");
        assert!(made[0].positions.is_empty() && made[3].error.is_none());
        assert_eq!(acks.floor(), 9);
    }

    #[test]
    fn positions_are_in_the_order_of_the_numbers() {
        let mut acks = Acks::new(1, true);
        let made = acks.coalesce(&mut [stored(3), stored(2), stored(1)]);
        let offsets: Vec<i64> = made[0].positions.iter().map(|position| position.offset).collect();
        assert_eq!(offsets, [1, 2, 3]);
    }

    #[test]
    fn the_floor_rises_over_what_was_settled_out_of_order() {
        let mut acks = Acks::new(5, false);
        for (number, floor) in [(7, 5), (9, 5), (6, 5), (8, 5), (11, 5), (5, 10), (10, 12)] {
            acks.settle(number, number);
            assert_eq!(acks.floor(), floor, "after {number}");
        }
        assert!(acks.above.is_empty());
    }

    #[tokio::test]
    async fn a_burst_of_reports_rings_once() {
        let settlements = Settlements::default();
        for sequence in 1..=3 {
            settlements.settle(stored(sequence));
        }
        settlements.rung().await;
        let mut events = Vec::new();
        settlements.collect(&mut events);
        assert_eq!(events.len(), 3);
        let again = tokio::time::timeout(std::time::Duration::from_millis(1), settlements.rung());
        assert!(again.await.is_err());
        settlements.settle(stored(4));
        settlements.rung().await;
        settlements.collect(&mut events);
        assert_eq!(events.len(), 4);
    }
}
