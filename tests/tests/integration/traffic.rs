//! A steady stream of payments in the background, with its decisions, while a test breaks things.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_client::{Outcome, Publisher, Subscriber, Target};
use sluice_proto::pb;
use sluice_tests::checker::{self, Expected};
use sluice_tests::stack::{Stack, Tenant};
use sluice_tests::subscription::Subscription;
use sluice_tests::{events, wait};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// Payments a tick, and the time of one: 2,000 payments a second, so that a crash at any moment meets some under way.
const TICK_EVENTS: usize = 20;
const TICK: Duration = Duration::from_millis(10);

/// Payments that flow until told to stop.
pub(crate) struct Traffic {
    tenant: Tenant,
    stop: watch::Sender<bool>,
    published: watch::Receiver<usize>,
    decided: watch::Receiver<usize>,
    publishing: JoinHandle<Result<Published>>,
    receiving: JoinHandle<Result<Subscription>>,
}

struct Published {
    events: Vec<pb::Event>,
    expected: Expected,
    sessions: u64,
}

/// What the traffic came to.
pub(crate) struct Outcomes {
    /// Payments that were published.
    pub(crate) payments: usize,
    /// How often a publishing session was opened.
    pub(crate) publish_sessions: u64,
    /// How often a subscription was opened.
    pub(crate) subscribe_sessions: u64,
}

impl Traffic {
    /// Starts publishing and receiving by these URLs.
    pub(crate) async fn start(stack: &Stack, publish_url: &str, subscribe_url: &str) -> Result<Self> {
        let tenant = stack.tenant();
        let subscriber = Subscriber::builder(Target::new(subscribe_url, &tenant.key)?)
            .open()
            .await?;
        let publisher = Publisher::builder(Target::new(publish_url, &tenant.key)?, "traffic", 1);
        let publisher = publisher.want_positions(true).connect().await?;
        let (stop, stopped) = watch::channel(false);
        let (ids, wanted) = oneshot::channel();
        let (count, decided) = watch::channel(0);
        let (sent, published) = watch::channel(0);
        let publishing = tokio::spawn(publish(publisher, tenant.name.clone(), stopped, sent, ids));
        let receiving = tokio::spawn(receive(Subscription::over(subscriber), wanted, count));
        Ok(Self {
            tenant,
            stop,
            published,
            decided,
            publishing,
            receiving,
        })
    }

    /// Waits until so many more payments are decided than are published now, so that everything works that works again.
    pub(crate) async fn flows(&mut self, more: usize) -> Result<()> {
        let goal = *self.published.borrow() + more;
        let reached = self.decided.wait_for(|decided| *decided >= goal);
        let reached = wait::soon("payments are decided", async { reached.await.map(|_decided| ()) }).await;
        let decided = *self.decided.borrow();
        reached
            .with_context(|| format!("{decided} payments are decided, {goal} were expected"))?
            .context("the subscription ended")
    }

    /// Stops publishing, waits until everything is decided, and checks the whole promise.
    pub(crate) async fn finish(self, stack: &Stack) -> Result<Outcomes> {
        self.stop.send_replace(true);
        let published = wait::soon("every payment is acknowledged", self.publishing).await???;
        let subscription = wait::soon("every payment is decided", self.receiving).await???;
        let found = checker::check(stack, &published.expected).await?;
        ensure!(
            found.decisions.len() == published.events.len(),
            "decisions and payments differ in number"
        );
        for (_record, decision) in &found.decisions {
            let id = decision.event_id.to_string();
            let seen = subscription
                .decisions
                .get(&id)
                .with_context(|| format!("{id} was not delivered"))?;
            let told = (
                decision.outcome.as_str(),
                decision.score,
                decision.source_partition,
                decision.source_offset,
            );
            let source = seen.source.unwrap_or_default();
            let outcome = seen.outcome().as_str_name().trim_start_matches("OUTCOME_");
            ensure!(
                (outcome, seen.score, source.partition, source.offset) == told,
                "{id} was delivered differently"
            );
        }
        ensure!(published.expected.tenant == self.tenant.name, "the tenants differ");
        Ok(Outcomes {
            payments: published.events.len(),
            publish_sessions: published.sessions,
            subscribe_sessions: subscription.sessions(),
        })
    }
}

async fn publish(
    publisher: Publisher,
    tenant: String,
    stopped: watch::Receiver<bool>,
    sent: watch::Sender<usize>,
    ids: oneshot::Sender<Vec<String>>,
) -> Result<Published> {
    let mut ticks = tokio::time::interval(TICK);
    // A wait for credit or for a gateway that is gone is not made up for by a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut published, mut tickets) = (Vec::new(), Vec::new());
    while !*stopped.borrow() {
        ticks.tick().await;
        let round = published.len() / TICK_EVENTS;
        let batch: Vec<_> = (0..TICK_EVENTS)
            .map(|number| events::payment(&format!("t-{}-{number}", round / 4)))
            .collect();
        published.extend(batch.clone());
        tickets.extend(publisher.publish_all(batch).await?);
        sent.send_replace(published.len());
    }
    let mut expected = Expected::of(&tenant);
    expected.published = events::ids(&published).into_iter().collect();
    for (event, ticket) in published.iter().zip(tickets) {
        match ticket.await?.outcome {
            Outcome::Stored { position } => {
                expected.acked.insert(event.event_id.clone(), position);
            }
            // The answer was lost; a refusal would have been of the event itself, and these are all good.
            Outcome::Duplicate | Outcome::Settled => {
                expected.acked.insert(event.event_id.clone(), None);
            }
            Outcome::Error(error) => anyhow::bail!("an event was refused: {error:?}"),
        }
    }
    let sessions = publisher.sessions();
    publisher.close().await?;
    // The receiver ends before this only when it failed, which is reported by itself.
    drop(ids.send(events::ids(&published)));
    Ok(Published {
        events: published,
        expected,
        sessions,
    })
}

/// Receives as it comes, and once everything is published, until nothing is missing.
async fn receive(
    mut subscription: Subscription,
    mut wanted: oneshot::Receiver<Vec<String>>,
    count: watch::Sender<usize>,
) -> Result<Subscription> {
    loop {
        tokio::select! {
            published = &mut wanted => {
                subscription.decided(&published.context("publishing failed")?).await?;
                return Ok(subscription);
            }
            received = subscription.receive() => {
                received?;
                count.send_replace(subscription.decisions.len());
            }
        }
    }
}
