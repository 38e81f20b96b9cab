//! Owns the names that an expression may use, their types, and where their values come from.
//!
//! Read by [`super`] when an expression is compiled, and when it is evaluated.

use sluice_proto::event::PaymentRecord;

use super::Value;
use crate::account::units;
use crate::calendar;
use crate::features::{self, Features};

/// The types of an expression's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Bool,
    Int,
    Double,
    Text,
}

impl Type {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Double => "double",
            Self::Text => "string",
        }
    }

    pub(super) const fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Double)
    }

    /// What stands for a value that is not known, as with an unset field of a message.
    pub(super) const fn unknown(self) -> Value<'static> {
        match self {
            Self::Bool => Value::Bool(false),
            Self::Int => Value::Int(0),
            Self::Double => Value::Double(0.0),
            Self::Text => Value::Text(""),
        }
    }
}

/// What an expression is evaluated over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'f> {
    pub(crate) payment: &'f PaymentRecord,
    pub(crate) features: &'f Features,
}

type Read = for<'f> fn(&Facts<'f>) -> Option<Value<'f>>;

/// A name, the type of its value, and how it is read.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) owner: &'static str,
    pub(super) name: &'static str,
    pub(super) of: Type,
    pub(super) read: Read,
}

/// The owner of what is known of a payment that came late too.
pub(super) const PAYMENT: &str = "payment";
/// The owner of what history tells.
pub(super) const FEATURES: &str = "features";

const fn payment(name: &'static str, of: Type, read: Read) -> Field {
    Field {
        owner: PAYMENT,
        name,
        of,
        read,
    }
}

const fn feature(name: &'static str, of: Type, read: Read) -> Field {
    Field {
        owner: FEATURES,
        name,
        of,
        read,
    }
}

fn text(text: Option<&String>) -> Option<Value<'_>> {
    text.map(|text| Value::Text(text))
}

fn count(payments: impl TryInto<i64>) -> Option<Value<'static>> {
    payments.try_into().ok().map(Value::Int)
}

fn seconds(micros: i64) -> Value<'static> {
    Value::Double(features::seconds(micros))
}

/// Every name, in the order of `docs/rules.md`.
pub(super) static FIELDS: [Field; 30] = [
    payment("amount", Type::Double, |facts| {
        Some(Value::Double(units(facts.payment.amount.ten_thousandths().into())))
    }),
    payment("currency", Type::Text, |facts| text(Some(&facts.payment.currency))),
    payment("hour", Type::Int, |facts| {
        Some(Value::Int(calendar::hour(facts.payment.occurred_at) as i64))
    }),
    payment("tenant", Type::Text, |facts| text(Some(&facts.payment.tenant))),
    payment("account_id", Type::Text, |facts| text(Some(&facts.payment.account_id))),
    payment("merchant_id", Type::Text, |facts| {
        text(Some(&facts.payment.merchant_id))
    }),
    payment("merchant_category", Type::Text, |facts| {
        text(facts.payment.merchant_category.as_ref())
    }),
    payment("terminal_id", Type::Text, |facts| {
        text(facts.payment.terminal_id.as_ref())
    }),
    payment("method", Type::Text, |facts| text(Some(&facts.payment.method))),
    payment("device_id", Type::Text, |facts| text(facts.payment.device_id.as_ref())),
    payment("country", Type::Text, |facts| text(facts.payment.country.as_ref())),
    payment("place", Type::Text, |facts| text(facts.payment.place.as_ref())),
    feature("payments_1m", Type::Int, |facts| count(facts.features.payments_1m)),
    feature("payments_5m", Type::Int, |facts| count(facts.features.payments_5m)),
    feature("amount_1h", Type::Double, |facts| {
        Some(Value::Double(facts.features.amount_1h))
    }),
    feature("payments_this_hour", Type::Int, |facts| {
        count(facts.features.payments_this_hour)
    }),
    feature("amount_this_hour", Type::Double, |facts| {
        Some(Value::Double(facts.features.amount_this_hour))
    }),
    feature("payments_today", Type::Int, |facts| {
        count(facts.features.payments_today)
    }),
    feature("amount_today", Type::Double, |facts| {
        Some(Value::Double(facts.features.amount_today))
    }),
    feature("session_payments", Type::Int, |facts| {
        count(facts.features.session_payments)
    }),
    feature("session_amount", Type::Double, |facts| {
        Some(Value::Double(facts.features.session_amount))
    }),
    feature("session_minutes", Type::Int, |facts| {
        Some(Value::Int(facts.features.session_minutes.into()))
    }),
    feature("usual_amount", Type::Double, |facts| {
        facts.features.usual_amount.map(Value::Double)
    }),
    feature("unusual_hour", Type::Bool, |facts| {
        Some(Value::Bool(facts.features.unusual_hour))
    }),
    feature("new_device", Type::Bool, |facts| {
        Some(Value::Bool(facts.features.new_device))
    }),
    feature("new_country", Type::Bool, |facts| {
        Some(Value::Bool(facts.features.new_country))
    }),
    feature("seconds_since_last", Type::Double, |facts| {
        facts.features.since_last_us.map(seconds)
    }),
    feature("km_since_last", Type::Double, |facts| {
        facts.features.travelled.map(|trip| Value::Double(trip.distance_km))
    }),
    feature("seconds_of_trip", Type::Double, |facts| {
        facts.features.travelled.map(|trip| seconds(trip.elapsed_us))
    }),
    feature("merchant_risk", Type::Double, |facts| {
        Some(Value::Double(facts.features.merchant_risk))
    }),
];

/// The field of a name such as `payment.amount`.
pub(super) fn find(owner: &str, name: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.owner == owner && field.name == name)
}
