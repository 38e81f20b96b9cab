//! A run: connect, start the workers, follow them second by second, and report.
//!
//! The driver of everything measured. `options` and `plan` say what is wanted; `schedule`, `feed` and the source decide
//! what is sent when; `publish`, `unary` and `subscribe` are the workers; `record`, `ledger` and `follow` keep what came
//! of it; `assemble` makes a report of that. `find_max` makes runs at several rates.

mod assemble;
mod clock;
mod connect;
mod feed;
mod find_max;
mod follow;
mod ledger;
mod options;
mod pace;
mod plan;
mod progress;
mod publish;
mod record;
mod schedule;
mod scrape;
mod shared;
mod subscribe;
mod unary;
mod window;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use sluice_proto::pb::PublishOpen;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::now_micros;
use crate::report::{self, CANCELLED, Report};
use crate::source::Source;
use assemble::Measured;
use clock::{Clock, NS_PER_MS, NS_PER_S};
use feed::Feed;
use follow::Follow;
pub use follow::Found;
use ledger::Ledger;
use ledger::add;
pub use ledger::{Account, Outage};
use options::Stop;
pub(crate) use options::duration;
pub use options::{Args, Mode};
use plan::Plan;
use progress::Progress;
use publish::{Publisher, Session};
pub(crate) use record::Detail;
use record::Recorder;
pub use record::{Metric, histogram};
use scrape::Scrape;
use shared::{Phase, Shared, SharedRef};
use subscribe::{Subscriber, Subscription};
use unary::Caller;

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// After the last decision, time for one that should not come.
const DUPLICATE_WATCH_NS: u64 = 300 * NS_PER_MS;

/// Runs what the options ask for, and writes the report. `Ok(true)` when nothing was lost, repeated, reordered or refused
/// and every objective held.
///
/// # Errors
/// When it could not be tried: options that make no sense, a server that cannot be reached, a report that cannot be
/// written.
pub async fn run(mode: Mode, args: Args) -> anyhow::Result<bool> {
    let plan = Plan::new(mode, &args)?;
    let output = args.output.output.as_deref();
    report::check_output(output)?;
    let scrape = args.output.scrape.map(Scrape::start).transpose()?;
    let mut screen = Screen {
        progress: Progress::new(args.output.quiet),
        scrape,
        name: args.output.name.clone(),
        details: args.output.format.needs_details(),
    };
    let (report, details) = if args.load.find_max {
        find_max::run(&plan, &args, &mut screen).await?
    } else {
        once(&plan, &mut screen).await?
    };
    report::write(&report, &details, args.output.format, output)?;
    for fault in report.faults.iter().filter(|_| output.is_some()) {
        eprintln!("{fault}");
    }
    let held = report.trials.iter().any(|trial| trial.held);
    Ok(if args.load.find_max { held } else { report.succeeded() })
}

/// Threads that the options ask for.
pub fn threads(args: &Args) -> Option<usize> {
    args.load.cpus.map(usize::from)
}

/// Where a run is shown while it goes on.
pub(crate) struct Screen {
    progress: Progress,
    scrape: Option<Scrape>,
    name: Option<String>,
    details: bool,
}

/// Sessions and subscriptions that stand before the clock starts.
struct Opened {
    sessions: Vec<(PublishOpen, Session)>,
    subscriptions: Vec<Subscription>,
}

/// One run.
async fn once(plan: &Plan, screen: &mut Screen) -> anyhow::Result<(Report, Vec<Detail>)> {
    let source = Source::open(plan.source.clone())?;
    let mut channels = Vec::new();
    for _connection in 0..plan.connections {
        channels.push(plan.server.connect().await?);
    }
    let opened = open(plan, &channels).await?;
    let clock = Clock::start();
    let follows = plan.mode == Mode::EndToEnd;
    let skip_first = plan.skip_first;
    let shared = Arc::new(Shared {
        clock,
        server: plan.server.clone(),
        channels,
        settings: plan.settings.clone(),
        ids: source.ids(),
        feed: Mutex::new(Feed::new(clock, source, plan.shape, plan.extent)),
        recorder: Recorder::new(plan.workers + plan.subscribers, skip_first, screen.details),
        ledger: Ledger::default(),
        follow: follows.then(|| Mutex::new(Follow::new(plan.subscribers))),
        phase: watch::Sender::new(Phase::Running),
        failures: Mutex::default(),
    });
    let mut publishing = JoinSet::new();
    let mut receiving = JoinSet::new();
    if plan.mode.is_unary() {
        for worker in 0..plan.workers {
            let caller = Caller::new(Arc::clone(&shared), worker, plan.mode == Mode::Decide)?;
            publishing.spawn(caller.run());
        }
    }
    for (worker, (open, session)) in opened.sessions.into_iter().enumerate() {
        publishing.spawn(Publisher::new(Arc::clone(&shared), worker, open)?.run(session));
    }
    for (number, subscription) in opened.subscriptions.into_iter().enumerate() {
        let subscriber = Subscriber::new(Arc::clone(&shared), number, plan.workers + number)?;
        receiving.spawn(subscriber.run(subscription));
    }
    let mut measured = Measured::new(plan);
    let end_reason = watch_run(plan, &shared, &mut publishing, &mut receiving, &mut measured, screen).await?;
    measured.finish(&shared)?;
    screen.progress.finish();
    let report = measured.report(plan, &shared, end_reason, screen.name.clone())?;
    Ok((report, shared.recorder.take_details()))
}

/// Opens what streams there are to be, so that a server that refuses them is an error before the run.
async fn open(plan: &Plan, channels: &[tonic::transport::Channel]) -> anyhow::Result<Opened> {
    let (server, settings) = (&plan.server, &plan.settings);
    let channel = |worker: usize| channels[worker % channels.len()].clone();
    let mut opened = Opened {
        sessions: Vec::new(),
        subscriptions: Vec::new(),
    };
    for number in 0..plan.subscribers {
        let opening = Subscription::open(server, channel(plan.workers + number), settings.credit, None);
        let subscription = opening
            .await
            .map_err(|refusal| publish::cannot_open("subscription", server, &refusal))?;
        opened.subscriptions.push(subscription);
    }
    if !matches!(plan.mode, Mode::Publish | Mode::EndToEnd) {
        return Ok(opened);
    }
    let run = fastrand::u32(..);
    for worker in 0..plan.workers {
        let open = PublishOpen {
            producer_id: format!("sluice-load-{run:08x}-{worker}"),
            epoch: (now_micros() / 1_000) as u64,
            max_in_flight: settings.max_in_flight,
            ..PublishOpen::default()
        };
        let session = Session::open(server, channel(worker), open.clone())
            .await
            .map_err(|refusal| publish::cannot_open("publishing session", server, &refusal))?;
        opened.sessions.push((open, session));
    }
    Ok(opened)
}

/// Follows the workers until they are done, or until they are cut off. Returns why it ended.
async fn watch_run(
    plan: &Plan,
    shared: &SharedRef,
    publishing: &mut JoinSet<anyhow::Result<()>>,
    receiving: &mut JoinSet<anyhow::Result<()>>,
    measured: &mut Measured,
    screen: &mut Screen,
) -> anyhow::Result<&'static str> {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reason = "normal";
    let mut interrupts = 0;
    let mut quiet = Quiet::default();
    loop {
        tokio::select! {
            ended = publishing.join_next(), if !publishing.is_empty() => check(ended)?,
            ended = receiving.join_next(), if !receiving.is_empty() => check(ended)?,
            _now = look.tick() => {}
            signal = tokio::signal::ctrl_c() => {
                signal.context("no signals")?;
                interrupts += 1;
                reason = CANCELLED;
                measured.interrupt(shared.clock.now_ns());
                shared.feed.lock().end();
            }
        }
        let now_ns = shared.clock.now_ns();
        if measured.tick_if_due(shared, now_ns)? {
            screen.show(plan, shared, measured)?;
        }
        if publishing.is_empty() && receiving.is_empty() {
            return Ok(reason);
        }
        let over = plan.extent.until_ns.is_some_and(|until_ns| now_ns >= until_ns);
        let cut = match plan.mode {
            Mode::Subscribe => over || interrupts > 0 || measured.has_enough(plan, shared),
            _ if publishing.is_empty() => quiet.is_complete(shared, now_ns) || quiet.gave_up(shared, now_ns, plan),
            _ if interrupts > 1 => true,
            _ if over && plan.settings.stop != Stop::Wait => true,
            _ => (over || shared.feed.lock().has_ended()) && quiet.gave_up(shared, now_ns, plan),
        };
        if cut {
            shared.phase.send_replace(Phase::Cut);
        }
    }
}

fn check(ended: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>) -> anyhow::Result<()> {
    ended.map_or(Ok(()), |ended| ended.context("a worker failed")?)
}

/// How long nothing has moved.
#[derive(Default)]
struct Quiet {
    moved: u64,
    since_ns: u64,
    complete_since_ns: Option<u64>,
}

impl Quiet {
    /// Whether nothing moved for longer than patience lasts.
    fn gave_up(&mut self, shared: &SharedRef, now_ns: u64, plan: &Plan) -> bool {
        let moved = shared.recorder.moved();
        if moved != self.moved || self.since_ns == 0 {
            (self.moved, self.since_ns) = (moved, now_ns);
        }
        now_ns - self.since_ns >= plan.settings.patience.as_nanos() as u64
    }

    /// Whether every decision came, and none came after the last for a while.
    fn is_complete(&mut self, shared: &SharedRef, now_ns: u64) -> bool {
        let outstanding = shared.follow.as_ref().map_or(0, |follow| follow.lock().outstanding());
        if outstanding > 0 {
            self.complete_since_ns = None;
            return false;
        }
        let since_ns = *self.complete_since_ns.get_or_insert(now_ns);
        now_ns - since_ns >= DUPLICATE_WATCH_NS
    }
}

impl Screen {
    /// Shows the second that has passed.
    fn show(&mut self, plan: &Plan, shared: &SharedRef, measured: &Measured) -> anyhow::Result<()> {
        if let Some(second) = measured.last_second() {
            self.progress.show(plan, shared, second);
        }
        if let Some(scrape) = &self.scrape {
            let report = measured.report(plan, shared, "running", self.name.clone())?;
            scrape.set(report::prometheus(&report));
        }
        Ok(())
    }
}

/// Adds what was due and is not even taken when a run ends before its time.
fn count_untaken(plan: &Plan, shared: &SharedRef, due: u64) {
    let untaken = due.saturating_sub(shared.feed.lock().taken());
    match plan.settings.stop {
        Stop::Wait | Stop::Close => add(&shared.ledger.unsent, untaken),
        Stop::Ignore => add(&shared.ledger.ignored, untaken),
    }
}

/// A moment in seconds.
fn seconds(at_ns: u64) -> f64 {
    at_ns as f64 / NS_PER_S as f64
}
