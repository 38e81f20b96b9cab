//! Runs trials one after the other, each in a runtime of its own, so that nothing of one outlives it.
//!
//! Comes after [`super::options`], before [`super::report`].

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::options::{Options, What};
use super::report::Report;
use super::world::{Left, World};
use crate::checker::{Invariant, Violation, Violations, tell};

/// The longest time of one trial, beyond what it was told to last: it bounds one that hangs.
const LIMIT: Duration = Duration::from_secs(600);

/// What came of one trial.
#[derive(Debug)]
pub struct Trial {
    /// What was done.
    pub what: What,
    /// Repeats it.
    pub seed: u64,
    /// Everything that was broken, in order.
    pub faults: Vec<String>,
    /// Records of the payments topic that were checked.
    pub events: usize,
    /// Ids that the gateway acknowledged.
    pub acked: usize,
    /// Decisions that subscribers received.
    pub delivered: usize,
    /// Rows that takeovers removed.
    pub compensated: i64,
    /// Times until everything worked again.
    pub recoveries: Vec<Duration>,
    /// What was wrong.
    pub violations: Vec<Violation>,
    /// Where the logs are, where something was wrong.
    pub logs: Option<PathBuf>,
    /// How long it took.
    pub took: Duration,
}

impl Trial {
    /// Whether it ended as it should: nothing wrong with whole parts, the right thing wrong with broken ones.
    pub fn passed(&self) -> bool {
        match self.what {
            What::Scenario(_) => self.violations.is_empty(),
            What::Broken(broken) => {
                let caught = |violation: &Violation| violation.invariant == broken.violates();
                self.violations.iter().any(caught)
            }
        }
    }
}

/// Runs what is asked for, and tells of each trial as it ends.
///
/// # Errors
/// When there is no such scenario.
pub fn run(options: &Options) -> Result<Report> {
    let (pattern, trials) = options.plan().map_err(anyhow::Error::msg)?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("seed {seed}");
    let began = Instant::now();
    let mut report = Report::new(seed);
    for number in 0..trials {
        if began.elapsed() >= options.limit() {
            break;
        }
        let what = pattern[usize::try_from(number)? % pattern.len()];
        let lasts = Duration::from_secs(options.seconds);
        let trial = one(what, seed.wrapping_add(number), lasts)?;
        println!("{}", report.line(&trial));
        report.add(trial);
    }
    report.took = began.elapsed();
    Ok(report)
}

fn one(what: What, seed: u64, lasts: Duration) -> Result<Trial> {
    let mut trial = Trial {
        what,
        seed,
        faults: Vec::new(),
        events: 0,
        acked: 0,
        delivered: 0,
        compensated: 0,
        recoveries: Vec::new(),
        violations: Vec::new(),
        logs: None,
        took: Duration::ZERO,
    };
    let began = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut violations = Violations::default();
    let ended = runtime.block_on(async {
        let ended = tokio::time::timeout(LIMIT + lasts, attempt(&mut trial, &mut violations, lasts)).await;
        ended.unwrap_or_else(|_| Err(anyhow::anyhow!("it took more than {} s", (LIMIT + lasts).as_secs())))
    });
    if let Err(error) = ended {
        violations.add(Invariant::Progress, format!("{error:#}"));
    }
    // What the trial left running ends here.
    runtime.shutdown_timeout(Duration::from_secs(1));
    trial.violations = violations.into_vec();
    trial.took = began.elapsed();
    if let Some(logs) = &trial.logs {
        if trial.violations.is_empty() {
            std::fs::remove_dir_all(logs)?;
            trial.logs = None;
        } else {
            let told = format!("{}\n{}\n", trial.faults.join("\n"), tell(&trial.violations));
            std::fs::write(logs.join("violations.txt"), told)?;
        }
    }
    Ok(trial)
}

async fn attempt(trial: &mut Trial, violations: &mut Violations, lasts: Duration) -> Result<()> {
    let setup = match trial.what {
        What::Scenario(scenario) => scenario.setup(),
        What::Broken(broken) => broken.setup(),
    };
    let mut world = World::start(setup, trial.seed, lasts)
        .await
        .context("the trial did not start")?;
    trial.logs = Some(world.stack.directory().to_owned());
    let ended = match trial.what {
        What::Scenario(scenario) => scenario.run(&mut world).await,
        What::Broken(broken) => broken.run(&mut world).await,
    };
    trial.faults.clone_from(&world.faults);
    trial.recoveries.clone_from(&world.recoveries);
    if let Err(error) = ended {
        // What does not go on any more may still be wrong in a way that tells more.
        violations.add(Invariant::Progress, format!("{error:#}"));
    }
    let Left {
        stack,
        cluster,
        outcomes,
        history,
    } = world.end(violations).await?;
    trial.events = history.records.len();
    trial.acked = outcomes.expected.acked.len();
    trial.delivered = outcomes.received.iter().map(|received| received.decisions.len()).sum();
    trial.compensated = history.compensations.iter().map(|removed| removed.rows).sum();
    stack.remove().await?;
    drop(cluster);
    Ok(())
}
