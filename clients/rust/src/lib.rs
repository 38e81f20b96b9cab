//! The Rust client of Sluice: publish events, receive decisions, and lose neither when a connection is lost.
//!
//! * [`Target`] says where the gateway is and who calls.
//! * [`Publisher`] keeps a publishing session: it numbers events, waits for credit, reconnects, resumes, and tells what
//!   became of each event.
//! * [`Subscriber`] yields decisions, each one once, across reconnects.
//! * [`Unary`] publishes one event in one call.
//!
//! The messages are those of the contract: [`pb`] and [`Money`].
//!
//! ```no_run
//! # async fn run(payment: sluice_client::pb::Event) -> Result<(), Box<dyn std::error::Error>> {
//! use sluice_client::{Publisher, Subscriber, Start, Target};
//!
//! let target = Target::new("http://127.0.0.1:50051", "sluice-dev-key")?;
//! let mut decisions = Subscriber::builder(target.clone()).start(Start::Latest).open().await?;
//! // Higher in each life of this producer: the wall clock is.
//! let epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as u64;
//! let publisher = Publisher::builder(target, "checkout-1", epoch).connect().await?;
//! let ticket = publisher.publish(payment).await?;
//! println!("{:?}", ticket.await?.outcome);
//! println!("{:?}", decisions.next().await?);
//! # Ok(())
//! # }
//! ```

mod backoff;
#[cfg(test)]
mod fake;
pub mod publish;
pub mod refusal;
pub mod subscribe;
pub mod target;
#[cfg(test)]
mod tests;
pub mod unary;

pub use publish::{Outcome, Publisher, Receipt, Ticket};
pub use refusal::Refusal;
pub use sluice_proto::google_type::Money;
pub use sluice_proto::pb;
pub use subscribe::{Start, Subscriber};
pub use target::Target;
pub use unary::Unary;
