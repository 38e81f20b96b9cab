//! Owns who waits for the decision of one payment: unary calls that published it and hold their answer back.
//!
//! Comes beside `route`, which tells every decision that it appends; `decide` registers before it publishes, so that no
//! decision is missed.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_proto::decision::Decision;
use sluice_proto::event::EventId;
use tokio::sync::oneshot;

use super::decode::Entry;

/// Calls that may wait for a decision at a time, over all connections.
pub const MAX_WAITING: usize = 16_384;
/// Calls of one tenant that may wait for the same event_id: all of them are looked at when one goes away.
pub const MAX_WAITING_FOR_ONE: usize = 64;

/// Everybody who waits. Clones share it.
#[derive(Clone, Default)]
pub struct Waiting(Arc<Mutex<Waiters>>);

#[derive(Default)]
struct Waiters {
    /// Several calls may wait for one payment, and tenants may use the same event_id.
    by_event: HashMap<EventId, Vec<Waiter>>,
    /// Interests that live.
    calls: usize,
    last_call: u64,
}

struct Waiter {
    call: u64,
    tenant: Arc<str>,
    account: String,
    answer: oneshot::Sender<Arc<Entry>>,
}

impl Waiter {
    fn waits_for(&self, decision: &Decision) -> bool {
        *self.tenant == *decision.tenant && self.account == decision.account_id
    }
}

/// A call's interest in the decision of one payment, for as long as it lives.
pub struct Interest {
    waiting: Waiting,
    event_id: EventId,
    call: u64,
    answer: oneshot::Receiver<Arc<Entry>>,
}

impl Waiting {
    /// Registers interest in a decision that is still to come; `None` when too many calls wait, at all or for this event_id.
    /// The same event_id of another account is another payment.
    pub fn register(&self, tenant: &Arc<str>, account: &str, event_id: EventId) -> Option<Interest> {
        let (sender, answer) = oneshot::channel();
        let mut waiters = self.0.lock();
        let Waiters {
            by_event,
            calls,
            last_call,
        } = &mut *waiters;
        if *calls >= MAX_WAITING {
            return None;
        }
        let same = by_event.entry(event_id).or_default();
        if same.iter().filter(|waiter| waiter.tenant == *tenant).count() >= MAX_WAITING_FOR_ONE {
            return None;
        }
        *calls += 1;
        *last_call += 1;
        let call = *last_call;
        same.push(Waiter {
            call,
            tenant: tenant.clone(),
            account: account.to_owned(),
            answer: sender,
        });
        drop(waiters);
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
        let mut waiters = self.0.lock();
        // Most decisions are of sessions, for which nobody waits: no hash for those.
        if waiters.by_event.is_empty() {
            return;
        }
        let Some(same) = waiters.by_event.get_mut(&decision.event_id) else {
            return;
        };
        let told = same.extract_if(.., |waiter| waiter.waits_for(decision));
        // A call that went away does not wait any more.
        told.for_each(|waiter| drop(waiter.answer.send(entry.clone())));
        if same.is_empty() {
            waiters.by_event.remove(&decision.event_id);
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
        let mut waiters = self.waiting.0.lock();
        waiters.calls -= 1;
        if let Some(same) = waiters.by_event.get_mut(&self.event_id) {
            same.retain(|waiter| waiter.call != self.call);
            if same.is_empty() {
                waiters.by_event.remove(&self.event_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::filter::tests::decision;
    use super::*;

    fn entry(tenant: &str, account: &str) -> Arc<Entry> {
        Arc::new(Entry::at(0, 0, decision(tenant, account, 7)))
    }

    fn id(number: usize) -> EventId {
        EventId::new(uuid::Uuid::from_u128(number as u128 + 1))
    }

    fn is_empty(waiting: &Waiting) -> bool {
        let waiters = waiting.0.lock();
        waiters.by_event.is_empty() && waiters.calls == 0
    }

    #[test]
    fn a_decision_answers_all_who_wait_for_it_and_nobody_of_another_tenant_or_account() {
        let waiting = Waiting::default();
        let decided = entry("acme", "a");
        let id = decided.decision.event_id;
        let register = |tenant: &str, account| waiting.register(&tenant.into(), account, id).expect("room");
        let (mut first, mut second) = (register("acme", "a"), register("acme", "a"));
        let (mut other, mut another) = (register("evil", "a"), register("acme", "b"));
        waiting.tell(&decided);
        assert!(first.decided().now_or_never().is_some() && second.decided().now_or_never().is_some());
        assert!(other.decided().now_or_never().is_none() && another.decided().now_or_never().is_none());
        waiting.tell(&entry("acme", "b"));
        assert!(another.decided().now_or_never().is_some());
        drop((first, second, other, another));
        assert!(is_empty(&waiting));
    }

    #[test]
    fn a_call_that_went_away_leaves_nothing_behind() {
        let waiting = Waiting::default();
        let decided = entry("acme", "a");
        let id = decided.decision.event_id;
        let gone = waiting.register(&"acme".into(), "a", id).expect("room");
        let mut stays = waiting.register(&"acme".into(), "a", id).expect("room");
        drop(gone);
        waiting.tell(&decided);
        assert!(stays.decided().now_or_never().is_some());
        drop(stays);
        assert!(is_empty(&waiting));
    }

    #[test]
    fn so_many_calls_of_a_tenant_wait_for_one_event() {
        let waiting = Waiting::default();
        let register = |tenant: &str, account, number| waiting.register(&tenant.into(), account, id(number));
        let mut same: Vec<_> = (0..MAX_WAITING_FOR_ONE).map(|_| register("acme", "a", 1)).collect();
        assert!(same.iter().all(Option::is_some));
        assert!(register("acme", "b", 1).is_none());
        assert!(register("evil", "a", 1).is_some() && register("acme", "a", 2).is_some());
        same.pop();
        assert!(register("acme", "b", 1).is_some());
        drop(same);
        assert!(is_empty(&waiting));
    }

    #[test]
    fn so_many_calls_wait_in_all() {
        let waiting = Waiting::default();
        let register = |number: usize| waiting.register(&"acme".into(), "a", id(number / MAX_WAITING_FOR_ONE));
        let mut all: Vec<_> = (0..MAX_WAITING).map(register).collect();
        assert!(all.iter().all(Option::is_some));
        assert!(register(MAX_WAITING).is_none());
        all.pop();
        assert!(register(MAX_WAITING).is_some());
        drop(all);
        assert!(is_empty(&waiting));
    }
}
