//! The check of a record that no type of ours describes: its bytes are exactly what its Avro schema says, down to the last
//! field.
//!
//! Beside `avro`, which reads the records that we have types for. Comes after the gateway's routing table, which knows the
//! schema, and before the record is stored as it came. Nothing is allocated for what the record claims to hold.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;

use apache_avro::Schema;
use apache_avro::schema::{InnerDecimalSchema, Name, NamespaceRef, RecordSchema, ResolvedSchema, UuidSchema};
use uuid::Uuid;

use crate::bounds::MAX_CUSTOM_DEPTH;

/// Bits of a varint's byte that count.
const VARINT_BITS: u32 = 7;
/// Bytes of the longest varint.
const VARINT_BYTES: u32 = 10;
/// Bytes of a duration.
const DURATION_BYTES: usize = 12;

/// The schema cannot be checked against.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no Avro schema, or refers to a name that it does not have.
    #[error("not an Avro schema: {0}")]
    Schema(Box<apache_avro::Error>),
    /// It describes a single value.
    #[error("the schema is not of a record")]
    NoRecord,
}

/// Why a record is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Mismatch {
    /// The field at fault, as a path from the record, such as `lines[2].price`; empty for the record itself.
    pub field: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// A text within a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Its field, as in [`Mismatch`].
    pub field: String,
    /// Where its bytes are in the datum.
    pub range: Range<usize>,
}

/// A record's schema.
#[derive(Debug)]
pub struct Shape {
    schema: Schema,
    names: HashMap<Name, Schema>,
    name: String,
}

impl Shape {
    /// Reads a schema in JSON.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn parse(json: &str) -> Result<Self, Error> {
        let failed = |error| Error::Schema(Box::new(error));
        let schema = Schema::parse_str(json).map_err(failed)?;
        let Schema::Record(RecordSchema { name, .. }) = &schema else {
            return Err(Error::NoRecord);
        };
        let name = name.fullname(None);
        let resolved = ResolvedSchema::new(&schema).map_err(failed)?;
        let names = resolved.get_names().iter();
        let names = names.map(|(name, schema)| (name.clone(), (*schema).clone())).collect();
        Ok(Self { schema, names, name })
    }

    /// The record's full name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks a datum, without the prefix of the registry's wire format, and tells the texts of at least so many bytes in
    /// it. Texts that are UUIDs by their schema are not told.
    ///
    /// # Errors
    /// The first [`Mismatch`].
    pub fn check(&self, datum: &[u8], min_text_bytes: usize) -> Result<Vec<Text>, Mismatch> {
        let mut walk = Walk {
            names: &self.names,
            datum,
            at: 0,
            items: 0,
            field: String::new(),
            min_text_bytes,
            texts: Vec::new(),
        };
        walk.value(&self.schema, None, 0)?;
        if walk.at < datum.len() {
            return Err(walk.wrong("has bytes left after its last field"));
        }
        Ok(walk.texts)
    }
}

struct Walk<'a> {
    names: &'a HashMap<Name, Schema>,
    datum: &'a [u8],
    at: usize,
    items: u64,
    field: String,
    min_text_bytes: usize,
    texts: Vec<Text>,
}

impl<'a> Walk<'a> {
    fn wrong(&self, reason: &'static str) -> Mismatch {
        Mismatch {
            field: self.field.clone(),
            reason,
        }
    }

    fn value(&mut self, schema: &'a Schema, space: NamespaceRef<'a>, depth: usize) -> Result<(), Mismatch> {
        if depth > MAX_CUSTOM_DEPTH {
            return Err(self.wrong("is nested too deep"));
        }
        match schema {
            Schema::Null => Ok(()),
            Schema::Boolean => match self.bytes(1)? {
                [0 | 1] => Ok(()),
                _ => Err(self.wrong("is a boolean other than 0 and 1")),
            },
            Schema::Int | Schema::Date | Schema::TimeMillis => {
                let number = self.long()?;
                i32::try_from(number)
                    .map(drop)
                    .map_err(|_| self.wrong("does not fit 32 bits"))
            }
            Schema::Long
            | Schema::TimeMicros
            | Schema::TimestampMillis
            | Schema::TimestampMicros
            | Schema::TimestampNanos
            | Schema::LocalTimestampMillis
            | Schema::LocalTimestampMicros
            | Schema::LocalTimestampNanos => self.long().map(drop),
            Schema::Float => self.bytes(size_of::<f32>()).map(drop),
            Schema::Double => self.bytes(size_of::<f64>()).map(drop),
            Schema::Bytes | Schema::BigDecimal | Schema::Uuid(UuidSchema::Bytes) => self.sized().map(drop),
            Schema::Decimal(decimal) => match &decimal.inner {
                InnerDecimalSchema::Bytes => self.sized().map(drop),
                InnerDecimalSchema::Fixed(fixed) => self.bytes(fixed.size).map(drop),
            },
            Schema::Fixed(fixed) | Schema::Uuid(UuidSchema::Fixed(fixed)) => self.bytes(fixed.size).map(drop),
            Schema::Duration(_) => self.bytes(DURATION_BYTES).map(drop),
            Schema::String => self.text(),
            Schema::Uuid(UuidSchema::String) => {
                let text = self.sized()?;
                Uuid::try_parse_ascii(text)
                    .map(drop)
                    .map_err(|_| self.wrong("is not a UUID"))
            }
            Schema::Enum(of) => self.index(of.symbols.len(), "is none of the symbols").map(drop),
            Schema::Union(of) => {
                let branch = self.index(of.variants().len(), "is none of the union's types")?;
                self.value(&of.variants()[branch], space, depth + 1)
            }
            Schema::Array(of) => self.blocks(|walk| walk.value(&of.items, space, depth + 1)),
            Schema::Map(of) => self.blocks(|walk| {
                walk.text()?;
                walk.value(&of.types, space, depth + 1)
            }),
            Schema::Record(record) => self.record(record, space, depth),
            Schema::Ref { name } => match self.names.get(&*name.fully_qualified_name(space)) {
                Some(schema) => self.value(schema, space, depth + 1),
                None => Err(self.wrong("is of a type that the schema does not have")),
            },
        }
    }

    fn record(&mut self, record: &'a RecordSchema, space: NamespaceRef<'a>, depth: usize) -> Result<(), Mismatch> {
        let space = record.name.namespace().or(space);
        let above = self.field.len();
        for field in &record.fields {
            if above > 0 {
                self.field.push('.');
            }
            self.field.push_str(&field.name);
            self.value(&field.schema, space, depth + 1)?;
            self.field.truncate(above);
        }
        Ok(())
    }

    /// The blocks of an array or a map, up to the empty one.
    fn blocks(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), Mismatch>) -> Result<(), Mismatch> {
        let above = self.field.len();
        let mut index = 0_u64;
        loop {
            let mut count = self.long()?;
            if count == 0 {
                return Ok(());
            }
            let mut end = None;
            if count < 0 {
                // Then the block's size in bytes stands before it, for those who pass over it.
                count = count.saturating_neg();
                let bytes = self.length()?;
                end = Some(self.at + bytes);
            }
            // Elements without bytes of their own, such as nulls, would cost time that no byte pays for.
            self.items = self.items.saturating_add(count.unsigned_abs());
            if self.items > self.datum.len() as u64 {
                return Err(self.wrong("has more elements than the record has bytes"));
            }
            for _item in 0..count {
                // Writing to a String cannot fail.
                let _written = write!(self.field, "[{index}]");
                item(self)?;
                self.field.truncate(above);
                index += 1;
            }
            if end.is_some_and(|end| end != self.at) {
                return Err(self.wrong("has a block of another size than it says"));
            }
        }
    }

    fn text(&mut self) -> Result<(), Mismatch> {
        let bytes = self.sized()?;
        if std::str::from_utf8(bytes).is_err() {
            return Err(self.wrong("is not UTF-8"));
        }
        if bytes.len() >= self.min_text_bytes {
            self.texts.push(Text {
                field: self.field.clone(),
                range: self.at - bytes.len()..self.at,
            });
        }
        Ok(())
    }

    fn sized(&mut self) -> Result<&'a [u8], Mismatch> {
        let length = self.length()?;
        self.bytes(length)
    }

    /// A length that the rest of the datum can hold.
    fn length(&mut self) -> Result<usize, Mismatch> {
        let length = self.long()?;
        usize::try_from(length)
            .ok()
            .filter(|length| *length <= self.datum.len() - self.at)
            .ok_or_else(|| self.wrong("has a length that the record does not hold"))
    }

    fn index(&mut self, count: usize, otherwise: &'static str) -> Result<usize, Mismatch> {
        let index = self.long()?;
        usize::try_from(index)
            .ok()
            .filter(|index| *index < count)
            .ok_or_else(|| self.wrong(otherwise))
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Mismatch> {
        let rest = &self.datum[self.at..];
        let taken = rest
            .get(..count)
            .ok_or_else(|| self.wrong("is cut off by the record's end"))?;
        self.at += count;
        Ok(taken)
    }

    /// A number as Avro writes it: zigzag, seven bits a byte, the lowest first.
    fn long(&mut self) -> Result<i64, Mismatch> {
        let mut bits = 0_u64;
        for place in 0..VARINT_BYTES {
            let [byte] = self.bytes(1)? else { break };
            let low = u64::from(byte & 0x7f);
            // Of the tenth byte one bit is left.
            if place + 1 == VARINT_BYTES && low > 1 {
                break;
            }
            bits |= low << (place * VARINT_BITS);
            if byte & 0x80 == 0 {
                return Ok((bits >> 1).cast_signed() ^ -((bits & 1).cast_signed()));
            }
        }
        Err(self.wrong("is a number of more than 64 bits"))
    }
}

#[cfg(test)]
mod tests {
    use apache_avro::reader::datum::GenericDatumReader;
    use apache_avro::types::Value;
    use apache_avro::writer::datum::GenericDatumWriter;
    use proptest::prelude::*;

    use super::*;

    const SCHEMA: &str = r#"{"type": "record", "name": "Chargeback", "namespace": "acme.v1", "fields": [
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "note", "type": "string"},
        {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 4}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["FRAUD", "DISPUTE"]}},
        {"name": "again", "type": ["null", "Kind"]},
        {"name": "won", "type": "boolean"},
        {"name": "days", "type": "int"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "share", "type": "double"},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 2}},
        {"name": "labels", "type": {"type": "map", "values": "string"}},
        {"name": "lines", "type": {"type": "array", "items": {"type": "record", "name": "Line", "fields": [
            {"name": "price", "type": "long"}, {"name": "inner", "type": ["null", "Line"]}]}}}
    ]}"#;

    fn good() -> Vec<u8> {
        let line = |inner: Value| Value::Record(vec![("price".into(), Value::Long(-7)), ("inner".into(), inner)]);
        let nested = line(Value::Union(0, Box::new(Value::Null)));
        let value = Value::Record(vec![
            ("id".into(), Value::Uuid(Uuid::from_u128(5))),
            ("note".into(), Value::String("see order 17".into())),
            ("amount".into(), Value::Decimal(vec![1, 2].into())),
            ("kind".into(), Value::Enum(1, "DISPUTE".into())),
            (
                "again".into(),
                Value::Union(1, Box::new(Value::Enum(0, "FRAUD".into()))),
            ),
            ("won".into(), Value::Boolean(true)),
            ("days".into(), Value::Int(i32::MIN)),
            ("at".into(), Value::TimestampMicros(i64::MAX)),
            ("share".into(), Value::Double(0.5)),
            ("hash".into(), Value::Fixed(2, vec![1, 2])),
            (
                "labels".into(),
                Value::Map(HashMap::from([("k".to_owned(), Value::String("v".into()))])),
            ),
            (
                "lines".into(),
                Value::Array(vec![line(Value::Union(1, Box::new(nested)))]),
            ),
        ]);
        let schema = Schema::parse_str(SCHEMA).unwrap();
        let writer = GenericDatumWriter::builder(&schema).build().unwrap();
        writer.write_value_to_vec(value).unwrap()
    }

    fn refused(datum: &[u8]) -> (String, &'static str) {
        let mismatch = Shape::parse(SCHEMA).unwrap().check(datum, 1).expect_err("refused");
        (mismatch.field, mismatch.reason)
    }

    #[test]
    fn a_record_that_fits_is_walked_to_its_end_and_its_texts_are_told() {
        let (shape, datum) = (Shape::parse(SCHEMA).unwrap(), good());
        assert_eq!(shape.name(), "acme.v1.Chargeback");
        let texts = shape.check(&datum, 1).unwrap();
        let shown: Vec<(&str, &[u8])> = texts
            .iter()
            .map(|text| (text.field.as_str(), &datum[text.range.clone()]))
            .collect();
        assert_eq!(
            shown,
            [
                ("note", &b"see order 17"[..]),
                ("labels[0]", &b"k"[..]),
                ("labels[0]", &b"v"[..])
            ]
        );
        assert_eq!(shape.check(&datum, 13).unwrap(), []);
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_field() {
        let good = good();
        for length in 0..good.len() {
            assert!(
                Shape::parse(SCHEMA).unwrap().check(&good[..length], 1).is_err(),
                "{length}"
            );
        }
        assert_eq!(refused(b"\x02x").0, "id");
        assert_eq!(
            refused(&[&good[..], &[0]].concat()),
            (String::new(), "has bytes left after its last field")
        );
        // Past id (37 bytes) and note (13): amount (3), kind.
        let mut kind = good.clone();
        kind[53] = 4;
        assert_eq!(refused(&kind), ("kind".to_owned(), "is none of the symbols"));
        let mut text = good.clone();
        text[38] = 0xff;
        assert_eq!(refused(&text), ("note".to_owned(), "is not UTF-8"));
        let mut branch = good.clone();
        branch[54] = 4;
        assert_eq!(refused(&branch), ("again".to_owned(), "is none of the union's types"));
        let mut truth = good.clone();
        truth[56] = 2;
        assert_eq!(refused(&truth).0, "won");
        let mut last = good.clone();
        let inner = last.len() - 3;
        last[inner - 1] = 6;
        assert_eq!(refused(&last).0, "lines[0].inner");
        assert!(matches!(Shape::parse("\"string\""), Err(Error::NoRecord)));
        assert!(Shape::parse("{").is_err());
    }

    #[test]
    fn what_a_record_claims_to_hold_costs_nothing() {
        let schema = r#"{"type": "record", "name": "R", "fields": [
            {"name": "nulls", "type": {"type": "array", "items": "null"}},
            {"name": "self", "type": ["null", "R"]}]}"#;
        let shape = Shape::parse(schema).unwrap();
        let reason = |datum: &[u8]| shape.check(datum, 1).expect_err("refused").reason;
        // A block of 2^62 nulls, which take no bytes.
        let many = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(reason(&many), "has more elements than the record has bytes");
        assert_eq!(
            reason(&[0x01, 0xff, 0xff, 0x7f]),
            "has a length that the record does not hold"
        );
        assert_eq!(reason(&[0xff; 11]), "is a number of more than 64 bits");
        // [] and then itself, again and again.
        assert_eq!(reason(&[0, 2].repeat(100)), "is nested too deep");
        // A negative count comes with the block's size.
        assert!(shape.check(&[0x03, 0x00, 0x00, 0x00], 1).is_ok());
        assert_eq!(
            reason(&[0x03, 0x02, 0x00, 0x00]),
            "has a block of another size than it says"
        );
    }

    proptest! {
        #[test]
        fn what_passes_is_what_a_generic_reader_reads(
            at in 0_usize..200,
            bytes in proptest::collection::vec(any::<u8>(), 0..6),
        ) {
            let mut datum = good();
            let at = at.min(datum.len());
            let end = (at + bytes.len()).min(datum.len());
            datum.splice(at..end, bytes);
            if Shape::parse(SCHEMA).unwrap().check(&datum, 1).is_ok() {
                let schema = Schema::parse_str(SCHEMA).unwrap();
                let reader = GenericDatumReader::builder(&schema).build().unwrap();
                let mut rest = &datum[..];
                prop_assert!(reader.read_value(&mut rest).is_ok());
                prop_assert!(rest.is_empty());
            }
        }
    }
}
