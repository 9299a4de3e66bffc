//! Webhook notifier beside a command that works.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::webhook::{WebhookNotifier, WebhookSettings, WebhookSettingsError};
use store::Store;
use telemetry::WorkerProgress;

/// Longest wait for the receiver at the end of a completed command.
const FINISH_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest wait at the end of a command that was stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends pending notices once, at the end of a command without other workers beside it.
///
/// # Errors
/// If the webhook can't be used as configured.
pub async fn notify_once(
    settings: &WebhookSettings,
    store: Arc<dyn Store>,
) -> Result<(), WebhookSettingsError> {
    let Some(target) = settings.target()? else { return Ok(()) };
    WebhookNotifier::new(store, target)?.finish(FINISH_TIMEOUT).await;
    Ok(())
}

/// Running webhook notifier.
pub struct WebhookTask {
    teller: Arc<WebhookNotifier>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl WebhookTask {
    /// Starts the notifier; `None` if no webhook is configured.
    ///
    /// # Errors
    /// If the webhook can't be used as configured.
    pub fn start(
        settings: &WebhookSettings,
        store: &Arc<dyn Store>,
        progress: &Arc<WorkerProgress>,
    ) -> Result<Option<Self>, WebhookSettingsError> {
        let Some(target) = settings.target()? else { return Ok(None) };
        let teller = WebhookNotifier::new(store.clone(), target)?;
        let (teller, stop) = (Arc::new(teller), CancellationToken::new());
        let running = {
            let (teller, progress, stop) = (teller.clone(), progress.clone(), stop.clone());
            tokio::spawn(async move { teller.run(&progress, &stop).await })
        };
        Ok(Some(Self { teller, stop, running }))
    }

    /// Sends pending notices. Those not accepted in time are left to the next worker.
    pub async fn finish(self, is_through: bool) {
        self.stop.cancel();
        let abort = self.running.abort_handle();
        // An attempt that is cut off is repeated, under the same id.
        if tokio::time::timeout(STOP_TIMEOUT, self.running).await.is_err() {
            abort.abort();
        }
        self.teller.finish(if is_through { FINISH_TIMEOUT } else { STOP_TIMEOUT }).await;
    }
}
