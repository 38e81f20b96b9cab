//! traceparent by the letter of the standard, and which spans are recorded.

use opentelemetry_sdk::trace::InMemorySpanExporter;

use super::*;

const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f0671720490217-01";
const NOT_SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f0671720490217-00";

#[test]
fn a_traceparent_survives_parsing_and_writing() {
    for text in [SAMPLED, NOT_SAMPLED] {
        let context = parse(text).expect("valid");
        assert!(context.is_remote());
        assert_eq!(format(&context), text);
    }
    let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f0671720490217-03-more";
    assert_eq!(format(&parse(later).expect("a later version")), SAMPLED);
}

#[test]
fn a_malformed_traceparent_is_none() {
    for text in [
        "",
        "00",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f0671720490217-0",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f0671720490217-01-more",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f0671720490217-01more",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f0671720490217-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f0671720490217-01",
        "00-00000000000000000000000000000000-00f0671720490217-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00_4bf92f3577b34da6a3ce929d0e0e4736-00f0671720490217-01",
        "00-4bf92f3577b34da6a3ce929d0e0é4736-00f0671720490217-01",
    ] {
        assert!(parse(text).is_none(), "{text:?}");
    }
}

#[test]
fn only_sampled_payments_get_spans_and_they_are_connected() {
    let spans = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
    let tracer = Tracer(Some(Arc::new(provider.tracer("test"))));
    let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);

    for parent in [None, Some(NOT_SAMPLED), Some("nonsense")] {
        assert!(tracer.start("publish", SpanKind::Producer, parent, at(1)).is_none());
    }
    let mut publish = tracer
        .start("publish", SpanKind::Producer, Some(SAMPLED), at(1))
        .expect("sampled");
    publish.set("messaging.destination.name", "payments");
    let header = publish.traceparent();
    tracer.record("decide", SpanKind::Consumer, Some(&header), (at(2), at(3)), || {
        [KeyValue::new("outcome", "APPROVE")]
    });
    publish.end(at(4));

    let finished = spans.get_finished_spans().expect("spans");
    let [decide, publish] = finished.as_slice() else {
        panic!("two spans, not {}", finished.len())
    };
    assert_eq!(format(&publish.span_context), header);
    assert_eq!(publish.parent_span_id, parse(SAMPLED).expect("valid").span_id());
    assert_eq!(decide.parent_span_id, publish.span_context.span_id());
    assert_eq!(decide.span_context.trace_id(), publish.span_context.trace_id());
    assert_eq!((decide.start_time, decide.end_time), (at(2), at(3)));
    assert_eq!((publish.start_time, publish.end_time), (at(1), at(4)));
    assert_eq!(decide.attributes, [KeyValue::new("outcome", "APPROVE")]);
}

#[test]
fn off_means_no_span_and_no_attributes() {
    let telemetry = Telemetry::exporting("test", None).expect("off");
    let now = SystemTime::UNIX_EPOCH;
    telemetry.tracer().record(
        "decide",
        SpanKind::Consumer,
        Some(SAMPLED),
        (now, now),
        || -> [KeyValue; 0] { panic!("nobody asked for attributes") },
    );
    assert_eq!(size_of::<Option<Span>>(), size_of::<usize>());
    telemetry.shutdown();
}

#[test]
fn a_filter_that_makes_no_sense_is_named() {
    let error = init("test", "sluice=noise=x", None).err().expect("refused");
    assert!(error.to_string().contains("sluice=noise=x"), "{error}");
}

#[tokio::test]
async fn an_endpoint_that_makes_no_sense_is_named_also_within_a_runtime() {
    let error = Telemetry::exporting("test", Some("no endpoint"))
        .err()
        .expect("refused");
    assert!(error.to_string().contains("no endpoint"), "{error}");
}

#[tokio::test]
async fn a_collector_that_is_not_there_does_not_disturb() {
    // Nothing listens on port 1 of a machine that runs tests.
    let telemetry = Telemetry::exporting("test", Some("http://127.0.0.1:1")).expect("on");
    let span = telemetry
        .tracer()
        .start("publish", SpanKind::Producer, Some(SAMPLED), SystemTime::UNIX_EPOCH);
    assert!(span.is_some());
    drop(telemetry);
}
