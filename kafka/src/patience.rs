//! Waiting, at a start, for what was made a moment ago: brokers learn of new topics and their leaders one after the other.
//!
//! Comes around the first calls of the servers; nothing uses it once they serve.

use std::time::{Duration, Instant};

/// How long a start goes on asking.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Asks again while the error may pass, for as long as [`PATIENCE`]. Blocks.
///
/// # Errors
/// The last one.
pub fn patiently<T, E>(may_pass: impl Fn(&E) -> bool, mut ask: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Err(error) if may_pass(&error) && Instant::now() < deadline => {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the bounded pause between two tries of a start"
                )]
                std::thread::sleep(PAUSE);
            }
            answer => return answer,
        }
    }
}
