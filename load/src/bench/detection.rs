//! `bench detection`: how well a rule set tells fraud from the rest, on card transactions whose truth is known.
//!
//! The processor's own state and rules judge every row in its order, in this process. The rule set was tuned on April of
//! the data and is measured on the later months, beside what the book that the data comes from reaches with models that
//! learn from the labels: <https://fraud-detection-handbook.github.io>. It is measured twice. Without labels, frauds at
//! compromised terminals, most of all, are beyond any rule, because their payments look like all others. With reports, the
//! rule set is applied anew each day, as an operator would, with lists of the terminals at which fraud was reported: frauds
//! are known a week after their day, which is the delay that the book's models have too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use flate2::read::MultiGzDecoder;
use prost_types::Timestamp;
use serde::Deserialize;
use sluice_processor::backtest::Replay;
use sluice_processor::rules::RuleSet;
use sluice_proto::event::{EventId, PaymentRecord};
use sluice_proto::money::Amount;
use uuid::Uuid;

use super::report::Report;

/// The rule set that was tuned on April.
const TUNED: &str = include_str!("detection.yaml");
/// The months, in their order: the first one is only history for the others.
const MONTHS: [&str; 3] = ["2018-04", "2018-05", "2018-06"];
const MICROS_PER_DAY: i64 = 86_400_000_000;
const LATENESS_S: u32 = 600;
const DAYS_PER_WEEK: i64 = 7;
/// Days before a week of testing from which the book knows of frauds: a week of training and a week of delay.
const KNOWN_SINCE_DAYS: i64 = 2 * DAYS_PER_WEEK;
/// Whole days between a fraud's day and the first day whose list knows of it.
const REPORTED_AFTER_DAYS: i64 = 7;
/// Days of frauds that a list looks back on: four weeks without the last one.
const LISTED_DAYS: i64 = 21;
/// What it adds that a terminal had at least one, two, three reports; fitted to April like the rest.
const REPORTED: [f64; 3] = [0.0098, 0.127, 0.899];
/// Terminals of one expression, whose length is bounded.
const TERMINALS_PER_RULE: usize = 200;
/// Cards that are looked into on each day.
const CARDS_A_DAY: usize = 100;
/// What the book reaches: trained on a week, tested on the week after a week's delay.
const BOOK: &str = "
the book's models      AUC    average precision    card precision@100
logistic regression    0.871  0.606                0.291
random forest          0.867  0.658                0.287
XGBoost                0.862  0.639                0.273";

/// Options of the benchmark.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// File to write the figures to, as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Directory of transactions-2018-04.csv.gz, -05 and -06
    #[arg(long, value_name = "DIRECTORY")]
    data: PathBuf,
    /// Rule set to measure instead of the one that was tuned on April
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Row {
    transaction_id: u64,
    occurred_at: String,
    customer_id: u32,
    terminal_id: u32,
    amount: String,
    fraud: u8,
}

/// A row with its score.
#[derive(Clone, Copy, Debug)]
struct Scored {
    day: i64,
    card: u32,
    score: f64,
    fraud: bool,
}

/// Names of the figures of each month.
type Names = [[&'static str; 3]; MONTHS.len()];
const WITHOUT_LABELS: Names = [
    ["april_auc", "april_average_precision", "april_card_precision_100"],
    ["may_auc", "may_average_precision", "may_card_precision_100"],
    ["june_auc", "june_average_precision", "june_card_precision_100"],
];
const WITH_REPORTS: Names = [
    [
        "april_reports_auc",
        "april_reports_average_precision",
        "april_reports_card_precision_100",
    ],
    [
        "may_reports_auc",
        "may_reports_average_precision",
        "may_reports_card_precision_100",
    ],
    [
        "june_reports_auc",
        "june_reports_average_precision",
        "june_reports_card_precision_100",
    ],
];

pub(super) fn run(args: &Args) -> anyhow::Result<Report> {
    let document = match &args.rules {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => TUNED.to_owned(),
    };
    println!("{BOOK}\n\nrules tuned on April, without labels, and with lists of terminals from reports a week old:");
    let mut report = Report::default();
    for (reports, names) in [(None, WITHOUT_LABELS), (Some(Reports::default()), WITH_REPORTS)] {
        let mut judge = Judge {
            replay: Replay::new(Arc::new(RuleSet::parse(&document)?), LATENESS_S),
            document: &document,
            reports,
            day: i64::MIN,
            defrauded: BTreeMap::new(),
        };
        for (month, names) in MONTHS.into_iter().zip(names) {
            let path = args.data.join(format!("transactions-{month}.csv.gz"));
            let scored = judge
                .month(&path)
                .with_context(|| format!("cannot use {}", path.display()))?;
            let (auc, average_precision) = ranking(&scored);
            let figures = [auc, average_precision, card_precision(&scored)];
            for (name, value) in names.into_iter().zip(figures) {
                report.add(name, "ratio", value);
            }
        }
    }
    Ok(report)
}

/// Frauds by day and terminal, as they are reported later.
#[derive(Debug, Default)]
struct Reports(BTreeMap<i64, BTreeMap<u32, usize>>);

impl Reports {
    fn add(&mut self, day: i64, terminal: u32) {
        *self.0.entry(day).or_default().entry(terminal).or_default() += 1;
    }

    /// The rules of a day: a list for each number of reports, in parts that an expression holds.
    fn rules(&self, day: i64) -> String {
        let known = day - REPORTED_AFTER_DAYS - LISTED_DAYS..day - REPORTED_AFTER_DAYS;
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for (terminal, count) in self.0.range(known).flat_map(|(_day, terminals)| terminals) {
            *counts.entry(*terminal).or_default() += count;
        }
        let mut rules = String::new();
        for (least, contribution) in (1..).zip(REPORTED) {
            let listed = counts.iter().filter(|(_terminal, count)| **count >= least);
            let listed: Vec<String> = listed.map(|(terminal, _count)| format!("\"{terminal}\"")).collect();
            for (part, terminals) in listed.chunks(TERMINALS_PER_RULE).enumerate() {
                let list = terminals.join(",");
                rules += &format!(
                    "  - {{id: REPORTED_{least}.{part}, when: 'payment.merchant_id in [{list}]', contribution: {contribution}}}\n"
                );
            }
        }
        rules
    }
}

/// What judges the rows.
struct Judge<'d> {
    replay: Replay,
    document: &'d str,
    /// None where labels are not looked at.
    reports: Option<Reports>,
    day: i64,
    /// On which days each card was defrauded.
    defrauded: BTreeMap<u32, BTreeSet<i64>>,
}

impl Judge<'_> {
    /// The rows of a month that count, with their scores. A card that is known to be defrauded is used no more: like the
    /// book, which leaves its payments out of what it tests on.
    fn month(&mut self, path: &Path) -> anyhow::Result<Vec<Scored>> {
        let file = BufReader::new(File::open(path)?);
        let mut reader = csv::Reader::from_reader(MultiGzDecoder::new(file));
        let mut scored = Vec::new();
        let mut first = None;
        for row in reader.deserialize() {
            let row: Row = row?;
            let payment = payment(&row).with_context(|| format!("transaction {}", row.transaction_id))?;
            // The contract has no payments of nothing, of which the data has some; no fraud is among them.
            if payment.amount.ten_thousandths() <= 0 {
                continue;
            }
            let day = payment.occurred_at.div_euclid(MICROS_PER_DAY);
            self.begin(day)?;
            let verdict = self.replay.judge(payment).context("a transaction comes twice")?;
            let (card, fraud) = (row.customer_id, row.fraud == 1);
            if !self.is_known(card, day, *first.get_or_insert(day)) {
                scored.push(Scored {
                    day,
                    card,
                    score: verdict.score,
                    fraud,
                });
            }
            if fraud {
                self.defrauded.entry(card).or_default().insert(day);
                if let Some(reports) = &mut self.reports {
                    reports.add(day, row.terminal_id);
                }
            }
        }
        ensure!(scored.iter().any(|row| row.fraud), "there is no fraud to be found");
        Ok(scored)
    }

    /// Whether a fraud of the card is known on a day of a month with this first day.
    fn is_known(&self, card: u32, day: i64, first: i64) -> bool {
        let week = day - (day - first).rem_euclid(DAYS_PER_WEEK);
        let known = week - KNOWN_SINCE_DAYS..day - REPORTED_AFTER_DAYS;
        let days = self.defrauded.get(&card);
        days.is_some_and(|days| days.range(known).next().is_some())
    }

    /// Applies the lists of a new day.
    fn begin(&mut self, day: i64) -> anyhow::Result<()> {
        if day > self.day
            && let Some(reports) = &self.reports
        {
            let document = format!("{}{}", self.document, reports.rules(day));
            self.replay.apply(Arc::new(RuleSet::parse(&document)?));
        }
        self.day = self.day.max(day);
        Ok(())
    }
}

fn payment(row: &Row) -> anyhow::Result<PaymentRecord> {
    let time: Timestamp = row.occurred_at.parse()?;
    let (units, cents) = row.amount.split_once('.').unwrap_or((&row.amount, "0"));
    let nanos: i32 = format!("{cents:0<9}").parse()?;
    Ok(PaymentRecord {
        event_id: EventId::new(Uuid::from_u128(u128::from(row.transaction_id) + 1)),
        tenant: "cards".to_owned(),
        account_id: row.customer_id.to_string(),
        amount: Amount::from_parts(units.parse()?, nanos).context("an amount too precise")?,
        currency: "EUR".to_owned(),
        occurred_at: time.seconds * 1_000_000,
        merchant_id: row.terminal_id.to_string(),
        merchant_category: None,
        terminal_id: None,
        method: "CARD_PRESENT".to_owned(),
        device_id: None,
        country: None,
        place: None,
        latitude: None,
        longitude: None,
        traceparent: None,
    })
}

/// The area under the ROC curve, and the average precision; rows of equal score stand together.
fn ranking(scored: &[Scored]) -> (f64, f64) {
    let mut sorted: Vec<(f64, bool)> = scored.iter().map(|row| (row.score, row.fraud)).collect();
    sorted.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let frauds = sorted.iter().filter(|(_, fraud)| *fraud).count() as f64;
    let others = sorted.len() as f64 - frauds;
    let (mut found, mut alarms, mut area, mut precision) = (0.0, 0.0, 0.0, 0.0);
    for equal in sorted.chunk_by(|a, b| a.0 == b.0) {
        let here = equal.iter().filter(|(_, fraud)| *fraud).count() as f64;
        let false_here = equal.len() as f64 - here;
        area += false_here * (found + here / 2.0);
        found += here;
        alarms += false_here;
        precision += here / frauds * (found / (found + alarms));
    }
    (area / (frauds * others), precision)
}

/// Of the cards with the highest scores of a day, the share that was defrauded on it: the mean over all days. A card that
/// was found is looked into no more until the week ends, as the book has it in its week of testing.
fn card_precision(scored: &[Scored]) -> f64 {
    let mut days: BTreeMap<i64, BTreeMap<u32, (f64, bool)>> = BTreeMap::new();
    for row in scored {
        let card = days.entry(row.day).or_default().entry(row.card).or_default();
        *card = (card.0.max(row.score), card.1 || row.fraud);
    }
    let first = days.keys().next().copied().unwrap_or_default();
    let (mut sum, mut found, mut week) = (0.0, BTreeSet::new(), 0);
    for (day, cards) in &days {
        if (day - first) / DAYS_PER_WEEK != week {
            week = (day - first) / DAYS_PER_WEEK;
            found.clear();
        }
        let mut ranked: Vec<_> = cards.iter().filter(|(card, _)| !found.contains(*card)).collect();
        ranked.sort_by(|(_, a), (_, b)| b.0.total_cmp(&a.0));
        let defrauded = ranked.iter().take(CARDS_A_DAY).filter(|(_, (_, fraud))| *fraud);
        let defrauded: Vec<u32> = defrauded.map(|(card, _)| **card).collect();
        sum += defrauded.len() as f64 / CARDS_A_DAY as f64;
        found.extend(defrauded);
    }
    sum / days.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(rows: &[(i64, u32, f64, bool)]) -> Vec<Scored> {
        let row = |&(day, card, score, fraud): &(i64, u32, f64, bool)| Scored {
            day,
            card,
            score,
            fraud,
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn a_ranking_is_as_good_as_its_order() {
        let perfect = scored(&[(0, 1, 0.9, true), (0, 2, 0.5, false), (0, 3, 0.1, false)]);
        assert_eq!(ranking(&perfect), (1.0, 1.0));
        let blind = scored(&[
            (0, 1, 0.5, true),
            (0, 2, 0.5, false),
            (0, 3, 0.5, false),
            (0, 4, 0.5, false),
        ]);
        assert_eq!(ranking(&blind), (0.5, 0.25));
        let mixed = scored(&[
            (0, 1, 0.9, true),
            (0, 2, 0.8, false),
            (0, 3, 0.7, true),
            (0, 4, 0.1, false),
        ]);
        let (auc, average_precision) = ranking(&mixed);
        assert_eq!(auc, 0.75);
        assert!((average_precision - (0.5 + 0.5 * 2.0 / 3.0)).abs() < 1e-12);
    }

    #[test]
    fn a_card_that_was_found_is_looked_into_no_more_in_that_week() {
        let rows = scored(&[
            (0, 1, 0.9, true),
            (1, 1, 0.9, true),
            (1, 2, 0.1, true),
            (7, 1, 0.9, true),
        ]);
        assert!((card_precision(&rows) - 3.0 / 100.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn the_tuned_rule_set_is_one_with_and_without_reports() {
        RuleSet::parse(TUNED).expect("a rule set");
        let mut reports = Reports::default();
        for terminal in 0..1_000 {
            reports.add(10, terminal);
            reports.add(11, terminal % 500);
        }
        assert_eq!(reports.rules(17), "", "a week has not passed");
        assert_eq!(reports.rules(18).lines().count(), 5, "1,000 terminals, 200 a rule");
        let listed = reports.rules(19);
        assert_eq!(listed.matches("REPORTED_3").count(), 3, "the first 500 terminals");
        let document = format!("{TUNED}{listed}");
        assert_eq!(
            RuleSet::parse(&document).expect("a rule set").summaries().len(),
            22 + 11
        );
        assert_eq!(reports.rules(18 + LISTED_DAYS + 1), "", "nothing is listed for longer");
    }
}
