//! Owns how much each tenant and each principal may publish: events and bytes a second, with bursts, shared between the
//! gateways that are alive.
//!
//! Comes before decoding, so that a tenant over its quota costs little; the session waits where a unary call is refused.
//! A batch is paid for as a whole before it goes on, in parts where it is larger than a burst. So is a call's event, by
//! one try after the other.

mod limiter;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use sluice_proto::bounds::MAX_EVENT_BYTES;

use self::limiter::Limiter;
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

/// What one tenant or principal has left.
#[derive(Debug)]
struct Bucket(Mutex<State>);

#[derive(Debug)]
struct State {
    limits: Limits,
    gateways: u32,
    /// Of events and of bytes.
    limiters: [Option<Limiter>; 2],
    /// Of both, what calls had paid that were then refused. It is spent before anything else.
    spare: [u64; 2],
    used: Instant,
}

/// One caller's way to its quotas, kept for as long as a session.
#[derive(Clone, Debug)]
pub struct Meter {
    buckets: [Arc<Bucket>; 2],
    gateways: Arc<AtomicU32>,
}

/// Events and their bytes that are not paid for yet: of the tenant's quotas, then of the principal's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due([[u64; 2]; 2]);

impl Due {
    /// Nothing paid yet of so many events with so many bytes.
    pub const fn of(events: u64, bytes: u64) -> Self {
        Self([[events, bytes]; 2])
    }
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
            let mut state = bucket.0.lock();
            let gateways = state.gateways;
            state.change(limits(&table, self.defaults, scope), gateways);
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
        let bucket = Arc::new(Bucket(Mutex::new(State::full(limits, count(&self.gateways)))));
        buckets.insert(scope, bucket.clone());
        bucket
    }

    /// Forgets buckets that nobody uses and that are as full as new ones.
    pub fn forget_idle(&self) {
        self.buckets
            .lock()
            .retain(|_, bucket| Arc::strong_count(bucket) > 1 || !bucket.0.lock().is_full());
    }
}

impl Meter {
    /// Pays what is due to the tenant's quotas and to the principal's, as far as they reach; what is paid stays paid.
    ///
    /// # Errors
    /// [`Spent`], with the first quota that does not reach: wait, and pay the rest.
    pub fn pay(&self, due: &mut Due) -> Result<(), Spent> {
        let gateways = count(&self.gateways);
        // The principal's first: a principal over its own quota takes nothing from its tenant's.
        for scope in [1, 0] {
            let mut state = self.buckets[scope].0.lock();
            if state.gateways != gateways {
                let limits = state.limits;
                state.change(limits, gateways);
            }
            state.used = Instant::now();
            let State { limiters, spare, .. } = &mut *state;
            for (kind, limiter) in limiters.iter().enumerate() {
                if let Some(limiter) = limiter {
                    let (due, spare) = (&mut due.0[scope][kind], &mut spare[kind]);
                    let spent = (*due).min(*spare);
                    (*due, *spare) = (*due - spent, *spare - spent);
                    limiter.pay(due).map_err(|retry_after| Spent {
                        quota: NAMES[scope][kind],
                        retry_after,
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Pays for one event of so many bytes, or for nothing: what was paid before a quota did not reach is left to whoever
    /// pays next. So refusals use nothing up, and an event that is larger than a burst is paid for after some tries.
    ///
    /// # Errors
    /// [`Spent`], with the first quota that does not reach: wait, and try again.
    pub fn pay_for_one(&self, bytes: usize) -> Result<(), Spent> {
        // What is larger will be refused anyway, and would pile up more than an event can cost.
        let whole = Due::of(1, bytes.min(MAX_EVENT_BYTES) as u64);
        let mut due = whole;
        self.pay(&mut due).inspect_err(|_| {
            for (scope, bucket) in self.buckets.iter().enumerate() {
                let mut state = bucket.0.lock();
                let paid = whole.0[scope].iter().zip(due.0[scope]).map(|(whole, due)| whole - due);
                for (spare, paid) in state.spare.iter_mut().zip(paid) {
                    *spare += paid;
                }
            }
        })
    }
}

/// How many gateways share every quota.
fn count(gateways: &AtomicU32) -> u32 {
    gateways.load(Ordering::Relaxed).max(1)
}

impl State {
    fn full(limits: Limits, gateways: u32) -> Self {
        let full = |rate: Option<Rate>| rate.map(|rate| Limiter::new(rate, gateways, 1.0));
        Self {
            limits,
            gateways,
            limiters: [limits.events, limits.bytes].map(full),
            spare: [0, 0],
            used: Instant::now(),
        }
    }

    /// Goes on with other limits, or as one of more or fewer gateways.
    fn change(&mut self, limits: Limits, gateways: u32) {
        if (self.limits, self.gateways) == (limits, gateways) {
            return;
        }
        let left = |limiter: &Option<Limiter>| limiter.as_ref().map_or(1.0, Limiter::left);
        let [events, bytes] = &self.limiters;
        let change = |rate: Option<Rate>, left| rate.map(|rate| Limiter::new(rate, gateways, left));
        self.limiters = [change(limits.events, left(events)), change(limits.bytes, left(bytes))];
        (self.limits, self.gateways) = (limits, gateways);
    }

    fn is_full(&self) -> bool {
        let refill = self.limiters.iter().flatten().map(Limiter::refill).max();
        self.used.elapsed() >= refill.unwrap_or_default()
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
