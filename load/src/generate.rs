//! Realistic payments from a seed: who pays whom, where, how much, and now and then a fraud that a rule should find.
//!
//! Comes before everything that publishes. The same seed gives the same sequence; only the start time and the salt of
//! the event ids are the caller's. Accounts and merchants follow Zipf's law; amounts are log-normal by merchant
//! category. Without an injected fraud no rule fires: an account waits before it pays again, and stays at home.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fastrand::Rng;
use prost_types::Timestamp;
use sluice_proto::money::{Amount, TEN_THOUSANDTHS};
use sluice_proto::pb;
use sluice_proto::pb::PaymentMethod;
use uuid::Uuid;

use crate::world::{CATEGORIES, CITIES, Category, City, Currency};

const MICROS_PER_S: i64 = 1_000_000;
const ACCOUNT_EXPONENT: f64 = 0.8;
const MERCHANT_EXPONENT: f64 = 1.05;
const MERCHANTS: u32 = 5_000;
/// Most merchants and accounts that a caller may ask for.
pub(crate) const MAX_POPULATION: u32 = 10_000_000;
/// Accounts for each payment a second, at least: so many that few of them pay twice in a minute.
const ACCOUNTS_PER_RATE: f64 = 200.0;
const MIN_ACCOUNTS: u32 = 20_000;
const MAX_ACCOUNTS: u32 = MAX_POPULATION;
/// An honest account waits so long before it pays again: at most 4 payments in a minute.
const PAUSE_MICROS: i64 = 15 * MICROS_PER_S;
/// A fraud begins with an account that has been idle for the rules' minute besides its pause.
const IDLE_MICROS: i64 = 60 * MICROS_PER_S;
/// Before every payment, with room to add to it.
const NEVER: i64 = i64::MIN / 2;
/// After a fraud an account is not used again for so long, lest its honest payments set rules off.
const REST_MICROS: i64 = 24 * 3_600 * MICROS_PER_S;
/// How often another account is drawn by its popularity, and then by chance: popular accounts are busy next to each other.
const DRAWS: u32 = 4;
/// After so many draws nearly every account is busy, and one more payment of a busy one it is.
const MAX_DRAWS: u32 = 64;
/// Shares of payments that begin a fraud. A burst is several payments.
const LARGE_SHARE: f64 = 0.010;
const BURST_SHARE: f64 = 0.002;
const TRAVEL_SHARE: f64 = 0.006;
/// The rule set's limits, in units of the currency and payments in a minute.
const LARGE_UNITS: f64 = 10_000.0;
const FREQUENT_PAYMENTS: u32 = 5;
/// No honest amount comes near the limit.
const MAX_USUAL_UNITS: f64 = 9_000.0;
const BURST_PAYMENTS: std::ops::RangeInclusive<u32> = 7..=10;
/// Time between the payments of a burst or a journey.
const FRAUD_GAP_MICROS: std::ops::Range<i64> = 100_000..900_000;
/// Degrees across a city.
const CITY_DEGREES: f64 = 0.1;

/// A fraud that was injected, named after the rule that should find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fraud {
    /// Over 10,000 units.
    LargeAmount,
    /// The sixth or a later payment of an account within a minute.
    HighFrequency,
    /// Far from the account's payment before.
    ImpossibleTravel,
}

impl Fraud {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::LargeAmount, Self::HighFrequency, Self::ImpossibleTravel];

    /// The id of the rule that should find it.
    pub const fn rule_id(self) -> &'static str {
        match self {
            Self::LargeAmount => "LARGE_AMOUNT",
            Self::HighFrequency => "HIGH_FREQUENCY",
            Self::ImpossibleTravel => "IMPOSSIBLE_TRAVEL",
        }
    }
}

/// A payment to publish.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The event's id.
    pub id: Uuid,
    /// The event.
    pub event: pb::Event,
    /// The fraud that a rule should find in it.
    pub injected: Option<Fraud>,
}

/// What the sequence depends on.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything but times and event ids follows from it.
    pub seed: u64,
    /// Makes the event ids of different runs differ.
    pub salt: u64,
    /// When the first payment happens, in microseconds since the Unix epoch.
    pub start_micros: i64,
    /// Payments a second of event time.
    pub rate_per_s: f64,
}

/// Who pays whom, and how often it is a fraud.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Population {
    /// Accounts; with `None` as many as the rate asks for.
    pub accounts: Option<u32>,
    /// Merchants.
    pub merchants: u32,
    /// The exponent of Zipf's law for accounts: 0 is even.
    pub account_exponent: f64,
    /// The same for merchants.
    pub merchant_exponent: f64,
    /// Multiplies the shares of injected frauds; 0 injects none.
    pub fraud_factor: f64,
}

impl Default for Population {
    fn default() -> Self {
        Self {
            accounts: None,
            merchants: MERCHANTS,
            account_exponent: ACCOUNT_EXPONENT,
            merchant_exponent: MERCHANT_EXPONENT,
            fraud_factor: 1.0,
        }
    }
}

/// A payment of a fraud that began earlier.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at_micros: i64,
    account: u32,
    /// Payments of the burst still to come, this one included; 0 for a journey.
    left: u32,
    /// Payments of the burst so far.
    done: u32,
}

/// The sequence of payments; it never ends.
#[derive(Debug)]
pub struct Generator {
    options: Options,
    fraud_factor: f64,
    random: Rng,
    ids: Rng,
    count: u64,
    accounts: Zipf,
    merchants: Zipf,
    /// When each account may pay next.
    free_at: Vec<i64>,
    due: BinaryHeap<Reverse<Due>>,
}

impl Generator {
    /// A sequence from its beginning.
    pub fn new(options: Options) -> Self {
        Self::with_population(options, Population::default())
    }

    /// A sequence with a population of its own.
    pub fn with_population(options: Options, population: Population) -> Self {
        let usual = ((options.rate_per_s * ACCOUNTS_PER_RATE) as u32).clamp(MIN_ACCOUNTS, MAX_ACCOUNTS);
        let accounts = population.accounts.unwrap_or(usual).clamp(1, MAX_POPULATION);
        Self {
            options,
            fraud_factor: population.fraud_factor,
            random: Rng::with_seed(options.seed),
            ids: Rng::with_seed(options.seed ^ options.salt),
            count: 0,
            accounts: Zipf::new(accounts, population.account_exponent),
            merchants: Zipf::new(
                population.merchants.clamp(1, MAX_POPULATION),
                population.merchant_exponent,
            ),
            free_at: vec![NEVER; accounts as usize],
            due: BinaryHeap::new(),
        }
    }

    fn generate(&mut self) -> Generated {
        // Relative to the start, so that the start changes no choice.
        let at_micros = (self.count as f64 / self.options.rate_per_s * 1e6) as i64;
        self.count += 1;
        self.generate_at(at_micros)
    }

    /// The next payment, at a moment that the caller chooses: microseconds after the start, never going back.
    pub fn generate_at(&mut self, at_micros: i64) -> Generated {
        if self.due.peek().is_some_and(|Reverse(due)| due.at_micros <= at_micros)
            && let Some(Reverse(due)) = self.due.pop()
        {
            return self.continue_fraud(due, at_micros);
        }
        let dice = self.random.f64() / self.fraud_factor;
        if dice < BURST_SHARE + TRAVEL_SHARE {
            let left = if dice < BURST_SHARE {
                self.random.u32(BURST_PAYMENTS) - 1
            } else {
                0
            };
            return self.begin_fraud(left, at_micros);
        }
        let account = self.account(at_micros, 0);
        self.free_at[account as usize] = at_micros + PAUSE_MICROS;
        let large = dice < BURST_SHARE + TRAVEL_SHARE + LARGE_SHARE;
        let units = large.then(|| LARGE_UNITS * (1.001 + 4.0 * self.random.f64().powi(3)));
        self.payment(account, at_micros, units, large.then_some(Fraud::LargeAmount))
    }

    /// The first payment of a burst or a journey, at home.
    fn begin_fraud(&mut self, left: u32, at_micros: i64) -> Generated {
        let account = self.account(at_micros, IDLE_MICROS);
        self.free_at[account as usize] = at_micros + REST_MICROS;
        let next = Due {
            at_micros: at_micros + self.random.i64(FRAUD_GAP_MICROS),
            account,
            left,
            done: 1,
        };
        self.due.push(Reverse(next));
        let mut generated = self.payment(account, at_micros, None, None);
        self.place(&mut generated, account, self.home(account));
        generated
    }

    fn continue_fraud(&mut self, due: Due, at_micros: i64) -> Generated {
        if due.left == 0 {
            let home = self.home(due.account);
            let step = self.random.usize(1..CITIES.len());
            let index = CITIES.iter().position(|city| city.name == home.name).unwrap_or(0);
            let away = &CITIES[(index + step) % CITIES.len()];
            let mut generated = self.payment(due.account, at_micros, None, Some(Fraud::ImpossibleTravel));
            self.place(&mut generated, due.account, away);
            return generated;
        }
        if due.left > 1 {
            let next = Due {
                at_micros: at_micros + self.random.i64(FRAUD_GAP_MICROS),
                account: due.account,
                left: due.left - 1,
                done: due.done + 1,
            };
            self.due.push(Reverse(next));
        }
        let frequent = (due.done >= FREQUENT_PAYMENTS).then_some(Fraud::HighFrequency);
        self.payment(due.account, at_micros, None, frequent)
    }

    /// An account that has not paid a moment ago, popular ones first.
    fn account(&mut self, at_micros: i64, idle_micros: i64) -> u32 {
        let count = self.free_at.len() as u32;
        let mut account = self.accounts.draw(&mut self.random);
        for draw in 1..MAX_DRAWS {
            if self.free_at[account as usize] + idle_micros <= at_micros {
                break;
            }
            account = if draw < DRAWS {
                self.accounts.draw(&mut self.random)
            } else {
                self.random.u32(..count)
            };
        }
        account
    }

    fn home(&self, account: u32) -> &'static City {
        // Large cities first: the square favours the beginning of the list.
        let share = f64::from(hash(self.options.seed, account) as u32) / f64::from(u32::MAX);
        let index = (share * share * CITIES.len() as f64) as usize;
        &CITIES[index.min(CITIES.len() - 1)]
    }

    fn payment(&mut self, account: u32, at_micros: i64, units: Option<f64>, injected: Option<Fraud>) -> Generated {
        let home = self.home(account);
        let merchant = self.merchants.draw(&mut self.random);
        let category = category(hash(self.options.seed, merchant.wrapping_add(1 << 31)));
        let units = units.unwrap_or_else(|| self.usual_units(category, home.currency));
        let device = u64::from(self.random.u8(..10) == 0) ^ hash(self.options.seed, account);
        let occurred_at = self.options.start_micros + at_micros;
        let id = self.id(occurred_at);
        let mut generated = Generated {
            id,
            event: pb::Event {
                event_id: id.to_string(),
                occurred_at: Some(timestamp(occurred_at)),
                payload: Some(pb::event::Payload::Payment(pb::PaymentEvent {
                    account_id: format!("acct-{account:07}"),
                    amount: Some(amount(units, home.currency).to_money(home.currency.code)),
                    merchant_id: format!("merch-{merchant:05}"),
                    merchant_category: category.code.to_owned(),
                    terminal_id: format!("term-{merchant:05}-{}", self.random.u8(1..=4)),
                    method: category.method.into(),
                    device_id: format!("dev-{:012x}", device & 0xffff_ffff_ffff),
                    location: None,
                })),
                ..pb::Event::default()
            },
            injected,
        };
        match category.method {
            PaymentMethod::CardPresent | PaymentMethod::Wallet => self.place(&mut generated, account, home),
            PaymentMethod::CardNotPresent | PaymentMethod::BankTransfer | PaymentMethod::Unspecified => {
                let country_code = home.country.to_owned();
                set_location(
                    &mut generated,
                    pb::Location {
                        country_code,
                        ..pb::Location::default()
                    },
                );
            }
        }
        generated
    }

    /// Puts a payment in the account's part of a city. Always in the same spot: a burst takes no time, so that the
    /// shortest walk between two of its payments would look like a flight.
    fn place(&self, generated: &mut Generated, account: u32, city: &City) {
        let spot = hash(self.options.seed, !account);
        let near = |degrees: f64, bits: u64| {
            let share = (bits & 0xffff) as f64 / 65_536.0 - 0.5;
            Some(((degrees + CITY_DEGREES * share) * 1e5).round() / 1e5)
        };
        let location = pb::Location {
            country_code: city.country.to_owned(),
            place: city.name.to_owned(),
            latitude: near(city.latitude, spot),
            longitude: near(city.longitude, spot >> 16),
        };
        set_location(generated, location);
    }

    fn usual_units(&mut self, category: &Category, currency: &Currency) -> f64 {
        let units = category.median * (category.sigma * normal(&mut self.random)).exp() * currency.price_level;
        units.min(MAX_USUAL_UNITS)
    }

    fn id(&mut self, at_micros: i64) -> Uuid {
        event_id(at_micros, &mut self.ids)
    }
}

impl Iterator for Generator {
    type Item = Generated;

    fn next(&mut self) -> Option<Generated> {
        Some(self.generate())
    }
}

/// Numbers below `count` with probabilities that fall with a power of the rank.
#[derive(Debug)]
struct Zipf {
    count: u32,
    exponent: f64,
}

impl Zipf {
    fn new(count: u32, exponent: f64) -> Self {
        Self { count, exponent }
    }

    /// By the inverse of the continuous distribution, which is close enough and needs no table.
    fn draw(&self, random: &mut Rng) -> u32 {
        // At 1 the integral has another form; next to it the same one will do.
        let power = match 1.0 - self.exponent {
            power if power.abs() < 1e-6 => 1e-6,
            power => power,
        };
        let top = f64::from(self.count + 1).powf(power);
        let rank = (1.0 + random.f64() * (top - 1.0)).powf(1.0 / power);
        (rank as u32 - 1).min(self.count - 1)
    }
}

/// A UUID of version 7.
pub(crate) fn event_id(at_micros: i64, random: &mut Rng) -> Uuid {
    let mut bytes = [0; 10];
    random.fill(&mut bytes);
    uuid::Builder::from_unix_timestamp_millis((at_micros / 1_000) as u64, &bytes).into_uuid()
}

/// Microseconds since the Unix epoch as the wire's time.
pub(crate) fn timestamp(micros: i64) -> Timestamp {
    Timestamp {
        seconds: micros.div_euclid(MICROS_PER_S),
        nanos: (micros.rem_euclid(MICROS_PER_S) * 1_000) as i32,
    }
}

fn set_location(generated: &mut Generated, location: pb::Location) {
    if let Some(pb::event::Payload::Payment(payment)) = &mut generated.event.payload {
        payment.location = Some(location);
    }
}

/// Rounds to the currency's minor unit, of which it is at least one.
fn amount(units: f64, currency: &Currency) -> Amount {
    let minor = TEN_THOUSANDTHS / 10_i64.pow(currency.digits);
    let minors = (units * TEN_THOUSANDTHS as f64 / minor as f64).round() as i64;
    Amount::from_ten_thousandths(minors.max(1) * minor)
}

fn category(hash: u64) -> &'static Category {
    let total: u32 = CATEGORIES.iter().map(|category| category.weight).sum();
    let mut rest = (hash % u64::from(total)) as u32;
    for category in &CATEGORIES {
        if rest < category.weight {
            return category;
        }
        rest -= category.weight;
    }
    &CATEGORIES[0]
}

/// What is always so of one account or merchant (SplitMix64).
fn hash(seed: u64, index: u32) -> u64 {
    let mut z = seed.wrapping_add(u64::from(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A standard normal deviate (Box and Muller).
fn normal(random: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.f64()).cos()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use sluice_proto::validate;

    use super::*;

    const START: i64 = 1_790_000_000 * MICROS_PER_S;

    fn generator(seed: u64, salt: u64, start_micros: i64) -> Generator {
        Generator::new(Options {
            seed,
            salt,
            start_micros,
            rate_per_s: 1_000.0,
        })
    }

    fn payment(generated: &Generated) -> pb::PaymentEvent {
        match &generated.event.payload {
            Some(pb::event::Payload::Payment(payment)) => payment.clone(),
            other => panic!("not a payment: {other:?}"),
        }
    }

    #[test]
    fn a_seed_gives_the_same_payments_with_other_ids_and_times() {
        let payments = |seed, salt, start| -> Vec<_> {
            generator(seed, salt, start)
                .take(5_000)
                .map(|generated| (payment(&generated), generated.injected))
                .collect()
        };
        assert_eq!(payments(7, 1, START), payments(7, 2, START + 1));
        assert_ne!(payments(7, 1, START), payments(8, 1, START));
        let ids = |salt| {
            generator(7, salt, START)
                .take(100)
                .map(|generated| generated.id)
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(1), ids(1));
        assert_ne!(ids(1), ids(2));
        assert!(ids(1).iter().all(|id| id.get_version_num() == 7));
    }

    #[test]
    fn every_payment_passes_the_contract() {
        for (index, generated) in generator(1, 1, START).take(50_000).enumerate() {
            let now = START + index as i64 * 1_000;
            validate::event(generated.event, "tenant", now).unwrap();
        }
    }

    #[test]
    fn a_few_per_cent_are_fraud_of_each_kind() {
        let mut counts: HashMap<Fraud, usize> = HashMap::new();
        for generated in generator(3, 1, START).take(10_000) {
            if let Some(fraud) = generated.injected {
                *counts.entry(fraud).or_default() += 1;
            }
        }
        for fraud in Fraud::ALL {
            assert!((30..300).contains(&counts[&fraud]), "{fraud:?}: {}", counts[&fraud]);
        }
    }

    /// The rules in a few lines, as the contract states them.
    #[test]
    fn rules_find_what_was_injected_and_nothing_else() {
        let mut last: HashMap<String, (i64, pb::Location)> = HashMap::new();
        let mut times: HashMap<String, Vec<i64>> = HashMap::new();
        for generated in generator(5, 1, START).take(100_000) {
            let at = generated.event.occurred_at.unwrap();
            let at = at.seconds * MICROS_PER_S + i64::from(at.nanos) / 1_000;
            let payment = payment(&generated);
            let times = times.entry(payment.account_id.clone()).or_default();
            times.retain(|time| at - time <= 60 * MICROS_PER_S);
            times.push(at);
            let mut found = Vec::new();
            if payment.amount.unwrap().units >= 10_000 {
                found.push(Fraud::LargeAmount);
            }
            if times.len() > 5 {
                found.push(Fraud::HighFrequency);
            }
            let location = payment.location.unwrap();
            if location.latitude.is_some() {
                if let Some((then, before)) = last.get(&payment.account_id) {
                    let km = km(before, &location);
                    let hours = (at - then) as f64 / 3.6e9;
                    if km > 1_000.0 * hours || (before.place != location.place && at - then < 60 * MICROS_PER_S) {
                        found.push(Fraud::ImpossibleTravel);
                    }
                }
                last.insert(payment.account_id, (at, location));
            }
            assert_eq!(
                found,
                Vec::from_iter(generated.injected),
                "{}",
                generated.event.event_id
            );
        }
    }

    fn km(a: &pb::Location, b: &pb::Location) -> f64 {
        let place = |l: &pb::Location| (l.latitude.unwrap().to_radians(), l.longitude.unwrap().to_radians());
        let ((la, oa), (lb, ob)) = (place(a), place(b));
        let h = ((lb - la) / 2.0).sin().powi(2) + la.cos() * lb.cos() * ((ob - oa) / 2.0).sin().powi(2);
        2.0 * 6_371.0 * h.sqrt().asin()
    }
}
