//! Finds the ends of batches, and sends their notices until they are delivered.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use rand::random;
use reqwest::StatusCode;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use url::Url;

use super::event::notice_of;
use super::notice::{self, WebhookNotice};
use super::settings::WebhookSettingsError;
use super::sign::SigningKey;
use control::batches;
use domain::backoff::Backoff;
use domain::job::BatchId;
use domain::mutex::lock;
use store::{Batch, BatchState, Store, StoreError};
use telemetry::WorkerProgress;

/// Time for a receiver to answer; the specification says 15 to 30 s.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);

/// Lease of one sender on a notice.
const NOTICE_LEASE: Duration = Duration::from_secs(20);

/// Waits after attempts: a receiver may be away for seconds or for a night.
const BACKOFF: Backoff =
    Backoff { first: Duration::from_secs(1), factor: 4.0, max: Duration::from_secs(3_600) };

/// Age at which a notice that was never delivered is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(3 * 24 * 3_600);

/// Interval of looking for ends while outcomes come, and for notices that are due.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Interval of counting outcomes themselves while idle: a store's running sums may lack what a
/// worker that died had recorded.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(600);

/// Interval while a process waits for its last notices.
const FINISH_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Older ends are not sent: cancelled batches keep their state for ever.
const MAX_CANCELLED_AGE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Sends notices of the ends of a store's batches.
pub struct WebhookNotifier {
    store: Arc<dyn Store>,
    url: Url,
    key: SigningKey,
    http: reqwest::Client,
    /// Cancelled batches whose ends this process has handled.
    cancelled: Mutex<HashSet<BatchId>>,
}

/// Source of the outcome counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CountSource {
    /// The running sums.
    RunningSums,
    /// The outcomes themselves, which can be expensive.
    Outcomes,
}

/// A receiver's answer to a notice.
enum ReceiverReply {
    Delivered,
    /// It wants no more.
    Gone,
    Failed(String),
}

impl WebhookNotifier {
    /// # Errors
    /// If TLS can't be set up.
    pub fn new(
        store: Arc<dyn Store>,
        (url, key): (Url, SigningKey),
    ) -> Result<Self, WebhookSettingsError> {
        let http = http_client::builder()
            .timeout(RESPONSE_TIMEOUT)
            .build()
            .map_err(WebhookSettingsError::Client)?;
        Ok(Self { store, url, key, http, cancelled: Mutex::default() })
    }

    /// Looks for ends and sends notices beside a worker, until stopped.
    pub async fn run(&self, progress: &WorkerProgress, stop: &CancellationToken) {
        let (mut ended, mut counted) = ([u64::MAX; 2], Instant::now());
        loop {
            // Once more after the last outcome: its sum may come a moment later.
            let now_ended = progress.ended();
            if ended != [now_ended; 2] {
                self.log_failure(self.find_ended(CountSource::RunningSums).await);
            }
            ended = [ended[1], now_ended];
            if progress.held.load(Ordering::Relaxed) == 0 && counted.elapsed() >= RECOUNT_INTERVAL {
                counted = Instant::now();
                self.log_failure(self.find_ended(CountSource::Outcomes).await);
            }
            self.log_failure(self.send_due().await);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
    }

    /// Looks once more and sends pending notices, for as long as that takes, within bounds. The
    /// next worker sends the rest.
    pub async fn finish(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let told = async {
            self.find_ended(CountSource::Outcomes).await?;
            while !notice::undelivered(self.store.as_ref()).await?.is_empty() {
                self.send_due().await?;
                tokio::time::sleep(FINISH_POLL_INTERVAL).await;
            }
            Ok(())
        };
        match tokio::time::timeout_at(until, told).await {
            Ok(told) => self.log_failure(told),
            Err(_) => warn!("the webhook's receiver was not reached; the next worker tries again"),
        }
    }

    fn log_failure(&self, result: Result<(), StoreError>) {
        if let Err(error) = result {
            warn!(%error, "can't look for the ends of batches; trying again");
        }
    }

    /// Makes the notices of batches that have ended, then marks these as done.
    ///
    /// # Errors
    /// The store's error.
    async fn find_ended(&self, count: CountSource) -> Result<(), StoreError> {
        let now = Timestamp::now();
        for batch in self.store.batches().await? {
            if !may_need_notice(&batch, now) {
                continue;
            }
            let may_be = match count {
                CountSource::RunningSums => {
                    let running = self.store.running_totals(&batch.id, Timestamp::now()).await?;
                    running.totals().ended() >= batch.jobs
                }
                CountSource::Outcomes => true,
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

    /// Sends the due notices that no other worker has leased.
    async fn send_due(&self) -> Result<(), StoreError> {
        let now = Timestamp::now();
        let store = self.store.as_ref();
        let waiting = notice::undelivered(store).await?;
        for notice in waiting.into_iter().filter(|notice| notice.due <= now) {
            let (due, tries) = (now + NOTICE_LEASE, notice.attempts + 1);
            let taken = WebhookNotice { due, attempts: tries, ..notice.clone() };
            if !notice::was_delivered(store, &notice).await?
                && notice::update_if_unchanged(store, &notice, &taken).await?
            {
                self.send(taken).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, notice: WebhookNotice) -> Result<(), StoreError> {
        let (store, now) = (self.store.as_ref(), Timestamp::now());
        match self.post(&notice, now).await {
            ReceiverReply::Delivered => {
                info!(webhook.id = %notice.id, tries = notice.attempts, "the webhook was delivered");
                notice::mark_delivered(store, &notice).await
            }
            ReceiverReply::Gone => {
                warn!(webhook.id = %notice.id, "the webhook's receiver answered 410 Gone; not sent again");
                notice::mark_delivered(store, &notice).await
            }
            ReceiverReply::Failed(why)
                if now.duration_since(notice.made_at) >= signed(GIVE_UP_AFTER) =>
            {
                error!(webhook.id = %notice.id, why, "gave up on the webhook's receiver");
                notice::mark_delivered(store, &notice).await
            }
            ReceiverReply::Failed(why) => {
                let wait = backoff_delay(notice.attempts, random());
                warn!(webhook.id = %notice.id, why, ?wait, "the webhook was not delivered");
                let later = WebhookNotice { due: Timestamp::now() + wait, ..notice.clone() };
                notice::update_if_unchanged(store, &notice, &later).await.map(drop)
            }
        }
    }

    async fn post(&self, notice: &WebhookNotice, now: Timestamp) -> ReceiverReply {
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
            Ok(response) if response.status().is_success() => ReceiverReply::Delivered,
            Ok(response) if response.status() == StatusCode::GONE => ReceiverReply::Gone,
            Ok(response) => {
                ReceiverReply::Failed(format!("the receiver answers {}", response.status()))
            }
            // The path may hold a key.
            Err(error) => ReceiverReply::Failed(error.without_url().to_string()),
        }
    }

    /// Returns whether a cancelled batch was handled: it keeps its state, and has one end.
    fn knows_end_of(&self, batch: &Batch) -> bool {
        let known = lock(&self.cancelled);
        batch.state == BatchState::Cancelled && known.contains(&batch.id)
    }

    fn remember(&self, batch: &Batch) {
        if batch.state == BatchState::Cancelled {
            let mut known = lock(&self.cancelled);
            known.insert(batch.id.clone());
        }
    }
}

/// Returns whether to look for its end: a done batch was handled when marked so, and one whose number
/// of jobs nobody announced has no end of its own.
fn may_need_notice(batch: &Batch, now: Timestamp) -> bool {
    match batch.state {
        BatchState::Running | BatchState::Paused => batch.is_counted(),
        BatchState::Cancelled => now.duration_since(batch.created_at) < signed(MAX_CANCELLED_AGE),
        BatchState::Enqueuing | BatchState::Done => false,
    }
}

/// Returns the wait from attempt number `attempts` to the next; `random` is in 0..1. Half of it is
/// random, so that a receiver that was away is not met by all senders at once.
fn backoff_delay(attempts: u32, random: f64) -> Duration {
    BACKOFF.delay(attempts, 0.5 + random.clamp(0.0, 1.0) / 2.0)
}

fn signed(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_each_wait_is_drawn() {
        assert_eq!(backoff_delay(2, 0.0), Duration::from_secs(2));
        assert_eq!(backoff_delay(2, 1.0), Duration::from_secs(4));
    }
}
