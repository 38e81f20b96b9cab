//! Owns what a payment looks like next to its account's past: the only thing that the rules with history see.
//!
//! Made by [`crate::state`], read by [`crate::rules`].

pub(crate) use crate::whereabouts::{Move, Trip};

/// Facts about one payment, from the state of its partition.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Features {
    /// Payments of the account in the window that ends with this one, itself included.
    pub(crate) recent_payments: usize,
    /// The account was somewhere else by name a short while ago.
    pub(crate) moved: Option<Move>,
    /// The way from the account's latest known coordinates.
    pub(crate) travelled: Option<Trip>,
}
