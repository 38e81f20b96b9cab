//! Publishing prepared events over gRPC streams, with as many events a message as told: what a client costs as little as
//! possible of, so that the gateway is measured.
//!
//! Keeps the contract (credit, sequence numbers) without the client's resumption: a stream that ends is an error here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use sluice_proto::pb::ingest_service_client::IngestServiceClient;
use sluice_proto::pb::publish_request::Message as Request;
use sluice_proto::pb::publish_response::Message as Response;
use sluice_proto::pb::{AckStatus, PublishOpen, PublishRequest, PublishResponse};
use sluice_proto::wire::EventBatch;
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::records::Record;
use super::report::histogram;
use crate::DEVELOPMENT_KEY;

/// Requests between this loop and the transport.
const OUTGOING_REQUESTS: usize = 64;
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// One open stream.
pub(super) struct Stream {
    outgoing: mpsc::Sender<PublishRequest>,
    incoming: Streaming<PublishResponse>,
    credit_events: i64,
    credit_bytes: i64,
    stored: Arc<AtomicU64>,
}

impl Stream {
    /// Opens a session on a connection of its own.
    pub(super) async fn open(address: &str, producer_id: String) -> anyhow::Result<Self> {
        Self::open_as(address, producer_id, DEVELOPMENT_KEY).await
    }

    /// The same with another key.
    pub(super) async fn open_as(address: &str, producer_id: String, key: &str) -> anyhow::Result<Self> {
        let channel = Channel::from_shared(address.to_owned())?
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .connect()
            .await?;
        let (outgoing, requests) = mpsc::channel(OUTGOING_REQUESTS);
        let open = PublishOpen {
            producer_id,
            epoch: 1,
            ..PublishOpen::default()
        };
        outgoing
            .send(PublishRequest {
                message: Some(Request::Open(open)),
            })
            .await?;
        let mut request = tonic::Request::new(ReceiverStream::new(requests));
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {key}").parse()?);
        let mut incoming = IngestServiceClient::new(channel).publish(request).await?.into_inner();
        let first = incoming.message().await?.and_then(|response| response.message);
        let Some(Response::Ready(ready)) = first else {
            bail!("the gateway did not begin with Ready");
        };
        let credit = ready.credit.unwrap_or_default();
        ensure!(ready.next_sequence == 1, "the gateway knows this session");
        Ok(Self {
            outgoing,
            incoming,
            credit_events: credit.events,
            credit_bytes: credit.bytes,
            stored: Arc::default(),
        })
    }

    /// Counts the events that are stored.
    pub(super) fn stored(&self) -> Arc<AtomicU64> {
        self.stored.clone()
    }

    /// Publishes the records, and waits until all are stored: as fast as it can, with the latency from a message's sending
    /// to an event's ack, or at a rate, with the latency from when an event is due.
    pub(super) async fn publish(
        mut self,
        records: &[Record],
        per_message: usize,
        rate_per_s: Option<f64>,
    ) -> anyhow::Result<Histogram<u64>> {
        let started = Instant::now();
        let due = |index: usize| rate_per_s.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(index as f64 / rate));
        let mut latency = histogram();
        let mut since_micros: Vec<u64> = Vec::with_capacity(records.len());
        let mut stored = 0;
        while stored < records.len() {
            let (sent, now) = (since_micros.len(), started.elapsed());
            let events = (sent..records.len())
                .take(per_message)
                .take_while(|index| due(*index) <= now);
            let events = events.map(|index| records[index].event.clone());
            let events: Vec<Bytes> = events.collect();
            let bytes: i64 = events.iter().map(|event| event.len() as i64).sum();
            let may_send =
                !events.is_empty() && self.credit_events >= events.len() as i64 && self.credit_bytes >= bytes;
            tokio::select! {
                biased;
                permit = self.outgoing.reserve(), if may_send => {
                    let first_sequence = sent as u64 + 1;
                    let since = |index| if rate_per_s.is_some() { due(index) } else { now };
                    since_micros.extend((sent..sent + events.len()).map(|index| since(index).as_micros() as u64));
                    self.credit_events -= events.len() as i64;
                    self.credit_bytes -= bytes;
                    let message = Some(Request::Batch(EventBatch { first_sequence, events }));
                    permit.context("the gateway closed the stream")?.send(PublishRequest { message });
                }
                () = sleep_until((started + due(sent)).into()), if events.is_empty() && sent < records.len() => {}
                response = self.incoming.message() => {
                    let response = response?.context("the gateway ended the stream")?;
                    match response.message {
                        Some(Response::Ack(ack)) => {
                            ensure!(ack.status() == AckStatus::Stored, "an event was not stored: {:?}", ack.error);
                            let now_micros = started.elapsed().as_micros() as u64;
                            let acknowledged = ack.first_sequence as usize - 1..ack.last_sequence as usize;
                            stored += acknowledged.len();
                            self.stored.store(stored as u64, Ordering::Relaxed);
                            for since in &since_micros[acknowledged] {
                                latency.saturating_record((now_micros - since).max(1));
                            }
                        }
                        Some(Response::Credit(credit)) => {
                            self.credit_events += credit.events;
                            self.credit_bytes += credit.bytes;
                        }
                        Some(Response::Drain(_)) => bail!("the gateway drains"),
                        Some(Response::Ready(_) | Response::Throttle(_) | Response::Ping(_)) | None => {}
                    }
                }
            }
        }
        Ok(latency)
    }
}
