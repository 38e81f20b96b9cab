//! sluice-processor: parse ▸ telemetry ▸ build ▸ run ▸ drain.

use std::process::ExitCode;

use sluice_kafka::{options, telemetry};
use sluice_processor::config::{self, Config};
use sluice_processor::processor::Processor;
use tokio::signal::unix::{SignalKind, signal};

/// librdkafka allocates as often as we do, and the `override` feature serves it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a shell reports for a process that a signal ended.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let config = match Config::load() {
        Ok(config) => config,
        Err(config::Error::Options(options::Error::Options(error))) => error.exit(),
        Err(error) => {
            eprintln!("sluice-processor: {error}");
            return ExitCode::from(2);
        }
    };
    if config.check_config {
        println!("the configuration is valid");
        return ExitCode::SUCCESS;
    }
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-processor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    let telemetry = telemetry::init("sluice-processor", &config.log, config.otlp_endpoint.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let processor = Processor::build(config, telemetry.tracer()).await?;
        let shutdown = async move {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            tokio::spawn(async move {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                std::process::exit(INTERRUPTED);
            });
        };
        Ok(processor.run(shutdown).await?)
    });
    runtime.shutdown_background();
    telemetry.shutdown();
    ended
}
