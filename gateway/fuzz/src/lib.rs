//! What both fuzz targets share: a caller, a routing table with a custom type, and inputs taken from the fuzzer's bytes.

use std::sync::Arc;

use sluice_gateway::auth::{Caller, Role};
use sluice_gateway::ingest::route::{Routing, Table};
use sluice_kafka::Topics;
use sluice_kafka::registry::Version;
use tokio_util::sync::CancellationToken;

/// The time at which everything happens, in microseconds since the Unix epoch.
pub const NOW: i64 = 1_800_000_000_000_000;
/// The custom type of the routing table, and its schema's id.
pub const CUSTOM: &str = "custom";
/// See [`CUSTOM`].
pub const SCHEMA_ID: i32 = 7;

/// With every construct that the check of custom records knows.
const SCHEMA: &str = r#"{"type": "record", "name": "Custom", "namespace": "fuzz", "fields": [
    {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
    {"name": "note", "type": "string"},
    {"name": "amount", "type": {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 4}},
    {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
    {"name": "again", "type": ["null", "Kind"]},
    {"name": "flag", "type": "boolean"},
    {"name": "count", "type": "int"},
    {"name": "share", "type": "double"},
    {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 2}},
    {"name": "labels", "type": {"type": "map", "values": "string"}},
    {"name": "nested", "type": {"type": "array", "items": ["null", "long", "Custom"]}}]}"#;

/// Somebody who may publish everywhere and name the topic `spare`.
pub fn caller() -> Caller {
    let topics = [
        "payments",
        "user-actions",
        "system-events",
        "metric-events",
        "custom",
        "spare",
    ];
    Caller {
        tenant: "fuzz".into(),
        name: "fuzz".into(),
        roles: Role::USUAL.into(),
        topics: Some(topics.map(str::to_owned).to_vec().into()),
        expires: None,
        revoked: CancellationToken::new(),
    }
}

/// A routing table with a custom type.
///
/// # Panics
/// When the table or the schema is invalid, which would be a mistake here.
pub fn routing() -> Arc<Routing> {
    let path = std::env::temp_dir().join(format!("sluice-fuzz-routes-{}", std::process::id()));
    let table = "topics = [\"spare\"]\n[[route]]\ntype = \"custom\"\ntopic = \"custom\"\n";
    std::fs::write(&path, table).expect("a table is written");
    let table = Table::load(Some(&path)).expect("the table is valid");
    std::fs::remove_file(&path).expect("the table is removed");
    let routing = Routing::new(&table, &Topics::new(""), "", &sluice_kafka::Metrics::default());
    let version = Version {
        id: SCHEMA_ID as u32,
        version: 1,
        schema: SCHEMA.to_owned(),
    };
    routing.know(CUSTOM, &version).expect("the schema is valid");
    Arc::new(routing)
}

/// Takes an input apart. What is missing at its end is zero.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// The next bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// At most so many of the next bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
