//! Owns what a lane writes with: its connection to the ledger and its producers, and when these have to be new.
//!
//! Held by [`crate::lane`], made by [`crate::takeover`].

use std::time::Duration;

use crate::publish;
use crate::world::World;

/// What has to be new after a failure.
pub(crate) struct Links<W: World> {
    pub(crate) ledger: Option<W::Books>,
    pub(crate) publisher: Option<W::Transactions>,
}

impl<W: World> Links<W> {
    pub(crate) const NONE: Self = Self {
        ledger: None,
        publisher: None,
    };
}

/// Takes in how long the end of a producer's transaction took to be answered. It has ended; but where a copy of the request
/// may still be on its way, the producer is given up, so that the next one makes the broker refuse it.
pub(crate) fn ended<P>(publisher: &mut Option<P>, step: &'static str, took: Duration) {
    if let Err(doubtful) = publish::sent_once(step, took, publish::DOUBTFUL_END) {
        tracing::warn!(%doubtful, "going on with a new producer");
        *publisher = None;
    }
}
