//! From what was measured to a report: second by second while the run goes on, and as a whole at its end.

use std::collections::BTreeMap;

use anyhow::Result;

use super::clock::NS_PER_S;
use super::ledger::Account;
use super::options::Mode;
use super::pace::Hold;
use super::plan::Plan;
use super::record::{Histograms, Metric, Tallies};
use super::schedule::Cursor;
use super::shared::SharedRef;
use super::{count_untaken, seconds};
use crate::generate::timestamp;
use crate::now_micros;
use crate::report::{CANCELLED, FORM, Latency, Offered, Report, Second, Span, micros};

/// The loader is the bottleneck when its own lateness is more than this part of the latency, and more than so much.
const SLIP_PART: f64 = 0.1;
const SLIP_US: u64 = 1_000;

/// What is known of a run so far.
pub(crate) struct Measured {
    totals: Tallies,
    seconds: Vec<Second>,
    due: Option<Cursor>,
    due_before: u64,
    decided_before: u64,
    from_ns: u64,
    /// When the run was interrupted.
    interrupted_ns: Option<u64>,
    cpu_before_s: f64,
    events: Option<u64>,
    until_ns: Option<u64>,
}

impl Measured {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            totals: Tallies::default(),
            seconds: Vec::new(),
            due: plan.shape.filter(|_| !plan.settings.closed_loop).map(Cursor::new),
            due_before: 0,
            decided_before: 0,
            from_ns: 0,
            interrupted_ns: None,
            cpu_before_s: own_cpu_s().unwrap_or_default(),
            events: plan.extent.events,
            until_ns: plan.extent.until_ns,
        }
    }

    /// Nothing is due any more.
    pub(crate) fn interrupt(&mut self, now_ns: u64) {
        self.interrupted_ns.get_or_insert(now_ns);
    }

    /// Whether a subscription has as many decisions as were asked for.
    pub(crate) fn has_enough(&self, plan: &Plan, shared: &SharedRef) -> bool {
        let events = plan.extent.events;
        events.is_some_and(|events| shared.recorder.moved() >= events)
    }

    pub(crate) fn last_second(&self) -> Option<&Second> {
        self.seconds.last()
    }

    /// Takes in a second that is over. Whether it did.
    pub(crate) fn tick_if_due(&mut self, shared: &SharedRef, now_ns: u64) -> Result<bool> {
        let is_due = now_ns >= self.from_ns + NS_PER_S;
        if is_due {
            self.tick(shared)?;
        }
        Ok(is_due)
    }

    /// Takes in what happened since the last time.
    pub(crate) fn tick(&mut self, shared: &SharedRef) -> Result<()> {
        let to_ns = shared.clock.now_ns();
        let tallies = shared.recorder.drain();
        let taken = {
            let feed = shared.feed.lock();
            feed.is_dry().then(|| feed.taken())
        };
        let due = self.due_by(to_ns).map(|due| {
            // Of a file that is at its end nothing else is due.
            let due = taken.unwrap_or(due).max(self.due_before);
            let new = due - self.due_before;
            self.due_before = due;
            new
        });
        let decided = shared.ledger.account().decided;
        self.seconds.push(Second {
            from_s: seconds(self.from_ns),
            to_s: seconds(to_ns),
            due,
            sent: tallies.sent,
            answered: tallies.answered,
            decided: decided - self.decided_before,
            errors: tallies.errors,
            held_s: held(&tallies),
            latencies: latencies(&tallies.latencies)?,
        });
        self.decided_before = decided;
        self.from_ns = to_ns;
        self.totals.add(&tallies);
        Ok(())
    }

    /// Events that are due by a moment, as far as the run goes.
    fn due_by(&mut self, at_ns: u64) -> Option<u64> {
        let end_ns = [self.until_ns, self.interrupted_ns].into_iter().flatten().min();
        let at_ns = end_ns.map_or(at_ns, |end_ns| at_ns.min(end_ns));
        let due = self.due.as_mut()?.due_by(at_ns);
        Some(self.events.map_or(due, |events| due.min(events)).max(self.due_before))
    }

    /// Takes in the last stretch; what was due is then known exactly.
    pub(crate) fn finish(&mut self, shared: &SharedRef) -> Result<()> {
        self.tick(shared)?;
        let feed = shared.feed.lock();
        let (taken, is_dry) = (feed.taken(), feed.is_dry());
        drop(feed);
        let due = self.due_by(self.until_ns.unwrap_or(self.from_ns));
        if let Some(due) = due {
            let due = match (is_dry, self.interrupted_ns) {
                (true, _) => taken,
                (false, Some(_)) => due,
                (false, None) => due.max(taken),
            };
            if let Some(last) = self.seconds.last_mut() {
                // A file that ended in this second had less than the schedule.
                last.due = last.due.map(|before| (before + due).saturating_sub(self.due_before));
            }
            self.due_before = due;
        }
        Ok(())
    }

    /// The report as things are now.
    pub(crate) fn report(
        &self,
        plan: &Plan,
        shared: &SharedRef,
        end_reason: &str,
        name: Option<String>,
    ) -> Result<Report> {
        let running = end_reason == "running";
        if !running && self.due.is_some() {
            self.count_untaken(plan, shared);
        }
        let mut account = shared.ledger.account();
        let mut rules = BTreeMap::new();
        if let Some(follow) = &shared.follow {
            let follow = follow.lock();
            rules.clone_from(&follow.rules);
            if !running {
                // What was not acknowledged either is counted already.
                account.lost = account.lost.max(follow.outstanding());
            }
        }
        let end_ns = match shared.recorder.last_ns() {
            0 => shared.clock.now_ns(),
            last_ns => last_ns,
        };
        let gap = |gap: super::record::Gap| Span {
            from_s: seconds(gap.from_ns),
            to_s: seconds(gap.to_ns),
        };
        let mut report = Report {
            tool: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            form: FORM,
            name,
            tags: plan.tags.clone(),
            date: timestamp(now_micros()).to_string(),
            mode: plan.mode.name().to_owned(),
            host: plan.server.authority.clone(),
            load: plan.load.clone(),
            end_reason: end_reason.to_owned(),
            total: end_ns,
            primary: primary(plan.mode).name().to_owned(),
            open_loop: !plan.settings.closed_loop,
            offered: Offered {
                due: self.due.as_ref().map(|_| self.due_before),
                sent_in_time: self.totals.in_time,
                schedule_s: seconds(self.from_ns),
                cpu_s: own_cpu_s().map(|cpu_s| cpu_s - self.cpu_before_s),
                held_s: held(&self.totals),
            },
            gaps: shared.recorder.gaps().into_iter().map(gap).collect(),
            latencies: latencies(&self.totals.latencies)?,
            seconds: self.seconds.clone(),
            rules,
            account,
            ..Report::default()
        };
        if plan.mode != Mode::Subscribe && self.totals.sent > 0 && plan.source.own_pace.is_some() {
            report.offered.due = Some(shared.feed.lock().taken());
        }
        report.derive()?;
        for objective in &plan.objectives {
            let judgement = objective.judge(&report)?;
            report.objectives.push(judgement);
        }
        report.faults = faults(plan, shared, &report.account);
        report.notes = notes(plan, &report);
        Ok(report)
    }

    /// Once, at the end.
    fn count_untaken(&self, plan: &Plan, shared: &SharedRef) {
        count_untaken(plan, shared, self.due_before);
    }
}

/// Processor time of this process, where the kernel tells it.
fn own_cpu_s() -> Option<f64> {
    crate::bench::own_cpu_s().ok()
}

/// The latency that a mode is about.
fn primary(mode: Mode) -> Metric {
    match mode {
        Mode::Publish | Mode::PublishOne => Metric::Ack,
        Mode::Decide | Mode::EndToEnd => Metric::Decision,
        Mode::Subscribe => Metric::Delivery,
    }
}

fn held(tallies: &Tallies) -> BTreeMap<String, f64> {
    let each = |why: Hold| (why.name().to_owned(), seconds(tallies.held_ns[why as usize]));
    Hold::ALL.into_iter().map(each).collect()
}

fn latencies(histograms: &Histograms) -> Result<BTreeMap<String, Latency>> {
    let mut all = BTreeMap::new();
    for metric in Metric::ALL {
        if let Some(histogram) = histograms[metric as usize]
            .as_ref()
            .filter(|histogram| !histogram.is_empty())
        {
            all.insert(metric.name().to_owned(), Latency::of(histogram)?);
        }
    }
    Ok(all)
}

/// What was not as it should be, unless an objective judges it.
fn faults(plan: &Plan, shared: &SharedRef, account: &Account) -> Vec<String> {
    let counts = [
        ("errors", account.error_count(), "errors"),
        ("lost", account.lost, "events lost: they have no answer"),
        ("duplicates", account.duplicates, "answers too many"),
        (
            "reordered",
            account.reordered,
            "decisions in another order than their payments",
        ),
        ("unsent", account.unsent, "events were due and never sent"),
        ("poison", account.poison_taken(), "events of poison were not refused"),
    ];
    let judged = |name: &str| plan.objectives.iter().any(|objective| objective.judges(name));
    let mut faults: Vec<String> = counts
        .into_iter()
        .filter(|(name, count, _words)| *count > 0 && !judged(name))
        .map(|(_name, count, words)| format!("{count} {words}"))
        .collect();
    faults.extend(
        shared
            .failures
            .lock()
            .iter()
            .map(|failure| format!("could not go on: {failure}")),
    );
    faults
}

/// What a reader must know to read the figures right.
fn notes(plan: &Plan, report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    if plan.settings.closed_loop && plan.mode != Mode::Subscribe {
        notes.push(
            "closed loop: no event is sent while an answer is waited for, so that a stall of the server is measured once \
             and not for all who would have waited"
                .to_owned(),
        );
    }
    if plan.mode == Mode::Subscribe {
        notes.push("delivery is measured with the clocks of two machines".to_owned());
    }
    let slip = report.latencies.get("slip").map_or(0, |slip| slip.percentile_us(99.0));
    let whole = report.primary().map_or(0, |latency| latency.percentile_us(99.0));
    let in_time = report
        .offered
        .due
        .map_or(1.0, |due| report.offered.sent_in_time as f64 / due.max(1) as f64);
    if report.open_loop && slip > SLIP_US && slip as f64 > whole as f64 * SLIP_PART {
        notes.push(format!(
            "the loader itself is the bottleneck: it was late by {} at p99, which every latency but service includes; give \
             it more processor time, fewer streams or larger batches",
            micros(slip as f64)
        ));
    }
    if report.open_loop && in_time < 0.99 {
        notes.push(format!(
            "less was offered than asked: {:.2} % of the events were sent within {} of when they were due",
            in_time * 100.0,
            micros(super::record::IN_TIME_NS as f64 / 1e3)
        ));
    }
    if report.end_reason == CANCELLED {
        notes.push("the run was interrupted".to_owned());
    }
    notes
}
