//! The scenarios: what breaks in a trial of parts that are as they should be. Each ends with everything working again.
//!
//! Comes after [`super::world`] has started, before its checks; chosen by [`super::options`].

use std::time::Instant;

use anyhow::{Context, Result};
use sluice_proto::topics;

use super::faults::{Armed, Fault, GATEWAY, PROCESSOR};
use super::surroundings;
use super::world::{HOLD_EVENTS, Part, Setup, World};
use crate::mix::Mix;
use crate::{ledger, wait};

/// Faults that are injected in one trial.
const STRIKES: usize = 5;
/// Changes of the group in one trial.
const CHANGES: usize = 6;
/// Events from one change of the group to the next: about two seconds.
const CHANGE_EVENTS: usize = 1_500;
/// Events between two poisoned records.
const POISON_EVENTS: usize = 100;
/// Poisoned records in one trial.
const POISONED: usize = 40;
/// Events during which Postgres does not answer for longer than a lane waits for it.
const LONG_STALL_EVENTS: usize = 9_000;
/// Newest decisions of each partition that are written again: fewer than a gateway looks back at when it starts.
const AGAIN: usize = 15;
const FIRST: Part = Part::Processor(0);
const SECOND: Part = Part::Processor(1);

const PROCESSOR_FAULTS: [Fault; 8] = [
    Fault::Kill,
    Fault::Kill,
    Fault::Stop,
    Fault::Error,
    Fault::Panic,
    Fault::Delay(50),
    Fault::Delay(1_500),
    Fault::Delay(3_000),
];
const GATEWAY_FAULTS: [Fault; 4] = [Fault::Kill, Fault::Stop, Fault::Delay(50), Fault::Delay(1_500)];

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "`about` says what each is")]
pub enum Scenario {
    ProcessorKills,
    ProcessorFaults,
    GatewayFaults,
    Zombie,
    Postgres,
    PostgresLock,
    Rebalance,
    HotKey,
    Poison,
    LateFlood,
    SlowSubscriber,
    Network,
    Repeated,
    Saga,
    Registry,
    Snapshots,
    RuleSets,
    Schemas,
    Clocks,
    FullDisk,
    Cluster,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::ProcessorKills,
        Self::ProcessorFaults,
        Self::GatewayFaults,
        Self::Zombie,
        Self::Postgres,
        Self::PostgresLock,
        Self::Rebalance,
        Self::HotKey,
        Self::Poison,
        Self::LateFlood,
        Self::SlowSubscriber,
        Self::Network,
        Self::Repeated,
        Self::Saga,
        Self::Registry,
        Self::Snapshots,
        Self::RuleSets,
        Self::Schemas,
        Self::Clocks,
        Self::FullDisk,
        Self::Cluster,
    ];

    /// Its name as an option.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProcessorKills => "processor-kills",
            Self::ProcessorFaults => "processor-faults",
            Self::GatewayFaults => "gateway-faults",
            Self::Zombie => "zombie",
            Self::Postgres => "postgres",
            Self::PostgresLock => "postgres-lock",
            Self::Rebalance => "rebalance",
            Self::HotKey => "hot-key",
            Self::Poison => "poison",
            Self::LateFlood => "late-flood",
            Self::SlowSubscriber => "slow-subscriber",
            Self::Network => "network",
            Self::Repeated => "repeated",
            Self::Saga => "saga",
            Self::Registry => "registry",
            Self::Snapshots => "snapshots",
            Self::RuleSets => "rule-sets",
            Self::Schemas => "schemas",
            Self::Clocks => "clocks",
            Self::FullDisk => "full-disk",
            Self::Cluster => "cluster",
        }
    }

    /// What it breaks.
    pub const fn about(self) -> &'static str {
        match self {
            Self::ProcessorKills => "the processor is killed between any two steps of a batch and of a takeover",
            Self::ProcessorFaults => "there it is killed or stopped, panics, fails or is slow",
            Self::GatewayFaults => "the gateway is killed, stopped or slow while it produces, acknowledges or delivers",
            Self::Zombie => "a processor is stopped at any step until another has taken over, and then goes on",
            Self::Postgres => "Postgres crashes, at any moment and right before and after the commit of a batch",
            Self::PostgresLock => "somebody locks the ledger or its owners",
            Self::Rebalance => "processors join, leave and die every two seconds",
            Self::HotKey => "most payments are of four accounts, and the processor is killed",
            Self::Poison => "every hundredth record cannot be read, and the processor is killed",
            Self::LateFlood => "half of the payments come an hour late, and the processor is killed",
            Self::SlowSubscriber => "a subscriber is ten times slower than the payments, and the gateway is killed",
            Self::Network => "connections of clients and to Postgres are cut and held up",
            Self::Repeated => "decisions stand in the topic again, as a delayed end of a transaction leaves them",
            Self::Saga => "the payment rail fails, is silent and goes away, and processors are killed",
            Self::Registry => "the schema registry is away or silent, and the processor is killed meanwhile",
            Self::Snapshots => "the processor finds its snapshots cut off, changed, mixed up or gone",
            Self::RuleSets => "rule sets are applied in mid-stream, and the processor is killed",
            Self::Schemas => "payments come with newer schemas, and the processor is killed",
            Self::Clocks => "the servers' wall clocks jump ahead and back, and servers are killed meanwhile",
            Self::FullDisk => "the disks of the snapshots and of the ledger are full (needs root)",
            Self::Cluster => "three brokers are killed, stopped and cut off from the servers, on bad networks",
        }
    }

    /// The installation that it needs.
    pub fn setup(self) -> Setup {
        let usual = Setup::default();
        let odd = Mix::ODD;
        match self {
            Self::Zombie | Self::Rebalance => Setup { processors: 2, ..usual },
            Self::HotKey => Setup {
                mix: Mix { hot: 80, ..odd },
                ..usual
            },
            Self::LateFlood => Setup {
                mix: Mix { late: 50, ..odd },
                ..usual
            },
            Self::SlowSubscriber => Setup {
                mix: Mix {
                    tick_events: 50,
                    pause_after_ticks: 0,
                    ..odd
                },
                slow_subscriber: true,
                ..usual
            },
            Self::Network | Self::Registry => Setup { proxied: true, ..usual },
            Self::Snapshots | Self::FullDisk => Setup {
                snapshots: true,
                ..usual
            },
            Self::Clocks => Setup {
                stepped_clocks: true,
                ..usual
            },
            Self::Saga => Setup {
                processors: 2,
                rail: true,
                ..usual
            },
            Self::Cluster => Setup {
                processors: 2,
                two_gateways: true,
                clustered: true,
                ..usual
            },
            _ => usual,
        }
    }

    /// Whether it runs only when it is asked for by name, because it needs root.
    pub const fn is_apart(self) -> bool {
        matches!(self, Self::Cluster | Self::FullDisk)
    }

    /// Breaks it.
    ///
    /// # Errors
    /// When something does not go on by itself.
    pub async fn run(self, world: &mut World) -> Result<()> {
        match self {
            Self::ProcessorKills => strikes(world, &[Fault::Kill]).await,
            Self::ProcessorFaults => strikes(world, &PROCESSOR_FAULTS).await,
            Self::GatewayFaults => gateway_faults(world).await,
            Self::Zombie => zombie(world).await,
            Self::Postgres => postgres(world).await,
            Self::PostgresLock => postgres_lock(world).await,
            Self::Rebalance => rebalance(world).await,
            Self::HotKey | Self::LateFlood => kills(world).await,
            Self::Poison => poison(world).await,
            Self::SlowSubscriber => slow_subscriber(world).await,
            Self::Network => network(world).await,
            Self::Repeated => repeated(world).await,
            Self::Saga => super::money::run(world).await,
            Self::Registry => surroundings::registry(world).await,
            Self::Snapshots => surroundings::snapshots(world).await,
            Self::RuleSets => surroundings::rule_sets(world).await,
            Self::Schemas => surroundings::schemas(world).await,
            Self::Clocks => super::clock::run(world).await,
            Self::FullDisk => surroundings::full_disk(world).await,
            Self::Cluster => super::cluster_faults::run(world).await,
        }
    }
}

async fn strikes(world: &mut World, faults: &[Fault]) -> Result<()> {
    for _strike in 0..STRIKES {
        let armed = Armed::choose(&mut world.rng, &PROCESSOR, faults);
        world.strike_and_recover(FIRST, armed).await?;
    }
    Ok(())
}

async fn gateway_faults(world: &mut World) -> Result<()> {
    for _strike in 0..STRIKES {
        let armed = Armed::choose(&mut world.rng, &GATEWAY, &GATEWAY_FAULTS);
        world.strike_and_recover(Part::Gateway, armed).await?;
    }
    Ok(())
}

async fn zombie(world: &mut World) -> Result<()> {
    for (asleep, awake, number) in [(FIRST, SECOND, 1), (SECOND, FIRST, 0)] {
        world.launch(awake, &[])?;
        world.stack.ready().await?;
        let armed = Armed::choose(&mut world.rng, &PROCESSOR[..9], &[Fault::Stop]);
        world.strike(asleep, armed).await?;
        let since = Instant::now();
        let partitions = usize::try_from(world.stack.partitions())?;
        wait::until("the other processor has taken everything over", async || {
            Ok((world.owned_by(number).await? == partitions).then_some(()))
        })
        .await?;
        world.recovered(since).await?;
        // It goes on in the middle of its batch, and knows nothing.
        world.go_on(asleep)?;
        world.recovered(Instant::now()).await?;
    }
    Ok(())
}

async fn postgres(world: &mut World) -> Result<()> {
    // All in one life of the processor: the registry lives on the same Postgres, and takes half a minute to get over a crash,
    // for which a processor that starts has to wait.
    let first = world.rng.u64(1..=40);
    let points = ["ledger.preparing", "ledger.prepared", "lane.committed"];
    let armed = points.iter().zip([first, first + 40, first + 80]);
    let armed: Vec<Armed> = armed.map(|(point, hit)| Armed::at(point, Fault::Stop, hit)).collect();
    world.kill(FIRST)?;
    world.launch(FIRST, &armed)?;
    for one in armed {
        world.stands(FIRST).await?;
        world.note(format!("{FIRST:?} {one}"));
        world.crash_postgres().await?;
        world.go_on(FIRST)?;
    }
    world.recovered(Instant::now()).await?;
    world.crash_postgres().await?;
    world.recovered(Instant::now()).await
}

async fn postgres_lock(world: &mut World) -> Result<()> {
    const LOCKS: [&str; 2] = [
        "BEGIN; LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE",
        "BEGIN; SELECT 1 FROM part_owner FOR UPDATE",
    ];
    for events in [HOLD_EVENTS, LONG_STALL_EVENTS] {
        let mut connection = ledger::connect(&world.stack).await?;
        let lock = LOCKS[world.rng.usize(..LOCKS.len())];
        sqlx::raw_sql(lock).execute(&mut connection).await?;
        world.note(lock);
        world.traffic.passes(events).await?;
        sqlx::raw_sql("ROLLBACK").execute(&mut connection).await?;
        world.recovered(Instant::now()).await?;
    }
    Ok(())
}

async fn rebalance(world: &mut World) -> Result<()> {
    for change in 0..CHANGES {
        let part = if change % 2 == 0 { SECOND } else { FIRST };
        if world
            .process(part)
            .is_ok_and(|process| process.runs().is_ok_and(|runs| runs))
        {
            if world.rng.bool() {
                world.note(format!("{part:?} leaves"));
                world.process(part)?.terminate().await?;
            } else {
                world.kill(part)?;
            }
        }
        world.traffic.passes(CHANGE_EVENTS).await?;
        world.note(format!("{part:?} joins"));
        world.launch(part, &[])?;
        world.traffic.passes(CHANGE_EVENTS).await?;
    }
    world.recovered(Instant::now()).await
}

async fn kills(world: &mut World) -> Result<()> {
    for _kill in 0..3 {
        let events = world.rng.usize(100..1_000);
        world.traffic.passes(events).await?;
        world.kill(FIRST)?;
        world.launch(FIRST, &[])?;
        world.recovered(Instant::now()).await?;
    }
    Ok(())
}

async fn poison(world: &mut World) -> Result<()> {
    let tenant = world.traffic.tenant().name.clone();
    for number in 0..POISONED {
        world.traffic.passes(POISON_EVENTS).await?;
        let garbage: Vec<u8> = (0..world.rng.usize(0..64)).map(|_| world.rng.u8(..)).collect();
        let account = format!("poisoned-{number}");
        crate::topics::write_payment(&world.stack, &tenant, &account, garbage).await?;
        world.note("poisoned record");
        if number % 15 == 14 {
            world.kill(FIRST)?;
            world.launch(FIRST, &[])?;
            world.recovered(Instant::now()).await?;
        }
    }
    world.recovered(Instant::now()).await
}

async fn slow_subscriber(world: &mut World) -> Result<()> {
    world.note("slow subscriber");
    world.traffic.passes(15_000).await?;
    world.kill(Part::Gateway)?;
    world.launch(Part::Gateway, &[])?;
    world.recovered(Instant::now()).await?;
    world.traffic.passes(15_000).await
}

async fn network(world: &mut World) -> Result<()> {
    for events in [0, HOLD_EVENTS, LONG_STALL_EVENTS] {
        for to_postgres in [false, true] {
            let network = world.network.as_ref().context("the network is not proxied")?;
            let proxy = if to_postgres {
                &network.postgres
            } else {
                &network.clients
            };
            let name = if to_postgres { "to Postgres" } else { "of clients" };
            if events == 0 {
                proxy.cut();
                world.note(format!("connections {name} cut"));
            } else if to_postgres || events < LONG_STALL_EVENTS {
                proxy.stall(true);
                world.traffic.passes(events).await?;
                proxy.stall(false);
                world.note(format!("connections {name} held up"));
            }
            world.recovered(Instant::now()).await?;
        }
    }
    Ok(())
}

async fn repeated(world: &mut World) -> Result<()> {
    for restart in [false, true, false] {
        repeat_decisions(world).await?;
        world.recovered(Instant::now()).await?;
        if restart {
            world.kill(Part::Gateway)?;
            world.launch(Part::Gateway, &[])?;
            world.recovered(Instant::now()).await?;
        }
    }
    Ok(())
}

/// Writes the newest decisions of every partition again, as they are.
///
/// # Errors
/// When Kafka does not take them.
pub async fn repeat_decisions(world: &mut World) -> Result<()> {
    let decisions = crate::topics::read(&world.stack, topics::DECISIONS).await?;
    for partition in 0..world.stack.partitions() {
        let of_partition = decisions.iter().filter(|record| record.partition == partition);
        let mut newest: Vec<_> = of_partition.rev().take(AGAIN).cloned().collect();
        newest.reverse();
        world.forged += newest.len();
        crate::topics::write_again(&world.stack, topics::DECISIONS, newest).await?;
    }
    world.note("decisions written again");
    Ok(())
}
