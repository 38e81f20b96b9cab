//! The publisher of demonstrations and measurements: realistic payments, the demo's table, and the benchmarks.
//!
//! `generate` and `card_file` make payments; `demo` publishes them and follows each one to its decision; `bench`
//! measures the gateway and the processor. Tests use the same generator.

pub mod bench;
pub mod card_file;
pub mod demo;
pub mod generate;
mod world;

/// The clock that events are stamped with, in microseconds since the Unix epoch.
pub fn now_micros() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |elapsed| elapsed.as_micros() as i64)
}
