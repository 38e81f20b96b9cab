//! Owns what a lane does before it processes a partition that it was just assigned, or that it is in doubt about: the
//! seven steps below, in this order.
//!
//! Comes before the lane's first batch, after every rebalance, and after every failure.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_kafka::{error, fail};

use crate::consume::Assignment;
use crate::decode::Decoder;
use crate::lane::{Part, Settings};
use crate::ledger::{self, Owner};
use crate::links::{self, Links};
use crate::publish;
use crate::refill::{self, Doubt};
use crate::replay::{self, Replayed};
use crate::rule_archive;
use crate::same_log;
use crate::world::{Books, Member, Reader, Transactions, World};

/// How much longer than a transaction's timeout the stable offsets are waited for: the broker looks for transactions to
/// abort every ten seconds.
const OFFSETS_SLACK: Duration = Duration::from_secs(15);
/// How long the ends of a partition may take to read.
const WATERMARKS_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a takeover failed. It is tried again from its beginning.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The new producer.
    #[error(transparent)]
    Publish(#[from] publish::Error),
    /// The group's offsets, or fetching.
    #[error(transparent)]
    Consumer(#[from] error::Consumer),
    /// The lane is in no group. It is a mistake of this program: nothing is assigned then.
    #[error("the lane is not a member of its group")]
    NoMember,
    /// Only where faults are injected.
    #[error(transparent)]
    Injected(#[from] fail::Injected),
    /// Filling in what Postgres lost.
    #[error(transparent)]
    Refill(#[from] refill::Error),
    /// Finding the rule set that was in force where the replay begins.
    #[error(transparent)]
    Rules(#[from] rule_archive::Error),
    /// Rebuilding the state.
    #[error(transparent)]
    Replay(#[from] replay::Error),
    /// The topic is not the one that the ledger is about.
    #[error(transparent)]
    OtherLog(#[from] same_log::Error),
    /// The group's offset is none that the ledger and the log allow. Going on would remove rows of committed decisions, or
    /// decide payments again.
    #[error(
        "partition {part}: the group stands at offset {committed}, the ledger has committed up to {watermark}, and the log \
         ends at {high}: one of them was reset or replaced; nothing is decided until they agree"
    )]
    Contradiction {
        /// The partition of the payments.
        part: i32,
        /// The group's offset.
        committed: i64,
        /// The ledger's watermark.
        watermark: i64,
        /// The offset after the last record.
        high: i64,
    },
}

impl Error {
    /// Whether the caller gave the takeover up.
    pub(crate) fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Refill(refill::Error::Cancelled)
                | Self::Replay(replay::Error::Cancelled)
                | Self::OtherLog(same_log::Error::Cancelled)
        )
    }
}

/// What a takeover starts from.
pub(crate) struct Start<'s, W: World> {
    pub(crate) world: &'s W,
    pub(crate) settings: &'s Settings,
    pub(crate) lane: u16,
    pub(crate) consumer: &'s W::Member,
    pub(crate) assignment: &'s Assignment<W::Membership>,
    /// Why, for the ledger's record of what is compensated.
    pub(crate) reason: &'s str,
}

/// Takes the assigned partitions over, and starts fetching them. `links` are kept where they are not in doubt.
pub(crate) fn take_over<W: World>(
    start: &Start<'_, W>,
    links: &mut Links<W>,
    decoder: &mut Decoder,
    mut goes_on: impl FnMut() -> bool,
) -> Result<BTreeMap<i32, Part>, Error> {
    let Start {
        world,
        settings,
        consumer,
        ..
    } = *start;
    let partitions = &start.assignment.partitions;
    let started = world.now();
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }

    // 1. Postgres: fence the old lane's writes.
    let ledger = connected(&mut links.ledger, world, settings)?;
    let mut owners = ledger.bump_epochs(partitions, &settings.lane_name(start.lane))?;
    fail::point("takeover.epochs")?;

    // 2. Kafka: a new producer fences this lane's own open transaction; one that was kept has none open. Another lane's is
    // fenced by the group's generation.
    if links.publisher.is_none() {
        links.publisher = Some(world.transactions(settings, start.lane)?);
    }
    fail::point("takeover.producer")?;

    // 3. Where the group has committed up to. What another lane's open transaction holds is waited for.
    let offsets = stable_offsets(settings, consumer, &owners)?;
    fail::point("takeover.offsets")?;

    // 4. The group's own word that the partitions are this lane's, given after the epochs were counted up. Without it a lane
    // that was stopped for so long that it lost them could remove rows which their new owner has prepared and is about to
    // commit. With it, an earlier owner can commit nothing more, and a later one counts the epochs up after this.
    let membership = start.assignment.membership.as_ref().ok_or(Error::NoMember)?;
    let committed: BTreeMap<i32, i64> = offsets.iter().map(|(part, ends)| (*part, ends.committed)).collect();
    if fail::safeguard("proof")
        && let Some(publisher) = &mut links.publisher
    {
        let aborting = prove(world, publisher, partitions, membership)?;
        links::ended(&mut links.publisher, "aborting", aborting);
    }
    fail::point("takeover.proof")?;

    // The offsets mean something only in the log that the ledger is about.
    let mut rows = BTreeMap::new();
    for Owner { part, watermark, .. } in &owners {
        let newest = ledger.newest(*part, *watermark)?;
        rows.extend(
            newest
                .filter(|(off, _)| *off >= offsets[part].low)
                .map(|row| (*part, row)),
        );
    }
    same_log::check(world, &settings.topics.payments, decoder, rows, &mut goes_on)?;

    // 5. Postgres: what became visible and was lost since. The next step moves the watermark by which that is noticed.
    let doubts = owners.iter().map(|owner| Doubt {
        owner: *owner,
        committed: committed[&owner.part],
    });
    let open_for = settings.transaction_timeout + OFFSETS_SLACK;
    let refilled = if fail::safeguard("refill") {
        refill::fill(world, settings, ledger, doubts, open_for, &mut goes_on)?
    } else {
        0
    };
    fail::point("takeover.refill")?;

    // 6. Postgres: what was prepared at or above that never became visible.
    for owner in &mut owners {
        owner.watermark = committed[&owner.part];
    }
    let compensated = compensate(ledger, &owners, start.reason)?;
    fail::point("takeover.compensation")?;

    // 7. The state at exactly that offset.
    let mut states = states(world, settings, &offsets)?;
    let topic = &settings.topics.payments;
    let progress = |left| settings.metrics.replaying(start.lane, left);
    let replayed = match replay::rebuild(world, topic, decoder, &mut states, progress, goes_on) {
        Ok(replayed) => replayed,
        Err(error) => {
            // The next takeover, or another lane's, reads on from here.
            settings.kept.put_all(world.now(), states);
            settings.metrics.replaying(start.lane, 0);
            return Err(error.into());
        }
    };
    fail::point("takeover.state")?;

    let parts = parts(world, owners, states);
    consumer.read_from(parts.iter().map(|(part, it)| (*part, it.next)))?;
    let took = world.now().duration_since(started);
    settings.metrics.taken_over(took, replayed, compensated);
    tracing::info!(
        lane = start.lane,
        ?partitions,
        reason = start.reason,
        replayed,
        refilled,
        compensated,
        took_ms = took.as_millis() as u64,
        "taken over"
    );
    Ok(parts)
}

fn connected<'l, W: World>(
    ledger: &'l mut Option<W::Books>,
    world: &W,
    settings: &Settings,
) -> Result<&'l mut W::Books, ledger::Error> {
    match ledger {
        Some(ledger) => Ok(ledger),
        none => Ok(none.insert(world.books(settings)?)),
    }
}

/// Proves that the lane's place in its group is the current one. Says how long it took to end the transaction that it takes.
fn prove<W: World>(
    world: &W,
    publisher: &mut W::Transactions,
    partitions: &[i32],
    membership: &W::Membership,
) -> Result<Duration, publish::Error> {
    publisher.prove(partitions, membership)?;
    let proven = world.now();
    publisher.abort()?;
    Ok(world.now().duration_since(proven))
}

/// Says how many rows were removed.
fn compensate(ledger: &mut impl Books, owners: &[Owner], reason: &str) -> Result<u64, ledger::Error> {
    let mut rows = 0;
    for gone in ledger.compensate(owners, reason)? {
        tracing::warn!(
            partition = gone.part,
            rows = gone.rows,
            first = gone.first_off,
            last = gone.last_off,
            "compensated prepared rows"
        );
        rows += gone.rows.unsigned_abs();
    }
    Ok(rows)
}

/// What is known of each partition's state, from this process or from a snapshot, which may be nothing; and the offset that
/// it has to be brought up to.
pub(crate) fn states<W: World>(
    world: &W,
    settings: &Settings,
    offsets: &BTreeMap<i32, Ends>,
) -> Result<BTreeMap<i32, (Replayed, i64)>, rule_archive::Error> {
    let (mut states, mut wanted) = (BTreeMap::new(), BTreeMap::new());
    for (part, Ends { low, committed }) in offsets {
        let kept = settings.kept.take(*part);
        if let Some(kept) = kept.filter(|kept| (*low..=*committed).contains(&kept.next)) {
            states.insert(*part, (kept, *committed));
        } else if low <= committed && *committed > 0 {
            // What was committed may all be deleted, where a partition was idle for long: it is remembered all the same.
            wanted.insert(*part, (*low, *committed));
        }
    }
    for (part, restored) in world.restore(settings, &wanted) {
        states.insert(part, (restored, offsets[&part].committed));
    }
    for (part, Ends { low, committed }) in offsets {
        if states.contains_key(part) {
            continue;
        }
        let start = *low.min(committed);
        // The record of the rule set that judged the first payment of a replay may be deleted, if anything is.
        let rules = if start > 0 {
            match world.rules_at(settings, *part, start) {
                Ok(rules) => rules,
                Err(error) => {
                    // What was found of the others is not looked for again.
                    settings.kept.put_all(world.now(), states);
                    return Err(error);
                }
            }
        } else {
            None
        };
        let rules = rules.unwrap_or_else(|| settings.rules.clone());
        let empty = Replayed::empty(settings.lateness_us, rules, start);
        states.insert(*part, (empty, *committed));
    }
    Ok(states)
}

fn parts(world: &impl World, owners: Vec<Owner>, mut states: BTreeMap<i32, (Replayed, i64)>) -> BTreeMap<i32, Part> {
    let count = owners.len();
    owners
        .into_iter()
        .filter_map(|owner| {
            let (Replayed { state, next }, committed) = states.remove(&owner.part)?;
            debug_assert_eq!(next, committed, "rebuilt up to the committed offset");
            let part = Part {
                epoch: owner.epoch,
                flushed: owner.watermark,
                next,
                state,
                snapshot: world.due(owner.part, count),
            };
            Some((owner.part, part))
        })
        .collect()
}

/// Where a partition's log begins, and where the group has committed up to.
#[derive(Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) low: i64,
    pub(crate) committed: i64,
}

fn stable_offsets(settings: &Settings, consumer: &impl Member, owners: &[Owner]) -> Result<BTreeMap<i32, Ends>, Error> {
    let partitions: Vec<i32> = owners.iter().map(|owner| owner.part).collect();
    let committed = consumer.committed(&partitions, settings.transaction_timeout + OFFSETS_SLACK)?;
    let mut all = BTreeMap::new();
    for owner in owners {
        let (low, high) = consumer.ends(owner.part, WATERMARKS_TIMEOUT)?;
        let committed = match committed.get(&owner.part) {
            Some(offset) => *offset,
            None => forgotten_offset(owner, low, high),
        };
        let Owner { part, watermark, .. } = *owner;
        // The watermark is set after the offset is committed, and a leader tells no end that it is not sure of: what a deposed one
        // says that does not know it yet is tried again.
        if committed < watermark || committed > high {
            return Err(Error::Contradiction {
                part,
                committed,
                watermark,
                high,
            });
        }
        if committed < low {
            tracing::error!(
                partition = part,
                from = committed,
                to = low,
                "payments were deleted before they were decided"
            );
            settings.metrics.deleted(low - committed);
        }
        all.insert(owner.part, Ends { low, committed });
    }
    Ok(all)
}

/// Kafka forgets a group's offsets when it was gone for long (a week, by default). The ledger's watermark was written
/// after an offset was committed, so that it is as good, unless the topic is a new one with the old name.
fn forgotten_offset(owner: &Owner, low: i64, high: i64) -> i64 {
    if (1..=high).contains(&owner.watermark) {
        tracing::warn!(
            partition = owner.part,
            watermark = owner.watermark,
            "the group has no offset: going on from the ledger's watermark"
        );
        return owner.watermark;
    }
    low
}
