//! Events on their way to their decisions: matched by event_id across any number of publishers and subscribers.
//!
//! Publishing workers enter events before they send them; subscribing workers bring decisions. The ids of a run carry
//! the event's number, so that no map is needed. Numbers are kept in chunks; a chunk in which everything came once is
//! dropped, and a decision for it is a repetition by that alone. So memory follows what is outstanding.

use std::collections::{BTreeMap, VecDeque};

use ahash::RandomState;
use serde::{Deserialize, Serialize};

use crate::generate::Fraud;

/// Subscribers that one run may have: a bit for each.
pub(crate) const MAX_SUBSCRIBERS: usize = 32;
const CHUNK_EVENTS: u64 = 4_096;
/// Places of the table that checks the order: accounts beyond it are checked now and then.
const ORDER_PLACES: usize = 1 << 18;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    intended_ns: u64,
    /// A bit for each subscriber that had the decision.
    seen: u32,
    publisher: u16,
    state: State,
    injected: Option<Fraud>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The number was not used yet.
    #[default]
    Free,
    /// Sent or about to be.
    Expected,
    /// Refused: no decision will come.
    Refused,
    /// Perhaps stored: a decision may come.
    Uncertain,
}

#[derive(Debug)]
struct Chunk {
    entries: Vec<Entry>,
    /// Numbers that are complete.
    complete: u64,
}

/// What a decision turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The event's first decision at this subscriber.
    First {
        intended_ns: u64,
        /// No subscriber had it before.
        anywhere: bool,
        /// It came before a decision of the same account that was published earlier.
        reordered: bool,
        injected: Option<Fraud>,
    },
    /// The subscriber had it before.
    Again,
    /// Not of this run, or its event was refused.
    Foreign,
}

/// How often a rule found what was injected for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Payments that the rule should find, with a decision.
    pub injected: u64,
    /// Those that it found.
    pub found: u64,
    /// All that it fired on.
    pub fired: u64,
}

/// Everything that is outstanding.
#[derive(Debug)]
pub(crate) struct Follow {
    all: u32,
    /// Number of the first chunk's first event, over the chunk's size.
    first: u64,
    chunks: VecDeque<Option<Chunk>>,
    hasher: RandomState,
    /// Hash of account and publisher, and the highest number seen.
    order: Vec<(u64, u64)>,
    outstanding: u64,
    /// By the rule's id.
    pub(crate) rules: BTreeMap<String, Found>,
}

impl Follow {
    pub(crate) fn new(subscribers: usize) -> Self {
        Self {
            all: u32::MAX >> (MAX_SUBSCRIBERS - subscribers.clamp(1, MAX_SUBSCRIBERS)),
            first: 0,
            chunks: VecDeque::new(),
            hasher: RandomState::with_seeds(1, 2, 3, 4),
            order: vec![(0, 0); ORDER_PLACES],
            outstanding: 0,
            rules: BTreeMap::new(),
        }
    }

    /// An event is about to be sent.
    pub(crate) fn publishing(&mut self, number: u64, publisher: usize, intended_ns: u64, injected: Option<Fraud>) {
        let index = (number / CHUNK_EVENTS - self.first) as usize;
        while self.chunks.len() <= index {
            self.chunks.push_back(Some(Chunk {
                entries: vec![Entry::default(); CHUNK_EVENTS as usize],
                complete: 0,
            }));
        }
        if let Some(Some(chunk)) = self.chunks.get_mut(index) {
            chunk.entries[(number % CHUNK_EVENTS) as usize] = Entry {
                intended_ns,
                seen: 0,
                publisher: publisher as u16,
                state: State::Expected,
                injected,
            };
            self.outstanding += 1;
        }
    }

    /// A number that no decision is expected for, such as one of poison.
    pub(crate) fn skip(&mut self, number: u64) {
        self.publishing(number, 0, 0, None);
        self.refused(number, true);
    }

    /// The server answered an event with an error.
    pub(crate) fn refused(&mut self, number: u64, certainly: bool) {
        let all = self.all;
        let Some(chunk) = self.chunk(number) else { return };
        let entry = &mut chunk.entries[(number % CHUNK_EVENTS) as usize];
        if entry.state != State::Expected || entry.seen == all {
            return;
        }
        entry.state = if certainly { State::Refused } else { State::Uncertain };
        if certainly {
            chunk.complete += 1;
        }
        self.outstanding -= 1;
        self.drop_complete();
    }

    /// A decision came to a subscriber.
    pub(crate) fn decided(&mut self, number: u64, subscriber: usize, account: &str) -> Verdict {
        let bit = 1_u32 << subscriber;
        let all = self.all;
        if number / CHUNK_EVENTS < self.first {
            return Verdict::Again;
        }
        let index = (number / CHUNK_EVENTS - self.first) as usize;
        let Some(slot) = self.chunks.get_mut(index) else {
            return Verdict::Foreign;
        };
        let Some(chunk) = slot else { return Verdict::Again };
        let entry = &mut chunk.entries[(number % CHUNK_EVENTS) as usize];
        match entry.state {
            State::Free | State::Refused => return Verdict::Foreign,
            State::Expected | State::Uncertain if entry.seen & bit != 0 => return Verdict::Again,
            State::Expected | State::Uncertain => {}
        }
        let anywhere = entry.seen == 0;
        entry.seen |= bit;
        let entry = *entry;
        if entry.seen == all {
            chunk.complete += 1;
            self.outstanding -= u64::from(entry.state == State::Expected);
        }
        if chunk.complete == CHUNK_EVENTS {
            *slot = None;
            self.drop_complete();
        }
        Verdict::First {
            intended_ns: entry.intended_ns,
            anywhere,
            reordered: anywhere && self.is_out_of_order(number, entry.publisher, account),
            injected: entry.injected,
        }
    }

    /// Notes which rules fired on a payment.
    pub(crate) fn judged<'a>(&mut self, injected: Option<Fraud>, fired: impl Iterator<Item = &'a str>) {
        if let Some(fraud) = injected {
            self.rules.entry(fraud.rule_id().to_owned()).or_default().injected += 1;
        }
        for rule in fired {
            let found = self.rules.entry(rule.to_owned()).or_default();
            found.fired += 1;
            found.found += u64::from(injected.is_some_and(|fraud| fraud.rule_id() == rule));
        }
    }

    /// Events that a decision is still expected for.
    pub(crate) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    fn chunk(&mut self, number: u64) -> Option<&mut Chunk> {
        let index = (number / CHUNK_EVENTS).checked_sub(self.first)?;
        self.chunks.get_mut(index as usize)?.as_mut()
    }

    fn drop_complete(&mut self) {
        while let Some(front) = self.chunks.front() {
            let complete = front.as_ref().is_none_or(|chunk| chunk.complete == CHUNK_EVENTS);
            if !complete {
                return;
            }
            self.chunks.pop_front();
            self.first += 1;
        }
    }

    /// Whether a later payment of the account, by the same publisher, was decided before. Two accounts that share a
    /// place hide each other's order and never make one up.
    fn is_out_of_order(&mut self, number: u64, publisher: u16, account: &str) -> bool {
        let hash = self.hasher.hash_one((account, publisher)).max(1);
        let place = &mut self.order[hash as usize % ORDER_PLACES];
        let is_earlier = place.0 == hash && place.1 > number;
        if !is_earlier {
            *place = (hash, number);
        }
        is_earlier
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::First { .. })
    }

    #[test]
    fn each_subscriber_has_each_decision_once() {
        let mut follow = Follow::new(2);
        follow.publishing(0, 1, 100, None);
        assert_eq!(follow.outstanding(), 1);
        assert!(first(follow.decided(0, 0, "a")));
        assert_eq!(follow.outstanding(), 1);
        assert_eq!(follow.decided(0, 0, "a"), Verdict::Again);
        assert!(first(follow.decided(0, 1, "a")));
        assert_eq!(follow.outstanding(), 0);
        assert_eq!(follow.decided(1, 0, "a"), Verdict::Foreign);
    }

    #[test]
    fn what_is_complete_is_forgotten_and_still_recognised() {
        let mut follow = Follow::new(1);
        for number in 0..3 * CHUNK_EVENTS {
            follow.publishing(number, 0, 0, None);
        }
        for number in (0..3 * CHUNK_EVENTS).rev() {
            assert!(first(follow.decided(number, 0, "a")));
        }
        assert_eq!((follow.outstanding(), follow.chunks.len()), (0, 0));
        assert_eq!(follow.decided(5, 0, "a"), Verdict::Again);
    }

    #[test]
    fn order_is_checked_within_account_and_publisher() {
        let mut follow = Follow::new(1);
        for number in 0..4 {
            follow.publishing(number, usize::from(number == 0), 0, None);
        }
        let mut reordered = |number, account| match follow.decided(number, 0, account) {
            Verdict::First { reordered, .. } => reordered,
            _ => panic!("not the first"),
        };
        assert!(!reordered(2, "a"));
        assert!(reordered(1, "a"));
        assert!(!reordered(0, "a"), "another publisher");
        assert!(!reordered(3, "b"));
    }

    #[test]
    fn what_was_refused_is_not_waited_for() {
        let mut follow = Follow::new(1);
        follow.publishing(0, 0, 0, None);
        follow.publishing(1, 0, 0, None);
        follow.skip(2);
        follow.refused(0, true);
        follow.refused(1, false);
        assert_eq!(follow.outstanding(), 0);
        assert_eq!(follow.decided(0, 0, "a"), Verdict::Foreign);
        assert!(first(follow.decided(1, 0, "a")), "perhaps it was stored");
    }
}
