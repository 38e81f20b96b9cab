//! IMPOSSIBLE_TRAVEL: the account was somewhere else too short a while ago, by the names of the places or by coordinates.

use super::{Rule, Seconds, document};
use crate::calendar::SECOND_US;
use crate::features::{Features, Move, Trip};

pub(super) const ID: &str = "IMPOSSIBLE_TRAVEL";
pub(super) const VERSION: &str = "1";

/// Two positions at the same instant are compared as if they were this far apart, in microseconds: clocks and positions
/// are not more exact, and no speed is infinite.
const SHORTEST_TRIP_US: i64 = 1_000_000;
const MICROS_PER_HOUR: f64 = 3_600_000_000.0;

#[derive(Debug)]
pub(super) struct ImpossibleTravel {
    pub(super) rule: Rule,
    max_kmh: f64,
    place_window_us: i64,
}

impl ImpossibleTravel {
    pub(super) fn new(given: &document::ImpossibleTravel) -> Self {
        Self {
            rule: Rule::new(ID, VERSION, given.contribution, given.shadow),
            max_kmh: f64::from(given.over_kmh),
            place_window_us: i64::from(given.place_window_s) * SECOND_US,
        }
    }

    /// How long a change of named place is remarkable, in microseconds.
    pub(super) fn place_window_us(&self) -> i64 {
        self.place_window_us
    }

    /// The facts, where it fires.
    pub(super) fn check(&self, features: &Features) -> Option<String> {
        let by_name = features
            .moved
            .as_ref()
            .filter(|moved| moved.elapsed_us <= self.place_window_us);
        let by_speed = features.travelled.filter(|trip| speed_kmh(trip) > self.max_kmh);
        match (by_name, by_speed) {
            (None, None) => None,
            (Some(moved), None) => Some(named(moved)),
            (None, Some(trip)) => Some(self.measured(&trip)),
            (Some(moved), Some(trip)) => Some(format!("{}; {}", named(moved), self.measured(&trip))),
        }
    }

    fn measured(&self, trip: &Trip) -> String {
        format!(
            "{:.1} km within {}, over {} km/h",
            trip.distance_km,
            Seconds(trip.elapsed_us),
            self.max_kmh
        )
    }
}

fn named(moved: &Move) -> String {
    let Move { from, to, elapsed_us } = moved;
    format!("{from} and {to} within {}", Seconds(*elapsed_us))
}

fn speed_kmh(trip: &Trip) -> f64 {
    trip.distance_km / (trip.elapsed_us.max(SHORTEST_TRIP_US) as f64 / MICROS_PER_HOUR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SECOND;

    fn check(moved: Option<i64>, travelled: Option<(f64, i64)>) -> Option<String> {
        let features = Features {
            moved: moved.map(|elapsed_us| Move {
                from: "Paris, FR".to_owned(),
                to: "Tokyo, JP".to_owned(),
                elapsed_us,
            }),
            travelled: travelled.map(|(distance_km, elapsed_us)| Trip {
                distance_km,
                elapsed_us,
            }),
            ..Features::default()
        };
        ImpossibleTravel::new(&document::ImpossibleTravel {
            over_kmh: 1_000,
            place_window_s: 60,
            contribution: 0.8,
            shadow: false,
        })
        .check(&features)
    }

    #[test]
    fn two_places_within_a_minute_fire() {
        assert_eq!(
            check(Some(12 * SECOND), None).as_deref(),
            Some("Paris, FR and Tokyo, JP within 12.0 s")
        );
        assert!(check(Some(60 * SECOND), None).is_some());
        assert_eq!(check(Some(60 * SECOND + 1), None), None);
    }

    #[test]
    fn more_than_a_thousand_kilometres_an_hour_fires() {
        let hour = 3_600 * SECOND;
        assert_eq!(check(None, Some((1_000.0, hour))), None);
        assert_eq!(
            check(None, Some((1_000.5, hour))).as_deref(),
            Some("1000.5 km within 3600.0 s, over 1000 km/h")
        );
    }

    #[test]
    fn the_same_instant_counts_as_a_second() {
        assert_eq!(check(None, Some((0.27, 0))), None);
        assert!(check(None, Some((0.28, 0))).is_some());
    }
}
