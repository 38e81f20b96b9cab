//! `bench loader`: what the loader itself can offer on one thread, to a server that does nothing but acknowledge.
//!
//! The server is in this process, on a thread of its own; the loader is a child process with `--cpus 1`, as anybody would
//! start it.

use std::net::TcpListener;

use sluice_proto::pb::ingest_service_server::{IngestService, IngestServiceServer};
use sluice_proto::pb::publish_request::Message as Asked;
use sluice_proto::pb::publish_response::Message as Answer;
use sluice_proto::pb::{self, PublishRequest, PublishResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::report::Report;
use super::{Common, child};

const ANSWERS: usize = 64;
/// So much that it never ends.
const CREDIT: i64 = 1 << 40;
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Options of the benchmark.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) common: Common,
    /// Events a second to offer
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: u32,
    /// Events of a message
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    batch: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Report> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}", listener.local_addr()?);
    listener.set_nonblocking(true)?;
    std::thread::spawn(move || serve(listener));
    let mut report = Report::default();
    for run in 0..=args.common.runs {
        let figures = once(args, &address)?;
        // The first one warms up.
        if run > 0 {
            report.add("loader_sent_events_per_s", "1/s", figures[0]);
            report.add("loader_sent_in_time", "ratio", figures[1]);
            report.add("loader_cpu_us_per_event", "us", figures[2]);
            report.add("loader_slip_p99_ms", "ms", figures[3]);
        }
    }
    Ok(report)
}

fn once(args: &Args, address: &str) -> anyhow::Result<[f64; 4]> {
    let options = [
        ("--rps", args.rate.to_string()),
        ("--batch", args.batch.to_string()),
        ("--duration", format!("{}s", args.seconds)),
        ("--cpus", "1".to_owned()),
    ];
    let run = child::run("publish", address, &options)?;
    Ok([
        run.figure("/rps")?,
        run.figure("/offered/sentInTime")? / run.figure("/offered/due")?,
        run.figure("/offered/cpuS")? * 1e6 / run.figure("/account/sent")?,
        run.figure("/latencies/slip/percentilesUs/99")? / 1e3,
    ])
}

/// Serves until the process ends.
fn serve(listener: TcpListener) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tonic::transport::Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_service(IngestServiceServer::new(Acknowledging))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
            .await?;
        Ok(())
    })
}

/// Stores nothing, and says that everything is stored.
#[derive(Clone)]
struct Acknowledging;

async fn acknowledge(mut requests: Streaming<PublishRequest>, answers: mpsc::Sender<Result<PublishResponse, Status>>) {
    while let Ok(Some(request)) = requests.message().await {
        let answer = match request.message {
            Some(Asked::Open(_)) => Answer::Ready(pb::PublishReady {
                next_sequence: 1,
                credit: Some(pb::Credit {
                    events: CREDIT,
                    bytes: CREDIT,
                }),
                ..pb::PublishReady::default()
            }),
            Some(Asked::Batch(batch)) => Answer::Ack(pb::Ack {
                first_sequence: batch.first_sequence,
                last_sequence: batch.first_sequence + batch.events.len() as u64 - 1,
                status: pb::AckStatus::Stored.into(),
                ..pb::Ack::default()
            }),
            Some(Asked::Refresh(_)) | None => continue,
        };
        if answers
            .send(Ok(PublishResponse { message: Some(answer) }))
            .await
            .is_err()
        {
            return;
        }
    }
}

#[tonic::async_trait]
impl IngestService for Acknowledging {
    type PublishStream = ReceiverStream<Result<PublishResponse, Status>>;

    async fn publish(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let (answers, stream) = mpsc::channel(ANSWERS);
        tokio::spawn(acknowledge(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn publish_one(
        &self,
        _request: Request<pb::PublishOneRequest>,
    ) -> Result<Response<pb::PublishOneResponse>, Status> {
        Ok(Response::new(pb::PublishOneResponse::default()))
    }

    async fn decide(&self, _request: Request<pb::DecideRequest>) -> Result<Response<pb::DecideResponse>, Status> {
        Ok(Response::new(pb::DecideResponse::default()))
    }
}
