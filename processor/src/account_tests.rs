//! Tests of what a payment looks like next to its account's past, feature by feature.

use super::*;
use crate::calendar::{DAY_US, HOUR_US};
use crate::testing::{SECOND, T0, payment};

const HORIZONS: Horizons = Horizons {
    frequency_us: MINUTE_US,
    place_us: MINUTE_US,
};

fn paid(time: i64, units: i64, currency: &str) -> PaymentRecord {
    PaymentRecord {
        occurred_at: T0 + time,
        amount: Amount::from_ten_thousandths(units * TEN_THOUSANDTHS),
        currency: currency.to_owned(),
        ..payment()
    }
}

fn observe(account: &mut Account, payment: &PaymentRecord) -> Features {
    // Nothing is forgotten.
    account.observe(payment, i64::MIN, HORIZONS).0
}

#[test]
fn payments_are_counted_in_windows_that_end_with_the_payment() {
    let mut account = Account::default();
    let mut counts = Vec::new();
    for second in [0, 10, 59, 60, 299, 300, 310] {
        let features = observe(&mut account, &paid(second * SECOND, 1, "EUR"));
        counts.push((features.payments_1m, features.payments_5m));
    }
    assert_eq!(counts, [(1, 1), (2, 2), (3, 3), (3, 4), (1, 5), (2, 5), (3, 5)]);
}

#[test]
fn amounts_are_added_up_by_currency_over_sixty_minutes() {
    let mut account = Account::default();
    let mut amount = |minute: i64, units, currency| {
        observe(&mut account, &paid(minute * MINUTE_US + 30 * SECOND, units, currency)).amount_1h
    };
    assert_eq!(amount(0, 10, "EUR"), 10.0);
    assert_eq!(amount(0, 5, "USD"), 5.0);
    assert_eq!(amount(59, 7, "EUR"), 17.0);
    assert_eq!(amount(60, 1, "EUR"), 8.0, "minute 0 is out");
    assert_eq!(amount(30, 2, "EUR"), 12.0, "what is later does not count");
}

#[test]
fn hours_and_days_begin_anew() {
    let mut account = Account::default();
    let mut tumbling = |minute: i64, units, currency| {
        let features = observe(&mut account, &paid(minute * MINUTE_US, units, currency));
        let hour = (features.payments_this_hour, features.amount_this_hour);
        (hour, (features.payments_today, features.amount_today))
    };
    // T0 is the beginning of a day.
    let end_of_day = 24 * 60 - 1;
    assert_eq!(tumbling(end_of_day - 60, 10, "EUR"), ((1, 10.0), (1, 10.0)));
    assert_eq!(tumbling(end_of_day, 5, "EUR"), ((1, 5.0), (2, 15.0)));
    assert_eq!(tumbling(end_of_day, 7, "USD"), ((2, 7.0), (3, 7.0)));
    assert_eq!(tumbling(end_of_day + 1, 1, "EUR"), ((1, 1.0), (1, 1.0)));
    assert_eq!(
        tumbling(end_of_day - 1, 2, "EUR"),
        ((1, 2.0), (4, 17.0)),
        "a minute later is no part of the hour so far"
    );
}

#[test]
fn a_session_lasts_until_nothing_is_paid_for_ten_minutes_and_an_hour_at_most() {
    let mut account = Account::default();
    let mut session = |minute: i64, units, currency| {
        let features = observe(&mut account, &paid(minute * MINUTE_US, units, currency));
        (
            features.session_payments,
            features.session_amount,
            features.session_minutes,
        )
    };
    assert_eq!(session(0, 10, "EUR"), (1, 10.0, 0));
    assert_eq!(session(10, 5, "USD"), (2, 5.0, 10));
    assert_eq!(session(31, 7, "EUR"), (1, 7.0, 0), "21 minutes later");
    assert_eq!(session(20, 1, "EUR"), (3, 11.0, 20), "it closes the gap on one side");
    assert_eq!(session(21, 1, "EUR"), (4, 12.0, 21), "and on the other");
    for minute in [40, 50] {
        session(minute, 1, "EUR");
    }
    assert_eq!(session(59, 1, "EUR"), (8, 22.0, 59));
    assert_eq!(session(60, 1, "EUR"), (8, 13.0, 50), "the first minute is too long ago");
}

#[test]
fn the_usual_amount_is_the_mean_of_three_payments_or_more() {
    let mut account = Account::default();
    let mut usual = |day: i64, units| observe(&mut account, &paid(day * DAY_US, units, "EUR")).usual_amount;
    assert_eq!(usual(0, 10), None);
    assert_eq!(usual(1, 20), None);
    assert_eq!(usual(2, 60), None, "two payments before it");
    assert_eq!(usual(3, 1_000), Some(30.0));
    assert_eq!(usual(6, 1), Some(360.0), "day 0 is out");
}

#[test]
fn the_time_since_the_last_payment_is_known_for_five_days() {
    let mut account = Account::default();
    let mut since = |time| observe(&mut account, &paid(time, 1, "EUR")).since_last_us;
    assert_eq!(since(0), None);
    assert_eq!(since(HOUR_US), Some(HOUR_US));
    assert_eq!(since(HOUR_US - SECOND), Some(SECOND), "out of order");
    assert_eq!(since(HOUR_US + 5 * DAY_US), Some(5 * DAY_US));
    assert_eq!(since(HOUR_US + 10 * DAY_US + 1), None);
}

#[test]
fn devices_and_countries_go_by_their_names() {
    let mut account = Account::default();
    let mut new = |device: Option<&str>, country: Option<&str>| {
        let payment = PaymentRecord {
            device_id: device.map(str::to_owned),
            country: country.map(str::to_owned),
            ..paid(0, 1, "EUR")
        };
        let features = observe(&mut account, &payment);
        (features.new_device, features.new_country)
    };
    assert_eq!(new(Some("phone"), Some("FR")), (false, false));
    assert_eq!(new(Some("tablet"), Some("FR")), (true, false));
    assert_eq!(new(Some("phone"), Some("DE")), (false, true));
    assert_eq!(new(None, None), (false, false));
}

#[test]
fn numbers_that_stand_for_texts_are_the_same_in_every_build() {
    assert_eq!(number(b""), 0x4fd0_bfc1);
    assert_eq!(
        fnv1a(b"a"),
        0xaf63_dc4c_8601_ec8c,
        "from the algorithm's own table of vectors"
    );
}
