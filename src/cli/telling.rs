//! The webhook beside a command that works.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::webhook::{Settings, Teller};
use store::Store;
use telemetry::Progress;

/// How long a command that is through waits for the receiver.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long one does that was told to stop.
const SHORT_PATIENCE: Duration = Duration::from_secs(5);

/// Tells once what there is, at the end of a command that nobody works beside.
pub(super) async fn tell(settings: &Settings, store: Arc<dyn Store>) -> Result<(), Failure> {
    let Some(target) = settings.target().map_err(Failure::usage)? else { return Ok(()) };
    Teller::new(store, target).map_err(Failure::usage)?.finish(PATIENCE).await;
    Ok(())
}

/// A teller at work.
pub(super) struct Telling {
    teller: Arc<Teller>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Telling {
    /// None if there is nobody to tell.
    pub(super) fn start(
        settings: &Settings,
        store: &Arc<dyn Store>,
        progress: &Arc<Progress>,
    ) -> Result<Option<Self>, Failure> {
        let Some(target) = settings.target().map_err(Failure::usage)? else { return Ok(None) };
        let teller = Teller::new(store.clone(), target).map_err(Failure::usage)?;
        let (teller, stop) = (Arc::new(teller), CancellationToken::new());
        let running = {
            let (teller, progress, stop) = (teller.clone(), progress.clone(), stop.clone());
            tokio::spawn(async move { teller.run(&progress, &stop).await })
        };
        Ok(Some(Self { teller, stop, running }))
    }

    /// Tells what there is now. What is not heard in time is left to the next worker.
    pub(super) async fn finish(self, is_through: bool) {
        self.stop.cancel();
        let abort = self.running.abort_handle();
        // A try that is cut off is made again, under the same id.
        if tokio::time::timeout(SHORT_PATIENCE, self.running).await.is_err() {
            abort.abort();
        }
        self.teller.finish(if is_through { PATIENCE } else { SHORT_PATIENCE }).await;
    }
}
