//! A real OpenTelemetry collector, and the spans that it received.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::Process;
use crate::{command, servers, wait};

/// A collector that is a single executable in a Python package.
const PACKAGE: &str = "rotel==0.0.1a15";

/// A span as the collector shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The resource's `service.name`.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its trace, in hex.
    pub trace_id: String,
    /// Its id, in hex.
    pub id: String,
    /// Its parent's id, in hex; empty at the root.
    pub parent_id: String,
}

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    process: Process,
    address: SocketAddr,
}

impl Collector {
    /// Starts a collector; none where Python is missing.
    ///
    /// # Errors
    /// When it cannot be installed or started.
    pub async fn start(directory: &Path) -> Result<Option<Self>> {
        let Some(program) = install().await? else {
            return Ok(None);
        };
        let (address, http) = (servers::free_address()?, servers::free_address()?);
        let arguments = [
            "start",
            "--exporter=blackhole",
            "--debug-log=traces",
            "--debug-log-verbosity=detailed",
            "--otlp-grpc-endpoint",
            &address.to_string(),
            "--otlp-http-endpoint",
            &http.to_string(),
        ];
        let mut process = Process::start("collector", &program, &arguments, &[], directory)?;
        wait::until("the collector listens", async || {
            process.must_run()?;
            Ok(tokio::net::TcpStream::connect(address).await.ok())
        })
        .await?;
        Ok(Some(Self { process, address }))
    }

    /// Where OTLP over gRPC is taken.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans received so far.
    ///
    /// # Errors
    /// When the collector's log cannot be read.
    pub fn spans(&self) -> Result<Vec<Span>> {
        let log = std::fs::read(self.process.log()).context("the collector's log")?;
        Ok(parse(&String::from_utf8_lossy(&log)))
    }
}

async fn install() -> Result<Option<PathBuf>> {
    let environment = command::cache().join("collector");
    if let Some(program) = find(&environment) {
        return Ok(Some(program));
    }
    if !command::installed("python3") {
        return Ok(None);
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv"]).arg(&environment);
    command::succeed(make).await?;
    let mut install = Command::new(environment.join("bin/pip"));
    install.args(["install", "--quiet", "--disable-pip-version-check", PACKAGE]);
    command::succeed(install).await?;
    Ok(Some(
        find(&environment).context("the collector's package has no executable")?,
    ))
}

fn find(environment: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(environment.join("lib")).ok()?;
    let programs = versions
        .flatten()
        .map(|version| version.path().join("site-packages/rotel/rotel-agent"));
    programs.into_iter().find(|program| program.is_file())
}

/// Reads the collector's detailed log, which shows a span in lines of `name : value`. A span that is not written whole
/// yet is left out.
fn parse(log: &str) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut service = String::new();
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    for line in log.lines() {
        let line = line.trim();
        if line.starts_with("ResourceSpans #") {
            service.clear();
        } else if let Some(value) = line.strip_prefix("-> service.name: Str(") {
            value.trim_end_matches(')').clone_into(&mut service);
        } else if line.starts_with("Span #") {
            fields.clear();
        } else if let Some(_end) = line.strip_prefix("End time:") {
            let mut take = |name: &str| fields.remove(name).unwrap_or_default();
            spans.push(Span {
                service: service.clone(),
                name: take("Name"),
                trace_id: take("Trace ID"),
                id: take("ID"),
                parent_id: take("Parent ID"),
            });
        } else if let Some((name, value)) = line.split_once(" : ") {
            fields.insert(name.trim().to_owned(), value.trim().to_owned());
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_the_collector_is_understood() {
        let log = "\
ResourceSpans #0
Resource SchemaURL:
Resource attributes:
     -> service.name: Str(sluice-gateway)
ScopeSpans #0
InstrumentationScope s
Span #0
    Trace ID       : 0af7651916cd43dd8448eb211c80319c
    Parent ID      : b7ad6b7169203332
    ID             : b7ad6b7169203331
    Name           : publish
    Kind           : SPAN_KIND_INTERNAL
Start time: 1
End time: 2
Span #1
    Trace ID       : 0af7";
        let span = Span {
            service: "sluice-gateway".to_owned(),
            name: "publish".to_owned(),
            trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
            id: "b7ad6b7169203331".to_owned(),
            parent_id: "b7ad6b7169203332".to_owned(),
        };
        assert_eq!(parse(log), [span]);
    }
}
