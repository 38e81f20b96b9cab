//! The caller's own events as JSON: one, or several that take turns, perhaps with templates; and JSON as events.
//!
//! The JSON is protobuf's: an `Event`, or a request that holds one, as ghz would send it.

use anyhow::{Context, ensure};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Value;
use sluice_proto::{FILE_DESCRIPTOR_SET, pb};

use super::Raw;
use super::template::Template;

const EVENT: &str = "sluice.v1.Event";

/// Reads events from JSON.
pub(super) struct Json {
    event: MessageDescriptor,
}

impl Json {
    pub(super) fn new() -> anyhow::Result<Self> {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET)?;
        let event = pool.get_message_by_name(EVENT).context("the contract has no Event")?;
        Ok(Self { event })
    }

    /// An event, or a request with one in its field `event`.
    pub(super) fn event(&self, mut value: Value) -> anyhow::Result<pb::Event> {
        if let Some(inner) = value.get_mut("event") {
            value = inner.take();
        }
        let dynamic =
            DynamicMessage::deserialize(self.event.clone(), value).context("the JSON is not a sluice.v1.Event")?;
        Ok(pb::Event::decode(dynamic.encode_to_vec().as_slice())?)
    }
}

/// The events, in turn.
pub(super) struct Data {
    template: Template,
    json: Json,
    /// Parsed once, when nothing in it changes.
    constant: Vec<pb::Event>,
}

impl Data {
    /// Checks the data by making its first events.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let template = Template::parse(text)?;
        let mut data = Self {
            json: Json::new()?,
            constant: Vec::new(),
            template,
        };
        let events = data.events(0)?;
        if data.template.is_constant() {
            data.constant = events;
        }
        Ok(data)
    }

    fn events(&self, number: u64) -> anyhow::Result<Vec<pb::Event>> {
        let value: Value = serde_json::from_str(&self.template.fill(number)).context("the data is not JSON")?;
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        ensure!(!values.is_empty(), "the data has no event");
        values.into_iter().map(|value| self.json.event(value)).collect()
    }

    pub(super) fn next(&mut self, number: u64) -> anyhow::Result<Raw> {
        let pick = |events: &[pb::Event]| events[(number % events.len() as u64) as usize].clone();
        let event = if self.constant.is_empty() {
            pick(&self.events(number)?)
        } else {
            pick(&self.constant)
        };
        Ok(Raw {
            event,
            injected: None,
            offset_micros: None,
        })
    }
}
