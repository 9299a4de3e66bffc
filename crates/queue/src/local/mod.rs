//! The embedded queue: the `queue` and `dead_letters` tables of the state file.
//!
//! A row is handed out by moving its `available_at` to the lock's expiry, so an expired lock needs
//! no cleanup: the row is simply available again. `rows` turns jobs into rows and back,
//! `dead_letters` keeps the dead letters, `peek` looks without locking.

mod dead_letters;
mod peek;
mod rows;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::{Notify, oneshot};
use tracing::warn;
use uuid::Uuid;

use super::peek::{PeekFilter, PeekResult};
use super::{
    DeadLetter, DeferOrder, Delivery, LockToken, Queue, QueueDepth, QueueError, SendCounts,
    Settlement, SettlementKind,
};
use domain::job::{Amendment, BatchId, Job};
use rows::HandOut;
use state::sqlite::{Database, SqliteError};

/// Bound on our delay in seeing jobs that another process adds: it sends no notification.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The embedded queue; clones share it.
#[derive(Clone)]
pub struct LocalQueue {
    database: Database,
    lock_duration: Duration,
    /// The one batch to hand out and count; `None`: all.
    only_batch: Option<BatchId>,
    changed: Arc<Notify>,
}

impl LocalQueue {
    pub fn new(database: Database, lock_duration: Duration) -> Self {
        Self { database, lock_duration, only_batch: None, changed: Arc::default() }
    }

    /// Restricts the queue to handing out and counting one batch.
    pub fn only_batch(self, batch: BatchId) -> Self {
        Self { only_batch: Some(batch), ..self }
    }

    /// Frees all locks. Only for the exclusive holder of the state directory: the holders of these
    /// locks are dead, and waiting for expiry would only cost time.
    ///
    /// The hand-outs are not counted, since most of these jobs were held and never started:
    /// frequent stops and starts must not turn them into dead letters. They may have an outcome,
    /// though, so they are looked up when they are handed out again.
    ///
    /// # Errors
    /// The database's error.
    pub async fn release_orphans(&self) -> Result<usize, QueueError> {
        let sql = "UPDATE queue SET available_at = 0, lock = NULL, look_up = 1,
                          delivery_count = delivery_count - 1
                   WHERE lock IS NOT NULL";
        Ok(self.database.write(|c| c.execute(sql, [])).await?)
    }

    /// Hands out available jobs. Runs to its end even if the caller is gone by then, and releases
    /// what nobody took: a lock that nobody knows of would hide its job until it expires.
    async fn take(&self, max: usize) -> Result<Vec<Delivery>, QueueError> {
        let (answer, answered) = oneshot::channel();
        let this = self.clone();
        tokio::spawn(async move {
            let now = Timestamp::now();
            let hand_out = HandOut {
                max,
                now,
                until: now + this.lock_duration,
                nonce: Uuid::new_v4().as_u64_pair().0.cast_signed(),
                only_batch: this.only_batch.clone(),
            };
            let taken = this.database.write(move |c| hand_out.run(c)).await;
            if let Err(Ok(untaken)) = answer.send(taken) {
                let locks: Vec<_> = untaken.iter().map(|delivery| delivery.lock).collect();
                if let Err(error) = this.abandon(&locks).await {
                    warn!(%error, "could not release jobs; their locks will expire");
                }
            }
        });
        Ok(answered.await.unwrap_or(Err(SqliteError::Stopped))?)
    }

    /// Returns the time until the next row becomes available by itself.
    async fn next_available_in(&self) -> Result<Option<Duration>, QueueError> {
        let only = self.only_batch.clone();
        let read = move |c: &Connection| {
            let sql = "SELECT available_at FROM queue WHERE ?1 IS NULL OR batch_id = ?1
                       ORDER BY available_at LIMIT 1";
            let only = only.as_ref().map(BatchId::as_str);
            c.prepare_cached(sql)?.query_row([only], |row| row.get(0)).optional()
        };
        let at: Option<i64> = self.database.read(read).await?;
        Ok(at.map(|at| {
            let ms = at.saturating_sub(Timestamp::now().as_millisecond());
            Duration::from_millis(u64::try_from(ms).unwrap_or(0))
        }))
    }
}

#[async_trait]
impl Queue for LocalQueue {
    fn keeps_one_of_each(&self) -> bool {
        true
    }

    async fn send(&self, jobs: Vec<Job>) -> Result<SendCounts, QueueError> {
        if jobs.is_empty() {
            return Ok(SendCounts::default());
        }
        let total = jobs.len() as u64;
        let accepted = self.database.write(move |c| rows::insert(c, &jobs)).await?;
        self.changed.notify_waiters();
        Ok(SendCounts { accepted, duplicates: total - accepted })
    }

    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let changed = self.changed.notified();
            let taken = self.take(max).await?;
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if !taken.is_empty() || left.is_zero() {
                return Ok(taken);
            }
            let next = self
                .next_available_in()
                .await?
                .unwrap_or(POLL_INTERVAL)
                .min(POLL_INTERVAL)
                .min(left);
            // The lower bound keeps clock granularity from turning this into a spin.
            let _ = tokio::time::timeout(next.max(Duration::from_millis(1)), changed).await;
        }
    }

    async fn renew(&self, locks: &[LockToken]) -> Result<Vec<Option<Timestamp>>, QueueError> {
        let locks = locks.to_vec();
        let until = Timestamp::now() + self.lock_duration;
        let renew = move |c: &Connection| {
            let mut renew = c.prepare_cached(
                "UPDATE queue SET available_at = ?3 WHERE seq = ?1 AND lock = ?2",
            )?;
            let one = |lock: &LockToken| {
                let (seq, nonce) = rows::row_of(*lock);
                let renewed = renew.execute(params![seq, nonce, until.as_millisecond()])? == 1;
                Ok(renewed.then_some(until))
            };
            locks.iter().map(one).collect()
        };
        Ok(self.database.write(renew).await?)
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), QueueError> {
        if settlements.is_empty() {
            return Ok(());
        }
        Ok(self.database.write(move |c| settle(c, &settlements)).await?)
    }

    async fn defer(&self, postponements: Vec<DeferOrder>) -> Result<(), QueueError> {
        if postponements.is_empty() {
            return Ok(());
        }
        self.database.write(move |c| rows::defer(c, &postponements)).await?;
        // One may come due sooner than what the receivers wait for.
        self.changed.notify_waiters();
        Ok(())
    }

    async fn abandon(&self, locks: &[LockToken]) -> Result<(), QueueError> {
        let locks = locks.to_vec();
        // A delivery released untouched is not counted.
        let free = |c: &Connection| {
            let mut free = c.prepare_cached(
                "UPDATE queue SET available_at = 0, lock = NULL, delivery_count = delivery_count - 1
                 WHERE seq = ?1 AND lock = ?2",
            )?;
            for lock in locks {
                free.execute(rows::row_of(lock))?;
            }
            Ok(())
        };
        self.database.write(free).await?;
        self.changed.notify_waiters();
        Ok(())
    }

    async fn depth(&self) -> Result<QueueDepth, QueueError> {
        let now = Timestamp::now();
        let only = self.only_batch.clone();
        let count = move |c: &Connection| {
            let depth = peek::depth(c, only.as_ref(), now)?;
            let dead = "SELECT count(*) FROM dead_letters";
            let dead_letters = c.query_row(dead, [], |row| row.get(0))?;
            Ok(QueueDepth { dead_letters, ..depth })
        };
        Ok(self.database.read(count).await?)
    }

    async fn peek(&self, sought: &PeekFilter) -> Result<PeekResult, QueueError> {
        let (sought, now) = (sought.clone(), Timestamp::now());
        Ok(self.database.read(move |c| peek::peek(c, &sought, now)).await?)
    }

    async fn dead_letters(&self, from: i64, max: usize) -> Result<Vec<DeadLetter>, QueueError> {
        Ok(self.database.read(move |c| dead_letters::list(c, from, max)).await?)
    }

    async fn resubmit(
        &self,
        numbers: &[i64],
        amendment: &Amendment,
    ) -> Result<Vec<i64>, QueueError> {
        let amendment = amendment.clone();
        let numbers = numbers.to_vec();
        let done =
            self.database.write(move |c| dead_letters::resubmit(c, &numbers, &amendment)).await?;
        self.changed.notify_waiters();
        Ok(done)
    }

    async fn discard(&self, numbers: &[i64]) -> Result<Vec<i64>, QueueError> {
        let numbers = numbers.to_vec();
        Ok(self.database.write(move |c| dead_letters::discard(c, &numbers)).await?)
    }
}

impl From<SqliteError> for QueueError {
    fn from(error: SqliteError) -> Self {
        if error.is_transient() {
            Self::Unavailable(error.into())
        } else {
            Self::Refused(error.into())
        }
    }
}

fn settle(c: &Connection, settlements: &[Settlement]) -> rusqlite::Result<()> {
    let mut remove = c.prepare_cached("DELETE FROM queue WHERE seq = ?1 AND lock = ?2")?;
    for settlement in settlements {
        if let SettlementKind::DeadLetter(reason) = settlement.kind() {
            dead_letters::insert_dead_letter(c, settlement.lock(), reason)?;
        }
        remove.execute(rows::row_of(settlement.lock()))?;
    }
    Ok(())
}
