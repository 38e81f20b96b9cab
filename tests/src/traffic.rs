//! A steady stream of payments in the background, with its decisions, while a test breaks things.
//!
//! Comes after [`crate::mix`], which makes the payments; [`crate::checker`] says whether all came right.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use sluice_client::{Outcome, Publisher, Start, Subscriber, Target, Ticket};
use sluice_proto::pb;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::checker::{self, Expected, Violations};
use crate::history::History;
use crate::mix::{self, Generator, Mix};
use crate::stack::{Stack, Tenant};
use crate::{ledger, oracle, topics, wait};

/// The time of one tick.
const TICK: Duration = Duration::from_millis(10);
/// Ticks of a pause: long enough for an idle lane to flush its watermarks.
const PAUSE_TICKS: u64 = 15;
/// How long a row may stay PREPARED, and a decision on its way, when nothing is broken any more.
const SETTLE: Duration = Duration::from_secs(10);
/// For how long a subscriber that has everything listens on.
const AFTERWARDS: Duration = Duration::from_millis(300);
/// A slow subscriber takes so many decisions in each tick.
const SLOW_TICK_DECISIONS: usize = 5;
/// And its credit.
const SLOW_CREDIT: u32 = 64;

/// Where a stream of payments goes, and what it is.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The URL to publish by.
    pub publish_url: String,
    /// The URL to subscribe by.
    pub subscribe_url: String,
    /// What is published.
    pub mix: Mix,
    /// From what.
    pub seed: u64,
    /// Whether a second subscriber is slower than the payments come.
    pub slow_subscriber: bool,
    /// Whose payments these are; those of a tenant that nobody else was given where it is none.
    pub tenant: Option<Tenant>,
}

impl Plan {
    /// Plain payments by way of the stack's gateway.
    pub fn plain(url: &str) -> Self {
        Self {
            publish_url: url.to_owned(),
            subscribe_url: url.to_owned(),
            mix: Mix::PLAIN,
            seed: 0,
            slow_subscriber: false,
            tenant: None,
        }
    }
}

/// How far the decisions have come.
#[derive(Clone, Debug)]
struct Progress {
    decided: usize,
    /// By partition: when the newest payment that is decided was published, in milliseconds since the Unix epoch.
    newest_ms: BTreeMap<i32, u64>,
    delays: Histogram<u64>,
}

/// No delays yet: those of decisions, in milliseconds from making an event to receiving its decision, up to an hour and to two
/// digits.
pub fn no_delays() -> Histogram<u64> {
    #[expect(
        clippy::expect_used,
        reason = "an hour and two digits are within a histogram's bounds"
    )]
    Histogram::new_with_bounds(1, 3_600_000, 2).expect("valid bounds")
}

/// Payments that flow until told to stop.
#[derive(Debug)]
pub struct Traffic {
    tenant: Tenant,
    stop: watch::Sender<bool>,
    published: watch::Receiver<usize>,
    progress: watch::Receiver<Progress>,
    publishing: JoinHandle<Result<Published>>,
    readers: Vec<Reader>,
}

#[derive(Debug)]
struct Reader {
    /// The accounts whose decisions it asks for; all where there are none.
    accounts: Vec<String>,
    wanted: oneshot::Sender<usize>,
    reading: JoinHandle<Result<Received>>,
}

#[derive(Debug)]
struct Published {
    expected: Expected,
    events: usize,
    sessions: u64,
}

#[derive(Debug)]
struct Received {
    decisions: Vec<pb::FraudDecision>,
    sessions: u64,
}

/// What the traffic came to.
#[derive(Debug)]
pub struct Outcomes {
    /// Events that were published, repetitions included.
    pub payments: usize,
    /// How often a publishing session was opened.
    pub publish_sessions: u64,
    /// How often a subscription was opened.
    pub subscribe_sessions: u64,
    /// What was promised about them.
    pub expected: Expected,
    /// What each subscriber received.
    pub received: Vec<Delivered>,
}

/// What one subscriber received.
#[derive(Debug)]
pub struct Delivered {
    /// The accounts whose decisions it asked for; all where there are none.
    pub accounts: Vec<String>,
    /// In order.
    pub decisions: Vec<pb::FraudDecision>,
}

impl Traffic {
    /// Starts publishing plain payments and receiving by these URLs.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn start(stack: &Stack, publish_url: &str, subscribe_url: &str) -> Result<Self> {
        let plan = Plan {
            subscribe_url: subscribe_url.to_owned(),
            ..Plan::plain(publish_url)
        };
        Self::start_as(stack, plan).await
    }

    /// Starts publishing and receiving as planned.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn start_as(stack: &Stack, plan: Plan) -> Result<Self> {
        let tenant = plan.tenant.unwrap_or_else(|| stack.tenant());
        let target = Target::new(&plan.subscribe_url, &tenant.key)?;
        let (count, progress) = watch::channel(Progress {
            decided: 0,
            newest_ms: BTreeMap::new(),
            delays: no_delays(),
        });
        let whole = Subscriber::builder(target.clone()).open().await?;
        let mut readers = vec![reader(whole, Vec::new(), Some(count), false)];
        if plan.mix.hot > 0 {
            let accounts = mix::hot_accounts();
            let filter = pb::DecisionFilter {
                account_ids: accounts.clone(),
                ..pb::DecisionFilter::default()
            };
            let narrow = Subscriber::builder(target.clone()).filter(filter).open().await?;
            readers.push(reader(narrow, accounts, None, false));
        }
        if plan.slow_subscriber {
            let slow = Subscriber::builder(target).start(Start::Earliest).credit(SLOW_CREDIT);
            readers.push(reader(slow.open().await?, Vec::new(), None, true));
        }
        let publisher = Publisher::builder(Target::new(&plan.publish_url, &tenant.key)?, "traffic", unix_ms());
        let publisher = publisher.want_positions(true).connect().await?;
        let (stop, stopped) = watch::channel(false);
        let (sent, published) = watch::channel(0);
        let generator = Generator::new(plan.mix.clone(), plan.seed);
        let publishing = tokio::spawn(publish(
            publisher,
            tenant.name.clone(),
            plan.mix,
            generator,
            stopped,
            sent,
        ));
        Ok(Self {
            tenant,
            stop,
            published,
            progress,
            publishing,
            readers,
        })
    }

    /// Whose payments these are.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Waits until so many more payments are decided than are published now, so that everything works that works again.
    /// Only for a mix in which every payment is decided.
    ///
    /// # Errors
    /// When they are not.
    pub async fn flows(&mut self, more: usize) -> Result<()> {
        let goal = *self.published.borrow() + more;
        let reached = self.progress.wait_for(|progress| progress.decided >= goal);
        let reached = wait::soon("payments are decided", async { reached.await.map(|_progress| ()) }).await;
        let decided = self.progress.borrow().decided;
        reached
            .with_context(|| format!("{decided} payments are decided, {goal} were expected"))?
            .context("the subscription ended")
    }

    /// Waits until every partition decides payments that are published from now on. Says how long that took.
    ///
    /// # Errors
    /// When one does not.
    pub async fn recovers(&mut self, partitions: usize) -> Result<Duration> {
        let (began, began_ms) = (Instant::now(), unix_ms());
        let whole = |progress: &Progress| {
            let new = progress.newest_ms.values().filter(|newest| **newest > began_ms);
            new.count() == partitions
        };
        let recovered = self.progress.wait_for(whole);
        let recovered = wait::soon("every partition decides again", async {
            recovered.await.map(|_progress| ())
        })
        .await;
        let newest = self.progress.borrow().newest_ms.clone();
        recovered
            .with_context(|| format!("since {began_ms} the newest that were decided are {newest:?}"))?
            .context("the subscription ended")?;
        Ok(began.elapsed())
    }

    /// Somebody who looks at the delays of the decisions meanwhile.
    pub fn observer(&self) -> Observer {
        Observer(self.progress.clone())
    }

    /// Waits until so many more payments are published: the time that passes while something is broken.
    ///
    /// # Errors
    /// When they are not.
    pub async fn passes(&mut self, more: usize) -> Result<()> {
        let goal = *self.published.borrow() + more;
        let reached = self.published.wait_for(|published| *published >= goal);
        wait::soon("payments are published", reached)
            .await?
            .context("publishing ended")?;
        Ok(())
    }

    /// Stops publishing, and waits until everything is acknowledged. To be called once.
    ///
    /// # Errors
    /// When publishing fails.
    pub async fn stop(&mut self) -> Result<Stopped> {
        self.stop.send_replace(true);
        let published = wait::soon("every payment is acknowledged", &mut self.publishing).await???;
        Ok(Stopped {
            published,
            readers: std::mem::take(&mut self.readers),
        })
    }

    /// Stops publishing, and waits until everything is acknowledged, processed and delivered, or does not come.
    ///
    /// # Errors
    /// When publishing or a subscription fails, or the processors do not get to the end of the topic.
    pub async fn end(mut self, stack: &Stack) -> Result<(Outcomes, History)> {
        let tenant = self.tenant.name.clone();
        let stopped = self.stop().await?;
        at_rest(stack).await?;
        let history = History::read(stack).await?;
        let outcomes = stopped
            .received(|accounts| promised(&history, &tenant, accounts))
            .await?;
        Ok((outcomes, history))
    }

    /// Stops publishing, waits until everything is decided, and checks the whole promise.
    ///
    /// # Errors
    /// Says what is wrong.
    pub async fn finish(self, stack: &Stack) -> Result<Outcomes> {
        let (outcomes, history) = self.end(stack).await?;
        let mut violations = Violations::default();
        examine(&history, &outcomes, 0, &mut violations);
        let violations = violations.into_vec();
        if !violations.is_empty() {
            bail!("{}", checker::tell(&violations));
        }
        Ok(outcomes)
    }
}

/// Looks at the delays of one traffic's decisions.
#[derive(Clone, Debug)]
pub struct Observer(watch::Receiver<Progress>);

impl Observer {
    /// Those so far.
    pub fn delays(&self) -> Histogram<u64> {
        self.0.borrow().delays.clone()
    }
}

/// Traffic that has ended, but for what its subscribers have still to receive.
#[derive(Debug)]
pub struct Stopped {
    published: Published,
    readers: Vec<Reader>,
}

impl Stopped {
    /// Waits until each subscriber has as many decisions as are promised to one that asks for these accounts, or no more
    /// come.
    ///
    /// # Errors
    /// When a subscription fails.
    pub async fn received(self, promised: impl Fn(&[String]) -> usize) -> Result<Outcomes> {
        let (mut received, mut sessions) = (Vec::new(), 0);
        for Reader {
            accounts,
            wanted,
            reading,
        } in self.readers
        {
            // A reader that has ended says why below.
            wanted.send(promised(&accounts)).ok();
            let read = wait::soon("the subscriber has read", reading).await???;
            sessions += read.sessions;
            received.push(Delivered {
                accounts,
                decisions: read.decisions,
            });
        }
        Ok(Outcomes {
            payments: self.published.events,
            publish_sessions: self.published.sessions,
            subscribe_sessions: sessions,
            expected: self.published.expected,
            received,
        })
    }
}

/// Waits until everything that was published is decided and, if it comes to that, no row is PREPARED.
///
/// # Errors
/// When the processors do not get to the end of the topic.
pub async fn at_rest(stack: &Stack) -> Result<()> {
    topics::consumed(stack).await?;
    topics::stable(stack).await?;
    let mut connection = ledger::connect(stack).await?;
    // What stays PREPARED is for the checker to tell.
    drop(tokio::time::timeout(SETTLE, ledger::settled(&mut connection)).await);
    Ok(())
}

/// Checks everything that is promised about traffic that has ended, on an installation with the default rules. `forged` is
/// how many decisions the test itself wrote again.
pub fn examine(history: &History, outcomes: &Outcomes, forged: usize, violations: &mut Violations) {
    let tenant = &outcomes.expected.tenant;
    let visible = checker::visible(history, forged, violations);
    checker::once(history, &visible, &outcomes.expected, violations);
    for received in &outcomes.received {
        checker::delivery(&received.decisions, tenant, &received.accounts, &visible, violations);
    }
    // Somebody else may have published beside this traffic.
    let decided = visible.iter().map(|(_, decision)| decision.tenant.as_str());
    let tenants: BTreeSet<&str> = decided
        .chain(history.rows.iter().map(|row| row.tenant.as_str()))
        .collect();
    for tenant in tenants {
        checker::ledger_rows(history, &visible, tenant, violations);
    }
    let fates = oracle::replay(&history.records, &history.schemas);
    checker::replay(history, &visible, &fates, violations);
    checker::epochs(history, violations);
}

async fn publish(
    publisher: Publisher,
    tenant: String,
    mix: Mix,
    mut generator: Generator,
    stopped: watch::Receiver<bool>,
    sent: watch::Sender<usize>,
) -> Result<Published> {
    let mut ticks = tokio::time::interval(TICK);
    // A wait for credit or for a gateway that is gone is not made up for by a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tickets = Vec::new();
    let mut tick = 0_u64;
    while !*stopped.borrow() {
        ticks.tick().await;
        tick += 1;
        if mix.pause_after_ticks > 0 && tick % (mix.pause_after_ticks + PAUSE_TICKS) >= mix.pause_after_ticks {
            continue;
        }
        for _event in 0..mix.tick_events {
            let next = generator.make();
            let id = next.event.event_id.clone();
            tickets.push((id, next.valid, publisher.publish(next.event).await?));
        }
        sent.send_replace(tickets.len());
    }
    let events = tickets.len();
    let expected = settle(&tenant, tickets).await?;
    let sessions = publisher.sessions();
    publisher.close().await?;
    Ok(Published {
        expected,
        events,
        sessions,
    })
}

/// What the gateway said about each event. One that was published several times is absent only if each time was.
async fn settle(tenant: &str, tickets: Vec<(String, bool, Ticket)>) -> Result<Expected> {
    let mut expected = Expected::of(tenant);
    let mut maybe_stored = HashSet::new();
    for (id, valid, ticket) in tickets {
        expected.published.insert(id.clone());
        match ticket.await?.outcome {
            Outcome::Stored { position } => {
                expected.acked.insert(id, position);
            }
            // The answer was lost; a refusal would have been of the event itself.
            Outcome::Duplicate | Outcome::Settled if valid => {
                expected.acked.entry(id).or_insert(None);
            }
            Outcome::Duplicate | Outcome::Settled => {
                maybe_stored.insert(id);
            }
            Outcome::Error(error) if error.certainly_not_stored => {
                anyhow::ensure!(!valid || error.retriable, "a valid event was refused: {error:?}");
                expected.absent.insert(id);
            }
            Outcome::Error(_uncertain) => {
                maybe_stored.insert(id);
            }
        }
    }
    let stored = |id: &String| expected.acked.contains_key(id) || maybe_stored.contains(id);
    let absent = std::mem::take(&mut expected.absent);
    let absent = absent.into_iter().filter(|id| !stored(id)).collect();
    expected.absent = absent;
    Ok(expected)
}

/// How many decisions a subscriber must get, were it only by their number.
fn promised(history: &History, tenant: &str, accounts: &[String]) -> usize {
    let decisions = history.decisions.iter().filter(|(record, decision)| {
        record.is_of(tenant) && (accounts.is_empty() || accounts.contains(&decision.account_id))
    });
    let sources = decisions.map(|(_, decision)| (decision.source_partition, decision.source_offset));
    sources.collect::<HashSet<_>>().len()
}

fn reader(
    subscriber: Subscriber,
    accounts: Vec<String>,
    progress: Option<watch::Sender<Progress>>,
    slow: bool,
) -> Reader {
    let (wanted, told) = oneshot::channel();
    Reader {
        accounts,
        wanted,
        reading: tokio::spawn(receive(subscriber, told, progress, slow)),
    }
}

/// Receives as it comes, or slowly, and once everything is decided, until nothing is missing or nothing comes any more.
async fn receive(
    mut subscriber: Subscriber,
    mut told: oneshot::Receiver<usize>,
    progress: Option<watch::Sender<Progress>>,
    slow: bool,
) -> Result<Received> {
    let mut ticks = tokio::time::interval(TICK);
    let (mut decisions, mut wanted) = (Vec::new(), None);
    while wanted.is_none_or(|wanted| decisions.len() < wanted) {
        if slow && wanted.is_none() && decisions.len() % SLOW_TICK_DECISIONS == 0 {
            ticks.tick().await;
        }
        let next = tokio::select! {
            count = &mut told, if wanted.is_none() => {
                wanted = Some(count.context("publishing failed")?);
                continue;
            }
            next = tokio::time::timeout(SETTLE, subscriber.next()) => next,
        };
        match next {
            Ok(decision) => {
                let decision = decision?.context("the subscription ended")?;
                note(progress.as_ref(), &decision);
                decisions.push(decision);
            }
            // What is missing is for the checker to tell.
            Err(_nothing_comes) if wanted.is_some() => break,
            Err(_nothing_comes) => {}
        }
    }
    // What comes again after everything has come must be seen, too.
    while let Ok(decision) = tokio::time::timeout(AFTERWARDS, subscriber.next()).await {
        decisions.push(decision?.context("the subscription ended")?);
    }
    Ok(Received {
        decisions,
        sessions: subscriber.sessions(),
    })
}

/// The events' ids begin with the time at which they were made.
fn note(progress: Option<&watch::Sender<Progress>>, decision: &pb::FraudDecision) {
    let Some(progress) = progress else { return };
    let id = uuid::Uuid::parse_str(&decision.event_id).unwrap_or_default();
    let published_ms = id.get_timestamp().map_or(0, |time| {
        let (seconds, nanos) = time.to_unix();
        seconds * 1_000 + u64::from(nanos) / 1_000_000
    });
    let partition = decision.source.unwrap_or_default().partition;
    progress.send_modify(|progress| {
        progress.decided += 1;
        progress
            .delays
            .saturating_record(unix_ms().saturating_sub(published_ms));
        let newest = progress.newest_ms.entry(partition).or_default();
        *newest = published_ms.max(*newest);
    });
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
