//! Owns the step from the sessions' threads to the producer's queue: records wait on a [`Stage`] until a thread of its own
//! hands all of them over in one burst. Between `publish`, which fills it, and librdkafka.
//!
//! A burst goes at once where the last one is [`LINGER_MS`] old and nothing is under way, and otherwise when both is so, or after
//! [`PATIENCE`] at the latest. So a lone record does not wait, and under load a burst is as large as the broker is slow.
//! librdkafka's own lingering knows neither: it delays every record, and where a partition's last request is not answered by
//! the time that the next is due, its thread spins until it is (2.12.1, `rd_kafka_toppar_producer_serve`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use sluice_kafka::config::LINGER_MS;

use crate::vital::Vital;

/// How long a burst may wait for the reports of the one before. Several times what a broker takes that is well, so that bursts
/// rarely overlap; far below a client's patience, because one slow broker among several holds up the others for as long.
const PATIENCE: Duration = Duration::from_millis(20);
/// Most records on a stage. It fills only while librdkafka's queue is full.
pub(super) const STAGE_RECORDS: usize = 16_384;
/// How long the thread rests when librdkafka's queue is full: its reports make room.
const FULL_PAUSE: Duration = Duration::from_millis(2);

/// Where records wait for their burst.
pub(super) struct Stage<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// Records that were handed over and are not reported yet.
    in_flight: AtomicUsize,
}

struct State<T> {
    waiting: Vec<T>,
    /// When the first of them came.
    since: Instant,
    /// When the last burst went.
    sent: Instant,
    /// A burst is being handed over.
    sending: bool,
    /// Somebody waits for the stage to be empty.
    hurried: bool,
    /// No more records come.
    closed: bool,
}

impl<T: Send + 'static> Stage<T> {
    pub(super) fn new() -> Self {
        let state = State {
            waiting: Vec::new(),
            since: Instant::now(),
            sent: Instant::now(),
            sending: false,
            hurried: false,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            in_flight: AtomicUsize::new(0),
        }
    }

    /// How many records may still be put on the stage.
    pub(super) fn room(&self) -> usize {
        STAGE_RECORDS.saturating_sub(self.state.lock().waiting.len())
    }

    /// Takes records, in their order. What is over [`room`](Self::room) is taken too: several threads may have asked.
    pub(super) fn put(&self, records: &mut Vec<T>) {
        if records.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        if state.waiting.is_empty() {
            state.since = Instant::now();
            self.changed.notify_all();
        }
        state.waiting.append(records);
    }

    /// Counts a record that is reported.
    pub(super) fn reported(&self) {
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 && !self.state.lock().waiting.is_empty() {
            self.changed.notify_all();
        }
    }

    /// Waits until every record was handed over. `false` where that took longer than until `deadline`.
    pub(super) fn clear(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while state.sending || !state.waiting.is_empty() {
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
            let mut burst = Vec::new();
            while stage.next(&mut burst) {
                for record in burst.drain(..) {
                    stage.hand_over(record, &mut send);
                }
            }
        })?;
        Ok(())
    }

    /// Waits for the next burst. `false` at the end.
    fn next(&self, burst: &mut Vec<T>) -> bool {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.sending) && state.hurried {
            self.changed.notify_all();
        }
        loop {
            if state.waiting.is_empty() {
                state.hurried = false;
                if state.closed {
                    return false;
                }
                self.changed.wait(&mut state);
                continue;
            }
            let now = Instant::now();
            let earliest = state.sent + Duration::from_millis(LINGER_MS.into());
            let latest = state.since + PATIENCE;
            let idle = self.in_flight.load(Ordering::Acquire) == 0;
            if (idle && now >= earliest) || now >= latest || state.hurried || state.closed {
                state.sent = now;
                state.sending = true;
                std::mem::swap(&mut state.waiting, burst);
                return true;
            }
            let until = if now < earliest { earliest } else { latest };
            self.changed.wait_until(&mut state, until);
        }
    }

    fn hand_over(&self, mut record: T, send: &mut impl FnMut(T) -> Result<bool, T>) {
        loop {
            // Counted before, because the report may come before the call returns.
            self.in_flight.fetch_add(1, Ordering::AcqRel);
            match send(record) {
                Ok(true) => return,
                Ok(false) => return self.reported(),
                Err(refused) => {
                    self.in_flight.fetch_sub(1, Ordering::AcqRel);
                    record = refused;
                    std::thread::park_timeout(FULL_PAUSE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_lone_record_goes_at_once_and_the_next_when_it_is_reported() {
        let stage = Arc::new(Stage::new());
        let (handed, bursts) = mpsc::channel();
        let send = move |record: u32| handed.send(record).map(|()| true).map_err(|refused| refused.0);
        stage.serve(send).expect("a thread");
        let started = Instant::now();
        stage.put(&mut vec![1]);
        assert_eq!(bursts.recv_timeout(LIMIT), Ok(1));
        stage.put(&mut vec![2, 3]);
        assert_eq!(bursts.recv_timeout(LIMIT), Ok(2), "no report comes, so the time is up");
        assert!(started.elapsed() >= PATIENCE);
        assert_eq!(bursts.recv_timeout(LIMIT), Ok(3));
        for _ in 0..3 {
            stage.reported();
        }
        stage.put(&mut vec![4]);
        assert_eq!(bursts.recv_timeout(LIMIT), Ok(4));
        assert!(stage.clear(Instant::now() + LIMIT));
        stage.close();
        assert!(
            bursts.recv_timeout(LIMIT).is_err(),
            "the thread ends and drops its sender"
        );
    }

    #[test]
    fn a_full_queue_loses_nothing_and_changes_no_order() {
        let stage = Arc::new(Stage::new());
        let (handed, taken) = mpsc::channel();
        let mut refusals = 0;
        stage
            .serve(move |record: u32| {
                refusals += 1;
                if refusals % 3 == 0 {
                    return Err(record);
                }
                handed.send(record).map(|()| false).map_err(|refused| refused.0)
            })
            .expect("a thread");
        for first in [0, 10, 20] {
            stage.put(&mut (first..first + 10).collect());
        }
        assert!(stage.clear(Instant::now() + LIMIT));
        assert_eq!(stage.room(), STAGE_RECORDS);
        stage.close();
        assert!(taken.iter().eq(0..30));
        assert_eq!(stage.in_flight.load(Ordering::Acquire), 0);
    }
}
