//! Finds the ends of batches, and tells them until they are heard.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rand::random;
use reqwest::StatusCode;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use url::Url;

use super::event::notice_of;
use super::notice::{self, Notice};
use super::sign::Key;
use control::batches;
use domain::job::BatchId;
use store::{Batch, BatchState, Store, StoreError};
use telemetry::Progress;

/// How long a receiver may take to answer; the specification says 15 to 30 s.
const ANSWER_WAIT: Duration = Duration::from_secs(15);

/// For how long a notice is one teller's.
const TAKEN_FOR: Duration = Duration::from_secs(20);

/// The wait after the first try; it grows fourfold with each.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);

/// After this a receiver that does not hear is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(3 * 24 * 3_600);

/// How often a worker looks for ends while outcomes come, and for notices that are due.
const LOOK: Duration = Duration::from_secs(10);

/// How often one without work counts outcomes themselves: the running sums of a store may be short of
/// what a worker that died had recorded.
const COUNT: Duration = Duration::from_secs(600);

/// While a process waits for its last notices.
const SHORT_LOOK: Duration = Duration::from_millis(200);

/// Ends that are older are nobody's news: cancelled batches keep their state for ever.
const NEWS: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Tells of the ends of a store's batches.
pub struct Teller {
    store: Arc<dyn Store>,
    url: Url,
    key: Key,
    http: reqwest::Client,
    /// Cancelled batches whose ends this process has seen to.
    cancelled: Mutex<HashSet<BatchId>>,
}

/// What is asked of the store first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    /// The running sums.
    Running,
    /// The outcomes themselves, which can be dear.
    All,
}

/// What a receiver made of a notice.
enum Answer {
    Heard,
    /// It wants no more.
    Gone,
    Failed(String),
}

impl Teller {
    /// # Errors
    /// If TLS can't be set up.
    pub fn new(store: Arc<dyn Store>, (url, key): (Url, Key)) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("promptmill/", env!("CARGO_PKG_VERSION")))
            .timeout(ANSWER_WAIT)
            // A signed message is for the one it was signed for.
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { store, url, key, http, cancelled: Mutex::default() })
    }

    /// Looks and tells beside a worker, until stopped.
    pub async fn run(&self, progress: &Progress, stop: &CancellationToken) {
        let (mut ended, mut counted) = ([u64::MAX; 2], Instant::now());
        loop {
            // Once more after the last outcome: its sum may come a moment later.
            let now_ended = progress.ended();
            if ended != [now_ended; 2] {
                self.note(self.look(Count::Running).await);
            }
            ended = [ended[1], now_ended];
            if progress.held.load(Ordering::Relaxed) == 0 && counted.elapsed() >= COUNT {
                counted = Instant::now();
                self.note(self.look(Count::All).await);
            }
            self.note(self.tell_due().await);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Looks once more and tells what there is, for as long as that takes, within bounds. What is left
    /// then is told by whoever works next.
    pub async fn finish(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let told = async {
            self.look(Count::All).await?;
            while !notice::waiting(self.store.as_ref()).await?.is_empty() {
                self.tell_due().await?;
                tokio::time::sleep(SHORT_LOOK).await;
            }
            Ok(())
        };
        match tokio::time::timeout_at(until, told).await {
            Ok(told) => self.note(told),
            Err(_) => warn!("the webhook's receiver was not reached; the next worker tries again"),
        }
    }

    fn note(&self, result: Result<(), StoreError>) {
        if let Err(error) = result {
            warn!(%error, "can't look for the ends of batches; trying again");
        }
    }

    /// Makes the notices of batches that have come to their ends, then marks these as done.
    ///
    /// # Errors
    /// What the store said.
    async fn look(&self, count: Count) -> Result<(), StoreError> {
        let now = Timestamp::now();
        for batch in self.store.batches().await? {
            if !is_news(&batch, now) {
                continue;
            }
            let may_be = match count {
                Count::Running => {
                    let running = self.store.running(&batch.id, Timestamp::now()).await?;
                    running.totals().ended() >= batch.jobs
                }
                Count::All => true,
            };
            if !may_be || self.knows_end_of(&batch) {
                continue;
            }
            let totals = self.store.totals(&batch.id).await?;
            let Some(notice) = notice_of(&batch, &totals, now) else { continue };
            if notice::add(self.store.as_ref(), &notice).await? {
                info!(batch.id = %batch.id, webhook.id = %notice.id, "a batch has come to its end");
            }
            if batch.state != BatchState::Cancelled {
                batches::close(self.store.as_ref(), &batch.id).await?;
            }
            self.remember(&batch);
        }
        Ok(())
    }

    /// Tells what is due and not being told by somebody else.
    async fn tell_due(&self) -> Result<(), StoreError> {
        let now = Timestamp::now();
        let store = self.store.as_ref();
        let waiting = notice::waiting(store).await?;
        for notice in waiting.into_iter().filter(|notice| notice.due <= now) {
            let (due, tries) = (now + TAKEN_FOR, notice.tries + 1);
            let taken = Notice { due, tries, ..notice.clone() };
            if !notice::was_heard(store, &notice).await?
                && notice::change(store, &notice, &taken).await?
            {
                self.tell(taken).await?;
            }
        }
        Ok(())
    }

    async fn tell(&self, notice: Notice) -> Result<(), StoreError> {
        let (store, now) = (self.store.as_ref(), Timestamp::now());
        match self.post(&notice, now).await {
            Answer::Heard => {
                info!(webhook.id = %notice.id, tries = notice.tries, "the webhook was heard");
                notice::heard(store, &notice).await
            }
            Answer::Gone => {
                warn!(webhook.id = %notice.id, "the webhook's receiver wants no more (410)");
                notice::heard(store, &notice).await
            }
            Answer::Failed(why) if now.duration_since(notice.made_at) >= signed(GIVEN_UP_AFTER) => {
                error!(webhook.id = %notice.id, why, "the webhook's receiver is given up");
                notice::heard(store, &notice).await
            }
            Answer::Failed(why) => {
                let wait = wait(notice.tries, random());
                warn!(webhook.id = %notice.id, why, ?wait, "the webhook was not heard");
                let later = Notice { due: Timestamp::now() + wait, ..notice.clone() };
                notice::change(store, &notice, &later).await.map(drop)
            }
        }
    }

    async fn post(&self, notice: &Notice, now: Timestamp) -> Answer {
        let (id, seconds) = (notice.id.to_string(), now.as_second());
        let request = self
            .http
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", seconds.to_string())
            .header("webhook-signature", self.key.sign(&id, seconds, &notice.body))
            .body(notice.body.clone());
        match request.send().await {
            Ok(response) if response.status().is_success() => Answer::Heard,
            Ok(response) if response.status() == StatusCode::GONE => Answer::Gone,
            Ok(response) => Answer::Failed(format!("the receiver answers {}", response.status())),
            // The path may hold a key.
            Err(error) => Answer::Failed(error.without_url().to_string()),
        }
    }

    /// A batch that was cancelled stays in its state, and has one end.
    fn knows_end_of(&self, batch: &Batch) -> bool {
        let known = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        batch.state == BatchState::Cancelled && known.contains(&batch.id)
    }

    fn remember(&self, batch: &Batch) {
        if batch.state == BatchState::Cancelled {
            let mut known = self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(batch.id.clone());
        }
    }
}

/// A batch that is done was told of when it was marked so.
fn is_news(batch: &Batch, now: Timestamp) -> bool {
    match batch.state {
        BatchState::Running | BatchState::Paused => true,
        BatchState::Cancelled => now.duration_since(batch.created_at) < signed(NEWS),
        BatchState::Enqueuing | BatchState::Done => false,
    }
}

/// How long after try number `tries` the next one is due; `random` is in 0..1. Half of it is drawn, so
/// that receivers that were away are not met by all at once.
fn wait(tries: u32, random: f64) -> Duration {
    let grown = FIRST_WAIT.saturating_mul(4u32.saturating_pow(tries.saturating_sub(1)));
    grown.min(LONGEST_WAIT).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
}

fn signed(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_fourfold_to_an_hour_and_half_of_each_is_drawn() {
        let seconds = |tries| wait(tries, 1.0).as_secs();
        assert_eq!([1, 2, 3, 6, 7, 90].map(seconds), [1, 4, 16, 1_024, 3_600, 3_600]);
        assert_eq!(wait(2, 0.0), Duration::from_secs(2));
    }
}
