//! Amounts of money: exact on every way, never a float.
//!
//! An amount is a whole number of ten-thousandths of the currency's major unit, since no currency of ISO 4217 divides
//! further. Avro's decimal (precision 18, scale 4) and Postgres' `numeric(18,4)` hold the same number.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::google_type::Money;

/// Ten-thousandths in one unit.
pub const TEN_THOUSANDTHS: i64 = 10_000;
const NANOS_PER_TEN_THOUSANDTH: i32 = 100_000;

/// An amount in ten-thousandths of a currency's major unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i64);

impl Amount {
    /// The amount of so many ten-thousandths.
    pub const fn from_ten_thousandths(value: i64) -> Self {
        Self(value)
    }

    /// The amount in ten-thousandths of the major unit.
    pub const fn ten_thousandths(self) -> i64 {
        self.0
    }

    /// Reads whole units and billionths; `None` when the parts disagree in sign, are out of range or are more precise
    /// than a ten-thousandth.
    pub fn from_parts(units: i64, nanos: i32) -> Option<Self> {
        let signs_agree = units == 0 || nanos == 0 || (units > 0) == (nanos > 0);
        if !signs_agree || nanos.unsigned_abs() >= 1_000_000_000 || nanos % NANOS_PER_TEN_THOUSANDTH != 0 {
            return None;
        }
        units
            .checked_mul(TEN_THOUSANDTHS)?
            .checked_add(i64::from(nanos / NANOS_PER_TEN_THOUSANDTH))
            .map(Self)
    }

    /// The amount as the wire's money.
    pub fn to_money(self, currency: &str) -> Money {
        Money {
            currency_code: currency.to_owned(),
            units: self.0 / TEN_THOUSANDTHS,
            nanos: (self.0 % TEN_THOUSANDTHS) as i32 * NANOS_PER_TEN_THOUSANDTH,
        }
    }

    /// Whether the amount needs at most so many digits after the point.
    pub fn fits_digits(self, digits: u32) -> bool {
        digits >= 4 || self.0 % 10_i64.pow(4 - digits) == 0
    }
}

impl fmt::Display for Amount {
    /// Two digits after the point, or four when two do not suffice.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let absolute = self.0.unsigned_abs();
        let (units, rest) = (absolute / 10_000, absolute % 10_000);
        if rest % 100 == 0 {
            write!(f, "{sign}{units}.{:02}", rest / 100)
        } else {
            write!(f, "{sign}{units}.{rest:04}")
        }
    }
}

impl Serialize for Amount {
    /// Avro's decimal: the unscaled value, big-endian two's complement, in the fewest bytes.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self.0.to_be_bytes();
        let sign_byte = if self.0 < 0 { 0xff } else { 0x00 };
        let mut start = 0;
        while start < 7 && bytes[start] == sign_byte && (bytes[start + 1] ^ sign_byte) & 0x80 == 0 {
            start += 1;
        }
        serializer.serialize_bytes(&bytes[start..])
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a decimal of 1 to 8 bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Amount, E> {
                if bytes.is_empty() || bytes.len() > 8 {
                    return Err(E::invalid_length(bytes.len(), &self));
                }
                let fill = if bytes[0] & 0x80 == 0 { 0x00 } else { 0xff };
                let mut wide = [fill; 8];
                wide[8 - bytes.len()..].copy_from_slice(bytes);
                Ok(Amount(i64::from_be_bytes(wide)))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_ten_thousandths() {
        assert_eq!(Amount::from_parts(12, 340_000_000), Some(Amount(123_400)));
        assert_eq!(Amount::from_parts(-1, -500_000_000), Some(Amount(-15_000)));
        assert_eq!(Amount::from_parts(1, -1), None);
        assert_eq!(Amount::from_parts(1, 1), None, "a billionth is too precise");
        assert_eq!(Amount::from_parts(i64::MAX, 0), None);
        assert_eq!(Amount::from_parts(0, i32::MIN), None);
    }

    #[test]
    fn digits_are_counted() {
        assert!(Amount(10_000).fits_digits(0));
        assert!(!Amount(15_000).fits_digits(0));
        assert!(Amount(100).fits_digits(2));
        assert!(!Amount(10).fits_digits(2));
        assert!(Amount(1).fits_digits(4));
    }

    #[test]
    fn text_shows_two_or_four_digits() {
        assert_eq!(Amount(123_400).to_string(), "12.34");
        assert_eq!(Amount(-1).to_string(), "-0.0001");
    }

    #[test]
    fn money_comes_back() {
        let money = Amount(-123_456).to_money("EUR");
        assert_eq!(Amount::from_parts(money.units, money.nanos), Some(Amount(-123_456)));
    }
}
