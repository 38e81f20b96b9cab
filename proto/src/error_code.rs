//! The two facts that each error code states: may the client try again, and is it certain that nothing was stored.

use crate::pb::ErrorCode;

/// What an error code promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The same request may succeed when tried again.
    pub retriable: bool,
    /// It is certain that nothing was stored.
    pub certainly_not_stored: bool,
}

/// The facts of a code, as the contract documents them.
pub const fn facts(code: ErrorCode) -> Facts {
    let (retriable, certainly_not_stored) = match code {
        ErrorCode::EventInvalid
        | ErrorCode::EventUnreadable
        | ErrorCode::EventTooLarge
        | ErrorCode::Unauthenticated
        | ErrorCode::PermissionDenied
        | ErrorCode::SessionNotOpen
        | ErrorCode::RequestInvalid
        | ErrorCode::Fenced
        | ErrorCode::TokenInvalid
        | ErrorCode::Unimplemented => (false, true),
        ErrorCode::EventIdUsed => (false, false),
        ErrorCode::SequenceGap | ErrorCode::QuotaExceeded | ErrorCode::BrokerUnavailable | ErrorCode::Draining => {
            (true, true)
        }
        ErrorCode::DeliveryUncertain | ErrorCode::DecisionPending | ErrorCode::Internal | ErrorCode::Unspecified => {
            (true, false)
        }
    };
    Facts {
        retriable,
        certainly_not_stored,
    }
}
