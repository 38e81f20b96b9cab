//! Names of the Kafka record headers.

/// The event's id, as text.
pub const EVENT_ID: &str = "event-id";
/// The event's tenant.
pub const TENANT: &str = "tenant";
/// The publishing session's producer_id.
pub const PRODUCER_ID: &str = "producer-id";
/// The publishing session's epoch, as decimal text.
pub const PRODUCER_EPOCH: &str = "producer-epoch";
/// The event's sequence number in its session, as decimal text.
pub const SEQUENCE: &str = "sequence";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// Name of the Avro schema, for consumers that route by it.
pub const SCHEMA: &str = "schema";
/// When the gateway took the event in, in microseconds since the Unix epoch, as decimal text.
pub const RECEIVED_AT: &str = "received-at";
/// The gateway that took the event in: its version and its instance, with a slash between them.
pub const GATEWAY: &str = "gateway";
/// On an event of a custom type: when it happened, in microseconds since the Unix epoch, as decimal text.
pub const OCCURRED_AT: &str = "occurred-at";

/// On a record of the payments topic that is no payment: what it is instead. The gateway never writes it.
pub const CONTROL: &str = "sluice-record";
/// The value of [`CONTROL`] for a rule set document, which is in force for the payments behind it in its partition.
pub const RULE_SET: &str = "rule-set";

/// On a dead letter: what kind of error, such as `DESERIALIZATION_ERROR`.
pub const ERROR_TYPE: &str = "error_type";
/// On a dead letter: the error in words.
pub const ERROR: &str = "error";
/// On a dead letter: how often it was tried again.
pub const RETRY_COUNT: &str = "retry_count";
/// On a dead letter: the topic that it was read from.
pub const SOURCE_TOPIC: &str = "source_topic";
/// On a dead letter: the partition that it was read from.
pub const SOURCE_PARTITION: &str = "source_partition";
/// On a dead letter: the offset that it was read from.
pub const SOURCE_OFFSET: &str = "source_offset";
