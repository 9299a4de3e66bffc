//! The one task that owns the receiving link: takes messages in, gives them out, settles them.
//!
//! Credit is what the receives that wait still lack. It is never lowered: the library takes a
//! message that was on its way by then for a breach of the protocol. So when a receive gives up, as
//! many messages may still come as it asked for; they are kept for the next receive, and given back
//! unread where none comes (which costs no delivery count). A delivery can be settled only on the link that it
//! came by; what came by an earlier one is handed back to the caller, who settles it through
//! `$management`.

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

use super::connection::{Connector, LONGEST_PAUSE, Live, pause};
use super::desk::{Asked, Desk, Said};
use super::fault::{Fault, Trouble};
use super::inbound::{self, Link, News, Verdict};
use super::message::{self, Received};
use crate::{DeadLetterReason, LockToken};

/// Orders that may wait for the task; more wait in their callers.
const BACKLOG: usize = 64;

/// How long a goodbye may take.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A message under lock.
pub(super) struct Locked {
    pub(super) lock: LockToken,
    pub(super) until: Timestamp,
    pub(super) message: Received,
}

/// Messages on their way to who asked for them. What is not taken goes back by itself.
pub(super) struct HandOut {
    messages: Vec<Locked>,
    back: mpsc::Sender<Order>,
}

impl HandOut {
    pub(super) fn messages(&self) -> &[Locked] {
        &self.messages
    }

    pub(super) fn take(mut self) -> Vec<Locked> {
        std::mem::take(&mut self.messages)
    }
}

impl Drop for HandOut {
    fn drop(&mut self) {
        let messages = std::mem::take(&mut self.messages);
        if !messages.is_empty() {
            // Where even this can't be said, the locks run out by themselves.
            let _ = self.back.try_send(Order::TakeBack(messages));
        }
    }
}

type Given = Result<HandOut, Fault>;

enum Order {
    Receive(Asked<Given>),
    TakeBack(Vec<Locked>),
    Settle {
        locks: Vec<LockToken>,
        verdict: Verdict,
        rest: oneshot::Sender<Vec<LockToken>>,
    },
    /// These locks are lost: nobody is going to settle them.
    Forget(Vec<LockToken>),
    Close(oneshot::Sender<()>),
}

/// The way to the task, which ends when this is dropped.
pub(super) struct Inbox {
    orders: mpsc::Sender<Order>,
}

impl Inbox {
    pub(super) fn start(connector: Arc<Connector>, source: String, patience: Duration) -> Self {
        let (orders, received) = mpsc::channel(BACKLOG);
        let back = orders.downgrade();
        let station = Station {
            connector: connector.clone(),
            source,
            desk: Desk::new(Instant::now(), patience),
            held: HashMap::new(),
            failures: 0,
            up_since: None,
            credit: 0,
            back,
        };
        connector.spawn(station.run(received));
        Self { orders }
    }

    pub(super) async fn receive(&self, max: usize, wait: Duration) -> Result<HandOut, Fault> {
        let (reply, replied) = oneshot::channel();
        let at = Instant::now();
        let asked = Asked { max, at, until: at + wait, reply };
        self.give(Order::Receive(asked)).await?;
        replied.await.unwrap_or_else(|_| Err(Fault::last(Trouble::Closed)))
    }

    /// Settles on the link what came by it; returns the others.
    pub(super) async fn settle(
        &self,
        locks: Vec<LockToken>,
        verdict: Verdict,
    ) -> Result<Vec<LockToken>, Fault> {
        let (rest, others) = oneshot::channel();
        self.give(Order::Settle { locks, verdict, rest }).await?;
        others.await.map_err(|_| Fault::last(Trouble::Closed))
    }

    pub(super) async fn forget(&self, locks: Vec<LockToken>) -> Result<(), Fault> {
        self.give(Order::Forget(locks)).await
    }

    /// Detaches the link, after which all that was settled has reached the broker.
    pub(super) async fn close(&self) {
        let (closed, done) = oneshot::channel();
        if self.give(Order::Close(closed)).await.is_ok() {
            let _ = done.await;
        }
    }

    async fn give(&self, order: Order) -> Result<(), Fault> {
        self.orders.send(order).await.map_err(|_| Fault::last(Trouble::Closed))
    }
}

struct Station {
    connector: Arc<Connector>,
    source: String,
    desk: Desk<Locked, Given>,
    /// What came by the present link and is not settled.
    held: HashMap<LockToken, DeliveryInfo>,
    failures: u32,
    up_since: Option<Instant>,
    /// What the broker was last allowed to send, less what it has sent.
    credit: usize,
    back: mpsc::WeakSender<Order>,
}

impl Station {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut link = Link::Unused;
        loop {
            let look = self.desk.next_look();
            let looked = async {
                match look {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let done = tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Close(closed)) => {
                        self.close(link).await;
                        let _ = closed.send(());
                        return;
                    }
                    Some(order) => self.carry_out(order, &mut link).await,
                    None => return,
                },
                news = link.next() => self.take_in(news, &mut link).await,
                () = looked => Ok(()),
            };
            let done = match done {
                Ok(()) => self.give_out(&mut link).await,
                Err(fault) => Err(fault),
            };
            if let Err(fault) = done {
                self.lost(fault, &mut link);
            }
        }
    }

    /// A new link, after a pause.
    fn attach(&self, pause: Duration) -> Link {
        let (connector, source) = (self.connector.clone(), self.source.clone());
        let attaching = async move {
            tokio::time::sleep(pause).await;
            let attach = |live: Arc<Live>| -> BoxFuture<'static, _> {
                let source = source.clone();
                Box::pin(async move { inbound::attach(&live, source).await })
            };
            connector.attach(attach).await
        };
        Link::Attaching(AbortOnDropHandle::new(tokio::spawn(attaching)))
    }

    async fn take_in(&mut self, news: News, link: &mut Link) -> Result<(), Fault> {
        let now = Instant::now();
        match news {
            News::Attached(live, receiver) => {
                self.desk.link_is_up(now);
                self.up_since = Some(now);
                *link = Link::Up(live, receiver);
            }
            News::Message(info, message) => {
                self.credit = self.credit.saturating_sub(1);
                self.failures = 0;
                let Some(lock) = message::lock_token(info.delivery_tag()) else {
                    return Err(Trouble::Unreadable("receive").into());
                };
                self.held.insert(lock, info);
                let until = message::locked_until(&message);
                self.desk.put(Locked { lock, until, message: *message }, now);
            }
            News::Broken(info) => {
                self.credit = self.credit.saturating_sub(1);
                if let Link::Up(_, receiver) = link {
                    let reason = DeadLetterReason {
                        reason: super::NOT_A_JOB.to_owned(),
                        description: "the message breaks AMQP's encoding".to_owned(),
                    };
                    inbound::dispose(receiver, vec![info], Verdict::DeadLetter(reason)).await?;
                }
            }
            News::Lost(fault) => return Err(fault),
        }
        Ok(())
    }

    async fn carry_out(&mut self, order: Order, link: &mut Link) -> Result<(), Fault> {
        match order {
            Order::Receive(asked) => {
                self.desk.ask(asked);
                if matches!(link, Link::Unused) {
                    *link = self.attach(Duration::ZERO);
                }
            }
            Order::TakeBack(messages) => self.desk.put_back(messages, Instant::now()),
            Order::Settle { locks, verdict, rest } => {
                let mut infos = Vec::with_capacity(locks.len());
                let mut others = Vec::new();
                for lock in locks {
                    match self.held.remove(&lock) {
                        Some(info) => infos.push(info),
                        None => others.push(lock),
                    }
                }
                let settled = match link {
                    Link::Up(_, receiver) => inbound::dispose(receiver, infos, verdict).await,
                    // Nothing is held then, so nothing is left unsettled here.
                    Link::Unused | Link::Attaching(_) => Ok(()),
                };
                let _ = rest.send(others);
                settled?;
            }
            Order::Forget(locks) => {
                let infos = locks.iter().filter_map(|lock| self.held.remove(lock)).collect();
                link.release(infos).await?;
            }
            Order::Close(_) => {}
        }
        Ok(())
    }

    /// Answers who can be answered, gives back what nobody wants, and asks for what is lacking.
    async fn give_out(&mut self, link: &mut Link) -> Result<(), Fault> {
        let now = Instant::now();
        while let Some((reply, said)) = self.desk.answer(now) {
            let given = match (said, self.back.upgrade()) {
                (Said::Messages(messages), Some(back)) => Ok(HandOut { messages, back }),
                (Said::Fault(fault), _) => Err(fault),
                (Said::Messages(_), None) => Err(Fault::last(Trouble::Closed)),
            };
            // One that nobody waits for any more gives its messages back as it is dropped.
            drop(reply.send(given));
        }
        let unwanted = self.desk.unwanted(now);
        self.give_back(unwanted, link).await?;
        let lacking = self.desk.lacking();
        if let Link::Up(_, receiver) = link
            && lacking > self.credit
        {
            self.credit = lacking;
            inbound::set_credit(receiver, lacking).await?;
        }
        Ok(())
    }

    async fn give_back(&mut self, messages: Vec<Locked>, link: &Link) -> Result<(), Fault> {
        if messages.is_empty() {
            return Ok(());
        }
        debug!(messages = messages.len(), "giving back what nobody asked for any more");
        let infos = messages.iter().filter_map(|locked| self.held.remove(&locked.lock));
        link.release(infos.collect()).await
    }

    async fn close(mut self, link: Link) {
        let messages = self.desk.clear();
        let goodbye = async {
            let given_back = self.give_back(messages, &link).await;
            if let (Link::Up(_, receiver), Ok(())) = (link, given_back) {
                let _ = receiver.close().await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_WAIT, goodbye).await;
    }

    fn lost(&mut self, fault: Fault, link: &mut Link) {
        // A link that was up for long, or brought something, was no failed try.
        if self.up_since.take().is_some_and(|since| since.elapsed() > LONGEST_PAUSE) {
            self.failures = 0;
        }
        self.failures += 1;
        let pause = pause(self.failures, rand::random());
        warn!(error = %fault, ?pause, "the queue's receiving link is down");
        self.desk.link_is_down(fault, Instant::now());
        // Those deliveries belong to the old link alone.
        self.held.clear();
        self.credit = 0;
        *link = self.attach(pause);
    }
}
