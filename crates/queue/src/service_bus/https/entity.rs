//! One entity, over its REST client: sends to it and locks its messages; transient errors are
//! retried.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use azure_core_rest::StatusCode;
use azure_messaging_servicebus::service_bus::{QueueClient, SendMessageOptions};
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use tracing::debug;

use super::adapter::{self, broker_error};
use super::peek_lock::{LockAction, PeekLock};
use super::send_request::{self, SendRequest};
use crate::DeadLetterReason;
use crate::service_bus::connection::RetryBudget;
use crate::service_bus::error::BrokerError;
use crate::service_bus::http::NamespaceClient;
use crate::service_bus::message;
use domain::job::Job;

/// Requests that are in flight at once, for each call of the queue.
pub(super) const IN_FLIGHT: usize = 32;

/// A queue, a topic, a subscription, or the dead letters of one.
pub(super) struct RestEntity {
    client: QueueClient,
    pub(super) patience: Duration,
}

/// Retries a step until it succeeds, is refused, or the patience is over.
pub(super) async fn retry<T, F>(patience: Duration, step: impl Fn() -> F) -> Result<T, BrokerError>
where
    F: Future<Output = Result<T, BrokerError>>,
{
    let mut patience = RetryBudget::new(patience);
    loop {
        if let Some(done) = patience.run(step()).await {
            return done;
        }
    }
}

impl RestEntity {
    pub(super) fn new(
        http: &Arc<NamespaceClient>,
        path: &str,
        patience: Duration,
    ) -> Result<Self, BrokerError> {
        Ok(Self { client: adapter::queue_client(http, path)?, patience })
    }

    /// Sends a parcel. A second copy says that it may be one, for queues without duplicate
    /// detection.
    pub(super) async fn send(&self, mut parcel: SendRequest) -> Result<(), BrokerError> {
        let mut patience = RetryBudget::new(self.patience);
        loop {
            // For a message that fits, 403 means a full queue, which is transient.
            let step =
                async { self.send_once(&parcel).await.map_err(BrokerError::transient_if_full) };
            if let Some(done) = patience.run(step).await {
                return done;
            }
            parcel.jobs.iter_mut().for_each(|(_, job)| job.may_have_outcome = true);
        }
    }

    /// Sends a parcel that may be larger than the entity takes.
    pub(super) async fn send_large(&self, parcel: &SendRequest) -> Result<(), BrokerError> {
        retry(self.patience, || self.send_once(parcel)).await
    }

    /// Sends a further message of a job, without its last error's text if it is too large with it.
    pub(super) async fn send_whatever_size(&self, mut job: Job) -> Result<(), BrokerError> {
        match self.send_large(&SendRequest::alone(job.clone())).await {
            Err(fault) if fault.is_too_large() && job.history.last_error.is_some() => {
                job.history.last_error = None;
                self.send_large(&SendRequest::alone(job)).await
            }
            sent => sent,
        }
    }

    async fn send_once(&self, parcel: &SendRequest) -> Result<(), BrokerError> {
        let (body, options) = parcel.request()?;
        self.post(&body, options).await
    }

    async fn post(&self, body: &str, options: SendMessageOptions) -> Result<(), BrokerError> {
        self.client.send_message(body, Some(options)).await.map_err(broker_error)
    }

    /// Puts a copy of a dead job's message here.
    pub(super) async fn copy_dead_letter(
        &self,
        lease: &PeekLock,
        reason: DeadLetterReason,
    ) -> Result<(), BrokerError> {
        let reason = message::truncate_reason(reason);
        let body =
            send_request::dead_letter_copy(&lease.message_id, &lease.response.body(), &reason);
        retry(self.patience, || self.post(&body, send_request::batch_options())).await
    }

    /// Locks the next message, if there is one within `wait`.
    pub(super) async fn lock_next(&self, wait: Duration) -> Result<Option<PeekLock>, BrokerError> {
        retry(self.patience + wait, || self.lock_once(wait)).await
    }

    async fn lock_once(&self, wait: Duration) -> Result<Option<PeekLock>, BrokerError> {
        let response = self.client.peek_lock_message2(Some(wait)).await.map_err(broker_error)?;
        if *response.status() == StatusCode::NoContent {
            return Ok(None);
        }
        PeekLock::new(response).map(Some)
    }

    /// Locks up to `count` messages that are there now, by many requests at once.
    pub(super) async fn take_available(&self, count: usize) -> Vec<PeekLock> {
        let left = AtomicUsize::new(count);
        let takers = (0..count.min(IN_FLIGHT)).map(|_| self.take_until_empty(&left));
        join_all(takers).await.into_iter().flatten().collect()
    }

    async fn take_until_empty(&self, left: &AtomicUsize) -> Vec<PeekLock> {
        let mut taken = Vec::new();
        let claim = || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        while claim().is_ok() {
            match self.lock_once(Duration::ZERO).await {
                Ok(Some(lease)) => taken.push(lease),
                Ok(None) => left.store(0, Ordering::SeqCst),
                Err(fault) => {
                    // The next receive meets it again and says so, if it lasts.
                    debug!(error = %fault, "a receive ends early");
                    left.store(0, Ordering::SeqCst);
                }
            }
        }
        taken
    }

    /// Locks messages, oldest first, for as long as the sweep wants more of them.
    pub(super) async fn sweep(
        &self,
        mut wants_more: impl FnMut(&[PeekLock]) -> bool,
    ) -> Result<Vec<PeekLock>, BrokerError> {
        let mut leases = Vec::new();
        while wants_more(&leases) {
            let Some(first) = self.lock_next(Duration::ZERO).await? else { break };
            leases.push(first);
            leases.extend(self.take_available(IN_FLIGHT).await);
        }
        leases.sort_by_key(|lease| lease.sequence_number);
        Ok(leases)
    }

    /// Gives locked messages back.
    pub(super) async fn release(&self, leases: &[PeekLock]) {
        // Owned, since a stream of borrowing futures can't cross threads.
        let back =
            stream::iter(leases.to_vec()).map(async |lease| lease.apply(LockAction::Unlock).await);
        let mut back = std::pin::pin!(back.buffer_unordered(IN_FLIGHT));
        while let Some(released) = back.next().await {
            if let Err(fault) = released {
                debug!(error = %fault, "could not release a listed dead letter; it stays locked until its lock expires");
            }
        }
    }
}
