//! Claims on jobs of which the queue may hold several messages: of all workers one calls.
//!
//! Within one worker the table of leases keeps copies apart. Between workers a record of the store
//! does: a claim with an owner and an end, renewed while the job's call is under way, and gone by
//! itself when its owner dies. Jobs that can't have a copy are noted in memory alone.
//!
//! A batch may turn out to have copies while calls of it are under way without a claim. Then they
//! are claimed now, and a copy waits a while after its worker heard of it
//! ([`BatchHandle::copies_known_at`]), until every other worker has heard of it too and has claimed
//! what it is at.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use tokio::time::Instant;
use tracing::debug;
use uuid::Uuid;

use super::batch_handle::BatchHandle;
use super::retry;
use super::settings::Worker;
use domain::job::{Job, JobId};
use domain::mutex::lock;
use store::{Recorded, Store, StoreError};

/// Life of a claim that is not renewed: so long a job waits whose worker died in its call, where it
/// has several messages.
const CLAIM_TERM: Duration = Duration::from_secs(40);

/// Remaining life at which a claim is renewed.
const RENEW_BELOW: Duration = Duration::from_secs(20);

/// Interval at which calls are checked for claims that they need or that run out.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Claims written at a time.
const WRITES: usize = 32;

/// Answer to a job that is about to be called for.
pub(super) enum CallRight {
    Granted,
    /// It has an outcome.
    Known(Recorded),
    /// Another worker may be calling for it.
    Claimed,
}

/// Jobs with a call under way, and their claims.
pub(super) struct CallClaims {
    store: Arc<dyn Store>,
    owner: Uuid,
    /// The queue may hold a job more than once.
    are_needed: bool,
    calls: Mutex<HashMap<JobId, OpenCall>>,
}

struct OpenCall {
    batch: Arc<BatchHandle>,
    claim: ClaimState,
}

enum ClaimState {
    None,
    /// Being taken.
    Pending,
    Held {
        until: Instant,
    },
}

impl ClaimState {
    fn held() -> Self {
        Self::Held { until: Instant::now() + CLAIM_TERM }
    }
}

/// Note of a job's call, dropped with the job: when it has its outcome or leaves the worker.
pub(super) struct CallNote {
    job: JobId,
    claims: Arc<CallClaims>,
}

impl Drop for CallNote {
    fn drop(&mut self) {
        self.claims.with(|calls| calls.remove(&self.job));
    }
}

impl CallClaims {
    pub(super) fn new(worker: &Worker) -> Self {
        Self {
            store: worker.store.clone(),
            owner: Uuid::new_v4(),
            are_needed: !worker.queue.keeps_one_of_each(),
            calls: Mutex::default(),
        }
    }

    /// Asks whether to call for a job now; `is_further` says that its message is not its first. A
    /// job that has no copy costs no request.
    ///
    /// # Errors
    /// The store's permanent error.
    pub(super) async fn ask(
        self: &Arc<Self>,
        note: &mut Option<CallNote>,
        Job { id, batch_id, custom_id, .. }: &Job,
        batch: &Arc<BatchHandle>,
        is_further: bool,
    ) -> Result<CallRight, StoreError> {
        if !self.are_needed {
            return Ok(CallRight::Granted);
        }
        let job = *id;
        // Noted before the batch is looked at: if it turns out to have copies after that look, the
        // note is found.
        note.get_or_insert_with(|| self.note(job, batch.clone()));
        if !is_further && !batch.may_have_copies() {
            return Ok(CallRight::Granted);
        }
        self.set(job, ClaimState::Pending);
        let claimed = retry::until_reachable(|| self.take(job, false)).await;
        let is_ours = matches!(claimed, Ok(None));
        self.set(job, if is_ours { ClaimState::held() } else { ClaimState::None });
        claimed?;
        // After the claim: whoever had it before has recorded its outcome by now.
        let name = [custom_id.as_str()];
        let known = retry::until_reachable(|| self.store.look_up(batch_id, &name)).await?;
        let right = match known.into_iter().flatten().next() {
            Some(proof) => CallRight::Known(proof),
            None if is_ours => return Ok(CallRight::Granted),
            None => CallRight::Claimed,
        };
        *note = None;
        Ok(right)
    }

    /// Claims the calls that need it, and renews their claims, for as long as the task runs.
    pub(super) async fn keep(self: Arc<Self>) {
        if !self.are_needed {
            return;
        }
        let mut look = tokio::time::interval(CHECK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let claims = self.due(Instant::now()).into_iter().map(|(job, held)| {
                let claims = &self;
                async move { claims.renew(job, held).await }
            });
            stream::iter(claims).buffer_unordered(WRITES).collect::<()>().await;
        }
    }

    /// Returns the calls that lack a claim or whose claim runs out; true for the latter.
    fn due(&self, now: Instant) -> Vec<(JobId, bool)> {
        self.with(|calls| {
            let due = calls.iter_mut().filter_map(|(job, call)| match call.claim {
                ClaimState::None if call.batch.may_have_copies() => {
                    call.claim = ClaimState::Pending;
                    Some((*job, false))
                }
                ClaimState::Held { until } if until < now + RENEW_BELOW => Some((*job, true)),
                _ => None,
            });
            due.collect()
        })
    }

    /// Claims a job again, or for the first time; the next check tries again after an error.
    async fn renew(&self, job: JobId, is_renewal: bool) {
        match self.take(job, is_renewal).await {
            Ok(None) => self.set(job, ClaimState::held()),
            // It looks the job up when it is about to call; nothing is to be done here.
            Ok(Some(until)) => {
                debug!(job.id = %job, %until, "another worker has claimed the job");
                self.set(job, ClaimState::held());
            }
            Err(error) => {
                debug!(%error, job.id = %job, "could not claim a job that is being called for");
                if !is_renewal {
                    self.set(job, ClaimState::None);
                }
            }
        }
    }

    /// Takes or renews the claim; returns the end of another worker's claim, if there is one.
    async fn take(&self, job: JobId, is_renewal: bool) -> Result<Option<Timestamp>, StoreError> {
        // A kind is one partition, so there are 256 of them.
        let [.., last] = *job.as_bytes();
        let (kind, id) = (format!("claims-{last:02x}"), job.to_string());
        let key = (kind.as_str(), id.as_str());
        store::acquire_lease(self.store.as_ref(), key, self.owner, CLAIM_TERM, is_renewal).await
    }

    fn note(self: &Arc<Self>, job: JobId, batch: Arc<BatchHandle>) -> CallNote {
        self.with(|calls| calls.insert(job, OpenCall { batch, claim: ClaimState::None }));
        CallNote { job, claims: self.clone() }
    }

    fn set(&self, job: JobId, claim: ClaimState) {
        self.with(|calls| {
            if let Some(call) = calls.get_mut(&job) {
                call.claim = claim;
            }
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<JobId, OpenCall>) -> T) -> T {
        work(&mut lock(&self.calls))
    }
}
