//! The world that generated payments take place in: cities, merchant categories, and how amounts spread in each.
//!
//! Static data, used by `generate` only.

use sluice_proto::pb::PaymentMethod;

/// A city where accounts live.
pub(crate) struct City {
    pub(crate) country: &'static str,
    pub(crate) name: &'static str,
    pub(crate) latitude: f64,
    pub(crate) longitude: f64,
    pub(crate) currency: &'static Currency,
}

/// A currency as payments use it.
pub(crate) struct Currency {
    pub(crate) code: &'static str,
    /// Digits after the point.
    pub(crate) digits: u32,
    /// What one euro's worth of goods costs, roughly. Kept low for currencies of small units, so that usual amounts
    /// stay under the limit of 10,000 units that the rule set knows.
    pub(crate) price_level: f64,
}

/// A merchant category of ISO 18245.
pub(crate) struct Category {
    pub(crate) code: &'static str,
    /// How many of 100 merchants belong to it.
    pub(crate) weight: u32,
    /// The median amount in euros.
    pub(crate) median: f64,
    /// The spread: standard deviation of the amount's logarithm.
    pub(crate) sigma: f64,
    /// How its customers pay.
    pub(crate) method: PaymentMethod,
}

const EUR: Currency = currency("EUR", 2, 1.0);
const USD: Currency = currency("USD", 2, 1.1);
const GBP: Currency = currency("GBP", 2, 0.9);
const CHF: Currency = currency("CHF", 2, 1.2);
const SEK: Currency = currency("SEK", 2, 9.0);
const PLN: Currency = currency("PLN", 2, 4.0);
const JPY: Currency = currency("JPY", 0, 30.0);
const KWD: Currency = currency("KWD", 3, 0.4);
const BRL: Currency = currency("BRL", 2, 4.0);

const fn currency(code: &'static str, digits: u32, price_level: f64) -> Currency {
    Currency {
        code,
        digits,
        price_level,
    }
}

const fn city(
    country: &'static str,
    name: &'static str,
    latitude: f64,
    longitude: f64,
    currency: &'static Currency,
) -> City {
    City {
        country,
        name,
        latitude,
        longitude,
        currency,
    }
}

/// Where accounts live; every two are too far apart for one person within a minute.
pub(crate) const CITIES: [City; 24] = [
    city("DE", "Berlin", 52.520, 13.405, &EUR),
    city("DE", "Hamburg", 53.551, 9.994, &EUR),
    city("DE", "Munich", 48.137, 11.575, &EUR),
    city("FR", "Paris", 48.857, 2.352, &EUR),
    city("FR", "Lyon", 45.764, 4.836, &EUR),
    city("ES", "Madrid", 40.417, -3.704, &EUR),
    city("IT", "Rome", 41.903, 12.496, &EUR),
    city("NL", "Amsterdam", 52.368, 4.904, &EUR),
    city("AT", "Vienna", 48.208, 16.374, &EUR),
    city("IE", "Dublin", 53.350, -6.260, &EUR),
    city("BE", "Brussels", 50.850, 4.352, &EUR),
    city("PT", "Lisbon", 38.722, -9.139, &EUR),
    city("GB", "London", 51.507, -0.128, &GBP),
    city("GB", "Manchester", 53.481, -2.242, &GBP),
    city("CH", "Zurich", 47.377, 8.541, &CHF),
    city("SE", "Stockholm", 59.329, 18.069, &SEK),
    city("PL", "Warsaw", 52.230, 21.012, &PLN),
    city("US", "New York", 40.713, -74.006, &USD),
    city("US", "Chicago", 41.878, -87.630, &USD),
    city("US", "San Francisco", 37.775, -122.419, &USD),
    city("JP", "Tokyo", 35.690, 139.692, &JPY),
    city("JP", "Osaka", 34.694, 135.502, &JPY),
    city("KW", "Kuwait City", 29.376, 47.977, &KWD),
    city("BR", "São Paulo", -23.551, -46.633, &BRL),
];

const fn category(code: &'static str, weight: u32, median: f64, sigma: f64, method: PaymentMethod) -> Category {
    Category {
        code,
        weight,
        median,
        sigma,
        method,
    }
}

/// What merchants sell.
pub(crate) const CATEGORIES: [Category; 10] = [
    category("5411", 26, 24.0, 0.8, PaymentMethod::CardPresent), // groceries
    category("5812", 16, 31.0, 0.6, PaymentMethod::CardPresent), // restaurants
    category("5814", 12, 9.0, 0.5, PaymentMethod::CardPresent),  // fast food
    category("5541", 9, 52.0, 0.4, PaymentMethod::CardPresent),  // fuel
    category("5912", 7, 17.0, 0.7, PaymentMethod::CardPresent),  // pharmacies
    category("4111", 8, 4.0, 0.6, PaymentMethod::Wallet),        // local transport
    category("5651", 7, 58.0, 0.7, PaymentMethod::CardNotPresent), // clothing
    category("5732", 5, 140.0, 1.0, PaymentMethod::CardNotPresent), // electronics
    category("4722", 4, 310.0, 0.9, PaymentMethod::CardNotPresent), // travel
    category("6513", 6, 720.0, 0.5, PaymentMethod::BankTransfer), // rents
];
