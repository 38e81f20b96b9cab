//! A second opinion on every decision: what docs/rules.md says of rules and ARCHITECTURE.md of repetitions, recomputed from
//! the payments topic alone and as naively as possible. It shares nothing with the processor but the contract: each payment
//! is compared with every earlier one of its partition that may concern it, nothing is ever forgotten, and distances are
//! computed by another formula.
//!
//! Comes after [`crate::history`] has read the topic; [`crate::checker`] compares what comes out with what was decided.

use std::collections::HashMap;

use sluice_proto::avro::PREFIX_BYTES;
use sluice_proto::event::PaymentRecord;
use sluice_proto::features::AccountFeatures;
use sluice_proto::{headers, validate};

use crate::checker::decode;
use crate::features::Past;
use crate::topics::Record;

/// The defaults of the processor's options, as docs/rules.md tells them.
const LATENESS_US: i64 = 600 * SECOND_US;
const LARGE_TEN_THOUSANDTHS: i64 = 10_000 * 10_000;
const FREQUENT: usize = 5;
const MINUTE_US: i64 = 60 * SECOND_US;
const FASTEST_KMH: f64 = 1_000.0;
const SECOND_US: i64 = 1_000_000;
const EARTH_KM: f64 = 6_371.008_8;
const REVIEW: f64 = 0.5;
const DECLINE: f64 = 0.75;

/// What must have become of one record of the payments topic.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// A decision with these rules, in this order, this score and this outcome.
    Decided {
        /// Names of the rules that fire.
        rules: Vec<&'static str>,
        /// From 0 to 1.
        score: f64,
        /// APPROVE, REVIEW or DECLINE.
        outcome: &'static str,
        /// Whether it came too late for its history.
        late: bool,
    },
    /// Nothing: it is a repetition of a payment that was decided, or no payment but a rule set.
    Repeated,
    /// A dead letter of this type.
    Dead(&'static str),
}

/// An earlier payment that changed what its partition remembers.
struct Seen {
    payment: PaymentRecord,
}

/// One partition, as far as it was read.
#[derive(Default)]
struct Partition {
    /// Newest time so far; none before the first payment.
    clock: Option<i64>,
    /// By account: everything that came in time.
    accounts: HashMap<String, Vec<Seen>>,
    /// By identity: the newest payment of this id that came in time.
    remembered: HashMap<String, PaymentRecord>,
    /// By identity: the payment that was decided.
    decided: HashMap<String, PaymentRecord>,
}

/// What must have become of each record, which come by partition and offset.
pub fn replay(records: &[Record]) -> HashMap<(i32, i64), Fate> {
    replay_with(records, |_record, _payment| {})
}

/// The features of each payment that was decided in time.
pub fn replay_features(records: &[Record]) -> HashMap<(i32, i64), AccountFeatures> {
    let mut pasts: HashMap<i32, Past> = HashMap::new();
    let mut features = HashMap::new();
    let fates = replay_with(records, |record, payment| {
        let at = (record.partition, record.offset);
        let past = pasts.entry(record.partition).or_default();
        features.insert(at, past.take(payment, at));
    });
    // What only the ledger knew to be a repetition or a conflict is part of the past all the same.
    features.retain(|at, _| matches!(fates.get(at), Some(Fate::Decided { .. })));
    features
}

/// Meanwhile tells of each payment that becomes part of the past, before what comes after it is judged.
fn replay_with(records: &[Record], mut entered: impl FnMut(&Record, &PaymentRecord)) -> HashMap<(i32, i64), Fate> {
    let mut partitions: HashMap<i32, Partition> = HashMap::new();
    let mut fates = HashMap::new();
    let prefix = usual_prefix(records);
    for record in records {
        let fate = if record.headers.contains_key(headers::RULE_SET) {
            Fate::Repeated
        } else if record.payload.get(..PREFIX_BYTES) != prefix {
            Fate::Dead("DESERIALIZATION_ERROR")
        } else {
            let partition = partitions.entry(record.partition).or_default();
            partition.read(record, |payment| entered(record, payment))
        };
        fates.insert((record.partition, record.offset), fate);
    }
    fates
}

/// What the gateway writes before each payment, which is nearly every record's: the schema's id is in it, and nobody else's
/// schema is in the registry.
fn usual_prefix(records: &[Record]) -> Option<&[u8]> {
    let mut counts: HashMap<&[u8], usize> = HashMap::new();
    for record in records
        .iter()
        .filter(|record| !record.headers.contains_key(headers::RULE_SET))
    {
        if let Some(prefix) = record.payload.get(..PREFIX_BYTES) {
            *counts.entry(prefix).or_default() += 1;
        }
    }
    let usual = counts.into_iter().max_by_key(|(_, count)| *count);
    usual.map(|(prefix, _)| prefix)
}

impl Partition {
    fn read(&mut self, record: &Record, mut entered: impl FnMut(&PaymentRecord)) -> Fate {
        let stored_at = record.stored_at_ms * 1_000;
        let Ok(payment) = decode::<PaymentRecord>(record) else {
            return Fate::Dead("DESERIALIZATION_ERROR");
        };
        if validate::payment(payment.clone(), stored_at).is_err() {
            return Fate::Dead("VALIDATION_ERROR");
        }
        let id = format!("{}/{}", payment.tenant, payment.event_id);
        let time = payment.occurred_at;
        let oldest = self.clock.map_or(i64::MIN, |clock| clock.saturating_sub(LATENESS_US));
        let late = time < oldest;
        if !late
            && let Some(before) = self.remembered.get(&id)
            && before.occurred_at >= oldest
        {
            let same = is_same(before, &payment) && before.merchant_id == payment.merchant_id;
            return if same { Fate::Repeated } else { Fate::Dead("CONFLICT") };
        }
        let (rules, late) = if late {
            (judge_late(&payment), true)
        } else {
            self.remembered.insert(id.clone(), payment.clone());
            self.clock = self.clock.max(Some(time.min(stored_at)));
            let account = format!("{}/{}", payment.tenant, payment.account_id);
            let earlier = self.accounts.entry(account).or_default();
            let rules = judge(&payment, earlier);
            entered(&payment);
            earlier.push(Seen {
                payment: payment.clone(),
            });
            (rules, false)
        };
        match self.decided.get(&id) {
            Some(before) if is_same(before, &payment) => return Fate::Repeated,
            Some(_) => return Fate::Dead("CONFLICT"),
            None => self.decided.insert(id, payment),
        };
        decided(rules, late)
    }
}

/// What the ledger knows of a payment.
fn is_same(a: &PaymentRecord, b: &PaymentRecord) -> bool {
    (a.occurred_at, &a.account_id, a.amount, &a.currency) == (b.occurred_at, &b.account_id, b.amount, &b.currency)
}

fn judge_late(payment: &PaymentRecord) -> Vec<&'static str> {
    let mut rules = Vec::new();
    if payment.amount.ten_thousandths() > LARGE_TEN_THOUSANDTHS {
        rules.push("LARGE_AMOUNT");
    }
    rules.push("LATE_EVENT");
    rules
}

fn judge(payment: &PaymentRecord, earlier: &[Seen]) -> Vec<&'static str> {
    let mut rules = Vec::new();
    let time = payment.occurred_at;
    if payment.amount.ten_thousandths() > LARGE_TEN_THOUSANDTHS {
        rules.push("LARGE_AMOUNT");
    }
    let is_recent = |seen: &&Seen| {
        let then = seen.payment.occurred_at;
        then > time - MINUTE_US && then <= time
    };
    if 1 + earlier.iter().filter(is_recent).count() > FREQUENT {
        rules.push("HIGH_FREQUENCY");
    }
    if moved(payment, earlier) || too_fast(payment, earlier) {
        rules.push("IMPOSSIBLE_TRAVEL");
    }
    rules
}

/// Of equally new positions the one that came last counts, which is what `max_by_key` gives.
fn newest(earlier: &[Seen], has: impl Fn(&PaymentRecord) -> bool) -> Option<&PaymentRecord> {
    let known = earlier.iter().map(|seen| &seen.payment).filter(|payment| has(payment));
    known.max_by_key(|payment| payment.occurred_at)
}

fn moved(payment: &PaymentRecord, earlier: &[Seen]) -> bool {
    let Some(before) = newest(earlier, |it| it.country.is_some() || it.place.is_some()) else {
        return false;
    };
    let differ = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
    (payment.occurred_at - before.occurred_at).abs() <= MINUTE_US
        && (differ(&payment.country, &before.country) || differ(&payment.place, &before.place))
}

fn too_fast(payment: &PaymentRecord, earlier: &[Seen]) -> bool {
    let point = |it: &PaymentRecord| it.latitude.zip(it.longitude);
    let Some(before) = newest(earlier, |it| point(it).is_some()) else {
        return false;
    };
    let (Some(here), Some(there)) = (point(payment), point(before)) else {
        return false;
    };
    let elapsed_us = (payment.occurred_at - before.occurred_at).abs().max(SECOND_US);
    let hours = elapsed_us as f64 / (3_600 * SECOND_US) as f64;
    distance_km(here, there) / hours > FASTEST_KMH
}

/// The angle between two directions from the Earth's centre, by their cross and dot products.
fn distance_km(from: (f64, f64), to: (f64, f64)) -> f64 {
    let direction = |(latitude, longitude): (f64, f64)| {
        let (latitude, longitude) = (latitude.to_radians(), longitude.to_radians());
        [
            latitude.cos() * longitude.cos(),
            latitude.cos() * longitude.sin(),
            latitude.sin(),
        ]
    };
    let (a, b) = (direction(from), direction(to));
    let cross = [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ];
    let dot: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
    EARTH_KM * cross.iter().map(|c| c * c).sum::<f64>().sqrt().atan2(dot)
}

fn decided(rules: Vec<&'static str>, late: bool) -> Fate {
    let mut innocent = 1.0;
    for rule in &rules {
        innocent *= 1.0
            - match *rule {
                "LARGE_AMOUNT" => 0.6,
                "IMPOSSIBLE_TRAVEL" => 0.8,
                _ => 0.5,
            };
    }
    let score = 1.0 - innocent;
    let outcome = if score >= DECLINE {
        "DECLINE"
    } else if score >= REVIEW || late {
        "REVIEW"
    } else {
        "APPROVE"
    };
    Fate::Decided {
        rules,
        score,
        outcome,
        late,
    }
}

#[cfg(test)]
mod tests {
    use sluice_proto::avro::Encoder;
    use sluice_proto::event::EventId;
    use sluice_proto::money::Amount;

    use super::*;

    const NOW_S: i64 = 1_700_000_000;

    fn record(offset: i64, id: u128, second: i64, change: impl FnOnce(&mut PaymentRecord)) -> Record {
        let mut payment = PaymentRecord {
            event_id: EventId::new(uuid::Uuid::from_u128(id)),
            tenant: "acme".to_owned(),
            account_id: "a".to_owned(),
            amount: Amount::from_ten_thousandths(120_000),
            currency: "EUR".to_owned(),
            occurred_at: (NOW_S + second) * SECOND_US,
            merchant_id: "m".to_owned(),
            merchant_category: None,
            terminal_id: None,
            method: "CARD_PRESENT".to_owned(),
            device_id: None,
            country: None,
            place: None,
            latitude: None,
            longitude: None,
        };
        change(&mut payment);
        let mut payload = Vec::new();
        let encoder = Encoder::<PaymentRecord>::new(1).expect("the schema is ours");
        encoder.encode(&payment, &mut payload).expect("a payment");
        Record {
            partition: 0,
            offset,
            key: "acme/a".to_owned(),
            payload,
            stored_at_ms: (NOW_S + 5_000) * 1_000,
            headers: Default::default(),
        }
    }

    fn fates(records: &[Record]) -> Vec<Fate> {
        let fates = replay(records);
        records
            .iter()
            .map(|record| fates[&(0, record.offset)].clone())
            .collect()
    }

    fn rules(fate: &Fate) -> Vec<&'static str> {
        match fate {
            Fate::Decided { rules, .. } => rules.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_repetition_in_time_or_late_is_none_of_its_own_and_another_time_is_a_conflict() {
        let found = fates(&[
            record(0, 1, 0, |_| {}),
            record(1, 1, 0, |_| {}),
            record(2, 2, 700, |_| {}),
            record(3, 1, 0, |_| {}),
            record(4, 1, 700, |_| {}),
            record(5, 3, 10, |_| {}),
            record(6, 2, 700, |payment| {
                payment.amount = Amount::from_ten_thousandths(130_000)
            }),
            record(7, 3, 10, |payment| payment.currency = "USD".to_owned()),
        ]);
        assert_eq!(found[1], Fate::Repeated);
        assert_eq!(found[3], Fate::Repeated);
        assert_eq!(found[4], Fate::Dead("CONFLICT"));
        assert_eq!(rules(&found[5]), ["LATE_EVENT"]);
        assert_eq!(found[6], Fate::Dead("CONFLICT"), "within the window");
        assert_eq!(found[7], Fate::Dead("CONFLICT"), "behind it");
    }

    #[test]
    fn the_sixth_payment_of_a_minute_and_a_large_one_are_found() {
        let mut records: Vec<_> = (0..6).map(|n| record(n, n as u128 + 1, n, |_| {})).collect();
        records.push(record(6, 7, 64, |payment| {
            payment.amount = Amount::from_ten_thousandths(LARGE_TEN_THOUSANDTHS + 100);
        }));
        let found = fates(&records);
        assert!(rules(&found[4]).is_empty());
        assert_eq!(rules(&found[5]), ["HIGH_FREQUENCY"]);
        assert_eq!(rules(&found[6]), ["LARGE_AMOUNT"]);
    }

    #[test]
    fn places_and_points_are_compared_with_the_newest() {
        let at = |place: &'static str, point: Option<(f64, f64)>| {
            move |payment: &mut PaymentRecord| {
                payment.place = Some(place.to_owned());
                payment.latitude = point.map(|it| it.0);
                payment.longitude = point.map(|it| it.1);
            }
        };
        let found = fates(&[
            record(0, 1, 0, at("Paris", Some((48.856_6, 2.352_2)))),
            record(1, 2, 61, at("Tokyo", None)),
            record(2, 3, 100, at("Paris", None)),
            record(3, 4, 3_700, at("Berlin", Some((52.52, 13.405)))),
            record(4, 5, 3_800, at("Berlin", Some((48.856_6, 2.352_2)))),
        ]);
        let fired: Vec<bool> = found.iter().map(|fate| !rules(fate).is_empty()).collect();
        assert_eq!(fired, [false, false, true, false, true]);
        assert!((distance_km((48.856_6, 2.352_2), (52.52, 13.405)) - 877.5).abs() < 1.0);
    }

    #[test]
    fn what_cannot_be_read_is_dead() {
        let mut broken = record(0, 1, 0, |_| {});
        broken.payload.truncate(9);
        let invalid = record(1, 2, 0, |payment| payment.account_id.clear());
        let found = fates(&[broken, invalid]);
        assert_eq!(
            found,
            [Fate::Dead("DESERIALIZATION_ERROR"), Fate::Dead("VALIDATION_ERROR")]
        );
    }
}
