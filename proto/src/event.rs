//! Events as they are stored: the Avro records and, around them, the proof that they were checked.
//!
//! Comes after `validate` at the gateway's edge and after [`crate::avro`] in the processor.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::money::Amount;

/// What the schemas give fields whose writer did not know them.
fn unspecified() -> String {
    "UNSPECIFIED".to_owned()
}

/// An event's identity: a UUID, unique within its tenant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(Uuid);

impl EventId {
    /// The id of a UUID.
    pub const fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// Reads the hyphenated form of a UUID other than nil, in either case; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == uuid::fmt::Hyphenated::LENGTH)
            .then(|| Uuid::try_parse(text).ok())
            .flatten()
            .filter(|uuid| !uuid.is_nil())
            .map(Self)
    }

    /// The UUID.
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut buffer = Uuid::encode_buffer();
        serializer.serialize_str(self.0.hyphenated().encode_lower(&mut buffer))
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = EventId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a hyphenated UUID other than nil")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<EventId, E> {
                EventId::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// A payment as it is stored, checked or not: the Avro record `sluice.v1.PaymentEvent`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename = "PaymentEvent")]
#[allow(missing_docs, reason = "the Avro schema documents the fields")]
pub struct PaymentRecord {
    pub event_id: EventId,
    pub tenant: String,
    pub account_id: String,
    pub amount: Amount,
    pub currency: String,
    /// Microseconds since the Unix epoch.
    pub occurred_at: i64,
    pub merchant_id: String,
    #[serde(default)]
    pub merchant_category: Option<String>,
    #[serde(default)]
    pub terminal_id: Option<String>,
    #[serde(default = "unspecified")]
    pub method: String,
    #[serde(default)]
    pub device_id: Option<String>,
    #[serde(default)]
    pub country: Option<String>,
    #[serde(default)]
    pub place: Option<String>,
    #[serde(default)]
    pub latitude: Option<f64>,
    #[serde(default)]
    pub longitude: Option<f64>,
    #[serde(default)]
    pub traceparent: Option<String>,
}

/// A payment that was checked: see [`crate::validate::payment`], which is the only way to get one.
#[derive(Clone, Debug, PartialEq)]
pub struct Payment(PaymentRecord);

impl Payment {
    pub(crate) const fn checked(record: PaymentRecord) -> Self {
        Self(record)
    }

    /// Gives the record up.
    pub fn into_record(self) -> PaymentRecord {
        self.0
    }
}

impl Deref for Payment {
    type Target = PaymentRecord;

    fn deref(&self) -> &PaymentRecord {
        &self.0
    }
}

/// A user action as it is stored: the Avro record `sluice.v1.UserActionEvent`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename = "UserActionEvent")]
#[allow(missing_docs, reason = "the Avro schema documents the fields")]
pub struct UserActionRecord {
    pub event_id: EventId,
    pub tenant: String,
    /// Microseconds since the Unix epoch.
    pub occurred_at: i64,
    pub user_id: String,
    pub action: String,
    #[serde(default)]
    pub device_id: Option<String>,
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// A system event as it is stored: the Avro record `sluice.v1.SystemEvent`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename = "SystemEvent")]
#[allow(missing_docs, reason = "the Avro schema documents the fields")]
pub struct SystemRecord {
    pub event_id: EventId,
    pub tenant: String,
    /// Microseconds since the Unix epoch.
    pub occurred_at: i64,
    pub source: String,
    pub kind: String,
    #[serde(default = "unspecified")]
    pub severity: String,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// A metric as it is stored: the Avro record `sluice.v1.MetricEvent`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename = "MetricEvent")]
#[allow(missing_docs, reason = "the Avro schema documents the fields")]
pub struct MetricRecord {
    pub event_id: EventId,
    pub tenant: String,
    /// Microseconds since the Unix epoch.
    pub occurred_at: i64,
    pub name: String,
    pub value: f64,
    #[serde(default)]
    pub unit: Option<String>,
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// An event of a custom type, which is stored as it came: only what is around the record is checked here.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomRecord {
    /// Its identity.
    pub event_id: EventId,
    /// When it happened, in microseconds since the Unix epoch.
    pub occurred_at: i64,
    /// The type's name in the routing table.
    pub type_name: String,
    /// What it is about.
    pub subject: String,
    /// The record in the registry's wire format.
    pub record: Bytes,
}

/// An event that was checked, ready to be stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Checked {
    /// A payment.
    Payment(Payment),
    /// A user action.
    UserAction(UserActionRecord),
    /// A system event.
    System(SystemRecord),
    /// A metric.
    Metric(MetricRecord),
    /// Of a type that the routing table defines.
    Custom(CustomRecord),
}

impl Checked {
    /// The event's identity.
    pub fn event_id(&self) -> EventId {
        match self {
            Self::Payment(payment) => payment.event_id,
            Self::UserAction(record) => record.event_id,
            Self::System(record) => record.event_id,
            Self::Metric(record) => record.event_id,
            Self::Custom(record) => record.event_id,
        }
    }

    /// Says which trace a payment belongs to; of other events only a header does.
    pub fn trace(&mut self, traceparent: Option<&str>) {
        if let Self::Payment(payment) = self {
            payment.0.traceparent = traceparent.map(str::to_owned);
        }
    }

    /// What the event is about, within its tenant: the second half of the record's key.
    pub fn subject(&self) -> &str {
        match self {
            Self::Payment(payment) => &payment.account_id,
            Self::UserAction(record) => &record.user_id,
            Self::System(record) => &record.source,
            Self::Metric(record) => &record.name,
            Self::Custom(record) => &record.subject,
        }
    }
}
