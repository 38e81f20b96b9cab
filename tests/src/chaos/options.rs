//! What `./dev chaos` is asked for.
//!
//! Comes first in `sluice-chaos`, before [`super::run`].

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::broken::Broken;
use super::scenario::Scenario;

/// Breaks the real parts while payments flow, and checks that nothing was lost, doubled or changed.
#[derive(Clone, Debug, Parser)]
#[command(name = "sluice-chaos")]
pub struct Options {
    /// A scenario, or a broken build (without-...), or broken for all of these; without it, every scenario in turn but
    /// cluster and full-disk, which need root
    #[arg(long)]
    pub scenario: Option<String>,
    /// How many trials; each takes 10 to 30 seconds
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub trials: Option<u64>,
    /// Begins no trial after so many minutes
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub minutes: Option<u64>,
    /// For how many seconds a scenario goes on that has no end of its own (saga)
    #[arg(long, default_value_t = 45, value_parser = clap::value_parser!(u64).range(20..=7_200))]
    pub seconds: u64,
    /// Where the choices come from; trial N has the seed S + N, so that --trials 1 --seed repeats one
    #[arg(long)]
    pub seed: Option<u64>,
    /// Writes the figures as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the report as Markdown
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// The selection that ./dev test runs
    #[arg(long, conflicts_with_all = ["scenario", "trials", "minutes"])]
    pub short: bool,
    /// Prints the scenarios and the broken builds, and ends
    #[arg(long)]
    pub list: bool,
}

/// What one trial does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Faults in parts that are as they should be.
    Scenario(Scenario),
    /// Faults in parts of which a safeguard was taken out, which must be noticed.
    Broken(Broken),
}

impl What {
    /// Its name as an option.
    pub fn name(self) -> String {
        match self {
            Self::Scenario(scenario) => scenario.name().to_owned(),
            Self::Broken(broken) => format!("without-{}", broken.name()),
        }
    }
}

impl Options {
    /// The trials to be run, as a pattern that is repeated, and how many there are at most.
    ///
    /// # Errors
    /// When the scenario is unknown; says which there are.
    pub fn plan(&self) -> Result<(Vec<What>, u64), String> {
        let scenarios = Scenario::ALL.map(What::Scenario);
        let broken = Broken::ALL.map(What::Broken);
        let pattern = match self.scenario.as_deref() {
            None if self.short => SHORT.to_vec(),
            None => {
                let usual = Scenario::ALL.into_iter().filter(|scenario| !scenario.is_apart());
                usual.map(What::Scenario).collect()
            }
            Some("broken") => broken.to_vec(),
            Some(name) => {
                let mut all = scenarios.iter().chain(&broken);
                let found = all.find(|what| what.name() == name);
                vec![*found.ok_or_else(|| format!("there is no scenario {name}:\n{}", Self::names()))?]
            }
        };
        let unbounded = if self.minutes.is_some() {
            u64::MAX
        } else {
            pattern.len() as u64
        };
        let trials = self.trials.unwrap_or(unbounded);
        Ok((pattern, trials))
    }

    /// After how long no trial begins any more.
    pub fn limit(&self) -> Duration {
        self.minutes
            .map_or(Duration::MAX, |minutes| Duration::from_secs(60 * minutes))
    }

    /// The names of all scenarios and broken builds, one a line.
    pub fn names() -> String {
        let scenarios = Scenario::ALL.map(|it| format!("{:<24}{}\n", it.name(), it.about()));
        let broken = Broken::ALL.map(|it| format!("without-{:<16}{}\n", it.name(), it.about()));
        scenarios.concat() + &broken.concat()
    }
}

/// The most telling ones, in under 4 minutes.
const SHORT: &[What] = &[
    What::Scenario(Scenario::ProcessorFaults),
    What::Scenario(Scenario::GatewayFaults),
    What::Scenario(Scenario::Zombie),
    What::Scenario(Scenario::Postgres),
    What::Scenario(Scenario::Repeated),
    What::Broken(Broken::Compensation),
    What::Broken(Broken::Deduplication),
    What::Broken(Broken::HighWatermark),
    What::Broken(Broken::Epoch),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_found_by_its_name_and_an_unknown_one_is_told() {
        let plan = |arguments: &[&str]| {
            let arguments = std::iter::once(&"sluice-chaos").chain(arguments);
            Options::try_parse_from(arguments)
                .expect("the options are right")
                .plan()
        };
        assert_eq!(
            plan(&["--scenario", "zombie"]),
            Ok((vec![What::Scenario(Scenario::Zombie)], 1))
        );
        assert_eq!(
            plan(&["--scenario", "without-undo", "--trials", "3"]),
            Ok((vec![What::Broken(Broken::Undo)], 3))
        );
        assert_eq!(plan(&[]).map(|plan| plan.1), Ok(Scenario::ALL.len() as u64 - 2));
        assert_eq!(plan(&["--scenario", "cluster"]).map(|plan| plan.1), Ok(1));
        assert_eq!(plan(&["--minutes", "5"]).map(|plan| plan.1), Ok(u64::MAX));
        assert!(plan(&["--scenario", "peace"]).is_err_and(|told| told.contains("zombie")));
    }
}
