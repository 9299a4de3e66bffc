//! Azure Service Bus as a queue, over AMQP 1.0; over REST requests in [`https`]. [`open`] knows which.
//!
//! One connection and one session carry everything: `connection` makes them and makes them anew,
//! `cbs` puts the tokens, `receiver` owns the receiving link (`inbound`, with `desk` as its bookkeeping),
//! `sender` the sending one, `management` asks what no link can (over `request`), `dead` is the
//! dead-letter side, `message` turns jobs into messages and back, `fault` tells passing trouble from
//! refusals. `admin` reads how the queue is set, and creates it, over `http`. No type of the AMQP
//! library leaves this folder.
//!
//! What Service Bus does otherwise than the seam says, and what we do about it:
//! - It knows duplicates only if the queue has duplicate detection, and drops them in silence.
//! - It confirms settlements after the fact and the library does not tell: a settlement that gets
//!   lost means a redelivery, which finds its outcome. [`Queue::close`] waits until all is through.
//! - It has no count over AMQP: [`Queue::depth`] looks at the first messages and stops at
//!   1,000; locked ones count as active.
//! - It can't put a message off: [`Queue::postpone`] sends a scheduled copy, then completes the
//!   message. A crash in between leaves two messages of one job, so the copy says that it is to be
//!   looked up. Its message id is another one, since duplicate detection knows the first.
//! - A dead letter's time is that of its enqueuing; the service keeps no other.

pub mod admin;
mod cbs;
mod connection;
mod dead;
mod desk;
mod fault;
mod http;
pub mod https;
mod inbound;
mod management;
mod message;
mod receiver;
mod request;
mod sender;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::credentials::TokenCredential;
use jiff::Timestamp;
use tracing::warn;

pub use settings::{Settings, SettingsError, Transport};

use super::{
    DeadLetter, DeadLetterReason, Delivery, Depth, LockToken, Postponement, Queue, QueueError,
    Sent, Settlement, SettlementKind,
};
use crate::sight::{Sight, Sought};
use cbs::Claims;
use connection::{Connector, Place};
use dead::DeadSide;
use domain::job::{Amendment, Job};
use https::HttpsQueue;
use inbound::Verdict;
use management::{Management, PAGE, after};
use receiver::{HandOut, Inbox, Locked};
use sender::Outbox;
use settings::Plan;

/// The reason of dead letters that never were jobs.
const NOT_A_JOB: &str = "NotAJob";

/// Pages that a count looks at, each bounded in messages and bytes.
const PAGES: usize = 4;

/// A queue, or a topic with one subscription. Connects when it is first used.
pub struct ServiceBusQueue {
    connector: Arc<Connector>,
    inbox: Inbox,
    outbox: Outbox,
    management: Management,
    dead_side: DeadSide,
}

/// The queue over what the settings name as its transport. Needs a running tokio.
///
/// # Errors
/// Says which setting is wrong.
pub fn open(
    settings: &Settings,
    credential: Option<Arc<dyn TokenCredential>>,
) -> Result<Arc<dyn Queue>, SettingsError> {
    Ok(match settings.transport {
        Transport::Https => Arc::new(HttpsQueue::new(settings, credential)?),
        Transport::Amqp | Transport::Websocket => {
            Arc::new(ServiceBusQueue::new(settings, credential)?)
        }
    })
}

impl ServiceBusQueue {
    /// `credential` is used where the settings name a namespace and no key. Needs a running tokio.
    ///
    /// # Errors
    /// Says which setting is wrong.
    pub fn new(
        settings: &Settings,
        credential: Option<Arc<dyn TokenCredential>>,
    ) -> Result<Self, SettingsError> {
        if settings.transport == Transport::Https {
            return Err(SettingsError::NotAmqp);
        }
        let plan = Plan::new(settings, credential)?;
        let mut audiences = vec![format!("sb://{}/{}", plan.host, plan.source)];
        if plan.target != plan.source {
            audiences.push(format!("sb://{}/{}", plan.host, plan.target));
        }
        let claims = Claims { credential: plan.credential, audiences };
        let websocket = plan.transport == Transport::Websocket;
        let place = Place { host: plan.host, port: plan.port, tls: plan.tls, websocket };
        let connector = Arc::new(Connector::new(place, claims));
        let patience = plan.patience;
        Ok(Self {
            management: Management::new(connector.clone(), &plan.source, patience),
            dead_side: DeadSide::new(connector.clone(), &plan.source, patience),
            outbox: Outbox::new(connector.clone(), plan.target, patience),
            inbox: Inbox::start(connector.clone(), plan.source, patience),
            connector,
        })
    }

    async fn settle_as(&self, locks: Vec<LockToken>, verdict: Verdict) -> Result<(), QueueError> {
        if locks.is_empty() {
            return Ok(());
        }
        let verdict = match verdict {
            Verdict::DeadLetter(reason) => Verdict::DeadLetter(message::limited(reason)),
            other => other,
        };
        let others = self.inbox.settle(locks, verdict.clone()).await?;
        Ok(self.management.settle(&others, &verdict).await?)
    }

    /// The jobs among the messages; the others go to the dead letters.
    async fn jobs_of(&self, handed_out: HandOut) -> Result<Vec<Delivery>, QueueError> {
        let jobs: Vec<_> = handed_out.messages().iter().map(job_of).collect();
        // Until these are settled all messages stay where they go back from, should we be dropped.
        for (locked, job) in handed_out.messages().iter().zip(&jobs) {
            if let Err(description) = job {
                // The description may quote the message, which is not for the log.
                warn!("a message is no job; it goes to the dead letters");
                let description = description.clone();
                let reason = DeadLetterReason { reason: NOT_A_JOB.into(), description };
                self.settle_as(vec![locked.lock], Verdict::DeadLetter(reason)).await?;
            }
        }
        let delivery = |(locked, job): (Locked, Result<Job, String>)| {
            let (lock, locked_until) = (locked.lock, locked.until);
            let count = message::delivery_count(&locked.message);
            let mut job = job.ok()?;
            job.history.first_enqueued = first_enqueued_of(&job, &locked);
            Some(Delivery { job, lock, locked_until, count })
        };
        Ok(handed_out.take().into_iter().zip(jobs).filter_map(delivery).collect())
    }
}

fn job_of(locked: &Locked) -> Result<Job, String> {
    let body = message::body_of(&locked.message.body)?;
    let mut job = Job::from_message(&body).map_err(|error| error.to_string())?;
    // A program that knows nothing of our history may still be traced.
    job.history.traceparent =
        job.history.traceparent.or_else(|| message::traceparent(&locked.message));
    Ok(job)
}

/// As the job says; if it does not, this is its first message.
fn first_enqueued_of(job: &Job, locked: &Locked) -> Option<Timestamp> {
    job.history.first_enqueued.or_else(|| message::enqueued(&locked.message))
}

#[async_trait]
impl Queue for ServiceBusQueue {
    async fn send(&self, jobs: Vec<Job>) -> Result<Sent, QueueError> {
        let accepted = jobs.len() as u64;
        if accepted > 0 {
            self.outbox.send(jobs).await?;
        }
        Ok(Sent { accepted, duplicates: 0 })
    }

    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let handed_out = self.inbox.receive(max, left).await?;
            let nothing = handed_out.messages().is_empty();
            let deliveries = self.jobs_of(handed_out).await?;
            // Messages that all were no jobs are not the end of the wait.
            if nothing || !deliveries.is_empty() {
                return Ok(deliveries);
            }
        }
    }

    async fn renew(&self, locks: &[LockToken]) -> Result<Vec<Option<Timestamp>>, QueueError> {
        let renewed = self.management.renew(locks).await?;
        let lost: Vec<_> = locks
            .iter()
            .zip(&renewed)
            .filter_map(|(lock, until)| until.is_none().then_some(*lock))
            .collect();
        if !lost.is_empty() {
            self.inbox.forget(lost).await?;
        }
        Ok(renewed)
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), QueueError> {
        let mut complete = Vec::with_capacity(settlements.len());
        for Settlement { lock, kind } in settlements {
            match kind {
                SettlementKind::Complete => complete.push(lock),
                SettlementKind::DeadLetter(reason) => {
                    self.settle_as(vec![lock], Verdict::DeadLetter(reason)).await?;
                }
            }
        }
        self.settle_as(complete, Verdict::Complete).await
    }

    async fn postpone(&self, postponements: Vec<Postponement>) -> Result<(), QueueError> {
        let mut locks = Vec::with_capacity(postponements.len());
        let mut copies = Vec::with_capacity(postponements.len());
        for Postponement { lock, mut job, .. } in postponements {
            job.look_up = true;
            locks.push(lock);
            copies.push(job);
        }
        let too_large = self.outbox.send_again(copies).await?;
        // They can't wait here: they come again at once, counted.
        let back = too_large.iter().rev().map(|n| locks.remove(*n)).collect();
        self.settle_as(back, Verdict::Abandon).await?;
        self.settle_as(locks, Verdict::Complete).await
    }

    async fn abandon(&self, locks: &[LockToken]) -> Result<(), QueueError> {
        self.settle_as(locks.to_vec(), Verdict::Abandon).await
    }

    async fn depth(&self) -> Result<Depth, QueueError> {
        let mut depth = Depth::default();
        let now = Timestamp::now();
        let mut from = 0;
        for _ in 0..PAGES {
            let page = self.management.peek(from, PAGE).await?;
            let scheduled = page.iter().filter(|m| message::is_scheduled(m, now)).count() as u64;
            depth.scheduled += scheduled;
            depth.active += page.len() as u64 - scheduled;
            let Some(next) = after(&page) else { break };
            from = next;
        }
        from = 0;
        for _ in 0..PAGES {
            let page = self.dead_side.peek(from, PAGE).await?;
            depth.dead_letters += page.len() as u64;
            let Some(next) = after(&page) else { break };
            from = next;
        }
        Ok(depth)
    }

    async fn look(&self, sought: &Sought) -> Result<Sight, QueueError> {
        let mut sight = Sight::default();
        let (mut from, mut seen) = (0, 0);
        for _ in 0..PAGES {
            let page = self.management.peek(from, PAGE).await?;
            message::look(&page, sought, &mut sight);
            seen += page.len() as u64;
            let Some(next) = after(&page) else { return Ok(sight) };
            from = next;
        }
        Ok(Sight { looked_at: Some(seen), ..sight })
    }

    async fn dead_letters(&self, from: i64, max: usize) -> Result<Vec<DeadLetter>, QueueError> {
        let mut letters = Vec::new();
        let mut from = from;
        while letters.len() < max {
            let page = self.dead_side.peek(from, max - letters.len()).await?;
            let Some(next) = after(&page) else { break };
            from = next;
            letters.extend(page.into_iter().map(message::dead_letter));
        }
        Ok(letters)
    }

    async fn resubmit(
        &self,
        numbers: &[i64],
        amendment: &Amendment,
    ) -> Result<Vec<i64>, QueueError> {
        self.dead_side.take_out(numbers, Some((&self.outbox, amendment))).await
    }

    async fn discard(&self, numbers: &[i64]) -> Result<Vec<i64>, QueueError> {
        self.dead_side.take_out(numbers, None).await
    }

    async fn close(&self) {
        self.inbox.close().await;
        self.connector.close().await;
    }
}
