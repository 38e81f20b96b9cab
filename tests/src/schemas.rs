//! Reads records with the schemas that the registry has under the ids before them, as any consumer does.
//!
//! Comes below [`crate::history`], which learns the schemas, and [`crate::oracle`], which reads the payments by itself.

use std::collections::{BTreeSet, HashMap};
use std::marker::PhantomData;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use sluice_proto::avro::PREFIX_BYTES;

use crate::stack::{self, Stack};
use crate::topics::Record;
use crate::wait;

const MAGIC: u8 = 0;
const NOT_FOUND: u16 = 404;

/// Schemas by their ids in the registry.
#[derive(Clone, Debug, Default)]
pub struct Schemas(HashMap<i32, Arc<Schema>>);

impl Schemas {
    /// This build's schema of a type, under an id.
    pub fn one<T: sluice_proto::avro::Record>(id: i32) -> Self {
        Self(HashMap::from([(id, Arc::new(T::schema().clone()))]))
    }

    /// Those that these records name, as far as the registry has them.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn of(stack: &Stack, records: impl Iterator<Item = &Record>) -> Result<Self> {
        let ids: BTreeSet<i32> = records.filter_map(|record| id(&record.payload)).collect();
        let mut schemas = HashMap::new();
        for id in ids {
            if let Some(schema) = fetch(stack, id).await? {
                schemas.insert(id, Arc::new(schema));
            }
        }
        Ok(Self(schemas))
    }
}

/// The id before a record's value, where there is one.
fn id(payload: &[u8]) -> Option<i32> {
    let (prefix, _datum) = payload.split_first_chunk::<PREFIX_BYTES>()?;
    let [MAGIC, id @ ..] = *prefix else { return None };
    Some(i32::from_be_bytes(id))
}

/// The registry may be about to come back, with Postgres.
async fn fetch(stack: &Stack, id: i32) -> Result<Option<Schema>> {
    let url = format!("{}/schemas/ids/{id}", stack.servers().registry);
    wait::until("the registry tells a schema", async || {
        let page = match stack::fetch(&url).await {
            Ok(page) => page,
            Err(error) => match error.downcast_ref() {
                Some(ureq::Error::StatusCode(NOT_FOUND)) => return Ok(Some(None)),
                _ => return Ok(None),
            },
        };
        let page: serde_json::Value = serde_json::from_str(&page)?;
        let schema = page["schema"].as_str().context("the registry's answer has no schema")?;
        Ok(Some(Some(Schema::parse_str(schema)?)))
    })
    .await
}

/// Reads records of one type.
pub struct Decoder<'s, T> {
    readers: HashMap<i32, GenericDatumReader<'s>>,
    of: PhantomData<T>,
}

impl<'s, T: sluice_proto::avro::Record> Decoder<'s, T> {
    /// A reader of records that were written with these schemas.
    ///
    /// # Errors
    /// When one is not complete.
    pub fn new(schemas: &'s Schemas) -> Result<Self> {
        let reader = |(id, schema): (&i32, &'s Arc<Schema>)| {
            let reader = GenericDatumReader::builder(schema).human_readable(false).build()?;
            Ok((*id, reader))
        };
        Ok(Self {
            readers: schemas.0.iter().map(reader).collect::<Result<_>>()?,
            of: PhantomData,
        })
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is something else.
    pub fn decode(&self, record: &Record) -> Result<T> {
        let id = id(&record.payload).context("there is no id before it")?;
        let reader = self.readers.get(&id).context("nobody knows its schema")?;
        let mut datum = &record.payload[PREFIX_BYTES..];
        let value = reader.read_deser(&mut datum)?;
        ensure!(datum.is_empty(), "{} bytes too many", datum.len());
        Ok(value)
    }
}

impl<T> std::fmt::Debug for Decoder<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decoder")
    }
}
