//! The checks that every event passes once: at the gateway's edge, and again where the processor reads a topic that
//! anybody may write to.
//!
//! Comes after decoding, before anything is stored or judged. Each refusal names the field, what is wrong with it, and
//! the remedy.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;

use iso_currency::Currency;
use prost_types::Timestamp;

use crate::bounds;
use crate::event::{
    Checked, CustomRecord, EventId, MetricRecord, Payment, PaymentRecord, SystemRecord, UserActionRecord,
};
use crate::money::{Amount, TEN_THOUSANDTHS};
use crate::pb;

/// Why an event is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}; {remedy}")]
pub struct Violation {
    /// The field at fault, as a path from the event.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Violation {
    /// A violation of a field.
    pub fn new(field: &'static str, reason: impl Into<String>, remedy: &'static str) -> Self {
        Self {
            field,
            reason: reason.into(),
            remedy,
        }
    }
}

type Checks = Result<(), Violation>;

/// Checks an event as a client sent it. `now` is the gateway's clock in microseconds since the Unix epoch.
///
/// # Errors
/// The first violation found.
pub fn event(event: pb::Event, tenant: &str, now: i64) -> Result<Checked, Violation> {
    let event_id = EventId::parse(&event.event_id).ok_or_else(|| {
        Violation::new(
            "event_id",
            if event.event_id.is_empty() {
                "is missing"
            } else {
                "is not a hyphenated UUID other than nil"
            },
            "send a UUID such as 0190163d-8694-739b-aea5-966c26f8ad91, the same one at every retry",
        )
    })?;
    let occurred_at = micros(event.occurred_at)?;
    instant(occurred_at, now)?;
    let payload = event.payload.ok_or_else(|| {
        Violation::new(
            "payload",
            "is missing",
            "set one of payment, user_action, system, metric, custom",
        )
    })?;
    let tenant = tenant.to_owned();
    match payload {
        pb::event::Payload::Payment(wire) => {
            payment(payment_record(wire, event_id, tenant, occurred_at)?, now).map(Checked::Payment)
        }
        pb::event::Payload::UserAction(wire) => user_action(UserActionRecord {
            event_id,
            tenant,
            occurred_at,
            user_id: wire.user_id,
            action: wire.action,
            device_id: some(wire.device_id),
            attributes: sorted(wire.attributes),
        }),
        pb::event::Payload::System(wire) => system(SystemRecord {
            event_id,
            tenant,
            occurred_at,
            severity: severity(wire.severity)?,
            source: wire.source,
            kind: wire.kind,
            message: wire.message,
            attributes: sorted(wire.attributes),
        }),
        pb::event::Payload::Metric(wire) => metric(MetricRecord {
            event_id,
            tenant,
            occurred_at,
            name: wire.name,
            value: wire.value,
            unit: some(wire.unit),
            attributes: sorted(wire.attributes),
        }),
        pb::event::Payload::Custom(wire) => custom(CustomRecord {
            event_id,
            occurred_at,
            type_name: wire.r#type,
            subject: wire.subject,
            record: wire.record,
        }),
    }
}

/// Checks a payment. `now` is the gateway's clock, or the Kafka record's timestamp where the payment is read back, so
/// that the answer is the same at every replay; in microseconds since the Unix epoch.
///
/// # Errors
/// The first violation found.
pub fn payment(record: PaymentRecord, now: i64) -> Result<Payment, Violation> {
    tenant(&record.tenant)?;
    instant(record.occurred_at, now)?;
    id("payment.account_id", &record.account_id)?;
    id("payment.merchant_id", &record.merchant_id)?;
    amount(record.amount, &record.currency)?;
    optional_id("payment.terminal_id", record.terminal_id.as_deref())?;
    optional_id("payment.device_id", record.device_id.as_deref())?;
    if let Some(category) = &record.merchant_category
        && !(category.len() == 4 && category.bytes().all(|b| b.is_ascii_digit()))
    {
        return Err(Violation::new(
            "payment.merchant_category",
            "is not four digits",
            "send the ISO 18245 code, or leave it empty",
        ));
    }
    if record.method.len() > bounds::MAX_ID_BYTES {
        return Err(Violation::new(
            "payment.method",
            format!("has {} bytes, more than {}", record.method.len(), bounds::MAX_ID_BYTES),
            "send a PaymentMethod",
        ));
    }
    location(&record)?;
    Ok(Payment::checked(record))
}

/// Checks a tenant's name: visible ASCII without a slash, since the slash separates it from the account in keys.
///
/// # Errors
/// When it is not.
pub fn tenant(name: &str) -> Checks {
    if visible(name, bounds::MAX_TENANT_BYTES) && !name.contains('/') {
        return Ok(());
    }
    Err(Violation::new(
        "tenant",
        "is not 1 to 64 bytes of visible ASCII without a slash",
        "rename the tenant",
    ))
}

/// Checks a producer_id.
///
/// # Errors
/// When it is not 1 to 64 bytes of visible ASCII.
pub fn producer_id(name: &str) -> Checks {
    if visible(name, bounds::MAX_PRODUCER_ID_BYTES) {
        return Ok(());
    }
    Err(Violation::new(
        "open.producer_id",
        "is not 1 to 64 bytes of visible ASCII",
        "choose a short name that is stable across restarts of the producer",
    ))
}

fn visible(text: &str, max_bytes: usize) -> bool {
    !text.is_empty() && text.len() <= max_bytes && text.bytes().all(|b| b.is_ascii_graphic())
}

fn id(field: &'static str, value: &str) -> Checks {
    if visible(value, bounds::MAX_ID_BYTES) {
        return Ok(());
    }
    let reason = match value.len() {
        0 => "is missing".to_owned(),
        bytes if bytes > bounds::MAX_ID_BYTES => format!("has {bytes} bytes, more than {}", bounds::MAX_ID_BYTES),
        _ => "has characters other than visible ASCII".to_owned(),
    };
    Err(Violation::new(field, reason, "send 1 to 128 bytes of visible ASCII"))
}

fn optional_id(field: &'static str, value: Option<&str>) -> Checks {
    value.map_or(Ok(()), |value| id(field, value))
}

fn micros(timestamp: Option<Timestamp>) -> Result<i64, Violation> {
    let timestamp = timestamp
        .ok_or_else(|| Violation::new("occurred_at", "is missing", "send the time at which the event happened"))?;
    if !(0..1_000_000_000).contains(&timestamp.nanos) {
        return Err(Violation::new(
            "occurred_at.nanos",
            "is not between 0 and 999,999,999",
            "carry whole seconds into seconds",
        ));
    }
    timestamp
        .seconds
        .checked_mul(1_000_000)
        .and_then(|micros| micros.checked_add(i64::from(timestamp.nanos) / 1_000))
        .ok_or_else(|| {
            Violation::new(
                "occurred_at",
                "is out of range",
                "send the time at which the event happened",
            )
        })
}

fn instant(occurred_at: i64, now: i64) -> Checks {
    let ahead = i128::from(occurred_at) - i128::from(now);
    let (max_ahead, max_age) = (
        bounds::MAX_FUTURE.as_micros() as i128,
        bounds::MAX_AGE.as_micros() as i128,
    );
    if ahead > max_ahead {
        return Err(Violation::new(
            "occurred_at",
            format!(
                "is {} s ahead of the clock, more than {}",
                ahead / 1_000_000,
                bounds::MAX_FUTURE.as_secs()
            ),
            "check the client's clock and unit (seconds and nanoseconds since 1970)",
        ));
    }
    if -ahead > max_age {
        return Err(Violation::new(
            "occurred_at",
            "is more than ten years ago",
            "check the client's clock and unit (seconds and nanoseconds since 1970)",
        ));
    }
    Ok(())
}

fn amount(amount: Amount, currency: &str) -> Checks {
    let known = Currency::from_code(currency).ok_or_else(|| {
        Violation::new(
            "payment.amount.currency_code",
            if currency.is_empty() {
                "is missing".to_owned()
            } else {
                format!("{:.8} is unknown", currency.escape_debug().to_string())
            },
            "send an ISO 4217 code of three capital letters, such as EUR",
        )
    })?;
    if amount.ten_thousandths() <= 0 {
        return Err(Violation::new(
            "payment.amount",
            "is not greater than zero",
            "publish refunds as events of their own, with a positive amount",
        ));
    }
    if amount.ten_thousandths() > bounds::MAX_AMOUNT_UNITS * TEN_THOUSANDTHS {
        return Err(Violation::new(
            "payment.amount.units",
            "is over 999,999,999,999",
            "split the payment or check the unit (major units, not cents)",
        ));
    }
    let digits = known.exponent().unwrap_or(0);
    if !amount.fits_digits(u32::from(digits)) {
        return Err(Violation::new(
            "payment.amount.nanos",
            format!("is more precise than {currency}, which has {digits} digits after the point"),
            "round to the currency's minor unit",
        ));
    }
    Ok(())
}

fn location(record: &PaymentRecord) -> Checks {
    if let Some(country) = &record.country
        && !(country.len() == 2 && country.bytes().all(|b| b.is_ascii_uppercase()))
    {
        return Err(Violation::new(
            "payment.location.country_code",
            "is not two capital letters",
            "send the ISO 3166-1 alpha-2 code, or leave it empty",
        ));
    }
    if record
        .place
        .as_ref()
        .is_some_and(|place| place.is_empty() || place.len() > bounds::MAX_PLACE_BYTES)
    {
        return Err(Violation::new(
            "payment.location.place",
            "has more than 128 bytes, or none",
            "send a short name such as a city, or leave it out",
        ));
    }
    let in_range = |value: f64, bound: f64| value.is_finite() && value.abs() <= bound;
    match (record.latitude, record.longitude) {
        (None, None) => Ok(()),
        (Some(latitude), Some(longitude)) if in_range(latitude, 90.0) && in_range(longitude, 180.0) => Ok(()),
        (Some(_), Some(_)) => Err(Violation::new(
            "payment.location",
            "has coordinates off the globe",
            "send degrees: latitude -90 to 90, longitude -180 to 180",
        )),
        _ => Err(Violation::new(
            "payment.location",
            "has one coordinate without the other",
            "send latitude and longitude together, or neither",
        )),
    }
}

fn payment_record(
    wire: pb::PaymentEvent,
    event_id: EventId,
    tenant: String,
    occurred_at: i64,
) -> Result<PaymentRecord, Violation> {
    let money = wire
        .amount
        .ok_or_else(|| Violation::new("payment.amount", "is missing", "send currency_code, units and nanos"))?;
    let amount = Amount::from_parts(money.units, money.nanos).ok_or_else(|| {
        Violation::new(
            "payment.amount",
            "is out of range, differs in sign between units and nanos, or is finer than any currency",
            "send major units and nanos of the same sign, rounded to the currency's minor unit",
        )
    })?;
    let location = wire.location.unwrap_or_default();
    Ok(PaymentRecord {
        event_id,
        tenant,
        account_id: wire.account_id,
        amount,
        currency: money.currency_code,
        occurred_at,
        merchant_id: wire.merchant_id,
        merchant_category: some(wire.merchant_category),
        terminal_id: some(wire.terminal_id),
        method: method(wire.method)?.to_owned(),
        device_id: some(wire.device_id),
        country: some(location.country_code),
        place: some(location.place),
        latitude: location.latitude,
        longitude: location.longitude,
        traceparent: None,
    })
}

fn method(number: i32) -> Result<&'static str, Violation> {
    let method = pb::PaymentMethod::try_from(number).map_err(|_unknown| {
        Violation::new(
            "payment.method",
            format!("{number} is unknown"),
            "send a PaymentMethod of the contract",
        )
    })?;
    Ok(method.as_str_name().trim_start_matches("PAYMENT_METHOD_"))
}

fn severity(number: i32) -> Result<String, Violation> {
    let severity = pb::Severity::try_from(number).map_err(|_unknown| {
        Violation::new(
            "system.severity",
            format!("{number} is unknown"),
            "send a Severity of the contract",
        )
    })?;
    Ok(severity.as_str_name().trim_start_matches("SEVERITY_").to_owned())
}

fn user_action(record: UserActionRecord) -> Result<Checked, Violation> {
    id("user_action.user_id", &record.user_id)?;
    id("user_action.action", &record.action)?;
    optional_id("user_action.device_id", record.device_id.as_deref())?;
    attributes("user_action.attributes", &record.attributes)?;
    Ok(Checked::UserAction(record))
}

fn system(record: SystemRecord) -> Result<Checked, Violation> {
    id("system.source", &record.source)?;
    id("system.kind", &record.kind)?;
    if record.message.len() > bounds::MAX_MESSAGE_BYTES {
        return Err(Violation::new(
            "system.message",
            "has more than 4,096 bytes",
            "shorten the message",
        ));
    }
    attributes("system.attributes", &record.attributes)?;
    Ok(Checked::System(record))
}

fn metric(record: MetricRecord) -> Result<Checked, Violation> {
    id("metric.name", &record.name)?;
    if !record.value.is_finite() {
        return Err(Violation::new(
            "metric.value",
            "is not a finite number",
            "leave out what was not measured",
        ));
    }
    if record
        .unit
        .as_ref()
        .is_some_and(|unit| unit.len() > bounds::MAX_UNIT_BYTES)
    {
        return Err(Violation::new(
            "metric.unit",
            "has more than 32 bytes",
            "send a UCUM unit such as ms",
        ));
    }
    attributes("metric.attributes", &record.attributes)?;
    Ok(Checked::Metric(record))
}

fn custom(record: CustomRecord) -> Result<Checked, Violation> {
    if !visible(&record.type_name, bounds::MAX_TYPE_BYTES) {
        let remedy = "send the name that the gateway's routing table has for it";
        return Err(Violation::new(
            "custom.type",
            "is not 1 to 64 bytes of visible ASCII",
            remedy,
        ));
    }
    id("custom.subject", &record.subject)?;
    Ok(Checked::Custom(record))
}

fn attributes(field: &'static str, attributes: &BTreeMap<String, String>) -> Checks {
    if attributes.len() > bounds::MAX_ATTRIBUTES {
        return Err(Violation::new(
            field,
            format!("has {} entries", attributes.len()),
            "send at most 32 entries",
        ));
    }
    let too_long =
        |(key, value): (&String, &String)| key.is_empty() || key.len() + value.len() > bounds::MAX_ATTRIBUTE_BYTES;
    if attributes.iter().any(too_long) {
        return Err(Violation::new(
            field,
            "has an entry without a key or of more than 1,024 bytes",
            "shorten the entry",
        ));
    }
    Ok(())
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn sorted<S: BuildHasher>(attributes: HashMap<String, String, S>) -> BTreeMap<String, String> {
    attributes.into_iter().collect()
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
