//! The processor: decides every payment exactly once, and keeps a Postgres ledger that never disagrees with what
//! subscribers saw.

pub mod config;
pub mod features;
pub mod rules;
mod score;
pub mod state;
mod whereabouts;
mod windows;

#[cfg(test)]
mod testing;
