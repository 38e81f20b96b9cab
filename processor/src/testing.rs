//! Owns what this crate's unit tests share.

use sluice_proto::event::{EventId, PaymentRecord};
use sluice_proto::money::Amount;
use uuid::Uuid;

/// 2026-01-01, in microseconds since the Unix epoch.
pub(crate) const T0: i64 = 1_767_225_600_000_000;
/// One second in microseconds.
pub(crate) const SECOND: i64 = 1_000_000;

/// A payment that no rule minds.
pub(crate) fn payment() -> PaymentRecord {
    PaymentRecord {
        event_id: event_id(1),
        tenant: "acme".to_owned(),
        account_id: "account-1".to_owned(),
        amount: Amount::from_ten_thousandths(125_000),
        currency: "EUR".to_owned(),
        occurred_at: T0,
        merchant_id: "merchant-1".to_owned(),
        merchant_category: None,
        terminal_id: None,
        method: "CARD_PRESENT".to_owned(),
        device_id: None,
        country: None,
        place: None,
        latitude: None,
        longitude: None,
        traceparent: None,
    }
}

/// An id that is never nil.
pub(crate) fn event_id(number: u32) -> EventId {
    EventId::new(Uuid::from_u128(u128::from(number) + 1))
}
