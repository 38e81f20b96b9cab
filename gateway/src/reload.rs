//! Owns the reading again of principals and certificates while the gateway runs.
//!
//! Files are looked at rather than watched for: that also works where a secret is mounted, and a few small reads cost
//! nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::auth::Auth;
use crate::tls::Tls;

/// How often the files and the issuers' URLs are read: so long a change takes.
pub const RELOAD_EVERY: Duration = Duration::from_secs(5);

/// Reads everything again and again, until `stop` is cancelled. What cannot be read stays as it was.
pub async fn run(auth: Arc<Auth>, tls: Option<Arc<Tls>>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(RELOAD_EVERY);
    // The first tick comes at once, and the start has just read everything.
    tick.tick().await;
    let mut faults = [None, None];
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let (auth, tls) = (auth.clone(), tls.clone());
        let read = tokio::task::spawn_blocking(move || {
            let principals = auth.reload().err().map(|error| error.to_string());
            let certificates = tls.and_then(|tls| tls.reload().err()).map(|error| error.to_string());
            [principals, certificates]
        });
        let Ok(now) = read.await else { continue };
        for (before, now) in faults.iter_mut().zip(now) {
            // Said once, not every few seconds.
            if let Some(error) = now.as_deref().filter(|_| *before != now) {
                tracing::error!(error, "not reloaded: the earlier one stays in use");
            }
            *before = now;
        }
    }
}
