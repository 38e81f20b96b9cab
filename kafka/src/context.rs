//! The context of consumers that need no callback of their own.

use rdkafka::ClientContext;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

/// A consumer whose errors are logged once, by whoever polls it: rdkafka hands every error of a consumer to its context,
/// which by default logs it, and then returns it from `poll` as well. The end of a partition would be an error in the log
/// each time it is reached. A consumer with callbacks of its own should override `error` in the same way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consumer;

impl ClientContext for Consumer {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::trace!(%error, reason, "poll will return this");
    }
}

impl ConsumerContext for Consumer {}
