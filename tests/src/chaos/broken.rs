//! The broken builds: servers of which one safeguard was taken out, and the faults that it guards against. The checker must
//! notice each, or it is worth nothing.
//!
//! Comes after [`super::world`] has started; the servers' side is `sluice_kafka::fail::safeguard`.

use std::time::Instant;

use anyhow::{Context, Result};

use super::faults::{Armed, Fault};
use super::scenario::repeat_decisions;
use super::world::{Part, Setup, World};
use crate::checker::Invariant;
use crate::mix::Mix;
use crate::rail::faults::Faults;

const FIRST: Part = Part::Processor(0);
const SECOND: Part = Part::Processor(1);
/// A batch in the middle of the traffic.
const BATCH: u64 = 20;
/// Events during which the rail is called, and audited.
const SAGA_EVENTS: usize = 3_000;

/// The safeguard that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "`about` says what each is")]
pub enum Broken {
    Compensation,
    Fencing,
    OffsetsLast,
    Undo,
    HighWatermark,
    Watermark,
    Deduplication,
    Epoch,
    TransactionTimeout,
    IdempotencyKey,
    SagaHold,
}

impl Broken {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Compensation,
        Self::Fencing,
        Self::OffsetsLast,
        Self::Undo,
        Self::HighWatermark,
        Self::Watermark,
        Self::Deduplication,
        Self::Epoch,
        Self::TransactionTimeout,
        Self::IdempotencyKey,
        Self::SagaHold,
    ];

    /// Its name, as the servers know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compensation => "compensation",
            Self::Fencing => "fencing",
            Self::OffsetsLast => "offsets-last",
            Self::Undo => "undo",
            Self::HighWatermark => "high-watermark",
            Self::Watermark => "watermark",
            Self::Deduplication => "deduplication",
            Self::Epoch => "epoch",
            Self::TransactionTimeout => "transaction-timeout",
            Self::IdempotencyKey => "idempotency-key",
            Self::SagaHold => "saga-hold",
        }
    }

    /// What is missing.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Compensation => "a takeover leaves prepared rows where they are",
            Self::Fencing => "Postgres takes rows from a lane of an older epoch",
            Self::OffsetsLast => "offsets are committed before anything is decided",
            Self::Undo => "the state keeps what it learnt from a batch that was taken back",
            Self::HighWatermark => "the gateway delivers decisions that it has seen before",
            Self::Watermark => "the ledger is never told what has committed",
            Self::Deduplication => "the state does not recognise a payment that was published again",
            Self::Epoch => "a takeover does not count the epoch up",
            Self::TransactionTimeout => "a transaction stays open for ten times its timeout",
            Self::IdempotencyKey => "each call of the payment rail carries another key",
            Self::SagaHold => "the saga passes over reviews",
        }
    }

    /// The invariant that must be found violated.
    pub const fn violates(self) -> Invariant {
        match self {
            Self::Compensation | Self::Fencing | Self::OffsetsLast | Self::Undo => Invariant::Once,
            Self::HighWatermark => Invariant::Delivery,
            Self::Watermark => Invariant::Ledger,
            Self::Deduplication => Invariant::Replay,
            Self::Epoch | Self::TransactionTimeout => Invariant::Epochs,
            Self::IdempotencyKey | Self::SagaHold => Invariant::Money,
        }
    }

    /// The installation that it needs.
    pub fn setup(self) -> Setup {
        let usual = Setup {
            without: self.name(),
            ..Setup::default()
        };
        match self {
            // With one lane, the batch that is stopped is the one that is killed.
            Self::Fencing => Setup {
                processors: 2,
                lanes: 1,
                ..usual
            },
            Self::TransactionTimeout => Setup { processors: 2, ..usual },
            Self::Deduplication => Setup {
                mix: Mix {
                    repeated: 20,
                    ..Mix::ODD
                },
                ..usual
            },
            Self::IdempotencyKey | Self::SagaHold => Setup { rail: true, ..usual },
            _ => usual,
        }
    }

    /// Does what the safeguard guards against.
    ///
    /// # Errors
    /// When the trial does not come to where it could be noticed.
    pub async fn run(self, world: &mut World) -> Result<()> {
        match self {
            Self::Compensation => killed_at(world, "lane.prepared").await,
            Self::OffsetsLast => killed_at(world, "lane.decided").await,
            Self::Epoch => killed_at(world, "lane.polled").await,
            Self::Undo => {
                world
                    .strike_and_recover(FIRST, Armed::at("lane.prepared", Fault::Error, BATCH))
                    .await
            }
            Self::HighWatermark => {
                repeat_decisions(world).await?;
                world.recovered(Instant::now()).await
            }
            Self::Watermark | Self::Deduplication => world.recovered(Instant::now()).await,
            Self::Fencing => fencing(world).await,
            Self::TransactionTimeout => transaction_timeout(world).await,
            Self::IdempotencyKey => {
                let faults = Faults {
                    silent_done: 10,
                    ..Faults::default()
                };
                let rail = world.rail.as_ref().context("the trial has no rail")?;
                rail.order(faults).await?;
                world.recovered(Instant::now()).await?;
                world.traffic.passes(SAGA_EVENTS).await
            }
            Self::SagaHold => {
                world.recovered(Instant::now()).await?;
                world.traffic.passes(SAGA_EVENTS).await
            }
        }
    }
}

async fn killed_at(world: &mut World, point: &'static str) -> Result<()> {
    world
        .strike_and_recover(FIRST, Armed::at(point, Fault::Kill, BATCH))
        .await
}

/// A lane sleeps right before it prepares a batch; another processor takes over and comes as far as having compensated;
/// then the first lane prepares its batch after all, and dies. The rows of a lane that lost its partitions are in the way
/// of the lane that has them.
async fn fencing(world: &mut World) -> Result<()> {
    let faults = [
        Armed::at("ledger.preparing", Fault::Stop, BATCH),
        Armed::at("ledger.prepared", Fault::Kill, BATCH),
    ];
    world.kill(FIRST)?;
    world.launch(FIRST, &faults)?;
    world.stands(FIRST).await?;
    world.note("Processor(0) stopped before it prepares");
    world.launch(SECOND, &[Armed::at("takeover.compensation", Fault::Stop, 1)])?;
    world.stands(SECOND).await?;
    world.go_on(FIRST)?;
    world.process(FIRST)?.ended().await?;
    world.note("Processor(0) killed after it prepared");
    world.go_on(SECOND)?;
    world.launch(FIRST, &[])?;
    world.recovered(Instant::now()).await
}

/// A lane dies with an open transaction, and a processor of another name takes over, which cannot fence it.
async fn transaction_timeout(world: &mut World) -> Result<()> {
    world
        .strike(FIRST, Armed::at("lane.settled", Fault::Kill, BATCH))
        .await?;
    world.launch(SECOND, &[])?;
    world.watch.holds_back(World::longest_held_back()).await?;
    // The first one fences what it left open, and everything goes on.
    world.launch(FIRST, &[])?;
    world.recovered(Instant::now()).await
}
