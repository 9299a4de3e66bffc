//! Who waits for messages and which messages wait for somebody: the receiver's bookkeeping, without
//! any input or output. Every call takes `now`.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::fault::{Fault, Trouble};

/// After a message, how long the next one may take to be given out with it.
const LINGER: Duration = Duration::from_millis(15);

/// "Nothing there" is said no sooner than the broker can have answered.
const ROUND_TRIP: Duration = Duration::from_millis(500);

/// A message that nobody asked for any more is kept this long before it is given back.
const KEEP: Duration = Duration::from_millis(500);

/// One receive that waits.
pub(super) struct Asked<R> {
    pub(super) max: usize,
    pub(super) at: Instant,
    pub(super) until: Instant,
    pub(super) reply: oneshot::Sender<R>,
}

/// What is to be said to whom.
pub(super) enum Said<M> {
    Messages(Vec<M>),
    Fault(Fault),
}

/// Messages `M` that wait for receives, and receives that wait for messages.
pub(super) struct Desk<M, R> {
    waiting: VecDeque<Asked<R>>,
    messages: VecDeque<M>,
    last_message: Instant,
    last_answer: Instant,
    link: Link,
    patience: Duration,
}

enum Link {
    Up { since: Instant },
    Down { since: Instant, fault: Option<Fault> },
}

impl<M, R> Desk<M, R> {
    pub(super) fn new(now: Instant, patience: Duration) -> Self {
        Self {
            waiting: VecDeque::new(),
            messages: VecDeque::new(),
            last_message: now,
            last_answer: now,
            link: Link::Down { since: now, fault: None },
            patience,
        }
    }

    pub(super) fn ask(&mut self, asked: Asked<R>) {
        self.waiting.push_back(asked);
    }

    pub(super) fn put(&mut self, message: M, now: Instant) {
        self.messages.push_back(message);
        self.last_message = now;
    }

    /// Takes back what was given out and not taken.
    pub(super) fn put_back(&mut self, messages: Vec<M>, now: Instant) {
        for message in messages.into_iter().rev() {
            self.messages.push_front(message);
        }
        self.last_message = now;
    }

    pub(super) fn link_is_up(&mut self, now: Instant) {
        self.link = Link::Up { since: now };
    }

    pub(super) fn link_is_down(&mut self, fault: Fault, now: Instant) {
        let since = match self.link {
            Link::Down { since, .. } => since,
            Link::Up { .. } => now,
        };
        self.link = Link::Down { since, fault: Some(fault) };
    }

    /// The messages that should be under way or here: what the waiting receives lack.
    pub(super) fn lacking(&self) -> usize {
        let wanted: usize = self.waiting.iter().map(|asked| asked.max).sum();
        wanted.saturating_sub(self.messages.len())
    }

    /// The next answer that is due, and its receiver. Those who gave up are forgotten.
    pub(super) fn answer(&mut self, now: Instant) -> Option<(oneshot::Sender<R>, Said<M>)> {
        self.waiting.retain(|asked| !asked.reply.is_closed());
        let first = self.waiting.front()?;
        if now < self.due(first) && self.messages.len() < first.max {
            return None;
        }
        let first = self.waiting.pop_front()?;
        self.last_answer = now;
        let said = match &self.link {
            Link::Down { fault, .. } if self.messages.is_empty() => {
                let lost = || Trouble::ConnectionLost.into();
                Said::Fault(fault.clone().unwrap_or_else(lost))
            }
            _ => {
                let count = first.max.min(self.messages.len());
                Said::Messages(self.messages.drain(..count).collect())
            }
        };
        Some((first.reply, said))
    }

    /// When a receive has to be answered, whatever is there by then.
    fn due(&self, asked: &Asked<R>) -> Instant {
        if !self.messages.is_empty() {
            return self.last_message.max(asked.at) + LINGER;
        }
        match &self.link {
            Link::Up { since } => asked.until.max(asked.at.max(*since) + ROUND_TRIP),
            Link::Down { fault: Some(fault), .. } if !fault.is_passing() => asked.at,
            Link::Down { since, .. } => (*since).max(asked.at) + self.patience,
        }
    }

    /// Messages that nobody has asked for in a while.
    pub(super) fn unwanted(&mut self, now: Instant) -> Vec<M> {
        match self.unwanted_at() {
            Some(at) if at <= now => self.messages.drain(..).collect(),
            _ => Vec::new(),
        }
    }

    /// All messages, wanted or not, for the end.
    pub(super) fn clear(&mut self) -> Vec<M> {
        self.messages.drain(..).collect()
    }

    fn unwanted_at(&self) -> Option<Instant> {
        let idle = self.waiting.is_empty() && !self.messages.is_empty();
        idle.then(|| self.last_message.max(self.last_answer) + KEEP)
    }

    /// When to look again though nothing happens.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let due = self.waiting.front().map(|asked| self.due(asked));
        due.into_iter().chain(self.unwanted_at()).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestDesk = Desk<u32, ()>;

    const WAIT: Duration = Duration::from_secs(10);
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A desk with its link up and one receive of two waiting.
    fn desk(now: Instant) -> (TestDesk, oneshot::Receiver<()>) {
        let mut desk = TestDesk::new(now, PATIENCE);
        let (reply, receiver) = oneshot::channel();
        desk.ask(Asked { max: 2, at: now, until: now + WAIT, reply });
        (desk, receiver)
    }

    fn messages(desk: &mut TestDesk, now: Instant) -> Option<Vec<u32>> {
        match desk.answer(now)?.1 {
            Said::Messages(messages) => Some(messages),
            Said::Fault(fault) => panic!("{fault}"),
        }
    }

    #[tokio::test]
    async fn a_receive_takes_what_comes_together() {
        let now = Instant::now();
        let (mut desk, _receiver) = desk(now);
        desk.link_is_up(now);
        assert_eq!(desk.lacking(), 2);
        desk.put(1, now);
        assert_eq!(messages(&mut desk, now), None, "another may follow");
        desk.put(2, now);
        assert_eq!(messages(&mut desk, now), Some(vec![1, 2]), "it is full");
        assert_eq!(desk.lacking(), 0);
    }

    #[tokio::test]
    async fn a_lone_message_is_not_kept_waiting_for_company() {
        let now = Instant::now();
        let (mut desk, _receiver) = desk(now);
        desk.link_is_up(now);
        desk.put(1, now);
        assert_eq!(desk.next_look(), Some(now + LINGER));
        assert_eq!(messages(&mut desk, now + LINGER), Some(vec![1]));
    }

    #[tokio::test]
    async fn nothing_is_said_only_when_the_broker_was_asked() {
        let now = Instant::now();
        let (mut desk, _receiver) = desk(now);
        assert!(desk.answer(now + WAIT).is_none(), "no link yet");
        desk.link_is_up(now + WAIT);
        assert!(desk.answer(now + WAIT).is_none(), "the answer may be under way");
        assert_eq!(messages(&mut desk, now + WAIT + ROUND_TRIP), Some(vec![]));
    }

    #[tokio::test]
    async fn an_outage_is_told_after_the_patience_and_a_refusal_at_once() {
        let now = Instant::now();
        let (mut desk, _receiver) = desk(now);
        desk.link_is_down(Trouble::ConnectionLost.into(), now);
        assert!(desk.answer(now + WAIT).is_none());
        assert!(matches!(desk.answer(now + PATIENCE), Some((_, Said::Fault(_)))));
        let (mut desk, _receiver) = self::desk(now);
        desk.link_is_down(Fault::last(Trouble::Closed), now);
        assert!(matches!(desk.answer(now), Some((_, Said::Fault(_)))));
    }

    #[tokio::test]
    async fn what_nobody_wants_is_given_back_after_a_while() {
        let now = Instant::now();
        let (mut desk, receiver) = desk(now);
        drop(receiver);
        desk.link_is_up(now);
        desk.put(1, now);
        assert!(desk.answer(now + WAIT).is_none(), "the receive gave up");
        assert!(desk.unwanted(now).is_empty());
        assert_eq!(desk.unwanted(now + KEEP), [1]);
    }
}
