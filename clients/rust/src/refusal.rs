//! What the gateway said when it refused a call or ended a stream: the gRPC status with its details read.
//!
//! Comes from any call; the error enums of the operations carry it.

use std::fmt;
use std::time::Duration;

use sluice_proto::error_code;
use sluice_proto::pb::ErrorCode;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A refusal with the facts that the contract attaches to it.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The gRPC status code.
    pub status: Code,
    /// The contract's own code; `Unspecified` when the status carried none, such as when the connection broke.
    pub error: ErrorCode,
    /// What happened, for a person.
    pub message: String,
    /// The fields at fault, with what is wrong with each.
    pub fields: Vec<(String, String)>,
    /// When to try again, where the gateway says so.
    pub retry_after: Option<Duration>,
    /// See [`Refusal::certainly_not_stored`].
    not_stored: bool,
}

impl Refusal {
    /// Whether the same request may succeed when tried again.
    pub fn retriable(&self) -> bool {
        if self.error != ErrorCode::Unspecified {
            return error_code::facts(self.error).retriable;
        }
        match self.status {
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => true,
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => false,
        }
    }

    /// Whether it is certain that nothing was stored of what was refused. In a [`crate::Ticket`]'s error, that is the ticket's
    /// event.
    pub fn certainly_not_stored(&self) -> bool {
        self.not_stored
    }

    /// The same for one event of a session that it ended. Of that is known whether it was ever sent, and nothing else.
    pub(crate) fn of_event(self, sent: bool) -> Self {
        Self {
            not_stored: !sent,
            ..self
        }
    }

    /// The gateway closed the stream without an error, or said something that the contract does not know.
    pub(crate) fn unexpected(message: &str) -> Self {
        Self {
            status: Code::Unavailable,
            error: ErrorCode::Unspecified,
            message: message.to_owned(),
            fields: Vec::new(),
            retry_after: None,
            not_stored: false,
        }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let error = info.map_or(ErrorCode::Unspecified, |info| {
            ErrorCode::from_str_name(&info.reason)
                .or_else(|| ErrorCode::from_str_name(&format!("ERROR_CODE_{}", info.reason)))
                .unwrap_or(ErrorCode::Unspecified)
        });
        // What ends a session may take back what its code says.
        let stated = info.and_then(|info| info.metadata.get("certainly_not_stored"));
        let fields = details.bad_request().map_or_else(Vec::new, |request| {
            let pair =
                |violation: &tonic_types::FieldViolation| (violation.field.clone(), violation.description.clone());
            request.field_violations.iter().map(pair).collect()
        });
        Self {
            status: status.code(),
            error,
            message: status.message().to_owned(),
            fields,
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            not_stored: stated.map_or(error_code::facts(error).certainly_not_stored, |fact| fact == "true"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.status)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        self.fields
            .iter()
            .filter(|(field, _description)| !self.message.contains(field.as_str()))
            .try_for_each(|(field, description)| write!(f, "; {field}: {description}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn details_become_facts() {
        let mut details = ErrorDetails::with_error_info("FENCED", "sluice.v1", HashMap::new());
        details.add_bad_request_violation("open.epoch", "is too low");
        let refusal = Refusal::from(Status::with_error_details(Code::Aborted, "fenced", details));
        assert_eq!(refusal.error, ErrorCode::Fenced);
        assert!(!refusal.retriable());
        assert!(refusal.certainly_not_stored());
        assert_eq!(refusal.to_string(), "Aborted: fenced; open.epoch: is too low");
    }

    #[test]
    fn what_a_status_states_goes_before_what_its_code_does() {
        for (stated, not_stored) in [("false", false), ("true", true)] {
            let fact = ("certainly_not_stored".to_owned(), stated.to_owned());
            let details = ErrorDetails::with_error_info("FENCED", "sluice.v1", HashMap::from([fact]));
            let refusal = Refusal::from(Status::with_error_details(Code::Aborted, "fenced", details));
            assert_eq!(refusal.certainly_not_stored(), not_stored);
            assert!(refusal.clone().of_event(false).certainly_not_stored());
            assert!(!refusal.of_event(true).certainly_not_stored());
        }
    }

    #[test]
    fn a_gap_may_be_tried_again_and_a_bare_status_goes_by_its_code() {
        let details = ErrorDetails::with_error_info("ERROR_CODE_SEQUENCE_GAP", "sluice.v1", HashMap::new());
        assert!(Refusal::from(Status::with_error_details(Code::FailedPrecondition, "gap", details)).retriable());
        assert!(Refusal::from(Status::unavailable("gone")).retriable());
        assert!(!Refusal::from(Status::unauthenticated("who")).retriable());
        assert!(!Refusal::from(Status::unavailable("gone")).certainly_not_stored());
    }
}
