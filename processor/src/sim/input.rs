//! Owns what is published in a trial, and what has to become of it: a naive account of which payment is new, late or a
//! repetition, and of how many payments its account made before it.
//!
//! It shares the contract with the processor, and no code that decides: [`super::checker`] compares.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use fastrand::Rng;
use rdkafka::message::{Header, OwnedHeaders};
use sluice_proto::avro::{EncodeError, Encoder};
use sluice_proto::decision::Decision;
use sluice_proto::event::{EventId, PaymentRecord};
use sluice_proto::headers;
use sluice_proto::money::Amount;
use uuid::Uuid;

use super::faults::CALM;
use super::kafka::Stored;
use crate::rules::RuleSet;

/// Ids of the schemas.
pub(super) const PAYMENT_SCHEMA: i32 = 1;
pub(super) const DECISION_SCHEMA: i32 = 2;
/// How far behind a payment is late.
pub(super) const LATENESS_US: i64 = 120 * SECOND;
const SECOND: i64 = 1_000_000;
/// 2026-01-01, in microseconds since the Unix epoch.
pub(super) const T0: i64 = 1_767_225_600_000_000;
/// Rule sets that take turns.
const RULE_SETS: u8 = 3;
const MOST_RECORDS: usize = 24;

/// What has to become of a record.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Due {
    Decision(Decided),
    Letter(&'static str),
    Nothing,
}

/// A decision, as far as the input says it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decided {
    pub(super) event_id: Uuid,
    pub(super) occurred_at: i64,
    pub(super) late: bool,
    pub(super) rule_set: u8,
    pub(super) score: f64,
}

/// One record, when it is appended, and what has to become of it.
pub(super) struct Published {
    pub(super) at: u64,
    pub(super) record: Rc<Stored>,
    pub(super) due: Due,
}

thread_local! {
    static PAYMENTS: Encoder<PaymentRecord> = Encoder::new(PAYMENT_SCHEMA).expect("the schema of payments is one");
    static DECISIONS: RefCell<Option<Rc<Encoder<Decision>>>> = const { RefCell::new(None) };
    static RULES: RefCell<BTreeMap<Vec<u8>, Arc<RuleSet>>> = const { RefCell::new(BTreeMap::new()) };
}

/// The encoder of decisions, made once for each thread.
pub(super) fn encoder(schema: i32) -> Result<Rc<Encoder<Decision>>, EncodeError> {
    DECISIONS.with_borrow_mut(|made| match made {
        Some(encoder) => Ok(encoder.clone()),
        none => Ok(none.insert(Rc::new(Encoder::new(schema)?)).clone()),
    })
}

/// A rule set's document, read once for each thread.
pub(super) fn rules(document: &[u8]) -> Option<Arc<RuleSet>> {
    if let Some(known) = RULES.with_borrow(|rules| rules.get(document).cloned()) {
        return Some(known);
    }
    let read = Arc::new(RuleSet::parse(std::str::from_utf8(document).ok()?).ok()?);
    RULES.with_borrow_mut(|rules| rules.insert(document.to_vec(), read.clone()));
    Some(read)
}

/// The contribution of each rule of a rule set, with the payments within a minute that it takes.
const fn thresholds(rule_set: u8) -> [(usize, f64); 2] {
    [(2 + rule_set as usize, 0.3), (3 + rule_set as usize, 0.5)]
}

/// The document of a rule set, whose scores tell how many payments came before.
pub(super) fn document(rule_set: u8) -> String {
    let [(few, little), (many, much)] = thresholds(rule_set);
    format!(
        "version: r{rule_set}\n\
         outcomes: {{review: 0.4, decline: 0.6}}\n\
         late_event: {{contribution: 0.5}}\n\
         expressions:\n\
         - {{id: FEW, when: features.payments_1m >= {few}, contribution: {little}}}\n\
         - {{id: MANY, when: features.payments_1m >= {many}, contribution: {much}}}\n"
    )
}

fn score(rule_set: u8, payments: usize) -> f64 {
    let fired = thresholds(rule_set).into_iter().filter(|(least, _)| payments >= *least);
    1.0 - fired.map(|(_, contribution)| 1.0 - contribution).product::<f64>()
}

/// A payment as the account of a partition knows it.
#[derive(Clone)]
struct Paid {
    record: PaymentRecord,
    fresh: bool,
}

/// The account of one partition.
struct Account {
    newest: i64,
    rule_set: u8,
    paid: Vec<Paid>,
    /// Identities that were decided, with the time and the amount.
    decided: BTreeMap<Uuid, (i64, i64)>,
    clock: i64,
}

/// What is published to one partition.
pub(super) fn draw(rng: &mut Rng, part: i32) -> Vec<Published> {
    let mut account = Account {
        newest: i64::MIN,
        rule_set: 0,
        paid: Vec::new(),
        decided: BTreeMap::new(),
        clock: T0,
    };
    let mut times: Vec<u64> = (0..rng.usize(1..=MOST_RECORDS)).map(|_| rng.u64(0..CALM)).collect();
    if rng.bool() {
        // All at once, so that batches are full.
        times.iter_mut().for_each(|time| *time /= 10);
    }
    times.sort_unstable();
    let publish = |at| {
        let (record, due) = account.publish(rng, part);
        Published {
            at,
            record: Rc::new(record),
            due,
        }
    };
    times.into_iter().map(publish).collect()
}

impl Account {
    fn publish(&mut self, rng: &mut Rng, part: i32) -> (Stored, Due) {
        self.clock += rng.i64(1..20 * SECOND);
        let time_ms = self.clock / 1_000 + 1_000;
        let stored = |payload: Vec<u8>, headers| Stored {
            key: Some(b"sim/account".to_vec()),
            payload: Some(payload),
            headers,
            time_ms,
        };
        match rng.u8(0..100) {
            0..3 => return (stored(vec![0xff; 3], None), Due::Letter("DESERIALIZATION_ERROR")),
            3..6 => {
                self.rule_set = (self.rule_set + 1) % RULE_SETS;
                let control = OwnedHeaders::new_with_capacity(1).insert(Header {
                    key: headers::CONTROL,
                    value: Some(headers::RULE_SET),
                });
                return (
                    stored(document(self.rule_set).into_bytes(), Some(control)),
                    Due::Nothing,
                );
            }
            _ => {}
        }
        let record = self.payment(rng, part);
        let mut payload = Vec::new();
        PAYMENTS.with(|encoder| {
            encoder
                .encode(&record, &mut payload)
                .expect("a payment fits its schema")
        });
        let due = self.judge(record);
        (stored(payload, None), due)
    }

    fn payment(&self, rng: &mut Rng, part: i32) -> PaymentRecord {
        let mut record = PaymentRecord {
            event_id: EventId::new(Uuid::from_u128(rng.u128(1..))),
            tenant: "sim".to_owned(),
            account_id: format!("account-{part}-{}", rng.u8(0..2)),
            amount: Amount::from_ten_thousandths(rng.i64(1..10_000) * 100),
            currency: "EUR".to_owned(),
            occurred_at: self.clock - rng.i64(0..15 * SECOND),
            merchant_id: "merchant".to_owned(),
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
        let earlier = rng.choice(&self.paid).map(|paid| paid.record.clone());
        match (rng.u8(0..100), earlier) {
            (0..12, Some(earlier)) => record = earlier,
            (12..16, Some(earlier)) => {
                // The id of another payment.
                record.event_id = earlier.event_id;
                record.account_id = earlier.account_id;
            }
            (16..24, _) => record.occurred_at = self.clock - LATENESS_US - rng.i64(60 * SECOND..300 * SECOND),
            _ => {}
        }
        record
    }

    fn judge(&mut self, record: PaymentRecord) -> Due {
        let (id, time) = (record.event_id.uuid(), record.occurred_at);
        let oldest = self.newest.saturating_sub(LATENESS_US);
        let late = time < oldest;
        let content = (time, record.amount.ten_thousandths());
        if !late {
            let same = |paid: &&Paid| paid.fresh && paid.record.event_id.uuid() == id;
            let remembered = self.paid.iter().rev().find(same).map(|paid| &paid.record);
            if let Some(earlier) = remembered.filter(|earlier| earlier.occurred_at >= oldest) {
                let repeated = (earlier.occurred_at, earlier.amount.ten_thousandths()) == content;
                self.paid.push(Paid { record, fresh: false });
                return if repeated {
                    Due::Nothing
                } else {
                    Due::Letter("CONFLICT")
                };
            }
            self.newest = self.newest.max(time);
        }
        let account = record.account_id.clone();
        self.paid.push(Paid { record, fresh: !late });
        match self.decided.get(&id) {
            Some(decided) if *decided == content => return Due::Nothing,
            Some(_) => return Due::Letter("CONFLICT"),
            None => {}
        }
        self.decided.insert(id, content);
        let within = |paid: &&Paid| {
            let at = paid.record.occurred_at;
            paid.fresh && paid.record.account_id == account && at > time - 60 * SECOND && at <= time
        };
        let score = if late {
            0.5
        } else {
            score(self.rule_set, self.paid.iter().filter(within).count())
        };
        Due::Decision(Decided {
            event_id: id,
            occurred_at: time,
            late,
            rule_set: self.rule_set,
            score,
        })
    }
}
