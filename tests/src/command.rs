//! Programs that others wrote: the tools and the clients that must be able to use an installation.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::servers;

/// With this code an example says that its toolchain is missing.
const SKIPPED: i32 = 77;
/// Fixed versions, because what is newest changes.
const GRPCURL: &str = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4";
const GHZ: &str = "github.com/bojand/ghz/cmd/ghz@v0.121.0";

/// Whether the search path has a program.
pub fn installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).is_file()))
}

/// Says in the test's output that a part of it was skipped, and why.
pub fn skipped(what: &str, why: &str) {
    // Written past the capture of the test's output, or nobody would see it.
    let mut screen = std::io::stderr().lock();
    drop(std::io::Write::write_fmt(
        &mut screen,
        format_args!("skipped: {what} ({why})\n"),
    ));
}

/// Runs a program to its end, away from the runtime.
///
/// # Errors
/// When it cannot be started.
pub async fn run(mut command: Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await?;
    output.with_context(|| format!("cannot start {name}"))
}

/// Runs a program, which must succeed, and returns what it printed.
///
/// # Errors
/// With its output, when it fails.
pub async fn succeed(command: Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = run(command).await?;
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{shown}: {}\n{out}{error}", output.status);
    Ok(out)
}

/// Runs a script, which must succeed or say that it cannot run here.
///
/// # Errors
/// With its output, when it fails.
pub async fn succeed_or_skip(what: &str, command: Command) -> Result<Option<String>> {
    let output = run(command).await?;
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    match output.status.code() {
        Some(0) => Ok(Some(out)),
        Some(SKIPPED) => {
            skipped(
                what,
                error
                    .lines()
                    .last()
                    .or(out.lines().last())
                    .unwrap_or("it says that it cannot run here"),
            );
            Ok(None)
        }
        _ => bail!("{what}: {}\n{out}{error}", output.status),
    }
}

/// grpcurl, installed into the cache when it is not there; none where Go is missing.
///
/// # Errors
/// When it cannot be installed.
pub async fn grpcurl() -> Result<Option<PathBuf>> {
    go_program("grpcurl", GRPCURL).await
}

/// ghz, in the same way.
///
/// # Errors
/// When it cannot be installed.
pub async fn ghz() -> Result<Option<PathBuf>> {
    go_program("ghz", GHZ).await
}

async fn go_program(name: &str, package: &str) -> Result<Option<PathBuf>> {
    let directory = cache().join("bin");
    let program = directory.join(name);
    if program.is_file() {
        return Ok(Some(program));
    }
    if !installed("go") {
        return Ok(None);
    }
    let mut install = Command::new("go");
    install
        .args(["install", package])
        .env("GOBIN", &directory)
        .env("GOFLAGS", "-mod=mod");
    succeed(install).await?;
    Ok(Some(program))
}

/// What is downloaded once and kept.
pub fn cache() -> PathBuf {
    servers::root().join(".sluice/cache")
}

/// A client's directory.
pub fn client(language: &str) -> PathBuf {
    servers::root().join("clients").join(language)
}

/// A script in a client's directory.
pub fn script(directory: &Path, name: &str) -> Command {
    let mut command = Command::new(directory.join(name));
    command.current_dir(directory);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
