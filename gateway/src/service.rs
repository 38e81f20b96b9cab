//! The gRPC surface: thin implementations of the contract's services, which take a request apart and hand it to a driver.
//!
//! Comes after `auth`, which put the caller into the request's extensions.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use sluice_kafka::telemetry;
use sluice_proto::pb::audit_service_server::AuditService;
use sluice_proto::pb::decision_service_server::DecisionService;
use sluice_proto::pb::ingest_service_server::IngestService;
use sluice_proto::pb::schema_service_server::SchemaService;
use sluice_proto::pb::{self, ErrorCode};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::audit::read::Reader;
use crate::auth::{Auth, Caller, Role};
use crate::decide;
use crate::decisions::subscribe::{self, Flow};
use crate::decisions::{self, watch};
use crate::guard::{Guarded, Standing};
use crate::ingest::{self, call, session};
use crate::status::Failure;

/// Takes events in.
pub struct Ingest {
    /// What sessions and calls share.
    pub shared: Arc<ingest::Shared>,
    /// Where Decide finds its answers.
    pub decisions: Arc<decisions::Shared>,
    /// Who may call, for credentials that come inside of a session.
    pub auth: Arc<Auth>,
    /// The sessions, which a drain waits for.
    pub tasks: TaskTracker,
}

/// Gives decisions out.
pub struct Decisions {
    /// What subscriptions share.
    pub shared: Arc<decisions::Shared>,
    /// Who may call, for credentials that come inside of a subscription.
    pub auth: Arc<Auth>,
    /// The subscriptions, which a drain waits for.
    pub tasks: TaskTracker,
}

/// Tells the schemas, by the registry's subject.
pub struct Schemas(pub BTreeMap<String, pb::GetSchemaResponse>);

/// Gives the audit log to auditors.
pub struct Auditing(pub Reader);

/// Who calls, and may do so.
pub(crate) fn caller<T>(request: &Request<T>, role: Role) -> Result<Caller, Failure> {
    let caller = identity(request)?;
    caller.must(role)?;
    Ok(caller)
}

/// Who calls. Without the interceptor there is no caller, and nobody is let in.
fn identity<T>(request: &Request<T>) -> Result<Caller, Failure> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| {
        Failure::new(
            ErrorCode::Unauthenticated,
            "the credentials are missing",
            "send the metadata authorization: Bearer KEY, or x-api-key: KEY",
        )
    })
}

/// The call's trace context, where it is well formed: by the standard, one that is not is as good as none.
fn traceparent(metadata: &MetadataMap) -> Option<String> {
    let text = metadata.get("traceparent")?.to_str().ok()?;
    // The fields of a later version are not passed on, since they could be of any length.
    telemetry::parse(text).map(|context| telemetry::format(&context))
}

#[tonic::async_trait]
impl IngestService for Ingest {
    type PublishStream = ReceiverStream<Result<pb::PublishResponse, Status>>;

    async fn publish(
        &self,
        request: Request<Streaming<pb::PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let caller = caller(&request, Role::Publish)?;
        let traceparent = traceparent(request.metadata());
        let standing = Standing::new(caller);
        let inbound = Guarded::new(request.into_inner(), standing.clone(), self.auth.clone());
        let (outbound, responses) = mpsc::channel(session::RESPONSES);
        // The response begins before the first request is read: some clients send nothing until then.
        let session = session::run(self.shared.clone(), standing, traceparent, inbound, outbound);
        self.tasks.spawn(session);
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn publish_one(
        &self,
        request: Request<pb::PublishOneRequest>,
    ) -> Result<Response<pb::PublishOneResponse>, Status> {
        let caller = caller(&request, Role::Publish)?;
        let traceparent = traceparent(request.metadata());
        let event = request.into_inner().event;
        let position = call::publish_one(&self.shared, &caller, traceparent.as_deref(), event).await?;
        Ok(Response::new(pb::PublishOneResponse {
            position: Some(position),
        }))
    }

    async fn decide(&self, request: Request<pb::DecideRequest>) -> Result<Response<pb::DecideResponse>, Status> {
        let caller = caller(&request, Role::Decide)?;
        let traceparent = traceparent(request.metadata());
        let timeout = decide::timeout(request.metadata());
        let event = request.into_inner().event;
        let decision = decide::decide(
            &self.shared,
            &self.decisions,
            &caller,
            traceparent.as_deref(),
            timeout,
            event,
        );
        Ok(Response::new(pb::DecideResponse {
            decision: Some(decision.await?),
        }))
    }
}

#[tonic::async_trait]
impl DecisionService for Decisions {
    type SubscribeStream = ReceiverStream<Result<pb::SubscribeResponse, Status>>;
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<pb::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = caller(&request, Role::Subscribe)?;
        let inbound = Guarded::new(request.into_inner(), Standing::new(caller.clone()), self.auth.clone());
        let (outbound, responses) = mpsc::channel(subscribe::RESPONSES);
        let subscription = subscribe::run(self.shared.clone(), caller, Flow::Credit, inbound, outbound);
        self.tasks.spawn(subscription);
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(&request, Role::Subscribe)?;
        let open = watch::opening(request.into_inner())?;
        let (outbound, responses) = mpsc::channel(subscribe::RESPONSES);
        let requests = Guarded::new(watch::requests(open), Standing::new(caller.clone()), self.auth.clone());
        let subscription = subscribe::run(self.shared.clone(), caller, Flow::Transport, requests, outbound);
        self.tasks.spawn(subscription);
        Ok(Response::new(Box::pin(
            ReceiverStream::new(responses).map(watch::answer),
        )))
    }
}

#[tonic::async_trait]
impl SchemaService for Schemas {
    async fn get_schema(
        &self,
        request: Request<pb::GetSchemaRequest>,
    ) -> Result<Response<pb::GetSchemaResponse>, Status> {
        let found = self.0.get(&request.into_inner().subject).cloned();
        let schema = found.ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            Failure::new(
                ErrorCode::RequestInvalid,
                "is not a subject of this gateway",
                "ask for one of the known subjects",
            )
            .field("subject")
            .not_found()
            .fact("known", known.join(" "))
        })?;
        Ok(Response::new(schema))
    }
}

#[tonic::async_trait]
impl AuditService for Auditing {
    type ReadAuditStream = ReceiverStream<Result<pb::ReadAuditResponse, Status>>;

    async fn read_audit(
        &self,
        request: Request<pb::ReadAuditRequest>,
    ) -> Result<Response<Self::ReadAuditStream>, Status> {
        let caller = caller(&request, Role::Audit)?;
        let since = request.into_inner().since.unwrap_or_default();
        // Kafka counts in milliseconds; whoever asks for a time before 1970 asks for everything.
        let since_ms = since
            .seconds
            .saturating_mul(1_000)
            .saturating_add(i64::from(since.nanos) / 1_000_000);
        Ok(Response::new(self.0.entries(&caller, since_ms.max(0))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_trace_context_is_none() {
        let mut metadata = MetadataMap::new();
        assert_eq!(traceparent(&metadata), None);
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        metadata.insert("traceparent", good.parse().expect("ascii"));
        assert_eq!(traceparent(&metadata).as_deref(), Some(good));
        metadata.insert("traceparent", "00-xyz".parse().expect("ascii"));
        assert_eq!(traceparent(&metadata), None);
    }

    #[test]
    fn nobody_is_let_in_without_the_interceptor() {
        assert!(caller(&Request::new(()), Role::Publish).is_err());
    }
}
