//! The loader: payments at a schedule that no server slows down, what became of each, and reports of it; besides, the
//! demo's publisher and the benchmarks.
//!
//! `generate`, `card_file` and `source` make events; `run` sends them and measures; `report` shows what was measured.
//! `demo` publishes payments and follows each one to its decision; `bench` measures the gateway and the processor. Tests
//! use the same generator.

pub mod bench;
pub mod card_file;
pub mod config_file;
pub mod demo;
pub mod generate;
pub mod report;
pub mod run;
mod source;
mod world;

/// The key that a gateway without a file of principals knows.
pub const DEVELOPMENT_KEY: &str = "sluice-dev-key";

/// The clock that events are stamped with, in microseconds since the Unix epoch.
pub fn now_micros() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |elapsed| elapsed.as_micros() as i64)
}
