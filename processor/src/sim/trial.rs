//! Owns one trial: processes of lanes that run their real code over the model, from the first record until everything is
//! at rest, and the check of what is left.
//!
//! Everything follows from the seed. [`super::wire`] keeps the time; this turns the wheel.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use fastrand::Rng;
use prometheus_client::registry::Registry as MetricsRegistry;
use sluice_kafka::registry::Registry;
use sluice_kafka::telemetry::Tracer;
use sluice_kafka::{Topics, fail, metrics};
use uuid::Uuid;

use super::checker;
use super::client::LANES;
use super::faults::{CALM, Faults, TRANSACTION_TIMEOUT, Timed};
use super::input::{self, Published};
use super::kafka::Topic;
use super::wire::{Core, Event, Go, Killed, Lane, MS, Points, Process, Shared, Wire};
use crate::consume::Bounds;
use crate::lane::{self, Settings, Signals};
use crate::metrics::Metrics;
use crate::replay::Kept;

/// How long everything may take to come to rest after the last fault.
const REST: u64 = 90_000 * MS;
/// How often the driver looks whether it has.
const LOOK: u64 = 250 * MS;
/// Events of a trial; one that needs more turns in circles.
const MOST_EVENTS: u64 = 400_000;
const STACK_BYTES: usize = 512 * 1_024;

/// What came of a trial.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) violations: Vec<String>,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) story: Vec<String>,
    pub(super) records: u64,
}

/// How a lane ended.
enum End {
    Stopped,
    Killed,
    Failed(String),
}

type Running = Coroutine<Go, (), End>;

thread_local! {
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
    static SHARED: Made = Made::new();
}

/// What is made once for each thread, because it is dear and has no part in what happens.
struct Made {
    registry: Arc<Registry>,
    metrics: Metrics,
    kafka_metrics: metrics::Metrics,
}

impl Made {
    fn new() -> Self {
        let mut registry = MetricsRegistry::default();
        Self {
            // Nothing is ever asked of it: all records have the schemas of this version.
            registry: Arc::new(Registry::with_patience("http://127.0.0.1:1", Duration::ZERO)),
            kafka_metrics: metrics::Metrics::register(&mut registry),
            metrics: Metrics::register(&mut registry),
        }
    }

    fn settings(&self, rng: &mut Rng) -> Settings {
        Settings {
            topics: Topics::new(""),
            transaction_timeout: TRANSACTION_TIMEOUT,
            transactional_ids: (0..LANES).map(|lane| format!("lane-{lane}")).collect(),
            bounds: Bounds {
                max_events: rng.usize(1..=8),
                max_bytes: 1 << 20,
                linger: Duration::from_millis(5),
            },
            decision_target: Duration::from_millis(60),
            rules: input::rules(input::document(0).as_bytes()).expect("the document is a rule set"),
            lateness_us: input::LATENESS_US,
            payment_schema: input::PAYMENT_SCHEMA,
            features_schema: None,
            decision_schema: input::DECISION_SCHEMA,
            registry: self.registry.clone(),
            metrics: self.metrics.clone(),
            kafka_metrics: self.kafka_metrics.clone(),
            tracer: Tracer::off(),
            kept: Kept::default(),
            run: Uuid::from_u128(rng.u128(1..)),
        }
    }
}

/// The driver of a trial.
struct Trial {
    shared: Shared,
    lanes: Vec<Option<Running>>,
    published: BTreeMap<i32, Vec<Published>>,
    stopping: bool,
}

/// Runs the trial of a seed, with some safeguards left out or with all of them.
pub(super) fn run(seed: u64, without: &'static [&'static str], tells: bool) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    let (partitions, slots) = (rng.i32(1..=3), rng.usize(1..=3));
    let faults = Faults::draw(&mut rng, slots, partitions);
    let published: BTreeMap<i32, Vec<Published>> = (0..partitions)
        .map(|part| (part, input::draw(&mut rng, part)))
        .collect();
    let mut core = Core::new(rng, faults, partitions, tells);
    for (part, records) in &published {
        for record in records {
            core.after(record.at, Event::Append(*part, record.record.clone()));
        }
    }
    for slot in 0..slots {
        let wait = core.rng.u64(0..300 * MS);
        core.after(wait, Event::Start(slot));
    }
    for (at, fault) in std::mem::take(&mut core.faults.timed) {
        core.after(at, Event::Fault(fault));
    }
    core.after(CALM, Event::Look);
    let shared: Shared = Rc::new(RefCell::new(core));
    fail::plan(Some(Rc::new(Points(shared.clone(), without))));
    let mut trial = Trial {
        shared,
        lanes: Vec::new(),
        published,
        stopping: false,
    };
    trial.turn();
    let outcome = trial.end();
    fail::plan(None);
    outcome
}

impl Trial {
    fn turn(&mut self) {
        for _ in 0..MOST_EVENTS {
            let Some(event) = self.shared.borrow_mut().next() else {
                return;
            };
            self.happen(event);
            if self.stopping && self.lanes.iter().all(Option::is_none) {
                return;
            }
        }
        self.violate("0 progress: the lanes turn in circles");
    }

    fn violate(&self, what: &str) {
        self.shared.borrow_mut().violations.push(what.to_owned());
    }

    fn happen(&mut self, event: Event) {
        let mut core = self.shared.borrow_mut();
        match event {
            Event::Wake { lane, turn } => {
                let stands_until = core.processes[core.lanes[lane].process].stands_until;
                if core.lanes[lane].turn != turn {
                    return;
                }
                if stands_until > core.now {
                    let wait = stands_until - core.now;
                    core.wake(lane, wait);
                    return;
                }
                drop(core);
                self.resume(lane, Go::On);
                self.bury();
            }
            Event::Arrive { ticket, sent } => core.arrive(ticket, sent),
            Event::Kafka(later) => {
                core.kafka.happen(later);
                core.tell(|| format!("{later:?}"));
                core.schedule();
            }
            Event::Agree(round) => {
                if core.kafka.group.preparing == Some(round) {
                    core.kafka.group.complete();
                    core.wake_idle();
                }
            }
            Event::Expire(member) => {
                let now = core.now;
                let silent = |it: &Process| !it.alive || it.stands_until > now;
                if core
                    .processes
                    .iter()
                    .any(|it| it.members.contains(&member) && silent(it))
                {
                    core.tell(|| format!("member {member} is given up"));
                    core.kafka.group.remove(member);
                    core.group_changed();
                }
            }
            Event::Agreed(topic, part) => {
                core.kafka.log(topic, part).agree();
                core.tell(|| format!("the leader of {topic:?} {part} knows the end"));
                core.wake_idle();
            }
            Event::Append(part, record) => {
                core.kafka.append(Topic::Payments, part, record);
                core.wake_idle();
            }
            Event::Fault(fault) => {
                drop(core);
                self.break_something(fault);
            }
            Event::Start(slot) => {
                drop(core);
                self.start(slot);
            }
            Event::Look => {
                drop(core);
                self.look();
            }
        }
    }

    fn break_something(&mut self, fault: Timed) {
        {
            let mut core = self.shared.borrow_mut();
            let living = |slot: usize, core: &Core| core.processes.iter().rposition(|it| it.slot == slot && it.alive);
            match fault {
                Timed::Kill(slot) => {
                    if let Some(process) = living(slot, &core) {
                        core.kill(process);
                    }
                }
                Timed::Stand(slot, wait) => {
                    if let Some(process) = living(slot, &core) {
                        core.stand(process, wait);
                    }
                }
                Timed::FailOver(lost) => {
                    core.count("failovers");
                    core.tell(|| format!("postgres fails over and loses {lost} transactions"));
                    core.postgres.fail_over(lost);
                }
                Timed::Leave(slot) => {
                    if let Some(process) = living(slot, &core) {
                        core.count("departures");
                        core.tell(|| format!("process {process} is asked to end"));
                        core.processes[process].signals.stop.store(true, Ordering::Relaxed);
                        core.wake_idle();
                    }
                }
                Timed::Elect(topic, part, unknown, wait) => {
                    core.count("elections");
                    core.tell(|| format!("{topic:?} {part} has a leader that knows {unknown} entries less"));
                    core.kafka.log(topic, part).elect(unknown);
                    core.after(wait, Event::Agreed(topic, part));
                }
            }
        }
        self.bury();
    }

    fn start(&mut self, slot: usize) {
        let mut core = self.shared.borrow_mut();
        if self.stopping || core.processes.iter().any(|it| it.slot == slot && it.alive) {
            return;
        }
        let process = core.processes.len();
        let signals = Arc::new(Signals::default());
        core.processes.push(Process {
            slot,
            alive: true,
            stands_until: 0,
            signals: signals.clone(),
            members: BTreeSet::new(),
        });
        core.tell(|| format!("process {process} starts in slot {slot}"));
        let settings = Rc::new(SHARED.with(|made| made.settings(&mut core.rng)));
        for number in 0..LANES {
            let lane = core.lanes.len();
            core.lanes.push(Lane {
                process,
                turn: 0,
                idle: false,
            });
            core.wake(lane, 0);
            let running = coroutine(number, lane, process, &self.shared, settings.clone(), signals.clone());
            self.lanes.push(Some(running));
        }
    }

    fn resume(&mut self, lane: usize, go: Go) {
        let Some(running) = &mut self.lanes[lane] else { return };
        self.shared.borrow_mut().running = lane;
        let CoroutineResult::Return(end) = running.resume(go) else {
            return;
        };
        if let Some(over) = self.lanes[lane].take() {
            STACKS.with_borrow_mut(|stacks| stacks.push(over.into_stack()));
        }
        let mut core = self.shared.borrow_mut();
        let process = core.lanes[lane].process;
        match end {
            End::Killed => {}
            End::Failed(why) => {
                core.violations.push(format!("0 progress: lane {lane} ended: {why}"));
            }
            End::Stopped => {
                let rest = core
                    .lanes
                    .iter()
                    .zip(&self.lanes)
                    .filter(|(lane, _)| lane.process == process);
                if rest.into_iter().all(|(_, running)| running.is_none()) {
                    core.processes[process].alive = false;
                    let slot = core.processes[process].slot;
                    let pause = 500 * MS;
                    core.after(pause, Event::Start(slot));
                }
            }
        }
    }

    /// Lets the lanes of killed processes end.
    fn bury(&mut self) {
        for lane in 0..self.lanes.len() {
            let dead = {
                let core = self.shared.borrow();
                !core.processes[core.lanes[lane].process].alive
            };
            if dead && self.lanes[lane].is_some() {
                self.resume(lane, Go::Die);
            }
        }
    }

    /// Asks everybody to end, when everything is at rest.
    fn look(&mut self) {
        let mut core = self.shared.borrow_mut();
        let done = |part: &i32, records: &Vec<Published>| {
            let end = records.len() as i64;
            core.kafka.group.committed.get(part).copied().unwrap_or(0) == end
                && core
                    .postgres
                    .tables
                    .owners
                    .get(part)
                    .is_some_and(|(_, watermark)| *watermark == end)
        };
        let rests = self.published.iter().all(|(part, records)| done(part, records)) && core.kafka.is_quiet();
        let late = core.now > CALM + REST;
        if !rests && !late {
            core.after(LOOK, Event::Look);
            return;
        }
        if late {
            core.violations
                .push("0 progress: not everything was decided in time".to_owned());
        }
        self.stopping = true;
        for process in core.processes.iter().filter(|process| process.alive) {
            process.signals.stop.store(true, Ordering::Relaxed);
        }
        core.wake_idle();
    }

    fn end(mut self) -> Outcome {
        for lane in 0..self.lanes.len() {
            self.shared
                .borrow_mut()
                .processes
                .iter_mut()
                .for_each(|process| process.alive = false);
            self.resume(lane, Go::Die);
        }
        let mut core = self.shared.borrow_mut();
        // What is still on its way arrives.
        while let Some(event) = core.next() {
            match event {
                Event::Arrive { ticket, sent } => core.arrive(ticket, sent),
                Event::Kafka(later) => {
                    core.kafka.happen(later);
                    core.schedule();
                }
                _ => {}
            }
        }
        let violations = checker::check(&mut core, &self.published);
        let (compensated, refilled) = (core.postgres.compensated, core.postgres.refilled);
        core.counts.insert("rows compensated", compensated);
        core.counts.insert("rows refilled", refilled);
        Outcome {
            violations,
            counts: std::mem::take(&mut core.counts),
            story: core.story.take().unwrap_or_default(),
            records: self.published.values().map(|records| records.len() as u64).sum(),
        }
    }
}

/// A lane that begins when it is first resumed.
fn coroutine(
    number: usize,
    lane: usize,
    process: usize,
    shared: &Shared,
    settings: Rc<Settings>,
    signals: Arc<Signals>,
) -> Running {
    let shared = shared.clone();
    let stack = STACKS.with_borrow_mut(Vec::pop);
    let stack = stack.unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("there is memory for a stack"));
    Coroutine::with_stack(stack, move |yielder: &Yielder<Go, ()>, go| {
        if go == Go::Die {
            return End::Killed;
        }
        let wire = Wire {
            shared,
            yielder,
            lane,
            process,
        };
        let body = || lane::run(number as u16, &wire, &settings, &signals);
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => End::Stopped,
            Ok(Err(error)) => End::Failed(error.to_string()),
            Err(payload) if payload.is::<Killed>() => End::Killed,
            Err(payload) => End::Failed(said(&*payload)),
        }
    })
}

fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}
