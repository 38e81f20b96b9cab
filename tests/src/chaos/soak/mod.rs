//! The soak: one installation under load for as long as is asked, with faults all along.
//!
//! `options` says what to run; `run` goes from round to round on servers that stay up: traffic with `faults`, then a rest in
//! which `check` compares everything that the round left, and what was checked is removed. `sample` looks meanwhile at what
//! the servers take that nobody kills, and `report` tells whether it stayed the same.

pub mod check;
pub mod faults;
pub mod options;
pub mod report;
pub mod run;
pub mod sample;
