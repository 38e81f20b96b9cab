//! Fault injection on the real parts: seeded trials, each on an installation of its own, each checked as a whole.
//!
//! `options` says what to run; a trial (`run`) takes its `scenario` or its `broken` build, lets that break a `world` while
//! traffic flows and `watch` looks on, and hands what is left to the checker; `report` tells what came of all. `soak` is one
//! long trial.

pub mod broken;
pub mod clock;
pub mod cluster;
pub mod cluster_faults;
pub mod disk;
pub mod faults;
pub mod money;
pub mod options;
pub mod report;
pub mod run;
pub mod scenario;
pub mod soak;
pub mod surroundings;
pub mod watch;
pub mod world;
