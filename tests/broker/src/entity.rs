//! One queue (or one subscription): delivery counts, dead letters, duplicates, time to live.
//!
//! Pure state over two shelves. Every call takes `now` and first lets happen what has come due, so
//! that no background task is needed and tests choose their own time.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use serde_amqp::Value;
use uuid::Uuid;

use crate::message::Message;
use crate::shelf::{Delivery, Held, LockLost, Shelf, millis};

/// Milliseconds since the Unix epoch, as AMQP counts time.
pub type Millis = i64;

#[derive(Debug, Clone)]
pub struct QueueSettings {
    pub name: String,
    /// How long a delivery is locked.
    pub lock: Duration,
    /// Failed deliveries after which a message goes to the dead letters.
    pub max_delivery_count: u32,
    /// How long a message id is remembered; `None` takes duplicates.
    pub duplicate_window: Option<Duration>,
    /// The longest life of a message; its own header may shorten it.
    pub time_to_live: Option<Duration>,
    /// Whether expired messages become dead letters or vanish.
    pub dead_letter_expired: bool,
}

impl QueueSettings {
    /// A queue as the service makes it by default: 60 s locks, ten deliveries.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            lock: Duration::from_secs(60),
            max_delivery_count: 10,
            duplicate_window: None,
            time_to_live: None,
            dead_letter_expired: true,
        }
    }
}

/// The two sides of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Main,
    DeadLetter,
}

/// What a receiver wants done with a locked message. The pairs are application properties to set.
#[derive(Debug, Clone, PartialEq)]
pub enum Settlement {
    Complete,
    Abandon(Vec<(String, Value)>),
    /// Given back unread: costs no delivery.
    Release,
    Defer(Vec<(String, Value)>),
    DeadLetter(Vec<(String, Value)>),
}

/// How many messages are where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Waiting, deferred ones included.
    pub active: usize,
    pub locked: usize,
    pub scheduled: usize,
    pub dead_letter: usize,
    /// Messages completed, or received and deleted, on either side.
    pub completed: u64,
    /// Sends dropped because their message id was known.
    pub duplicates: u64,
    /// Deliveries under a lock so far, on either side.
    pub received: u64,
    /// Locks that were renewed so far.
    pub renewed: u64,
}

#[derive(Debug)]
pub struct Queue {
    settings: QueueSettings,
    main: Shelf,
    dead: Shelf,
    last_sequence: i64,
    seen: HashMap<String, Millis>,
    seen_in_order: VecDeque<(Millis, String)>,
    completed: u64,
    duplicates: u64,
    received: u64,
    renewed: u64,
}

impl Queue {
    pub fn new(settings: QueueSettings) -> Self {
        Self {
            settings,
            main: Shelf::default(),
            dead: Shelf::default(),
            last_sequence: 0,
            seen: HashMap::new(),
            seen_in_order: VecDeque::new(),
            completed: 0,
            duplicates: 0,
            received: 0,
            renewed: 0,
        }
    }

    pub fn settings(&self) -> &QueueSettings {
        &self.settings
    }

    /// Takes a message in and tells its sequence number; a duplicate is taken and dropped, as the
    /// service does.
    pub fn send(&mut self, message: Message, now: Millis) -> i64 {
        self.advance(now);
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        if self.is_duplicate(&message, now) {
            self.duplicates += 1;
            return sequence;
        }
        let due = message.scheduled_for.filter(|due| *due > now);
        let held = Held::new(message, sequence, now);
        match due {
            Some(due) => self.main.put_scheduled(held, due),
            None => self.enqueue(held, now),
        }
        sequence
    }

    fn enqueue(&mut self, mut held: Held, now: Millis) {
        let own = held.message.time_to_live.map(Millis::from);
        let longest = self.settings.time_to_live.map(millis);
        held.enqueued = now;
        held.expires = own.into_iter().chain(longest).min().map(|life| now.saturating_add(life));
        self.main.put(held);
    }

    fn is_duplicate(&mut self, message: &Message, now: Millis) -> bool {
        let Some(window) = self.settings.duplicate_window.map(millis) else {
            return false;
        };
        while self.seen_in_order.front().is_some_and(|(at, _)| at + window <= now) {
            let (_, id) = self.seen_in_order.pop_front().expect("the front was just seen");
            self.seen.remove(&id);
        }
        if self.seen.contains_key(&message.message_id) {
            return true;
        }
        self.seen.insert(message.message_id.clone(), now);
        self.seen_in_order.push_back((now, message.message_id.clone()));
        false
    }

    pub fn cancel_scheduled(&mut self, sequence: i64, now: Millis) -> bool {
        self.advance(now);
        self.main.cancel(sequence)
    }

    /// The next message under a lock.
    pub fn receive(&mut self, side: Side, now: Millis) -> Option<Delivery> {
        self.advance(now);
        let lock = self.settings.lock;
        let shelf = self.shelf(side);
        let delivery = shelf.lock(shelf.next_ready()?, now, lock)?;
        self.received += 1;
        Some(delivery)
    }

    /// The next message, gone from the queue.
    pub fn receive_and_delete(&mut self, side: Side, now: Millis) -> Option<Delivery> {
        self.advance(now);
        let shelf = self.shelf(side);
        let delivery = shelf.take(shelf.next_ready()?)?;
        self.completed += 1;
        Some(delivery)
    }

    /// A deferred message by its number, under a lock or gone from the queue.
    pub fn receive_deferred(
        &mut self,
        side: Side,
        sequence: i64,
        delete: bool,
        now: Millis,
    ) -> Option<Delivery> {
        self.advance(now);
        let lock = self.settings.lock;
        let shelf = self.shelf(side);
        if !shelf.is_deferred(sequence) {
            return None;
        }
        if !delete {
            return shelf.lock(sequence, now, lock);
        }
        let delivery = shelf.take(sequence);
        self.completed += 1;
        delivery
    }

    pub fn renew(&mut self, side: Side, token: Uuid, now: Millis) -> Result<Millis, LockLost> {
        self.advance(now);
        let until = now + millis(self.settings.lock);
        self.shelf(side).renew(token, until)?;
        self.renewed += 1;
        Ok(until)
    }

    pub fn settle(
        &mut self,
        side: Side,
        token: Uuid,
        settlement: Settlement,
        now: Millis,
    ) -> Result<(), LockLost> {
        self.advance(now);
        let mut held = self.shelf(side).unlock(token)?;
        match settlement {
            Settlement::Complete => self.completed += 1,
            Settlement::Release => self.shelf(side).put(held),
            Settlement::Abandon(changes) => {
                held.message.set_properties(changes);
                self.count_failure(side, held, now);
            }
            Settlement::Defer(changes) => {
                held.message.set_properties(changes);
                held.deferred = true;
                self.shelf(side).put(held);
            }
            Settlement::DeadLetter(changes) => {
                held.message.set_properties(changes);
                self.bury(held, now);
            }
        }
        Ok(())
    }

    pub fn peek(&mut self, side: Side, from: i64, count: usize, now: Millis) -> Vec<Bytes> {
        self.advance(now);
        self.shelf(side).peek(from, count)
    }

    pub fn expire_locks(&mut self, now: Millis) {
        self.main.end_locks(now);
        self.dead.end_locks(now);
        self.advance(now);
    }

    pub fn counts(&mut self, now: Millis) -> Counts {
        self.advance(now);
        Counts {
            active: self.main.waiting(),
            locked: self.main.locked(),
            scheduled: self.main.scheduled(),
            dead_letter: self.dead.waiting() + self.dead.locked(),
            completed: self.completed,
            duplicates: self.duplicates,
            received: self.received,
            renewed: self.renewed,
        }
    }

    /// When messages next become available without anybody's doing.
    pub fn next_event(&self) -> Option<Millis> {
        self.main.next_event().into_iter().chain(self.dead.next_event()).min()
    }

    /// Lets everything happen that was due by `now`.
    fn advance(&mut self, now: Millis) {
        for held in self.main.take_due(now) {
            self.enqueue(held, now);
        }
        for side in [Side::Main, Side::DeadLetter] {
            for held in self.shelf(side).take_unlocked(now) {
                self.count_failure(side, held, now);
            }
        }
        for held in self.main.take_expired(now) {
            if self.settings.dead_letter_expired {
                let description = "The message expired and was dead lettered.";
                self.bury_for("TTLExpiredException", description, held, now);
            }
        }
    }

    /// Counts a delivery that came to nothing. Dead letters are never buried a second time.
    fn count_failure(&mut self, side: Side, mut held: Held, now: Millis) {
        held.failed_deliveries += 1;
        if side == Side::DeadLetter || held.failed_deliveries < self.settings.max_delivery_count {
            self.shelf(side).put(held);
            return;
        }
        let description = format!(
            "Message could not be consumed after {} delivery attempts.",
            held.failed_deliveries
        );
        self.bury_for("MaxDeliveryCountExceeded", &description, held, now);
    }

    fn bury_for(&mut self, reason: &str, description: &str, mut held: Held, now: Millis) {
        held.message.set_properties(dead_letter_properties(Some(reason), Some(description)));
        self.bury(held, now);
    }

    /// Moves a message to the dead letters: unlocked, alive for ever, under a new number.
    fn bury(&mut self, mut held: Held, now: Millis) {
        self.last_sequence += 1;
        held.sequence = self.last_sequence;
        held.enqueued = now;
        held.expires = None;
        held.deferred = false;
        held.dead_letter_source.get_or_insert_with(|| self.settings.name.clone());
        self.dead.put(held);
    }

    fn shelf(&mut self, side: Side) -> &mut Shelf {
        match side {
            Side::Main => &mut self.main,
            Side::DeadLetter => &mut self.dead,
        }
    }
}

/// The application properties by which a dead letter tells why it is one.
pub fn dead_letter_properties(
    reason: Option<&str>,
    description: Option<&str>,
) -> Vec<(String, Value)> {
    [("DeadLetterReason", reason), ("DeadLetterErrorDescription", description)]
        .into_iter()
        .filter_map(|(name, text)| Some((name.to_owned(), Value::String(text?.to_owned()))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests::encoded;

    const NOW: Millis = 1_000_000;
    const LOCK: Duration = Duration::from_secs(30);
    const LOCK_MS: Millis = 30_000;

    fn queue(change: impl FnOnce(&mut QueueSettings)) -> Queue {
        let mut settings =
            QueueSettings { lock: LOCK, max_delivery_count: 2, ..QueueSettings::new("jobs") };
        change(&mut settings);
        Queue::new(settings)
    }

    fn message(id: &str) -> Message {
        Message::parse(&encoded(Some(id), b"body")).unwrap()
    }

    fn id_of(delivery: &Delivery) -> String {
        Message::parse(&delivery.encoded).unwrap().message_id
    }

    #[test]
    fn a_locked_message_is_nobody_elses() {
        let mut queue = queue(|_| ());
        queue.send(message("a"), NOW);
        let delivery = queue.receive(Side::Main, NOW).unwrap();
        assert_eq!(queue.receive(Side::Main, NOW), None);
        queue.settle(Side::Main, delivery.token, Settlement::Complete, NOW).unwrap();
        let again = queue.settle(Side::Main, delivery.token, Settlement::Complete, NOW);
        assert_eq!(again, Err(LockLost));
        assert_eq!(queue.counts(NOW), Counts { completed: 1, received: 1, ..Counts::default() });
    }

    #[test]
    fn an_expired_lock_costs_a_delivery_and_its_token() {
        let mut queue = queue(|_| ());
        queue.send(message("a"), NOW);
        let first = queue.receive(Side::Main, NOW).unwrap();
        assert_eq!(queue.next_event(), Some(NOW + LOCK_MS));
        let end = queue.renew(Side::Main, first.token, NOW + 1_000).unwrap();
        assert_eq!(queue.receive(Side::Main, end - 1), None);
        let second = queue.receive(Side::Main, end).unwrap();
        assert_ne!(second.token, first.token);
        let late = queue.settle(Side::Main, first.token, Settlement::Complete, end);
        assert_eq!(late, Err(LockLost));
        assert_eq!(queue.renew(Side::Main, first.token, end), Err(LockLost));
    }

    #[test]
    fn used_up_deliveries_end_among_the_dead_letters() {
        let mut queue = queue(|_| ());
        queue.send(message("a"), NOW);
        for _ in 0..2 {
            let token = queue.receive(Side::Main, NOW).unwrap().token;
            queue.settle(Side::Main, token, Settlement::Abandon(Vec::new()), NOW).unwrap();
        }
        assert_eq!(queue.receive(Side::Main, NOW), None);
        assert_eq!(queue.counts(NOW).dead_letter, 1);
        // A dead letter may be abandoned for ever.
        for _ in 0..5 {
            let token = queue.receive(Side::DeadLetter, NOW).unwrap().token;
            queue.settle(Side::DeadLetter, token, Settlement::Abandon(Vec::new()), NOW).unwrap();
        }
        assert_eq!(queue.counts(NOW).dead_letter, 1);
    }

    #[test]
    fn a_released_message_comes_again_at_its_place() {
        let mut queue = queue(|_| ());
        for id in ["a", "b"] {
            queue.send(message(id), NOW);
        }
        for _ in 0..5 {
            let first = queue.receive(Side::Main, NOW).unwrap();
            assert_eq!(id_of(&first), "a");
            queue.settle(Side::Main, first.token, Settlement::Release, NOW).unwrap();
        }
        assert_eq!(queue.counts(NOW).dead_letter, 0);
    }

    #[test]
    fn scheduled_messages_wait_and_can_be_taken_back() {
        let mut queue = queue(|_| ());
        let later = |id| {
            let mut message = message(id);
            message.scheduled_for = Some(NOW + 500);
            message
        };
        let kept = queue.send(later("kept"), NOW);
        let dropped = queue.send(later("dropped"), NOW);
        assert!(queue.cancel_scheduled(dropped, NOW));
        assert!(!queue.cancel_scheduled(dropped, NOW));
        assert_eq!(queue.receive(Side::Main, NOW + 499), None);
        assert_eq!(queue.receive(Side::Main, NOW + 500).unwrap().sequence, kept);
        assert!(!queue.cancel_scheduled(kept, NOW + 500));
    }

    #[test]
    fn a_known_message_id_is_dropped_within_the_window_only() {
        let mut queue = queue(|settings| settings.duplicate_window = Some(LOCK));
        for at in [NOW, NOW + LOCK_MS - 1, NOW + LOCK_MS] {
            queue.send(message("a"), at);
        }
        let counts = queue.counts(NOW + LOCK_MS);
        assert_eq!((counts.active, counts.duplicates), (2, 1));
    }

    #[test]
    fn messages_expire_while_they_wait_but_not_under_a_lock() {
        let mut queue = queue(|settings| settings.time_to_live = Some(Duration::from_secs(10)));
        queue.send(message("held"), NOW);
        let mut short = message("short");
        short.time_to_live = Some(1_000);
        queue.send(short, NOW);
        let held = queue.receive(Side::Main, NOW).unwrap();
        let counts = queue.counts(NOW + 1_000);
        assert_eq!((counts.active, counts.locked, counts.dead_letter), (0, 1, 1));
        let over = NOW + 20_000;
        queue.settle(Side::Main, held.token, Settlement::Abandon(Vec::new()), over).unwrap();
        assert_eq!(queue.counts(over).dead_letter, 2);
    }

    #[test]
    fn a_deferred_message_comes_by_its_number_alone() {
        let mut queue = queue(|_| ());
        let sequence = queue.send(message("a"), NOW);
        let token = queue.receive(Side::Main, NOW).unwrap().token;
        queue.settle(Side::Main, token, Settlement::Defer(Vec::new()), NOW).unwrap();
        assert_eq!(queue.receive(Side::Main, NOW), None);
        let again = queue.receive_deferred(Side::Main, sequence, false, NOW).unwrap();
        assert_eq!(queue.receive_deferred(Side::Main, sequence, false, NOW), None);
        queue.settle(Side::Main, again.token, Settlement::Complete, NOW).unwrap();
        assert_eq!(queue.receive_deferred(Side::Main, sequence, true, NOW), None);
    }

    #[test]
    fn all_locks_can_end_at_once() {
        let mut queue = queue(|_| ());
        for id in ["a", "b"] {
            queue.send(message(id), NOW);
            queue.receive(Side::Main, NOW).unwrap();
        }
        queue.expire_locks(NOW + 1);
        let counts = queue.counts(NOW + 1);
        assert_eq!((counts.active, counts.locked), (2, 0));
    }
}
