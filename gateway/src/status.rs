//! Owns every refusal of the gateway: what went wrong, as a [`Failure`], and the only place that turns one into a
//! `tonic::Status` with its google.rpc details or into an `EventError` of an ack.
//!
//! Comes after every stage; nothing comes after it but the wire.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use sluice_proto::error_code;
use sluice_proto::pb::{ErrorCode, EventError};
use sluice_proto::validate::Violation;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::auth;

/// The `domain` of every ErrorInfo.
pub const DOMAIN: &str = "sluice.v1";

/// Why an event, a session or a call is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{code:?}: {reason}; {remedy}")]
pub struct Failure {
    code: ErrorCode,
    /// Where the usual gRPC code of the error code would mislead.
    grpc: Option<Code>,
    field: Box<str>,
    reason: Cow<'static, str>,
    remedy: &'static str,
    retry_after: Option<Duration>,
    quota: Option<&'static str>,
    facts: Vec<(&'static str, String)>,
    /// Whether something may be stored, whatever the code says.
    perhaps_stored: bool,
}

impl Failure {
    /// A failure with its reason and remedy, both lowercase phrases.
    pub fn new(code: ErrorCode, reason: impl Into<Cow<'static, str>>, remedy: &'static str) -> Self {
        Self {
            code,
            grpc: None,
            field: Box::default(),
            reason: reason.into(),
            remedy,
            retry_after: None,
            quota: None,
            facts: Vec::new(),
            perhaps_stored: false,
        }
    }

    /// Names the field at fault.
    pub fn field(mut self, field: impl Into<Box<str>>) -> Self {
        self.field = field.into();
        self
    }

    /// Says when to try again.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Names the quota that is spent.
    pub fn quota(mut self, quota: &'static str) -> Self {
        self.quota = Some(quota);
        self
    }

    /// Adds a fact for programs, such as the expected sequence number.
    pub fn fact(mut self, name: &'static str, value: impl ToString) -> Self {
        self.facts.push((name, value.to_string()));
        self
    }

    /// The position was valid once or will be: OUT_OF_RANGE instead of INVALID_ARGUMENT.
    pub fn out_of_range(mut self) -> Self {
        self.grpc = Some(Code::OutOfRange);
        self
    }

    /// What was asked for does not exist.
    pub fn not_found(mut self) -> Self {
        self.grpc = Some(Code::NotFound);
        self
    }

    /// For the end of a session that has taken events whose fate the client was not told: they may be stored, whatever the
    /// code says of what it refuses.
    pub fn perhaps_stored(mut self) -> Self {
        self.perhaps_stored = true;
        self
    }

    /// Whether it is certain that nothing was stored.
    const fn certainly_not_stored(&self) -> bool {
        error_code::facts(self.code).certainly_not_stored && !self.perhaps_stored
    }

    /// The code.
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// The same as an ack carries it.
    pub fn into_event_error(self) -> EventError {
        EventError {
            code: self.code.into(),
            retriable: error_code::facts(self.code).retriable,
            certainly_not_stored: self.certainly_not_stored(),
            field: self.field.into(),
            reason: self.reason.into_owned(),
            remedy: self.remedy.to_owned(),
        }
    }
}

impl From<Violation> for Failure {
    fn from(violation: Violation) -> Self {
        Self::new(ErrorCode::EventInvalid, violation.reason, violation.remedy).field(violation.field)
    }
}

/// The gRPC code that a client without knowledge of our codes should see. Every code is listed, so that a new one cannot
/// be forgotten here.
const fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::EventInvalid
        | ErrorCode::EventUnreadable
        | ErrorCode::EventTooLarge
        | ErrorCode::RequestInvalid
        | ErrorCode::TokenInvalid => Code::InvalidArgument,
        ErrorCode::Unauthenticated => Code::Unauthenticated,
        ErrorCode::PermissionDenied => Code::PermissionDenied,
        ErrorCode::SessionNotOpen | ErrorCode::SequenceGap => Code::FailedPrecondition,
        ErrorCode::QuotaExceeded => Code::ResourceExhausted,
        ErrorCode::BrokerUnavailable | ErrorCode::DeliveryUncertain | ErrorCode::Draining => Code::Unavailable,
        ErrorCode::Fenced => Code::Aborted,
        ErrorCode::DecisionPending => Code::DeadlineExceeded,
        ErrorCode::EventIdUsed => Code::AlreadyExists,
        ErrorCode::Unimplemented => Code::Unimplemented,
        ErrorCode::Internal | ErrorCode::Unspecified => Code::Internal,
    }
}

/// A code's name without the enum's prefix, such as `SEQUENCE_GAP`: the ErrorInfo's reason and the metrics' label.
pub fn short_name(code: ErrorCode) -> &'static str {
    let name = code.as_str_name();
    name.strip_prefix("ERROR_CODE_").unwrap_or(name)
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let retriable = error_code::facts(failure.code).retriable;
        let mut metadata = HashMap::from([
            ("retriable".to_owned(), retriable.to_string()),
            (
                "certainly_not_stored".to_owned(),
                failure.certainly_not_stored().to_string(),
            ),
        ]);
        metadata.extend(
            failure
                .facts
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone())),
        );
        let mut details = ErrorDetails::with_error_info(short_name(failure.code), DOMAIN, metadata);
        let reason = if failure.field.is_empty() {
            failure.reason.into_owned()
        } else {
            let description = format!("{}; {}", failure.reason, failure.remedy);
            let reason = format!("{} {}", failure.field, failure.reason);
            details.add_bad_request_violation(failure.field, description);
            reason
        };
        if let Some(wait) = failure.retry_after {
            details.set_retry_info(Some(wait));
        }
        if let Some(quota) = failure.quota {
            details.add_quota_failure_violation(quota, reason.clone());
        }
        let code = failure.grpc.unwrap_or(grpc_code(failure.code));
        Self::with_error_details(code, format!("{reason}: {}", failure.remedy), details)
    }
}

/// What tonic says of a request that it could not read. `None` where the client or its connection is gone, so that there
/// is nobody to tell.
pub fn unreadable_request(status: &Status) -> Option<Failure> {
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => Some(Failure::new(
            ErrorCode::RequestInvalid,
            "the message is larger than Limits.max_request_bytes",
            "send fewer events in a batch",
        )),
        Code::Internal => Some(Failure::new(
            ErrorCode::RequestInvalid,
            "the message cannot be decoded",
            "send the messages of sluice/v1 as protobuf",
        )),
        // The guard of the stream's credentials.
        Code::Unauthenticated => Some(auth::refused("the credentials have expired, or were taken back")),
        _ => None,
    }
}

/// What tonic's words for a request that it could not read have in common.
const UNREAD: [&str; 2] = ["decod", "decompress"];

/// Gives a response our details where tonic refused the request before any service saw it.
pub fn explained(response: http::Response<Body>) -> http::Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.details().is_empty() && UNREAD.iter().any(|word| status.message().contains(word)) => {
            unreadable_request(&status).map_or(response, |failure| Status::from(failure).into_http())
        }
        _ => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_carries_the_field_the_two_facts_and_the_wait() {
        let failure = Failure::new(ErrorCode::QuotaExceeded, "the quota is spent", "wait")
            .quota("tenant.events_per_second")
            .retry_after(Duration::from_millis(250))
            .fact("limit", 10);
        let status = Status::from(failure);
        assert_eq!(status.code(), Code::ResourceExhausted);
        let details = status.get_error_details();
        let info = details.error_info().expect("info");
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("QUOTA_EXCEEDED", "sluice.v1")
        );
        assert_eq!(info.metadata["retriable"], "true");
        assert_eq!(info.metadata["certainly_not_stored"], "true");
        assert_eq!(info.metadata["limit"], "10");
        let wait = details.retry_info().and_then(|info| info.retry_delay);
        assert_eq!(wait, Some(Duration::from_millis(250)));
        let quota = &details.quota_failure().expect("quota").violations[0];
        assert_eq!(quota.subject, "tenant.events_per_second");
        assert!(details.bad_request().is_none());
    }

    #[test]
    fn a_session_that_leaves_events_untold_does_not_call_them_absent() {
        let failure = || Failure::new(ErrorCode::Fenced, "a newer session took over", "run one client");
        for (failure, fact) in [(failure(), "true"), (failure().perhaps_stored(), "false")] {
            let status = Status::from(failure);
            assert_eq!(status.code(), Code::Aborted);
            let details = status.get_error_details();
            let info = details.error_info().expect("info");
            assert_eq!(info.metadata["certainly_not_stored"], fact);
            assert_eq!(
                (info.reason.as_str(), info.metadata["retriable"].as_str()),
                ("FENCED", "false")
            );
        }
    }

    #[test]
    fn a_violation_names_its_field_in_status_and_ack() {
        let failure = Failure::from(Violation::new("payment.amount", "is missing", "send it"));
        let error = failure.clone().into_event_error();
        assert_eq!(error.code(), ErrorCode::EventInvalid);
        assert_eq!(
            (error.field.as_str(), error.reason.as_str(), error.remedy.as_str()),
            ("payment.amount", "is missing", "send it")
        );
        assert!(!error.retriable && error.certainly_not_stored);
        let status = Status::from(failure);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "payment.amount is missing: send it");
        let details = status.get_error_details();
        assert_eq!(
            details.bad_request().expect("field").field_violations[0].field,
            "payment.amount"
        );
    }

    #[test]
    fn the_codes_of_the_contract() {
        for (code, grpc) in [
            (ErrorCode::SessionNotOpen, Code::FailedPrecondition),
            (ErrorCode::SequenceGap, Code::FailedPrecondition),
            (ErrorCode::RequestInvalid, Code::InvalidArgument),
            (ErrorCode::Fenced, Code::Aborted),
            (ErrorCode::Unauthenticated, Code::Unauthenticated),
            (ErrorCode::DeliveryUncertain, Code::Unavailable),
            (ErrorCode::Unimplemented, Code::Unimplemented),
        ] {
            assert_eq!(
                Status::from(Failure::new(code, "reason", "remedy")).code(),
                grpc,
                "{code:?}"
            );
        }
        let expired = Failure::new(ErrorCode::TokenInvalid, "expired", "start at the earliest").out_of_range();
        assert_eq!(Status::from(expired).code(), Code::OutOfRange);
    }

    #[test]
    fn a_request_that_tonic_could_not_read_is_explained() {
        let refused = Status::internal("failed to decode Protobuf message: Event.event_id: invalid wire type");
        let explained = explained(refused.into_http());
        let status = Status::from_header_map(explained.headers()).expect("status");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.get_error_details().error_info().expect("info").reason,
            "REQUEST_INVALID"
        );
        let ours = Status::from(Failure::new(ErrorCode::Internal, "cannot be decoded", "report"));
        let kept = super::explained(ours.into_http());
        assert_eq!(
            Status::from_header_map(kept.headers()).expect("status").code(),
            Code::Internal
        );
    }

    #[test]
    fn a_vanished_client_is_not_a_bad_request() {
        assert_eq!(unreadable_request(&Status::cancelled("reset")), None);
        assert_eq!(unreadable_request(&Status::unknown("connection error")), None);
        assert!(unreadable_request(&Status::internal("failed to decode")).is_some());
    }
}
