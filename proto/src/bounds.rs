//! Every bound of the contract, with its unit. Both sides of the contract read them from here.

use std::time::Duration;

/// Longest id (account, merchant, terminal, device, user, …), in bytes.
pub const MAX_ID_BYTES: usize = 128;
/// Longest producer_id, in bytes.
pub const MAX_PRODUCER_ID_BYTES: usize = 64;
/// Longest tenant name, in bytes.
pub const MAX_TENANT_BYTES: usize = 64;
/// Longest place name, in bytes.
pub const MAX_PLACE_BYTES: usize = 128;
/// Longest unit of a metric, in bytes.
pub const MAX_UNIT_BYTES: usize = 32;
/// Longest message of a system event, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4_096;
/// Most attributes of an event.
pub const MAX_ATTRIBUTES: usize = 32;
/// Longest attribute, key and value together, in bytes.
pub const MAX_ATTRIBUTE_BYTES: usize = 1_024;
/// Longest name of an event type that the routing table defines, in bytes.
pub const MAX_TYPE_BYTES: usize = 64;
/// Longest name of a topic, by Kafka's own rule, in bytes.
pub const MAX_TOPIC_BYTES: usize = 249;
/// Deepest nesting of a record of a custom type.
pub const MAX_CUSTOM_DEPTH: usize = 32;
/// Largest encoded event, in bytes.
pub const MAX_EVENT_BYTES: usize = 64 * 1_024;
/// Most events in one batch.
pub const MAX_BATCH_EVENTS: usize = 1_024;
/// Largest encoded request, in bytes.
pub const MAX_REQUEST_BYTES: usize = 4 * 1_024 * 1_024;
/// Most events of one session that may be unacknowledged.
pub const MAX_IN_FLIGHT_EVENTS: u32 = 65_536;
/// Largest amount, in units of the currency. Keeps every amount within a 64-bit number of ten-thousandths.
pub const MAX_AMOUNT_UNITS: i64 = 999_999_999_999;
/// How far an event's time may lie ahead of the clock that checks it.
pub const MAX_FUTURE: Duration = Duration::from_secs(15 * 60);
/// How far an event's time may lie behind the clock that checks it: ten years.
pub const MAX_AGE: Duration = Duration::from_secs(3_653 * 24 * 60 * 60);
