//! Decisions that a test writes itself, as a processor whose transactions went wrong would.

use anyhow::Result;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use sluice_proto::avro::Encoder;
use sluice_proto::decision::{Decision, Outcome};
use sluice_proto::event::EventId;
use sluice_proto::money::Amount;
use sluice_proto::pb;
use sluice_proto::pb::schema_service_client::SchemaServiceClient;
use sluice_proto::topics;

use crate::session::{authorized, connect};
use crate::stack::{Stack, Tenant};
use crate::wait;

/// A decision for the payment at this offset of partition 0; its event's id tells `number`.
pub fn decision(tenant: &Tenant, number: u128, source_offset: i64) -> Decision {
    Decision {
        event_id: EventId::new(uuid::Uuid::from_u128(number + 1)),
        tenant: tenant.name.clone(),
        account_id: "written".to_owned(),
        amount: Amount::from_parts(1, 0).expect("an amount"),
        currency: "EUR".to_owned(),
        occurred_at: 0,
        outcome: Outcome::Approve,
        score: 0.0,
        reasons: Vec::new(),
        rule_set_version: "1".into(),
        model_version: None,
        source_partition: 0,
        source_offset,
        late: false,
    }
}

/// The id of a [`decision`] as a subscriber sees it.
pub fn id(number: u128) -> String {
    uuid::Uuid::from_u128(number + 1).to_string()
}

/// Writes decisions to partition 0 of the topic.
///
/// # Errors
/// When Kafka does not take them.
pub async fn write(stack: &Stack, tenant: &Tenant, decisions: &[Decision]) -> Result<()> {
    let subject = topics::value_subject(&stack.topic(topics::DECISIONS));
    let mut client = SchemaServiceClient::new(connect(&stack.gateway_url()).await?);
    let schema = client.get_schema(authorized(pb::GetSchemaRequest { subject }, &tenant.key));
    let encoder = Encoder::<Decision>::new(schema.await?.into_inner().id)?;
    let mut values = Vec::new();
    for decision in decisions {
        let mut value = Vec::new();
        encoder.encode(decision, &mut value)?;
        values.push(value);
    }
    let (kafka, topic) = (stack.servers().kafka.clone(), stack.topic(topics::DECISIONS));
    let key = topics::key(&tenant.name, "written");
    let written = tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &kafka)
            .set("enable.idempotence", "true")
            .create()?;
        for value in &values {
            let record = BaseRecord::to(&topic).partition(0).key(&key).payload(value);
            producer.send(record).map_err(|(error, _record)| error)?;
        }
        producer.flush(wait::SOON)?;
        anyhow::Ok(())
    });
    written.await?
}

/// Deletes what stands before an offset of partition 0 of the decisions, as retention does.
///
/// # Errors
/// When Kafka refuses.
pub async fn delete_before(stack: &Stack, offset: i64) -> Result<()> {
    crate::topics::delete_before(stack, topics::DECISIONS, &[offset]).await
}
