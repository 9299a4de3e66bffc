//! Azure Service Bus as a queue, over AMQP 1.0; over REST requests in [`https`]. [`open`] chooses.
//!
//! One connection and one session (`live_connection`) carry everything: `connection` makes and remakes them, `cbs` puts
//! the tokens, `receiver` owns the receiving link (`receiving_link`, with `receive_buffer` as its
//! bookkeeping), `sender` the sending one, `management` does what no link can (over `request`),
//! `dead_letters` is the dead-letter subqueue, `message` turns jobs into messages and back, `error`
//! tells transient errors from refusals. `admin` reads how the queue is set, and creates it, over
//! `http`. No type of the AMQP library leaves this folder.
//!
//! Differences of Service Bus from the seam, and what we do about them:
//! - It detects duplicates only if the queue has duplicate detection, and drops them silently.
//! - It confirms settlements after the fact and the library does not report that: a lost settlement
//!   means a redelivery, which finds its outcome. [`Queue::close`] waits until all is through.
//! - It has no count over AMQP: [`Queue::depth`] peeks at the first messages and stops at
//!   1,000; locked ones count as active.
//! - It can't delay a received message: [`Queue::defer`] sends a scheduled copy, then completes
//!   the message. A crash in between leaves two messages of one job, so the copy says that it is to
//!   be looked up. Its message id is another one, since duplicate detection knows the first.
//! - A dead letter's time is that of its enqueuing; the service keeps no other.

pub mod admin;
mod cbs;
mod connection;
mod dead_letters;
mod error;
mod http;
#[cfg(feature = "service-bus-https")]
pub mod https;
mod live_connection;
mod management;
mod message;
mod receive_buffer;
mod receiver;
mod receiving_link;
mod request;
mod sender;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::credentials::TokenCredential;
use jiff::Timestamp;
use tracing::warn;

pub use settings::{ServiceBusSettings, ServiceBusSettingsError, ServiceBusTransport};

use super::{
    DeadLetter, DeadLetterReason, DeferOrder, Delivery, LockToken, Queue, QueueDepth, QueueError,
    SendCounts, Settlement, SettlementKind,
};
use crate::peek::{PeekFilter, PeekResult};
use cbs::CbsClaims;
use connection::{AmqpConnector, BrokerAddress};
use dead_letters::DeadLetterSubqueue;
use domain::job::{Amendment, Job};
use management::{ManagementNode, PEEK_PAGE, next_sequence};
use receiver::{LockedMessage, MessageHandOut, MessageReceiver, first_enqueued_of, job_of};
use receiving_link::DeliveryDisposition;
use sender::JobSender;
use settings::ResolvedSettings;

/// Pages that a count peeks at, each bounded in messages and bytes.
const COUNT_PAGES: usize = 4;

/// A queue, or a topic with one subscription. Connects when it is first used.
pub struct ServiceBusQueue {
    connector: Arc<AmqpConnector>,
    receiver: MessageReceiver,
    sender: JobSender,
    management: ManagementNode,
    dead_letters: DeadLetterSubqueue,
}

/// Opens the queue over the transport that the settings name. Needs a running tokio.
///
/// # Errors
/// Says which setting is wrong.
pub fn open(
    settings: &ServiceBusSettings,
    credential: Option<Arc<dyn TokenCredential>>,
) -> Result<Arc<dyn Queue>, ServiceBusSettingsError> {
    settings.check_transport()?;
    #[cfg(feature = "service-bus-https")]
    if settings.transport == ServiceBusTransport::Https {
        return Ok(Arc::new(https::HttpsQueue::new(settings, credential)?));
    }
    Ok(Arc::new(ServiceBusQueue::new(settings, credential)?))
}

impl ServiceBusQueue {
    /// `credential` is used where the settings name a namespace and no key. Needs a running tokio.
    ///
    /// # Errors
    /// Says which setting is wrong.
    pub fn new(
        settings: &ServiceBusSettings,
        credential: Option<Arc<dyn TokenCredential>>,
    ) -> Result<Self, ServiceBusSettingsError> {
        if settings.transport == ServiceBusTransport::Https {
            return Err(ServiceBusSettingsError::NotAmqp);
        }
        let plan = ResolvedSettings::new(settings, credential)?;
        let mut audiences = vec![format!("sb://{}/{}", plan.host, plan.source)];
        if plan.target != plan.source {
            audiences.push(format!("sb://{}/{}", plan.host, plan.target));
        }
        let claims = CbsClaims { credential: plan.credential, audiences };
        let websocket = plan.transport == ServiceBusTransport::Websocket;
        let place = BrokerAddress { host: plan.host, port: plan.port, tls: plan.tls, websocket };
        let connector = Arc::new(AmqpConnector::new(place, claims));
        let patience = plan.patience;
        Ok(Self {
            management: ManagementNode::new(connector.clone(), &plan.source, patience),
            dead_letters: DeadLetterSubqueue::new(connector.clone(), &plan.source, patience),
            sender: JobSender::new(connector.clone(), plan.target, patience),
            receiver: MessageReceiver::start(connector.clone(), plan.source, patience),
            connector,
        })
    }

    async fn settle_as(
        &self,
        locks: Vec<LockToken>,
        verdict: DeliveryDisposition,
    ) -> Result<(), QueueError> {
        if locks.is_empty() {
            return Ok(());
        }
        let verdict = match verdict {
            DeliveryDisposition::DeadLetter(reason) => {
                DeliveryDisposition::DeadLetter(message::truncate_reason(reason))
            }
            other => other,
        };
        let others = self.receiver.settle(locks, verdict.clone()).await?;
        Ok(self.management.settle(&others, &verdict).await?)
    }

    /// Returns the jobs among the messages; the others are dead-lettered.
    async fn jobs_of(&self, handed_out: MessageHandOut) -> Result<Vec<Delivery>, QueueError> {
        let jobs: Vec<_> = handed_out.messages().iter().map(job_of).collect();
        // Until these are settled all messages stay in the hand-out: dropped, it gives them back.
        for (locked, job) in handed_out.messages().iter().zip(&jobs) {
            if let Err(description) = job {
                // The description may quote the message, which is not for the log.
                warn!("a message is not a job; dead-lettering it");
                let description = description.clone();
                let reason = DeadLetterReason { reason: message::NOT_A_JOB.into(), description };
                self.settle_as(vec![locked.lock], DeliveryDisposition::DeadLetter(reason)).await?;
            }
        }
        let delivery = |(locked, job): (LockedMessage, Result<Job, String>)| {
            let (lock, locked_until) = (locked.lock, locked.until);
            let count = message::delivery_count(&locked.message);
            let mut job = job.ok()?;
            job.history.first_enqueued = first_enqueued_of(&job, &locked);
            Some(Delivery { job, lock, locked_until, count })
        };
        Ok(handed_out.take().into_iter().zip(jobs).filter_map(delivery).collect())
    }
}

#[async_trait]
impl Queue for ServiceBusQueue {
    fn keeps_one_of_each(&self) -> bool {
        false
    }

    async fn send(&self, jobs: Vec<Job>) -> Result<SendCounts, QueueError> {
        let accepted = jobs.len() as u64;
        if accepted > 0 {
            self.sender.send(jobs).await?;
        }
        Ok(SendCounts { accepted, duplicates: 0 })
    }

    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            let handed_out = self.receiver.receive(max, left).await?;
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
            self.receiver.forget(lost).await?;
        }
        Ok(renewed)
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), QueueError> {
        let mut complete = Vec::with_capacity(settlements.len());
        for Settlement { lock, kind } in settlements {
            match kind {
                SettlementKind::Complete => complete.push(lock),
                SettlementKind::DeadLetter(reason) => {
                    self.settle_as(vec![lock], DeliveryDisposition::DeadLetter(reason)).await?;
                }
            }
        }
        self.settle_as(complete, DeliveryDisposition::Complete).await
    }

    async fn defer(&self, postponements: Vec<DeferOrder>) -> Result<(), QueueError> {
        let mut locks = Vec::with_capacity(postponements.len());
        let mut copies = Vec::with_capacity(postponements.len());
        for DeferOrder { lock, mut job, .. } in postponements {
            job.may_have_outcome = true;
            locks.push(lock);
            copies.push(job);
        }
        let too_large = self.sender.send_again(copies).await?;
        // They can't be delayed: they are redelivered at once, counted.
        let back = too_large.iter().rev().map(|n| locks.remove(*n)).collect();
        self.settle_as(back, DeliveryDisposition::Abandon).await?;
        self.settle_as(locks, DeliveryDisposition::Complete).await
    }

    async fn abandon(&self, locks: &[LockToken]) -> Result<(), QueueError> {
        self.settle_as(locks.to_vec(), DeliveryDisposition::Abandon).await
    }

    async fn depth(&self) -> Result<QueueDepth, QueueError> {
        let mut depth = QueueDepth::default();
        let now = Timestamp::now();
        let mut from = 0;
        for _ in 0..COUNT_PAGES {
            let page = self.management.peek(from, PEEK_PAGE).await?;
            let scheduled = page.iter().filter(|m| message::is_scheduled(m, now)).count() as u64;
            depth.scheduled += scheduled;
            depth.active += page.len() as u64 - scheduled;
            let Some(next) = next_sequence(&page) else { break };
            from = next;
        }
        from = 0;
        for _ in 0..COUNT_PAGES {
            let page = self.dead_letters.peek(from, PEEK_PAGE).await?;
            depth.dead_letters += page.len() as u64;
            let Some(next) = next_sequence(&page) else { break };
            from = next;
        }
        Ok(depth)
    }

    async fn peek(&self, sought: &PeekFilter) -> Result<PeekResult, QueueError> {
        let mut sight = PeekResult::default();
        let (mut from, mut seen) = (0, 0);
        for _ in 0..COUNT_PAGES {
            let page = self.management.peek(from, PEEK_PAGE).await?;
            message::add_peeked_page(&page, sought, &mut sight);
            seen += page.len() as u64;
            let Some(next) = next_sequence(&page) else { return Ok(sight) };
            from = next;
        }
        Ok(PeekResult { examined: Some(seen), ..sight })
    }

    async fn dead_letters(&self, from: i64, max: usize) -> Result<Vec<DeadLetter>, QueueError> {
        let mut letters = Vec::new();
        let mut from = from;
        while letters.len() < max {
            let page = self.dead_letters.peek(from, max - letters.len()).await?;
            let Some(next) = next_sequence(&page) else { break };
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
        self.dead_letters.take_out(numbers, Some((&self.sender, amendment))).await
    }

    async fn discard(&self, numbers: &[i64]) -> Result<Vec<i64>, QueueError> {
        self.dead_letters.take_out(numbers, None).await
    }

    async fn close(&self) {
        self.receiver.close().await;
        self.connector.close().await;
    }
}
