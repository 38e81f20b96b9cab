//! Clients that break a bound, each alone: it is refused or waits, and nobody else notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_proto::pb;
use sluice_proto::pb::decision_service_client::DecisionServiceClient;
use sluice_proto::pb::ingest_service_client::IngestServiceClient;
use sluice_tests::proxy::Proxy;
use sluice_tests::run::{on_own, on_shared};
use sluice_tests::session::{Session, authorized, connect, publish_one};
use sluice_tests::stack::{self, Options};
use sluice_tests::{events, wait};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic_types::StatusExt;

/// How long something must not happen to count as waiting.
const STALL: Duration = Duration::from_secs(1);
/// Streams that one connection may have open: the gateway's bound.
const MAX_STREAMS: usize = 256;

#[test]
fn a_header_over_the_bound_is_refused() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut request = authorized(pb::GetSchemaRequest::default(), &tenant.key);
        request
            .metadata_mut()
            .insert("x-large", "x".repeat(20 * 1_024).parse()?);
        let mut client = pb::schema_service_client::SchemaServiceClient::new(connect(&url).await?);
        let answer = wait::soon("GetSchema answers", client.get_schema(request)).await?;
        ensure!(answer.is_err(), "a header list of 20 KiB was accepted");
        publish_one(&url, &tenant.key, events::payment("header")).await??;
        Ok(())
    });
}

#[test]
fn a_request_that_unpacks_to_more_than_the_bound_is_refused_and_others_are_read() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let channel = connect(&stack.gateway_url()).await?;
        for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
            let mut client = IngestServiceClient::new(channel.clone()).send_compressed(encoding);
            let large = events::with(events::payment("packed"), |payment| {
                payment.terminal_id = "0".repeat(8 * 1_024 * 1_024);
            });
            let request = authorized(pb::PublishOneRequest { event: Some(large) }, &tenant.key);
            let status = wait::soon("PublishOne answers", client.publish_one(request)).await?;
            let status = status.err().context("8 MiB were accepted")?;
            let info = status.get_details_error_info().context("no ErrorInfo")?;
            assert_eq!(
                (status.code(), &*info.reason),
                (Code::InvalidArgument, "REQUEST_INVALID")
            );
            let event = Some(events::payment("packed"));
            let request = authorized(pb::PublishOneRequest { event }, &tenant.key);
            client.publish_one(request).await?;
            // Who accepts it gets decisions packed too.
            let mut client = DecisionServiceClient::new(channel.clone()).accept_compressed(encoding);
            let watch = client.watch(authorized(pb::WatchRequest::default(), &tenant.key));
            let mut watch = wait::soon("Watch answers", watch).await??;
            let used = watch.metadata().get("grpc-encoding").context("not packed")?.to_str()?;
            assert_eq!(used, encoding.to_string());
            watch.get_mut().message().await?.context("no first answer")?;
        }
        Ok(())
    });
}

#[test]
fn a_connection_has_so_many_streams_and_further_ones_wait() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let client = DecisionServiceClient::new(connect(&stack.gateway_url()).await?);
        let watch = || {
            let mut client = client.clone();
            let request = authorized(pb::WatchRequest::default(), &tenant.key);
            async move { client.watch(request).await }
        };
        let mut open = Vec::new();
        for _stream in 0..MAX_STREAMS {
            open.push(wait::soon("Watch answers", watch()).await??);
        }
        let mut one_more = Box::pin(watch());
        ensure!(
            tokio::time::timeout(STALL, &mut one_more).await.is_err(),
            "one stream more than allowed was opened"
        );
        drop(open.pop());
        wait::soon("it is opened when there is room", one_more).await??;
        Ok(())
    });
}

#[test]
fn connections_that_say_nothing_any_more_are_released_with_all_they_held() {
    let options = Options {
        processors: 0,
        ..Options::default()
    };
    on_own(options, async |stack| {
        let tenant = stack.tenant();
        // One that never speaks HTTP/2.
        let mut silent = TcpStream::connect(stack.gateway_address()).await?;
        // A network that loses everything from now on, and tells neither side.
        let proxy = Proxy::start(stack.gateway_address()).await?;
        let _session = Session::open(&proxy.url(), &tenant.key, "half-open").await?;
        let mut client = DecisionServiceClient::new(connect(&proxy.url()).await?);
        let watch = client.watch(authorized(pb::WatchRequest::default(), &tenant.key));
        let mut watch = wait::soon("Watch answers", watch).await??.into_inner();
        watch.message().await?.context("no first answer")?;
        let open = async || -> Result<Vec<String>> {
            let page = stack::page(stack.gateway_admin(), "/metrics").await?;
            let ours = ["connections", "sessions", "subscribers"].map(|name| format!("sluice_gateway_{name} "));
            let lines = page
                .lines()
                .filter(|line| ours.iter().any(|name| line.starts_with(name)));
            Ok(lines.map(str::to_owned).collect())
        };
        let before = open().await?;
        ensure!(
            before.contains(&"sluice_gateway_sessions 1".to_owned())
                && before.contains(&"sluice_gateway_subscribers 1".to_owned()),
            "{before:?}"
        );
        proxy.stall(true);
        let mut settings = Vec::new();
        // The gateway's settings are all that it hears; a reset is an end as well.
        let closed = wait::soon("the silent connection is closed", silent.read_to_end(&mut settings));
        drop(closed.await?);
        wait::until("everything is released", async || {
            let left = open().await?;
            Ok(left.iter().all(|line| line.ends_with(" 0")).then_some(()))
        })
        .await?;
        // The same producer may come back at once.
        Session::open(&stack.gateway_url(), &tenant.key, "half-open")
            .await?
            .close()
            .await
    });
}

#[test]
fn so_many_connections_are_open_and_further_ones_wait() {
    let options = Options {
        processors: 0,
        gateway_env: vec![("SLUICE_MAX_CONNECTIONS".to_owned(), "2".to_owned())],
        ..Options::default()
    };
    on_own(options, async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let hold = async || -> Result<_> {
            let mut client = DecisionServiceClient::new(connect(&url).await?);
            let watch = client.watch(authorized(pb::WatchRequest::default(), &tenant.key));
            Ok(wait::soon("Watch answers", watch).await??.into_inner())
        };
        let (first, _second) = (hold().await?, hold().await?);
        let third = publish_one(&url, &tenant.key, events::payment("third"));
        let mut third = Box::pin(third);
        ensure!(
            tokio::time::timeout(STALL, &mut third).await.is_err(),
            "a third connection was served"
        );
        drop(first);
        third.await??;
        Ok(())
    });
}

#[test]
fn gateways_share_a_port_where_they_are_told_to() {
    let options = Options {
        processors: 0,
        gateway_env: vec![("SLUICE_REUSE_PORT".to_owned(), "true".to_owned())],
        ..Options::default()
    };
    on_own(options, async |stack| {
        let tenant = stack.tenant();
        let mut other = stack.another_gateway_at("gateway-other", stack.gateway_address())?;
        other.ready().await?;
        for _call in 0..20 {
            publish_one(&stack.gateway_url(), &tenant.key, events::payment("shared")).await??;
        }
        other.process.must_run()?;
        stack.must_run()
    });
}
