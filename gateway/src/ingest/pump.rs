//! Owns the step from the sessions' threads to the producer's queue: records wait on a [`Stage`] until a thread of its own
//! hands them over in bursts, those of each partition by themselves. Between `publish`, which fills it, and librdkafka.
//!
//! Every [`LINGER_MS`] what came is sorted into lanes, one for each partition. A lane's records go once none of it is under way,
//! or after [`PATIENCE`] at the latest, and where the broker is well no more at a time than librdkafka puts into one request. So a
//! lone record does not wait, and under load a burst is as large as the partition's broker is slow. librdkafka's own lingering knows neither: it
//! delays every record, and where a partition has records to send and its last request is not answered, its thread spins until
//! it is (2.12.1, `rd_kafka_toppar_producer_serve`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use sluice_kafka::config::LINGER_MS;

use crate::vital::Vital;

const LINGER: Duration = Duration::from_millis(LINGER_MS as u64);
/// How long a lane may wait for the reports of its last burst. Far longer than a broker takes that is well, and far below a
/// client's patience.
const PATIENCE: Duration = Duration::from_millis(200);
/// Most records of a burst, for each [`LINGER`] since the one before: as many as are handed over before librdkafka, which waits for
/// a millisecond after the first, sends them.
const BURST_RECORDS: usize = 512;
/// Most records that wait to be handed over. They fill only while brokers are slow.
pub(super) const STAGE_RECORDS: usize = 16_384;
/// Most bytes of them.
pub(super) const STAGE_BYTES: usize = 64 * 1_024 * 1_024;
/// How long the thread rests when librdkafka's queue is full: its reports make room.
const FULL_PAUSE: Duration = Duration::from_millis(2);

/// What waits on a stage.
pub(super) trait Parcel: Send + 'static {
    /// The lane that it belongs to, below the stage's number of lanes.
    fn lane(&self) -> usize;

    /// The memory that it takes.
    fn bytes(&self) -> usize;
}

/// Where records wait for their burst.
pub(super) struct Stage<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// Records of each lane that were handed over and are not reported yet.
    in_flight: Box<[AtomicUsize]>,
    /// Records that the thread has in its lanes.
    parked: AtomicUsize,
    /// Bytes of what is not handed over yet.
    bytes: AtomicUsize,
}

struct State<T> {
    waiting: Vec<T>,
    /// When the thread last took what waited.
    taken: Instant,
    /// The thread has nothing to do before something comes.
    idle: bool,
    /// Somebody waits for the stage to be empty.
    hurried: bool,
    /// No more records come.
    closed: bool,
}

/// Records of one partition, in their order.
struct Lane<T> {
    queue: VecDeque<T>,
    /// When the last burst went.
    sent: Instant,
}

impl<T: Parcel> Stage<T> {
    pub(super) fn new(lanes: usize) -> Self {
        let state = State {
            waiting: Vec::new(),
            taken: Instant::now(),
            idle: false,
            hurried: false,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            in_flight: (0..lanes).map(|_| AtomicUsize::new(0)).collect(),
            parked: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        }
    }

    /// How many records may still be put on the stage.
    pub(super) fn room(&self) -> usize {
        if self.bytes.load(Ordering::Relaxed) >= STAGE_BYTES {
            return 0;
        }
        let held = self.state.lock().waiting.len() + self.parked.load(Ordering::Relaxed);
        STAGE_RECORDS.saturating_sub(held)
    }

    /// Takes records, in their order. What is over [`room`](Self::room) is taken too: several threads may have asked.
    pub(super) fn put(&self, records: &mut Vec<T>) {
        if records.is_empty() {
            return;
        }
        let bytes = records.iter().map(T::bytes).sum();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut state = self.state.lock();
        state.waiting.append(records);
        if std::mem::take(&mut state.idle) {
            self.changed.notify_all();
        }
    }

    /// Counts a record of a lane that is reported.
    pub(super) fn reported(&self, lane: usize) {
        // Either the thread sees here that nothing is under way, or this sees there that the thread waits for it.
        if self.in_flight[lane].fetch_sub(1, Ordering::SeqCst) == 1 && self.parked.load(Ordering::SeqCst) > 0 {
            drop(self.state.lock());
            self.changed.notify_all();
        }
    }

    /// Waits until every record was handed over. `false` where that took longer than until `deadline`.
    pub(super) fn clear(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while !state.waiting.is_empty() || self.parked.load(Ordering::SeqCst) > 0 {
            state.hurried = true;
            self.changed.notify_all();
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// Ends the thread once the stage is empty.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Starts the thread that hands the records over with `send`, which gives a record back where the queue is full and
    /// says otherwise whether a report will follow. What `send` owns is dropped when the stage is closed and empty.
    pub(super) fn serve(
        self: &Arc<Self>,
        mut send: impl FnMut(T) -> Result<bool, T> + Send + 'static,
    ) -> std::io::Result<()> {
        let stage = Arc::clone(self);
        std::thread::Builder::new().name("pump".to_owned()).spawn(move || {
            let _vital = Vital::part("pump");
            let lane = |_: &AtomicUsize| Lane {
                queue: VecDeque::new(),
                sent: Instant::now(),
            };
            let mut lanes: Vec<Lane<T>> = stage.in_flight.iter().map(lane).collect();
            let mut came = Vec::new();
            while let Some(hurried) = stage.next(&lanes, &mut came) {
                for record in came.drain(..) {
                    lanes[record.lane()].queue.push_back(record);
                }
                for (number, lane) in lanes.iter_mut().enumerate() {
                    if !lane.queue.is_empty() && (hurried || stage.may_go(number, lane, Instant::now())) {
                        stage.hand_over(number, lane, &mut send);
                    }
                }
            }
        })?;
        Ok(())
    }

    /// Waits until there is something to do: takes what came, or finds a lane that may go. Says whether somebody is in a hurry;
    /// `None` at the end.
    fn next(&self, lanes: &[Lane<T>], came: &mut Vec<T>) -> Option<bool> {
        let mut state = self.state.lock();
        loop {
            let parked = self.parked.load(Ordering::SeqCst) > 0;
            if state.waiting.is_empty() && !parked {
                if std::mem::take(&mut state.hurried) {
                    self.changed.notify_all();
                }
                if state.closed {
                    return None;
                }
                state.idle = true;
                self.changed.wait(&mut state);
                continue;
            }
            let (now, hurried) = (Instant::now(), state.hurried || state.closed);
            let due = state.taken + LINGER;
            if !state.waiting.is_empty() && (hurried || now >= due) {
                state.taken = now;
                std::mem::swap(&mut state.waiting, came);
                // Under the lock, so that whoever looks finds them in one place or the other.
                self.parked.fetch_add(came.len(), Ordering::SeqCst);
                return Some(hurried);
            }
            let mut until = (!state.waiting.is_empty()).then_some(due);
            for (number, lane) in lanes.iter().enumerate().filter(|(_, lane)| !lane.queue.is_empty()) {
                if hurried || self.may_go(number, lane, now) {
                    return Some(hurried);
                }
                let late = lane.sent + PATIENCE;
                until = Some(until.map_or(late, |until| until.min(late)));
            }
            // Before that, a report may come for a lane, and a record where none waits.
            state.idle = state.waiting.is_empty();
            if let Some(until) = until {
                self.changed.wait_until(&mut state, until);
            }
        }
    }

    fn may_go(&self, number: usize, lane: &Lane<T>, now: Instant) -> bool {
        self.in_flight[number].load(Ordering::SeqCst) == 0 || now >= lane.sent + PATIENCE
    }

    /// Hands over a lane's next burst.
    fn hand_over(&self, number: usize, lane: &mut Lane<T>, send: &mut impl FnMut(T) -> Result<bool, T>) {
        // Where the last burst took long, more goes at once: a slow broker is not made slower still.
        let lingers = lane.sent.elapsed().as_micros() / LINGER.as_micros();
        let most = BURST_RECORDS.saturating_mul(usize::try_from(lingers).unwrap_or(usize::MAX).max(1));
        lane.sent = Instant::now();
        let count = lane.queue.len().min(most);
        // Counted before, because reports may come before all are handed over.
        self.in_flight[number].fetch_add(count, Ordering::SeqCst);
        let mut bytes = 0;
        for mut record in lane.queue.drain(..count) {
            bytes += record.bytes();
            loop {
                match send(record) {
                    Ok(true) => break,
                    Ok(false) => {
                        self.reported(number);
                        break;
                    }
                    Err(refused) => {
                        record = refused;
                        std::thread::park_timeout(FULL_PAUSE);
                    }
                }
            }
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.parked.fetch_sub(count, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A number on a lane.
    type OnLane = (usize, u32);

    impl Parcel for OnLane {
        fn lane(&self) -> usize {
            self.0
        }

        fn bytes(&self) -> usize {
            1_000_000
        }
    }

    #[test]
    fn a_lane_goes_at_once_and_again_when_it_is_reported_and_another_one_meanwhile() {
        let stage = Arc::new(Stage::new(2));
        let (handed, bursts) = mpsc::channel();
        let send = move |record: OnLane| handed.send(record).map(|()| true).map_err(|refused| refused.0);
        stage.serve(send).expect("a thread");
        let started = Instant::now();
        stage.put(&mut vec![(0, 1)]);
        assert_eq!(bursts.recv_timeout(LIMIT), Ok((0, 1)));
        stage.put(&mut vec![(0, 2), (0, 3), (1, 4)]);
        assert_eq!(
            bursts.recv_timeout(LIMIT),
            Ok((1, 4)),
            "nothing of its lane is under way"
        );
        assert_eq!(
            bursts.recv_timeout(LIMIT),
            Ok((0, 2)),
            "no report comes, so the time is up"
        );
        assert!(started.elapsed() >= PATIENCE);
        assert_eq!(bursts.recv_timeout(LIMIT), Ok((0, 3)));
        stage.put(&mut vec![(0, 5)]);
        for _ in 0..3 {
            stage.reported(0);
        }
        assert_eq!(bursts.recv_timeout(LIMIT), Ok((0, 5)));
        assert!(stage.clear(Instant::now() + LIMIT));
        stage.close();
        assert!(
            bursts.recv_timeout(LIMIT).is_err(),
            "the thread ends and drops its sender"
        );
    }

    #[test]
    fn a_full_queue_loses_nothing_and_changes_no_order() {
        let stage = Arc::new(Stage::new(1));
        let (handed, taken) = mpsc::channel();
        let mut refusals = 0;
        stage
            .serve(move |record: OnLane| {
                refusals += 1;
                if refusals % 3 == 0 {
                    return Err(record);
                }
                handed.send(record.1).map(|()| false).map_err(|_| record)
            })
            .expect("a thread");
        for first in [0, 10, 20] {
            stage.put(&mut (first..first + 10).map(|number| (0, number)).collect());
        }
        assert!(stage.clear(Instant::now() + LIMIT));
        assert_eq!(stage.room(), STAGE_RECORDS);
        stage.close();
        assert!(taken.iter().eq(0..30));
        assert_eq!(stage.in_flight[0].load(Ordering::SeqCst), 0);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_wherever_it_is() {
        let stage = Arc::new(Stage::new(1));
        let (refused, tried) = mpsc::channel();
        let full = Arc::new(AtomicBool::new(true));
        let is_full = full.clone();
        let send = move |record: OnLane| {
            if !is_full.load(Ordering::SeqCst) {
                return Ok(false);
            }
            refused.send(()).expect("the test listens");
            Err(record)
        };
        stage.serve(send).expect("a thread");
        stage.put(&mut vec![(0, 0)]);
        tried.recv_timeout(LIMIT).expect("the thread has it");
        let most = u32::try_from(STAGE_BYTES / 1_000_000).expect("a few");
        stage.put(&mut (0..most).map(|number| (0, number)).collect());
        assert_eq!(stage.room(), 0);
        tried.recv_timeout(LIMIT).expect("it tries again");
        assert_eq!(stage.room(), 0);
        full.store(false, Ordering::SeqCst);
        assert!(stage.clear(Instant::now() + LIMIT));
        assert_eq!(stage.room(), STAGE_RECORDS);
        stage.close();
    }
}
