//! The harness of the integration tests: it starts the real gateway and the real processor as local processes, each
//! test's installation apart from all others, speaks to them as a client does, and checks what they promise.
//!
//! `servers` finds what `./dev test` started; `process` and `stack` start ours; `run` runs a test on a stack and shows the
//! logs when it fails; `session` and `proxy` are raw clients and a bad network; `topics`, `ledger` and `checker` look at
//! what was left behind. `rail` is a stand-in for the payment rail.

pub mod chaos;
pub mod checker;
pub mod collector;
pub mod command;
pub mod credentials;
pub mod decisions;
pub mod events;
pub mod features;
pub mod history;
pub mod ledger;
pub mod mix;
pub mod money;
pub mod oracle;
pub mod process;
pub mod proxy;
pub mod rail;
pub mod run;
pub mod schemas;
pub mod servers;
pub mod session;
pub mod stack;
pub mod subscribe;
pub mod subscription;
pub mod tenant;
pub mod topics;
pub mod traffic;
pub mod wait;
