//! Owns what is said of payments after their decisions: it is checked, stored among the verdicts, and answered when it is
//! there. What comes of it is the processor's to say.
//!
//! Comes after `auth`; nothing comes after it in the gateway.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use sluice_kafka::config::LINGER_MS;
use sluice_kafka::error;
use sluice_proto::avro::Encoder;
use sluice_proto::bounds::MAX_ID_BYTES;
use sluice_proto::event::EventId;
use sluice_proto::pb::review_service_server::ReviewService;
use sluice_proto::pb::{self, ErrorCode, SettleAction};
use sluice_proto::settlement::{Action, MAX_ACTOR_BYTES, MAX_REASON_BYTES, Verdict};
use sluice_proto::topics;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

use crate::auth::{Caller, Role};
use crate::connect;
use crate::service;
use crate::status::Failure;

/// Calls that may wait for Kafka at a time: people, not machines, say what is said here.
pub const MAX_WAITING: usize = 256;
/// When a caller should try again where more wait.
pub const RETRY_AFTER: Duration = Duration::from_millis(500);
/// The quota that is spent then.
pub const VERDICTS_IN_FLIGHT: &str = "gateway.verdicts_in_flight";

type Report = Result<pb::Position, error::Producer>;

/// Gives each delivery report to the call that waits for it.
struct Reports;

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<oneshot::Sender<Report>>;

    fn delivery(&self, result: &DeliveryResult<'_>, caller: Self::DeliveryOpaque) {
        let report = match result {
            Ok(message) => Ok(pb::Position {
                partition: message.partition(),
                offset: message.offset(),
            }),
            Err((error, _)) => Err(error::Producer::Undelivered(error.clone())),
        };
        // A caller that went away does not wait any more.
        drop(caller.send(report));
    }
}

/// Takes verdicts in.
pub struct Reviews {
    topic: String,
    config: ClientConfig,
    /// Replaced where it met a fatal error.
    producer: RwLock<Arc<ThreadedProducer<Reports>>>,
    encoder: Encoder<Verdict>,
}

impl Reviews {
    /// The service that writes to this topic; its producer connects in the background.
    ///
    /// # Errors
    /// When the schema cannot be resolved, or librdkafka does not accept the configuration.
    pub fn new(kafka: &sluice_kafka::Config, topic: &str, schema_id: i32) -> Result<Self, connect::Error> {
        let config = kafka.idempotent_producer(LINGER_MS);
        Ok(Self {
            topic: topic.to_owned(),
            producer: RwLock::new(producer(&config).map_err(connect::Error::Producer)?),
            config,
            encoder: Encoder::new(schema_id).map_err(connect::Error::Schema)?,
        })
    }

    /// The producer of now.
    fn producer(&self) -> Result<Arc<ThreadedProducer<Reports>>, error::Producer> {
        let current = self.producer.read().clone();
        if current.client().fatal_error().is_none() {
            return Ok(current);
        }
        let mut place = self.producer.write();
        if Arc::ptr_eq(&place, &current) {
            tracing::error!("the kafka producer of verdicts met a fatal error and is replaced");
            let broken = std::mem::replace(&mut *place, producer(&self.config)?);
            // Dropping it flushes, which blocks.
            drop(tokio::task::spawn_blocking(move || drop(broken)));
        }
        Ok(place.clone())
    }

    async fn store(&self, verdict: &Verdict) -> Result<pb::Position, Failure> {
        let producer = self.producer().map_err(|error| undelivered(&error))?;
        if usize::try_from(producer.in_flight_count()).unwrap_or(0) >= MAX_WAITING {
            return Err(busy());
        }
        let mut payload = Vec::new();
        self.encoder.encode(verdict, &mut payload).map_err(|error| {
            let remedy = "report it: the gateway checked the verdict before";
            Failure::new(ErrorCode::Internal, error.to_string(), remedy)
        })?;
        let key = topics::key(&verdict.tenant, &verdict.account_id);
        let (report, waiting) = oneshot::channel();
        let record = BaseRecord::with_opaque_to(&self.topic, Box::new(report))
            .key(&key)
            .payload(&payload);
        if let Err((error, _record)) = producer.send(record) {
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
                return Err(busy());
            }
            return Err(undelivered(&error::Producer::Refused(error)));
        }
        // Where it is replaced meanwhile, dropping it here would block.
        drop(producer);
        match waiting.await {
            Ok(Ok(position)) => Ok(position),
            Ok(Err(error)) => Err(undelivered(&error)),
            Err(_) => Err(crate::ingest::call::lost_report()),
        }
    }
}

fn producer(config: &ClientConfig) -> Result<Arc<ThreadedProducer<Reports>>, error::Producer> {
    let made = config.create_with_context(Reports);
    made.map(Arc::new).map_err(error::Producer::Create)
}

#[tonic::async_trait]
impl ReviewService for Reviews {
    async fn settle(&self, request: Request<pb::SettleRequest>) -> Result<Response<pb::SettleResponse>, Status> {
        let caller = service::caller(&request, Role::Review)?;
        let verdict = checked(&caller, request.into_inner())?;
        let position = self.store(&verdict).await?;
        Ok(Response::new(pb::SettleResponse {
            position: Some(position),
        }))
    }
}

/// The verdict that a request is.
fn checked(caller: &Caller, request: pb::SettleRequest) -> Result<Verdict, Failure> {
    let invalid = |field, reason, remedy| Err(Failure::new(ErrorCode::RequestInvalid, reason, remedy).field(field));
    let Some(event_id) = EventId::parse(&request.event_id) else {
        return invalid("event_id", "is no UUID", "send the payment's event_id");
    };
    let account = request.account_id;
    if account.is_empty() || account.len() > MAX_ID_BYTES {
        return invalid(
            "account_id",
            "is missing or too long",
            "send the account of the payment",
        );
    }
    if request.reason.len() > MAX_REASON_BYTES {
        return invalid("reason", "is longer than 1024 bytes", "shorten it");
    }
    // Postgres has no room for it in a text.
    if request.reason.contains('\0') {
        return invalid("reason", "has a NUL character", "leave it out");
    }
    let action = match SettleAction::try_from(request.action) {
        Ok(SettleAction::Approve) => Action::Approve,
        Ok(SettleAction::Decline) => Action::Decline,
        Ok(SettleAction::Cancel) => Action::Cancel,
        Ok(SettleAction::Unspecified) | Err(_) => {
            return invalid("action", "is none", "send APPROVE, DECLINE or CANCEL");
        }
    };
    let mut actor = caller.name.to_string();
    while actor.len() > MAX_ACTOR_BYTES {
        actor.pop();
    }
    Ok(Verdict {
        event_id,
        tenant: caller.tenant.to_string(),
        account_id: account,
        action,
        actor,
        reason: request.reason,
    })
}

fn busy() -> Failure {
    Failure::new(
        ErrorCode::QuotaExceeded,
        "too many verdicts wait for kafka",
        "wait, and say it again",
    )
    .quota(VERDICTS_IN_FLIGHT)
    .retry_after(RETRY_AFTER)
}

fn undelivered(error: &error::Producer) -> Failure {
    let code = if error.nothing_stored() {
        ErrorCode::BrokerUnavailable
    } else {
        ErrorCode::DeliveryUncertain
    };
    Failure::new(code, error.to_string(), "say it again: twice is once")
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn caller() -> Caller {
        Caller {
            tenant: "acme".into(),
            name: "desk".into(),
            roles: [Role::Review].into(),
            topics: None,
            expires: None,
            revoked: CancellationToken::new(),
        }
    }

    fn request() -> pb::SettleRequest {
        pb::SettleRequest {
            event_id: uuid::Uuid::from_u128(7).to_string(),
            account_id: "a".to_owned(),
            action: SettleAction::Approve.into(),
            reason: "known customer".to_owned(),
        }
    }

    #[test]
    fn a_verdict_is_the_callers() {
        let verdict = checked(&caller(), request()).expect("it is valid");
        assert_eq!((verdict.tenant.as_str(), verdict.actor.as_str()), ("acme", "desk"));
        assert_eq!(verdict.action, Action::Approve);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_field() {
        let broken: [fn(&mut pb::SettleRequest); 5] = [
            |request| request.event_id.clear(),
            |request| request.account_id.clear(),
            |request| request.action = 9,
            |request| request.reason = "x".repeat(MAX_REASON_BYTES + 1),
            |request| request.reason = "fraud\0".to_owned(),
        ];
        for change in broken {
            let mut request = request();
            change(&mut request);
            let refused = checked(&caller(), request).expect_err("it is invalid");
            assert_eq!(refused.code(), ErrorCode::RequestInvalid);
        }
    }
}
