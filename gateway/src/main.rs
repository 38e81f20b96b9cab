//! The gateway's process: parse, telemetry, build, run, drain. Everything else is in the library.

use std::process::ExitCode;

use anyhow::Context;
use sluice_gateway::config::{self, Config};
use sluice_gateway::server::{self, Server};
use sluice_kafka::{options, telemetry};

/// librdkafka allocates as often as we do, and the `override` feature serves it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-gateway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let config = match Config::load(std::env::args_os()) {
        Err(config::Error::Options(options::Error::Options(error))) => error.exit(),
        loaded => loaded?,
    };
    config.validate()?;
    if config.check_config {
        println!("the configuration is valid");
        return Ok(());
    }
    let telemetry = telemetry::init("sluice-gateway", &config.log, config.otlp_endpoint.as_deref())?;
    let tracer = telemetry.tracer();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let served = runtime.block_on(async {
        let signals = server::signals().context("cannot listen to signals")?;
        let server = Server::build(config, tracer).await?;
        server.run(signals).await?;
        anyhow::Ok(())
    });
    drop(runtime);
    telemetry.shutdown();
    served
}
