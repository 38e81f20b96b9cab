//! The scenario of the saga: the rail fails, is silent and goes away, processors die at any moment, and people end reviews
//! and take payments back, all at once and for as long as is asked.
//!
//! A part of [`super::scenario`]; [`crate::money`] looks on meanwhile and compares afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sluice_proto::pb::SettleAction;

use super::world::{Part, World};
use crate::rail::faults::Faults;
use crate::{ledger, money};

/// A tenth of the calls fails, 5 % are not answered in time, some of them done at once and some late; some payments are left
/// undone or refused.
pub const FAULTS: Faults = Faults {
    unavailable: 6,
    failed_done: 2,
    failed_undone: 2,
    silent_done: 3,
    silent_late: 2,
    undone: 2,
    refused: 1,
    away: false,
};
/// Events from one kill to the next: four to eight seconds.
const BETWEEN_EVENTS: std::ops::Range<usize> = 3_000..6_000;
/// Reviews that people end between two kills.
const VERDICTS: i64 = 6;
/// Part of the time for which the rail is away, and the longest.
const AWAY_PART: u32 = 5;
const AWAY_LONGEST: Duration = Duration::from_secs(60);

/// Runs until the time is over.
///
/// # Errors
/// When something does not go on by itself.
pub async fn run(world: &mut World) -> Result<()> {
    let lasts = world.lasts;
    let away_for = (lasts / AWAY_PART).min(AWAY_LONGEST);
    let began = Instant::now();
    let mut away_since = None;
    let mut was_away = false;
    order(world, FAULTS).await?;
    world.launch(Part::Processor(1), &[])?;
    world.stack.ready().await?;
    while began.elapsed() < lasts {
        let events = world.rng.usize(BETWEEN_EVENTS);
        world.traffic.passes(events).await?;
        let part = Part::Processor(world.rng.usize(..2));
        world.kill(part)?;
        world.launch(part, &[])?;
        speak(world).await?;
        match away_since {
            None if !was_away && began.elapsed() >= lasts / 3 => {
                // Stopped and not refused: what was sent is done when it goes on.
                rail(world)?.process.signal("STOP")?;
                world.note("rail stopped");
                (away_since, was_away) = (Some(Instant::now()), true);
            }
            Some(since) if since.elapsed() >= away_for => {
                rail(world)?.process.signal("CONT")?;
                world.note("rail goes on");
                away_since = None;
            }
            _ => {}
        }
    }
    if away_since.is_some() {
        rail(world)?.process.signal("CONT")?;
        world.note("rail goes on");
    }
    order(world, Faults::default()).await?;
    world.recovered(Instant::now()).await
}

/// The rail, which this scenario has.
fn rail(world: &mut World) -> Result<&mut crate::rail::client::Rail> {
    world.rail.as_mut().context("the trial has no rail")
}

async fn order(world: &mut World, faults: Faults) -> Result<()> {
    rail(world)?.order(faults).await
}

/// People end some reviews, each way, and take back what is captured, under way, or released.
async fn speak(world: &mut World) -> Result<()> {
    let tenant = world.traffic.tenant().clone();
    let mut connection = ledger::connect(&world.stack).await?;
    let mut said = Vec::new();
    for (number, payment) in (0..).zip(money::some(&mut connection, "HELD", VERDICTS).await?) {
        let action = match number % 3 {
            0 => SettleAction::Approve,
            1 => SettleAction::Decline,
            _ => SettleAction::Cancel,
        };
        said.push((payment, action));
    }
    for state in ["CAPTURING", "CAPTURED", "RELEASED"] {
        let some = money::some(&mut connection, state, 2).await?;
        said.extend(some.into_iter().map(|payment| (payment, SettleAction::Cancel)));
    }
    // Payments that have no row of their own, and some that the saga has not met yet.
    let newest = "SELECT account_id, event_id::text FROM ledger ORDER BY part, off DESC LIMIT 2";
    let newest: Vec<(String, String)> = sqlx::query_as(newest).fetch_all(&mut connection).await?;
    said.extend(newest.into_iter().map(|payment| (payment, SettleAction::Cancel)));
    for ((account, id), action) in said {
        money::settle(&world.stack, &tenant, (&account, &id), action).await?;
    }
    Ok(())
}
