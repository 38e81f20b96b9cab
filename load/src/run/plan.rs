//! A run as its options mean it together: checked, and with what was left open decided.
//!
//! Comes after `options`, before anything is connected.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::connect::{Server, texts};
use super::feed::Extent;
use super::options::{Args, Course, LoadArgs, Mode};
use super::schedule::{Ramp, Shape};
use super::shared::Settings;
use crate::generate::Population;
use crate::report::{Objective, parse_objectives};
use crate::source::{Input, Plan as SourcePlan};

const DEFAULT_EVENTS: u64 = 200;
const DEFAULT_CALLS: u32 = 50;
/// How long `--find-max` tries a rate unless told.
const TRIAL: Duration = Duration::from_secs(10);
/// Event time runs at this rate when there is none.
const NOMINAL_RATE_PER_S: f64 = 5_000.0;
/// Reads the data from the standard input.
const STDIN: &str = "@";

/// A run that can be started.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) mode: Mode,
    pub(crate) server: Server,
    pub(crate) settings: Settings,
    /// Publishing workers.
    pub(crate) workers: usize,
    pub(crate) subscribers: usize,
    pub(crate) connections: usize,
    /// The rate; `None` for a closed loop without one, and for a file's own pace.
    pub(crate) shape: Option<Shape>,
    pub(crate) extent: Extent,
    /// Answers that are not measured.
    pub(crate) skip_first: u64,
    pub(crate) source: SourcePlan,
    pub(crate) objectives: Vec<Objective>,
    pub(crate) tags: std::collections::BTreeMap<String, String>,
    /// What was asked for, in words.
    pub(crate) load: String,
}

impl Plan {
    /// # Errors
    /// When the options contradict each other, or name what cannot be used.
    pub(crate) fn new(mode: Mode, args: &Args) -> anyhow::Result<Self> {
        let load = &args.load;
        check(mode, args)?;
        let default = if mode.is_unary() { DEFAULT_CALLS } else { 1 };
        let concurrency = concurrency(load, load.concurrency.unwrap_or(default))?;
        let shape = rate(load)?;
        let objectives = parse_objectives(&load.slo)?;
        if load.find_max {
            ensure!(
                !objectives.is_empty(),
                "--find-max needs --slo: an objective that fails when the rate is too high"
            );
            ensure!(load.rps > 0.0, "--find-max needs --rps: the rate to begin with");
        }
        let own_pace = args.input.replay.is_some() || args.input.csv.is_some();
        let own_pace = (own_pace && shape.is_none() && !load.closed_loop).then_some(args.input.speed);
        ensure!(own_pace != Some(0.0), "--speed must be more than 0");
        let extent = extent(
            mode,
            load,
            own_pace.is_some() || args.input.csv.is_some() || args.input.replay.is_some(),
        );
        let closed_loop = load.closed_loop || (shape.is_none() && own_pace.is_none());
        let workers = match mode {
            Mode::Subscribe => 0,
            _ => concurrency.peak(load.duration).ceil().max(1.0) as usize,
        };
        let subscribers = match mode {
            Mode::Subscribe => load.concurrency.unwrap_or(load.subscribers) as usize,
            Mode::EndToEnd => load.subscribers as usize,
            Mode::Publish | Mode::PublishOne | Mode::Decide => 0,
        };
        let within = extent.until_ns.map(Duration::from_nanos);
        let peak = shape.map_or(NOMINAL_RATE_PER_S, |shape| shape.peak(within));
        let words = words(mode, args, shape, own_pace, closed_loop, workers);
        Ok(Self {
            mode,
            server: Server::new(&args.server)?,
            settings: settings(load, concurrency, closed_loop),
            workers,
            subscribers,
            connections: load.connections as usize,
            shape,
            extent,
            skip_first: load.skip_first,
            source: SourcePlan {
                input: input(args)?,
                seed: args.input.seed,
                population: population(args),
                peak_rate_per_s: peak.max(1.0),
                copy_share: args.input.duplicates,
                poison_share: args.input.poison,
                keep_ids: mode != Mode::EndToEnd,
                own_pace,
            },
            objectives,
            tags: args
                .output
                .tags
                .as_deref()
                .map_or_else(|| Ok(Default::default()), |text| texts("--tags", text))?,
            load: words,
        })
    }

    /// The same run at another rate, for so long.
    pub(crate) fn at_rate(&self, rate_per_s: f64, duration: Option<Duration>) -> Self {
        let mut plan = self.clone();
        plan.shape = Some(Shape::Const(rate_per_s));
        plan.settings.closed_loop = false;
        plan.extent = Extent {
            events: None,
            until_ns: Some(duration.unwrap_or(TRIAL).as_nanos() as u64),
        };
        plan.source.peak_rate_per_s = rate_per_s;
        plan.load = format!("{rate_per_s:.0}/s for {:?}", duration.unwrap_or(TRIAL));
        plan
    }
}

/// Options that do not fit together.
fn check(mode: Mode, args: &Args) -> anyhow::Result<()> {
    let (load, input) = (&args.load, &args.input);
    let streams = matches!(mode, Mode::Publish | Mode::EndToEnd);
    let refuse = |wrong: bool, option: &str| {
        ensure!(!wrong, "{option} has no meaning for {}", mode.name());
        Ok(())
    };
    refuse(load.batch != 1 && !streams, "--batch")?;
    refuse(load.max_in_flight != 0 && !streams, "--max-in-flight")?;
    refuse(load.subscribers != 1 && mode != Mode::EndToEnd, "--subscribers")?;
    refuse(load.find_max && mode == Mode::Subscribe, "--find-max")?;
    if mode == Mode::Subscribe {
        refuse(load.rps != 0.0 || load.load_schedule != Course::Const, "a rate")?;
        refuse(input.data.is_some() || input.data_file.is_some(), "--data")?;
        refuse(input.csv.is_some() || input.replay.is_some(), "a file of events")?;
        ensure!(
            load.concurrency.unwrap_or(1) <= super::follow::MAX_SUBSCRIBERS as u32,
            "--concurrency of subscribe is at most {}",
            super::follow::MAX_SUBSCRIBERS
        );
    }
    if load.find_max {
        ensure!(
            load.load_schedule == Course::Const,
            "--find-max makes a schedule of its own: leave --load-schedule out"
        );
        ensure!(
            !load.closed_loop,
            "--find-max needs an open loop: leave --closed-loop out"
        );
        ensure!(load.find_precision > 0.0, "--find-precision must be more than 0");
        ensure!(
            load.total.is_none(),
            "--find-max tries each rate for --duration: leave --total out"
        );
    }
    ensure!(
        input.duplicates + input.poison <= 1.0,
        "--duplicates and --poison are together more than everything"
    );
    Ok(())
}

fn extent(mode: Mode, load: &LoadArgs, from_file: bool) -> Extent {
    let until = load.duration.or(load.max_duration);
    // A file and a subscription end by themselves, or when told.
    let ends_otherwise = load.duration.is_some() || from_file || (mode == Mode::Subscribe && until.is_some());
    let default = if ends_otherwise { None } else { Some(DEFAULT_EVENTS) };
    Extent {
        events: load.total.or(default),
        until_ns: until.map(|until| until.as_nanos() as u64),
    }
}

fn ramp(
    what: &str,
    start: Option<f64>,
    step: Option<f64>,
    every: Duration,
    end: Option<f64>,
    max: Option<Duration>,
) -> anyhow::Result<Ramp> {
    let start = start.with_context(|| format!("a schedule of steps or a line needs --{what}-start"))?;
    let step = step.with_context(|| format!("a schedule of steps or a line needs --{what}-step"))?;
    ensure!(step != 0.0, "--{what}-step must not be 0");
    if let Some(end) = end {
        ensure!(
            (end - start) * step >= 0.0,
            "--{what}-step leads away from --{what}-end"
        );
    }
    Ok(Ramp {
        start,
        step,
        every,
        end,
        max,
    })
}

fn rate(load: &LoadArgs) -> anyhow::Result<Option<Shape>> {
    let parts = (load.load_start, load.load_step, load.load_end, load.load_max_duration);
    let every = load.load_step_duration.unwrap_or(Duration::from_secs(1));
    Ok(match load.load_schedule {
        Course::Const => (load.rps > 0.0).then_some(Shape::Const(load.rps)),
        Course::Daily => {
            ensure!(load.rps > 0.0, "a daily schedule needs --rps: its mean");
            Some(Shape::Daily {
                mean: load.rps,
                day: load.load_day,
            })
        }
        Course::Step => {
            ensure!(
                load.load_step_duration.is_some(),
                "a schedule of steps needs --load-step-duration"
            );
            Some(Shape::Step(ramp("load", parts.0, parts.1, every, parts.2, parts.3)?))
        }
        Course::Line => Some(Shape::Line(ramp("load", parts.0, parts.1, every, parts.2, parts.3)?)),
    })
}

fn concurrency(load: &LoadArgs, workers: u32) -> anyhow::Result<Shape> {
    let number = |value: Option<u32>| value.map(f64::from);
    let (start, end) = (number(load.concurrency_start), number(load.concurrency_end));
    let max = load.concurrency_max_duration;
    let every = load.concurrency_step_duration.unwrap_or(Duration::from_secs(1));
    // Without an end it could grow for ever: -c is the bound then.
    let bound = |ramp: Ramp| Ramp {
        end: ramp
            .end
            .or(Some(if ramp.step > 0.0 { f64::from(workers) } else { 1.0 })),
        ..ramp
    };
    Ok(match load.concurrency_schedule {
        Course::Const => Shape::Const(f64::from(workers)),
        Course::Daily => bail!("--concurrency-schedule is const, step or line"),
        Course::Step => {
            ensure!(
                load.concurrency_step_duration.is_some(),
                "a schedule of steps needs --concurrency-step-duration"
            );
            Shape::Step(bound(ramp(
                "concurrency",
                start,
                load.concurrency_step,
                every,
                end,
                max,
            )?))
        }
        Course::Line => Shape::Line(bound(ramp(
            "concurrency",
            start,
            load.concurrency_step,
            every,
            end,
            max,
        )?)),
    })
}

fn settings(load: &LoadArgs, concurrency: Shape, closed_loop: bool) -> Settings {
    Settings {
        batch: load.batch as usize,
        max_in_flight: load.max_in_flight,
        closed_loop,
        concurrency,
        stop: load.duration_stop,
        timeout: load.timeout,
        patience: load.patience,
        credit: load.credit,
    }
}

fn population(args: &Args) -> Population {
    let input = &args.input;
    Population {
        accounts: input.accounts,
        merchants: input.merchants,
        account_exponent: input.zipf_accounts,
        merchant_exponent: input.zipf_merchants,
        fraud_factor: input.frauds,
    }
}

fn input(args: &Args) -> anyhow::Result<Input> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read the data in {}", path.display()))
    };
    let input = &args.input;
    Ok(match (&input.data, &input.data_file, &input.csv, &input.replay) {
        (Some(data), ..) if data == STDIN => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read the data")?;
            Input::Data(text)
        }
        (Some(data), ..) => Input::Data(data.clone()),
        (_, Some(path), ..) => Input::Data(read(path)?),
        (_, _, Some(path), _) => Input::Cards(path.clone()),
        (_, _, _, Some(path)) => Input::Recorded(path.clone()),
        (None, None, None, None) => Input::Generated,
    })
}

/// What was asked for, in words.
fn words(mode: Mode, args: &Args, shape: Option<Shape>, own_pace: Option<f64>, closed: bool, workers: usize) -> String {
    let load = &args.load;
    if mode == Mode::Subscribe {
        return "subscriptions".to_owned();
    }
    let rate = match (shape, own_pace) {
        (Some(Shape::Const(rate)), _) => format!("{rate}/s"),
        (Some(Shape::Step(ramp)), _) => format!("from {}/s by {} every {:?}", ramp.start, ramp.step, ramp.every),
        (Some(Shape::Line(ramp)), _) => format!("from {}/s by {}/s each second", ramp.start, ramp.step),
        (Some(Shape::Daily { mean, day }), _) => format!("{mean}/s on average over a day of {day:?}"),
        (None, Some(speed)) => format!("a file at {speed} times its own pace"),
        (None, None) => "as fast as answers come".to_owned(),
    };
    let extent = match (load.total, load.duration.or(load.max_duration)) {
        (Some(events), Some(time)) => format!(", {events} events or {time:?}"),
        (Some(events), None) => format!(", {events} events"),
        (None, Some(time)) => format!(" for {time:?}"),
        (None, None) => String::new(),
    };
    let kind = if closed { "closed loop" } else { "open loop" };
    let each = if mode.is_unary() { "calls at a time" } else { "streams" };
    let batch = if load.batch > 1 {
        format!(", {} events a message", load.batch)
    } else {
        String::new()
    };
    format!(
        "{rate}{extent}, {kind}, {workers} {each}{batch}, {} connections",
        load.connections
    )
}
