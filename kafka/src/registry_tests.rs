//! The registry's client against a registry of canned answers: what is cached, what is tried again, what an error says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;

/// Answers one connection after the other with `answers`, and returns the request lines and bodies that it saw.
fn registry(answers: Vec<(u16, &'static str)>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}/", listener.local_addr().expect("address"));
    let server = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut reader = BufReader::new(stream.try_clone().expect("clone"));
            let mut request = String::new();
            reader.read_line(&mut request).expect("request line");
            let mut length = 0;
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).expect("header");
                if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("length");
                }
                if header.trim().is_empty() {
                    break;
                }
            }
            let mut sent = vec![0; length];
            reader.read_exact(&mut sent).expect("body");
            seen.push(format!("{} {}", request.trim(), String::from_utf8(sent).expect("text")));
            write!(
                stream,
                "HTTP/1.1 {status} -\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            )
            .expect("answer");
        }
        seen
    });
    (url, server)
}

#[test]
fn registers_once_and_then_remembers_the_id() {
    let (url, server) = registry(vec![(200, r#"{"id":7}"#)]);
    let client = Registry::new(&url);
    assert_eq!(
        client.register("payments-value", r#"{"type":"string"}"#).expect("id"),
        7
    );
    assert_eq!(
        client.register("payments-value", r#"{"type":"string"}"#).expect("id"),
        7
    );
    let seen = server.join().expect("server");
    assert_eq!(
        seen,
        [r#"POST /subjects/payments-value/versions HTTP/1.1 {"schema":"{\"type\":\"string\"}"}"#]
    );
}

#[test]
fn tries_again_while_the_registry_starts() {
    let (url, server) = registry(vec![
        (503, "starting"),
        (500, ""),
        (200, r#"{"compatibilityLevel":"FULL"}"#),
    ]);
    Registry::new(&url)
        .set_compatibility("payments-value", "FULL")
        .expect("set");
    let seen = server.join().expect("server");
    assert_eq!(seen.len(), 3);
    assert_eq!(
        seen[2],
        r#"PUT /config/payments-value HTTP/1.1 {"compatibility":"FULL"}"#
    );
}

#[test]
fn an_incompatible_schema_is_final_and_explained() {
    let refusal = (409, r#"{"error_code":409,"message":"field\n gone"}"#);
    let (url, server) = registry(vec![refusal; 2]);
    let error = Registry::new(&url)
        .register("payments-value", "{}")
        .expect_err("refused");
    assert!(!error.is_retriable());
    assert!(error.to_string().ends_with("field gone"), "{error}");
    server.join().expect("server");
}

#[test]
fn a_conflict_of_two_that_start_together_is_none_when_asked_again() {
    let exists = (409, r#"{"error_code":409,"message":"exists already"}"#);
    let (url, server) = registry(vec![exists, (200, r#"{"compatibility":"BACKWARD_TRANSITIVE"}"#)]);
    Registry::new(&url)
        .set_compatibility("payments-value", "BACKWARD_TRANSITIVE")
        .expect("set");
    assert_eq!(server.join().expect("server").len(), 2);
}

#[test]
fn a_schema_is_read_once_and_an_unknown_id_is_not_asked_for_at_once() {
    let (url, server) = registry(vec![
        (200, r#"{"schema":"\"string\""}"#),
        (404, r#"{"error_code":40403,"message":"Schema not found"}"#),
        (200, r#"{"subject":"s","id":7,"version":2,"schema":"\"string\""}"#),
    ]);
    let client = Registry::new(&url);
    for _ in 0..2 {
        assert_eq!(&*client.schema_by_id(7).expect("schema"), "\"string\"");
        assert!(client.schema_by_id(8).expect_err("unknown").is_not_found());
    }
    let latest = client.latest("s").expect("latest");
    assert_eq!((latest.id, latest.version), (7, 2));
    server.join().expect("server");
}

#[test]
fn an_error_that_may_pass_is_not_cached() {
    let (url, server) = registry(vec![(503, ""), (200, r#"{"schema":"\"int\""}"#)]);
    let client = Registry::with_patience(&url, Duration::ZERO);
    assert!(client.schema_by_id(1).expect_err("not yet").is_retriable());
    assert_eq!(&*client.schema_by_id(1).expect("schema"), "\"int\"");
    server.join().expect("server");
}

#[test]
fn nonsense_is_an_error_and_nobody_there_is_retriable() {
    let (url, server) = registry(vec![(200, "<html>")]);
    let error = Registry::new(&url).latest("s").expect_err("nonsense");
    assert!(matches!(error, Error::Answer { .. }) && !error.is_retriable());
    server.join().expect("server");
    let free = TcpListener::bind("127.0.0.1:0")
        .expect("bind")
        .local_addr()
        .expect("address");
    let client = Registry::with_patience(&format!("http://{free}"), Duration::ZERO);
    assert!(client.latest("s").expect_err("nobody").is_retriable());
}
