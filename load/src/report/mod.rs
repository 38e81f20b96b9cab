//! Reports: what they are (`model`), whether they are good (`objective`), and the forms that they take.
//!
//! Comes after a run. `sluice-load report` and `compare` begin here, with reports that were kept as JSON.

/// Writes a line into a text.
macro_rules! line {
    ($out:expr, $($words:tt)*) => {{
        // Writing to a String cannot fail.
        let _written = writeln!($out, $($words)*);
    }};
}

mod compare;
mod ghz;
mod html;
mod lines;
mod model;
mod objective;
mod text;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::now_micros;
use crate::run::Detail;
pub(crate) use lines::prometheus;
pub(crate) use model::{CANCELLED, FORM, Latency, Offered, Report, Second, Span, Trial};
pub(crate) use objective::{Objective, parse as parse_objectives};
pub(crate) use text::{figures, micros};

const NS_PER_US: i64 = 1_000;

/// The form of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Text for people.
    Summary,
    /// A line for each answer.
    Csv,
    /// Everything, on one line; can be read again.
    Json,
    /// The same with line breaks.
    Pretty,
    /// A page that opens without a network.
    Html,
    /// One line for InfluxDB.
    InfluxSummary,
    /// A line for InfluxDB for each answer.
    InfluxDetails,
    /// Prometheus' text.
    Prometheus,
}

impl Format {
    /// Whether single answers must be kept for it.
    pub(crate) fn needs_details(self) -> bool {
        matches!(self, Self::Csv | Self::InfluxDetails)
    }
}

/// Checks that a report can be written, before the run that it is of.
///
/// # Errors
/// When it cannot.
pub(crate) fn check_output(path: Option<&Path>) -> anyhow::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let open = OpenOptions::new().append(true).create(true).open(path);
    open.map(drop)
        .with_context(|| format!("cannot write the report to {}", path.display()))
}

/// Writes a report.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write(report: &Report, details: &[Detail], format: Format, path: Option<&Path>) -> anyhow::Result<()> {
    let now_ns = now_micros() * NS_PER_US;
    let text = match format {
        Format::Summary => text::summary(report),
        Format::Csv => lines::csv(details),
        Format::Json => serde_json::to_string(report)? + "\n",
        Format::Pretty => serde_json::to_string_pretty(report)? + "\n",
        Format::Html => html::page(report)?,
        Format::InfluxSummary => lines::influx_summary(report, now_ns),
        Format::InfluxDetails => lines::influx_details(report, details, now_ns - report.total as i64),
        Format::Prometheus => lines::prometheus(report),
    };
    match path {
        Some(path) => {
            std::fs::write(path, text).with_context(|| format!("cannot write the report to {}", path.display()))
        }
        None => std::io::stdout()
            .write_all(text.as_bytes())
            .context("cannot write the report"),
    }
}

/// Options of `sluice-load report`.
#[derive(Clone, Debug, clap::Args)]
pub struct ReportArgs {
    /// Reports in JSON; several are merged, such as those of several machines at the same time
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// File for the report [default: the standard output]
    #[arg(short = 'o', long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Form of the report
    #[arg(short = 'O', long, value_enum, default_value_t = Format::Summary)]
    format: Format,
}

/// Options of `sluice-load compare`.
#[derive(Clone, Debug, clap::Args)]
pub struct CompareArgs {
    /// A report in JSON, of sluice-load or ghz
    a: PathBuf,
    /// Another one
    b: PathBuf,
}

fn read(path: &Path) -> anyhow::Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Report::parse(&text).with_context(|| format!("cannot use {}", path.display()))
}

/// A report of ours, or one of ghz.
fn read_any(path: &Path) -> anyhow::Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let is_ours = serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|value| value.get("form").is_some());
    let report = if is_ours {
        Report::parse(&text)
    } else {
        ghz::parse(&text)
    };
    report.with_context(|| format!("cannot use {}", path.display()))
}

/// Makes another form of reports that were kept. `Ok(true)` when the runs were good.
///
/// # Errors
/// When a file cannot be read, or the form needs what JSON does not keep.
pub fn report(args: &ReportArgs) -> anyhow::Result<bool> {
    if args.format.needs_details() {
        bail!("JSON keeps no single answers: ask the run itself for csv or influx-details");
    }
    check_output(args.output.as_deref())?;
    let mut reports = args.files.iter().map(|path| read(path));
    let mut sum = reports.next().context("no file")??;
    for more in reports {
        sum.merge(&more?)?;
    }
    write(&sum, &[], args.format, args.output.as_deref())?;
    Ok(sum.succeeded())
}

/// Shows two reports beside each other.
///
/// # Errors
/// When one cannot be read.
pub fn compare(args: &CompareArgs) -> anyhow::Result<bool> {
    print!("{}", compare::table(&read_any(&args.a)?, &read_any(&args.b)?));
    Ok(true)
}
