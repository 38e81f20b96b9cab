//! One trial's installation: servers into which faults can be injected, traffic through them, and somebody who looks on.
//!
//! Comes before [`super::scenario`] and [`super::broken`], which break it; [`super::run`] has it checked.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;
use sqlx::{Connection, PgConnection};

use super::clock::Clocks;
use super::cluster::{self, Cluster};
use super::faults::{Armed, Fault};
use super::surroundings;
use super::watch::Watch;
use crate::checker::{Invariant, Violations};
use crate::history::History;
use crate::mix::Mix;
use crate::money::{self, Audit};
use crate::process::{self, Process};
use crate::proxy::{self, Proxy};
use crate::rail::client::Rail;
use crate::stack::{self, Gateway, Stack, Tenant};
use crate::traffic::{self, Outcomes, Plan, Traffic};
use crate::wait;

/// After how long without a heartbeat a lane's partitions go to another one: as short as the broker allows.
const SESSION_TIMEOUT_MS: u64 = 2_000;
/// After how long the broker aborts the transaction of a lane that went silent.
const TRANSACTION_TIMEOUT_MS: u64 = 5_000;
/// How much longer than a transaction's timeout decisions may be held back by it.
const HELD_BACK_SLACK: Duration = Duration::from_secs(5);
/// How much longer decisions may be held back where brokers are away: for the trial's longest fault, and until others have
/// taken over from them.
const LONGEST_OUTAGE: Duration = Duration::from_secs(15);
/// Events during which a process stands still, or something is locked: longer than a session's timeout.
pub const HOLD_EVENTS: usize = 2_500;
/// For how long a gateway stands still whose clients publish by it.
const GATEWAY_HOLD: Duration = Duration::from_secs(3);
/// How long a call of the rail may take: less than a call that is never answered.
const RAIL_TIMEOUT_MS: u64 = 1_000;
/// How long the breaker stays open.
const BREAKER_OPEN_MS: u64 = 3_000;
/// How long a review waits: shorter than a trial, so that some end by it.
const REVIEW_DEADLINE_S: u64 = 15;
/// Of tokens that both gateways of a cluster take.
const TOKEN_SECRET: &str = "a secret of thirty-two bytes, or more";
/// What the servers write into their logs with each fault.
const INJECTED: &str = "fault injected";

/// How a trial's installation differs from the usual one.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Processors that may run; the first of them does from the beginning.
    pub processors: usize,
    /// Lanes of each.
    pub lanes: u32,
    /// Partitions of every topic.
    pub partitions: u32,
    /// What is published.
    pub mix: Mix,
    /// Events during which a process stands still: as many as are published in longer than a session's timeout.
    pub hold_events: usize,
    /// Whether a second subscriber is slow.
    pub slow_subscriber: bool,
    /// Whether clients reach the gateway, and servers Postgres and the registry, by way of proxies.
    pub proxied: bool,
    /// The safeguards that are taken out.
    pub without: &'static str,
    /// Whether there is a payment rail.
    pub rail: bool,
    /// Whether a second gateway, which nobody kills, delivers the decisions.
    pub two_gateways: bool,
    /// Whether the processor has a directory for snapshots, and makes one every second.
    pub snapshots: bool,
    /// Whether there are three brokers, and every server has a network of its own.
    pub clustered: bool,
    /// Whether the servers' wall clocks can be set.
    pub stepped_clocks: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            processors: 1,
            lanes: 2,
            partitions: 4,
            mix: Mix::ODD,
            hold_events: HOLD_EVENTS,
            slow_subscriber: false,
            proxied: false,
            without: "",
            rail: false,
            two_gateways: false,
            snapshots: false,
            clustered: false,
            stepped_clocks: false,
        }
    }
}

impl Setup {
    /// Traffic that is published by the first of these URLs and received by the second.
    fn plan(&self, [publish, subscribe]: &[String; 2], seed: u64) -> Plan {
        Plan {
            mix: self.mix.clone(),
            seed,
            slow_subscriber: self.slow_subscriber,
            subscribe_url: subscribe.clone(),
            ..Plan::plain(publish)
        }
    }
}

/// A process that can be struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The gateway.
    Gateway,
    /// One of the processors.
    Processor(usize),
}

/// The proxies of a network that can fail.
#[derive(Debug)]
pub struct Network {
    /// Between the clients and the gateway.
    pub clients: Proxy,
    /// Between the processors and Postgres.
    pub postgres: Proxy,
    /// Between both servers and the schema registry.
    pub registry: Proxy,
}

/// An installation under trial.
#[derive(Debug)]
pub struct World {
    /// Its parts.
    pub stack: Stack,
    /// What flows through it.
    pub traffic: Traffic,
    /// Who looks on.
    pub watch: Watch,
    /// Where the choices come from.
    pub rng: Rng,
    /// The second gateway, where there are two.
    pub beside: Option<Gateway>,
    /// By which payments are published, and by which decisions are received.
    urls: [String; 2],
    /// The brokers and their network, where there are several.
    pub cluster: Option<Cluster>,
    /// The network, where it is proxied.
    pub network: Option<Network>,
    /// The servers' wall clocks, where they can be set.
    pub clocks: Option<Clocks>,
    /// Faults so far.
    pub faults: Vec<String>,
    /// How long it took each time until every partition decided new payments.
    pub recoveries: Vec<Duration>,
    /// Decisions that the trial itself wrote again.
    pub forged: usize,
    /// The payment rail, and who looks after the money.
    pub rail: Option<Rail>,
    audit: Option<Audit>,
    setup: Setup,
    /// For how long a scenario goes on that has no end of its own.
    pub lasts: Duration,
}

/// What is left when the traffic has ended.
#[derive(Debug)]
pub struct Left {
    /// The parts, which still run.
    pub stack: Stack,
    /// Their brokers, which end with this.
    pub cluster: Option<Cluster>,
    /// What the clients were told.
    pub outcomes: Outcomes,
    /// What stands in the topics and the ledger.
    pub history: History,
}

impl World {
    /// Starts the gateway, the first processor and the traffic.
    ///
    /// # Errors
    /// When a part does not become ready.
    pub async fn start(setup: Setup, seed: u64, lasts: Duration) -> Result<Self> {
        let mut rng = Rng::with_seed(seed);
        let mut cluster = None;
        if setup.clustered {
            cluster = Some(Cluster::start().await?);
        }
        let mut stack = prepare(&setup, cluster.as_mut()).await?;
        let mut network = None;
        let mut url = stack.gateway_url();
        if setup.proxied {
            let clients = Proxy::start(stack.gateway_address()).await?;
            let (postgres, database) = proxy::postgres(&stack.database_url()?).await?;
            stack.set_processor_env("SLUICE_POSTGRES", &database);
            let (registry, registry_url) = proxy::http(&stack.servers().registry).await?;
            stack.set_env("SLUICE_REGISTRY", &registry_url);
            url = clients.url();
            network = Some(Network {
                clients,
                postgres,
                registry,
            });
        }
        let clocks = setup.stepped_clocks.then(|| Clocks::install(&mut stack)).transpose()?;
        let mut rail = None;
        if setup.rail {
            rail = Some(rail_for(&mut stack).await?);
        }
        stack.start_gateway()?;
        stack.start_processor(0)?;
        stack.ready().await?;
        let mut beside = None;
        if setup.two_gateways {
            const NAME: &str = "gateway-beside";
            let mut gateway = match &cluster {
                Some(cluster) => stack.another_gateway_in(NAME, &cluster.gateway(1))?,
                None => stack.another_gateway(NAME)?,
            };
            gateway.ready().await?;
            beside = Some(gateway);
        }
        let audit = rail.as_ref().map(|rail| Audit::start(&stack, rail)).transpose()?;
        let other = beside.as_ref().map_or_else(|| url.clone(), Gateway::url);
        let urls = [url, other];
        let plan = setup.plan(&urls, rng.u64(..));
        let watch = Watch::start(&stack)?;
        let mut traffic = Traffic::start_as(&stack, plan).await?;
        traffic.recovers(partitions(&stack)).await?;
        Ok(Self {
            stack,
            traffic,
            watch,
            rng,
            beside,
            urls,
            cluster,
            network,
            clocks,
            faults: Vec::new(),
            recoveries: Vec::new(),
            forged: 0,
            rail,
            audit,
            setup,
            lasts,
        })
    }

    /// Starts traffic of a tenant anew, after that before was stopped.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn publish_again(&mut self) -> Result<()> {
        let tenant = Some(self.traffic.tenant().clone());
        let plan = self.setup.plan(&self.urls, self.rng.u64(..));
        self.traffic = Traffic::start_as(&self.stack, Plan { tenant, ..plan }).await?;
        Ok(())
    }

    /// Starts more of the same traffic for another tenant, the other way round: published where the decisions of the first
    /// are received.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn publish_crosswise(&mut self, tenant: Tenant) -> Result<Traffic> {
        let [publish, subscribe] = self.urls.clone();
        let plan = self.setup.plan(&[subscribe, publish], self.rng.u64(..));
        let tenant = Some(tenant);
        Traffic::start_as(&self.stack, Plan { tenant, ..plan }).await
    }

    /// Notes a fault.
    pub fn note(&mut self, fault: impl Into<String>) {
        self.faults.push(fault.into());
    }

    /// A process that was started.
    ///
    /// # Errors
    /// When it was not.
    pub fn process(&mut self, part: Part) -> Result<&mut Process> {
        match part {
            Part::Gateway => self.stack.gateway(),
            Part::Processor(number) => self.stack.processor(number),
        }
    }

    /// Starts a process with faults to come.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self, part: Part, armed: &[Armed]) -> Result<()> {
        let armed: Vec<String> = armed.iter().map(Armed::to_string).collect();
        let armed = armed.join(";");
        let env = [("SLUICE_FAIL_POINTS", armed.as_str())];
        match part {
            Part::Gateway => self.stack.start_gateway_with(&env),
            Part::Processor(number) => self.stack.start_processor_with(number, &env),
        }
    }

    /// Kills a process at whatever it is doing, if it runs.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn kill(&mut self, part: Part) -> Result<()> {
        if self.process(part)?.runs()? {
            self.process(part)?.kill_9()?;
            self.note(format!("{part:?} kill at any moment"));
        }
        Ok(())
    }

    /// Starts a process anew with a fault to come, and waits until it has come.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn strike(&mut self, part: Part, armed: Armed) -> Result<()> {
        let before = self.injected(part)?;
        self.kill(part)?;
        self.launch(part, &[armed])?;
        wait::until(&format!("{part:?} meets {armed}"), async || {
            Ok((self.injected(part)? > before).then_some(()))
        })
        .await?;
        self.note(format!("{part:?} {armed}"));
        match armed.fault {
            Fault::Stop => self.stands(part).await,
            fault if fault.ends_the_processor() => {
                self.process(part)?.ended().await?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Waits until a process is stopped.
    ///
    /// # Errors
    /// When it is not.
    pub async fn stands(&mut self, part: Part) -> Result<()> {
        wait::until(&format!("{part:?} stands still"), async || {
            Ok(self.process(part)?.is_stopped()?.then_some(()))
        })
        .await
    }

    /// Lets a stopped process go on.
    ///
    /// # Errors
    /// When it has ended.
    pub fn go_on(&mut self, part: Part) -> Result<()> {
        self.process(part)?.signal("CONT")
    }

    /// Strikes, undoes what does not undo itself, and waits until everything works again.
    ///
    /// # Errors
    /// When it does not.
    pub async fn strike_and_recover(&mut self, part: Part, armed: Armed) -> Result<()> {
        self.strike(part, armed).await?;
        let mut since = Instant::now();
        match armed.fault {
            Fault::Kill | Fault::Panic => self.launch(part, &[])?,
            Fault::Stop => {
                match part {
                    // Its clients can publish no more than they can hold.
                    Part::Gateway => wait::pause(GATEWAY_HOLD).await,
                    Part::Processor(_) => self.traffic.passes(self.setup.hold_events).await?,
                }
                self.go_on(part)?;
                since = Instant::now();
            }
            Fault::Error | Fault::Delay(_) => {}
        }
        self.recovered(since).await
    }

    /// Waits until every partition decides new payments, and notes how long that took since the fault or its end.
    ///
    /// # Errors
    /// When one does not.
    pub async fn recovered(&mut self, since: Instant) -> Result<()> {
        self.traffic.recovers(partitions(&self.stack)).await?;
        self.recoveries.push(since.elapsed());
        self.stack.must_run()
    }

    /// Kills one of the Postgres processes that serve the processors. Postgres then ends all others, and recovers from its
    /// log as after a power failure.
    ///
    /// # Errors
    /// When there is none.
    pub async fn crash_postgres(&mut self) -> Result<()> {
        const QUERY: &str =
            "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND application_name = 'sluice-processor'";
        let url = self.stack.database_url()?;
        let database = url.rsplit('/').next().unwrap_or_default();
        let server = self.stack.servers().postgres.clone();
        let pids = wait::until("a processor is connected to Postgres", async || {
            // It may be busy with the crash before.
            let Ok(mut connection) = PgConnection::connect(&server).await else {
                return Ok(None);
            };
            let pids = sqlx::query_scalar(QUERY)
                .bind(database)
                .fetch_all(&mut connection)
                .await;
            Ok(pids.ok().filter(|pids: &Vec<i32>| !pids.is_empty()))
        })
        .await?;
        let pid = pids[self.rng.usize(..pids.len())];
        process::signal(pid.unsigned_abs(), "KILL")?;
        self.note("Postgres crash");
        Ok(())
    }

    /// Which processors own partitions now, by the ledger.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn owned_by(&self, processor: usize) -> Result<usize> {
        let mut connection = crate::ledger::connect(&self.stack).await?;
        let owners = crate::ledger::owners(&mut connection).await?;
        let name = format!("-instance-{processor}-");
        Ok(owners.iter().filter(|owner| owner.instance.contains(&name)).count())
    }

    /// Ends the traffic and checks everything.
    ///
    /// # Errors
    /// When that cannot be done.
    pub async fn end(self, violations: &mut Violations) -> Result<Left> {
        let (outcomes, history) = self.traffic.end(&self.stack).await?;
        traffic::examine(&history, &outcomes, self.forged, violations);
        // Who cannot reach a coordinator cannot end a transaction.
        let outage = if self.cluster.is_some() {
            LONGEST_OUTAGE
        } else {
            Duration::ZERO
        };
        self.watch.end(Self::longest_held_back() + outage, violations).await?;
        if let (Some(rail), Some(audit)) = (&self.rail, self.audit) {
            let mut connection = crate::ledger::connect(&self.stack).await?;
            if let Err(error) = money::ended(&mut connection).await {
                violations.add(Invariant::Money, format!("{error:#}"));
            }
            let seen = audit.end().await?;
            for wrong in seen.wrong {
                violations.add(Invariant::Money, wrong);
            }
            let states = money::reconcile(&self.stack, rail, violations).await?;
            println!(
                "     money: {} looks, {} of them with the rail; {states:?}; {:?}",
                seen.samples, seen.with_rail, seen.last
            );
        }
        Ok(Left {
            stack: self.stack,
            cluster: self.cluster,
            outcomes,
            history,
        })
    }

    /// For how long an open transaction may hold decisions back.
    pub fn longest_held_back() -> Duration {
        Duration::from_millis(TRANSACTION_TIMEOUT_MS) + HELD_BACK_SLACK
    }

    fn injected(&mut self, part: Part) -> Result<usize> {
        let log = self.process(part)?.log().to_owned();
        let text = std::fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        Ok(String::from_utf8_lossy(&text).matches(INJECTED).count())
    }
}

/// A payment rail, of which the processors are told.
async fn rail_for(stack: &mut Stack) -> Result<Rail> {
    let rail = Rail::start(stack.directory()).await?;
    for (name, value) in [
        ("SLUICE_RAIL", rail.url()),
        ("SLUICE_RAIL_TIMEOUT_MS", RAIL_TIMEOUT_MS.to_string()),
        ("SLUICE_RAIL_BREAKER_OPEN_MS", BREAKER_OPEN_MS.to_string()),
        ("SLUICE_REVIEW_DEADLINE_S", REVIEW_DEADLINE_S.to_string()),
    ] {
        stack.set_processor_env(name, &value);
    }
    Ok(rail)
}

/// The topics, the database and the settings of an installation.
async fn prepare(setup: &Setup, cluster: Option<&mut Cluster>) -> Result<Stack> {
    let mut options = stack::Options {
        processors: setup.processors,
        lanes: setup.lanes,
        partitions: setup.partitions,
        faulty: true,
        ..stack::Options::default()
    };
    let mut stack = if let Some(cluster) = cluster {
        options.replication = cluster::BROKERS as u16;
        options.gateway_place = Some(cluster.gateway(0));
        options.processor_places = (0..)
            .take(setup.processors)
            .map(|number| cluster.processor(number))
            .collect();
        let mut stack = Stack::prepare_on(cluster.servers().clone(), options).await?;
        stack.set_env("SLUICE_REGISTRY", cluster.registry_url());
        // What a gateway asks for that does not listen on loopback.
        let secrets = stack.directory().join("token-secrets");
        std::fs::write(&secrets, TOKEN_SECRET)?;
        stack.set_gateway_env("SLUICE_TOKEN_SECRETS", &secrets.display().to_string());
        stack.set_gateway_env("SLUICE_ALLOW_PLAINTEXT", "true");
        let database = cluster.postgres_url(&stack.database_url()?).await?;
        stack.set_processor_env("SLUICE_POSTGRES", &database);
        stack
    } else {
        Stack::prepare(options).await?
    };
    stack.set_env("SLUICE_WITHOUT", setup.without);
    for (name, value) in [
        ("SLUICE_SESSION_TIMEOUT_MS", SESSION_TIMEOUT_MS),
        ("SLUICE_TRANSACTION_TIMEOUT_MS", TRANSACTION_TIMEOUT_MS),
    ] {
        stack.set_processor_env(name, &value.to_string());
    }
    if setup.snapshots {
        let directory = surroundings::snapshot_directory(stack.directory());
        stack.set_processor_env("SLUICE_SNAPSHOT_DIR", &directory.display().to_string());
        stack.set_processor_env("SLUICE_SNAPSHOT_INTERVAL_S", "1");
    }
    Ok(stack)
}

fn partitions(stack: &Stack) -> usize {
    usize::try_from(stack.partitions()).unwrap_or_default()
}
