//! A second opinion on every decision: what docs/rules.md says of rules and ARCHITECTURE.md of repetitions, recomputed from
//! the payments topic alone and as naively as possible. It shares nothing with the processor but the contract: each payment
//! is compared with every earlier one of its partition that may concern it, nothing is forgotten unless the caller says that
//! it will not matter again, and distances are computed by another formula.
//!
//! Comes after [`crate::history`] has read the topic; [`crate::checker`] compares what comes out with what was decided.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use sluice_proto::event::PaymentRecord;
use sluice_proto::features::AccountFeatures;
use sluice_proto::{headers, validate};

use crate::features::Past;
use crate::schemas::{Decoder, Schemas};
use crate::topics::Record;

/// The defaults of the processor's options, as docs/rules.md tells them.
const LATENESS_US: i64 = 600 * SECOND_US;
const LARGE_UNITS: i64 = 10_000;
const FREQUENT: usize = 5;
const BUILT_IN: &str = "built-in-1";
const MINUTE_US: i64 = 60 * SECOND_US;
const FASTEST_KMH: f64 = 1_000.0;
const SECOND_US: i64 = 1_000_000;
const TEN_THOUSANDTHS: i64 = 10_000;
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
        /// With what the version of the rule set in force begins.
        rule_set: Arc<str>,
    },
    /// Nothing: it is a repetition of a payment that was decided, or no payment but a rule set.
    Repeated,
    /// A dead letter of this type.
    Dead(&'static str),
}

/// What a rule set that is applied in mid-stream may say otherwise than the default one.
#[derive(Clone, Debug)]
struct Rules {
    version: Arc<str>,
    large_units: i64,
    frequent: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            version: BUILT_IN.into(),
            large_units: LARGE_UNITS,
            frequent: FREQUENT,
        }
    }
}

impl Rules {
    /// Those of a document as [`rule_set`] writes it.
    fn of(document: &[u8]) -> Option<Self> {
        let document = std::str::from_utf8(document).ok()?;
        let after = |key: &str| {
            let rest = document.split_once(key)?.1;
            rest.split([',', '}', '\n']).next().map(str::trim)
        };
        Some(Self {
            version: after("version:")?.into(),
            large_units: after("over_units:")?.parse().ok()?,
            frequent: after("more_than_payments:")?.parse().ok()?,
        })
    }
}

/// A rule set that differs from the default one in how much is large and how many payments of a minute are frequent.
pub fn rule_set(version: &str, large_units: i64, frequent: usize) -> String {
    format!(
        "version: {version}
outcomes: {{review: {REVIEW}, decline: {DECLINE}}}
large_amount: {{over_units: {large_units}, contribution: 0.6}}
high_frequency: {{more_than_payments: {frequent}, window_s: 60, contribution: 0.5}}
impossible_travel: {{over_kmh: {FASTEST_KMH}, place_window_s: 60, contribution: 0.8}}
late_event: {{contribution: 0.5}}
"
    )
}

/// An earlier payment that changed what its partition remembers.
#[derive(Debug)]
struct Seen {
    time: i64,
    /// Where it was; boxed, because most payments do not say, and there are millions.
    at: Option<Box<Whereabouts>>,
}

#[derive(Debug)]
struct Whereabouts {
    country: Option<String>,
    place: Option<String>,
    point: Option<(f64, f64)>,
}

impl Whereabouts {
    fn of(payment: &PaymentRecord) -> Option<Box<Self>> {
        let point = payment.latitude.zip(payment.longitude);
        let known = payment.country.is_some() || payment.place.is_some() || point.is_some();
        known.then(|| {
            Box::new(Self {
                country: payment.country.clone(),
                place: payment.place.clone(),
                point,
            })
        })
    }

    fn is_named(&self) -> bool {
        self.country.is_some() || self.place.is_some()
    }
}

/// What tells a repetition from another payment of the same id.
#[derive(Clone, Copy, Debug)]
struct Known {
    time: i64,
    /// Of what the ledger knows of it.
    content: u64,
    merchant: u64,
}

impl Known {
    fn of(payment: &PaymentRecord) -> Self {
        let PaymentRecord {
            occurred_at,
            account_id,
            amount,
            currency,
            ..
        } = payment;
        Self {
            time: *occurred_at,
            content: hash(&(occurred_at, account_id, amount.ten_thousandths(), currency)),
            merchant: hash(&payment.merchant_id),
        }
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A payment's identity: its tenant, hashed, and its event's id.
type Id = (u64, u128);

/// One partition, as far as it was read.
#[derive(Debug, Default)]
struct Partition {
    /// What is in force.
    rules: Rules,
    /// Newest time so far; none before the first payment.
    clock: Option<i64>,
    /// By account: everything that came in time.
    accounts: HashMap<String, Vec<Seen>>,
    /// By identity: the newest payment of this id that came in time.
    remembered: HashMap<Id, Known>,
    /// By identity: the payment that was decided.
    decided: HashMap<Id, Known>,
}

/// A judge of partitions that are read bit by bit, each in its order.
#[derive(Debug, Default)]
pub struct Oracle {
    partitions: HashMap<i32, Partition>,
}

/// What must have become of each record, which come by partition and offset.
pub fn replay(records: &[Record], schemas: &Schemas) -> HashMap<(i32, i64), Fate> {
    Oracle::default().read(records, schemas)
}

/// The features of each payment that was decided in time.
pub fn replay_features(records: &[Record], schemas: &Schemas) -> HashMap<(i32, i64), AccountFeatures> {
    let mut pasts: HashMap<i32, Past> = HashMap::new();
    let mut features = HashMap::new();
    let fates = Oracle::default().read_with(records, schemas, |record, payment| {
        let at = (record.partition, record.offset);
        let past = pasts.entry(record.partition).or_default();
        features.insert(at, past.take(payment, at));
    });
    // What only the ledger knew to be a repetition or a conflict is part of the past all the same.
    features.retain(|at, _| matches!(fates.get(at), Some(Fate::Decided { .. })));
    features
}

impl Oracle {
    /// What must have become of these records, which follow in their partitions on those that were read before.
    ///
    /// # Panics
    /// When one of the schemas is not complete.
    pub fn read(&mut self, records: &[Record], schemas: &Schemas) -> HashMap<(i32, i64), Fate> {
        self.read_with(records, schemas, |_record, _payment| {})
    }

    /// Meanwhile tells of each payment that becomes part of the past, before what comes after it is judged.
    fn read_with(
        &mut self,
        records: &[Record],
        schemas: &Schemas,
        mut entered: impl FnMut(&Record, &PaymentRecord),
    ) -> HashMap<(i32, i64), Fate> {
        let decoder = Decoder::new(schemas).expect("the registry takes complete schemas only");
        let mut fates = HashMap::new();
        for record in records {
            let fate = if is_control(record) {
                let rules = &mut self.partitions.entry(record.partition).or_default().rules;
                *rules = Rules::of(&record.payload).unwrap_or_else(|| rules.clone());
                Fate::Repeated
            } else {
                let partition = self.partitions.entry(record.partition).or_default();
                partition.read(record, &decoder, |payment| entered(record, payment))
            };
            fates.insert((record.partition, record.offset), fate);
        }
        fates
    }

    /// Forgets what cannot matter any more, where nothing that was read so far is published again from now on: payments
    /// that are too old for anything in time to be compared with them, but for the newest whereabouts.
    pub fn forget(&mut self) {
        for partition in self.partitions.values_mut() {
            partition.forget();
        }
    }
}

/// Whether a record is no payment but a rule set.
fn is_control(record: &Record) -> bool {
    record.headers.contains_key(headers::CONTROL)
}

impl Partition {
    fn read(
        &mut self,
        record: &Record,
        decoder: &Decoder<'_, PaymentRecord>,
        mut entered: impl FnMut(&PaymentRecord),
    ) -> Fate {
        let stored_at = record.stored_at_ms * 1_000;
        let Ok(payment) = decoder.decode(record) else {
            return Fate::Dead("DESERIALIZATION_ERROR");
        };
        if validate::payment(payment.clone(), stored_at).is_err() {
            return Fate::Dead("VALIDATION_ERROR");
        }
        let id = (hash(&payment.tenant), payment.event_id.uuid().as_u128());
        let known = Known::of(&payment);
        let time = payment.occurred_at;
        let oldest = self.oldest();
        let late = time < oldest;
        if !late
            && let Some(before) = self.remembered.get(&id)
            && before.time >= oldest
        {
            let same = before.content == known.content && before.merchant == known.merchant;
            return if same { Fate::Repeated } else { Fate::Dead("CONFLICT") };
        }
        let (rules, late) = if late {
            (judge_late(&payment, &self.rules), true)
        } else {
            self.remembered.insert(id, known);
            self.clock = self.clock.max(Some(time.min(stored_at)));
            let account = format!("{}/{}", payment.tenant, payment.account_id);
            let earlier = self.accounts.entry(account).or_default();
            let rules = judge(&payment, earlier, &self.rules);
            entered(&payment);
            earlier.push(Seen {
                time,
                at: Whereabouts::of(&payment),
            });
            (rules, false)
        };
        match self.decided.get(&id) {
            Some(before) if before.content == known.content => return Fate::Repeated,
            Some(_) => return Fate::Dead("CONFLICT"),
            None => self.decided.insert(id, known),
        };
        decided(rules, late, &self.rules.version)
    }

    /// What happened before is late.
    fn oldest(&self) -> i64 {
        self.clock.map_or(i64::MIN, |clock| clock.saturating_sub(LATENESS_US))
    }

    fn forget(&mut self) {
        let oldest = self.oldest();
        self.decided = HashMap::new();
        self.remembered.retain(|_id, known| known.time >= oldest);
        // The oldest that may still come in time looks a minute back.
        let counted = oldest.saturating_sub(MINUTE_US);
        for earlier in self.accounts.values_mut() {
            let named = newest(earlier, Whereabouts::is_named).map(|(time, _)| time);
            let located = newest(earlier, |at| at.point.is_some()).map(|(time, _)| time);
            earlier.retain(|seen| seen.time >= counted || [named, located].contains(&Some(seen.time)));
        }
        self.accounts.retain(|_account, earlier| !earlier.is_empty());
    }
}

fn judge_late(payment: &PaymentRecord, in_force: &Rules) -> Vec<&'static str> {
    let mut rules = Vec::new();
    if payment.amount.ten_thousandths() > in_force.large_units * TEN_THOUSANDTHS {
        rules.push("LARGE_AMOUNT");
    }
    rules.push("LATE_EVENT");
    rules
}

fn judge(payment: &PaymentRecord, earlier: &[Seen], in_force: &Rules) -> Vec<&'static str> {
    let mut rules = Vec::new();
    let time = payment.occurred_at;
    if payment.amount.ten_thousandths() > in_force.large_units * TEN_THOUSANDTHS {
        rules.push("LARGE_AMOUNT");
    }
    let is_recent = |seen: &&Seen| seen.time > time - MINUTE_US && seen.time <= time;
    if 1 + earlier.iter().filter(is_recent).count() > in_force.frequent {
        rules.push("HIGH_FREQUENCY");
    }
    if moved(payment, earlier) || too_fast(payment, earlier) {
        rules.push("IMPOSSIBLE_TRAVEL");
    }
    rules
}

/// Of equally new positions the one that came last counts, which is what `max_by_key` gives.
fn newest(earlier: &[Seen], has: impl Fn(&Whereabouts) -> bool) -> Option<(i64, &Whereabouts)> {
    let known = earlier.iter().filter_map(|seen| Some((seen.time, seen.at.as_deref()?)));
    known.filter(|(_, at)| has(at)).max_by_key(|(time, _)| *time)
}

fn moved(payment: &PaymentRecord, earlier: &[Seen]) -> bool {
    let Some((then, before)) = newest(earlier, Whereabouts::is_named) else {
        return false;
    };
    let differ = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
    (payment.occurred_at - then).abs() <= MINUTE_US
        && (differ(&payment.country, &before.country) || differ(&payment.place, &before.place))
}

fn too_fast(payment: &PaymentRecord, earlier: &[Seen]) -> bool {
    let Some((then, before)) = newest(earlier, |at| at.point.is_some()) else {
        return false;
    };
    let (Some(here), Some(there)) = (payment.latitude.zip(payment.longitude), before.point) else {
        return false;
    };
    let elapsed_us = (payment.occurred_at - then).abs().max(SECOND_US);
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

fn decided(rules: Vec<&'static str>, late: bool, rule_set: &Arc<str>) -> Fate {
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
        rule_set: Arc::clone(rule_set),
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
            traceparent: None,
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

    fn schemas() -> Schemas {
        Schemas::one::<PaymentRecord>(1)
    }

    fn fates(records: &[Record]) -> Vec<Fate> {
        let fates = replay(records, &schemas());
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
            payment.amount = Amount::from_ten_thousandths(LARGE_UNITS * TEN_THOUSANDTHS + 100);
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
    fn a_rule_set_is_in_force_behind_its_record() {
        let mut applied = record(1, 9, 0, |_| {});
        applied.payload = rule_set("strict-1", 11, 1).into_bytes();
        applied.headers = Arc::new([(headers::CONTROL.to_owned(), headers::RULE_SET.into())].into());
        let found = fates(&[record(0, 1, 0, |_| {}), applied, record(2, 2, 1, |_| {})]);
        assert!(rules(&found[0]).is_empty());
        assert_eq!(found[1], Fate::Repeated);
        assert_eq!(rules(&found[2]), ["LARGE_AMOUNT", "HIGH_FREQUENCY"]);
        assert!(matches!(&found[2], Fate::Decided { rule_set, .. } if &**rule_set == "strict-1"));
    }

    #[test]
    fn what_is_forgotten_does_not_matter() {
        let at = |place: &'static str| move |payment: &mut PaymentRecord| payment.place = Some(place.to_owned());
        let mut records = vec![record(0, 1, 0, at("Paris")), record(1, 2, 1, |_| {})];
        records.extend((2..6).map(|n| record(n, n as u128 + 1, 700 + n, |_| {})));
        let more = [
            record(6, 7, 707, at("Tokyo")),
            record(7, 8, 708, at("Paris")),
            record(8, 7, 707, at("Tokyo")),
        ];
        let whole: Vec<Record> = records.iter().chain(&more).cloned().collect();
        let mut oracle = Oracle::default();
        let mut bit_by_bit = oracle.read(&records, &schemas());
        oracle.forget();
        assert_eq!(oracle.partitions[&0].accounts["acme/a"].len(), 5);
        bit_by_bit.extend(oracle.read(&more, &schemas()));
        assert_eq!(bit_by_bit, replay(&whole, &schemas()));
        assert_eq!(bit_by_bit[&(0, 8)], Fate::Repeated);
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
