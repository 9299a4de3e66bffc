//! One connection with its session, for as long as it lives; `connection` makes it.

use fe2o3_amqp::session::SessionHandle;
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::{BrokerError, TransportError};

/// A connection with its session, until it ends.
pub(super) struct AmqpConnection {
    pub(super) session: Mutex<SessionHandle<()>>,
    pub(super) ended: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl AmqpConnection {
    pub(super) async fn session(&self) -> MutexGuard<'_, SessionHandle<()>> {
        self.session.lock().await
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Runs a step for no longer than the connection lives: the library may leave a step hanging
    /// that the connection's end overtook.
    pub(super) async fn run_while_alive<T>(
        &self,
        step: impl Future<Output = Result<T, BrokerError>>,
    ) -> Result<T, BrokerError> {
        let taken = self.ended.run_until_cancelled(step).await;
        taken.unwrap_or_else(|| Err(TransportError::ConnectionLost.into()))
    }

    /// Ends the connection, for instance because its token expired.
    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    /// Runs a link's task for no longer than the connection lives.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        self.tasks.spawn(async move { ended.run_until_cancelled(task).await });
    }
}

impl Drop for AmqpConnection {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}
