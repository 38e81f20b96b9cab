//! Owns the proof that the payments topic is the one that the ledger is about: one that was deleted and made again has the
//! same name, and other payments at the same offsets.
//!
//! A step of [`crate::takeover`], before it acts on offsets. The newest committed row of each partition stands for all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::error::KafkaError;
use sluice_kafka::config::Isolation;
use sluice_kafka::error;
use uuid::Uuid;

use crate::decode::{Decoder, Failure, Record};
use crate::world::{Reader, World};

/// How long one poll waits.
const POLL: Duration = Duration::from_millis(100);
/// How long the log may give nothing before the check is given up, to be tried again.
const STALL: Duration = Duration::from_secs(30);

/// Why it is not proven.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka.
    #[error(transparent)]
    Consumer(#[from] error::Consumer),
    /// The schema of a record has to be fetched, and cannot be.
    #[error(transparent)]
    Registry(#[from] error::Registry),
    /// The log gave nothing for too long.
    #[error("nothing came for {} s of the payments that the ledger knows", STALL.as_secs())]
    Stalled,
    /// The caller said so.
    #[error("the assignment changed, or the process ends")]
    Cancelled,
    /// It is another one.
    #[error(
        "partition {part}: the ledger's row at offset {off} is not of the payment that stands there: the topic or the database \
         was replaced; nothing is decided until they belong together"
    )]
    Replaced {
        /// The partition of the payments.
        part: i32,
        /// The row's offset.
        off: i64,
    },
}

/// Reads the payment of each row, given as offset and event_id by partition, none of which Kafka has deleted.
///
/// # Errors
/// See [`Error`].
pub(crate) fn check<W: World>(
    world: &W,
    topic: &str,
    decoder: &mut Decoder,
    mut rows: BTreeMap<i32, (i64, Uuid)>,
    mut goes_on: impl FnMut() -> bool,
) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let reader = world.reader(topic, Isolation::ReadCommitted)?;
    reader.read_from(rows.iter().map(|(part, (off, _))| (*part, *off)))?;
    let began = world.now();
    while !rows.is_empty() {
        match reader.poll(POLL) {
            Some(Ok(message)) => {
                let part = message.partition();
                if let Some((off, event_id)) = rows.remove(&part) {
                    reader.pause(part)?;
                    let is_same = match decoder.decode(&message) {
                        Ok(Record::Payment(input)) => input.payment.event_id.uuid() == event_id,
                        Ok(Record::Rules(_)) | Err(Failure::Letter { .. }) => false,
                        Err(Failure::Registry(error)) => return Err(error.into()),
                    };
                    if !is_same || message.offset() != off {
                        return Err(Error::Replaced { part, off });
                    }
                }
            }
            // A leader that does not have the record yet will have it.
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(source)) => {
                let error = error::Consumer::Poll(source);
                if !error.is_retriable() {
                    return Err(error.into());
                }
                tracing::warn!(%error, "reading payments that the ledger knows goes on");
            }
        }
        if !goes_on() {
            return Err(Error::Cancelled);
        }
        if world.now().duration_since(began) > STALL {
            return Err(Error::Stalled);
        }
    }
    Ok(())
}
