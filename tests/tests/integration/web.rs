//! Browsers: gRPC-Web over HTTP/1.1 with CORS, as fetch sends it.

use anyhow::{Context, Result, ensure};
use prost::Message as _;
use sluice_proto::pb;
use sluice_tests::run::on_own;
use sluice_tests::stack::{Options, Stack};

const ORIGIN: &str = "https://desk.example";

/// A message as gRPC frames it.
fn framed(message: &impl prost::Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    [&[0][..], &(bytes.len() as u32).to_be_bytes(), &bytes].concat()
}

/// The first frame of a body: whether it has trailers, and its bytes.
fn frame(body: &mut impl std::io::Read) -> Result<(bool, Vec<u8>)> {
    let mut head = [0; 5];
    body.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let mut bytes = vec![0; length as usize];
    body.read_exact(&mut bytes)?;
    Ok((head[0] & 0x80 != 0, bytes))
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .proxy(None)
        .allow_non_standard_methods(true);
    config.build().into()
}

fn call(url: &str, key: &str, body: Vec<u8>) -> Result<impl std::io::Read> {
    let response = agent()
        .post(url)
        .header("origin", ORIGIN)
        .header("authorization", format!("Bearer {key}"))
        .content_type("application/grpc-web+proto")
        .send(body)?;
    let allowed = response
        .headers()
        .get("access-control-allow-origin")
        .context("not for this origin")?;
    ensure!(allowed == ORIGIN, "{allowed:?}");
    let exposed = response
        .headers()
        .get("access-control-expose-headers")
        .context("nothing is exposed")?;
    ensure!(exposed.to_str()?.contains("grpc-status-details-bin"), "{exposed:?}");
    Ok(response.into_body().into_reader())
}

fn preflight(url: &str, origin: &str) -> Result<bool> {
    let request = ureq::http::Request::builder()
        .method("OPTIONS")
        .uri(url)
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type,x-grpc-web",
        )
        .body(())?;
    let response = agent().run(request)?;
    Ok(response.headers().contains_key("access-control-allow-origin"))
}

fn browser(url: &str, key: &str, subject: String) -> Result<()> {
    let schema = format!("{url}/sluice.v1.SchemaService/GetSchema");
    ensure!(preflight(&schema, ORIGIN)?, "the configured origin is not allowed");
    ensure!(!preflight(&schema, "https://evil.example")?, "any origin is allowed");
    let mut body = call(&schema, key, framed(&pb::GetSchemaRequest { subject }))?;
    let (trailers, bytes) = frame(&mut body)?;
    ensure!(!trailers && pb::GetSchemaResponse::decode(&*bytes)?.id > 0);
    let (trailers, bytes) = frame(&mut body)?;
    ensure!(trailers && String::from_utf8(bytes)?.contains("grpc-status:0"));
    // A stream: the first answer comes though the call goes on.
    let watch = format!("{url}/sluice.v1.DecisionService/Watch");
    let mut body = call(&watch, key, framed(&pb::WatchRequest::default()))?;
    let (trailers, bytes) = frame(&mut body)?;
    ensure!(!trailers && !pb::WatchResponse::decode(&*bytes)?.token.is_empty());
    Ok(())
}

#[test]
fn a_browser_calls_and_watches_from_the_configured_origin() {
    let options = Options {
        processors: 0,
        gateway_env: vec![("SLUICE_CORS_ORIGIN".to_owned(), ORIGIN.to_owned())],
        ..Options::default()
    };
    on_own(options, async |stack: &mut Stack| {
        let tenant = stack.tenant();
        let subject = sluice_proto::topics::value_subject(&stack.topic(sluice_proto::topics::PAYMENTS));
        let url = stack.gateway_url();
        tokio::task::spawn_blocking(move || browser(&url, &tenant.key, subject)).await?
    });
}
