//! Owns who waits for the decision of one payment: unary calls that published it and hold their answer back.
//!
//! Comes beside `route`, which tells every decision that it appends; `decide` registers before it publishes, so that no
//! decision is missed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use sluice_proto::event::EventId;
use tokio::sync::oneshot;

use super::decode::Entry;

/// Calls that may wait for a decision at a time, over all connections.
pub const MAX_WAITING: usize = 16_384;

/// Everybody who waits. Clones share it.
#[derive(Clone, Default)]
pub struct Waiting(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Several calls may wait for one payment, and tenants may use the same event_id.
    by_event: Mutex<HashMap<EventId, Vec<Waiter>>>,
    calls: AtomicU64,
}

struct Waiter {
    call: u64,
    tenant: Arc<str>,
    answer: oneshot::Sender<Arc<Entry>>,
}

/// A call's interest in one decision, for as long as it lives.
pub struct Interest {
    waiting: Waiting,
    event_id: EventId,
    call: u64,
    answer: oneshot::Receiver<Arc<Entry>>,
}

impl Waiting {
    /// Registers interest in a decision that is still to come; `None` when too many calls wait.
    pub fn register(&self, tenant: &Arc<str>, event_id: EventId) -> Option<Interest> {
        let (sender, answer) = oneshot::channel();
        let call = self.0.calls.fetch_add(1, Ordering::Relaxed);
        let mut by_event = self.0.by_event.lock();
        if by_event.len() >= MAX_WAITING {
            return None;
        }
        by_event.entry(event_id).or_default().push(Waiter {
            call,
            tenant: tenant.clone(),
            answer: sender,
        });
        drop(by_event);
        Some(Interest {
            waiting: self.clone(),
            event_id,
            call,
            answer,
        })
    }

    /// Answers all who wait for this decision.
    pub fn tell(&self, entry: &Arc<Entry>) {
        let decision = &entry.decision;
        let mut by_event = self.0.by_event.lock();
        // Most decisions are of sessions, for which nobody waits: no hash for those.
        if by_event.is_empty() {
            return;
        }
        let Some(waiters) = by_event.get_mut(&decision.event_id) else {
            return;
        };
        let told = waiters.extract_if(.., |waiter| *waiter.tenant == *decision.tenant);
        // A call that went away does not wait any more.
        told.for_each(|waiter| drop(waiter.answer.send(entry.clone())));
        if waiters.is_empty() {
            by_event.remove(&decision.event_id);
        }
    }
}

impl Interest {
    /// Waits for the decision. Cancel-safe. Never ends when the interest was answered before.
    pub async fn decided(&mut self) -> Arc<Entry> {
        match (&mut self.answer).await {
            Ok(entry) => entry,
            // The sender is dropped only by answering, or by dropping this.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut by_event = self.waiting.0.by_event.lock();
        if let Some(waiters) = by_event.get_mut(&self.event_id) {
            waiters.retain(|waiter| waiter.call != self.call);
            if waiters.is_empty() {
                by_event.remove(&self.event_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::filter::tests::decision;
    use super::*;

    fn entry(tenant: &str) -> Arc<Entry> {
        Arc::new(Entry {
            partition: 0,
            offset: 0,
            decided_at_ms: 0,
            traceparent: Box::default(),
            decision: decision(tenant, "a", 7),
        })
    }

    #[test]
    fn a_decision_answers_all_who_wait_for_it_and_nobody_of_another_tenant() {
        let waiting = Waiting::default();
        let id = entry("acme").decision.event_id;
        let register = |tenant: &str| waiting.register(&tenant.into(), id).expect("room");
        let (mut first, mut second, mut other) = (register("acme"), register("acme"), register("evil"));
        waiting.tell(&entry("acme"));
        assert!(first.decided().now_or_never().is_some() && second.decided().now_or_never().is_some());
        assert!(other.decided().now_or_never().is_none());
        drop((first, second, other));
        assert!(waiting.0.by_event.lock().is_empty());
    }

    #[test]
    fn a_call_that_went_away_leaves_nothing_behind() {
        let waiting = Waiting::default();
        let id = entry("acme").decision.event_id;
        let gone = waiting.register(&"acme".into(), id).expect("room");
        let mut stays = waiting.register(&"acme".into(), id).expect("room");
        drop(gone);
        waiting.tell(&entry("acme"));
        assert!(stays.decided().now_or_never().is_some());
        assert!(waiting.0.by_event.lock().is_empty());
    }
}
