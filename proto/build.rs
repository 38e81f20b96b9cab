//! Compiles the contract with a pure Rust compiler, so that no protoc is needed.

use std::error::Error;
use std::path::PathBuf;

use protox::prost::Message;

const FILES: [&str; 7] = [
    "sluice/v1/event.proto",
    "sluice/v1/decision.proto",
    "sluice/v1/ingest.proto",
    "sluice/v1/decisions.proto",
    "sluice/v1/schema.proto",
    "sluice/v1/audit.proto",
    "sluice/v1/review.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=sluice");
    println!("cargo::rerun-if-changed=google");
    let descriptors = protox::compile(FILES, ["."])?;
    // gRPC reflection serves the contract from these bytes.
    let descriptor_path = PathBuf::from(std::env::var("OUT_DIR")?).join("sluice.bin");
    std::fs::write(descriptor_path, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Events stay encoded until the gateway decodes them one by one: see `wire`.
        .extern_path(".sluice.v1.EventBatch", "crate::wire::EventBatch")
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
