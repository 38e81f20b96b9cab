//! Owns the beginning of a session: from its Open to what it begins with, which for a resumed one is what the lost session
//! had stored.
//!
//! Comes after the stream's first message, before the session loop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::pb::{self, ErrorCode};
use sluice_proto::{bounds, validate};
use tokio_util::sync::CancellationToken;

use super::ack::{Acks, Settlements};
use super::admit::Window;
use super::resume::Wanted;
use super::sequence::{self, Sequence};
use super::token::{Owner, Progress};
use super::{Shared, fence};
use crate::auth::Caller;
use crate::status::Failure;

/// How long a resumed session waits for what its predecessor on this gateway has under way: most of it is settled within
/// some milliseconds, and then it need not go again.
pub const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(1);

/// What a session begins with.
pub struct Opened {
    /// The session's producer.
    pub producer_id: String,
    /// Its epoch.
    pub epoch: u64,
    /// Which numbers come next.
    pub sequence: Sequence,
    /// What is settled.
    pub acks: Acks,
    /// The session's room.
    pub window: Window,
    /// Where its delivery reports go.
    pub settlements: Arc<Settlements>,
    /// Cancelled when a newer session claims the producer_id.
    pub fenced: CancellationToken,
    /// The answer to Open.
    pub ready: pb::PublishReady,
}

/// Opens a session. Cancel-safe: when dropped, nothing is left of it.
///
/// # Errors
/// `REQUEST_INVALID`, `TOKEN_INVALID`, `FENCED`.
pub async fn open(shared: &Shared, caller: &Caller, open: pb::PublishOpen) -> Result<Opened, Failure> {
    validate::producer_id(&open.producer_id).map_err(|violation| {
        Failure::new(ErrorCode::RequestInvalid, violation.reason, violation.remedy).field(violation.field)
    })?;
    let owner = Owner {
        tenant: &caller.tenant,
        producer_id: &open.producer_id,
        epoch: open.epoch,
    };
    let now_ms = (shared.clock)() / 1_000;
    let progress = if open.resume_token.is_empty() {
        None
    } else {
        Some(shared.signer.read(&open.resume_token, owner, now_ms)?)
    };
    let claim = shared.fences.claim(&caller.tenant, &open.producer_id, open.epoch)?;
    let fenced = claim.fenced().clone();
    let (mut acks, in_doubt) = match progress {
        None => (Acks::new(sequence::FIRST, open.want_positions), false),
        Some(progress) => resume(shared, caller, &open, progress, claim.predecessor()).await?,
    };
    let in_flight = match open.max_in_flight {
        0 => shared.max_in_flight_events,
        asked => asked.min(shared.max_in_flight_events),
    };
    let window = Window::new(shared.controller.window(), in_flight);
    let above: VecDeque<(u64, u64)> = acks.above().collect();
    let settled = above.iter().map(|(first, last)| pb::SequenceRange {
        first_sequence: *first,
        last_sequence: *last,
    });
    let ready = pb::PublishReady {
        next_sequence: acks.floor(),
        credit: Some(window.initial_credit()),
        limits: Some(pb::Limits {
            max_event_bytes: bounds::MAX_EVENT_BYTES as u32,
            max_batch_events: bounds::MAX_BATCH_EVENTS as u32,
            max_request_bytes: bounds::MAX_REQUEST_BYTES as u32,
            max_in_flight: in_flight,
        }),
        settled: settled.collect(),
        resume_token: shared.signer.write(owner, &acks.progress(now_ms), now_ms).into(),
        in_doubt,
    };
    Ok(Opened {
        sequence: Sequence::starting_at(acks.floor(), above),
        acks,
        window,
        settlements: Arc::new(Settlements::new(claim)),
        fenced,
        ready,
        epoch: open.epoch,
        producer_id: open.producer_id,
    })
}

/// What is settled of an earlier session, and whether something may have been overlooked.
async fn resume(
    shared: &Shared,
    caller: &Caller,
    open: &pb::PublishOpen,
    progress: Progress,
    predecessor: Option<&CancellationToken>,
) -> Result<(Acks, bool), Failure> {
    let mut in_doubt = false;
    if let Some(settled) = predecessor {
        let waited = tokio::time::timeout(PREDECESSOR_TIMEOUT, settled.cancelled());
        in_doubt = waited.await.is_err();
    }
    let Progress { next, above, since_ms } = progress;
    let known: u64 = above.iter().map(|(first, last)| last - first + 1).sum();
    let sent = open.last_sent_sequence;
    let missing = (sent > 0).then(|| sent.saturating_sub(next - 1).saturating_sub(known));
    let mut acks = Acks::new(next, open.want_positions);
    let highest = above.last().map_or(next - 1, |(_, last)| *last);
    let mut end = highest.max(sent.min(next + u64::from(bounds::MAX_IN_FLIGHT_EVENTS))) + 1;
    if missing == Some(0) {
        acks.inherit(above, end, since_ms);
        return Ok((acks, in_doubt));
    }
    let wanted = Wanted {
        tenant: caller.tenant.clone(),
        producer_id: open.producer_id.clone(),
        epoch: open.epoch,
        next,
        known: above.clone(),
        missing,
        since_ms,
    };
    let found = shared.scanner.find(wanted).await;
    if let Some(newer) = found.newer_epoch {
        return Err(fence::failure().fact("epoch", newer));
    }
    tracing::debug!(
        producer_id = open.producer_id,
        next,
        found = found.stored.len(),
        in_doubt = found.in_doubt,
        "session resumed"
    );
    end = end.max(found.stored.last().map_or(0, |last| last + 1));
    let stored = found.stored.into_iter().map(|number| (number, number));
    acks.inherit(above.into_iter().chain(stored), end, since_ms);
    Ok((acks, in_doubt || found.in_doubt))
}
