//! A second opinion on every feature: what docs/rules.md says of features, recomputed as naively as possible. Like
//! [`crate::oracle`], which uses it for what stands in a topic, it shares nothing with the processor but the contract:
//! nothing is ever forgotten, no sum is kept, and each payment is compared with all earlier ones of its account.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sluice_proto::event::PaymentRecord;
use sluice_proto::features::AccountFeatures;

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
const HOUR_US: i64 = 60 * MINUTE_US;
const DAY_US: i64 = 24 * HOUR_US;
const HISTORY_DAYS: i64 = 5;
const EARTH_KM: f64 = 6_371.008_8;

/// The payments of one partition that came in time.
#[derive(Debug, Default)]
pub struct Past {
    /// By `tenant/account`, in their order.
    accounts: HashMap<String, Vec<PaymentRecord>>,
    /// By `tenant/merchant` and day: how many payments, and how many odd ones.
    merchants: HashMap<String, BTreeMap<i64, (u64, u64)>>,
}

impl Past {
    /// Takes a payment in that stands at this offset of this partition, and gives the features that it must have.
    pub fn take(&mut self, payment: &PaymentRecord, (partition, offset): (i32, i64)) -> AccountFeatures {
        let account = format!("{}/{}", payment.tenant, payment.account_id);
        let earlier = self.accounts.entry(account).or_default();
        let mut features = features(payment, earlier);
        earlier.push(payment.clone());
        let large = features.usual_amount.is_some_and(|usual| units(payment) >= 3.0 * usual);
        let odd = features.new_device || features.new_country || features.unusual_hour || large;
        let merchant = format!("{}/{}", payment.tenant, payment.merchant_id);
        let days = self.merchants.entry(merchant).or_default();
        let day = day(payment);
        let (mut payments, mut odds) = (0, 0);
        for (of, (payments_of_day, odd_of_day)) in days.iter() {
            if (day - HISTORY_DAYS..=day).contains(of) {
                payments += payments_of_day;
                odds += odd_of_day;
            }
        }
        let counts = days.entry(day).or_default();
        *counts = (counts.0 + 1, counts.1 + u64::from(odd));
        features.merchant_risk = odds as f64 / (payments as f64 + 20.0);
        features.source_partition = partition;
        features.source_offset = offset;
        features
    }
}

/// Everything but what concerns the merchant.
fn features(payment: &PaymentRecord, earlier: &[PaymentRecord]) -> AccountFeatures {
    let (time, minute, day) = (payment.occurred_at, minute(payment), day(payment));
    let counted = |is: &dyn Fn(&PaymentRecord) -> bool| {
        let all = earlier.iter().chain([payment]).filter(|it| is(it));
        let (mut payments, mut ten_thousandths) = (0, 0);
        for one in all {
            payments += 1;
            if one.currency == payment.currency {
                ten_thousandths += i128::from(one.amount.ten_thousandths());
            }
        }
        (payments, ten_thousandths as f64 / 10_000.0)
    };
    let within = |span_us: i64| counted(&|it| it.occurred_at > time - span_us && it.occurred_at <= time).0;
    let begun = session_begins(payment, earlier);
    let hour_so_far = counted(&|it| hours(it) == hours(payment) && self::minute(it) <= minute);
    let today = counted(&|it| self::day(it) == day);
    let session = counted(&|it| (begun..=minute).contains(&self::minute(it)));
    let trip = trip(payment, earlier);
    let newest = earlier.iter().map(|it| it.occurred_at).max();
    let since_last = newest.map(|newest| (newest - time).abs());
    AccountFeatures {
        tenant: payment.tenant.clone(),
        account_id: payment.account_id.clone(),
        event_id: payment.event_id,
        occurred_at: time,
        currency: payment.currency.clone(),
        payments_1m: within(MINUTE_US),
        payments_5m: within(5 * MINUTE_US),
        amount_1h: counted(&|it| (minute - 59..=minute).contains(&self::minute(it))).1,
        payments_this_hour: hour_so_far.0,
        amount_this_hour: hour_so_far.1,
        payments_today: today.0,
        amount_today: today.1,
        session_payments: session.0,
        session_amount: session.1,
        session_minutes: (minute - begun) as i32,
        usual_amount: usual_amount(payment, earlier),
        unusual_hour: unusual_hour(payment, earlier),
        new_device: is_new(payment, earlier, |it| it.device_id.as_deref()),
        new_country: is_new(payment, earlier, |it| it.country.as_deref()),
        seconds_since_last: since_last.filter(|it| *it <= HISTORY_DAYS * DAY_US).map(seconds),
        km_since_last: trip.map(|(km, _)| km),
        seconds_of_trip: trip.map(|(_, micros)| seconds(micros)),
        merchant_risk: 0.0,
        source_partition: 0,
        source_offset: 0,
    }
}

/// The minute with which the payment's session begins.
fn session_begins(payment: &PaymentRecord, earlier: &[PaymentRecord]) -> i64 {
    let last = minute(payment);
    let minutes: BTreeSet<i64> = earlier.iter().map(minute).collect();
    let mut begun = last;
    while let Some(before) = minutes.range(..begun).next_back()
        && begun - before <= 10
        && last - before <= 59
    {
        begun = *before;
    }
    begun
}

fn usual_amount(payment: &PaymentRecord, earlier: &[PaymentRecord]) -> Option<f64> {
    let day = day(payment);
    let of_days = earlier
        .iter()
        .filter(|it| it.currency == payment.currency && (day - HISTORY_DAYS..=day).contains(&self::day(it)));
    let amounts: Vec<i128> = of_days.map(|it| it.amount.ten_thousandths().into()).collect();
    let sum: i128 = amounts.iter().sum();
    (amounts.len() >= 3).then(|| sum as f64 / 10_000.0 / amounts.len() as f64)
}

fn unusual_hour(payment: &PaymentRecord, earlier: &[PaymentRecord]) -> bool {
    let day = day(payment);
    let before: Vec<&PaymentRecord> = earlier
        .iter()
        .filter(|it| (day - HISTORY_DAYS..day).contains(&self::day(it)))
        .collect();
    let days: BTreeSet<i64> = before.iter().map(|it| self::day(it)).collect();
    let hour_of_day = |it: &PaymentRecord| hours(it).rem_euclid(24);
    let is_near = |it: &PaymentRecord| {
        let apart = (hour_of_day(it) - hour_of_day(payment)).rem_euclid(24);
        [23, 0, 1].contains(&apart)
    };
    days.len() >= 3 && !before.iter().any(|it| is_near(it))
}

/// Whether of the last six of something, some were seen within five days, and this one was not.
fn is_new<'p>(
    payment: &'p PaymentRecord,
    earlier: &'p [PaymentRecord],
    what: impl Fn(&'p PaymentRecord) -> Option<&'p str>,
) -> bool {
    let Some(this) = what(payment) else { return false };
    let mut last: BTreeMap<&str, i64> = BTreeMap::new();
    for (name, second) in earlier.iter().filter_map(|it| Some((what(it)?, second(it)))) {
        let known = last.entry(name).or_insert(second);
        *known = second.max(*known);
    }
    let mut remembered: Vec<(i64, u32, &str)> = last.iter().map(|(name, at)| (*at, number(name), *name)).collect();
    remembered.sort_unstable();
    let oldest = second(payment) - HISTORY_DAYS * DAY_US / SECOND_US;
    let known: Vec<&str> = remembered
        .iter()
        .rev()
        .take(6)
        .filter(|(at, _, _)| *at >= oldest)
        .map(|(_, _, name)| *name)
        .collect();
    !known.is_empty() && !known.contains(&this)
}

/// How far the newest known coordinates are, and how long ago.
fn trip(payment: &PaymentRecord, earlier: &[PaymentRecord]) -> Option<(f64, i64)> {
    let point = |it: &PaymentRecord| it.latitude.zip(it.longitude);
    let here = point(payment)?;
    let latest = earlier.iter().filter(|it| point(it).is_some());
    let latest = latest.max_by_key(|it| it.occurred_at)?;
    let elapsed_us = (latest.occurred_at - payment.occurred_at).abs();
    let there = point(latest)?;
    (elapsed_us <= HISTORY_DAYS * DAY_US).then(|| (haversine_km(there, here), elapsed_us))
}

/// By the haversine formula, to the bit.
fn haversine_km(from: (f64, f64), to: (f64, f64)) -> f64 {
    let half = |degrees: f64| degrees.to_radians() / 2.0;
    let (phi, phi_to) = (from.0.to_radians(), to.0.to_radians());
    let along = (phi_to - phi) / 2.0;
    let squared = along.sin().powi(2) + phi.cos() * phi_to.cos() * half(to.1 - from.1).sin().powi(2);
    2.0 * EARTH_KM * squared.sqrt().min(1.0).asin()
}

/// Of things that were seen last in the same second, those with the greater number are remembered: both halves of the
/// FNV-1a hash of 64 bits.
fn number(name: &str) -> u32 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash >> 32) as u32 ^ hash as u32
}

fn units(payment: &PaymentRecord) -> f64 {
    payment.amount.ten_thousandths() as f64 / 10_000.0
}

fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}

fn second(payment: &PaymentRecord) -> i64 {
    payment.occurred_at.div_euclid(SECOND_US)
}

fn minute(payment: &PaymentRecord) -> i64 {
    payment.occurred_at.div_euclid(MINUTE_US)
}

/// Hours since the Unix epoch.
fn hours(payment: &PaymentRecord) -> i64 {
    payment.occurred_at.div_euclid(HOUR_US)
}

fn day(payment: &PaymentRecord) -> i64 {
    payment.occurred_at.div_euclid(DAY_US)
}
