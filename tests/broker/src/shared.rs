//! What the connections of one broker share: entities, faults, the clock, the ways to be woken.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::Settings;
use crate::cbs::TokenRules;
use crate::entity::Millis;
use crate::faults::{Faults, Order};
use crate::namespace::Namespace;
use crate::shelf::millis;

/// Orders a connection may be behind with before it is dropped for it.
const ORDERS_KEPT: usize = 64;

#[derive(Debug)]
pub struct Shared {
    namespace: Mutex<Namespace>,
    faults: Mutex<Faults>,
    paused: AtomicBool,
    /// Tokens that were put and good, over all connections.
    pub tokens_taken: AtomicU64,
    /// Times that tokens of a connection ended unrenewed.
    pub tokens_ended: AtomicU64,
    pub clock: Clock,
    pub tokens: TokenRules,
    pub max_message_size: u64,
    /// Whether the key may read and create entities.
    pub manage: bool,
    pub idle_timeout: Duration,
    /// Bumped when any queue changes, so that waiting receivers look again.
    pub changes: watch::Sender<u64>,
    pub orders: broadcast::Sender<Order>,
}

impl Shared {
    pub fn new(settings: &Settings) -> Self {
        Self {
            namespace: Mutex::new(Namespace::new(&settings.queues, &settings.topics)),
            faults: Mutex::default(),
            paused: AtomicBool::new(false),
            tokens_taken: AtomicU64::new(0),
            tokens_ended: AtomicU64::new(0),
            clock: Clock::start(),
            tokens: TokenRules {
                check: settings.check_tokens,
                key_name: settings.key_name.clone(),
                key: settings.key.clone(),
            },
            max_message_size: settings.max_message_size,
            manage: settings.manage,
            idle_timeout: settings.idle_timeout,
            changes: watch::Sender::new(0),
            orders: broadcast::Sender::new(ORDERS_KEPT),
        }
    }

    /// The entities. A panic elsewhere leaves them readable: a test that fails should say why.
    pub fn namespace(&self) -> MutexGuard<'_, Namespace> {
        self.namespace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
    }

    pub fn wake_all(&self) {
        self.changes.send_modify(|change| *change = change.wrapping_add(1));
    }

    /// Gives an order to every connection; with none open there is nobody to hear it.
    pub fn order(&self, order: Order) {
        let _heard_by = self.orders.send(order);
    }
}

/// Wall-clock time that follows tokio's clock, so that paused-time tests move it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    epoch: Millis,
    started: Instant,
}

impl Clock {
    fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { epoch: millis(since_epoch), started: Instant::now() }
    }

    pub fn now(&self) -> Millis {
        self.epoch + millis(self.started.elapsed())
    }

    /// The moment of a wall-clock time, or a day from now for one that is further away.
    pub fn instant(&self, at: Millis) -> Instant {
        const DAY: Millis = 24 * 3_600 * 1_000;
        let wait = (at - self.now()).clamp(0, DAY);
        // One more millisecond, since both clocks round down.
        Instant::now() + Duration::from_millis(wait.unsigned_abs() + 1)
    }
}
