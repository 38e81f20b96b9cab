//! A real OpenTelemetry collector receives one connected trace of a sampled payment.

use std::collections::HashMap;

use anyhow::{Context, ensure};
use sluice_client::{Publisher, Target};
use sluice_tests::collector::{Collector, Span};
use sluice_tests::run::on_prepared;
use sluice_tests::stack::Options;
use sluice_tests::subscription::Subscription;
use sluice_tests::{command, events, wait};

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";
const OTHER_TRACE_ID: &str = "1bf7651916cd43dd8448eb211c80319c";

#[test]
fn a_sampled_payment_is_one_connected_trace() {
    on_prepared(Options::default(), async |stack| {
        let Some(collector) = Collector::start(stack.directory()).await? else {
            command::skipped(
                "the trace of a payment",
                "Python is missing, which installs the collector",
            );
            return Ok(());
        };
        stack.set_env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint());
        stack.start_all().await?;
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        for (number, traceparent) in [
            format!("00-{OTHER_TRACE_ID}-{CLIENT_SPAN}-00"),
            format!("00-{TRACE_ID}-{CLIENT_SPAN}-01"),
        ]
        .iter()
        .enumerate()
        {
            let target = Target::new(&url, &tenant.key)?.with_traceparent(traceparent)?;
            let publisher = Publisher::builder(target, format!("traced-{number}"), 1)
                .connect()
                .await?;
            let payment = events::payment("traced");
            publisher.publish(payment.clone()).await?.await?;
            publisher.close().await?;
            subscription.decision(&payment).await?;
        }
        let spans = wait::until("both parts export their spans", async || {
            let spans = collector.spans()?;
            let of = |service: &str| {
                spans
                    .iter()
                    .any(|span| span.trace_id == TRACE_ID && span.service == service)
            };
            Ok((of("sluice-gateway") && of("sluice-processor")).then_some(spans))
        })
        .await?;
        ensure!(
            spans.iter().all(|span| span.trace_id != OTHER_TRACE_ID),
            "a payment that is not sampled was exported"
        );

        let spans: HashMap<&str, &Span> = spans
            .iter()
            .filter(|span| span.trace_id == TRACE_ID)
            .map(|span| (span.id.as_str(), span))
            .collect();
        // Every span goes back to the client's, parent by parent.
        for span in spans.values() {
            let mut ancestor = *span;
            while ancestor.parent_id != CLIENT_SPAN {
                ancestor = spans
                    .get(ancestor.parent_id.as_str())
                    .with_context(|| format!("{span:?} is not connected"))?;
            }
        }
        let decide = spans
            .values()
            .find(|span| span.service == "sluice-processor")
            .context("no span of the processor")?;
        let parent = spans
            .get(decide.parent_id.as_str())
            .with_context(|| format!("{decide:?} has no parent here"))?;
        assert_eq!(
            parent.service, "sluice-gateway",
            "the decision is not part of the publishing"
        );
        Ok(())
    });
}
