//! The processor: decides every payment exactly once, and keeps a Postgres ledger that never disagrees with what
//! subscribers saw.
//!
//! [`processor`] builds and runs the whole; [`lane`] is the driver that a batch passes through, with [`takeover`] before
//! its first one. The state and the rules do no I/O and read no clock.

pub mod backtest;
pub mod config;
pub mod processor;
pub mod rule_archive;
pub mod rules;
#[cfg(feature = "failpoints")]
pub mod sim;

mod account;
mod amounts;
mod batch;
mod breaker;
mod calendar;
mod consume;
mod dead_letter;
mod decode;
mod features;
mod habits;
mod lane;
mod ledger;
mod linger;
mod links;
mod merchant;
mod metrics;
mod publish;
mod refill;
mod replay;
mod saga;
mod same_log;
mod score;
mod servers;
mod snapshot;
mod state;
mod takeover;
mod warm_up;
mod whereabouts;
mod windows;
mod world;

#[cfg(test)]
mod testing;
