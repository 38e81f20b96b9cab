//! The error hierarchy: [`Kafka`] ▸ [`Admin`], [`Producer`], [`Consumer`], [`Registry`], and what each allows its
//! consumer to do: try again, take a new client, tell a client that nothing was stored.
//!
//! Each says its cause in its own words, and has no `source`: a chain printed in full would say it three times.
//! Errors are classified by librdkafka's codes, in one place each: [`is_transient`], [`is_fatal`], [`rejected`].

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

pub use code::{KINDS, code, is_fatal, is_transient, kind, rejected};

#[path = "error_code.rs"]
mod code;

/// Any error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Kafka {
    /// The configuration cannot be used.
    #[error("invalid Kafka configuration: {0}")]
    Config(String),
    /// An admin operation.
    #[error(transparent)]
    Admin(#[from] Admin),
    /// A producer or its transaction.
    #[error(transparent)]
    Producer(#[from] Producer),
    /// A consumer or its offsets.
    #[error(transparent)]
    Consumer(#[from] Consumer),
    /// The schema registry.
    #[error(transparent)]
    Registry(#[from] Registry),
}

impl Kafka {
    /// Whether the same call may succeed later without any change.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Config(_) => false,
            Self::Admin(error) => error.is_retriable(),
            Self::Producer(error) => error.is_retriable(),
            Self::Consumer(error) => error.is_retriable(),
            Self::Registry(error) => error.is_retriable(),
        }
    }
}

/// An admin operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Admin {
    /// No client could be made of the configuration.
    #[error("cannot create an admin client: {0}")]
    Create(KafkaError),
    /// No broker could be reached, or none answered in time.
    #[error("{operation} failed: no broker answered within {timeout_s} s")]
    NoBroker {
        /// What was asked, such as `creating topics`.
        operation: &'static str,
        /// How long was waited, in seconds.
        timeout_s: u64,
    },
    /// The cluster refused the whole operation.
    #[error("{operation} failed: {cause}")]
    Operation {
        /// What was asked, such as `creating topics`.
        operation: &'static str,
        /// librdkafka's answer.
        cause: KafkaError,
    },
    /// The cluster refused one topic.
    #[error("cannot create or change topic {topic}: {code}")]
    Topic {
        /// The topic, with its prefix.
        topic: String,
        /// The broker's answer.
        code: Code,
    },
    /// A topic exists with another number of partitions. It is not resized in passing, because keys change their partition
    /// by that and a decision would no longer stand in its payment's partition.
    #[error(
        "topic {topic} has {actual} partitions, not {wanted}: all topics have the same number; while everything stands still \
         they are given more by: sluicectl topics grow"
    )]
    Partitions {
        /// The topic, with its prefix.
        topic: String,
        /// How many it has.
        actual: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// The topic does not exist.
    #[error("topic {0} does not exist")]
    NoTopic(String),
}

impl Admin {
    /// Whether the same call may succeed later without any change.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::NoBroker { .. } => true,
            Self::Operation { cause, .. } => code(cause).is_some_and(is_transient),
            Self::Topic { code, .. } => is_transient(*code),
            Self::Create(_) | Self::Partitions { .. } | Self::NoTopic(_) => false,
        }
    }
}

/// A producer failed.
#[derive(Debug, thiserror::Error)]
pub enum Producer {
    /// No producer could be made of the configuration.
    #[error("cannot create a producer: {0}")]
    Create(KafkaError),
    /// `send` returned an error: the message never entered the producer's queue.
    #[error("the producer refused a message: {0}")]
    Refused(KafkaError),
    /// The delivery report carried an error, after the message had been queued.
    #[error("a message was not delivered: {0}")]
    Undelivered(KafkaError),
    /// A call of the transaction's life failed.
    #[error("{step} failed: {cause}")]
    Transaction {
        /// Which call, such as `commit_transaction`.
        step: &'static str,
        /// librdkafka's answer.
        cause: KafkaError,
    },
}

impl Producer {
    /// librdkafka's error.
    pub fn kafka(&self) -> &KafkaError {
        match self {
            Self::Create(cause) | Self::Refused(cause) | Self::Undelivered(cause) => cause,
            Self::Transaction { cause, .. } => cause,
        }
    }

    /// Whether the same call may succeed later, with this producer. For a transaction this is librdkafka's own word: the
    /// call resumes where it stopped.
    pub fn is_retriable(&self) -> bool {
        match self.kafka() {
            KafkaError::Transaction(error) => error.is_retriable(),
            error => !self.is_fatal() && code(error).is_some_and(is_transient),
        }
    }

    /// Whether this producer can never be used again: drop it and build a new one.
    pub fn is_fatal(&self) -> bool {
        match self.kafka() {
            KafkaError::Transaction(error) => error.is_fatal() || is_fatal(error.code()),
            KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) | KafkaError::Canceled => true,
            error => code(error).is_some_and(is_fatal),
        }
    }

    /// Whether the open transaction must be aborted before anything else can be done with this producer.
    pub fn requires_abort(&self) -> bool {
        matches!(self.kafka(), KafkaError::Transaction(error) if error.txn_requires_abort())
    }

    /// Whether it is certain that no broker stored the message, so that a client may be told so.
    ///
    /// A refused message was never queued. A message that was queued may have been sent before it was queued again, and
    /// neither the time-out nor the purge of a queued message says whether that happened: for those the answer is no.
    /// It is yes only where the broker refuses the batch as such, which it would have done every time.
    pub fn nothing_stored(&self) -> bool {
        match self {
            Self::Create(_) | Self::Refused(_) => true,
            Self::Undelivered(cause) => code(cause).is_some_and(rejected),
            Self::Transaction { .. } => false,
        }
    }

    /// A short stable name for metrics and logs; one of a fixed set.
    pub fn kind(&self) -> &'static str {
        if self.is_fatal() {
            "fatal"
        } else {
            code(self.kafka()).map_or("other", kind)
        }
    }
}

/// A consumer failed.
#[derive(Debug, thiserror::Error)]
pub enum Consumer {
    /// No consumer could be made of the configuration.
    #[error("cannot create a consumer: {0}")]
    Create(KafkaError),
    /// Subscribing, assigning, seeking, pausing or resuming failed.
    #[error("{step} failed: {cause}")]
    Control {
        /// Which call, such as `subscribe`.
        step: &'static str,
        /// librdkafka's answer.
        cause: KafkaError,
    },
    /// Polling returned an error instead of a record.
    #[error("polling failed: {0}")]
    Poll(KafkaError),
    /// Reading committed offsets, watermarks or metadata failed.
    #[error("reading {what} failed: {cause}")]
    Offsets {
        /// What was asked, such as `committed offsets`.
        what: &'static str,
        /// librdkafka's answer.
        cause: KafkaError,
    },
}

impl Consumer {
    /// librdkafka's error.
    pub fn kafka(&self) -> &KafkaError {
        match self {
            Self::Create(cause) | Self::Poll(cause) => cause,
            Self::Control { cause, .. } | Self::Offsets { cause, .. } => cause,
        }
    }

    /// Whether polling on, or the same call later, may succeed with this consumer.
    pub fn is_retriable(&self) -> bool {
        !self.is_fatal() && code(self.kafka()).is_some_and(is_transient)
    }

    /// Whether this consumer can never be used again: drop it and build a new one.
    pub fn is_fatal(&self) -> bool {
        match self.kafka() {
            KafkaError::MessageConsumptionFatal(_) | KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => {
                true
            }
            error => code(error).is_some_and(is_fatal),
        }
    }

    /// A short stable name for metrics and logs; one of a fixed set.
    pub fn kind(&self) -> &'static str {
        if self.is_fatal() {
            "fatal"
        } else {
            code(self.kafka()).map_or("other", kind)
        }
    }
}

/// The schema registry failed.
#[derive(Debug, thiserror::Error)]
pub enum Registry {
    /// No answer: connecting, sending or reading failed, or took too long.
    #[error("the schema registry at {url} does not answer: {reason}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// The transport's error.
        reason: String,
    },
    /// An answer other than success.
    #[error("the schema registry answered {status} to {url}: {message}")]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// The registry's own explanation, cut to a line.
        message: String,
    },
    /// A successful answer that does not have the fields it should.
    #[error("the schema registry's answer to {url} makes no sense: {reason}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Registry {
    /// Whether the same request may succeed in a moment. Such an error is never cached. What is not retriable may pass all
    /// the same, once somebody has put credentials or a proxy right.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
            Self::Answer { .. } => false,
        }
    }

    /// Whether the registry does not know the subject or id.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status: 404, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undelivered(code: Code) -> Producer {
        Producer::Undelivered(KafkaError::MessageProduction(code))
    }

    #[test]
    fn a_refused_message_was_certainly_not_stored() {
        let full = Producer::Refused(KafkaError::MessageProduction(Code::QueueFull));
        assert!(full.nothing_stored() && full.is_retriable() && !full.is_fatal());
        assert_eq!(full.kind(), "queue_full");
    }

    #[test]
    fn a_queued_message_may_have_been_stored_unless_the_broker_rejected_it() {
        for code in [
            Code::MessageTimedOut,
            Code::PurgeQueue,
            Code::PurgeInflight,
            Code::NotEnoughReplicasAfterAppend,
        ] {
            assert!(!undelivered(code).nothing_stored(), "{code:?}");
            assert!(undelivered(code).is_retriable(), "{code:?}");
        }
        let large = undelivered(Code::MessageSizeTooLarge);
        assert!(large.nothing_stored() && !large.is_retriable());
    }

    #[test]
    fn a_fenced_producer_is_fatal_and_not_retriable() {
        for code in [Code::Fatal, Code::Fenced, Code::ProducerFenced] {
            let error = undelivered(code);
            assert!(
                error.is_fatal() && !error.is_retriable() && !error.nothing_stored(),
                "{code:?}"
            );
            assert_eq!(error.kind(), "fatal");
        }
    }

    #[test]
    fn no_code_is_both_transient_and_fatal() {
        let fatal = [
            Code::Fatal,
            Code::Fenced,
            Code::ProducerFenced,
            Code::FencedInstanceId,
            Code::GaplessGuarantee,
        ];
        assert!(fatal.into_iter().all(|code| is_fatal(code) && !is_transient(code)));
    }

    #[test]
    fn the_code_of_an_admin_operation_is_found() {
        let error = Admin::Operation {
            operation: "creating topics",
            cause: KafkaError::AdminOp(Code::NotController),
        };
        assert!(error.is_retriable());
    }

    #[test]
    fn registry_answers_are_told_apart() {
        let status = |status| Registry::Status {
            url: String::new(),
            status,
            message: String::new(),
        };
        assert!(status(503).is_retriable() && status(429).is_retriable());
        assert!(!status(409).is_retriable() && !status(404).is_retriable());
        assert!(status(404).is_not_found());
    }
}
