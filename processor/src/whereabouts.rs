//! Owns where an account was last: the latest place by name, the latest point by coordinates, and how a payment's own
//! location compares with them.
//!
//! Comes below [`crate::account`]; what counts as impossible is decided in [`crate::rules`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluice_proto::event::PaymentRecord;

/// Mean radius of the Earth, in kilometres.
const EARTH_RADIUS_KM: f64 = 6_371.008_8;
/// The farthest that two points on Earth can be apart, in kilometres.
#[cfg(test)]
const FARTHEST_KM: f64 = std::f64::consts::PI * EARTH_RADIUS_KM;

/// A place by name: either part may be unknown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Place {
    country: Option<[u8; 2]>,
    name: Option<Arc<str>>,
}

/// Coordinates in degrees.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    latitude: f64,
    longitude: f64,
}

/// The latest known position of an account, with the times at which it was there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Whereabouts {
    place: Option<(i64, Place)>,
    point: Option<(i64, Point)>,
}

/// What [`Whereabouts::revert`] needs to restore one [`Whereabouts::visit`].
#[derive(Debug, Default)]
pub(crate) struct Visit {
    place: PlaceChange,
    point: Option<Option<(i64, Point)>>,
}

#[derive(Debug, Default)]
enum PlaceChange {
    #[default]
    None,
    /// The same place at an earlier time, which is kept apart because it moves no names.
    Time(i64),
    Place(Option<(i64, Place)>),
}

/// A change of named place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Move {
    /// Where the account was.
    pub(crate) from: String,
    /// Where the payment is.
    pub(crate) to: String,
    /// Time between the two, in microseconds, whichever came first.
    pub(crate) elapsed_us: i64,
}

/// A change of coordinates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Trip {
    /// Great-circle distance, in kilometres.
    pub(crate) distance_km: f64,
    /// Time between the two, in microseconds, whichever came first.
    pub(crate) elapsed_us: i64,
}

impl Whereabouts {
    /// How the payment's named place differs from the latest one, when both are known and at most `within_us` apart.
    pub(crate) fn moved(&self, payment: &PaymentRecord, within_us: i64) -> Option<Move> {
        let (at, latest) = self.place.as_ref()?;
        let elapsed_us = elapsed(*at, payment.occurred_at);
        if elapsed_us > within_us || !latest.differs_from(payment) {
            return None;
        }
        let name = |name: Option<&str>, country: Option<&str>| match (name, country) {
            (Some(name), Some(country)) => format!("{name}, {country}"),
            (Some(one), None) | (None, Some(one)) => one.to_owned(),
            (None, None) => String::new(),
        };
        let country = latest.country.as_ref().and_then(|code| std::str::from_utf8(code).ok());
        Some(Move {
            from: name(latest.name.as_deref(), country),
            to: name(payment.place.as_deref(), payment.country.as_deref()),
            elapsed_us,
        })
    }

    /// How far the payment's coordinates are from the latest ones, when both are known and at most `within_us` apart.
    pub(crate) fn travelled(&self, payment: &PaymentRecord, within_us: i64) -> Option<Trip> {
        let (at, latest) = self.point?;
        let here = point(payment)?;
        let elapsed_us = elapsed(at, payment.occurred_at);
        (elapsed_us <= within_us).then(|| Trip {
            distance_km: latest.distance_km(here),
            elapsed_us,
        })
    }

    /// Takes the payment's location over as the latest, unless a later one is known.
    pub(crate) fn visit(&mut self, payment: &PaymentRecord) -> Visit {
        let time = payment.occurred_at;
        let place = if payment.place.is_none() && payment.country.is_none() {
            PlaceChange::None
        } else {
            match &mut self.place {
                Some((at, _)) if *at > time => PlaceChange::None,
                Some((at, latest)) if latest.is_same(payment) => PlaceChange::Time(std::mem::replace(at, time)),
                latest => PlaceChange::Place(latest.replace((time, Place::of(payment)))),
            }
        };
        let newer = self.point.is_none_or(|(at, _)| at <= time);
        let point = point(payment)
            .filter(|_| newer)
            .map(|point| self.point.replace((time, point)));
        Visit { place, point }
    }

    /// Takes a visit back. Visits are taken back in the reverse order.
    pub(crate) fn revert(&mut self, visit: Visit) {
        match visit.place {
            PlaceChange::None => {}
            PlaceChange::Time(before) => {
                if let Some((at, _)) = &mut self.place {
                    *at = before;
                }
            }
            PlaceChange::Place(before) => self.place = before,
        }
        if let Some(before) = visit.point {
            self.point = before;
        }
    }
}

impl Place {
    fn of(payment: &PaymentRecord) -> Self {
        Self {
            country: country(payment),
            name: payment.place.as_deref().map(Arc::from),
        }
    }

    fn is_same(&self, payment: &PaymentRecord) -> bool {
        self.country == country(payment) && self.name.as_deref() == payment.place.as_deref()
    }

    /// Two places differ when their countries or their names are known and differ; what is not known cannot differ.
    fn differs_from(&self, payment: &PaymentRecord) -> bool {
        let countries = self.country.zip(country(payment)).is_some_and(|(a, b)| a != b);
        let names = self.name.as_deref().zip(payment.place.as_deref());
        countries || names.is_some_and(|(a, b)| a != b)
    }
}

impl Point {
    fn distance_km(self, other: Self) -> f64 {
        let (from, to) = (self.latitude.to_radians(), other.latitude.to_radians());
        let across = (other.longitude - self.longitude).to_radians() / 2.0;
        let along = (to - from) / 2.0;
        let chord = along.sin().powi(2) + from.cos() * to.cos() * across.sin().powi(2);
        2.0 * EARTH_RADIUS_KM * chord.sqrt().min(1.0).asin()
    }
}

fn point(payment: &PaymentRecord) -> Option<Point> {
    let (latitude, longitude) = payment.latitude.zip(payment.longitude)?;
    Some(Point { latitude, longitude })
}

/// Checked payments have countries of two letters.
fn country(payment: &PaymentRecord) -> Option<[u8; 2]> {
    payment.country.as_ref()?.as_bytes().try_into().ok()
}

fn elapsed(a: i64, b: i64) -> i64 {
    a.saturating_sub(b).saturating_abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::payment;

    fn at(time: i64, place: Option<&str>, country: Option<&str>, point: Option<(f64, f64)>) -> PaymentRecord {
        PaymentRecord {
            occurred_at: time,
            place: place.map(str::to_owned),
            country: country.map(str::to_owned),
            latitude: point.map(|point| point.0),
            longitude: point.map(|point| point.1),
            ..payment()
        }
    }

    #[test]
    fn names_differ_only_where_both_are_known() {
        let mut account = Whereabouts::default();
        account.visit(&at(100, Some("Paris"), Some("FR"), None));
        let moved = |payment: &PaymentRecord| account.moved(payment, 60).map(|it| (it.from, it.to, it.elapsed_us));
        let tokyo = at(130, Some("Tokyo"), Some("JP"), None);
        assert_eq!(
            moved(&tokyo),
            Some(("Paris, FR".to_owned(), "Tokyo, JP".to_owned(), 30))
        );
        assert_eq!(moved(&at(130, Some("Paris"), None, None)), None);
        assert_eq!(moved(&at(130, None, Some("FR"), None)), None);
        assert!(moved(&at(130, None, Some("JP"), None)).is_some());
        assert!(moved(&at(70, Some("Lyon"), Some("FR"), None)).is_some(), "out of order");
        assert_eq!(moved(&at(161, Some("Tokyo"), Some("JP"), None)), None, "too long ago");
    }

    #[test]
    fn the_distance_is_that_of_the_great_circle() {
        let mut account = Whereabouts::default();
        account.visit(&at(0, None, None, Some((48.8566, 2.3522))));
        let trip = account
            .travelled(&at(5, None, None, Some((52.52, 13.405))), 5)
            .expect("two points");
        assert!((trip.distance_km - 877.5).abs() < 1.0, "{}", trip.distance_km);
        let opposite = account.travelled(&at(5, None, None, Some((-48.8566, -177.6478))), 5);
        assert!((opposite.expect("two points").distance_km - FARTHEST_KM).abs() < 0.001);
        assert_eq!(account.travelled(&at(6, None, None, Some((52.52, 13.405))), 5), None);
    }

    #[test]
    fn an_older_payment_does_not_move_the_account() {
        let mut account = Whereabouts::default();
        account.visit(&at(100, Some("Paris"), None, Some((1.0, 1.0))));
        let before = account.clone();
        account.visit(&at(99, Some("Tokyo"), None, Some((2.0, 2.0))));
        assert_eq!(account, before);
    }

    #[test]
    fn visits_can_be_taken_back() {
        let mut account = Whereabouts::default();
        let mut states = Vec::new();
        let mut visits = Vec::new();
        for payment in [
            at(10, None, None, None),
            at(20, Some("Paris"), Some("FR"), None),
            at(30, Some("Paris"), Some("FR"), Some((1.0, 2.0))),
            at(25, Some("Rome"), Some("IT"), Some((3.0, 4.0))),
            at(40, Some("Rome"), None, Some((3.0, 4.0))),
        ] {
            states.push(account.clone());
            visits.push(account.visit(&payment));
        }
        for (visit, before) in visits.into_iter().rev().zip(states.into_iter().rev()) {
            account.revert(visit);
            assert_eq!(account, before);
        }
    }
}
