//! What breaks in the scenario `cluster`: brokers, and the networks between them and the servers.
//!
//! A part of [`super::scenario`]; [`super::cluster`] does what is done here.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::cluster::{BROKERS, Cluster, SMALL};
use super::faults::{Armed, Fault};
use super::world::{Part, World};
use crate::process::Place;
use crate::wait;

const FIRST: Part = Part::Processor(0);
const SECOND: Part = Part::Processor(1);
/// For how long a network is bad, or a broker stands still: longer than replicas may lag.
const BAD: Duration = Duration::from_secs(6);
/// A request is sent within this time, and nobody's session expires.
const SENDING: Duration = Duration::from_millis(500);
/// The latest batch at whose commit the coordinator dies.
const LATEST_BATCH: u64 = 60;

/// What is done to the cluster.
#[derive(Clone, Copy, Debug)]
enum Blow {
    KillInTurn,
    KillCoordinator,
    StopFollower,
    StopTwo,
    CutOffProcessor,
    CutOffGateway,
    LosePackets,
    SlowDown,
    FillDisk,
}

/// Everything once, in an order that the seed decides. Each ends with the whole cluster in sync.
///
/// # Errors
/// When something does not go on by itself.
pub async fn run(world: &mut World) -> Result<()> {
    let mut blows = [
        Blow::KillInTurn,
        Blow::KillCoordinator,
        Blow::StopFollower,
        Blow::StopTwo,
        Blow::CutOffProcessor,
        Blow::CutOffGateway,
        Blow::LosePackets,
        Blow::SlowDown,
        Blow::FillDisk,
    ];
    world.rng.shuffle(&mut blows);
    world.launch(SECOND, &[])?;
    world.stack.ready().await?;
    for blow in blows {
        let done = match blow {
            Blow::KillInTurn => kill_in_turn(world).await,
            Blow::KillCoordinator => kill_coordinator(world).await,
            Blow::StopFollower => stop(world, 1).await,
            Blow::StopTwo => stop(world, 2).await,
            Blow::CutOffProcessor => cut_off_processor(world).await,
            Blow::CutOffGateway => cut_off_gateway(world).await,
            Blow::LosePackets => bad_networks(world, "loses packets", Cluster::lose_packets).await,
            Blow::SlowDown => bad_networks(world, "is slow", Cluster::slow_down).await,
            Blow::FillDisk => fill_disk(world).await,
        };
        done.with_context(|| format!("{blow:?}"))?;
        cluster(world)?.in_sync().await?;
    }
    Ok(())
}

fn cluster(world: &mut World) -> Result<&mut Cluster> {
    world.cluster.as_mut().context("the trial has no cluster")
}

/// Each broker dies under load and comes back before the next one dies.
async fn kill_in_turn(world: &mut World) -> Result<()> {
    for number in 0..BROKERS {
        let events = world.rng.usize(100..1_000);
        world.traffic.passes(events).await?;
        cluster(world)?.kill(number)?;
        world.note(format!("broker {number} kill at any moment"));
        world.recovered(Instant::now()).await?;
        cluster(world)?.start_again(number)?;
        cluster(world)?.in_sync().await?;
    }
    world.recovered(Instant::now()).await
}

/// A lane stands before its commit; the coordinator that it is going to ask stops, so that the request is under way, and dies
/// with it.
async fn kill_coordinator(world: &mut World) -> Result<()> {
    let batch = world.rng.u64(1..=LATEST_BATCH);
    world
        .strike(FIRST, Armed::at("lane.prepared", Fault::Stop, batch))
        .await?;
    let coordinator = cluster(world)?.coordinator().await?;
    cluster(world)?.brokers[coordinator].signal("STOP")?;
    world.go_on(FIRST)?;
    wait::pause(SENDING).await;
    cluster(world)?.kill(coordinator)?;
    world.note(format!("broker {coordinator} kill of the coordinator, in mid-commit"));
    world.recovered(Instant::now()).await?;
    cluster(world)?.start_again(coordinator)
}

/// So many brokers stand still for longer than replicas may lag: with one, the others go on alone; with two, nobody may write.
async fn stop(world: &mut World, count: usize) -> Result<()> {
    let mut numbers: Vec<usize> = (0..BROKERS).collect();
    world.rng.shuffle(&mut numbers);
    for number in &numbers[..count] {
        cluster(world)?.brokers[*number].signal("STOP")?;
        world.note(format!("broker {number} stopped"));
    }
    wait::pause(BAD).await;
    for number in &numbers[..count] {
        cluster(world)?.brokers[*number].signal("CONT")?;
    }
    world.recovered(Instant::now()).await
}

/// The group has a new member while an older one cannot be reached.
async fn cut_off_processor(world: &mut World) -> Result<()> {
    world.kill(SECOND)?;
    let place = cluster(world)?.processor(0);
    world.launch(SECOND, &[])?;
    cluster(world)?.cut_off(&place, &[0, 1, 2])?;
    world.note(format!("{FIRST:?} cut off from every broker during a rebalance"));
    wait::pause(BAD).await;
    cluster(world)?.mend(&place)?;
    world.recovered(Instant::now()).await
}

/// One broker and two of them cannot be reached by the gateway that publishes, but by everybody else.
async fn cut_off_gateway(world: &mut World) -> Result<()> {
    let place = cluster(world)?.gateway(0);
    let first = world.rng.usize(..BROKERS);
    for unreachable in [&[first][..], &[first, (first + 1) % BROKERS]] {
        cluster(world)?.cut_off(&place, unreachable)?;
        world.note(format!("the gateway cut off from brokers {unreachable:?}"));
        wait::pause(BAD).await;
        cluster(world)?.mend(&place)?;
        world.recovered(Instant::now()).await?;
    }
    Ok(())
}

/// The networks of a broker, of the gateway and of a processor are bad, one after the other.
async fn bad_networks(world: &mut World, how: &str, make: fn(&Cluster, &Place) -> Result<()>) -> Result<()> {
    let broker = world.rng.usize(..BROKERS);
    let cluster_now = cluster(world)?;
    let places = [
        cluster_now.broker(broker),
        cluster_now.gateway(0),
        cluster_now.processor(0),
    ];
    for place in places {
        make(cluster(world)?, &place)?;
        world.note(format!("the network of {} {how}", place.namespace));
        wait::pause(BAD).await;
        cluster(world)?.mend(&place)?;
        world.recovered(Instant::now()).await?;
    }
    Ok(())
}

/// A broker's disk is full, so that it ends by itself; it comes back once there is room.
async fn fill_disk(world: &mut World) -> Result<()> {
    let events = world.rng.usize(100..1_000);
    world.traffic.passes(events).await?;
    cluster(world)?.fill_disk().await?;
    world.note(format!("the disk of broker {SMALL} is full"));
    world.recovered(Instant::now()).await?;
    cluster(world)?.free_disk()?;
    cluster(world)?.start_again(SMALL)?;
    cluster(world)?.in_sync().await?;
    world.recovered(Instant::now()).await
}
