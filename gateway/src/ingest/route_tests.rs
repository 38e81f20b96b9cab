//! What a routing table says, and where events go by it.

use sluice_proto::event::{EventId, MetricRecord};

use super::*;

fn table(text: &str) -> Result<Table, String> {
    Table::build(toml::from_str(text).map_err(|error: toml::de::Error| error.to_string())?)
}

fn routing(text: &str) -> Routing {
    let table = table(text).expect("valid");
    Routing::new(&table, &Topics::new("x."), "x.", &sluice_kafka::Metrics::default())
}

fn metric() -> Checked {
    Checked::Metric(MetricRecord {
        event_id: EventId::new(uuid::Uuid::from_u128(1)),
        tenant: "acme".to_owned(),
        occurred_at: 0,
        name: "m".to_owned(),
        value: 1.0,
        unit: None,
        attributes: Default::default(),
    })
}

fn custom(type_name: &str, record: &'static [u8]) -> CustomRecord {
    CustomRecord {
        event_id: EventId::new(uuid::Uuid::from_u128(1)),
        occurred_at: 0,
        type_name: type_name.to_owned(),
        subject: "s".to_owned(),
        record: record.into(),
    }
}

fn confined(topics: &[&str]) -> Caller {
    let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
    Caller {
        topics: Some(topics.into()),
        ..Caller::of("acme")
    }
}

const TABLE: &str = "topics = [\"spare\"]\n[[route]]\ntype = \"metric\"\ntopic = \"numbers\"\n\
                     [[route]]\ntype = \"chargeback\"\ntopic = \"chargebacks\"\n";

#[test]
fn each_type_has_its_topic_unless_the_table_says_otherwise() {
    let (caller, event) = (Caller::of("acme"), metric());
    let name = |routing: &Routing, event: &Checked| {
        let id = routing.of(event, "", &caller).expect("routed");
        routing.topic(id).name.clone()
    };
    assert_eq!(name(&routing(""), &event), "x.metric-events");
    assert_eq!(name(&routing(TABLE), &event), "x.numbers");
    let chargeback = Checked::Custom(custom("chargeback", b""));
    assert_eq!(name(&routing(TABLE), &chargeback), "x.chargebacks");
    let unknown = routing("").of(&chargeback, "", &caller).expect_err("unknown");
    assert_eq!(unknown.code(), ErrorCode::EventInvalid);
    let names = routing(TABLE).names();
    assert_eq!(
        names,
        [
            "x.payments",
            "x.user-actions",
            "x.system-events",
            "x.numbers",
            "x.chargebacks",
            "x.spare"
        ]
    );
}

#[test]
fn a_list_of_topics_confines_its_caller_and_lets_it_name_one() {
    let (routing, event) = (routing(TABLE), metric());
    let of = |named: &str, caller: &Caller| routing.of(&event, named, caller).map(|id| &*routing.topic(id).name);
    let code = |named: &str, caller: &Caller| of(named, caller).expect_err("refused").code();
    assert_eq!(of("spare", &confined(&["spare"])).expect("allowed"), "x.spare");
    assert_eq!(
        of("spare", &Caller::of("acme")).expect_err("no list").code(),
        ErrorCode::PermissionDenied
    );
    assert_eq!(code("", &confined(&["spare"])), ErrorCode::PermissionDenied);
    assert_eq!(code("numbers", &confined(&["spare"])), ErrorCode::PermissionDenied);
    assert_eq!(code("nowhere", &confined(&["nowhere"])), ErrorCode::EventInvalid);
    assert_eq!(code("payments", &confined(&["payments"])), ErrorCode::EventInvalid);
    assert_eq!(of("numbers", &confined(&["numbers"])).expect("allowed"), "x.numbers");
}

#[test]
fn a_custom_record_is_checked_against_the_schema_that_it_names() {
    let routing = routing(TABLE);
    let schema = r#"{"type": "record", "name": "C", "fields": [{"name": "note", "type": "string"}]}"#;
    let version = Version {
        id: 7,
        version: 1,
        schema: schema.to_owned(),
    };
    routing.know("chargeback", &version).expect("schema");
    let refused = |record: &'static [u8]| {
        let failure = routing.check(&custom("chargeback", record)).expect_err("refused");
        failure.into_event_error().field
    };
    assert!(routing.check(&custom("chargeback", b"\0\0\0\0\x07\x02a")).is_ok());
    for framing in [&b""[..], b"\0\0\0\0", b"\x01\0\0\0\x07\x02a", b"\0\0\0\0\x08\x02a"] {
        assert_eq!(refused(framing), "custom.record", "{framing:?}");
    }
    assert_eq!(refused(b"\0\0\0\0\x07\x04a"), "custom.record.note");
    assert_eq!(refused(b"\0\0\0\0\x07\x02ab"), "custom.record");
}

#[test]
fn a_version_that_cannot_be_checked_against_hides_no_other() {
    let routing = routing(TABLE);
    let record = r#"{"type": "record", "name": "C", "fields": [{"name": "note", "type": "string"}]}"#;
    let versions = [(7, record), (8, "\"string\""), (9, record)].map(|(id, schema)| Version {
        id,
        version: id - 6,
        schema: schema.to_owned(),
    });
    let custom_type = routing.custom.get("chargeback").expect("it is in the table");
    custom_type.know_all(&versions);
    assert_eq!(custom_type.known.read().newest, 3);
    assert!(routing.check(&custom("chargeback", b"\0\0\0\0\x07\x02a")).is_ok());
    assert!(routing.check(&custom("chargeback", b"\0\0\0\0\x08\x02a")).is_err());
    assert!(routing.check(&custom("chargeback", b"\0\0\0\0\x09\x02a")).is_ok());
}

#[test]
fn senseless_tables_are_refused() {
    for text in [
        "topics = [\"decisions\"]",
        "topics = [\"payments\"]",
        "topics = [\"a b\"]",
        "topics = [\"\"]",
        "[[route]]\ntype = \"payment\"\ntopic = \"elsewhere\"",
        "[[route]]\ntype = \"metric\"\ntopic = \"payments.dlq\"",
        "[[route]]\ntype = \"metric\"\ntopic = \"m\"\nsubject = \"s\"",
        "[[route]]\ntype = \"a\"\ntopic = \"m\"\n[[route]]\ntype = \"a\"\ntopic = \"n\"",
        "[[route]]\ntype = \"\"\ntopic = \"m\"",
        "[[route]]\ntype = \"a\"",
        "unknown = 1",
    ] {
        assert!(table(text).is_err(), "{text}");
    }
    assert_eq!(table("").expect("valid"), Table::default());
}
