//! Where messages lie: one shelf is a queue's main side or its dead-letter side.
//!
//! Pure state. Every call takes `now`; nothing here waits, and nothing here decides what a failed
//! delivery leads to (that is `entity`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::entity::Millis;
use crate::message::{Message, Stamp, State};

/// The lock of a delivery is gone: expired, settled already, or never there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "The lock supplied is invalid. Either the lock expired, or the message has already been removed."
)]
pub struct LockLost;

#[derive(Debug)]
pub struct Held {
    pub message: Message,
    pub sequence: i64,
    pub enqueued: Millis,
    /// Deliveries that ended in an abandon or an expired lock.
    pub failed_deliveries: u32,
    pub expires: Option<Millis>,
    /// Put aside by its receiver: handed out by sequence number only.
    pub deferred: bool,
    pub dead_letter_source: Option<String>,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Waiting,
    Locked { token: Uuid, until: Millis },
    Scheduled { due: Millis },
}

/// One hand-out under a lock, ready for the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub token: Uuid,
    pub sequence: i64,
    pub encoded: Bytes,
}

#[derive(Debug, Default)]
pub struct Shelf {
    messages: BTreeMap<i64, Held>,
    ready: BTreeSet<i64>,
    scheduled: BTreeSet<(Millis, i64)>,
    locks: HashMap<Uuid, i64>,
    lock_ends: BTreeSet<(Millis, i64)>,
    expiries: BTreeSet<(Millis, i64)>,
}

impl Held {
    pub fn new(message: Message, sequence: i64, now: Millis) -> Self {
        Self {
            message,
            sequence,
            enqueued: now,
            failed_deliveries: 0,
            expires: None,
            deferred: false,
            dead_letter_source: None,
            place: Place::Waiting,
        }
    }

    fn encode(&self) -> Bytes {
        let locked_until = match self.place {
            Place::Locked { until, .. } => Some(until),
            _ => None,
        };
        let state = match self.place {
            Place::Scheduled { .. } => State::Scheduled,
            _ if self.deferred => State::Deferred,
            _ => State::Active,
        };
        self.message.encode(&Stamp {
            sequence: self.sequence,
            enqueued: self.enqueued,
            locked_until,
            delivery_count: self.failed_deliveries,
            state,
            dead_letter_source: self.dead_letter_source.as_deref(),
        })
    }
}

impl Shelf {
    pub fn put(&mut self, held: Held) {
        let sequence = held.sequence;
        if let Some(expires) = held.expires {
            self.expiries.insert((expires, sequence));
        }
        if !held.deferred {
            self.ready.insert(sequence);
        }
        self.messages.insert(sequence, Held { place: Place::Waiting, ..held });
    }

    pub fn put_scheduled(&mut self, held: Held, due: Millis) {
        self.scheduled.insert((due, held.sequence));
        self.messages.insert(held.sequence, Held { place: Place::Scheduled { due }, ..held });
    }

    /// Takes a scheduled message back; false where it is due already or unknown.
    pub fn cancel(&mut self, sequence: i64) -> bool {
        let Some(Held { place: Place::Scheduled { due }, .. }) = self.messages.get(&sequence)
        else {
            return false;
        };
        self.scheduled.remove(&(*due, sequence));
        self.messages.remove(&sequence).is_some()
    }

    /// Takes the scheduled messages off the shelf whose time has come.
    pub fn take_due(&mut self, now: Millis) -> Vec<Held> {
        let mut due = Vec::new();
        while let Some(&(at, sequence)) = self.scheduled.first()
            && at <= now
        {
            self.scheduled.pop_first();
            due.extend(self.messages.remove(&sequence));
        }
        due
    }

    /// Takes the messages off the shelf whose lock has ended.
    pub fn take_unlocked(&mut self, now: Millis) -> Vec<Held> {
        let mut ended = Vec::new();
        while let Some(&(until, sequence)) = self.lock_ends.first()
            && until <= now
        {
            let token = match self.messages.get(&sequence).map(|held| held.place) {
                Some(Place::Locked { token, .. }) => token,
                other => unreachable!("a lock's end belongs to a locked message, not {other:?}"),
            };
            ended.extend(self.unlock(token));
        }
        ended
    }

    /// Takes the waiting messages off the shelf whose time to live is over. A locked one lives
    /// until its lock ends.
    pub fn take_expired(&mut self, now: Millis) -> Vec<Held> {
        let over: Vec<i64> = self.expiries.range(..=(now, i64::MAX)).map(|(_, at)| *at).collect();
        over.into_iter()
            .filter(|sequence| {
                self.messages.get(sequence).is_some_and(|held| held.place == Place::Waiting)
            })
            .collect::<Vec<_>>()
            .into_iter()
            .filter_map(|sequence| self.remove(sequence))
            .collect()
    }

    pub fn next_ready(&self) -> Option<i64> {
        self.ready.first().copied()
    }

    /// Locks a waiting message and gives it out.
    pub fn lock(&mut self, sequence: i64, now: Millis, lock: Duration) -> Option<Delivery> {
        let held = self.messages.get_mut(&sequence)?;
        if held.place != Place::Waiting {
            return None;
        }
        let token = Uuid::new_v4();
        let until = now + millis(lock);
        held.place = Place::Locked { token, until };
        self.ready.remove(&sequence);
        self.locks.insert(token, sequence);
        self.lock_ends.insert((until, sequence));
        Some(Delivery { token, sequence, encoded: held.encode() })
    }

    /// Gives a waiting message out for good (receive-and-delete).
    pub fn take(&mut self, sequence: i64) -> Option<Delivery> {
        if self.messages.get(&sequence)?.place != Place::Waiting {
            return None;
        }
        let held = self.remove(sequence)?;
        Some(Delivery { token: Uuid::new_v4(), sequence, encoded: held.encode() })
    }

    pub fn renew(&mut self, token: Uuid, until: Millis) -> Result<(), LockLost> {
        let sequence = *self.locks.get(&token).ok_or(LockLost)?;
        let held = self.messages.get_mut(&sequence).ok_or(LockLost)?;
        if let Place::Locked { until: old, .. } = held.place {
            self.lock_ends.remove(&(old, sequence));
        }
        held.place = Place::Locked { token, until };
        self.lock_ends.insert((until, sequence));
        Ok(())
    }

    /// Takes the locked message off the shelf, for its settlement to decide where it goes.
    pub fn unlock(&mut self, token: Uuid) -> Result<Held, LockLost> {
        let sequence = self.locks.remove(&token).ok_or(LockLost)?;
        if let Some(Held { place: Place::Locked { until, .. }, .. }) = self.messages.get(&sequence)
        {
            self.lock_ends.remove(&(*until, sequence));
        }
        self.remove(sequence).ok_or(LockLost)
    }

    /// Makes every lock end at `now`.
    pub fn end_locks(&mut self, now: Millis) {
        for token in self.locks.keys().copied().collect::<Vec<_>>() {
            self.renew(token, now).expect("a token in the table has its message");
        }
    }

    /// Encodes messages in order of sequence number without touching them.
    pub fn peek(&self, from: i64, count: usize) -> Vec<Bytes> {
        self.messages.range(from..).take(count).map(|(_, held)| held.encode()).collect()
    }

    pub fn is_deferred(&self, sequence: i64) -> bool {
        self.messages
            .get(&sequence)
            .is_some_and(|held| held.deferred && held.place == Place::Waiting)
    }

    /// When this shelf next changes by itself.
    pub fn next_event(&self) -> Option<Millis> {
        let firsts = [self.scheduled.first(), self.lock_ends.first()];
        firsts.into_iter().flatten().map(|(at, _)| *at).min()
    }

    pub fn waiting(&self) -> usize {
        self.messages.len() - self.locks.len() - self.scheduled.len()
    }

    pub fn locked(&self) -> usize {
        self.locks.len()
    }

    pub fn scheduled(&self) -> usize {
        self.scheduled.len()
    }

    fn remove(&mut self, sequence: i64) -> Option<Held> {
        let held = self.messages.remove(&sequence)?;
        self.ready.remove(&sequence);
        if let Some(expires) = held.expires {
            self.expiries.remove(&(expires, sequence));
        }
        Some(held)
    }
}

/// Durations of settings, in the unit that the wire uses for times.
pub fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX / 4)
}
