//! The gateway: takes events in over gRPC and stores them in Kafka (`ingest`), reads the decisions and gives them out
//! (`decisions`). `connect` reaches the other parts, `server` serves and drains; `service` is the gRPC surface.

pub mod accept;
pub mod audit;
pub mod auth;
pub mod config;
pub mod connect;
pub mod decide;
pub mod decisions;
pub mod guard;
pub mod health;
pub mod ingest;
pub mod metrics;
pub mod peers;
pub mod privacy;
pub mod quota;
pub mod reload;
pub mod review;
pub mod server;
pub mod service;
pub mod status;
pub mod tls;
pub mod vital;
