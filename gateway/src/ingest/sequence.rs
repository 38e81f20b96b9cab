//! Owns the order of a session: which sequence number comes next, and what a batch that starts elsewhere means.
//!
//! Comes after a batch was read, before its events are admitted.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use sluice_proto::bounds::MAX_BATCH_EVENTS;
use sluice_proto::pb::ErrorCode;

use crate::status::Failure;

/// The first sequence number of a producer's epoch.
pub const FIRST: u64 = 1;

/// What to do with a batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Sequence numbers of the batch that were received before or are settled, ascending.
    pub duplicates: Vec<RangeInclusive<u64>>,
    /// How many events are new.
    pub fresh: usize,
}

/// The sequence numbers of one session.
#[derive(Debug)]
pub struct Sequence {
    /// Neither received nor settled.
    expected: u64,
    /// Settled ranges above, both ends included, ascending.
    settled: VecDeque<(u64, u64)>,
}

impl Sequence {
    /// Expects `expected` next, and passes over the ranges above it that are settled (both ends included, ascending).
    pub const fn starting_at(expected: u64, settled: VecDeque<(u64, u64)>) -> Self {
        Self { expected, settled }
    }

    /// The next sequence number.
    pub const fn expected(&self) -> u64 {
        self.expected
    }

    /// Takes a batch of `count` events from `first` on, and expects what follows it.
    ///
    /// # Errors
    /// `REQUEST_INVALID` for an empty, oversized or impossible batch, `SEQUENCE_GAP` where numbers were skipped; the
    /// session then ends.
    pub fn take(&mut self, first: u64, count: usize) -> Result<Plan, Failure> {
        if count == 0 || count > MAX_BATCH_EVENTS {
            let reason = format!("has {count} events, not 1 to {MAX_BATCH_EVENTS}");
            let remedy = "send at least one event, and at most Limits.max_batch_events";
            return Err(Failure::new(ErrorCode::RequestInvalid, reason, remedy).field("batch.events"));
        }
        let end = first
            .checked_add(count as u64)
            .filter(|_| first >= FIRST)
            .ok_or_else(|| {
                Failure::new(
                    ErrorCode::RequestInvalid,
                    format!("is {first}, from which {count} events cannot be counted"),
                    "count from 1",
                )
                .field("batch.first_sequence")
            })?;
        if first > self.expected {
            let reason = format!("is {first}, but {} is expected", self.expected);
            return Err(Failure::new(
                ErrorCode::SequenceGap,
                reason,
                "open the session again and send from Ready.next_sequence",
            )
            .field("batch.first_sequence")
            .fact("expected", self.expected)
            .fact("got", first));
        }
        let mut duplicates = Vec::new();
        if first < self.expected {
            duplicates.push(first..=self.expected.min(end) - 1);
        }
        self.expected = self.expected.max(end);
        while let Some((start, last)) = self.settled.front().copied()
            && start <= self.expected
        {
            if start < end {
                duplicates.push(start..=last.min(end - 1));
            }
            self.expected = self.expected.max(last + 1);
            self.settled.pop_front();
        }
        let known: u64 = duplicates.iter().map(|range| range.end() - range.start() + 1).sum();
        Ok(Plan {
            duplicates,
            fresh: count - known as usize,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starting_at(expected: u64) -> Sequence {
        Sequence::starting_at(expected, VecDeque::new())
    }

    fn plan<const N: usize>(duplicates: [RangeInclusive<u64>; N], fresh: usize) -> Result<Plan, Failure> {
        Ok(Plan {
            duplicates: duplicates.into(),
            fresh,
        })
    }

    #[test]
    fn contiguous_batches_are_new() {
        let mut sequence = starting_at(FIRST);
        assert_eq!(sequence.take(1, 64), plan([], 64));
        assert_eq!(sequence.take(65, 1), plan([], 1));
        assert_eq!(sequence.expected(), 66);
    }

    #[test]
    fn what_came_before_is_a_duplicate_and_the_rest_is_new() {
        let mut sequence = starting_at(11);
        assert_eq!(sequence.take(1, 10), plan([1..=10], 0));
        assert_eq!(sequence.take(9, 5), plan([9..=10], 3));
        assert_eq!(sequence.take(13, 1), plan([13..=13], 0));
        assert_eq!(sequence.expected(), 14);
    }

    #[test]
    fn settled_ranges_are_passed_over_or_are_duplicates() {
        let settled = || VecDeque::from([(5, 6), (9, 12), (20, 20)]);
        // A client that sends everything again.
        let mut sequence = Sequence::starting_at(3, settled());
        assert_eq!(sequence.take(3, 8), plan([5..=6, 9..=10], 4));
        assert_eq!(sequence.take(11, 4), plan([11..=12], 2));
        assert_eq!(sequence.expected(), 15);
        // A client that passes over what is settled.
        let mut sequence = Sequence::starting_at(3, settled());
        assert_eq!(sequence.take(3, 2), plan([], 2));
        assert_eq!(sequence.take(7, 2), plan([], 2));
        assert_eq!(sequence.take(13, 7), plan([], 7));
        assert_eq!(sequence.take(21, 1), plan([], 1));
        // What is passed over must be settled.
        let mut sequence = Sequence::starting_at(3, settled());
        assert_eq!(sequence.take(7, 1).expect_err("gap").code(), ErrorCode::SequenceGap);
    }

    #[test]
    fn a_gap_says_what_was_expected() {
        let mut sequence = starting_at(5);
        let failure = sequence.take(7, 1).expect_err("gap");
        assert_eq!(failure.code(), ErrorCode::SequenceGap);
        assert!(failure.to_string().contains("is 7, but 5 is expected"), "{failure}");
        assert_eq!(sequence.expected(), 5);
    }

    #[test]
    fn impossible_batches_are_refused() {
        let mut sequence = starting_at(FIRST);
        for (first, count) in [(1, 0), (1, MAX_BATCH_EVENTS + 1), (0, 1), (u64::MAX, 1)] {
            let failure = sequence.take(first, count).expect_err("refused");
            assert_eq!(failure.code(), ErrorCode::RequestInvalid, "{first} {count}");
        }
        assert_eq!(sequence.expected(), FIRST);
    }
}
