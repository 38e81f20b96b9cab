//! A report: everything that is known about a run, as JSON keeps it and every other form shows it.
//!
//! Made by `assemble` from a run, or read from JSON. The fields that ghz has carry ghz's names; times are nanoseconds
//! where ghz has nanoseconds, and otherwise carry their unit in the name. Histograms are kept whole, so that reports of
//! several runs or machines can be merged without losing a percentile.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use super::objective::Judgement;
use crate::run::{Account, Found};

/// The form of the JSON: raised when a reader of the old form would be wrong about the new one.
pub(crate) const FORM: u32 = 1;
/// How a run ended that was interrupted.
pub(crate) const CANCELLED: &str = "cancelled";
/// Percentiles that reports list.
pub(crate) const PERCENTILES: [f64; 10] = [10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999];
const BUCKETS: u64 = 10;
const NS_PER_US: u64 = 1_000;
const US_PER_S: f64 = 1e6;

/// A run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) tool: String,
    pub(crate) version: String,
    pub(crate) form: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) tags: BTreeMap<String, String>,
    /// When it ended, as RFC 3339.
    pub(crate) date: String,
    pub(crate) mode: String,
    pub(crate) host: String,
    /// What was asked for, in words.
    pub(crate) load: String,
    pub(crate) end_reason: String,
    pub(crate) count: u64,
    pub(crate) total: u64,
    pub(crate) average: u64,
    pub(crate) fastest: u64,
    pub(crate) slowest: u64,
    pub(crate) rps: f64,
    pub(crate) error_distribution: BTreeMap<String, u64>,
    pub(crate) status_code_distribution: BTreeMap<String, u64>,
    pub(crate) latency_distribution: Vec<Percentile>,
    pub(crate) histogram: Vec<Bucket>,
    /// The metric of the fields above.
    pub(crate) primary: String,
    /// Whether latencies count from the moment when an event was due.
    pub(crate) open_loop: bool,
    pub(crate) offered: Offered,
    pub(crate) account: Account,
    pub(crate) gaps: Vec<Span>,
    pub(crate) objectives: Vec<Judgement>,
    /// What was not as it should be; a run without is a success.
    pub(crate) faults: Vec<String>,
    /// What a reader must know to read the figures right.
    pub(crate) notes: Vec<String>,
    pub(crate) rules: BTreeMap<String, Found>,
    pub(crate) latencies: BTreeMap<String, Latency>,
    pub(crate) seconds: Vec<Second>,
    #[serde(default)]
    pub(crate) trials: Vec<Trial>,
}

/// What was due and what was sent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Offered {
    /// Events due by the schedule; absent for a closed loop.
    pub(crate) due: Option<u64>,
    /// Of those, what was sent before the schedule was over.
    pub(crate) sent_in_time: u64,
    /// How long the schedule was.
    pub(crate) schedule_s: f64,
    /// Processor time of the loader's whole process.
    pub(crate) cpu_s: Option<f64>,
    /// Time that workers were held back, by what.
    pub(crate) held_s: BTreeMap<String, f64>,
}

/// A percentile in ghz's form.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Percentile {
    pub(crate) percentage: f64,
    /// Nanoseconds.
    pub(crate) latency: u64,
}

/// A bucket of ghz's histogram.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Bucket {
    /// Upper end in seconds.
    pub(crate) mark: f64,
    pub(crate) count: u64,
    pub(crate) frequency: f64,
}

/// A stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Span {
    pub(crate) from_s: f64,
    pub(crate) to_s: f64,
}

/// The latencies of one metric.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) min_us: u64,
    pub(crate) max_us: u64,
    /// By percentage.
    pub(crate) percentiles_us: BTreeMap<String, u64>,
    /// The histogram: HdrHistogram V2, deflated, in base 64.
    pub(crate) hdr: String,
}

/// A second of the run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Second {
    pub(crate) from_s: f64,
    pub(crate) to_s: f64,
    pub(crate) due: Option<u64>,
    pub(crate) sent: u64,
    pub(crate) answered: u64,
    pub(crate) decided: u64,
    pub(crate) errors: u64,
    /// Time that workers were held back, by what, summed over the workers.
    pub(crate) held_s: BTreeMap<String, f64>,
    pub(crate) latencies: BTreeMap<String, Latency>,
}

/// A rate that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Trial {
    pub(crate) rate_per_s: f64,
    pub(crate) held: bool,
    pub(crate) answered_per_s: f64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    /// Why it did not hold.
    pub(crate) why: Vec<String>,
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> anyhow::Result<Self> {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(histogram, &mut bytes)
            .map_err(|error| anyhow::anyhow!("a histogram cannot be encoded: {error:?}"))?;
        let percentile = |percentage: &f64| (percentage.to_string(), histogram.value_at_percentile(*percentage));
        Ok(Self {
            count: histogram.len(),
            mean_us: histogram.mean(),
            min_us: histogram.min(),
            max_us: histogram.max(),
            percentiles_us: PERCENTILES.iter().map(percentile).collect(),
            hdr: BASE64_STANDARD.encode(bytes),
        })
    }

    pub(crate) fn decode(&self) -> anyhow::Result<Histogram<u64>> {
        let bytes = BASE64_STANDARD
            .decode(&self.hdr)
            .context("a histogram is not base 64")?;
        Deserializer::new()
            .deserialize(&mut bytes.as_slice())
            .map_err(|error| anyhow::anyhow!("a histogram cannot be decoded: {error}"))
    }

    pub(crate) fn percentile_us(&self, percentage: f64) -> u64 {
        self.percentiles_us
            .get(&percentage.to_string())
            .copied()
            .unwrap_or_default()
    }
}

impl Report {
    /// Reads a report from JSON.
    ///
    /// # Errors
    /// When it is not one, or of another form.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let report: Self = serde_json::from_str(text).context("not a report of sluice-load in JSON")?;
        ensure!(
            report.form == FORM,
            "the report has form {}; this version reads form {FORM}",
            report.form
        );
        Ok(report)
    }

    /// The latencies of the metric that the run is about.
    pub(crate) fn primary(&self) -> Option<&Latency> {
        self.latencies.get(&self.primary)
    }

    /// Whether everything was as it should be.
    pub(crate) fn succeeded(&self) -> bool {
        self.faults.is_empty() && self.objectives.iter().all(|judgement| judgement.holds)
    }

    /// Fills in ghz's fields from the others.
    pub(crate) fn derive(&mut self) -> anyhow::Result<()> {
        let answered: u64 = self.seconds.iter().map(|second| second.answered).sum();
        let errors = self.account.error_count();
        self.count = answered + errors;
        self.rps = if self.total == 0 {
            0.0
        } else {
            self.count as f64 / (self.total as f64 / 1e9)
        };
        self.error_distribution = self.account.messages.clone();
        self.status_code_distribution = self.account.errors.clone();
        if answered > 0 {
            self.status_code_distribution.insert("OK".to_owned(), answered);
        }
        let Some(latency) = self.latencies.get(&self.primary) else {
            return Ok(());
        };
        self.average = (latency.mean_us * NS_PER_US as f64) as u64;
        self.fastest = latency.min_us * NS_PER_US;
        self.slowest = latency.max_us * NS_PER_US;
        let percentile = |percentage: &f64| Percentile {
            percentage: *percentage,
            latency: latency.percentile_us(*percentage) * NS_PER_US,
        };
        self.latency_distribution = PERCENTILES.iter().map(percentile).collect();
        self.histogram = buckets(&latency.decode()?);
        Ok(())
    }

    /// Adds another run's figures, such as one of another machine at the same time.
    ///
    /// # Errors
    /// When the runs are of different kinds.
    pub(crate) fn merge(&mut self, other: &Self) -> anyhow::Result<()> {
        ensure!(
            self.mode == other.mode && self.open_loop == other.open_loop,
            "a run of {} cannot be merged with one of {}, nor an open loop with a closed one",
            self.mode,
            other.mode
        );
        self.total = self.total.max(other.total);
        self.account.merge(&other.account);
        self.gaps.extend(&other.gaps);
        self.offered.due = self.offered.due.zip(other.offered.due).map(|(a, b)| a + b);
        self.offered.sent_in_time += other.offered.sent_in_time;
        self.offered.schedule_s = self.offered.schedule_s.max(other.offered.schedule_s);
        self.offered.cpu_s = self.offered.cpu_s.zip(other.offered.cpu_s).map(|(a, b)| a + b);
        add_all(&mut self.offered.held_s, &other.offered.held_s);
        for (rule, more) in &other.rules {
            let found = self.rules.entry(rule.clone()).or_default();
            found.injected += more.injected;
            found.found += more.found;
            found.fired += more.fired;
        }
        merge_latencies(&mut self.latencies, &other.latencies)?;
        for (index, more) in other.seconds.iter().enumerate() {
            match self.seconds.get_mut(index) {
                None => self.seconds.push(more.clone()),
                Some(second) => {
                    second.to_s = second.to_s.max(more.to_s);
                    second.due = second.due.zip(more.due).map(|(a, b)| a + b);
                    second.sent += more.sent;
                    second.answered += more.answered;
                    second.decided += more.decided;
                    second.errors += more.errors;
                    add_all(&mut second.held_s, &more.held_s);
                    merge_latencies(&mut second.latencies, &more.latencies)?;
                }
            }
        }
        for (texts, more) in [(&mut self.faults, &other.faults), (&mut self.notes, &other.notes)] {
            texts.extend(
                more.iter()
                    .filter(|text| !texts.contains(text))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
        }
        self.objectives.extend(other.objectives.iter().cloned());
        self.trials.clear();
        self.derive()
    }
}

fn add_all(sums: &mut BTreeMap<String, f64>, more: &BTreeMap<String, f64>) {
    for (key, value) in more {
        *sums.entry(key.clone()).or_default() += value;
    }
}

fn merge_latencies(sums: &mut BTreeMap<String, Latency>, more: &BTreeMap<String, Latency>) -> anyhow::Result<()> {
    for (metric, latency) in more {
        let merged = match sums.get(metric) {
            None => latency.clone(),
            Some(before) => {
                let mut sum = before.decode()?;
                sum.add(latency.decode()?).context("histograms have different bounds")?;
                Latency::of(&sum)?
            }
        };
        sums.insert(metric.clone(), merged);
    }
    Ok(())
}

/// ghz's histogram: equal steps from the fastest to the slowest.
fn buckets(all: &Histogram<u64>) -> Vec<Bucket> {
    if all.is_empty() {
        return Vec::new();
    }
    let (least, most) = (all.min(), all.max());
    let step = (most - least) as f64 / BUCKETS as f64;
    let mut counts = [0; BUCKETS as usize + 1];
    for value in all.iter_recorded() {
        let into = all.lowest_equivalent(value.value_iterated_to()).saturating_sub(least) as f64;
        let bucket = if step == 0.0 { 0 } else { (into / step).ceil() as usize };
        counts[bucket.min(BUCKETS as usize)] += value.count_since_last_iteration();
    }
    let bucket = |(index, count): (usize, &u64)| Bucket {
        mark: (least as f64 + step * index as f64) / US_PER_S,
        count: *count,
        frequency: *count as f64 / all.len() as f64,
    };
    counts.iter().enumerate().map(bucket).collect()
}

/// For tests of what shows reports: a run with a second of a stall.
#[cfg(test)]
pub(crate) fn example() -> Report {
    let mut all = crate::run::histogram();
    for value in 1..=1_000 {
        all.record(value * 1_000).unwrap();
    }
    let latencies = BTreeMap::from([("ack".to_owned(), Latency::of(&all).unwrap())]);
    let second = |index: u32| Second {
        from_s: f64::from(index),
        to_s: f64::from(index + 1),
        due: Some(500),
        sent: 500,
        answered: 500,
        held_s: BTreeMap::from([("credit".to_owned(), 0.25)]),
        latencies: latencies.clone(),
        ..Second::default()
    };
    let mut report = Report {
        tool: "sluice-load".to_owned(),
        form: FORM,
        date: "2026-01-02T03:04:05Z".to_owned(),
        mode: "publish".to_owned(),
        host: "127.0.0.1:50051".to_owned(),
        load: "500/s for 2s".to_owned(),
        end_reason: "normal".to_owned(),
        primary: "ack".to_owned(),
        open_loop: true,
        total: 2_000_000_000,
        latencies: latencies.clone(),
        seconds: vec![second(0), second(1)],
        ..Report::default()
    };
    report.account.sent = 1_000;
    report.account.stored = 1_000;
    report.derive().unwrap();
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_json_and_merge_without_loss() {
        let report = example();
        let text = serde_json::to_string(&report).unwrap();
        let mut read = Report::parse(&text).unwrap();
        assert_eq!((read.count, read.fastest, read.histogram.len()), (1_000, 1_000_000, 11));
        assert!(text.contains("latencyDistribution") && text.contains("statusCodeDistribution"));
        read.merge(&report).unwrap();
        assert_eq!((read.count, read.account.sent, read.seconds.len()), (2_000, 2_000, 2));
        let (one, two) = (report.primary().unwrap(), read.primary().unwrap());
        assert_eq!(one.percentiles_us, two.percentiles_us);
        assert_eq!(two.count, 2_000);
        assert_eq!(read.rps, 1_000.0);
    }

    #[test]
    fn what_is_no_report_is_said() {
        assert!(Report::parse("{}").is_err());
        let text = serde_json::to_string(&Report { form: 99, ..example() }).unwrap();
        assert!(format!("{:#}", Report::parse(&text).unwrap_err()).contains("form 99"));
    }

    #[test]
    fn other_readers_of_the_format_read_the_histograms() {
        let latency = &example().latencies["ack"];
        // The cookie of a deflated V2 histogram, 0x1c849314, begins every such text.
        assert!(latency.hdr.starts_with("HISTFA"), "{}", latency.hdr);
        let decoded = latency.decode().unwrap();
        assert_eq!((decoded.len(), decoded.max()), (1_000, latency.max_us));
    }
}
