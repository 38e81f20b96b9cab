//! The features of accounts: the records of the topic `features`, from which a model is served.
//!
//! Written by the processor with its decisions, where that is switched on; `docs/rules.md` has the formula and the unit of
//! each.

use serde::{Deserialize, Serialize};

use crate::event::EventId;

/// What an account's payment looked like next to the past: the Avro record `sluice.v1.AccountFeatures`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the Avro schema documents the fields")]
pub struct AccountFeatures {
    pub tenant: String,
    pub account_id: String,
    pub event_id: EventId,
    /// Microseconds since the Unix epoch.
    pub occurred_at: i64,
    pub currency: String,
    pub payments_1m: i64,
    pub payments_5m: i64,
    pub amount_1h: f64,
    pub payments_this_hour: i64,
    pub amount_this_hour: f64,
    pub payments_today: i64,
    pub amount_today: f64,
    pub session_payments: i64,
    pub session_amount: f64,
    pub session_minutes: i32,
    pub usual_amount: Option<f64>,
    pub unusual_hour: bool,
    pub new_device: bool,
    pub new_country: bool,
    pub seconds_since_last: Option<f64>,
    pub km_since_last: Option<f64>,
    pub seconds_of_trip: Option<f64>,
    pub merchant_risk: f64,
    pub source_partition: i32,
    pub source_offset: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::avro::{Decoder, Encoder};

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let features = AccountFeatures {
            tenant: "acme".to_owned(),
            account_id: "a".to_owned(),
            event_id: EventId::new(uuid::Uuid::from_u128(7)),
            occurred_at: 1_767_225_600_000_001,
            currency: "EUR".to_owned(),
            payments_1m: 1,
            payments_5m: 2,
            amount_1h: 3.25,
            payments_this_hour: 3,
            amount_this_hour: 4.5,
            payments_today: 4,
            amount_today: 5.1,
            session_payments: 5,
            session_amount: 6.2,
            session_minutes: 59,
            usual_amount: Some(7.3),
            unusual_hour: true,
            new_device: false,
            new_country: true,
            seconds_since_last: None,
            km_since_last: Some(8.4),
            seconds_of_trip: None,
            merchant_risk: 0.5,
            source_partition: 3,
            source_offset: 9,
        };
        let mut bytes = Vec::new();
        let encoder = Encoder::new(1).expect("the schema is ours");
        encoder.encode(&features, &mut bytes).expect("it fits");
        let decoded = Decoder::<AccountFeatures>::new(1)
            .expect("the schema is ours")
            .decode(&bytes);
        assert_eq!(decoded.expect("it can be read"), features);
    }
}
