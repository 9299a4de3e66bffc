//! SIGTERM and SIGINT: the first asks for a graceful end, the second ends now.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Exit, say};

/// A token that the first signal cancels.
///
/// # Errors
/// If the system lets no handler be set.
pub(super) fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let token = stop.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if token.is_cancelled() {
                std::process::exit(Exit::Interrupted as i32);
            }
            say("stopping: calls in flight may finish; once more to stop at once");
            token.cancel();
        }
    });
    Ok(stop)
}
