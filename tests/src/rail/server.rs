//! How the stand-in is called: `POST /v1/{capture,cancel,refund,query}` as a rail is, and for tests `PUT /faults`,
//! `GET /book`, `GET /totals` and `GET /calls`.
//!
//! Comes before [`super::book`], which does what is ordered.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use super::book::{Book, Operation, Order, Standing};
use super::faults::{Faults, Meets};

/// How long a call that is never answered stays open: longer than any caller waits.
const SILENCE: Duration = Duration::from_secs(30);
/// How late a call is done that its caller has given up: after the caller has asked how it stands.
const LATE: Duration = Duration::from_millis(2_500);
/// Largest request, in bytes.
const MAX_REQUEST_BYTES: usize = 4 * 1_024 * 1_024;
/// Seconds of which the calls are remembered.
const MAX_SECONDS: usize = 100_000;

#[derive(Deserialize)]
struct Request {
    orders: Vec<Order>,
}

#[derive(Serialize)]
struct Answer {
    standings: Vec<Standing>,
}

/// What was asked in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Calls.
    pub calls: u64,
    /// Payments in them.
    pub payments: u64,
}

#[derive(Default)]
struct Rail {
    book: Book,
    faults: Faults,
    rng: Rng,
    /// By second since the Unix epoch.
    load: BTreeMap<u64, Load>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Rail>>);

impl Shared {
    fn rail(&self) -> MutexGuard<'_, Rail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is ordered, some of it not, as the faults say.
    fn take(&self, operation: Operation, orders: &[Order]) -> Result<Vec<Standing>> {
        let mut rail = self.rail();
        let rail = &mut *rail;
        let faults = rail.faults;
        let mut standings = Vec::with_capacity(orders.len());
        for order in orders {
            let chance = rail.rng.u32(..100);
            let operation = if operation == Operation::Capture && chance < faults.undone {
                Operation::Query
            } else {
                operation
            };
            let refuse = (faults.undone..faults.undone + faults.refused).contains(&chance);
            standings.push(rail.book.take(operation, order, refuse)?);
        }
        Ok(standings)
    }
}

/// Serves until the process ends.
///
/// # Errors
/// When the address is taken.
pub async fn serve(address: SocketAddr) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let routes = Router::new()
        .route("/v1/{operation}", post(call))
        .route("/faults", put(order_faults))
        .route("/book", get(book))
        .route("/totals", get(totals))
        .route("/calls", get(calls))
        .route("/health/ready", get(|| async { "ready\n" }))
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(Shared::default());
    Ok(axum::serve(listener, routes).await?)
}

async fn call(State(shared): State<Shared>, Path(operation): Path<String>, body: String) -> (StatusCode, String) {
    let Some(operation) = Operation::parse(&operation) else {
        return (StatusCode::NOT_FOUND, String::new());
    };
    let Ok(Request { orders }) = serde_json::from_str(&body) else {
        return (StatusCode::BAD_REQUEST, "expected {\"orders\": [...]}\n".to_owned());
    };
    let meets = {
        let mut rail = shared.rail();
        let rail = &mut *rail;
        let load = rail.load.entry(now_s()).or_default();
        load.calls += 1;
        load.payments += orders.len() as u64;
        if rail.load.len() > MAX_SECONDS {
            rail.load.pop_first();
        }
        rail.faults.next(&mut rail.rng)
    };
    match meets {
        Meets::Unavailable => return (StatusCode::SERVICE_UNAVAILABLE, String::new()),
        Meets::FailedUndone => return (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
        Meets::SilentLate => {
            // Not this call's future, which ends with the caller's connection.
            tokio::spawn(async move {
                pass(LATE).await;
                drop(shared.take(operation, &orders));
            });
            pass(SILENCE).await;
            return (StatusCode::GATEWAY_TIMEOUT, String::new());
        }
        Meets::Nothing | Meets::FailedDone | Meets::SilentDone => {}
    }
    let done = shared.take(operation, &orders);
    match (meets, done) {
        (_, Err(error)) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{error:#}\n")),
        (Meets::SilentDone, Ok(_)) => {
            pass(SILENCE).await;
            (StatusCode::GATEWAY_TIMEOUT, String::new())
        }
        (Meets::FailedDone, Ok(_)) => (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
        (_, Ok(standings)) => page(&Answer { standings }),
    }
}

async fn order_faults(State(shared): State<Shared>, body: String) -> (StatusCode, String) {
    match serde_json::from_str(&body) {
        Ok(faults) => {
            shared.rail().faults = faults;
            (StatusCode::OK, String::new())
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

async fn book(State(shared): State<Shared>) -> (StatusCode, String) {
    page(shared.rail().book.entries())
}

async fn totals(State(shared): State<Shared>) -> (StatusCode, String) {
    page(&shared.rail().book.totals())
}

async fn calls(State(shared): State<Shared>) -> (StatusCode, String) {
    page(&shared.rail().load)
}

fn page(value: &impl Serialize) -> (StatusCode, String) {
    match serde_json::to_string(value) {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// The time that passes is the fault.
async fn pass(time: Duration) {
    tokio::time::interval_at(tokio::time::Instant::now() + time, time)
        .tick()
        .await;
}

fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
