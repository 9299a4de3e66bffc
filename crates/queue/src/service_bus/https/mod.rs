//! Azure Service Bus as a queue over HTTPS, for networks in which only an HTTP proxy leads out.
//!
//! Stands on `azure_messaging_servicebus`, which wraps the REST operations; `carrier` carries its
//! requests, `entity` makes them, `parcel` packs jobs into them, `lease` remembers what is locked,
//! `dead` is the dead-letter side. Counts come from the queue's description ([`Admin`]), since REST
//! has no look at messages that would not lock them.
//!
//! What REST can't, and what we do about it:
//! - One message an answer: a receive keeps `IN_FLIGHT` requests under way, and so do
//!   settlements.
//! - No dead-lettering. A dead job is completed, because its outcome is recorded by then; with a
//!   `dead_letter_queue` a copy with the reason goes there first. A message that is no job is given
//!   back, until the broker itself sets it aside for its count.
//! - No look at dead letters: they are locked for as long as the list takes, and given back.
//! - No counts without the right to manage: then the queue counts as empty after a receive that
//!   found nothing, and else [`Queue::depth`] is refused.
//! - Locks are told in whole seconds.

mod carrier;
mod dead;
mod entity;
mod lease;
mod parcel;

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

use super::admin::Admin;
use super::fault::{Fault, Trouble};
use super::http::Http;
use super::settings::{Plan, Settings, SettingsError};
use crate::sight::{Sight, Sought};
use crate::{
    DeadLetter, DeadLetterReason, Delivery, Depth, LockToken, Postponement, Queue, QueueError,
    Sent, Settlement, SettlementKind,
};
use dead::DeadSides;
use domain::job::{Amendment, Job};
use entity::{Entity, bear};
use lease::{Lease, Leases, Verb};

/// Requests that are under way at once, for each call of the queue.
const IN_FLIGHT: usize = 32;

/// Requests that carry jobs in, under way at once.
const PARCELS_IN_FLIGHT: usize = 8;

/// The longest that one request waits for a message. A receive that nobody waits for any more ends
/// with its request, so this also bounds how long a goodbye takes.
const POLL: Duration = Duration::from_secs(4);

/// Waits shorter than the service's second are ours.
const SHORT_WAIT: Duration = Duration::from_millis(250);

/// A queue, or a topic with one subscription.
pub struct HttpsQueue {
    inner: Arc<Inner>,
    tasks: TaskTracker,
}

struct Inner {
    source: Entity,
    target: Entity,
    dead: DeadSides,
    admin: Admin,
    leases: Leases,
    /// Whether the last receive found nothing.
    was_empty: AtomicBool,
    patience: Duration,
    closed: CancellationToken,
}

/// Deliveries on their way to who asked for them. What is not taken goes back by itself.
struct HandOut {
    deliveries: Vec<Delivery>,
    inner: Arc<Inner>,
    tasks: TaskTracker,
}

impl Drop for HandOut {
    fn drop(&mut self) {
        let locks: Vec<_> = self.deliveries.iter().map(|delivery| delivery.lock).collect();
        if !locks.is_empty() {
            let inner = self.inner.clone();
            // Where even this can't be said, the locks run out by themselves.
            self.tasks.spawn(async move { inner.each(&locks, Verb::Unlock).await.ok() });
        }
    }
}

impl HttpsQueue {
    /// `credential` is used where the settings name a namespace and no key. Needs a running tokio.
    ///
    /// # Errors
    /// Says which setting is wrong.
    pub fn new(
        settings: &Settings,
        credential: Option<Arc<dyn TokenCredential>>,
    ) -> Result<Self, SettingsError> {
        let plan = Plan::new(settings, credential)?;
        let http = Arc::new(Http::new(&plan)?);
        let client = |entity: &str| {
            Entity::new(&http, entity, plan.patience)
                .map_err(|fault| SettingsError::Rest(fault.to_string()))
        };
        let inner = Inner {
            source: client(&plan.source)?,
            target: client(&plan.target)?,
            dead: DeadSides {
                broker: client(&format!("{}/$DeadLetterQueue", plan.source))?,
                ours: plan.dead_letter_queue.as_deref().map(client).transpose()?,
            },
            admin: Admin::of(&plan, http.clone()),
            leases: Leases::default(),
            was_empty: AtomicBool::new(false),
            patience: plan.patience,
            closed: CancellationToken::new(),
        };
        Ok(Self { inner: Arc::new(inner), tasks: TaskTracker::new() })
    }
}

impl Inner {
    /// The next message by the time `until`, as long as somebody waits for it.
    async fn first(
        &self,
        until: Instant,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Option<Lease>, Fault> {
        loop {
            if self.closed.is_cancelled() {
                return Err(Fault::last(Trouble::Closed));
            }
            let left = until.saturating_duration_since(Instant::now());
            let next = self.source.next(left.min(POLL)).await?;
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
    ) -> Result<Vec<Delivery>, Fault> {
        loop {
            let first = self.first(until, &is_wanted).await?;
            self.was_empty.store(first.is_none(), Ordering::SeqCst);
            let Some(first) = first else { return Ok(Vec::new()) };
            let mut leases = vec![first];
            leases.extend(self.source.more(max - 1).await);
            let deliveries = self.jobs_of(leases).await?;
            // Messages that all were no jobs are not the end of the wait.
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
        }
    }

    /// The jobs among the messages; the others are given back.
    async fn jobs_of(&self, leases: Vec<Lease>) -> Result<Vec<Delivery>, Fault> {
        self.leases.hold(leases.iter().cloned());
        let (mut deliveries, mut strangers) = (Vec::new(), Vec::new());
        for lease in leases {
            let Lease { lock, until: locked_until, count, .. } = lease;
            match lease.job() {
                Ok(job) => deliveries.push(Delivery { job, lock, locked_until, count }),
                Err(_) => strangers.push(lock),
            }
        }
        if !strangers.is_empty() {
            let messages = strangers.len();
            // What is wrong with them may quote them, which is not for the log.
            warn!(messages, "no jobs; they go back until the queue itself sets them aside");
            if let Err(fault) = self.each(&strangers, Verb::Unlock).await {
                debug!(error = %fault, "they stay locked for a while");
            }
        }
        Ok(deliveries)
    }

    /// Does one thing to each message, many at once. A lock that is lost is none.
    async fn each(&self, locks: &[LockToken], verb: Verb) -> Result<(), Fault> {
        let ends = stream::iter(locks.to_vec()).map(|lock| self.end(lock, verb));
        ends.buffer_unordered(IN_FLIGHT).try_collect().await
    }

    async fn end(&self, lock: LockToken, verb: Verb) -> Result<(), Fault> {
        let Some(lease) = self.leases.get(lock) else { return Ok(()) };
        match bear(self.patience, || lease.ask(verb)).await {
            Err(fault) if !fault.is_lock_lost() => Err(fault),
            _ => {
                self.leases.forget(lock);
                Ok(())
            }
        }
    }

    async fn dead_letter(&self, lock: LockToken, reason: DeadLetterReason) -> Result<(), Fault> {
        if let (Some(aside), Some(lease)) = (&self.dead.ours, self.leases.get(lock)) {
            match aside.set_aside(&lease, reason).await {
                Err(fault) if !fault.is_passing() => {
                    warn!(
                        error = %fault,
                        "the dead_letter_queue does not take a dead job; it goes back until the \
                         queue itself sets it aside"
                    );
                    return self.end(lock, Verb::Unlock).await;
                }
                copied => copied?,
            }
        }
        self.end(lock, Verb::Complete).await
    }

    /// Sends the job's next message, then ends this one.
    async fn postpone(&self, postponement: Postponement) -> Result<(), Fault> {
        let Postponement { lock, mut job, .. } = postponement;
        job.look_up = true;
        match self.target.send_whatever_size(job).await {
            Ok(()) => self.end(lock, Verb::Complete).await,
            // It can't wait here: it comes again at once, counted.
            Err(fault) if fault.is_too_large() => self.end(lock, Verb::Unlock).await,
            Err(fault) => Err(fault),
        }
    }

    async fn renew(&self, lock: LockToken) -> Result<Option<Timestamp>, Fault> {
        let Some(lease) = self.leases.get(lock) else { return Ok(None) };
        let asked = Timestamp::now();
        match bear(self.patience, || lease.ask(Verb::Renew)).await {
            Ok(()) => Ok(self.leases.renewed(lock, asked)),
            Err(fault) if fault.is_lock_lost() => {
                self.leases.forget(lock);
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }
}

#[async_trait]
impl Queue for HttpsQueue {
    async fn send(&self, jobs: Vec<Job>) -> Result<Sent, QueueError> {
        let accepted = jobs.len() as u64;
        let (mut parcels, large) = parcel::pack(jobs)?;
        let places = large.iter().flat_map(|parcel| &parcel.jobs);
        let positions: Vec<_> = places.map(|(at, _)| *at).collect();
        let mut large = large.into_iter();
        if let Some(largest) = large.next() {
            match self.inner.target.send_large(&largest).await {
                // Where the largest is taken, the others are.
                Ok(()) => parcels.extend(large),
                Err(fault) if fault.is_too_large() => {
                    return Err(QueueError::TooLarge { positions, limit: parcel::LIMIT });
                }
                Err(fault) => return Err(fault.into()),
            }
        }
        let sends = stream::iter(parcels).map(|parcel| self.inner.target.send(parcel));
        sends.buffer_unordered(PARCELS_IN_FLIGHT).try_collect::<()>().await?;
        Ok(Sent { accepted, duplicates: 0 })
    }

    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let until = Instant::now() + wait;
        let (reply, given) = oneshot::channel::<Result<HandOut, Fault>>();
        let (inner, tasks) = (self.inner.clone(), self.tasks.clone());
        // A task of its own: a request that is broken off may have locked a message for nobody.
        self.tasks.spawn(async move {
            let received = inner.receive(max, until, || !reply.is_closed()).await;
            let hand_out = |deliveries| HandOut { deliveries, inner, tasks };
            // What nobody takes goes back when it is dropped.
            let _ = reply.send(received.map(hand_out));
        });
        let given = given.await.unwrap_or_else(|_| Err(Fault::last(Trouble::Closed)));
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
        Ok(self.inner.each(&complete, Verb::Complete).await?)
    }

    async fn abandon(&self, locks: &[LockToken]) -> Result<(), QueueError> {
        Ok(self.inner.each(locks, Verb::Unlock).await?)
    }

    async fn depth(&self) -> Result<Depth, QueueError> {
        let admin = &self.inner.admin;
        match bear(self.inner.patience, || admin.depth()).await {
            Err(fault) if fault.is_not_allowed() && self.inner.was_empty.load(Ordering::SeqCst) => {
                Ok(Depth::default())
            }
            Err(fault) if fault.is_not_allowed() => {
                Err(Fault::last(Trouble::NoCounts(fault.to_string())).into())
            }
            depth => Ok(depth?),
        }
    }

    /// Without a lock no message can be seen over HTTPS.
    async fn look(&self, _: &Sought) -> Result<Sight, QueueError> {
        Ok(Sight { looked_at: Some(0), ..Sight::default() })
    }

    async fn postpone(&self, postponements: Vec<Postponement>) -> Result<(), QueueError> {
        let ends =
            stream::iter(postponements).map(|postponement| self.inner.postpone(postponement));
        Ok(ends.buffer_unordered(IN_FLIGHT).try_collect().await?)
    }

    async fn dead_letters(&self, from: i64, max: usize) -> Result<Vec<DeadLetter>, QueueError> {
        Ok(self.inner.dead.look(from, max).await?)
    }

    async fn resubmit(
        &self,
        numbers: &[i64],
        amendment: &Amendment,
    ) -> Result<Vec<i64>, QueueError> {
        Ok(self.inner.dead.take_out(numbers, Some((&self.inner.target, amendment))).await?)
    }

    async fn discard(&self, numbers: &[i64]) -> Result<Vec<i64>, QueueError> {
        Ok(self.inner.dead.take_out(numbers, None).await?)
    }

    async fn close(&self) {
        self.inner.closed.cancel();
        self.tasks.close();
        // A request that waits for a message ends by itself, and what it brings goes back.
        let _ = tokio::time::timeout(POLL * 2, self.tasks.wait()).await;
    }
}
