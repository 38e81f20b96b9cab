//! Owns how a payment rail is called: what any rail must be able to do, and the one that is reached by HTTP.
//!
//! Called by [`super::work`] with a bounded batch; says how each payment stands afterwards, or why that is not known.
//! docs/saga.md describes the protocol.

use std::io::ErrorKind;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_kafka::fail;

use super::machine::{Operation, Standing, Trouble};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest answer that is read, in bytes: some fifty for each payment of the largest call.
const MAX_ANSWER_BYTES: u64 = 1_024 * 1_024;

/// What a call is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Order {
    /// The payment's idempotency key: `tenant/event_id`.
    pub(crate) key: String,
    pub(crate) account: String,
    /// In the currency's major unit, such as `12.34`.
    pub(crate) amount: String,
    pub(crate) currency: String,
}

/// Where money is moved. Every operation is idempotent by the order's key: a rail captures a key at most once, never after
/// it confirmed a cancellation, and gives its money back at most once.
pub(crate) trait Rail: Sync {
    /// Asks for one thing about each of these payments, and says how each of them stands then, in the same order. Blocks.
    fn call(&self, operation: Operation, orders: &[Order]) -> Result<Vec<Standing>, Trouble>;
}

/// A rail that is called by HTTP.
pub(crate) struct HttpRail {
    agent: ureq::Agent,
    base: String,
}

#[derive(Serialize)]
struct Request<'a> {
    orders: &'a [Order],
}

#[derive(Deserialize)]
struct Answer {
    standings: Vec<Word>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    None,
    Captured,
    Refused,
    Cancelled,
    Refunded,
}

impl HttpRail {
    /// The rail at this base URL. A call may take `timeout`; what it did when that is over is not known.
    pub(crate) fn new(url: &str, timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT.min(timeout / 2)))
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .proxy(None)
            .user_agent("sluice-processor")
            .build();
        Self {
            agent: config.into(),
            base: url.trim_end_matches('/').to_owned(),
        }
    }
}

impl Rail for HttpRail {
    fn call(&self, operation: Operation, orders: &[Order]) -> Result<Vec<Standing>, Trouble> {
        let path = match operation {
            Operation::Capture => "capture",
            Operation::Cancel => "cancel",
            Operation::Refund => "refund",
            Operation::Query => "query",
        };
        let url = format!("{}/v1/{path}", self.base);
        let mut answer = self
            .agent
            .post(&url)
            .send_json(Request { orders })
            .map_err(|error| trouble(&error))?;
        let status = answer.status().as_u16();
        match status {
            200 => {}
            // By their definition nothing was done.
            429 | 503 => return Err(Trouble::Retriable),
            // It is not understood, or not allowed: a mistake in how the rail is set up, and none of the payment's.
            400..500 => {
                tracing::error!(url, status, "the rail does not take calls");
                return Err(Trouble::Rejected);
            }
            _ => return Err(Trouble::Unknown),
        }
        let answer: Answer = answer
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER_BYTES)
            .read_json()
            .map_err(|_| Trouble::Unknown)?;
        if answer.standings.len() != orders.len() {
            return Err(Trouble::Unknown);
        }
        fail::pass("saga.answered");
        Ok(answer.standings.into_iter().map(Standing::from).collect())
    }
}

impl From<Word> for Standing {
    fn from(word: Word) -> Self {
        match word {
            Word::None => Self::None,
            Word::Captured => Self::Captured,
            Word::Refused => Self::Refused,
            Word::Cancelled => Self::Cancelled,
            Word::Refunded => Self::Refunded,
        }
    }
}

/// Only what surely was not sent counts as that.
fn trouble(error: &ureq::Error) -> Trouble {
    let unsent = match error {
        ureq::Error::Io(error) => error.kind() == ErrorKind::ConnectionRefused,
        ureq::Error::Timeout(timeout) => matches!(timeout, ureq::Timeout::Resolve | ureq::Timeout::Connect),
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::BadUri(_) => true,
        _ => false,
    };
    if unsent { Trouble::Transient } else { Trouble::Unknown }
}
