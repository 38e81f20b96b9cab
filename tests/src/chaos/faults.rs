//! The places at which a fault can be injected, and the faults, as the servers read them.
//!
//! Comes before [`super::scenario`] chooses among them; the servers' side is `sluice_kafka::fail`.

use std::fmt;

use fastrand::Rng;

/// A place, with the latest time of passing it at which a fault is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its name.
    pub name: &'static str,
    /// Every trial comes by at least so often within seconds.
    pub hits: u64,
}

const fn point(name: &'static str, hits: u64) -> Point {
    Point { name, hits }
}

/// Between every two steps of a lane's batch and of a takeover.
pub const PROCESSOR: [Point; 18] = [
    point("lane.polled", 60),
    point("lane.decided", 60),
    point("ledger.preparing", 60),
    point("lane.sent", 60),
    point("ledger.prepared", 60),
    point("lane.settled", 60),
    point("lane.prepared", 60),
    point("lane.committed", 60),
    point("lane.merged", 60),
    point("lane.flushing", 3),
    point("lane.flushed", 3),
    point("takeover.epochs", 2),
    point("takeover.producer", 2),
    point("takeover.offsets", 2),
    point("takeover.proof", 2),
    point("takeover.refill", 2),
    point("takeover.compensation", 2),
    point("takeover.state", 2),
];

/// Around the gateway's producing, acknowledging and delivering.
pub const GATEWAY: [Point; 5] = [
    point("gateway.producing", 1_000),
    point("gateway.delivered", 1_000),
    point("gateway.acking", 50),
    point("gateway.routing", 30),
    point("gateway.delivering", 30),
];

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is gone at once.
    Kill,
    /// The process does not run until it is told to go on.
    Stop,
    /// The step fails.
    Error,
    /// The thread panics.
    Panic,
    /// The step takes so much longer, in milliseconds.
    Delay(u32),
}

impl Fault {
    /// Whether the process is gone after it. The processor ends when a lane panics.
    pub const fn ends_the_processor(self) -> bool {
        matches!(self, Self::Kill | Self::Panic)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => f.write_str("kill"),
            Self::Stop => f.write_str("stop"),
            Self::Error => f.write_str("error"),
            Self::Panic => f.write_str("panic"),
            Self::Delay(ms) => write!(f, "delay:{ms}"),
        }
    }
}

/// A fault at a time of passing a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Armed {
    /// Where.
    pub point: &'static str,
    /// What.
    pub fault: Fault,
    /// The how manieth time, from 1.
    pub hit: u64,
}

impl Armed {
    /// A fault at a certain place and time.
    pub const fn at(point: &'static str, fault: Fault, hit: u64) -> Self {
        Self { point, fault, hit }
    }

    /// One of these points and one of these faults.
    pub fn choose(rng: &mut Rng, points: &[Point], faults: &[Fault]) -> Self {
        let point = points[rng.usize(..points.len())];
        Self {
            point: point.name,
            fault: faults[rng.usize(..faults.len())],
            hit: rng.u64(1..=point.hits),
        }
    }
}

impl fmt::Display for Armed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}@{}", self.point, self.fault, self.hit)
    }
}
