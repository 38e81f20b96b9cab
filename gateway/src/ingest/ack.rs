//! Owns what a client is told about its events: delivery reports of one session, the acks that they become, and the
//! sequence number below which all is settled.
//!
//! Comes after `publish`, on both sides of a thread: Kafka's thread settles, the session loop collects.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use parking_lot::Mutex;
use sluice_proto::pb;
use tokio::sync::Notify;

use super::admit::Permit;
use super::fence::Claim;
use super::token::{MAX_RANGES, Progress};
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
    /// Every event under way holds these settlements, and so the session's claim outlives it until all are settled.
    _claim: Option<Claim>,
}

impl Settlements {
    /// Reports of a session that has this claim.
    pub fn new(claim: Claim) -> Self {
        Self {
            _claim: Some(claim),
            ..Self::default()
        }
    }

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
    /// From which number on events were sent at which time, in milliseconds since the Unix epoch. Ascending; at most one
    /// for each batch of the window.
    sent: VecDeque<(u64, i64)>,
    /// The number after the last that was sent.
    sent_end: u64,
    /// Numbers below the first were perhaps sent by an earlier session, at the second or later.
    inherited: Option<(u64, i64)>,
    want_positions: bool,
}

impl Acks {
    /// Acks of a session in which everything below `next` is settled.
    pub const fn new(next: u64, want_positions: bool) -> Self {
        Self {
            floor: next,
            above: BTreeMap::new(),
            sent: VecDeque::new(),
            sent_end: next,
            inherited: None,
            want_positions,
        }
    }

    /// Takes over what an earlier session left: ranges that are settled, and that everything else below `end` may have
    /// been sent since `since_ms`.
    pub fn inherit(&mut self, settled: impl IntoIterator<Item = (u64, u64)>, end: u64, since_ms: i64) {
        for (first, last) in settled {
            self.settle(first, last);
        }
        self.inherited = Some((end, since_ms));
    }

    /// Settled ranges above the floor, both ends included, ascending and apart from each other.
    pub fn above(&self) -> impl Iterator<Item = (u64, u64)> {
        self.above.iter().map(|(first, end)| (*first, end - 1))
    }

    /// Notes that the numbers from `first` to before `end` are being sent.
    pub fn sending(&mut self, first: u64, end: u64, now_ms: i64) {
        // What was sent before keeps its time, and so do its neighbours.
        let first = first.max(self.sent_end);
        if first >= end {
            return;
        }
        self.sent_end = end;
        // One entry stands for all of its millisecond.
        if self.sent.back().is_none_or(|(_, sent_ms)| *sent_ms != now_ms) {
            self.sent.push_back((first, now_ms));
        }
    }

    /// How far the session has come, for a token.
    pub fn progress(&mut self, now_ms: i64) -> Progress {
        let floor = self.floor;
        while self.sent.get(1).is_some_and(|(first, _)| *first <= floor) {
            self.sent.pop_front();
        }
        if floor >= self.sent_end {
            self.sent.clear();
        }
        self.inherited = self.inherited.filter(|(end, _)| floor < *end);
        let oldest = self.sent.front().map(|(_, sent_ms)| *sent_ms);
        let inherited = self.inherited.map(|(_, sent_ms)| sent_ms);
        Progress {
            next: floor,
            above: self.above().take(MAX_RANGES).collect(),
            since_ms: oldest.into_iter().chain(inherited).fold(now_ms, i64::min),
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
            permit: Window::new(1, 1).admit(1),
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

    #[test]
    fn a_token_knows_since_when_the_unsettled_may_have_been_sent() {
        let mut acks = Acks::new(1, false);
        assert_eq!(acks.progress(100).since_ms, 100);
        acks.sending(1, 11, 110);
        acks.sending(11, 15, 110);
        acks.sending(15, 21, 120);
        acks.settle(3, 4);
        let progress = acks.progress(130);
        assert_eq!(
            (progress.next, progress.above, progress.since_ms),
            (1, vec![(3, 4)], 110)
        );
        acks.settle(1, 14);
        assert_eq!(acks.progress(130).since_ms, 120);
        acks.settle(15, 20);
        assert_eq!(acks.progress(130).since_ms, 130);
        assert!(acks.sent.is_empty());
    }

    #[test]
    fn what_comes_again_does_not_make_its_neighbours_younger() {
        let mut acks = Acks::new(1, false);
        acks.sending(1, 11, 100);
        acks.sending(11, 15, 110);
        // Up to 14 these are repetitions.
        acks.sending(5, 21, 120);
        acks.settle(1, 10);
        assert_eq!(acks.progress(130).since_ms, 110);
        acks.settle(11, 14);
        assert_eq!(acks.progress(130).since_ms, 120);
    }

    #[test]
    fn what_an_earlier_session_sent_counts_until_it_is_settled() {
        let mut acks = Acks::new(5, false);
        acks.inherit([(5, 6), (9, 9)], 12, 50);
        assert_eq!((acks.floor(), acks.above().collect::<Vec<_>>()), (7, vec![(9, 9)]));
        acks.sending(7, 20, 100);
        assert_eq!(acks.progress(110).since_ms, 50);
        acks.settle(7, 11);
        assert_eq!(acks.progress(110).since_ms, 100);
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
