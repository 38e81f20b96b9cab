//! What breaks during a soak: every kind of fault that the scenarios know, at random. The gateway and the processor that are
//! to grow old are stopped, cut off and left without Postgres, and only their companions are killed.
//!
//! Comes between two stretches of calm of [`super::run`].

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::chaos::faults::{Armed, Fault, GATEWAY, PROCESSOR};
use crate::chaos::world::{Part, World};
use crate::wait;

/// The processor that is killed.
pub const MORTAL: Part = Part::Processor(1);
/// The one that is only stopped.
const OLD: Part = Part::Processor(0);
const FAULTS: [Fault; 6] = [
    Fault::Kill,
    Fault::Kill,
    Fault::Stop,
    Fault::Error,
    Fault::Panic,
    Fault::Delay(1_500),
];
/// What can be injected into a gateway.
const GATEWAY_FAULTS: [Fault; 3] = [Fault::Kill, Fault::Stop, Fault::Delay(1_500)];
/// For how long a network passes nothing on.
const HELD_UP: Duration = Duration::from_secs(3);
/// A lane that is never idle does not come by there.
const IDLE: &str = "lane.flush";

/// Breaks something, mends what does not mend itself, and waits until everything works again. `hold_events` are as many as
/// are published in longer than a session's timeout.
///
/// # Errors
/// When it does not.
pub async fn strike(world: &mut World, hold_events: usize) -> Result<()> {
    match world.rng.u32(..100) {
        0..25 => kill(world).await,
        25..55 => inject(world).await,
        55..65 => stop(world, hold_events).await,
        65..75 => stop_gateway(world, hold_events).await,
        75..83 => {
            world.crash_postgres().await?;
            world.recovered(Instant::now()).await
        }
        _ => cut(world).await,
    }
}

async fn kill(world: &mut World) -> Result<()> {
    let part = if world.rng.bool() { MORTAL } else { Part::Gateway };
    world.kill(part)?;
    let since = Instant::now();
    world.launch(part, &[])?;
    world.recovered(since).await
}

async fn inject(world: &mut World) -> Result<()> {
    if world.rng.bool() {
        let armed = Armed::choose(&mut world.rng, &GATEWAY, &GATEWAY_FAULTS);
        return world.strike_and_recover(Part::Gateway, armed).await;
    }
    let busy: Vec<_> = PROCESSOR.iter().filter(|point| !point.name.starts_with(IDLE)).collect();
    let armed = Armed::choose(&mut world.rng, &busy.into_iter().copied().collect::<Vec<_>>(), &FAULTS);
    world.strike_and_recover(MORTAL, armed).await
}

async fn stop(world: &mut World, hold_events: usize) -> Result<()> {
    world.process(OLD)?.signal("STOP")?;
    world.note(format!("{OLD:?} stopped at any moment"));
    world.traffic.passes(hold_events).await?;
    world.go_on(OLD)?;
    world.recovered(Instant::now()).await
}

async fn stop_gateway(world: &mut World, hold_events: usize) -> Result<()> {
    let old = &mut world.beside.as_mut().context("there is one gateway only")?.process;
    old.signal("STOP")?;
    world.note("the older gateway stopped at any moment");
    world.traffic.passes(hold_events).await?;
    let old = &mut world.beside.as_mut().context("there is one gateway only")?.process;
    old.signal("CONT")?;
    world.recovered(Instant::now()).await
}

async fn cut(world: &mut World) -> Result<()> {
    let (to_postgres, hold) = (world.rng.bool(), world.rng.bool());
    let network = world.network.as_ref().context("the network is not proxied")?;
    let (proxy, name) = if to_postgres {
        (&network.postgres, "to Postgres")
    } else {
        (&network.clients, "of clients")
    };
    let how = if hold {
        proxy.stall(true);
        wait::pause(HELD_UP).await;
        proxy.stall(false);
        "held up"
    } else {
        proxy.cut();
        "cut"
    };
    world.note(format!("connections {name} {how}"));
    world.recovered(Instant::now()).await
}
