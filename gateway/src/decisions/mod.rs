//! Giving decisions out. The decision loop in `consume` reads the topic once for the whole gateway: `decode` makes entries
//! of its records, `route` keeps the newest of them in a ring for each partition and wakes subscriptions. The subscription
//! loop in `subscribe` reads the rings through its `cursor` and its `filter`; where it is behind them, `catch_up` reads the
//! topic for it; where it names accounts, it reads its `mailbox`. `commit` keeps named cursors in consumer groups; `watch`
//! serves clients that can only listen.

pub mod catch_up;
pub mod commit;
pub mod consume;
pub mod cursor;
pub mod decode;
pub mod filter;
pub mod look_back;
pub mod mailbox;
pub mod route;
pub mod start;
pub mod subscribe;
pub mod waiting;
pub mod watch;

use std::sync::Arc;

use sluice_kafka::registry::Registry;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Readers that may catch up at a time. Each has a consumer of its own, with a thread and some megabytes; further
/// subscriptions that are behind wait.
pub const MAX_CATCH_UPS: usize = 32;

/// What every subscription shares.
pub struct Shared {
    /// The newest decisions.
    pub router: Arc<route::Router>,
    /// How to read the topic of decisions.
    pub source: Source,
    /// Kafka's offsets.
    pub lookup: Arc<start::Lookup>,
    /// Named cursors.
    pub cursors: Arc<commit::Cursors>,
    /// Room for readers that catch up.
    pub catch_ups: Arc<Semaphore>,
    /// Calls that wait for one decision.
    pub waiting: waiting::Waiting,
    /// Room for searches of one decision.
    pub look_backs: Arc<Semaphore>,
    /// The gateway's metrics.
    pub metrics: Metrics,
    /// Cancelled when the gateway begins to drain.
    pub draining: CancellationToken,
}

/// How to read the topic of decisions.
#[derive(Clone)]
pub struct Source {
    /// How to reach Kafka.
    pub kafka: sluice_kafka::Config,
    /// The topic, with the installation's prefix.
    pub topic: Arc<str>,
    /// How many partitions it has.
    pub partitions: usize,
    /// The registry's id of this version's schema.
    pub schema_id: i32,
    /// Other versions' schemas.
    pub registry: Arc<Registry>,
    /// The topic's consumer metrics.
    pub metrics: sluice_kafka::metrics::Consumer,
}
