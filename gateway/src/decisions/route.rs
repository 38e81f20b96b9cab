//! Owns the newest decisions of every partition, in rings of bounded length, and the bells that wake subscriptions.
//!
//! Comes after `decode` in the decision loop, which appends; subscriptions collect. Nobody waits for anybody here: who is
//! slower than the ring turns has to catch up from the topic.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::RwLock;
use sluice_kafka::fail;
use tokio::sync::watch;

use super::cursor::{Cursor, NOTHING};
use super::decode::Entry;
use super::filter::Filter;
use super::mailbox::{Mailbox, Mailboxes, Overflowed};
use super::waiting::Waiting;

/// Decisions kept of each partition: several seconds at the target rate, about half a kilobyte each.
pub const RING_DECISIONS: usize = 8_192;
/// Decisions that one collection looks at under a ring's lock.
pub const SCAN_DECISIONS: usize = 1_024;
/// The rings of all partitions, and the bells of all tenants that subscribed.
pub struct Router {
    rings: Vec<RwLock<Ring>>,
    /// As many as there are tenants, of which the keys file has a fixed number.
    bells: RwLock<HashMap<Arc<str>, watch::Sender<()>>>,
    waiting: Waiting,
    mailboxes: Mailboxes,
    capacity: usize,
}

struct Ring {
    entries: VecDeque<Arc<Entry>>,
    /// From this offset on, all decisions are here.
    start: i64,
    /// Offset of the next decision to come.
    next: i64,
    /// Highest source offset so far.
    high: i64,
    /// The consumer met the end of the partition after the last record.
    at_end: bool,
}

impl Ring {
    const fn starting_at(offset: i64, high: i64) -> Self {
        Self {
            entries: VecDeque::new(),
            start: offset,
            next: offset,
            high,
            at_end: false,
        }
    }
}

/// What a collection found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Everything there is.
    All,
    /// As much as was asked for, or as one collection looks at; there may be more.
    More,
    /// The cursor is behind the ring of this partition.
    Behind,
}

impl Router {
    /// Empty rings that begin at this position, and drop what is not above its high-watermarks.
    pub fn new(start: &Cursor) -> Self {
        Self::with_capacity(start, RING_DECISIONS)
    }

    fn with_capacity(start: &Cursor, capacity: usize) -> Self {
        let starts = start.next.iter().zip(&start.high);
        Self {
            rings: starts
                .map(|(start, high)| RwLock::new(Ring::starting_at(*start, *high)))
                .collect(),
            bells: RwLock::default(),
            waiting: Waiting::default(),
            mailboxes: Mailboxes::default(),
            capacity,
        }
    }

    /// Appends decisions in the order in which they were read, and wakes their tenants' subscriptions. Returns how many
    /// were dropped because their source offset is not above the partition's highest.
    pub fn append(&self, entries: impl IntoIterator<Item = Entry>) -> u64 {
        let mut dropped = 0;
        let mut woken: Vec<Arc<Entry>> = Vec::new();
        for entry in entries {
            let Some(ring) = self.ring(entry.partition) else {
                continue;
            };
            let entry = Arc::new(entry);
            // Nobody else appends to the ring.
            if entry.decision.source_offset <= ring.read().high && fail::safeguard("high-watermark") {
                let mut ring = ring.write();
                ring.next = entry.offset + 1;
                ring.at_end = false;
                dropped += 1;
                continue;
            }
            // Before the ring, so that a mailbox has everything below the ring's end.
            self.mailboxes.deliver(&entry);
            let mut ring = ring.write();
            ring.next = entry.offset + 1;
            ring.at_end = false;
            ring.high = entry.decision.source_offset;
            if ring.entries.len() == self.capacity
                && let Some(oldest) = ring.entries.pop_front()
            {
                ring.start = oldest.offset + 1;
            }
            ring.entries.push_back(entry.clone());
            drop(ring);
            self.waiting.tell(&entry);
            if woken.iter().all(|known| known.decision.tenant != entry.decision.tenant) {
                woken.push(entry);
            }
        }
        let bells = self.bells.read();
        for entry in woken {
            if let Some(bell) = bells.get(entry.decision.tenant.as_str()) {
                bell.send_replace(());
            }
        }
        dropped
    }

    /// Passes over a record that is no decision.
    pub fn skip(&self, partition: i32, offset: i64) {
        if let Some(ring) = self.ring(partition) {
            ring.write().next = offset + 1;
        }
    }

    /// Begins a partition anew at `offset`, where records were lost or the topic was made again.
    pub fn restart(&self, partition: i32, offset: i64) {
        if let Some(ring) = self.ring(partition) {
            *ring.write() = Ring::starting_at(offset, NOTHING);
            self.mailboxes.give_up();
        }
    }

    /// Notes that there is nothing to read behind the last record, though offsets may follow: a transaction's marker has
    /// one.
    pub fn reached_end(&self, partition: i32) {
        if let Some(ring) = self.ring(partition) {
            ring.write().at_end = true;
        }
    }

    /// How many records the partition's ring is behind the partition's end.
    pub fn lag(&self, partition: i32, end: i64) -> i64 {
        self.ring(partition).map_or(0, |ring| {
            let ring = ring.read();
            if ring.at_end { 0 } else { (end - ring.next).max(0) }
        })
    }

    fn ring(&self, partition: i32) -> Option<&RwLock<Ring>> {
        usize::try_from(partition)
            .ok()
            .and_then(|partition| self.rings.get(partition))
    }

    /// Who waits for one decision.
    pub fn waiting(&self) -> Waiting {
        self.waiting.clone()
    }

    /// The newest entry of a partition's ring that is wanted.
    pub fn find(&self, partition: i32, wanted: impl Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        let ring = self.ring(partition)?.read();
        ring.entries.iter().rev().find(|entry| wanted(entry)).cloned()
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> usize {
        self.rings.len()
    }

    /// Where the next decision of each partition will be.
    pub fn ends(&self) -> Vec<i64> {
        self.rings.iter().map(|ring| ring.read().next).collect()
    }

    /// The position of somebody who has seen everything so far.
    pub fn latest(&self) -> Cursor {
        let seen = self.rings.iter().map(|ring| {
            let ring = ring.read();
            (ring.next, ring.high)
        });
        let (next, high) = seen.unzip();
        Cursor { next, high }
    }

    /// From where on each ring has all decisions.
    pub fn starts(&self) -> Vec<i64> {
        self.rings.iter().map(|ring| ring.read().start).collect()
    }

    /// A mailbox for what is decided about these accounts from now on.
    pub fn mailbox(&self, tenant: &Arc<str>, accounts: Vec<String>) -> Mailbox {
        self.mailboxes.open(tenant, accounts)
    }

    /// Takes what was delivered to a mailbox, as [`Self::collect`] takes it from the rings; the cursor must be one that has
    /// seen all that came before the mailbox was opened or last overflowed.
    ///
    /// # Errors
    /// [`Overflowed`]: the cursor has not moved, and the rings have what comes next.
    pub fn collect_from(
        &self,
        mailbox: &Mailbox,
        cursor: &mut Cursor,
        filter: &Filter,
        limit: usize,
        into: &mut Vec<Arc<Entry>>,
    ) -> Result<Found, Overflowed> {
        let end = self.latest();
        let more = mailbox.take(limit, |entry| {
            let partition = usize::try_from(entry.partition).unwrap_or_default();
            let is_new = entry.offset >= cursor.next[partition];
            if is_new
                && cursor.pass(partition, entry.offset, entry.decision.source_offset)
                && filter.passes(&entry.decision)
            {
                into.push(entry);
            }
        })?;
        if more {
            return Ok(Found::More);
        }
        cursor.advance(&end);
        Ok(Found::All)
    }

    /// Rings when a decision of the tenant was appended.
    pub fn bell(&self, tenant: &Arc<str>) -> watch::Receiver<()> {
        if let Some(bell) = self.bells.read().get(tenant) {
            return bell.subscribe();
        }
        let mut bells = self.bells.write();
        let bell = bells.entry(tenant.clone()).or_insert_with(|| watch::channel(()).0);
        bell.subscribe()
    }

    /// Moves the cursor over what is there, and adds what passes the filter to `into`, up to `limit` entries in all.
    pub fn collect(&self, cursor: &mut Cursor, filter: &Filter, limit: usize, into: &mut Vec<Arc<Entry>>) -> Found {
        let mut found = Found::All;
        for (partition, ring) in self.rings.iter().enumerate() {
            let ring = ring.read();
            let from = cursor.next[partition];
            if from < ring.start {
                return Found::Behind;
            }
            let first = ring.entries.partition_point(|entry| entry.offset < from);
            let mut looked_at = 0;
            for entry in ring.entries.range(first..) {
                if into.len() >= limit || looked_at == SCAN_DECISIONS {
                    found = Found::More;
                    break;
                }
                looked_at += 1;
                let decision = &entry.decision;
                if cursor.pass(partition, entry.offset, decision.source_offset) && filter.passes(decision) {
                    into.push(entry.clone());
                }
            }
            if first + looked_at == ring.entries.len() {
                cursor.next[partition] = from.max(ring.next);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use sluice_proto::pb;

    use super::super::filter::tests::decision;
    use super::*;

    fn entry(tenant: &str, partition: i32, offset: i64, source_offset: i64) -> Entry {
        Entry::at(partition, offset, decision(tenant, "a", source_offset))
    }

    fn all_of(tenant: &str) -> Filter {
        Filter::new(tenant.into(), pb::DecisionFilter::default()).expect("valid")
    }

    fn offsets(entries: &[Arc<Entry>]) -> Vec<(i32, i64)> {
        entries.iter().map(|entry| (entry.partition, entry.offset)).collect()
    }

    #[test]
    fn a_subscription_sees_each_decision_of_its_tenant_once() {
        let router = Router::new(&Cursor::new(vec![10, 20]));
        let mut cursor = Cursor::new(router.ends());
        let mut seen = Vec::new();
        let dropped = router.append([
            entry("acme", 0, 10, 1),
            entry("evil", 0, 11, 2),
            entry("acme", 0, 13, 3),
            entry("acme", 1, 20, 1),
        ]);
        assert_eq!(dropped, 0);
        assert_eq!(router.collect(&mut cursor, &all_of("acme"), 10, &mut seen), Found::All);
        assert_eq!(offsets(&seen), [(0, 10), (0, 13), (1, 20)]);
        assert_eq!(cursor.next, [14, 21]);
        seen.clear();
        assert_eq!(router.collect(&mut cursor, &all_of("acme"), 10, &mut seen), Found::All);
        assert!(seen.is_empty());
    }

    #[test]
    fn a_source_offset_that_is_not_above_the_highest_is_dropped() {
        let router = Router::new(&Cursor::new(vec![0]));
        let mut cursor = Cursor::new(vec![0]);
        let dropped = router.append([entry("acme", 0, 0, 5), entry("acme", 0, 1, 5), entry("acme", 0, 2, 4)]);
        assert_eq!(dropped, 2);
        let mut seen = Vec::new();
        router.collect(&mut cursor, &all_of("acme"), 10, &mut seen);
        assert_eq!(offsets(&seen), [(0, 0)]);
        assert_eq!(cursor.next, [3]);
    }

    #[test]
    fn rings_and_subscriptions_that_begin_later_know_what_was_seen() {
        let mut start = Cursor::new(vec![0]);
        start.pass(0, 9, 5);
        let router = Router::new(&start);
        assert_eq!(router.append([entry("acme", 0, 10, 5), entry("acme", 0, 11, 6)]), 1);
        let mut latest = router.latest();
        assert_eq!((latest.next[0], latest.high[0]), (12, 6));
        assert_eq!(router.append([entry("acme", 0, 12, 6), entry("acme", 0, 13, 7)]), 1);
        let mut seen = Vec::new();
        router.collect(&mut latest, &all_of("acme"), 10, &mut seen);
        assert_eq!(offsets(&seen), [(0, 13)]);
    }

    #[test]
    fn credit_limits_a_collection_and_the_rest_stays() {
        let router = Router::new(&Cursor::new(vec![0]));
        router.append((0..5).map(|offset| entry("acme", 0, offset, offset)));
        let mut cursor = Cursor::new(vec![0]);
        let mut seen = Vec::new();
        assert_eq!(router.collect(&mut cursor, &all_of("acme"), 2, &mut seen), Found::More);
        assert_eq!((offsets(&seen), cursor.next[0]), (vec![(0, 0), (0, 1)], 2));
        assert_eq!(router.collect(&mut cursor, &all_of("acme"), 9, &mut seen), Found::All);
        assert_eq!((seen.len(), cursor.next[0]), (5, 5));
    }

    #[test]
    fn who_is_slower_than_the_ring_is_behind() {
        let router = Router::with_capacity(&Cursor::new(vec![0]), 2);
        let mut cursor = Cursor::new(vec![0]);
        router.append((0..3).map(|offset| entry("acme", 0, offset, offset)));
        assert_eq!(
            router.collect(&mut cursor, &all_of("acme"), 9, &mut Vec::new()),
            Found::Behind
        );
        assert_eq!((router.starts(), router.ends()), (vec![1], vec![3]));
        router.restart(0, 100);
        assert_eq!((router.starts(), router.ends()), (vec![100], vec![100]));
    }

    #[test]
    fn a_mailbox_goes_on_where_the_rings_were_left() {
        let router = Router::new(&Cursor::new(vec![0, 0]));
        let named = pb::DecisionFilter {
            account_ids: vec!["a".into()],
            ..Default::default()
        };
        let filter = Filter::new("acme".into(), named).expect("valid");
        let mailbox = router.mailbox(filter.tenant(), filter.accounts());
        let mut cursor = router.latest();
        router.append([entry("acme", 0, 0, 0), entry("evil", 0, 1, 1)]);
        let mut seen = Vec::new();
        assert_eq!(router.collect(&mut cursor, &filter, 9, &mut seen), Found::All);
        // What the mailbox has of that is passed over.
        router.append([entry("acme", 0, 2, 2), entry("acme", 0, 3, 2), entry("evil", 1, 0, 0)]);
        let mut take = |cursor: &mut Cursor, limit| router.collect_from(&mailbox, cursor, &filter, limit, &mut seen);
        assert_eq!(take(&mut cursor, 1), Ok(Found::More));
        assert_eq!(take(&mut cursor, 9), Ok(Found::All));
        assert_eq!((cursor.next.clone(), cursor.high.clone()), (vec![4, 1], vec![2, 0]));
        router.restart(1, 7);
        assert_eq!(take(&mut cursor, 9), Err(Overflowed));
        assert_eq!(cursor.next, [4, 1]);
        assert_eq!(offsets(&seen), [(0, 0), (0, 2)]);
    }

    #[test]
    fn a_bell_rings_for_its_tenant_only() {
        let router = Router::new(&Cursor::new(vec![0]));
        let (acme, evil) = (router.bell(&"acme".into()), router.bell(&"evil".into()));
        router.append([entry("acme", 0, 0, 0)]);
        assert!(acme.has_changed().expect("open"));
        assert!(!evil.has_changed().expect("open"));
    }
}
