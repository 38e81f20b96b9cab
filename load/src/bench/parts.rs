//! The parts that a benchmark measures: our binaries as child processes, on topics and a database of their own, and what
//! they cost.
//!
//! Kafka, the registry and Postgres run already; the environment names them, as it does for our binaries.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sluice_kafka::Topics;
use sluice_kafka::registry::Registry;
use sluice_proto::avro::Record;
use sluice_proto::topics;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::runtime::Runtime;

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
const LOG_TAIL_LINES: usize = 20;
/// The kernel counts processor time in these.
const TICKS_PER_S: f64 = 100.0;

/// Where the parts are that are not measured.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Options {
    /// Kafka's bootstrap servers: host:port, comma separated
    #[arg(long, env = "SLUICE_KAFKA", default_value = "127.0.0.1:19092")]
    pub(super) kafka: String,
    /// Base URL of the Confluent-compatible schema registry
    #[arg(
        long,
        env = "SLUICE_REGISTRY",
        default_value = "http://127.0.0.1:18081/apis/ccompat/v7"
    )]
    pub(super) registry: String,
    /// Postgres, as a user that may create databases
    #[arg(
        long,
        env = "SLUICE_POSTGRES",
        default_value = "postgres://sluice@127.0.0.1:15432/sluice",
        hide_env_values = true
    )]
    pub(super) postgres: String,
}

/// Topics of their own, made for one run or one benchmark.
pub(super) struct Installation {
    pub(super) kafka: sluice_kafka::Config,
    pub(super) topics: Topics,
    registry: String,
}

impl Installation {
    /// Makes the topics, whose names begin with the prefix.
    pub(super) fn create(options: &Options, prefix: String) -> anyhow::Result<Self> {
        let output = Command::new(binary("sluicectl")?)
            .args(["topics", "apply"])
            .env("SLUICE_KAFKA", &options.kafka)
            .env("SLUICE_TOPIC_PREFIX", &prefix)
            .output()
            .context("cannot start sluicectl")?;
        ensure!(
            output.status.success(),
            "sluicectl topics apply failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(Self {
            topics: Topics::new(&prefix),
            kafka: sluice_kafka::Config {
                bootstrap_servers: options.kafka.clone(),
                topic_prefix: prefix,
                extra: Default::default(),
            },
            registry: options.registry.clone(),
        })
    }

    /// The registry's id of a record's schema.
    pub(super) fn schema_id<R: Record>(&self) -> anyhow::Result<i32> {
        let subject = topics::value_subject(&format!("{}{}", self.kafka.topic_prefix, R::TOPIC));
        let id = Registry::new(&self.registry).register(&subject, R::SCHEMA_JSON)?;
        i32::try_from(id).context("the registry's id is too large")
    }

    /// Starts one of our binaries on these topics and waits until it is ready.
    pub(super) fn start(&self, name: &'static str, more: &[(&str, String)]) -> anyhow::Result<Part> {
        let admin = free_address()?;
        // Two of a kind may run at once.
        let log = std::env::temp_dir().join(format!("{name}-{}.log", admin.port()));
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // The child ends with us, however we end.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(binary(name)?)
            .env("SLUICE_KAFKA", &self.kafka.bootstrap_servers)
            .env("SLUICE_REGISTRY", &self.registry)
            .env("SLUICE_TOPIC_PREFIX", &self.kafka.topic_prefix)
            .env("SLUICE_ADMIN_LISTEN", admin.to_string())
            .envs(more.iter().map(|(variable, value)| (variable, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let mut part = Part { name, child, log };
        part.await_ready(admin)?;
        Ok(part)
    }
}

/// A running part. Dropping it stops it.
pub(super) struct Part {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Part {
    fn await_ready(&mut self, admin: SocketAddr) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while !is_ready(admin) {
            self.check()?;
            ensure!(
                Instant::now() < deadline,
                "{} is not ready after {} s{}",
                self.name,
                READY_TIMEOUT.as_secs(),
                self.tail()
            );
            pause();
        }
        Ok(())
    }

    /// Fails when the part has ended.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended with {status}{}", self.name, self.tail()),
            None => Ok(()),
        }
    }

    /// Processor time so far, in seconds.
    pub(super) fn cpu_s(&self) -> anyhow::Result<f64> {
        cpu_s(&self.child.id().to_string())
    }

    /// Resident memory, in MiB.
    pub(super) fn rss_mib(&self) -> anyhow::Result<f64> {
        rss_mib(&self.child.id().to_string())
    }

    fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("; the end of {}:\n{}", self.log.display(), last.join("\n"))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // The standard library knows only the signal that cannot be caught.
        let asked = Command::new("sh")
            .arg("-c")
            .arg(format!("kill -TERM {}", self.child.id()))
            .status();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while asked.is_ok() && matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            pause();
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            eprintln!(
                "sluice-load: {} did not stop in {} s: killing it",
                self.name,
                STOP_TIMEOUT.as_secs()
            );
            drop(self.child.kill());
            drop(self.child.wait());
        }
        drop(std::fs::remove_file(&self.log));
    }
}

/// A database of its own.
pub(super) struct Database {
    server: PgConnectOptions,
    name: String,
}

impl Database {
    pub(super) async fn create(options: &Options, name: String) -> anyhow::Result<Self> {
        let server = PgConnectOptions::from_str(&options.postgres).context("not a Postgres URL")?;
        let mut connection = PgConnection::connect_with(&server)
            .await
            .context("no connection to Postgres")?;
        sqlx::query(&format!("CREATE DATABASE {name}"))
            .execute(&mut connection)
            .await?;
        Ok(Self { server, name })
    }

    /// For the environment of the processor.
    pub(super) fn url(&self) -> String {
        self.server.clone().database(&self.name).to_url_lossy().to_string()
    }

    pub(super) async fn connect(&self) -> anyhow::Result<PgConnection> {
        let options = self.server.clone().database(&self.name);
        Ok(PgConnection::connect_with(&options).await?)
    }

    /// Payments in the ledger.
    pub(super) async fn ledger_rows(&self) -> anyhow::Result<u64> {
        let mut connection = self.connect().await?;
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM ledger")
            .fetch_one(&mut connection)
            .await?;
        Ok(rows.unsigned_abs())
    }

    /// Not with FORCE, for which an autovacuum worker in the database is somebody else's; without it, Postgres sends the
    /// worker away and waits for 5 s until everybody has left.
    pub(super) async fn remove(self) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect_with(&self.server).await?;
        sqlx::query(&format!("DROP DATABASE {}", self.name))
            .execute(&mut connection)
            .await?;
        Ok(())
    }
}

/// Runs one run of a benchmark on topics and a database of its own. The database is removed, however the run ends.
pub(super) fn on_its_own(
    options: &Options,
    runtime: &Runtime,
    benchmark: &str,
    run: u16,
    measure: impl FnOnce(&Installation, &Database) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let id = fastrand::u32(..);
    let installation = Installation::create(options, format!("bench-{benchmark}-{id:08x}."))?;
    let database = runtime.block_on(Database::create(options, format!("bench_{benchmark}_{id:08x}")))?;
    let measured = measure(&installation, &database);
    let removed = runtime.block_on(database.remove());
    measured.with_context(|| format!("{benchmark}, run {run}"))?;
    removed
}

/// Processor time of this process so far, in seconds.
pub(crate) fn own_cpu_s() -> anyhow::Result<f64> {
    cpu_s("self")
}

/// Resident memory of this process, in MiB.
pub(super) fn own_rss_mib() -> anyhow::Result<f64> {
    rss_mib("self")
}

fn rss_mib(pid: &str) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("cannot understand {path}"))? / 1_024.0)
}

fn cpu_s(pid: &str) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The name, in parentheses, may contain anything; user and system time are the 12th and 13th fields after it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    let total = ticks(11).zip(ticks(12)).map(|(user, system)| user + system);
    Ok(total.with_context(|| format!("cannot understand {path}"))? / TICKS_PER_S)
}

/// An address that nobody listens on.
pub(super) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Our binaries are built and installed together.
fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let path = own.parent().unwrap_or(Path::new("")).join(name);
    ensure!(
        path.exists(),
        "{} is missing: build the workspace's binaries",
        path.display()
    );
    Ok(path)
}

fn is_ready(admin: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(
            stream,
            "GET /health/ready HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.split(' ').nth(1) == Some("200"))
}

#[expect(clippy::disallowed_methods, reason = "another process's state can only be polled")]
pub(super) fn pause() {
    std::thread::sleep(POLL);
}

#[expect(clippy::disallowed_methods, reason = "an open-loop schedule waits for time to pass")]
pub(super) fn until(moment: Instant) {
    if let Some(wait) = moment.checked_duration_since(Instant::now()) {
        std::thread::sleep(wait);
    }
}
