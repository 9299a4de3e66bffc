//! SIGTERM and SIGINT: the first stops gracefully, the second at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::exit::ExitStatus;
use super::output::say;

/// Returns a token that the first signal cancels.
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
                std::process::exit(ExitStatus::Interrupted as i32);
            }
            say("stopping: calls in flight may finish; signal again to stop at once");
            token.cancel();
        }
    });
    Ok(stop)
}
