//! Owns how much each tenant and each principal may publish: events and bytes a second, with bursts, shared between the
//! gateways that are alive.
//!
//! Comes before decoding, so that a tenant over its quota costs little; the session waits where a unary call is refused.
//! A bucket may be overdrawn by one batch and then has to fill up again, so that a batch larger than a burst passes and
//! the rate holds all the same.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use serde::Deserialize;

use crate::auth::Caller;

/// How often tenants and principals that published nothing lately are forgotten.
pub const FORGET_EVERY: Duration = Duration::from_secs(60);
/// How often the file is read: so long a change takes.
pub const RELOAD_EVERY: Duration = Duration::from_secs(5);
/// Longest wait before a session looks again: the quota may have been raised meanwhile.
pub const LONGEST_HOLD: Duration = Duration::from_secs(1);

/// What the quotas are called on the wire: of a tenant, then of a principal.
const NAMES: [[&str; 2]; 2] = [
    ["tenant.events_per_second", "tenant.bytes_per_second"],
    ["principal.events_per_second", "principal.bytes_per_second"],
];

/// The file of quotas cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the quotas in {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file makes no sense.
    #[error("the quotas in {path} are invalid: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A rate and the burst after a pause.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Events or bytes a second, over all gateways.
    pub per_s: f64,
    /// The most at once, over all gateways.
    pub burst: f64,
}

/// The quota of one tenant or principal.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Of events; `None` for no bound.
    pub events: Option<Rate>,
    /// Of bytes of encoded events; `None` for no bound.
    pub bytes: Option<Rate>,
}

/// The quota does not cover anything now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    /// Which quota.
    pub quota: &'static str,
    /// When it will.
    pub retry_after: Duration,
}

/// Whose quota: a tenant's, or that of one of its principals.
type Scope = (Arc<str>, Option<Arc<str>>);

/// What the file says, besides the defaults.
type Table = HashMap<Scope, Limits>;

/// All quotas.
pub struct Quotas {
    path: Option<PathBuf>,
    defaults: Limits,
    table: RwLock<Table>,
    buckets: Mutex<HashMap<Scope, Arc<Bucket>>>,
    /// Gateways that share the quotas, this one included.
    gateways: Arc<AtomicU32>,
}

#[derive(Debug)]
struct Bucket(Mutex<Level>);

#[derive(Debug)]
struct Level {
    limits: Limits,
    events: f64,
    bytes: f64,
    at: Instant,
}

/// One caller's way to its quotas, kept for as long as a session.
#[derive(Clone, Debug)]
pub struct Meter {
    buckets: [Arc<Bucket>; 2],
    gateways: Arc<AtomicU32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tenant: Vec<Entry>,
    #[serde(default)]
    principal: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    tenant: Option<String>,
    events_per_s: Option<u64>,
    burst_events: Option<u64>,
    bytes_per_s: Option<u64>,
    burst_bytes: Option<u64>,
}

impl Quotas {
    /// The quotas of a file, with `defaults` for tenants that it does not name.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(path: Option<&Path>, defaults: Limits) -> Result<Self, Error> {
        let table = path.map_or_else(|| Ok(Table::new()), |path| read(path, defaults))?;
        Ok(Self {
            path: path.map(Path::to_owned),
            defaults,
            table: RwLock::new(table),
            buckets: Mutex::default(),
            gateways: Arc::new(AtomicU32::new(1)),
        })
    }

    /// Reads the file again; what is in use changes at once. Blocks.
    ///
    /// # Errors
    /// See [`Error`]: then everything stays as it was.
    pub fn reload(&self) -> Result<(), Error> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let table = read(path, self.defaults)?;
        for (scope, bucket) in self.buckets.lock().iter() {
            bucket.0.lock().limits = limits(&table, self.defaults, scope);
        }
        *self.table.write() = table;
        Ok(())
    }

    /// How many gateways share the quotas is told here.
    pub fn gateways(&self) -> Arc<AtomicU32> {
        self.gateways.clone()
    }

    /// The caller's way to its quotas.
    pub fn meter(&self, caller: &Caller) -> Meter {
        let tenant = (caller.tenant.clone(), None);
        let principal = (caller.tenant.clone(), Some(caller.name.clone()));
        Meter {
            buckets: [tenant, principal].map(|scope| self.bucket(scope)),
            gateways: self.gateways.clone(),
        }
    }

    fn bucket(&self, scope: Scope) -> Arc<Bucket> {
        let mut buckets = self.buckets.lock();
        if let Some(bucket) = buckets.get(&scope) {
            return bucket.clone();
        }
        let limits = limits(&self.table.read(), self.defaults, &scope);
        let bucket = Arc::new(Bucket::full(limits));
        buckets.insert(scope, bucket.clone());
        bucket
    }

    /// Forgets buckets that nobody uses and that are indistinguishable from new ones.
    pub fn forget_idle(&self) {
        let now = Instant::now();
        let share = share(&self.gateways);
        self.buckets
            .lock()
            .retain(|_, bucket| Arc::strong_count(bucket) > 1 || !bucket.0.lock().is_full(now, share));
    }
}

impl Meter {
    /// Takes so much from the tenant's quota and from the principal's, or nothing from either.
    ///
    /// # Errors
    /// [`Spent`], with the quota that has to be waited for the longest.
    pub fn take(&self, events: u64, bytes: u64) -> Result<(), Spent> {
        let (now, share) = (Instant::now(), share(&self.gateways));
        let [tenant, principal] = &self.buckets;
        let (mut tenant, mut principal) = (tenant.0.lock(), principal.0.lock());
        let spent = tenant.spent(now, share, NAMES[0]).into_iter();
        let spent = spent.chain(principal.spent(now, share, NAMES[1]));
        if let Some(spent) = spent.max_by_key(|spent| spent.retry_after) {
            return Err(spent);
        }
        for level in [&mut tenant, &mut principal] {
            level.events -= events as f64;
            level.bytes -= bytes as f64;
        }
        Ok(())
    }
}

/// This gateway's part of every quota.
fn share(gateways: &AtomicU32) -> f64 {
    1.0 / f64::from(gateways.load(Ordering::Relaxed).max(1))
}

impl Bucket {
    fn full(limits: Limits) -> Self {
        let burst = |rate: Option<Rate>| rate.map_or(0.0, |rate| rate.burst);
        Self(Mutex::new(Level {
            limits,
            events: burst(limits.events),
            bytes: burst(limits.bytes),
            at: Instant::now(),
        }))
    }
}

impl Level {
    /// Brings the levels to now.
    fn fill(&mut self, now: Instant, share: f64) {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let filled = |level: f64, rate: Option<Rate>| {
            // Without a bound, what was taken is forgotten.
            rate.map_or(0.0, |rate| {
                (level + seconds * rate.per_s * share).min(rate.burst * share)
            })
        };
        self.events = filled(self.events, self.limits.events);
        self.bytes = filled(self.bytes, self.limits.bytes);
    }

    fn spent(&mut self, now: Instant, share: f64, [events, bytes]: [&'static str; 2]) -> Option<Spent> {
        self.fill(now, share);
        let wait = |level: f64, rate: Option<Rate>, quota| {
            let rate = rate?;
            // There has to be a whole event or byte, or what a small share has at all.
            let missing = 1.0_f64.min(rate.burst * share) - level;
            let retry_after = Duration::from_secs_f64(missing.max(0.0) / (rate.per_s * share));
            (missing > 0.0).then_some(Spent { quota, retry_after })
        };
        let of_events = wait(self.events, self.limits.events, events);
        let of_bytes = wait(self.bytes, self.limits.bytes, bytes);
        of_events
            .into_iter()
            .chain(of_bytes)
            .max_by_key(|spent| spent.retry_after)
    }

    fn is_full(&mut self, now: Instant, share: f64) -> bool {
        self.fill(now, share);
        let full = |level: f64, rate: Option<Rate>| rate.is_none_or(|rate| level >= rate.burst * share);
        full(self.events, self.limits.events) && full(self.bytes, self.limits.bytes)
    }
}

fn limits(table: &Table, defaults: Limits, scope: &Scope) -> Limits {
    let unnamed = match scope {
        (_, None) => defaults,
        (_, Some(_)) => Limits::default(),
    };
    table.get(scope).copied().unwrap_or(unnamed)
}

fn read(path: &Path, defaults: Limits) -> Result<Table, Error> {
    let invalid = |reason: String| Error::Invalid {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let file: File = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    let mut table = Table::new();
    let tenants = file.tenant.into_iter().map(|entry| (entry, false));
    let principals = file.principal.into_iter().map(|entry| (entry, true));
    for (entry, is_principal) in tenants.chain(principals) {
        let name = entry.name.clone();
        let (scope, unnamed) = match (&entry.tenant, is_principal) {
            (None, false) => ((name.as_str().into(), None), defaults),
            (Some(tenant), true) => ((tenant.as_str().into(), Some(name.as_str().into())), Limits::default()),
            (None, true) => return Err(invalid(format!("principal {name} has no tenant"))),
            (Some(_), false) => return Err(invalid(format!("tenant {name} has a tenant"))),
        };
        let limits = Limits {
            events: rate(entry.events_per_s, entry.burst_events, unnamed.events).map_err(&invalid)?,
            bytes: rate(entry.bytes_per_s, entry.burst_bytes, unnamed.bytes).map_err(&invalid)?,
        };
        if table.insert(scope, limits).is_some() {
            return Err(invalid(format!("{name} is there twice")));
        }
    }
    Ok(table)
}

/// A burst that is not given is what comes in a second.
fn rate(per_s: Option<u64>, burst: Option<u64>, unnamed: Option<Rate>) -> Result<Option<Rate>, String> {
    match (per_s, burst) {
        (None, None) => Ok(unnamed),
        (None, Some(_)) => Err("a burst without a rate means nothing".to_owned()),
        (Some(0), _) | (_, Some(0)) => Err("a rate or burst of 0 would let nothing pass".to_owned()),
        (Some(per_s), burst) => Ok(Some(Rate {
            per_s: per_s as f64,
            burst: burst.unwrap_or(per_s) as f64,
        })),
    }
}

#[cfg(test)]
#[path = "quota_tests.rs"]
mod tests;
