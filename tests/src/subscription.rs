//! Decisions as a subscriber receives them, collected until a test has those that it waits for.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use sluice_client::{Start, Subscriber, Target};
use sluice_proto::pb;

use crate::wait;

/// A subscription with what it received so far, by event_id.
#[derive(Debug)]
pub struct Subscription {
    subscriber: Subscriber,
    /// Each decision, once: a second one for the same event fails the test.
    pub decisions: BTreeMap<String, pb::FraudDecision>,
    /// Event ids in the order in which their decisions came.
    pub order: Vec<String>,
}

impl Subscription {
    /// Subscribes to the decisions from now on.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn open(url: &str, key: &str) -> Result<Self> {
        Self::open_from(url, key, Start::Latest).await
    }

    /// Subscribes from somewhere on.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn open_from(url: &str, key: &str, start: Start) -> Result<Self> {
        Ok(Self::over(
            Subscriber::builder(Target::new(url, key)?).start(start).open().await?,
        ))
    }

    /// Collects from a subscriber.
    pub fn over(subscriber: Subscriber) -> Self {
        Self {
            subscriber,
            decisions: BTreeMap::new(),
            order: Vec::new(),
        }
    }

    /// Receives until every one of these events is decided.
    ///
    /// # Errors
    /// When a decision does not come, or one comes twice.
    pub async fn decided(&mut self, event_ids: &[String]) -> Result<()> {
        let is_missing = |id: &&String| !self.decisions.contains_key(*id);
        let mut missing: HashSet<String> = event_ids.iter().filter(is_missing).cloned().collect();
        while !missing.is_empty() {
            let next = wait::soon("the next decision comes", self.receive()).await;
            let id =
                next.with_context(|| format!("{} of {} decisions are missing", missing.len(), event_ids.len()))??;
            missing.remove(&id);
        }
        Ok(())
    }

    /// Receives one decision, and returns its event's id.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// When the subscription ended, or the decision came before.
    pub async fn receive(&mut self) -> Result<String> {
        let decision = self.subscriber.next().await?.context("the subscription ended")?;
        let id = decision.event_id.clone();
        self.order.push(id.clone());
        let before = self.decisions.insert(id.clone(), decision);
        ensure!(before.is_none(), "a decision came twice: {before:?}");
        Ok(id)
    }

    /// The position to go on from.
    pub fn token(&self) -> Bytes {
        self.subscriber.token()
    }

    /// Receives until the event is decided, and returns its decision.
    ///
    /// # Errors
    /// As [`Subscription::decided`].
    pub async fn decision(&mut self, event: &pb::Event) -> Result<pb::FraudDecision> {
        self.decided(std::slice::from_ref(&event.event_id)).await?;
        self.decisions
            .get(&event.event_id)
            .cloned()
            .context("the decision is missing")
    }

    /// How often the subscription was opened.
    pub fn sessions(&self) -> u64 {
        self.subscriber.sessions()
    }
}

/// The rules that fired, in the decision's order.
pub fn rules(decision: &pb::FraudDecision) -> Vec<&str> {
    decision.reasons.iter().map(|reason| reason.rule_id.as_str()).collect()
}
