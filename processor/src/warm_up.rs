//! Owns what a process does before its lanes join a group that others serve: it reads what they have decided, so that the
//! takeover, during which nobody decides, finds most of the state there.
//!
//! Comes after [`crate::processor`] has made everything, before [`crate::lane`]. What it remembers is kept as if lanes of this
//! process had given the partitions up. It is of no consequence for what is decided: a takeover reads on from there.

use std::collections::BTreeMap;
use std::thread;

use sluice_kafka::admin::Admin;
use sluice_kafka::error;
use sluice_proto::avro;

use crate::decode::Decoder;
use crate::lane::Settings;
use crate::ledger::Open;
use crate::replay;
use crate::rule_archive;
use crate::servers::Servers;
use crate::takeover::{self, Ends};
use crate::world::World;

/// While one round reads, others decide more; each round is shorter than the one before.
const ROUNDS: usize = 3;
/// A round that read fewer records than this is the last one: a takeover reads as many in a few milliseconds.
const FEW_RECORDS: u64 = 10_000;

/// Why nothing more could be remembered beforehand.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The group's members or offsets.
    #[error(transparent)]
    Admin(#[from] error::Admin),
    /// Finding the rule set that was in force where the replay begins.
    #[error(transparent)]
    Rules(#[from] rule_archive::Error),
    /// Reading the payments.
    #[error(transparent)]
    Replay(#[from] replay::Error),
    /// This version's own schema cannot be read.
    #[error(transparent)]
    Schema(#[from] avro::DecodeError),
}

/// Remembers every partition, on as many threads as there are lanes, for as long as the group has members and `goes_on`
/// says so. Without members there is nothing to wait for: whoever joins first takes over at once.
///
/// # Errors
/// See [`Error`]. What was read until then is remembered all the same.
pub(crate) fn run<B: Open>(
    servers: &Servers<B>,
    settings: &Settings,
    lanes: u16,
    goes_on: &(impl Fn() -> bool + Sync),
) -> Result<(), Error> {
    let admin = Admin::new(&servers.kafka, settings.kafka_metrics.clone())?;
    let is_served = || admin.members(&servers.group).is_ok_and(|members| members > 0);
    let goes_on = || goes_on() && is_served();
    for _round in 0..ROUNDS {
        if !goes_on() {
            break;
        }
        let mut shares = vec![BTreeMap::new(); usize::from(lanes)];
        for lag in admin.lag(&servers.group, &settings.topics.payments)? {
            if let Some(committed) = lag.committed {
                let (partition, ends) = (
                    lag.partition,
                    Ends {
                        low: lag.low,
                        committed,
                    },
                );
                shares[partition.unsigned_abs() as usize % usize::from(lanes)].insert(partition, ends);
            }
        }
        let read = thread::scope(|scope| -> Result<u64, Error> {
            let threads: Vec<_> = (0..lanes)
                .zip(&shares)
                .map(|(lane, share)| scope.spawn(move || remember(servers, settings, lane, share, goes_on)))
                .collect();
            threads.into_iter().try_fold(0, |read, thread| match thread.join() {
                Ok(more) => Ok(read + more?),
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        tracing::info!(read, "remembered what others decide");
        if read < FEW_RECORDS {
            break;
        }
    }
    Ok(())
}

/// Brings what is known of these partitions up to their ends. Says how many records were read.
fn remember<B: Open>(
    servers: &Servers<B>,
    settings: &Settings,
    lane: u16,
    share: &BTreeMap<i32, Ends>,
    goes_on: impl Fn() -> bool,
) -> Result<u64, Error> {
    let mut decoder = Decoder::new(settings.payment_schema, settings.registry.clone())?;
    let mut states = takeover::states(servers, settings, share)?;
    let progress = |left| settings.metrics.replaying(lane, left);
    let read = replay::rebuild(
        servers,
        &settings.topics.payments,
        &mut decoder,
        &mut states,
        progress,
        goes_on,
    );
    settings.kept.put_all(World::now(servers), states);
    settings.metrics.replaying(lane, 0);
    match read {
        Err(replay::Error::Cancelled) => Ok(0),
        read => Ok(read?),
    }
}
