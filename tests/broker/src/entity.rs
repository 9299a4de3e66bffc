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
        }
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
        shelf.lock(shelf.next_ready()?, now, lock)
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
        self.shelf(side).renew(token, until).map(|()| until)
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
