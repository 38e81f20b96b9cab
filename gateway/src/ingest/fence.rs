//! Owns which session of a producer_id is the newest on this gateway. A newer one ends the older: they would number the
//! same events.
//!
//! Comes after a session's Open was validated, before it is Ready. It knows the sessions that are open here and now; what
//! other gateways and the past have, the producer's epoch in the record headers tells, as far as `resume` reads them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_proto::pb::ErrorCode;
use tokio_util::sync::CancellationToken;

use crate::status::Failure;

type Producer = (Arc<str>, String);

#[derive(Debug)]
struct Holder {
    epoch: u64,
    fenced: CancellationToken,
    settled: CancellationToken,
}

/// The producers with an open session.
#[derive(Clone, Debug, Default)]
pub struct Fences(Arc<Mutex<HashMap<Producer, Holder>>>);

/// A session's claim on its producer_id, for as long as it lives and until the last of its events is settled.
#[derive(Debug)]
pub struct Claim {
    fences: Fences,
    producer: Producer,
    fenced: CancellationToken,
    settled: CancellationToken,
    predecessor: Option<CancellationToken>,
}

impl Fences {
    /// Claims a producer_id, and fences the session that had it. An equal epoch is the same client after a lost
    /// connection, whose old session may not have noticed yet.
    ///
    /// # Errors
    /// `FENCED` where a newer epoch has it.
    pub fn claim(&self, tenant: &Arc<str>, producer_id: &str, epoch: u64) -> Result<Claim, Failure> {
        let producer = (tenant.clone(), producer_id.to_owned());
        let (fenced, settled) = (CancellationToken::new(), CancellationToken::new());
        let mut predecessor = None;
        let mut holders = self.0.lock();
        if let Some(holder) = holders.get(&producer) {
            if holder.epoch > epoch {
                return Err(failure().fact("epoch", holder.epoch));
            }
            holder.fenced.cancel();
            predecessor = Some(holder.settled.clone());
        }
        let holder = Holder {
            epoch,
            fenced: fenced.clone(),
            settled: settled.clone(),
        };
        holders.insert(producer.clone(), holder);
        Ok(Claim {
            fences: self.clone(),
            producer,
            fenced,
            settled,
            predecessor,
        })
    }
}

impl Claim {
    /// Cancelled when a newer session claims the producer_id.
    pub const fn fenced(&self) -> &CancellationToken {
        &self.fenced
    }

    /// Cancelled when the session that had the producer_id before is over and all of its events are settled. `None`
    /// where there was none.
    pub const fn predecessor(&self) -> Option<&CancellationToken> {
        self.predecessor.as_ref()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A fenced session's place is another's.
        let mut holders = self.fences.0.lock();
        if !self.fenced.is_cancelled() {
            holders.remove(&self.producer);
        }
        self.settled.cancel();
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
    use super::*;

    #[test]
    fn a_newer_session_fences_the_older_and_an_older_one_is_refused() {
        let fences = Fences::default();
        let tenant: Arc<str> = "acme".into();
        let first = fences.claim(&tenant, "p", 1).expect("free");
        let other = fences.claim(&"evil".into(), "p", 9).expect("another tenant's");
        let again = fences.claim(&tenant, "p", 1).expect("reconnected");
        let settled = again.predecessor().expect("had it before").clone();
        assert!(first.fenced().is_cancelled() && !again.fenced().is_cancelled());
        let newer = fences.claim(&tenant, "p", 2).expect("newer");
        assert!(again.fenced().is_cancelled());
        assert!(!settled.is_cancelled() && first.predecessor().is_none());
        drop((first, again));
        assert!(settled.is_cancelled());
        let refused = fences.claim(&tenant, "p", 1).expect_err("older");
        assert_eq!(refused.code(), ErrorCode::Fenced);
        assert!(!newer.fenced().is_cancelled() && !other.fenced().is_cancelled());
        drop(newer);
        assert!(fences.claim(&tenant, "p", 1).is_ok());
        drop(other);
        assert!(fences.0.lock().is_empty());
    }
}
