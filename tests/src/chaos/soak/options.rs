//! What `./dev soak` is asked for.
//!
//! Comes first in `sluice-soak`, before [`super::run`].

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Publishes payments at half of what the servers can sustain, breaks them again and again, checks every record, and says
/// whether memory, file descriptors, threads and latency stayed the same.
#[derive(Clone, Debug, Parser)]
#[command(name = "sluice-soak")]
pub struct Options {
    /// Begins no round after so many minutes; a round takes three to four
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub minutes: u64,
    /// Payments a second, of two tenants; half of the 32,000 a second that were sustained with everything on two cores
    #[arg(long, default_value_t = 16_000, value_parser = clap::value_parser!(u32).range(400..=200_000))]
    pub rate: u32,
    /// Where the choices come from
    #[arg(long)]
    pub seed: Option<u64>,
    /// Writes the figures as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the report as Markdown
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

impl Options {
    /// After how long no round begins any more.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(60 * self.minutes)
    }
}
