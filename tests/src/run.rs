//! Runs a test on a stack, with a bound on its time, and shows the parts' logs when it fails.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::OnceCell;

use crate::stack::{Options, Stack};

/// The longest time of one test: it bounds a test that hangs.
const LIMIT: Duration = Duration::from_secs(240);

/// The stack of the tests that change nothing in it but their own tenant's events. It ends with the process.
static SHARED: OnceCell<Stack> = OnceCell::const_new();

/// Runs a test on the stack that many tests share. It must use a tenant of its own.
///
/// # Panics
/// When the test fails.
pub fn on_shared(test: impl AsyncFnOnce(&Stack) -> Result<()>) {
    block_on(async {
        let stack = SHARED.get_or_try_init(|| Stack::start(Options::default())).await?;
        let _guard = ShowOnPanic(stack);
        bounded(LIMIT, test(stack))
            .await
            .map_err(|error| with_logs(&error, stack))
    });
}

/// Runs a test on a stack of its own, which it may break.
///
/// # Panics
/// When the test fails.
pub fn on_own(options: Options, test: impl AsyncFnOnce(&mut Stack) -> Result<()>) {
    on_own_within(LIMIT, options, test);
}

/// The same for a test that takes longer.
///
/// # Panics
/// When the test fails.
pub fn on_own_within(limit: Duration, options: Options, test: impl AsyncFnOnce(&mut Stack) -> Result<()>) {
    prepared_within(limit, options, async |stack| {
        stack.start_all().await?;
        test(stack).await
    });
}

/// Runs a test on a stack of its own, of which it starts the parts itself.
///
/// # Panics
/// When the test fails.
pub fn on_prepared(options: Options, test: impl AsyncFnOnce(&mut Stack) -> Result<()>) {
    prepared_within(LIMIT, options, test);
}

fn prepared_within(limit: Duration, options: Options, test: impl AsyncFnOnce(&mut Stack) -> Result<()>) {
    block_on(async {
        let mut stack = Stack::prepare(options).await?;
        let result = bounded(limit, test(&mut stack)).await;
        result.map_err(|error| with_logs(&error, &stack))?;
        // Only what failed leaves its logs behind.
        Ok(std::fs::remove_dir_all(stack.directory())?)
    });
}

/// Shows the logs of a stack that outlives a test that panics.
struct ShowOnPanic<'a>(&'a Stack);

impl Drop for ShowOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.log_tails());
        }
    }
}

async fn bounded(limit: Duration, test: impl Future<Output = Result<()>>) -> Result<()> {
    let limited = tokio::time::timeout(limit, test).await;
    limited.with_context(|| format!("the test took more than {} s", limit.as_secs()))?
}

/// What went wrong, then what the parts said meanwhile.
fn with_logs(error: &anyhow::Error, stack: &Stack) -> anyhow::Error {
    anyhow::anyhow!("{error:#}\n\n{}", stack.log_tails())
}

fn block_on(test: impl Future<Output = Result<()>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("no runtime").and_then(|runtime| runtime.block_on(test));
    if let Err(error) = result {
        panic!("{error:#}");
    }
}
