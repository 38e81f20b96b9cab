//! Publishing at a fixed rate, whether answers come or not, and awaiting the answers.
//!
//! Comes after the source of payments; the `tally` learns of each payment before it is sent and of each answer after.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use sluice_client::{Outcome, Publisher, Ticket};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::Shared;
use crate::generate::Generated;

/// Published payments whose answers are awaited; the publisher's own window is the tighter bound.
const AWAITED_EVENTS: usize = 131_072;
/// An error that allows it is tried again so often.
const MAX_RETRIES: u32 = 8;
const FIRST_RETRY_WAIT: Duration = Duration::from_millis(50);

/// A published payment.
struct Awaited {
    id: Uuid,
    event: Bytes,
    ticket: Ticket,
}

/// Publishes everything and awaits every answer.
pub(super) async fn run(
    publisher: Arc<Publisher>,
    payments: impl Iterator<Item = anyhow::Result<Generated>> + Send + 'static,
    rate_per_s: u32,
    tally: Shared,
    done: watch::Sender<bool>,
) -> anyhow::Result<()> {
    let (awaited, answers) = mpsc::channel(AWAITED_EVENTS);
    let answering = tokio::spawn(answer(Arc::clone(&publisher), answers, tally.clone()));
    let started = Instant::now();
    for (index, payment) in payments.enumerate() {
        let payment = payment?;
        let intended = if rate_per_s == 0 {
            Instant::now()
        } else {
            let intended = started + Duration::from_secs_f64(index as f64 / f64::from(rate_per_s));
            until(intended).await;
            intended
        };
        tally.lock().publishing(&payment, intended);
        let event = Bytes::from(payment.event.encode_to_vec());
        let ticket = publisher.publish_encoded(event.clone()).await?;
        let sent = Awaited {
            id: payment.id,
            event,
            ticket,
        };
        if awaited.send(sent).await.is_err() {
            break;
        }
    }
    drop(awaited);
    done.send_replace(true);
    answering.await?
}

/// Awaits the answers in the order of publishing; each carries the time it came, so a slow one hides no other.
async fn answer(publisher: Arc<Publisher>, mut answers: mpsc::Receiver<Awaited>, tally: Shared) -> anyhow::Result<()> {
    while let Some(awaited) = answers.recv().await {
        let receipt = awaited.ticket.await?;
        let mut outcome = receipt.outcome;
        let mut settled_at = receipt.settled_at;
        let mut wait = FIRST_RETRY_WAIT;
        for _retry in 0..MAX_RETRIES {
            match &outcome {
                Outcome::Error(error) if error.retriable => {}
                _ => break,
            }
            tally.lock().retried += 1;
            until(Instant::now() + wait).await;
            wait *= 2;
            let receipt = publisher.publish_encoded(awaited.event.clone()).await?.await?;
            (outcome, settled_at) = (receipt.outcome, receipt.settled_at);
        }
        tally.lock().settled(awaited.id, &outcome, settled_at);
    }
    Ok(())
}

/// Waits for a moment of the schedule; one that has passed costs nothing.
async fn until(moment: Instant) {
    if moment > Instant::now() {
        tokio::time::sleep_until(moment.into()).await;
    }
}
