//! Owns what happens to the money of decided payments: captured at the payment rail, released, held for a verdict or a
//! deadline, refunded.
//!
//! Comes after the ledger, and beside the lanes: a runner ([`runner`]) reads the rows that lanes have committed and never
//! holds one up. A committed APPROVE row *is* the reservation and the order to capture, so that the usual payment costs no
//! second row: one position a partition says up to where everything is settled. Only what is not trivial has a row of its
//! own, whose life [`machine`] describes.
//!
//! A runner serves the partitions whose lanes are its own process's, and fences earlier runners by an epoch in Postgres:
//! a write of an older epoch matches no row. Whatever such a runner still asks of the rail is harmless, because what may
//! be asked follows from rows that were committed before, and the rail keeps each key apart.

pub(crate) mod backoff;
pub(crate) mod breaker;
pub(crate) mod calls;
pub(crate) mod fresh;
pub(crate) mod heed;
pub(crate) mod machine;
pub(crate) mod notify;
pub(crate) mod rail;
pub(crate) mod runner;
pub(crate) mod store;
pub(crate) mod verdicts;
pub(crate) mod work;
