//! A stand-in for a payment rail: a process of its own that keeps a book of every key it was ever asked about, and to which
//! faults can be ordered. It shares no code with the processor, so that its book is a second opinion on every payment.
//!
//! `book` is what it does with an order, `faults` what goes wrong meanwhile, `server` how it is called; `client` is how
//! tests start it, order faults and read its book. docs/saga.md describes the protocol.

pub mod book;
pub mod client;
pub mod faults;
pub mod server;
