//! One entity, by its REST client: sending to it and locking what it holds, tried again for as long
//! as the trouble passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use azure_core_rest::StatusCode;
use azure_messaging_servicebus::service_bus::{QueueClient, SendMessageOptions};
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use tracing::debug;

use super::carrier::{self, fault};
use super::lease::{Lease, Verb};
use super::parcel::{self, Parcel};
use super::{DeadLetterReason, IN_FLIGHT};
use crate::service_bus::connection::Patience;
use crate::service_bus::fault::Fault;
use crate::service_bus::http::Http;
use crate::service_bus::message;
use domain::job::Job;

/// A queue, a topic, a subscription, or the dead letters of one.
pub(super) struct Entity {
    client: QueueClient,
    pub(super) patience: Duration,
}

/// Takes a step until it succeeds, is refused, or the patience is over.
pub(super) async fn bear<T, F>(patience: Duration, step: impl Fn() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let mut patience = Patience::new(patience);
    loop {
        if let Some(done) = patience.bear(step()).await {
            return done;
        }
    }
}

impl Entity {
    pub(super) fn new(http: &Arc<Http>, path: &str, patience: Duration) -> Result<Self, Fault> {
        Ok(Self { client: carrier::client(http, path)?, patience })
    }

    /// Sends a parcel. A second copy says that it may be one, for queues without duplicate
    /// detection.
    pub(super) async fn send(&self, mut parcel: Parcel) -> Result<(), Fault> {
        let mut patience = Patience::new(self.patience);
        loop {
            // Of what fits, 403 says that the queue is full, and that passes.
            let step = async { self.send_once(&parcel).await.map_err(Fault::passing_if_full) };
            if let Some(done) = patience.bear(step).await {
                return done;
            }
            parcel.jobs.iter_mut().for_each(|(_, job)| job.look_up = true);
        }
    }

    /// Sends a parcel that may be larger than the entity takes.
    pub(super) async fn send_large(&self, parcel: &Parcel) -> Result<(), Fault> {
        bear(self.patience, || self.send_once(parcel)).await
    }

    /// Sends a further message of a job, without the text of its last error if it is too large with it.
    pub(super) async fn send_whatever_size(&self, mut job: Job) -> Result<(), Fault> {
        match self.send_large(&Parcel::alone(job.clone())).await {
            Err(fault) if fault.is_too_large() && job.history.last_error.is_some() => {
                job.history.last_error = None;
                self.send_large(&Parcel::alone(job)).await
            }
            sent => sent,
        }
    }

    async fn send_once(&self, parcel: &Parcel) -> Result<(), Fault> {
        let (body, options) = parcel.request()?;
        self.post(&body, options).await
    }

    async fn post(&self, body: &str, options: SendMessageOptions) -> Result<(), Fault> {
        self.client.send_message(body, Some(options)).await.map_err(fault)
    }

    /// Puts a copy of a dead job's message here.
    pub(super) async fn set_aside(
        &self,
        lease: &Lease,
        reason: DeadLetterReason,
    ) -> Result<(), Fault> {
        let reason = message::limited(reason);
        let body = parcel::set_aside(&lease.message_id, &lease.response.body(), &reason);
        bear(self.patience, || self.post(&body, parcel::batch_options())).await
    }

    /// The next message, locked, if there is one within `wait`.
    pub(super) async fn next(&self, wait: Duration) -> Result<Option<Lease>, Fault> {
        bear(self.patience + wait, || self.lock(wait)).await
    }

    async fn lock(&self, wait: Duration) -> Result<Option<Lease>, Fault> {
        let response = self.client.peek_lock_message2(Some(wait)).await.map_err(fault)?;
        if *response.status() == StatusCode::NoContent {
            return Ok(None);
        }
        Lease::new(response).map(Some)
    }

    /// Up to `count` messages that are there now, by many requests at once.
    pub(super) async fn more(&self, count: usize) -> Vec<Lease> {
        let left = AtomicUsize::new(count);
        let takers = (0..count.min(IN_FLIGHT)).map(|_| self.take_while(&left));
        join_all(takers).await.into_iter().flatten().collect()
    }

    async fn take_while(&self, left: &AtomicUsize) -> Vec<Lease> {
        let mut taken = Vec::new();
        let claim = || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        while claim().is_ok() {
            match self.lock(Duration::ZERO).await {
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
        mut wants_more: impl FnMut(&[Lease]) -> bool,
    ) -> Result<Vec<Lease>, Fault> {
        let mut leases = Vec::new();
        while wants_more(&leases) {
            let Some(first) = self.next(Duration::ZERO).await? else { break };
            leases.push(first);
            leases.extend(self.more(IN_FLIGHT).await);
        }
        leases.sort_by_key(|lease| lease.number);
        Ok(leases)
    }

    /// Gives locked messages back.
    pub(super) async fn release(&self, leases: &[Lease]) {
        // Owned, since a stream of borrowing futures can't cross threads.
        let back = stream::iter(leases.to_vec()).map(async |lease| lease.ask(Verb::Unlock).await);
        let mut back = std::pin::pin!(back.buffer_unordered(IN_FLIGHT));
        while let Some(released) = back.next().await {
            if let Err(fault) = released {
                debug!(error = %fault, "a dead letter that was looked at stays locked for a while");
            }
        }
    }
}
