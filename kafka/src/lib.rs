//! What the gateway, the processor and sluicectl share around Kafka: how clients are configured, what their errors mean,
//! how they are measured, which topics and schemas there are, and the telemetry and admin port of both servers.
//!
//! Nothing here holds a control flow of its own: the drivers in the gateway and the processor own their producers and
//! consumers, and ask this crate how to build them ([`config`]) and what an error allows them to do next ([`error`]).

pub mod admin;
pub mod config;
pub mod context;
pub mod endings;
pub mod error;
pub mod fail;
pub mod headers;
pub mod metrics;
pub mod options;
mod patience;
pub mod registry;
pub mod scan;
pub mod serve;
pub mod telemetry;
pub mod topics;

pub use config::Config;
pub use metrics::Metrics;
pub use patience::{PATIENCE, patiently};
pub use topics::Topics;
