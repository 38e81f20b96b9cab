//! Schemas, health and metrics say how it is.

use anyhow::ensure;
use sluice_proto::pb;
use sluice_proto::pb::schema_service_client::SchemaServiceClient;
use sluice_proto::topics;
use sluice_tests::run::on_shared;
use sluice_tests::session::{Session, authorized, connect};
use sluice_tests::stack;
use sluice_tests::subscription::Subscription;
use sluice_tests::{events, wait};
use tonic::Code;

#[test]
fn the_schemas_behind_the_topics_are_told() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let mut schemas = SchemaServiceClient::new(connect(&stack.gateway_url()).await?);
        let subject = topics::value_subject(&stack.topic(topics::PAYMENTS));
        let request = authorized(
            pb::GetSchemaRequest {
                subject: subject.clone(),
            },
            &tenant.key,
        );
        let schema = wait::soon("GetSchema answers", schemas.get_schema(request))
            .await??
            .into_inner();
        apache_avro::Schema::parse_str(&schema.schema_json)?;
        let url = format!("{}/subjects/{subject}/versions/latest", stack.servers().registry);
        let registered: serde_json::Value = serde_json::from_str(&stack::fetch(&url).await?)?;
        assert_eq!(registered["id"].as_i64(), Some(schema.id.into()));

        let unknown = pb::GetSchemaRequest {
            subject: "unknown-value".to_owned(),
        };
        let answer = wait::soon(
            "GetSchema answers",
            schemas.get_schema(authorized(unknown, &tenant.key)),
        )
        .await?;
        assert_eq!(answer.err().map(|status| status.code()), Some(Code::NotFound));
        Ok(())
    });
}

/// The metrics that both parts share, with the part that must have counted something.
const METRICS: [(&str, [bool; 2]); 7] = [
    ("kafka_messages_produced_total", [true, true]),
    ("kafka_messages_consumed_total", [true, true]),
    ("kafka_producer_errors_total", [false, false]),
    ("kafka_consumer_errors_total", [false, false]),
    ("kafka_producer_latency_seconds", [true, true]),
    ("kafka_consumer_lag", [false, false]),
    ("kafka_admin_operations_total", [false, false]),
];

#[test]
fn both_parts_serve_health_and_the_seven_metrics() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let payment = events::payment("measured");
        Session::open(&url, &tenant.key, "measured")
            .await?
            .store(std::slice::from_ref(&payment))
            .await?;
        subscription.decision(&payment).await?;
        for (part, admin) in [stack.gateway_admin(), stack.processor_admin(0)]
            .into_iter()
            .enumerate()
        {
            stack::page(admin, "/health/live").await?;
            stack::page(admin, "/health/ready").await?;
            // The lag is looked at now and then, and shown from the first time on.
            let page = wait::until(&format!("part {part} shows every metric"), async || {
                let page = stack::page(admin, "/metrics").await?;
                let shows = |name: &str| page.contains(&format!("# TYPE {}", name.trim_end_matches("_total")));
                Ok(METRICS.iter().all(|(name, _)| shows(name)).then_some(page))
            })
            .await?;
            for (name, counted) in METRICS {
                let samples = page.lines().filter(|line| line.starts_with(name));
                let positive = samples
                    .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                    .any(|value| value > 0.0);
                ensure!(positive || !counted[part], "part {part} did not count {name}:\n{page}");
            }
            ensure!(!page.contains(&tenant.name), "a client's name is a label");
        }
        Ok(())
    });
}
