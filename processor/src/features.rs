//! Owns what a payment looks like next to its account's past: the only thing that the rules with history see.
//!
//! Made by [`crate::state`], read by [`crate::rules`].

pub use crate::whereabouts::{Move, Trip};

/// Facts about one payment, from the state of its partition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Features {
    /// Payments of the account in the window that ends with this one, itself included.
    pub recent_payments: usize,
    /// The account was somewhere else by name a short while ago.
    pub moved: Option<Move>,
    /// The way from the account's latest known coordinates.
    pub travelled: Option<Trip>,
}
