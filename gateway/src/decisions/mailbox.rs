//! Owns the mailboxes of subscriptions that name accounts: what they ask for is put there as it comes, so that ten thousand
//! such subscriptions need not each look at every decision.
//!
//! Comes beside `route`, which delivers every decision before it appends it to its ring; so whoever first notes where the
//! rings end and then empties the mailbox has missed nothing below. A mailbox that fills up is given up, and its
//! subscription reads the rings again, from where it was.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::decode::Entry;

/// Decisions that wait in one mailbox.
pub const MAILBOX_DECISIONS: usize = 512;

type ByAccount = HashMap<String, Vec<Arc<Inbox>>>;

/// All mailboxes, by tenant and account. Clones share them.
#[derive(Clone, Default)]
pub struct Mailboxes(Arc<RwLock<HashMap<Arc<str>, ByAccount>>>);

#[derive(Default)]
struct Inbox {
    waiting: Mutex<Waiting>,
    bell: Notify,
}

#[derive(Default)]
struct Waiting {
    entries: VecDeque<Arc<Entry>>,
    overflowed: bool,
}

impl Waiting {
    fn give_up(&mut self) {
        self.overflowed = true;
        self.entries = VecDeque::new();
    }
}

/// One subscription's mailbox, for as long as it lives.
pub struct Mailbox {
    mailboxes: Mailboxes,
    tenant: Arc<str>,
    accounts: Vec<String>,
    inbox: Arc<Inbox>,
}

/// The mailbox was full: decisions are missing in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Overflowed;

impl Mailboxes {
    /// A mailbox for everything that is decided about these accounts of a tenant from now on.
    pub fn open(&self, tenant: &Arc<str>, accounts: Vec<String>) -> Mailbox {
        let inbox = Arc::new(Inbox::default());
        let mut tenants = self.0.write();
        let by_account = tenants.entry(tenant.clone()).or_default();
        for account in &accounts {
            by_account.entry(account.clone()).or_default().push(inbox.clone());
        }
        drop(tenants);
        Mailbox {
            mailboxes: self.clone(),
            tenant: tenant.clone(),
            accounts,
            inbox,
        }
    }

    /// Puts a decision where it is asked for.
    pub fn deliver(&self, entry: &Arc<Entry>) {
        let decision = &entry.decision;
        let tenants = self.0.read();
        let inboxes = tenants
            .get(decision.tenant.as_str())
            .and_then(|by_account| by_account.get(&decision.account_id));
        for inbox in inboxes.into_iter().flatten() {
            let mut waiting = inbox.waiting.lock();
            if waiting.overflowed {
                continue;
            }
            if waiting.entries.len() == MAILBOX_DECISIONS {
                waiting.give_up();
            } else {
                waiting.entries.push_back(entry.clone());
            }
            drop(waiting);
            inbox.bell.notify_one();
        }
    }

    /// Sends every subscription back to the rings, where these begin anew.
    pub fn give_up(&self) {
        let tenants = self.0.read();
        for inbox in tenants.values().flat_map(HashMap::values).flatten() {
            inbox.waiting.lock().give_up();
            inbox.bell.notify_one();
        }
    }
}

impl Mailbox {
    /// Waits until something was delivered, or was since the last wait. Cancel-safe.
    pub async fn rung(&self) {
        self.inbox.bell.notified().await;
    }

    /// Takes the oldest decisions out, `limit` at most. Says whether more are left.
    ///
    /// # Errors
    /// [`Overflowed`], once; the mailbox is empty then and takes new decisions again.
    pub fn take(&self, limit: usize, mut into: impl FnMut(Arc<Entry>)) -> Result<bool, Overflowed> {
        let mut waiting = self.inbox.waiting.lock();
        if std::mem::take(&mut waiting.overflowed) {
            return Err(Overflowed);
        }
        let count = limit.min(waiting.entries.len());
        waiting.entries.drain(..count).for_each(&mut into);
        Ok(!waiting.entries.is_empty())
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let mut tenants = self.mailboxes.0.write();
        let Some(by_account) = tenants.get_mut(&self.tenant) else {
            return;
        };
        for account in &self.accounts {
            if let Some(inboxes) = by_account.get_mut(account) {
                inboxes.retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox));
                if inboxes.is_empty() {
                    by_account.remove(account);
                }
            }
        }
        if by_account.is_empty() {
            tenants.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::filter::tests::decision;
    use super::*;

    fn entry(tenant: &str, account: &str, offset: i64) -> Arc<Entry> {
        Arc::new(Entry::at(0, offset, decision(tenant, account, offset)))
    }

    fn take(mailbox: &Mailbox, limit: usize) -> Result<(Vec<i64>, bool), Overflowed> {
        let mut offsets = Vec::new();
        let more = mailbox.take(limit, |entry| offsets.push(entry.offset))?;
        Ok((offsets, more))
    }

    #[test]
    fn a_mailbox_gets_what_it_names_of_its_tenant_and_rings() {
        let mailboxes = Mailboxes::default();
        let both = mailboxes.open(&"acme".into(), vec!["a".into(), "b".into()]);
        let other = mailboxes.open(&"evil".into(), vec!["a".into()]);
        assert!(both.rung().now_or_never().is_none());
        for (offset, account) in [(0, "a"), (1, "c"), (2, "b")] {
            mailboxes.deliver(&entry("acme", account, offset));
        }
        assert!(both.rung().now_or_never().is_some() && other.rung().now_or_never().is_none());
        assert_eq!(take(&both, 1), Ok((vec![0], true)));
        assert_eq!(take(&both, 9), Ok((vec![2], false)));
        assert_eq!(take(&other, 9), Ok((vec![], false)));
    }

    #[test]
    fn a_full_mailbox_says_so_once_and_begins_again() {
        let mailboxes = Mailboxes::default();
        let mailbox = mailboxes.open(&"acme".into(), vec!["a".into()]);
        for offset in 0..MAILBOX_DECISIONS as i64 + 2 {
            mailboxes.deliver(&entry("acme", "a", offset));
        }
        assert_eq!(take(&mailbox, 9), Err(Overflowed));
        assert_eq!(take(&mailbox, 9), Ok((vec![], false)));
        mailboxes.deliver(&entry("acme", "a", 1_000));
        assert_eq!(take(&mailbox, 9), Ok((vec![1_000], false)));
    }

    #[test]
    fn nothing_is_left_of_a_mailbox_that_is_gone() {
        let mailboxes = Mailboxes::default();
        let first = mailboxes.open(&"acme".into(), vec!["a".into(), "a".into()]);
        let second = mailboxes.open(&"acme".into(), vec!["a".into()]);
        drop(first);
        mailboxes.deliver(&entry("acme", "a", 5));
        assert_eq!(take(&second, 9), Ok((vec![5], false)));
        drop(second);
        assert!(mailboxes.0.read().is_empty());
    }
}
