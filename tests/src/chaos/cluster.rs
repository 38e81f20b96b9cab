//! Three brokers, each in a network of its own, and the network between them and the servers: what can be killed, stopped, cut
//! off, slowed down and made to lose packets.
//!
//! Made by [`super::world`] for the scenario `cluster`, which [`super::cluster_faults`] breaks. The networks and the brokers'
//! settings are made by `docker/local/cluster.sh` before.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::metadata::Metadata;

use super::disk::{self, run};
use crate::process::{Place, Process};
use crate::proxy::{self, Proxy};
use crate::servers::Servers;
use crate::{servers, wait};

/// Brokers, and replicas of every partition.
pub const BROKERS: usize = 3;
/// The broker whose disk is small.
pub const SMALL: usize = 2;
const KAFKA_PORT: u16 = 9_092;
/// The last bytes of the addresses, as `cluster.sh` gives them out.
const HOST: u8 = 254;
const FIRST_GATEWAY: u8 = 10;
const FIRST_PROCESSOR: u8 = 20;
/// How long an answer of a broker may take.
const ANSWER: Duration = Duration::from_secs(5);
/// Of a hundred packets, so many are lost where a network loses some.
const LOST: &str = "0.1";
/// A network that is slow: a queue of up to so many milliseconds, at so many bits a second.
const SLOW: [&str; 6] = ["rate", "1500kbit", "burst", "16kb", "latency", "400ms"];
/// Holds the transactions of every producer; it has one partition.
const TRANSACTIONS: &str = "__transaction_state";

/// The brokers, and the way from their network to the servers that are not in it.
#[derive(Debug)]
pub struct Cluster {
    /// The numbered brokers, from 0; each is there unless it was killed.
    pub brokers: Vec<Process>,
    /// Where the schema registry is reached from the network.
    _registry: Proxy,
    registry_url: String,
    /// Where Postgres is.
    postgres: Option<Proxy>,
    /// The servers of this machine, with the cluster's brokers.
    servers: Servers,
    names: Names,
    script: PathBuf,
    /// The disk of [`SMALL`].
    disk: PathBuf,
    logs: PathBuf,
    client: Arc<Client>,
}

/// Asks the brokers for each other.
struct Client(BaseConsumer);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// What everything is called, and its addresses.
#[derive(Clone, Debug)]
struct Names {
    prefix: String,
    network: [u8; 3],
}

impl Names {
    fn place(&self, name: &str, byte: u8) -> Place {
        let [a, b, c] = self.network;
        Place {
            namespace: format!("{}{name}", self.prefix),
            address: Ipv4Addr::new(a, b, c, byte),
        }
    }

    fn broker(&self, number: usize) -> Place {
        self.place(&format!("broker-{}", number + 1), 1 + number as u8)
    }
}

impl Cluster {
    /// Starts the brokers, and waits until each knows the others.
    ///
    /// # Errors
    /// When there is no network for them, or one does not start.
    pub async fn start() -> Result<Self> {
        let read = |name: &str| {
            std::env::var(name).with_context(|| format!("{name} is not set: run ./dev chaos --scenario cluster"))
        };
        let network = read("SLUICE_TEST_CLUSTER_NETWORK")?;
        let bytes: Vec<u8> = network.split('.').map(str::parse).collect::<Result<_, _>>()?;
        let network = <[u8; 3]>::try_from(bytes).map_err(|_| anyhow::anyhow!("{network} is not three bytes"))?;
        let names = Names {
            prefix: read("SLUICE_TEST_CLUSTER_PREFIX")?,
            network,
        };
        let brokers = (0..BROKERS).map(|number| names.broker(number).at(KAFKA_PORT).to_string());
        let brokers = brokers.collect::<Vec<_>>().join(",");
        let servers = Servers {
            kafka: brokers.clone(),
            ..Servers::from_env()?
        };
        let host = names.place("", HOST).address;
        let (registry, registry_url) = proxy::http_on(host, &servers.registry).await?;
        let logs = servers::scratch(&format!("{}brokers", names.prefix))?;
        // Those of the trial before.
        std::fs::remove_dir_all(&logs)?;
        std::fs::create_dir(&logs)?;
        let mut cluster = Self {
            brokers: Vec::new(),
            _registry: registry,
            registry_url,
            postgres: None,
            servers,
            script: read("SLUICE_TEST_CLUSTER_BROKER")?.into(),
            disk: read("SLUICE_TEST_CLUSTER_DISK")?.into(),
            logs,
            names,
            client: Arc::new(Client(ClientConfig::new().set("bootstrap.servers", &brokers).create()?)),
        };
        for number in 0..BROKERS {
            let broker = cluster.spawn(number)?;
            cluster.brokers.push(broker);
        }
        cluster.in_sync().await?;
        Ok(cluster)
    }

    /// The servers of this machine, with these brokers.
    pub fn servers(&self) -> &Servers {
        &self.servers
    }

    /// Where a gateway runs.
    pub fn gateway(&self, number: u8) -> Place {
        self.names.place(&format!("gateway-{number}"), FIRST_GATEWAY + number)
    }

    /// Where a processor runs.
    pub fn processor(&self, number: u8) -> Place {
        self.names
            .place(&format!("processor-{number}"), FIRST_PROCESSOR + number)
    }

    /// Where a broker runs.
    pub fn broker(&self, number: usize) -> Place {
        self.names.broker(number)
    }

    /// The registry's URL, as it is reached from the network.
    pub fn registry_url(&self) -> &str {
        &self.registry_url
    }

    /// The URL by which a database is reached from the network.
    ///
    /// # Errors
    /// When the given one names no server.
    pub async fn postgres_url(&mut self, url: &str) -> Result<String> {
        let host = self.names.place("", HOST).address;
        let (proxy, url) = proxy::postgres_on(host, url).await?;
        self.postgres = Some(proxy);
        Ok(url)
    }

    fn spawn(&self, number: usize) -> Result<Process> {
        let id = (number + 1).to_string();
        Process::start(&format!("broker-{id}"), &self.script, &[&id], &[], &self.logs)
    }

    /// Kills a broker at whatever it is doing.
    ///
    /// # Errors
    /// When it did not run.
    pub fn kill(&mut self, number: usize) -> Result<()> {
        self.brokers[number].kill_9()
    }

    /// Starts a broker again, on what it has on its disk.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_again(&mut self, number: usize) -> Result<()> {
        self.brokers[number] = self.spawn(number)?;
        Ok(())
    }

    /// Fills the disk of [`SMALL`], and waits until the broker has given up.
    ///
    /// # Errors
    /// When it goes on.
    pub async fn fill_disk(&mut self) -> Result<()> {
        disk::fill(&self.disk)?;
        self.brokers[SMALL].ended().await?;
        Ok(())
    }

    /// Makes room on that disk again.
    ///
    /// # Errors
    /// When it was not full.
    pub fn free_disk(&self) -> Result<()> {
        disk::free(&self.disk)
    }

    /// Waits until every replica of every partition is in sync.
    ///
    /// # Errors
    /// When one is not.
    pub async fn in_sync(&mut self) -> Result<()> {
        let what = "every replica of every partition is in sync";
        let found = wait::until(what, async || {
            self.brokers.iter_mut().try_for_each(Process::must_run)?;
            Ok((self.ask(None, is_whole).await? == Some(true)).then_some(()))
        })
        .await;
        found.with_context(|| self.brokers.iter().map(Process::log_tail).collect::<String>())
    }

    /// The broker that coordinates every transaction.
    ///
    /// # Errors
    /// When there is none.
    pub async fn coordinator(&self) -> Result<usize> {
        wait::until("transactions have a coordinator", async || {
            let leader = self.ask(Some(TRANSACTIONS), first_leader).await?;
            Ok(leader.flatten().and_then(|leader| usize::try_from(leader - 1).ok()))
        })
        .await
    }

    /// Asks the brokers, away from the runtime, on which the way to Postgres depends; none where they do not answer.
    async fn ask<T: Send + 'static>(&self, topic: Option<&'static str>, read: fn(&Metadata) -> T) -> Result<Option<T>> {
        let client = Arc::clone(&self.client);
        let asked = move || {
            client
                .0
                .fetch_metadata(topic, ANSWER)
                .ok()
                .map(|metadata| read(&metadata))
        };
        Ok(tokio::task::spawn_blocking(asked).await?)
    }

    /// Lets no packet pass between a place and these brokers, in either direction.
    ///
    /// # Errors
    /// When the rules cannot be made.
    pub fn cut_off(&self, place: &Place, brokers: &[usize]) -> Result<()> {
        for broker in brokers {
            let address = self.broker(*broker).address.to_string();
            inside(place, "iptables", &["-A", "INPUT", "-s", &address, "-j", "DROP"])?;
            inside(place, "iptables", &["-A", "OUTPUT", "-d", &address, "-j", "DROP"])?;
        }
        Ok(())
    }

    /// Loses a tenth of the packets that a place sends and receives.
    ///
    /// # Errors
    /// When the rules cannot be made.
    pub fn lose_packets(&self, place: &Place) -> Result<()> {
        let random = [
            "-m",
            "statistic",
            "--mode",
            "random",
            "--probability",
            LOST,
            "-j",
            "DROP",
        ];
        for chain in ["INPUT", "OUTPUT"] {
            inside(place, "iptables", &[&["-A", chain][..], &random].concat())?;
        }
        Ok(())
    }

    /// Lets what a place sends wait in a long queue.
    ///
    /// # Errors
    /// When the queue cannot be made.
    pub fn slow_down(&self, place: &Place) -> Result<()> {
        let queue = ["qdisc", "add", "dev", "eth0", "root", "tbf"];
        inside(place, "tc", &[&queue[..], &SLOW].concat())
    }

    /// Makes a place's network whole again.
    ///
    /// # Errors
    /// When the rules cannot be removed.
    pub fn mend(&self, place: &Place) -> Result<()> {
        inside(place, "iptables", &["-F"])?;
        // There is a queue to be removed only where one was added.
        drop(inside(place, "tc", &["qdisc", "del", "dev", "eth0", "root"]));
        Ok(())
    }
}

fn is_whole(metadata: &Metadata) -> bool {
    metadata.brokers().len() == BROKERS
        && metadata
            .topics()
            .iter()
            .flat_map(|topic| topic.partitions())
            .all(|partition| partition.leader() > 0 && partition.isr().len() == partition.replicas().len())
}

fn first_leader(metadata: &Metadata) -> Option<i32> {
    let partition = metadata.topics().first()?.partitions().first()?;
    Some(partition.leader())
}

/// Runs a program in a place's network.
fn inside(place: &Place, program: &str, arguments: &[&str]) -> Result<()> {
    let into = ["netns", "exec", &place.namespace, program];
    let all: Vec<&OsStr> = into.iter().chain(arguments).map(AsRef::as_ref).collect();
    run("ip", &all)
}
