//! Owns the beginning of a session: from its Open to what it begins with, which for a resumed one is what the lost session
//! had stored.
//!
//! Comes after the stream's first message, before the session loop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sluice_proto::pb::publish_request::Message as Request;
use sluice_proto::pb::{self, ErrorCode};
use sluice_proto::{bounds, validate};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::ack::{Acks, Settlements};
use super::admit::Window;
use super::fence::Claim;
use super::resume::{CLOCK_SLACK, Wanted};
use super::sequence::{self, Sequence};
use super::token::{Owner, Progress};
use super::{Shared, fence};
use crate::auth::Caller;
use crate::status::{self, Failure};

/// How long a resumed session waits for what earlier ones on this gateway have under way: most of it is settled within some
/// milliseconds, and then it need not go again.
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

/// The first request, which must be Open; `None` where there is nobody to tell what is wrong.
pub(super) fn opening(request: Option<Result<pb::PublishRequest, Status>>) -> Result<pb::PublishOpen, Option<Failure>> {
    match request {
        Some(Ok(pb::PublishRequest {
            message: Some(Request::Open(open)),
        })) => Ok(open),
        Some(Ok(_)) => Err(Some(Failure::new(
            ErrorCode::SessionNotOpen,
            "the first message is not Open",
            "send Open with a producer_id before the first batch",
        ))),
        Some(Err(status)) => Err(status::unreadable_request(&status)),
        None => Err(None),
    }
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
        Some(progress) => resume(shared, caller, &open, progress, &claim).await?,
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
    claim: &Claim,
) -> Result<(Acks, bool), Failure> {
    let waited = tokio::time::timeout(PREDECESSOR_TIMEOUT, claim.alone()).await;
    let Progress { next, above, since_ms } = progress;
    // A clock that is ahead has made the token, and nothing is looked for in the time by which it is.
    let is_ahead = since_ms > (shared.clock)() / 1_000 + CLOCK_SLACK.as_millis() as i64;
    let in_doubt = waited.is_err() || is_ahead;
    let known: u64 = above.iter().map(|(first, last)| last - first + 1).sum();
    let sent = open.last_sent_sequence;
    let missing = (sent > 0).then(|| sent.saturating_sub(next - 1).saturating_sub(known));
    let mut acks = Acks::new(next, open.want_positions);
    let highest = above.last().map_or(next - 1, |(_, last)| *last);
    let mut end = highest.max(sent).saturating_add(1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::ack::{Fate, Settled};

    const OWNER: Owner<'static> = Owner {
        tenant: "acme",
        producer_id: "p",
        epoch: 1,
    };

    async fn resumed(shared: &Shared, last_sent_sequence: u64, since_ms: i64) -> Opened {
        let progress = Progress {
            next: 5,
            above: Vec::new(),
            since_ms,
        };
        let token = shared.signer.write(OWNER, &progress, (shared.clock)() / 1_000);
        let asked = pb::PublishOpen {
            producer_id: OWNER.producer_id.to_owned(),
            epoch: OWNER.epoch,
            resume_token: token.into(),
            last_sent_sequence,
            ..pb::PublishOpen::default()
        };
        let opened = open(shared, &Caller::of(OWNER.tenant), asked).await;
        opened.expect("the session opens")
    }

    #[tokio::test]
    async fn a_token_of_a_clock_that_is_ahead_leaves_a_doubt() {
        let shared = Shared::of_tests();
        let now_ms = (shared.clock)() / 1_000;
        let latest_ms = now_ms + CLOCK_SLACK.as_millis() as i64;
        for (since_ms, in_doubt) in [(now_ms, false), (latest_ms, false), (latest_ms + 1, true)] {
            let ready = resumed(&shared, 0, since_ms).await.ready;
            assert_eq!((ready.next_sequence, ready.in_doubt), (5, in_doubt), "{since_ms}");
        }
    }

    #[tokio::test]
    async fn what_was_sent_counts_until_it_is_settled_however_much_it_is() {
        let shared = Shared::of_tests();
        let now_ms = (shared.clock)() / 1_000;
        for last_sent in [100_001, u64::MAX] {
            let mut opened = resumed(&shared, last_sent, now_ms - 7).await;
            let stored = |sequence| Settled {
                sequence,
                permit: Window::new(1, 1).admit(1),
                sent: None,
                fate: Fate::Stored(pb::Position::default()),
            };
            let mut settled: Vec<Settled> = (5..=100_000).map(stored).collect();
            opened.acks.coalesce(&mut settled);
            assert_eq!(opened.acks.floor(), 100_001);
            assert_eq!(opened.acks.progress(now_ms).since_ms, now_ms - 7, "{last_sent}");
        }
    }
}
