//! Owns which session of a producer_id is the newest on this gateway. A newer one ends the older: they would number the
//! same events.
//!
//! Comes after a session's Open was validated, before it is Ready. It knows the sessions that are open here and now; what
//! other gateways and the past have, the producer's epoch in the record headers tells, as far as `resume` reads them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_proto::pb::ErrorCode;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::status::Failure;

type Producer = (Arc<str>, String);

/// The sessions of a producer_id, as long as there is a claim.
#[derive(Debug, Default)]
struct Sessions {
    /// The newest one, until it is over: its epoch, and what fences it.
    newest: Option<(u64, CancellationToken)>,
    /// How many claims there are.
    claims: watch::Sender<usize>,
}

/// The producers with an open session, or with one of which events are under way.
#[derive(Clone, Debug, Default)]
pub struct Fences(Arc<Mutex<HashMap<Producer, Sessions>>>);

/// A session's claim on its producer_id, for as long as it lives and until the last of its events is settled.
#[derive(Debug)]
pub struct Claim {
    fences: Fences,
    producer: Producer,
    fenced: CancellationToken,
    claims: watch::Receiver<usize>,
}

impl Fences {
    /// Claims a producer_id, and fences the session that had it. An equal epoch is the same client after a lost
    /// connection, whose old session may not have noticed yet.
    ///
    /// # Errors
    /// `FENCED` where a newer epoch has it.
    pub fn claim(&self, tenant: &Arc<str>, producer_id: &str, epoch: u64) -> Result<Claim, Failure> {
        let producer = (tenant.clone(), producer_id.to_owned());
        let mut producers = self.0.lock();
        let sessions = producers.entry(producer.clone()).or_default();
        if let Some((newest, fenced)) = &sessions.newest {
            if *newest > epoch {
                return Err(failure().fact("epoch", newest));
            }
            fenced.cancel();
        }
        let fenced = CancellationToken::new();
        sessions.newest = Some((epoch, fenced.clone()));
        sessions.claims.send_modify(|claims| *claims += 1);
        Ok(Claim {
            claims: sessions.claims.subscribe(),
            fences: self.clone(),
            producer,
            fenced,
        })
    }
}

impl Claim {
    /// Cancelled when a newer session claims the producer_id.
    pub const fn fenced(&self) -> &CancellationToken {
        &self.fenced
    }

    /// Waits until every other session that had the producer_id is over and all of its events are settled, also those that
    /// one between left behind. Cancel-safe.
    pub async fn alone(&self) {
        let mut claims = self.claims.clone();
        // Their number is told as long as there is this one.
        drop(claims.wait_for(|claims| *claims <= 1).await);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut producers = self.fences.0.lock();
        let Some(sessions) = producers.get_mut(&self.producer) else {
            return;
        };
        // A fenced session's place is another's.
        if !self.fenced.is_cancelled() {
            sessions.newest = None;
        }
        sessions.claims.send_modify(|claims| *claims -= 1);
        let is_last = *sessions.claims.borrow() == 0;
        if is_last {
            producers.remove(&self.producer);
        }
    }
}

/// A newer session has the producer_id.
pub fn failure() -> Failure {
    Failure::new(
        ErrorCode::Fenced,
        "a newer session of this producer_id took over",
        "run one client for each producer_id, with a higher epoch in each of its lives",
    )
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_alone(claim: &Claim) -> bool {
        claim.alone().now_or_never().is_some()
    }

    #[test]
    fn a_session_waits_for_all_earlier_ones_and_not_only_for_the_last() {
        let fences = Fences::default();
        let tenant: Arc<str> = "acme".into();
        let first = fences.claim(&tenant, "p", 1).expect("free");
        // Its client goes away while it opens.
        drop(fences.claim(&tenant, "p", 2).expect("newer"));
        let third = fences.claim(&tenant, "p", 1).expect("nobody has it");
        assert!(!is_alone(&third), "the first one has events under way");
        drop(first);
        assert!(is_alone(&third));
        drop(third);
        assert!(fences.0.lock().is_empty());
    }

    #[test]
    fn a_newer_session_fences_the_older_and_an_older_one_is_refused() {
        let fences = Fences::default();
        let tenant: Arc<str> = "acme".into();
        let first = fences.claim(&tenant, "p", 1).expect("free");
        let other = fences.claim(&"evil".into(), "p", 9).expect("another tenant's");
        assert!(is_alone(&first) && is_alone(&other));
        let again = fences.claim(&tenant, "p", 1).expect("reconnected");
        assert!(first.fenced().is_cancelled() && !again.fenced().is_cancelled());
        let newer = fences.claim(&tenant, "p", 2).expect("newer");
        assert!(again.fenced().is_cancelled() && !is_alone(&newer));
        drop((first, again));
        assert!(is_alone(&newer));
        let refused = fences.claim(&tenant, "p", 1).expect_err("older");
        assert_eq!(refused.code(), ErrorCode::Fenced);
        assert!(!newer.fenced().is_cancelled() && !other.fenced().is_cancelled());
        drop(newer);
        assert!(fences.claim(&tenant, "p", 1).is_ok());
        drop(other);
        assert!(fences.0.lock().is_empty());
    }
}
