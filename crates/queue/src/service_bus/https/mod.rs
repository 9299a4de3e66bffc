//! Azure Service Bus as a queue over HTTPS, for networks in which only an HTTP proxy leads out.
//!
//! Built on `azure_messaging_servicebus`, which wraps the REST operations; `adapter` carries its
//! requests, `entity` makes them, `send_request` packs jobs into them, `peek_lock` remembers what
//! is locked, `dead_letters` handles dead letters. Counts come from the queue's description
//! ([`ServiceBusAdmin`]), since REST can't peek without a lock.
//!
//! Limits of REST, and what we do about them:
//! - One message a response: a receive keeps `IN_FLIGHT` requests in flight, and so do
//!   settlements.
//! - No dead-lettering. A dead job is completed, because its outcome is recorded by then; with a
//!   `dead_letter_queue` a copy with the reason goes there first. A message that is no job is given
//!   back, until the broker itself dead-letters it for its count.
//! - No peek at dead letters: they are locked for as long as the list takes, and given back.
//! - No counts without the right to manage: then the queue counts as empty after a receive that
//!   found nothing, and else [`Queue::depth`] is refused.
//! - Lock expiries are in whole seconds.

mod adapter;
mod dead_letters;
mod entity;
mod peek_lock;
mod send_request;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use azure_core::credentials::TokenCredential;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::admin::ServiceBusAdmin;
use super::error::{BrokerError, TransportError};
use super::http::NamespaceClient;
use super::settings::{ResolvedSettings, ServiceBusSettings, ServiceBusSettingsError};
use crate::peek::{PeekFilter, PeekResult};
use crate::{
    DeadLetter, DeadLetterReason, DeferOrder, Delivery, LockToken, Queue, QueueDepth, QueueError,
    SendCounts, Settlement, SettlementKind,
};
use dead_letters::DeadLetterSources;
use domain::job::{Amendment, Job};
use entity::{IN_FLIGHT, RestEntity, retry};
use peek_lock::{LockAction, PeekLock, PeekLocks};

/// Send requests that are in flight at once.
const SENDS_IN_FLIGHT: usize = 8;

/// Longest wait of one request for a message. A cancelled receive ends with its request, so this
/// also bounds the time of closing.
const MAX_POLL: Duration = Duration::from_secs(4);

/// Pause between requests when less than the service's second is left.
const SHORT_WAIT: Duration = Duration::from_millis(250);

/// A queue, or a topic with one subscription.
pub struct HttpsQueue {
    inner: Arc<HttpsInner>,
    tasks: TaskTracker,
}

struct HttpsInner {
    source: RestEntity,
    target: RestEntity,
    dead_letters: DeadLetterSources,
    admin: ServiceBusAdmin,
    locks: PeekLocks,
    /// True if the last receive found nothing.
    was_empty: AtomicBool,
    patience: Duration,
    closed: CancellationToken,
}

/// Deliveries on their way to their receive. Those that are not taken go back automatically.
struct DeliveryHandOut {
    deliveries: Vec<Delivery>,
    inner: Arc<HttpsInner>,
    tasks: TaskTracker,
}

impl Drop for DeliveryHandOut {
    fn drop(&mut self) {
        let locks: Vec<_> = self.deliveries.iter().map(|delivery| delivery.lock).collect();
        if !locks.is_empty() {
            let inner = self.inner.clone();
            // Where even this can't be sent, the locks expire by themselves.
            self.tasks
                .spawn(async move { inner.apply_to_all(&locks, LockAction::Unlock).await.ok() });
        }
    }
}

impl HttpsQueue {
    /// `credential` is used where the settings name a namespace and no key. Needs a running tokio.
    ///
    /// # Errors
    /// Says which setting is wrong.
    pub fn new(
        settings: &ServiceBusSettings,
        credential: Option<Arc<dyn TokenCredential>>,
    ) -> Result<Self, ServiceBusSettingsError> {
        let plan = ResolvedSettings::new(settings, credential)?;
        let http = Arc::new(NamespaceClient::new(&plan)?);
        let client = |entity: &str| {
            RestEntity::new(&http, entity, plan.patience)
                .map_err(|fault| ServiceBusSettingsError::Rest(fault.to_string()))
        };
        let inner = HttpsInner {
            source: client(&plan.source)?,
            target: client(&plan.target)?,
            dead_letters: DeadLetterSources {
                broker: client(&format!("{}/$DeadLetterQueue", plan.source))?,
                ours: plan.dead_letter_queue.as_deref().map(client).transpose()?,
            },
            admin: ServiceBusAdmin::from_resolved(&plan, http.clone()),
            locks: PeekLocks::default(),
            was_empty: AtomicBool::new(false),
            patience: plan.patience,
            closed: CancellationToken::new(),
        };
        Ok(Self { inner: Arc::new(inner), tasks: TaskTracker::new() })
    }
}

impl HttpsInner {
    /// Returns the next message by the time `until`, as long as the caller waits for it.
    async fn wait_for_first(
        &self,
        until: Instant,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Option<PeekLock>, BrokerError> {
        loop {
            if self.closed.is_cancelled() {
                return Err(BrokerError::permanent(TransportError::Closed));
            }
            let left = until.saturating_duration_since(Instant::now());
            let next = self.source.lock_next(left.min(MAX_POLL)).await?;
            if next.is_some() || Instant::now() >= until || !is_wanted() {
                return Ok(next);
            }
            if left < Duration::from_secs(1) {
                tokio::time::sleep_until(until.min(Instant::now() + SHORT_WAIT)).await;
            }
        }
    }

    async fn receive(
        &self,
        max: usize,
        until: Instant,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Vec<Delivery>, BrokerError> {
        loop {
            let first = self.wait_for_first(until, &is_wanted).await?;
            self.was_empty.store(first.is_none(), Ordering::SeqCst);
            let Some(first) = first else { return Ok(Vec::new()) };
            let mut leases = vec![first];
            leases.extend(self.source.take_available(max - 1).await);
            let deliveries = self.jobs_of(leases).await?;
            // Messages that all were no jobs are not the end of the wait.
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
        }
    }

    /// Returns the jobs among the messages; the others are given back.
    async fn jobs_of(&self, leases: Vec<PeekLock>) -> Result<Vec<Delivery>, BrokerError> {
        self.locks.insert(leases.iter().cloned());
        let (mut deliveries, mut strangers) = (Vec::new(), Vec::new());
        for lease in leases {
            let PeekLock { lock, until: locked_until, count, .. } = lease;
            match lease.job() {
                Ok(job) => deliveries.push(Delivery { job, lock, locked_until, count }),
                Err(_) => strangers.push(lock),
            }
        }
        if !strangers.is_empty() {
            let messages = strangers.len();
            // The errors may quote the messages, which is not for the log.
            warn!(
                messages,
                "messages are not jobs; releasing them until the queue dead-letters them"
            );
            if let Err(fault) = self.apply_to_all(&strangers, LockAction::Unlock).await {
                debug!(error = %fault, "could not release them; they stay locked until their locks expire");
            }
        }
        Ok(deliveries)
    }

    /// Applies one operation to each message, many at once. A lost lock is no error.
    async fn apply_to_all(&self, locks: &[LockToken], verb: LockAction) -> Result<(), BrokerError> {
        let ends = stream::iter(locks.to_vec()).map(|lock| self.apply(lock, verb));
        ends.buffer_unordered(IN_FLIGHT).try_collect().await
    }

    async fn apply(&self, lock: LockToken, verb: LockAction) -> Result<(), BrokerError> {
        let Some(lease) = self.locks.get(lock) else { return Ok(()) };
        match retry(self.patience, || lease.apply(verb)).await {
            Err(fault) if !fault.is_lock_lost() => Err(fault),
            _ => {
                self.locks.remove(lock);
                Ok(())
            }
        }
    }

    async fn dead_letter(
        &self,
        lock: LockToken,
        reason: DeadLetterReason,
    ) -> Result<(), BrokerError> {
        if let (Some(aside), Some(lease)) = (&self.dead_letters.ours, self.locks.get(lock)) {
            match aside.copy_dead_letter(&lease, reason).await {
                Err(fault) if !fault.is_transient() => {
                    warn!(
                        error = %fault,
                        "the dead_letter_queue refused a dead job; releasing it until the \
                         queue itself dead-letters it"
                    );
                    return self.apply(lock, LockAction::Unlock).await;
                }
                copied => copied?,
            }
        }
        self.apply(lock, LockAction::Complete).await
    }

    /// Sends the job's next message, then ends this one.
    async fn postpone(&self, postponement: DeferOrder) -> Result<(), BrokerError> {
        let DeferOrder { lock, mut job, .. } = postponement;
        job.may_have_outcome = true;
        match self.target.send_whatever_size(job).await {
            Ok(()) => self.apply(lock, LockAction::Complete).await,
            // It can't be delayed: it is redelivered at once, counted.
            Err(fault) if fault.is_too_large() => self.apply(lock, LockAction::Unlock).await,
            Err(fault) => Err(fault),
        }
    }

    async fn renew(&self, lock: LockToken) -> Result<Option<Timestamp>, BrokerError> {
        let Some(lease) = self.locks.get(lock) else { return Ok(None) };
        let asked = Timestamp::now();
        match retry(self.patience, || lease.apply(LockAction::Renew)).await {
            Ok(()) => Ok(self.locks.record_renewal(lock, asked)),
            Err(fault) if fault.is_lock_lost() => {
                self.locks.remove(lock);
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }
}

#[async_trait]
impl Queue for HttpsQueue {
    fn keeps_one_of_each(&self) -> bool {
        false
    }

    async fn send(&self, jobs: Vec<Job>) -> Result<SendCounts, QueueError> {
        let accepted = jobs.len() as u64;
        let (mut parcels, large) = send_request::pack(jobs)?;
        let places = large.iter().flat_map(|parcel| &parcel.jobs);
        let positions: Vec<_> = places.map(|(at, _)| *at).collect();
        let mut large = large.into_iter();
        if let Some(largest) = large.next() {
            match self.inner.target.send_large(&largest).await {
                // If the largest is taken, so are the others.
                Ok(()) => parcels.extend(large),
                Err(fault) if fault.is_too_large() => {
                    return Err(QueueError::TooLarge {
                        positions,
                        limit: send_request::MESSAGE_LIMIT,
                    });
                }
                Err(fault) => return Err(fault.into()),
            }
        }
        let sends = stream::iter(parcels).map(|parcel| self.inner.target.send(parcel));
        sends.buffer_unordered(SENDS_IN_FLIGHT).try_collect::<()>().await?;
        Ok(SendCounts { accepted, duplicates: 0 })
    }

    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let until = Instant::now() + wait;
        let (reply, given) = oneshot::channel::<Result<DeliveryHandOut, BrokerError>>();
        let (inner, tasks) = (self.inner.clone(), self.tasks.clone());
        // A task of its own: a cancelled request may have locked a message for nobody.
        self.tasks.spawn(async move {
            let received = inner.receive(max, until, || !reply.is_closed()).await;
            let hand_out = |deliveries| DeliveryHandOut { deliveries, inner, tasks };
            // What nobody takes goes back when it is dropped.
            let _ = reply.send(received.map(hand_out));
        });
        let given =
            given.await.unwrap_or_else(|_| Err(BrokerError::permanent(TransportError::Closed)));
        Ok(std::mem::take(&mut given?.deliveries))
    }

    async fn renew(&self, locks: &[LockToken]) -> Result<Vec<Option<Timestamp>>, QueueError> {
        let renewals = stream::iter(locks.to_vec()).map(|lock| self.inner.renew(lock));
        Ok(renewals.buffered(IN_FLIGHT).try_collect().await?)
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), QueueError> {
        let mut complete = Vec::with_capacity(settlements.len());
        for Settlement { lock, kind } in settlements {
            match kind {
                SettlementKind::Complete => complete.push(lock),
                SettlementKind::DeadLetter(reason) => self.inner.dead_letter(lock, reason).await?,
            }
        }
        Ok(self.inner.apply_to_all(&complete, LockAction::Complete).await?)
    }

    async fn abandon(&self, locks: &[LockToken]) -> Result<(), QueueError> {
        Ok(self.inner.apply_to_all(locks, LockAction::Unlock).await?)
    }

    async fn depth(&self) -> Result<QueueDepth, QueueError> {
        let admin = &self.inner.admin;
        match retry(self.inner.patience, || admin.depth()).await {
            Err(fault) if fault.is_not_allowed() && self.inner.was_empty.load(Ordering::SeqCst) => {
                Ok(QueueDepth::default())
            }
            Err(fault) if fault.is_not_allowed() => {
                Err(BrokerError::permanent(TransportError::NoCounts(fault.to_string())).into())
            }
            depth => Ok(depth?),
        }
    }

    /// Sees nothing: over HTTPS no message can be read without a lock.
    async fn peek(&self, _: &PeekFilter) -> Result<PeekResult, QueueError> {
        Ok(PeekResult { examined: Some(0), ..PeekResult::default() })
    }

    async fn defer(&self, postponements: Vec<DeferOrder>) -> Result<(), QueueError> {
        let ends =
            stream::iter(postponements).map(|postponement| self.inner.postpone(postponement));
        Ok(ends.buffer_unordered(IN_FLIGHT).try_collect().await?)
    }

    async fn dead_letters(&self, from: i64, max: usize) -> Result<Vec<DeadLetter>, QueueError> {
        Ok(self.inner.dead_letters.list(from, max).await?)
    }

    async fn resubmit(
        &self,
        numbers: &[i64],
        amendment: &Amendment,
    ) -> Result<Vec<i64>, QueueError> {
        Ok(self.inner.dead_letters.take_out(numbers, Some((&self.inner.target, amendment))).await?)
    }

    async fn discard(&self, numbers: &[i64]) -> Result<Vec<i64>, QueueError> {
        Ok(self.inner.dead_letters.take_out(numbers, None).await?)
    }

    async fn close(&self) {
        self.inner.closed.cancel();
        self.tasks.close();
        // A request that waits for a message ends by itself, and what it brings goes back.
        let _ = tokio::time::timeout(MAX_POLL * 2, self.tasks.wait()).await;
    }
}
