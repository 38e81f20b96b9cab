//! What is measured while a run goes on: latencies in HDR histograms, and what was sent, answered and held back in each
//! second.
//!
//! Written by the workers, each into one of a few shards; drained once a second by the driver into a `Second`, which
//! keeps its histograms compressed, and into the totals.

use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use super::clock::{NS_PER_MS, NS_PER_US};
use super::pace::Hold;

/// Latencies are kept in microseconds up to an hour, to three digits.
const LONGEST_US: u64 = 3_600_000_000;
const DIGITS: u8 = 3;
/// More workers share shards: a histogram takes some 200 KiB.
const MAX_SHARDS: usize = 8;
/// Single answers are kept up to this number, as ghz does.
pub(crate) const MAX_DETAILS: usize = 1_000_000;
/// No answer for so long, while events were due, is a gap.
const GAP_NS: u64 = 500 * NS_PER_MS;
/// An event that is sent later than so much after it was due was not offered in time.
pub(crate) const IN_TIME_NS: u64 = 100 * NS_PER_MS;
/// Gaps beyond this number are not listed.
const MAX_GAPS: usize = 1_000;

/// What a latency is of. All but `Delivery` are measured from the intended moment, unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// To the acknowledgement.
    Ack,
    /// To the decision.
    Decision,
    /// From the decision's writing to its arrival, by two clocks.
    Delivery,
    /// From the actual sending to the answer: what the server took.
    Service,
    /// How long the server held the event back before it could be sent.
    Stall,
    /// How late the loader itself was.
    Slip,
}

impl Metric {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Ack,
        Self::Decision,
        Self::Delivery,
        Self::Service,
        Self::Stall,
        Self::Slip,
    ];

    /// As reports and objectives call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::Decision => "decision",
            Self::Delivery => "delivery",
            Self::Service => "service",
            Self::Stall => "stall",
            Self::Slip => "slip",
        }
    }
}

/// An empty histogram of latencies in microseconds.
pub fn histogram() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the bounds are constants that the histogram accepts")]
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("valid bounds")
}

/// A histogram for each metric that has values.
pub(crate) type Histograms = [Option<Histogram<u64>>; Metric::ALL.len()];

/// What happened in a stretch of time.
#[derive(Debug, Default)]
pub(crate) struct Tallies {
    pub(crate) sent: u64,
    /// Sent not much later than due.
    pub(crate) in_time: u64,
    pub(crate) answered: u64,
    pub(crate) errors: u64,
    /// Time that workers were held back, summed over the workers.
    pub(crate) held_ns: [u64; Hold::ALL.len()],
    pub(crate) latencies: Histograms,
}

impl Tallies {
    fn record(&mut self, metric: Metric, ns: u64, count: u64) {
        let us = (ns / NS_PER_US).clamp(1, LONGEST_US);
        self.latencies[metric as usize]
            .get_or_insert_with(histogram)
            .saturating_record_n(us, count);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.in_time += other.in_time;
        self.answered += other.answered;
        self.errors += other.errors;
        for (sum, held_ns) in self.held_ns.iter_mut().zip(other.held_ns) {
            *sum += held_ns;
        }
        for (sum, more) in self.latencies.iter_mut().zip(&other.latencies) {
            if let Some(more) = more {
                // The bounds are the same everywhere, so that it cannot fail.
                let _added = sum.get_or_insert_with(histogram).add(more);
            }
        }
    }
}

/// One answer, as the detailed formats list it.
#[derive(Clone, Debug)]
pub(crate) struct Detail {
    pub(crate) at_ns: u64,
    pub(crate) latency_ns: u64,
    /// `OK`, or the code of the error.
    pub(crate) status: String,
}

impl Detail {
    pub(crate) fn is_ok(&self) -> bool {
        self.status == "OK"
    }
}

/// A time without any answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
}

/// Where the workers write.
#[derive(Debug)]
pub(crate) struct Recorder {
    shards: Vec<Mutex<Tallies>>,
    details: Option<Mutex<Vec<Detail>>>,
    /// Answers whose latency is not to be recorded any more, and decisions that come beside them.
    skip: AtomicU64,
    skip_beside: AtomicU64,
    last_answer_ns: AtomicU64,
    /// The newest answer or decision.
    last_ns: AtomicU64,
    /// Answers, errors and decisions so far.
    moved: AtomicU64,
    gaps: Mutex<Vec<Gap>>,
}

impl Recorder {
    pub(crate) fn new(workers: usize, skip_first: u64, details: bool) -> Self {
        Self {
            shards: (0..workers.clamp(1, MAX_SHARDS)).map(|_| Mutex::default()).collect(),
            details: details.then(Mutex::default),
            skip: AtomicU64::new(skip_first),
            skip_beside: AtomicU64::new(skip_first),
            last_answer_ns: AtomicU64::new(0),
            last_ns: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            gaps: Mutex::default(),
        }
    }

    fn shard(&self, worker: usize) -> &Mutex<Tallies> {
        &self.shards[worker % self.shards.len()]
    }

    /// Events were sent, each as late as told.
    pub(crate) fn sent(&self, worker: usize, count: u64, stall_ns: u64, slip_ns: u64) {
        let mut shard = self.shard(worker).lock();
        shard.sent += count;
        if stall_ns + slip_ns < IN_TIME_NS {
            shard.in_time += count;
        }
        shard.record(Metric::Stall, stall_ns, count);
        shard.record(Metric::Slip, slip_ns, count);
    }

    /// A worker was held back.
    pub(crate) fn held(&self, worker: usize, why: Hold, held_ns: u64) {
        self.shard(worker).lock().held_ns[why as usize] += held_ns;
    }

    /// Answers came now, with latencies of one or more metrics; the first metric is the one of the details.
    pub(crate) fn answered(&self, worker: usize, now_ns: u64, count: u64, latencies: &[(Metric, u64)]) {
        self.note_answer(now_ns);
        self.note_move(now_ns, count);
        let skipped = skip_some(&self.skip, count);
        let mut shard = self.shard(worker).lock();
        shard.answered += count;
        if count > skipped {
            for (metric, ns) in latencies {
                shard.record(*metric, *ns, count - skipped);
            }
        }
        drop(shard);
        if let Some((_metric, latency_ns)) = latencies.first() {
            self.detail(now_ns, *latency_ns, count, "OK");
        }
    }

    /// Further latencies of answers that were counted already.
    pub(crate) fn also(&self, worker: usize, now_ns: u64, metric: Metric, ns: u64) {
        self.note_move(now_ns, 1);
        if skip_some(&self.skip_beside, 1) == 0 {
            self.shard(worker).lock().record(metric, ns, 1);
        }
    }

    /// Errors came now, each after as long as told.
    pub(crate) fn failed(&self, worker: usize, now_ns: u64, count: u64, latency_ns: u64, code: &str) {
        self.note_move(now_ns, count);
        self.shard(worker).lock().errors += count;
        self.detail(now_ns, latency_ns, count, code);
    }

    fn detail(&self, now_ns: u64, latency_ns: u64, count: u64, status: &str) {
        let Some(details) = &self.details else { return };
        let mut details = details.lock();
        let room = (MAX_DETAILS - details.len().min(MAX_DETAILS)).min(count as usize);
        let detail = || Detail {
            at_ns: now_ns,
            latency_ns,
            status: status.to_owned(),
        };
        details.extend(std::iter::repeat_with(detail).take(room));
    }

    fn note_move(&self, now_ns: u64, count: u64) {
        self.last_ns.fetch_max(now_ns, Ordering::Relaxed);
        self.moved.fetch_add(count, Ordering::Relaxed);
    }

    /// When the newest answer came.
    pub(crate) fn last_ns(&self) -> u64 {
        self.last_ns.load(Ordering::Relaxed)
    }

    /// Answers, errors and decisions so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Ends a gap, if there was one.
    fn note_answer(&self, now_ns: u64) {
        let from_ns = self.last_answer_ns.fetch_max(now_ns, Ordering::Relaxed);
        if now_ns.saturating_sub(from_ns) >= GAP_NS {
            let mut gaps = self.gaps.lock();
            if gaps.len() < MAX_GAPS {
                gaps.push(Gap { from_ns, to_ns: now_ns });
            }
        }
    }

    /// The gaps so far.
    pub(crate) fn gaps(&self) -> Vec<Gap> {
        self.gaps.lock().clone()
    }

    /// What is kept of single answers.
    pub(crate) fn take_details(&self) -> Vec<Detail> {
        let Some(details) = &self.details else {
            return Vec::new();
        };
        std::mem::take(&mut *details.lock())
    }

    /// Everything since it was called last.
    pub(crate) fn drain(&self) -> Tallies {
        let mut sum = Tallies::default();
        for shard in &self.shards {
            let part = std::mem::take(&mut *shard.lock());
            sum.add(&part);
        }
        sum
    }
}

/// How many of so many answers fall under those that are left to be skipped.
fn skip_some(left: &AtomicU64, count: u64) -> u64 {
    if left.load(Ordering::Relaxed) == 0 {
        return 0;
    }
    let take = |left: u64| Some(left.saturating_sub(count));
    let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
    before.unwrap_or(0).min(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_answers_are_counted_and_not_measured() {
        let recorder = Recorder::new(1, 3, true);
        recorder.answered(0, 10, 2, &[(Metric::Ack, NS_PER_MS)]);
        recorder.answered(0, 20, 2, &[(Metric::Ack, 2 * NS_PER_MS)]);
        let tallies = recorder.drain();
        assert_eq!(tallies.answered, 4);
        let ack = tallies.latencies[Metric::Ack as usize].as_ref().unwrap();
        assert_eq!((ack.len(), ack.min()), (1, 2_000));
        assert_eq!(recorder.take_details().len(), 4);
        assert_eq!(recorder.drain().answered, 0);
        for _decision in 0..4 {
            recorder.also(0, 30, Metric::Decision, NS_PER_MS);
        }
        let decision = recorder.drain().latencies[Metric::Decision as usize].take();
        assert_eq!(decision.map(|latency| latency.len()), Some(1), "and so are decisions");
    }

    #[test]
    fn a_long_silence_is_a_gap() {
        let recorder = Recorder::new(4, 0, false);
        recorder.answered(0, 100 * NS_PER_MS, 1, &[]);
        recorder.answered(1, 200 * NS_PER_MS, 1, &[]);
        recorder.answered(2, 900 * NS_PER_MS, 1, &[]);
        let gap = Gap {
            from_ns: 200 * NS_PER_MS,
            to_ns: 900 * NS_PER_MS,
        };
        assert_eq!(recorder.gaps(), [gap]);
    }
}
