//! The measuring itself, against a server that stands still for a second: what the open loop reports is what arithmetic
//! says, and a closed loop hides it. The server is a few lines in this process, because nothing of the product is tested.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use serde_json::Value;
use sluice_load::run::{self, Mode};
use sluice_proto::pb::ingest_service_server::{IngestService, IngestServiceServer};
use sluice_proto::pb::publish_request::Message as Asked;
use sluice_proto::pb::publish_response::Message as Answer;
use sluice_proto::pb::{self, PublishRequest, PublishResponse};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// The stall, after the first event.
const STALL_FROM: Duration = Duration::from_secs(1);
const STALL_TO: Duration = Duration::from_secs(2);
const RUN_S: f64 = 4.0;
const RATE_PER_S: f64 = 500.0;
const ANSWERS: usize = 64;
/// One run at a time: they would delay each other.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A server that answers at once, except during the stall.
#[derive(Clone)]
struct Stalling {
    began: Arc<Mutex<Option<Instant>>>,
    credit: i64,
}

impl Stalling {
    async fn start(credit: i64) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Self {
            began: Arc::default(),
            credit,
        };
        let server = tonic::transport::Server::builder()
            .add_service(IngestServiceServer::new(service))
            // Without it many answers at once wait 40 ms for a delayed acknowledgement.
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        tokio::spawn(server);
        address
    }

    /// Waits until the stall is over, if there is one now.
    async fn stall(&self) {
        let began = *self.began.lock().unwrap().get_or_insert_with(Instant::now);
        if began.elapsed() >= STALL_FROM {
            sleep_until(began + STALL_TO).await;
        }
    }

    async fn serve(
        self,
        mut requests: Streaming<PublishRequest>,
        answers: mpsc::Sender<Result<PublishResponse, Status>>,
    ) {
        let say = async |message| drop(answers.send(Ok(PublishResponse { message: Some(message) })).await);
        while let Ok(Some(request)) = requests.message().await {
            match request.message {
                Some(Asked::Open(_)) => {
                    let credit = Some(pb::Credit {
                        events: self.credit,
                        bytes: 1 << 40,
                    });
                    let ready = pb::PublishReady {
                        next_sequence: 1,
                        credit,
                        ..pb::PublishReady::default()
                    };
                    say(Answer::Ready(ready)).await;
                }
                Some(Asked::Batch(batch)) => {
                    self.stall().await;
                    let count = batch.events.len() as u64;
                    let ack = pb::Ack {
                        first_sequence: batch.first_sequence,
                        last_sequence: batch.first_sequence + count - 1,
                        status: pb::AckStatus::Stored.into(),
                        ..pb::Ack::default()
                    };
                    say(Answer::Ack(ack)).await;
                    let events = count as i64;
                    say(Answer::Credit(pb::Credit { events, bytes: 0 })).await;
                }
                Some(Asked::Refresh(_)) | None => {}
            }
        }
    }
}

#[tonic::async_trait]
impl IngestService for Stalling {
    type PublishStream = ReceiverStream<Result<PublishResponse, Status>>;

    async fn publish(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let (answers, stream) = mpsc::channel(ANSWERS);
        tokio::spawn(self.clone().serve(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn publish_one(
        &self,
        _request: Request<pb::PublishOneRequest>,
    ) -> Result<Response<pb::PublishOneResponse>, Status> {
        self.stall().await;
        Ok(Response::new(pb::PublishOneResponse::default()))
    }

    async fn decide(&self, _request: Request<pb::DecideRequest>) -> Result<Response<pb::DecideResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: run::Args,
}

/// Runs the loader and reads its report.
async fn report(address: SocketAddr, mode: Mode, options: &[&str]) -> Value {
    let _alone = ALONE.lock().await;
    let path = std::env::temp_dir().join(format!("sluice-stall-{:x}.json", fastrand::u64(..)));
    let (rate, output) = (RATE_PER_S.to_string(), path.to_string_lossy().into_owned());
    let address = format!("http://{address}");
    let fixed = [
        "sluice-load",
        &address,
        "-r",
        &rate,
        "-z",
        "4s",
        "-O",
        "json",
        "-o",
        &output,
        "-q",
    ];
    let line = Line::parse_from(fixed.iter().chain(options));
    assert!(run::run(mode, line.args).await.unwrap(), "something was lost");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn percentile_s(report: &Value, metric: &str, percentage: &str) -> f64 {
    report["latencies"][metric]["percentilesUs"][percentage]
        .as_f64()
        .unwrap()
        / 1e6
}

/// Events due in the stall wait for its end, evenly from nothing to all of it; the others wait for nothing.
fn expected_s(percentage: f64) -> f64 {
    let stall_s = (STALL_TO - STALL_FROM).as_secs_f64();
    let share = stall_s / RUN_S;
    (percentage / 100.0 - (1.0 - share)).max(0.0) / share * stall_s
}

fn assert_arithmetic(report: &Value) {
    for percentage in ["90", "95", "99", "99.9"] {
        let (measured, expected) = (
            percentile_s(report, "ack", percentage),
            expected_s(percentage.parse().unwrap()),
        );
        println!("p{percentage}: measured {measured:.4} s, expected {expected:.4} s");
        assert!(
            (measured / expected - 1.0).abs() < 0.02,
            "p{percentage}: {measured} s, not {expected} s"
        );
    }
    assert_eq!(report["account"]["sent"], (RATE_PER_S * RUN_S) as u64);
    assert_eq!(report["account"]["stored"], report["account"]["sent"]);
    let gap = &report["gaps"][0];
    let gap_s = gap["toS"].as_f64().unwrap() - gap["fromS"].as_f64().unwrap();
    assert!((gap_s - 1.0).abs() < 0.02, "{gap}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_is_measured_for_everyone_who_waits() {
    let address = Stalling::start(1_000_000).await;
    let report = report(address, Mode::Publish, &[]).await;
    assert_arithmetic(&report);
    // The events were sent; it was the answers that were late.
    assert!(percentile_s(&report, "service", "99") > 0.9);
    assert!(percentile_s(&report, "stall", "99") < 0.05);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_by_withheld_credit_is_told_apart() {
    let address = Stalling::start(8).await;
    let report = report(address, Mode::Publish, &[]).await;
    assert_arithmetic(&report);
    // The events could not be sent: the server's own time is short, and so is ours.
    assert!(percentile_s(&report, "stall", "99") > 0.9);
    assert!(percentile_s(&report, "service", "99") < 0.1);
    assert!(percentile_s(&report, "slip", "99") < 0.1);
    let held_s = report["offered"]["heldS"]["credit"].as_f64().unwrap();
    assert!((held_s - 1.0).abs() < 0.05, "{held_s}");
    let in_time = report["offered"]["sentInTime"].as_f64().unwrap();
    assert!(in_time < 0.8 * RATE_PER_S * RUN_S, "{in_time} in time");
    assert!(
        report["notes"].to_string().contains("less was offered"),
        "{}",
        report["notes"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_calls_hide_no_stall_either() {
    let address = Stalling::start(0).await;
    let report = report(address, Mode::PublishOne, &["-c", "700", "--connections", "2"]).await;
    // Hundreds of calls that are answered at once take this server its time, so that there is no upper bound to check.
    for percentage in ["90", "95", "99"] {
        let expected = expected_s(percentage.parse().unwrap());
        assert!(
            percentile_s(&report, "ack", percentage) > expected * 0.98,
            "p{percentage} hides a part of the stall"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_loop_hides_the_stall() {
    let address = Stalling::start(0).await;
    let report = report(address, Mode::PublishOne, &["-c", "4", "--closed-loop"]).await;
    let [median, p99, max] = ["50", "99", "99.999"].map(|percentage| percentile_s(&report, "ack", percentage));
    println!("closed loop: p50 {median:.4} s, p99 {p99:.4} s, max {max:.4} s");
    assert!(max > 0.9, "the stall was met by somebody");
    assert!(p99 < expected_s(99.0) / 10.0, "p99 {p99} s");
    assert!(
        report["notes"].to_string().contains("closed loop"),
        "{}",
        report["notes"]
    );
}
