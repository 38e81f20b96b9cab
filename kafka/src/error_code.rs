//! What librdkafka's error codes mean to us. Every classification that [`super`] makes rests on these functions.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// librdkafka's code of an error, also where rdkafka's own accessor leaves it out.
pub fn code(error: &KafkaError) -> Option<Code> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        _ => error.rdkafka_error_code(),
    }
}

/// Whether waiting may be enough: brokers, leaders and coordinators come back, queues drain.
pub fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::Resolve
            | Code::MessageTimedOut
            | Code::AllBrokersDown
            | Code::OperationTimedOut
            | Code::TimedOutQueue
            | Code::QueueFull
            | Code::ISRInsufficient
            | Code::WaitingForCoordinator
            | Code::InProgress
            | Code::PreviousInProgress
            | Code::WaitCache
            | Code::Interrupted
            | Code::Retry
            | Code::PurgeQueue
            | Code::PurgeInflight
            | Code::DestroyBroker
            | Code::InvalidDifferentRecord
            | Code::UnknownTopicOrPartition
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::RequestTimedOut
            | Code::BrokerNotAvailable
            | Code::ReplicaNotAvailable
            | Code::NetworkException
            | Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::NotCoordinator
            | Code::NotController
            | Code::NotEnoughReplicas
            | Code::NotEnoughReplicasAfterAppend
            | Code::RebalanceInProgress
            | Code::ConcurrentTransactions
            | Code::KafkaStorageError
            | Code::ReassignmentInProgress
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
            | Code::OffsetNotAvailable
            | Code::PreferredLeaderNotAvailable
            | Code::EligibleLeadersNotAvailable
            | Code::UnstableOffsetCommit
            | Code::ThrottlingQuotaExceeded
    )
}

/// Whether the client instance that met this code is done for.
pub fn is_fatal(code: Code) -> bool {
    matches!(
        code,
        Code::Fatal
            | Code::Fenced
            | Code::ProducerFenced
            | Code::InvalidProducerEpoch
            | Code::TransactionCoordinatorFenced
            | Code::FencedInstanceId
            | Code::GaplessGuarantee
            | Code::OutOfOrderSequenceNumber
    )
}

/// Whether the broker refuses a batch with this code for what it is, before it appends anything, so that no earlier
/// attempt can have been stored either.
pub fn rejected(code: Code) -> bool {
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::MessageBatchTooLarge
            | Code::InvalidMessage
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidDifferentRecord
            | Code::InvalidTimestamp
            | Code::InvalidTopic
            | Code::UnsupportedForMessageFormat
            | Code::UnsupportedCompressionType
    )
}

/// Every label that [`kind`] gives.
pub const KINDS: [&str; 12] = [
    "queue_full",
    "timed_out",
    "transport",
    "purged",
    "replicas",
    "unknown_topic",
    "unauthorized",
    "offset_out_of_range",
    "rebalance",
    "fatal",
    "rejected",
    "other",
];

/// The label of a code in `kafka_producer_errors_total` and `kafka_consumer_errors_total`: one of a dozen, so that
/// their series are few.
pub fn kind(code: Code) -> &'static str {
    match code {
        Code::QueueFull => "queue_full",
        Code::MessageTimedOut | Code::OperationTimedOut | Code::RequestTimedOut | Code::TimedOutQueue => "timed_out",
        Code::BrokerTransportFailure
        | Code::Resolve
        | Code::AllBrokersDown
        | Code::NetworkException
        | Code::BrokerNotAvailable => "transport",
        Code::PurgeQueue | Code::PurgeInflight => "purged",
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend | Code::ISRInsufficient => "replicas",
        Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => "unknown_topic",
        Code::Authentication
        | Code::SSL
        | Code::SaslAuthenticationFailed
        | Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => "unauthorized",
        Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation => "offset_out_of_range",
        Code::PollExceeded | Code::IllegalGeneration | Code::UnknownMemberId | Code::RebalanceInProgress => "rebalance",
        code if is_fatal(code) => "fatal",
        code if rejected(code) => "rejected",
        _ => "other",
    }
}
