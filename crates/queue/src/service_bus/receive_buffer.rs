//! Bookkeeping of the receiver: pending receives and buffered messages, without any I/O. Every call
//! takes `now`.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::error::{BrokerError, TransportError};

/// Wait for further messages after one, to hand them out together.
const LINGER: Duration = Duration::from_millis(15);

/// Time that the broker needs to answer: no receive returns empty sooner.
const ROUND_TRIP: Duration = Duration::from_millis(500);

/// Time that a message without a receive is kept before it is given back.
const KEEP_UNWANTED: Duration = Duration::from_millis(500);

/// One receive that waits.
pub(super) struct PendingReceive<R> {
    pub(super) max: usize,
    pub(super) at: Instant,
    pub(super) until: Instant,
    pub(super) reply: oneshot::Sender<R>,
}

/// Reply to a receive.
pub(super) enum ReceiveReply<M> {
    Messages(Vec<M>),
    Fault(BrokerError),
}

/// Messages `M` that wait for receives, and receives that wait for messages.
pub(super) struct ReceiveBuffer<M, R> {
    waiting: VecDeque<PendingReceive<R>>,
    messages: VecDeque<M>,
    last_message: Instant,
    last_answer: Instant,
    link: LinkState,
    patience: Duration,
}

enum LinkState {
    Up { since: Instant },
    Down { since: Instant, fault: Option<BrokerError> },
}

impl<M, R> ReceiveBuffer<M, R> {
    pub(super) fn new(now: Instant, patience: Duration) -> Self {
        Self {
            waiting: VecDeque::new(),
            messages: VecDeque::new(),
            last_message: now,
            last_answer: now,
            link: LinkState::Down { since: now, fault: None },
            patience,
        }
    }

    pub(super) fn add_receive(&mut self, asked: PendingReceive<R>) {
        self.waiting.push_back(asked);
    }

    pub(super) fn add_message(&mut self, message: M, now: Instant) {
        self.messages.push_back(message);
        self.last_message = now;
    }

    /// Takes back messages that were handed out and not taken.
    pub(super) fn put_back(&mut self, messages: Vec<M>, now: Instant) {
        for message in messages.into_iter().rev() {
            self.messages.push_front(message);
        }
        self.last_message = now;
    }

    pub(super) fn link_is_up(&mut self, now: Instant) {
        self.link = LinkState::Up { since: now };
    }

    pub(super) fn link_is_down(&mut self, fault: BrokerError, now: Instant) {
        let since = match self.link {
            LinkState::Down { since, .. } => since,
            LinkState::Up { .. } => now,
        };
        self.link = LinkState::Down { since, fault: Some(fault) };
    }

    /// Returns the number of messages that the pending receives lack.
    pub(super) fn shortfall(&self) -> usize {
        let wanted: usize = self.waiting.iter().map(|asked| asked.max).sum();
        wanted.saturating_sub(self.messages.len())
    }

    /// Returns the next reply that is due, and its channel. Cancelled receives are dropped.
    pub(super) fn next_reply(
        &mut self,
        now: Instant,
    ) -> Option<(oneshot::Sender<R>, ReceiveReply<M>)> {
        self.waiting.retain(|asked| !asked.reply.is_closed());
        let first = self.waiting.front()?;
        if now < self.reply_due(first) && self.messages.len() < first.max {
            return None;
        }
        let first = self.waiting.pop_front()?;
        self.last_answer = now;
        let said = match &self.link {
            LinkState::Down { fault, .. } if self.messages.is_empty() => {
                let lost = || TransportError::ConnectionLost.into();
                ReceiveReply::Fault(fault.clone().unwrap_or_else(lost))
            }
            _ => {
                let count = first.max.min(self.messages.len());
                ReceiveReply::Messages(self.messages.drain(..count).collect())
            }
        };
        Some((first.reply, said))
    }

    /// Returns the time at which a receive has to be answered, full or not.
    fn reply_due(&self, asked: &PendingReceive<R>) -> Instant {
        if !self.messages.is_empty() {
            return self.last_message.max(asked.at) + LINGER;
        }
        match &self.link {
            LinkState::Up { since } => asked.until.max(asked.at.max(*since) + ROUND_TRIP),
            LinkState::Down { fault: Some(fault), .. } if !fault.is_transient() => asked.at,
            LinkState::Down { since, .. } => (*since).max(asked.at) + self.patience,
        }
    }

    /// Takes out the messages that no receive wanted for a while.
    pub(super) fn take_unwanted(&mut self, now: Instant) -> Vec<M> {
        match self.unwanted_at() {
            Some(at) if at <= now => self.messages.drain(..).collect(),
            _ => Vec::new(),
        }
    }

    /// Takes out all messages, for closing.
    pub(super) fn take_all(&mut self) -> Vec<M> {
        self.messages.drain(..).collect()
    }

    fn unwanted_at(&self) -> Option<Instant> {
        let idle = self.waiting.is_empty() && !self.messages.is_empty();
        idle.then(|| self.last_message.max(self.last_answer) + KEEP_UNWANTED)
    }

    /// Returns the time of the next check if nothing happens.
    pub(super) fn next_check(&self) -> Option<Instant> {
        let due = self.waiting.front().map(|asked| self.reply_due(asked));
        due.into_iter().chain(self.unwanted_at()).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestDesk = ReceiveBuffer<u32, ()>;

    const WAIT: Duration = Duration::from_secs(10);
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A desk with its link up and one receive of two waiting.
    fn desk(now: Instant) -> (TestDesk, oneshot::Receiver<()>) {
        let mut desk = TestDesk::new(now, PATIENCE);
        let (reply, receiver) = oneshot::channel();
        desk.add_receive(PendingReceive { max: 2, at: now, until: now + WAIT, reply });
        (desk, receiver)
    }

    fn messages(desk: &mut TestDesk, now: Instant) -> Option<Vec<u32>> {
        match desk.next_reply(now)?.1 {
            ReceiveReply::Messages(messages) => Some(messages),
            ReceiveReply::Fault(fault) => panic!("{fault}"),
        }
    }

    #[tokio::test]
    async fn a_receive_takes_what_comes_together() {
        let now = Instant::now();
        let (mut desk, _receiver) = desk(now);
        desk.link_is_up(now);
        assert_eq!(desk.shortfall(), 2);
        desk.add_message(1, now);
        assert_eq!(messages(&mut desk, now), None, "another may follow");
        desk.add_message(2, now);
        assert_eq!(messages(&mut desk, now), Some(vec![1, 2]), "it is full");
        assert_eq!(desk.shortfall(), 0);
    }

    #[tokio::test]
    async fn a_lone_message_is_not_kept_waiting_for_company() {
        let now = Instant::now();
        let (mut desk, _receiver) = desk(now);
        desk.link_is_up(now);
        desk.add_message(1, now);
        assert_eq!(desk.next_check(), Some(now + LINGER));
        assert_eq!(messages(&mut desk, now + LINGER), Some(vec![1]));
    }

    #[tokio::test]
    async fn nothing_is_said_only_when_the_broker_was_asked() {
        let now = Instant::now();
        let (mut desk, _receiver) = desk(now);
        assert!(desk.next_reply(now + WAIT).is_none(), "no link yet");
        desk.link_is_up(now + WAIT);
        assert!(desk.next_reply(now + WAIT).is_none(), "the answer may be under way");
        assert_eq!(messages(&mut desk, now + WAIT + ROUND_TRIP), Some(vec![]));
    }

    #[tokio::test]
    async fn an_outage_is_told_after_the_patience_and_a_refusal_at_once() {
        let now = Instant::now();
        let (mut desk, _receiver) = desk(now);
        desk.link_is_down(TransportError::ConnectionLost.into(), now);
        assert!(desk.next_reply(now + WAIT).is_none());
        assert!(matches!(desk.next_reply(now + PATIENCE), Some((_, ReceiveReply::Fault(_)))));
        let (mut desk, _receiver) = self::desk(now);
        desk.link_is_down(BrokerError::permanent(TransportError::Closed), now);
        assert!(matches!(desk.next_reply(now), Some((_, ReceiveReply::Fault(_)))));
    }

    #[tokio::test]
    async fn what_nobody_wants_is_given_back_after_a_while() {
        let now = Instant::now();
        let (mut desk, receiver) = desk(now);
        drop(receiver);
        desk.link_is_up(now);
        desk.add_message(1, now);
        assert!(desk.next_reply(now + WAIT).is_none(), "the receive gave up");
        assert!(desk.take_unwanted(now).is_empty());
        assert_eq!(desk.take_unwanted(now + KEEP_UNWANTED), [1]);
    }
}
