//! An isolated installation of Sluice: topics under a prefix of its own, a fresh database, one gateway and as many
//! processors as asked for, all of them the binaries that production runs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use sluice_proto::topics;
use sqlx::{Connection, PgConnection};

use crate::process::{Place, Process};
use crate::servers::{self, Servers};
use crate::tenant;
pub use crate::tenant::Tenant;
use crate::wait;

/// The processors' consumer group, before the prefix.
pub const GROUP: &str = "processor";
/// After how long without a heartbeat a killed lane's partitions go to another one, in milliseconds: what the tests wait
/// for at each kill.
const SESSION_TIMEOUT_MS: &str = "3000";
/// Where a server listens that has an address of its own.
const PORT: u16 = 50_051;
const ADMIN_PORT: u16 = 9_464;
/// Longest wait for an answer of a health or metrics page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// How an installation differs from the default one.
#[derive(Clone, Debug)]
pub struct Options {
    /// Partitions of every topic.
    pub partitions: u32,
    /// Replicas of every partition.
    pub replication: u16,
    /// Processor processes.
    pub processors: usize,
    /// Lanes of each processor.
    pub lanes: u32,
    /// The quota of each tenant.
    pub quota_events_per_s: u32,
    /// Whether gateway and processors are those that faults can be injected into.
    pub faulty: bool,
    /// The network of its own that the gateway has, if any.
    pub gateway_place: Option<Place>,
    /// Those of the processors; none where all are on this machine's.
    pub processor_places: Vec<Place>,
    /// More environment variables of the gateway.
    pub gateway_env: Vec<(String, String)>,
    /// More environment variables of each processor.
    pub processor_env: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            partitions: 4,
            replication: 1,
            processors: 1,
            lanes: 2,
            quota_events_per_s: 100_000,
            faulty: false,
            gateway_place: None,
            processor_places: Vec::new(),
            gateway_env: Vec::new(),
            processor_env: Vec::new(),
        }
    }
}

/// A gateway beside the installation's own, on the same topics.
#[derive(Debug)]
pub struct Gateway {
    /// Its process.
    pub process: Process,
    /// Where it takes calls.
    pub address: SocketAddr,
    /// Where it serves health and metrics.
    pub admin: SocketAddr,
}

impl Gateway {
    /// Base URL of its calls.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it ended or does not become ready.
    pub async fn ready(&mut self) -> Result<()> {
        ready("gateway", &mut self.process, self.admin).await
    }
}

/// A running installation. Everything of it ends when it is dropped.
#[derive(Debug)]
pub struct Stack {
    servers: Servers,
    options: Options,
    prefix: String,
    directory: PathBuf,
    gateway_address: SocketAddr,
    gateway_admin: SocketAddr,
    gateway: Option<Process>,
    processors: Vec<Option<Process>>,
    processor_admins: Vec<SocketAddr>,
    next_tenant: AtomicUsize,
}

impl Stack {
    /// Makes the topics and the database, starts everything and waits until it is ready.
    ///
    /// # Errors
    /// When the servers are missing or a part does not become ready.
    pub async fn start(options: Options) -> Result<Self> {
        let mut stack = Self::prepare(options).await?;
        stack.start_all().await?;
        Ok(stack)
    }

    /// Makes the topics and the database, and starts nothing.
    ///
    /// # Errors
    /// When the servers are missing.
    pub async fn prepare(options: Options) -> Result<Self> {
        Self::prepare_on(Servers::from_env()?, options).await
    }

    /// The same on given servers.
    ///
    /// # Errors
    /// When they do not answer.
    pub async fn prepare_on(servers: Servers, options: Options) -> Result<Self> {
        let mut id = uuid::Uuid::new_v4().simple().to_string();
        id.truncate(8);
        let prefix = format!("t{id}-");
        let directory = servers::scratch(&prefix)?;
        std::fs::write(directory.join("keys.toml"), tenant::keys())?;
        let stack = Self {
            gateway_address: address(options.gateway_place.as_ref(), PORT)?,
            gateway_admin: address(options.gateway_place.as_ref(), ADMIN_PORT)?,
            gateway: None,
            processors: (0..options.processors).map(|_number| None).collect(),
            processor_admins: (0..options.processors)
                .map(|number| address(options.processor_places.get(number), ADMIN_PORT))
                .collect::<Result<_>>()?,
            next_tenant: AtomicUsize::new(0),
            servers,
            options,
            prefix,
            directory,
        };
        stack.create_database().await?;
        stack.create_topics()?;
        Ok(stack)
    }

    /// The servers behind the installation.
    pub fn servers(&self) -> &Servers {
        &self.servers
    }

    /// The directory of its logs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The full name of a topic.
    pub fn topic(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The processors' consumer group.
    pub fn group(&self) -> String {
        format!("{}{GROUP}", self.prefix)
    }

    /// Partitions of every topic.
    pub fn partitions(&self) -> i32 {
        self.options.partitions as i32
    }

    /// A tenant that nobody else was given.
    ///
    /// # Panics
    /// When there are no more.
    pub fn tenant(&self) -> Tenant {
        let number = self.next_tenant.fetch_add(1, Ordering::Relaxed);
        Tenant::numbered(number)
    }

    /// Where the gateway takes calls.
    pub fn gateway_address(&self) -> SocketAddr {
        self.gateway_address
    }

    /// Base URL of the gateway's calls.
    pub fn gateway_url(&self) -> String {
        format!("http://{}", self.gateway_address)
    }

    /// Where the gateway serves health and metrics.
    pub fn gateway_admin(&self) -> SocketAddr {
        self.gateway_admin
    }

    /// Where a processor serves health and metrics.
    pub fn processor_admin(&self, number: usize) -> SocketAddr {
        self.processor_admins[number]
    }

    /// The running gateway.
    ///
    /// # Errors
    /// When it was not started.
    pub fn gateway(&mut self) -> Result<&mut Process> {
        self.gateway.as_mut().context("the gateway was not started")
    }

    /// A running processor.
    ///
    /// # Errors
    /// When it was not started.
    pub fn processor(&mut self, number: usize) -> Result<&mut Process> {
        self.processors[number]
            .as_mut()
            .context("the processor was not started")
    }

    /// Starts the gateway and all processors, and waits until they are ready.
    ///
    /// # Errors
    /// When a part does not become ready.
    pub async fn start_all(&mut self) -> Result<()> {
        self.start_gateway()?;
        for number in 0..self.options.processors {
            self.start_processor(number)?;
        }
        self.ready().await
    }

    /// Starts the gateway, on the same address as before.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_gateway(&mut self) -> Result<()> {
        self.start_gateway_with(&[])
    }

    /// The same with more environment variables for this one start.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_gateway_with(&mut self, env: &[(&str, &str)]) -> Result<()> {
        self.gateway = None;
        let (place, listen) = (self.options.gateway_place.as_ref(), self.gateway_address);
        self.gateway = Some(self.spawn_gateway("gateway", place, (listen, self.gateway_admin), env)?);
        Ok(())
    }

    /// Starts one more gateway, which ends when the returned value is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn another_gateway(&self, name: &str) -> Result<Gateway> {
        self.another_gateway_at(name, servers::free_address()?)
    }

    /// The same at a given address.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn another_gateway_at(&self, name: &str, address: SocketAddr) -> Result<Gateway> {
        let admin = servers::free_address()?;
        Ok(Gateway {
            process: self.spawn_gateway(name, None, (address, admin), &[])?,
            address,
            admin,
        })
    }

    /// The same in a network of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn another_gateway_in(&self, name: &str, place: &Place) -> Result<Gateway> {
        let (address, admin) = (place.at(PORT), place.at(ADMIN_PORT));
        Ok(Gateway {
            process: self.spawn_gateway(name, Some(place), (address, admin), &[])?,
            address,
            admin,
        })
    }

    fn spawn_gateway(
        &self,
        name: &str,
        place: Option<&Place>,
        (listen, admin): (SocketAddr, SocketAddr),
        more: &[(&str, &str)],
    ) -> Result<Process> {
        let mut env = self.common_env();
        env.extend([
            ("SLUICE_LISTEN".to_owned(), listen.to_string()),
            ("SLUICE_ADMIN_LISTEN".to_owned(), admin.to_string()),
            (
                "SLUICE_API_KEYS".to_owned(),
                self.directory.join("keys.toml").display().to_string(),
            ),
            (
                "SLUICE_QUOTA_EVENTS_PER_S".to_owned(),
                self.options.quota_events_per_s.to_string(),
            ),
        ]);
        env.extend(self.options.gateway_env.clone());
        env.extend(owned(more));
        Process::start_in(place, name, &self.program("sluice-gateway")?, &env, &self.directory)
    }

    /// Starts a processor.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_processor(&mut self, number: usize) -> Result<()> {
        self.start_processor_with(number, &[])
    }

    /// The same with more environment variables for this one start.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_processor_with(&mut self, number: usize, more: &[(&str, &str)]) -> Result<()> {
        let mut env = self.common_env();
        env.extend([
            ("SLUICE_POSTGRES".to_owned(), self.database_url()?),
            ("SLUICE_LANES".to_owned(), self.options.lanes.to_string()),
            ("SLUICE_GROUP".to_owned(), GROUP.to_owned()),
            ("SLUICE_INSTANCE".to_owned(), format!("instance-{number}")),
            ("SLUICE_SESSION_TIMEOUT_MS".to_owned(), SESSION_TIMEOUT_MS.to_owned()),
            (
                "SLUICE_ADMIN_LISTEN".to_owned(),
                self.processor_admins[number].to_string(),
            ),
        ]);
        env.extend(self.options.processor_env.clone());
        env.extend(owned(more));
        self.processors[number] = None;
        let program = self.program("sluice-processor")?;
        let name = format!("processor-{number}");
        let place = self.options.processor_places.get(number);
        self.processors[number] = Some(Process::start_in(place, &name, &program, &env, &self.directory)?);
        Ok(())
    }

    fn program(&self, name: &str) -> Result<PathBuf> {
        if self.options.faulty {
            servers::faulty_binary(name)
        } else {
            servers::binary(name)
        }
    }

    /// Sets a variable of the parts that are started from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.set_gateway_env(name, value);
        self.set_processor_env(name, value);
    }

    /// Sets a variable of the gateways that are started from now on.
    pub fn set_gateway_env(&mut self, name: &str, value: &str) {
        self.options.gateway_env.push((name.to_owned(), value.to_owned()));
    }

    /// Sets a variable of the processors that are started from now on.
    pub fn set_processor_env(&mut self, name: &str, value: &str) {
        self.options.processor_env.push((name.to_owned(), value.to_owned()));
    }

    /// Stops everything that runs at once, and leaves nothing of the installation but its directory.
    ///
    /// # Errors
    /// When Kafka or Postgres refuse.
    pub async fn remove(mut self) -> Result<()> {
        self.gateway = None;
        self.processors.clear();
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.servers.kafka)
            .create()?;
        let names: Vec<String> = topics::ALL.iter().map(|name| self.topic(name)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        admin.delete_topics(&names, &AdminOptions::new()).await?;
        let mut connection = PgConnection::connect(&self.servers.postgres).await?;
        let statement = format!("DROP DATABASE {} WITH (FORCE)", self.database());
        sqlx::raw_sql(&statement).execute(&mut connection).await?;
        Ok(())
    }

    /// Waits until everything that was started says that it is ready.
    ///
    /// # Errors
    /// When a part ended or does not become ready.
    pub async fn ready(&mut self) -> Result<()> {
        if let Some(gateway) = &mut self.gateway {
            ready("gateway", gateway, self.gateway_admin).await?;
        }
        for (processor, address) in self.processors.iter_mut().zip(&self.processor_admins) {
            if let Some(processor) = processor {
                ready("processor", processor, *address).await?;
            }
        }
        Ok(())
    }

    /// Fails when a part that was started does not run any more.
    ///
    /// # Errors
    /// When it does not.
    pub fn must_run(&mut self) -> Result<()> {
        let parts = self.gateway.iter_mut().chain(self.processors.iter_mut().flatten());
        parts.into_iter().try_for_each(Process::must_run)
    }

    /// The ends of all logs, for a test that failed.
    pub fn log_tails(&self) -> String {
        let parts = self.gateway.iter().chain(self.processors.iter().flatten());
        parts.map(Process::log_tail).collect()
    }

    /// URL of the installation's database.
    ///
    /// # Errors
    /// When the given URL names no database.
    pub fn database_url(&self) -> Result<String> {
        let (server, _database) = self
            .servers
            .postgres
            .rsplit_once('/')
            .context("the Postgres URL has no path")?;
        Ok(format!("{server}/{}", self.database()))
    }

    fn database(&self) -> String {
        format!("sluice_{}", self.prefix.trim_end_matches('-'))
    }

    async fn create_database(&self) -> Result<()> {
        let mut connection = PgConnection::connect(&self.servers.postgres)
            .await
            .context("cannot reach Postgres")?;
        let statement = format!("CREATE DATABASE {}", self.database());
        sqlx::raw_sql(&statement).execute(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }

    fn create_topics(&self) -> Result<()> {
        let partitions = self.options.partitions.to_string();
        let replication = self.options.replication.to_string();
        let arguments = [
            "topics",
            "apply",
            "--partitions",
            &partitions,
            "--replication",
            &replication,
        ];
        self.sluicectl(&arguments).map(drop)
    }

    /// Runs sluicectl on the installation and returns what it prints.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn sluicectl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(servers::binary("sluicectl")?)
            .args(arguments)
            .envs(self.common_env())
            .output()?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "sluicectl {arguments:?}: {}\n{out}{error}",
            output.status
        );
        Ok(out)
    }

    /// The variables that all binaries share.
    pub fn common_env(&self) -> Vec<(String, String)> {
        [
            ("SLUICE_KAFKA", self.servers.kafka.as_str()),
            ("SLUICE_REGISTRY", &self.servers.registry),
            ("SLUICE_TOPIC_PREFIX", &self.prefix),
            ("SLUICE_LOG", "info"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tails());
        }
    }
}

fn owned(env: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    env.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
}

/// Where a server of one place listens, or one that has none.
fn address(place: Option<&Place>, port: u16) -> Result<SocketAddr> {
    place.map_or_else(servers::free_address, |place| Ok(place.at(port)))
}

async fn ready(name: &str, process: &mut Process, admin: SocketAddr) -> Result<()> {
    let answered = wait::until(&format!("{name} is ready"), async || {
        process.must_run()?;
        Ok(page(admin, "/health/ready").await.ok())
    })
    .await;
    answered.map(|_page| ()).with_context(|| process.log_tail())
}

/// Fetches a page of a part's admin port.
///
/// # Errors
/// When there is no answer, or one other than 200.
pub async fn page(admin: SocketAddr, path: &str) -> Result<String> {
    fetch(&format!("http://{admin}{path}")).await
}

/// Fetches a page, without any proxy.
///
/// # Errors
/// When there is no answer, or one other than 200.
pub async fn fetch(url: &str) -> Result<String> {
    let url = url.to_owned();
    let fetch = move || -> Result<String> {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PAGE_TIMEOUT))
            .proxy(None);
        let agent: ureq::Agent = config.build().into();
        Ok(agent.get(&url).call()?.body_mut().read_to_string()?)
    };
    tokio::task::spawn_blocking(fetch).await?
}
