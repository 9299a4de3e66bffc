//! The one task that owns the receiving link: takes messages in, hands them out, settles them.
//!
//! Credit is what the pending receives still lack. It is never lowered: the library takes a message
//! that was on its way by then for a breach of the protocol. So when a receive gives up, as many
//! messages may still come as it asked for; they are kept for the next receive, and released unread
//! where none comes (which costs no delivery count). A delivery can be settled only on the link
//! that it came by; those of an earlier link are handed back to the caller, who settles them
//! through `$management`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::link::delivery::DeliveryInfo;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::connection::{AmqpConnector, MAX_BACKOFF, backoff};
use super::error::{BrokerError, TransportError};
use super::live_connection::AmqpConnection;
use super::message::{self, ReceivedMessage};
use super::receive_buffer::{PendingReceive, ReceiveBuffer, ReceiveReply};
use super::receiving_link::{self, DeliveryDisposition, LinkEvent, ReceivingLink};
use crate::{DeadLetterReason, LockToken};
use domain::job::Job;

/// Commands that may wait for the task; more wait in their callers.
const BACKLOG: usize = 64;

/// Time limit of closing.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A message under lock.
pub(super) struct LockedMessage {
    pub(super) lock: LockToken,
    pub(super) until: Timestamp,
    pub(super) message: ReceivedMessage,
}

/// Messages on their way to their receive. Those that are not taken go back automatically.
pub(super) struct MessageHandOut {
    messages: Vec<LockedMessage>,
    back: mpsc::Sender<ReceiverCommand>,
}

impl MessageHandOut {
    pub(super) fn messages(&self) -> &[LockedMessage] {
        &self.messages
    }

    pub(super) fn take(mut self) -> Vec<LockedMessage> {
        std::mem::take(&mut self.messages)
    }
}

impl Drop for MessageHandOut {
    fn drop(&mut self) {
        let messages = std::mem::take(&mut self.messages);
        if !messages.is_empty() {
            // Where even this can't be sent, the locks expire by themselves.
            let _ = self.back.try_send(ReceiverCommand::TakeBack(messages));
        }
    }
}

type HandOutResult = Result<MessageHandOut, BrokerError>;

enum ReceiverCommand {
    Receive(PendingReceive<HandOutResult>),
    TakeBack(Vec<LockedMessage>),
    Settle {
        locks: Vec<LockToken>,
        verdict: DeliveryDisposition,
        rest: oneshot::Sender<Vec<LockToken>>,
    },
    /// These locks are lost: nobody is going to settle them.
    Forget(Vec<LockToken>),
    Close(oneshot::Sender<()>),
}

/// Handle of the task, which ends when this is dropped.
pub(super) struct MessageReceiver {
    commands: mpsc::Sender<ReceiverCommand>,
}

impl MessageReceiver {
    pub(super) fn start(connector: Arc<AmqpConnector>, source: String, patience: Duration) -> Self {
        let (commands, received) = mpsc::channel(BACKLOG);
        let back = commands.downgrade();
        let station = ReceiverTask {
            connector: connector.clone(),
            source,
            buffer: ReceiveBuffer::new(Instant::now(), patience),
            unsettled: HashMap::new(),
            failures: 0,
            up_since: None,
            credit: 0,
            back,
        };
        connector.spawn(station.run(received));
        Self { commands }
    }

    pub(super) async fn receive(
        &self,
        max: usize,
        wait: Duration,
    ) -> Result<MessageHandOut, BrokerError> {
        let (reply, replied) = oneshot::channel();
        let at = Instant::now();
        let asked = PendingReceive { max, at, until: at + wait, reply };
        self.send_command(ReceiverCommand::Receive(asked)).await?;
        replied.await.unwrap_or_else(|_| Err(BrokerError::permanent(TransportError::Closed)))
    }

    /// Settles on the link the deliveries that came by it; returns the other locks.
    pub(super) async fn settle(
        &self,
        locks: Vec<LockToken>,
        verdict: DeliveryDisposition,
    ) -> Result<Vec<LockToken>, BrokerError> {
        let (rest, others) = oneshot::channel();
        self.send_command(ReceiverCommand::Settle { locks, verdict, rest }).await?;
        others.await.map_err(|_| BrokerError::permanent(TransportError::Closed))
    }

    pub(super) async fn forget(&self, locks: Vec<LockToken>) -> Result<(), BrokerError> {
        self.send_command(ReceiverCommand::Forget(locks)).await
    }

    /// Detaches the link, after which all settlements have reached the broker.
    pub(super) async fn close(&self) {
        let (closed, done) = oneshot::channel();
        if self.send_command(ReceiverCommand::Close(closed)).await.is_ok() {
            let _ = done.await;
        }
    }

    async fn send_command(&self, order: ReceiverCommand) -> Result<(), BrokerError> {
        self.commands.send(order).await.map_err(|_| BrokerError::permanent(TransportError::Closed))
    }
}

struct ReceiverTask {
    connector: Arc<AmqpConnector>,
    source: String,
    buffer: ReceiveBuffer<LockedMessage, HandOutResult>,
    /// Deliveries of the present link that are not settled.
    unsettled: HashMap<LockToken, DeliveryInfo>,
    failures: u32,
    up_since: Option<Instant>,
    /// Credit that the broker has left.
    credit: usize,
    back: mpsc::WeakSender<ReceiverCommand>,
}

impl ReceiverTask {
    async fn run(mut self, mut orders: mpsc::Receiver<ReceiverCommand>) {
        let mut link = ReceivingLink::Unused;
        loop {
            let look = self.buffer.next_check();
            let looked = async {
                match look {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let done = tokio::select! {
                order = orders.recv() => match order {
                    Some(ReceiverCommand::Close(closed)) => {
                        self.close(link).await;
                        let _ = closed.send(());
                        return;
                    }
                    Some(order) => self.handle_command(order, &mut link).await,
                    None => return,
                },
                news = link.next() => self.handle_event(news, &mut link).await,
                () = looked => Ok(()),
            };
            let done = match done {
                Ok(()) => self.hand_out(&mut link).await,
                Err(fault) => Err(fault),
            };
            if let Err(fault) = done {
                self.on_link_lost(fault, &mut link);
            }
        }
    }

    /// Attaches a new link, after a pause.
    fn attach(&self, pause: Duration) -> ReceivingLink {
        let (connector, source) = (self.connector.clone(), self.source.clone());
        let attaching = async move {
            tokio::time::sleep(pause).await;
            let attach = |live: Arc<AmqpConnection>| -> BoxFuture<'static, _> {
                let source = source.clone();
                Box::pin(async move { receiving_link::attach(&live, source).await })
            };
            connector.attach(attach).await
        };
        ReceivingLink::Attaching(AbortOnDropHandle::new(tokio::spawn(attaching)))
    }

    async fn handle_event(
        &mut self,
        news: LinkEvent,
        link: &mut ReceivingLink,
    ) -> Result<(), BrokerError> {
        let now = Instant::now();
        match news {
            LinkEvent::Attached(live, receiver) => {
                self.buffer.link_is_up(now);
                self.up_since = Some(now);
                *link = ReceivingLink::Up(live, receiver);
            }
            LinkEvent::Message(info, message) => {
                self.credit = self.credit.saturating_sub(1);
                self.failures = 0;
                let Some(lock) = message::lock_token(info.delivery_tag()) else {
                    return Err(TransportError::Unreadable("receive").into());
                };
                self.unsettled.insert(lock, info);
                let until = message::locked_until(&message);
                self.buffer.add_message(LockedMessage { lock, until, message: *message }, now);
            }
            LinkEvent::Malformed(info) => {
                self.credit = self.credit.saturating_sub(1);
                if let ReceivingLink::Up(_, receiver) = link {
                    let reason = DeadLetterReason {
                        reason: message::NOT_A_JOB.to_owned(),
                        description: "the message breaks AMQP's encoding".to_owned(),
                    };
                    receiving_link::dispose(
                        receiver,
                        vec![info],
                        DeliveryDisposition::DeadLetter(reason),
                    )
                    .await?;
                }
            }
            LinkEvent::Lost(fault) => return Err(fault),
        }
        Ok(())
    }

    async fn handle_command(
        &mut self,
        order: ReceiverCommand,
        link: &mut ReceivingLink,
    ) -> Result<(), BrokerError> {
        match order {
            ReceiverCommand::Receive(asked) => {
                self.buffer.add_receive(asked);
                if matches!(link, ReceivingLink::Unused) {
                    *link = self.attach(Duration::ZERO);
                }
            }
            ReceiverCommand::TakeBack(messages) => self.buffer.put_back(messages, Instant::now()),
            ReceiverCommand::Settle { locks, verdict, rest } => {
                let mut infos = Vec::with_capacity(locks.len());
                let mut others = Vec::new();
                for lock in locks {
                    match self.unsettled.remove(&lock) {
                        Some(info) => infos.push(info),
                        None => others.push(lock),
                    }
                }
                let settled = match link {
                    ReceivingLink::Up(_, receiver) => {
                        receiving_link::dispose(receiver, infos, verdict).await
                    }
                    // Nothing is held then, so nothing is left unsettled here.
                    ReceivingLink::Unused | ReceivingLink::Attaching(_) => Ok(()),
                };
                let _ = rest.send(others);
                settled?;
            }
            ReceiverCommand::Forget(locks) => {
                let infos = locks.iter().filter_map(|lock| self.unsettled.remove(lock)).collect();
                link.release(infos).await?;
            }
            ReceiverCommand::Close(_) => {}
        }
        Ok(())
    }

    /// Answers receives, releases unwanted messages, and sets the credit for lacking ones.
    async fn hand_out(&mut self, link: &mut ReceivingLink) -> Result<(), BrokerError> {
        let now = Instant::now();
        while let Some((reply, said)) = self.buffer.next_reply(now) {
            let given = match (said, self.back.upgrade()) {
                (ReceiveReply::Messages(messages), Some(back)) => {
                    Ok(MessageHandOut { messages, back })
                }
                (ReceiveReply::Fault(fault), _) => Err(fault),
                (ReceiveReply::Messages(_), None) => {
                    Err(BrokerError::permanent(TransportError::Closed))
                }
            };
            // A hand-out that nobody waits for any more gives its messages back as it is dropped.
            drop(reply.send(given));
        }
        let unwanted = self.buffer.take_unwanted(now);
        self.give_back(unwanted, link).await?;
        let lacking = self.buffer.shortfall();
        if let ReceivingLink::Up(_, receiver) = link
            && lacking > self.credit
        {
            self.credit = lacking;
            receiving_link::set_credit(receiver, lacking).await?;
        }
        Ok(())
    }

    async fn give_back(
        &mut self,
        messages: Vec<LockedMessage>,
        link: &ReceivingLink,
    ) -> Result<(), BrokerError> {
        if messages.is_empty() {
            return Ok(());
        }
        debug!(messages = messages.len(), "releasing messages that no receive waits for");
        let infos = messages.iter().filter_map(|locked| self.unsettled.remove(&locked.lock));
        link.release(infos.collect()).await
    }

    async fn close(mut self, link: ReceivingLink) {
        let messages = self.buffer.take_all();
        let goodbye = async {
            let given_back = self.give_back(messages, &link).await;
            if let (ReceivingLink::Up(_, receiver), Ok(())) = (link, given_back) {
                let _ = receiver.close().await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_WAIT, goodbye).await;
    }

    fn on_link_lost(&mut self, fault: BrokerError, link: &mut ReceivingLink) {
        // A link that was up for long, or brought something, was no failed attempt.
        if self.up_since.take().is_some_and(|since| since.elapsed() > MAX_BACKOFF) {
            self.failures = 0;
        }
        self.failures += 1;
        let pause = backoff(self.failures, rand::random());
        warn!(error = %fault, ?pause, "the queue's receiving link is down");
        self.buffer.link_is_down(fault, Instant::now());
        // Those deliveries belong to the old link alone.
        self.unsettled.clear();
        self.credit = 0;
        *link = self.attach(pause);
    }
}

pub(super) fn job_of(locked: &LockedMessage) -> Result<Job, String> {
    let body = message::body_of(&locked.message.body)?;
    let mut job = Job::from_message(&body).map_err(|error| error.to_string())?;
    // A program that knows nothing of our history may still be traced.
    job.history.traceparent =
        job.history.traceparent.or_else(|| message::traceparent(&locked.message));
    Ok(job)
}

/// Returns the job's first enqueue time; without one, this is its first message.
pub(super) fn first_enqueued_of(job: &Job, locked: &LockedMessage) -> Option<Timestamp> {
    job.history.first_enqueued.or_else(|| message::enqueued(&locked.message))
}
