//! The options of a run, with ghz's names where the meaning is ghz's.
//!
//! Comes from the command line and the configuration file; `plan` checks what they say together.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args as ClapArgs, ValueEnum};

use super::follow::MAX_SUBSCRIBERS;
use crate::generate::MAX_POPULATION;
use crate::report::Format;

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Publishing streams, to the acknowledgement.
    Publish,
    /// One call for each event.
    PublishOne,
    /// One call for each payment, answered by its decision.
    Decide,
    /// Receiving decisions of whoever publishes.
    Subscribe,
    /// Publishing streams and subscriptions, to the decision.
    EndToEnd,
}

impl Mode {
    /// As the command line and reports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::PublishOne => "publish-one",
            Self::Decide => "decide",
            Self::Subscribe => "subscribe",
            Self::EndToEnd => "end-to-end",
        }
    }

    /// Whether each event is a call of its own.
    pub(crate) const fn is_unary(self) -> bool {
        matches!(self, Self::PublishOne | Self::Decide)
    }
}

/// How the rate or the concurrency changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Course {
    /// The same all the time.
    Const,
    /// By a step every so often.
    Step,
    /// By a step each second, steadily.
    Line,
    /// A day's rhythm of payments, the day compressed to --load-day; the rate is its mean.
    Daily,
}

/// What happens with calls that are not answered when the duration is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stop {
    /// They are cut off and count as errors.
    Close,
    /// They are waited for, at most for --patience.
    Wait,
    /// They are cut off and not counted.
    Ignore,
}

/// Go's notation of durations: 10s, 1m30s, 250ms.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 10s, 1m30s or 250ms");
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let unit_s = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_invalid| wrong())?;
        sum += Duration::try_from_secs_f64(number * unit_s).map_err(|_invalid| wrong())?;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(sum) }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than nothing".to_owned()),
        duration => Ok(duration),
    }
}

fn share(text: &str) -> Result<f64, String> {
    let (number, scale) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 0.01));
    match number.parse::<f64>() {
        Ok(number) if (0.0..=1.0).contains(&(number * scale)) => Ok(number * scale),
        _ => Err("is not a share such as 0.01 or 1%".to_owned()),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("is not a number of 0 or more".to_owned()),
    }
}

fn finite(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err("is not a number".to_owned()),
    }
}

/// Options of every mode.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) input: InputArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Where the server is.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// Address: host:port, with TLS unless --insecure is given, or a URL, whose scheme decides
    #[arg(env = "SLUICE_TARGET", value_name = "ADDRESS")]
    pub(crate) address: Option<String>,
    /// The address, as a configuration file gives it [default: http://127.0.0.1:50051]
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "http://127.0.0.1:50051",
        hide_default_value = true
    )]
    pub(crate) host: String,
    /// API key of the tenant [default: sluice-dev-key, or with --cert none]
    #[arg(long, env = "SLUICE_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Option<String>,
    /// Metadata of every call, as a JSON object of texts
    #[arg(short = 'm', long, value_name = "JSON")]
    pub(crate) metadata: Option<String>,
    /// File with the metadata
    #[arg(short = 'M', long, value_name = "FILE", conflicts_with = "metadata")]
    pub(crate) metadata_file: Option<PathBuf>,
    /// PEM file with the certificate authorities to trust instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
    /// PEM file with this client's certificate
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// PEM file with the certificate's private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// Name that the server's certificate must have, instead of the host's
    #[arg(long, value_name = "NAME")]
    pub(crate) cname: Option<String>,
    /// Trust whatever certificate the server has
    #[arg(long = "skipTLS", alias = "skip-tls")]
    pub(crate) skip_tls: bool,
    /// No TLS
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Longest wait for a connection
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = positive_duration)]
    pub(crate) connect_timeout: Duration,
    /// Interval of HTTP/2 pings
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = positive_duration)]
    pub(crate) keepalive: Duration,
}

/// How much, and how.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Load")]
pub(crate) struct LoadArgs {
    /// Calls at a time, or publishing streams [default: 50 calls, 1 stream]
    #[arg(short = 'c', long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency: Option<u32>,
    /// Connections that the concurrency shares [default: 1]
    #[arg(long, default_value_t = 1, hide_default_value = true, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: u32,
    /// Events [default: 200, unless a duration is given]
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) total: Option<u64>,
    /// Time during which events are due
    #[arg(short = 'z', long, value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) duration: Option<Duration>,
    /// Longest time of a run whose end is a number of events
    #[arg(short = 'x', long, value_name = "DURATION", value_parser = positive_duration, conflicts_with = "duration")]
    pub(crate) max_duration: Option<Duration>,
    /// Events a second, whether answers come or not; 0 sends the next when an answer came
    #[arg(short = 'r', long, default_value_t = 0.0, value_parser = not_negative)]
    pub(crate) rps: f64,
    /// Send the next when an answer came also when a rate is given, and measure from the sending, as ghz does
    #[arg(long)]
    pub(crate) closed_loop: bool,
    /// How the rate changes
    #[arg(long, value_enum, default_value_t = Course::Const)]
    pub(crate) load_schedule: Course,
    /// Rate at the start of a step or line schedule
    #[arg(long, value_parser = not_negative)]
    pub(crate) load_start: Option<f64>,
    /// Rate at which a step or line schedule stays
    #[arg(long, value_parser = not_negative)]
    pub(crate) load_end: Option<f64>,
    /// Change of the rate: each step, or each second of a line
    #[arg(long, value_parser = finite, allow_negative_numbers = true)]
    pub(crate) load_step: Option<f64>,
    /// Length of a step
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) load_step_duration: Option<Duration>,
    /// Time after which a step or line schedule stays where it is
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) load_max_duration: Option<Duration>,
    /// Length of a day of the daily schedule
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = positive_duration)]
    pub(crate) load_day: Duration,
    /// How the concurrency changes
    #[arg(long, value_enum, default_value_t = Course::Const)]
    pub(crate) concurrency_schedule: Course,
    /// Concurrency at the start
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency_start: Option<u32>,
    /// Concurrency at which it stays
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency_end: Option<u32>,
    /// Change of the concurrency: each step, or each second of a line
    #[arg(long, value_parser = finite, allow_negative_numbers = true)]
    pub(crate) concurrency_step: Option<f64>,
    /// Length of a step of the concurrency
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) concurrency_step_duration: Option<Duration>,
    /// Time after which the concurrency stays where it is
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub(crate) concurrency_max_duration: Option<Duration>,
    /// Answers at the beginning that are counted and not measured
    #[arg(long = "skipFirst", alias = "skip-first", default_value_t = 0)]
    pub(crate) skip_first: u64,
    /// What happens with unanswered events when the duration is over
    #[arg(long, value_enum, default_value_t = Stop::Wait)]
    pub(crate) duration_stop: Stop,
    /// Longest time of a call
    #[arg(short = 't', long, value_name = "DURATION", default_value = "20s", value_parser = positive_duration)]
    pub(crate) timeout: Duration,
    /// How long answers are waited for after the last event, and a lost server is waited for
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = positive_duration)]
    pub(crate) patience: Duration,
    /// Events of one message of a publishing stream, due together
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub(crate) batch: u32,
    /// Unacknowledged events of a stream; 0 leaves it to the gateway
    #[arg(long, default_value_t = 0)]
    pub(crate) max_in_flight: u32,
    /// Subscriptions, each of which must have every decision
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_SUBSCRIBERS as i64))]
    pub(crate) subscribers: u32,
    /// Decisions on their way to a subscriber
    #[arg(long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) credit: u32,
    /// Objectives that must hold, such as 'decision.p99<50ms,errors<0.01%'
    #[arg(long, value_name = "OBJECTIVES", action = ArgAction::Append)]
    pub(crate) slo: Vec<String>,
    /// Raise the rate until an objective fails, and report the highest that held; each rate is tried for --duration
    #[arg(long)]
    pub(crate) find_max: bool,
    /// How closely --find-max finds the rate
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = share)]
    pub(crate) find_precision: f64,
    /// Threads that send and receive [default: one for each processor]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1_024))]
    pub(crate) cpus: Option<u16>,
}

/// What is published.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Input")]
pub(crate) struct InputArgs {
    /// Event as JSON, or several in an array, perhaps with templates; @ reads it from the standard input
    #[arg(short = 'd', long, value_name = "JSON")]
    pub(crate) data: Option<String>,
    /// File with the data
    #[arg(short = 'D', long, value_name = "FILE", conflicts_with = "data")]
    pub(crate) data_file: Option<PathBuf>,
    /// Card transactions to publish, as .csv or .csv.gz
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "data_file"])]
    pub(crate) csv: Option<PathBuf>,
    /// Recorded events to publish, a line of JSON each, .gz or not
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "data_file", "csv"])]
    pub(crate) replay: Option<PathBuf>,
    /// How many times faster than recorded a file without a rate is replayed
    #[arg(long, default_value_t = 1.0, value_parser = not_negative)]
    pub(crate) speed: f64,
    /// Seed of the generated payments
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Accounts of the generated payments [default: 200 for each event a second]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_POPULATION)))]
    pub(crate) accounts: Option<u32>,
    /// Merchants of the generated payments
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_POPULATION)))]
    pub(crate) merchants: u32,
    /// Exponent of Zipf's law for accounts; 0 is even
    #[arg(long, default_value_t = 0.8, value_parser = not_negative)]
    pub(crate) zipf_accounts: f64,
    /// Exponent of Zipf's law for merchants
    #[arg(long, default_value_t = 1.05, value_parser = not_negative)]
    pub(crate) zipf_merchants: f64,
    /// Multiplies the injected frauds, about 2% of the payments
    #[arg(long, default_value_t = 1.0, value_parser = not_negative)]
    pub(crate) frauds: f64,
    /// Share of events that are published a second time
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    pub(crate) duplicates: f64,
    /// Share of events that are unreadable or invalid
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    pub(crate) poison: f64,
}

/// What is reported, and where.
#[derive(Clone, Debug, ClapArgs)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// File for the report [default: the standard output]
    #[arg(short = 'o', long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Form of the report
    #[arg(short = 'O', long, value_enum, default_value_t = Format::Summary)]
    pub(crate) format: Format,
    /// Name of the run
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Tags of the run, as a JSON object of texts
    #[arg(long, value_name = "JSON")]
    pub(crate) tags: Option<String>,
    /// Address at which Prometheus may scrape the run while it goes on
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) scrape: Option<SocketAddr>,
    /// No progress
    #[arg(short = 'q', long)]
    pub(crate) quiet: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5_400)));
        for bad in ["", "10", "s", "1d", "-1s", "1s2"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_are_parts_of_the_whole() {
        assert_eq!(share("1%"), Ok(0.01));
        assert_eq!(share("0.25"), Ok(0.25));
        assert!(share("2").is_err() && share("-1%").is_err());
    }
}
