//! One call of one job, and what it leads to: an outcome, another try, or back in line.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use rand::random;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::held::{Held, InHand};
use super::postpone::Postponed;
use super::purse::Reserve;
use super::record::{self, Finished};
use super::states::Course;
use super::{Target, retry};
use admission::deployment::Feedback;
use admission::{Booking, DeploymentIndex, Member};
use domain::headers::RateHeaders;
use domain::job::{Job, JobId};
use domain::outcome::Failure;
use model::Called;
use model::verdict::{ErrorReply, Verdict};
use store::{Store, StoreError};
use telemetry::{Call, Progress};

/// How long a job waits in the worker whose call could not be paid for.
pub(super) const UNFUNDED: Duration = Duration::from_secs(2);

/// What every call needs.
pub(super) struct Caller {
    pub(super) targets: Vec<Target>,
    pub(super) max_tries: u32,
    pub(super) postpone_from: Duration,
    pub(super) store: Arc<dyn Store>,
    pub(super) to_postpone: mpsc::Sender<Postponed>,
    pub(super) to_record: mpsc::Sender<Box<Finished>>,
    pub(super) progress: Arc<Progress>,
    /// The grace time is over: calls in flight are broken off.
    pub(super) cut: CancellationToken,
}

/// The end of a call, as the conductor hears it.
pub(super) struct Ended {
    pub(super) job: JobId,
    pub(super) booking: Booking,
    pub(super) feedback: Feedback,
    /// What the response told of the deployment's limits.
    pub(super) told: RateHeaders,
    /// The job, if it has no outcome yet, and when it may go in line again.
    pub(super) back: Option<(Held, Instant)>,
    /// The store will not give the job's body; it would not take its outcome either.
    pub(super) store_failed: Option<StoreError>,
}

/// Tells the conductor of a call's end, also if the call panics: a deployment must not lose room.
pub(super) struct Permit {
    job: JobId,
    booking: Booking,
    told: RateHeaders,
    ended: Option<mpsc::Sender<Ended>>,
}

impl Permit {
    pub(super) fn new(job: JobId, booking: Booking, ended: mpsc::Sender<Ended>) -> Self {
        Self { job, booking, told: RateHeaders::default(), ended: Some(ended) }
    }

    fn deployment(&self) -> DeploymentIndex {
        self.booking.deployment
    }

    fn end(mut self, feedback: Feedback, back: Option<(Held, Instant)>) {
        self.send(feedback, back, None);
    }

    fn fail(mut self, held: Held, error: StoreError) {
        self.send(Feedback::Unclear, Some((held, Instant::now())), Some(error));
    }

    fn send(
        &mut self,
        feedback: Feedback,
        back: Option<(Held, Instant)>,
        store_failed: Option<StoreError>,
    ) {
        let (job, booking, told) = (self.job, self.booking, self.told);
        let ended = Ended { job, booking, feedback, told, back, store_failed };
        // The channel has room for one message of every call in flight. It is closed only when
        // nobody counts calls any more.
        if let Some(channel) = self.ended.take() {
            let _ = channel.try_send(ended);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.send(Feedback::Unclear, None, None);
    }
}

/// The batch's budget does not allow the call now.
struct Unfunded;

/// Sets aside what the call may cost, if its batch has a budget.
async fn reserve(held: &InHand, at: &Member) -> Result<Option<Reserve>, Unfunded> {
    let Some(purse) = held.batch.purse() else { return Ok(None) };
    match purse.worst(&held.delivery.job.model, held.estimate, at) {
        Ok(worst) => purse.draw(worst).await.map(Some).ok_or(Unfunded),
        Err(why) => {
            purse.give_up(why);
            Err(Unfunded)
        }
    }
}

impl Caller {
    /// Calls for a job and brings it one step further.
    pub(super) async fn attempt(self: Arc<Self>, mut held: Held, mut permit: Permit) {
        if held.place.is_lost() {
            // Somebody else has it or will; a call now could be paid twice.
            return;
        }
        let job = match self.with_body(&held.delivery.job).await {
            Ok(Some(job)) => job,
            Ok(None) => return self.give_up_without_body(held, permit).await,
            Err(error) => return permit.fail(held, error),
        };
        let target = &self.targets[permit.deployment().0];
        let name = target.member.name.as_str();
        let reserve = match reserve(&held, &target.member).await {
            Ok(reserve) => reserve,
            // Nothing was sent. The batch may be paused by now, or its other calls leave something.
            Err(Unfunded) => {
                return permit.end(Feedback::Unclear, Some((held, Instant::now() + UNFUNDED)));
            }
        };
        if held.place.is_lost() || held.batch.course() != Course::Go {
            // It came while the store was asked for the body or the budget. Nothing was sent.
            reserve.into_iter().for_each(|reserve| reserve.settle(0));
            return permit.end(Feedback::Unclear, Some((held, Instant::now())));
        }
        let began = Instant::now();
        let observed = Call::begin(&job, (name, &target.client), held.charge, held.attempts);
        let Some(Called { verdict, told }) = self.call(target, &job).await else {
            // It may have been paid: what its batch's budget set aside stays so. No try is counted.
            drop(job);
            return permit.end(Feedback::Unclear, Some((held, Instant::now())));
        };
        observed.end(&verdict);
        // A body that lies aside is held only while it is needed.
        drop(job);
        permit.told = told;
        if let (Some(reserve), Some(purse)) = (reserve, held.batch.purse()) {
            let model = &held.delivery.job.model;
            reserve.settle(purse.cost(model, held.estimate, &target.member, &verdict));
        }
        let latency = began.elapsed();
        debug!(
            job.id = %held.delivery.job.id,
            deployment.name = name,
            duration_ms = latency.as_millis(),
            verdict = verdict.name(),
            "call ended"
        );
        match verdict {
            Verdict::Answered(reply) => {
                held.attempts += 1;
                let finished = Finished::answered(held, name, reply, latency);
                self.finish(finished, permit, Feedback::Responded).await;
            }
            Verdict::Refused(error) => {
                held.attempts += 1;
                let finished = Finished::refused(held, name, error, latency);
                self.finish(finished, permit, Feedback::Responded).await;
            }
            Verdict::Transient { error, retry_after } => {
                self.retry(held, permit, error, retry_after).await;
            }
            Verdict::Throttled { pause } => {
                self.progress.throttled.fetch_add(1, Ordering::Relaxed);
                held.delivery.job.history.throttled += 1;
                let until = Instant::now() + pause;
                permit.end(Feedback::Throttled { until }, Some((held, Instant::now())));
            }
            Verdict::Unreachable { why } => {
                let why = format!("{}: {why}", target.client.base());
                permit.end(Feedback::Unreachable { why }, Some((held, Instant::now())));
            }
            Verdict::Missing { why } => {
                let why = format!("{} says {why}", target.client.base());
                permit.end(Feedback::Missing { why }, Some((held, Instant::now())));
            }
            Verdict::Misconfigured { why } => {
                let why = format!("{} says {why}", target.client.base());
                permit.end(Feedback::Misconfigured { why }, Some((held, Instant::now())));
            }
        }
    }

    /// Makes the call, unless the grace time ends before it does.
    async fn call(&self, target: &Target, job: &Job) -> Option<Called> {
        tokio::select! {
            biased;
            called = target.client.call(job) => Some(called),
            () = self.cut.cancelled() => None,
        }
    }

    /// The job with its body, which is fetched if it lies aside; `None` if it is not there.
    async fn with_body<'j>(&self, job: &'j Job) -> Result<Option<Cow<'j, Job>>, StoreError> {
        let Some(name) = job.payload() else { return Ok(Some(Cow::Borrowed(job))) };
        let body = record::until_reached(|| self.store.get_payload(&name)).await?;
        Ok(body.and_then(|body| job.with_body(body)).map(Cow::Owned))
    }

    /// If somebody else brought the job to its end meanwhile, the body is gone and the outcome that
    /// is recorded stands.
    async fn give_up_without_body(&self, held: Held, permit: Permit) {
        let name = held.delivery.job.payload().unwrap_or_default();
        let description = format!(
            "the request body lies aside, and the store has no payload '{name}' with that content: \
             enqueue the job again from its input"
        );
        let finished = Finished::dead(held, "PayloadMissing", description);
        let _ = self.to_record.send(finished).await;
        permit.end(Feedback::Unclear, None);
    }

    /// Hands an outcome to the recorder; the permit is kept until there is room for it.
    async fn finish(&self, finished: Box<Finished>, permit: Permit, feedback: Feedback) {
        // The recorder is gone only if the store failed for good: then the job is redelivered.
        let _ = self.to_record.send(finished).await;
        permit.end(feedback, None);
    }

    async fn retry(
        &self,
        mut held: Held,
        permit: Permit,
        error: ErrorReply,
        retry_after: Option<Duration>,
    ) {
        held.attempts += 1;
        held.failed_at = Some(permit.deployment());
        self.progress.faults.fetch_add(1, Ordering::Relaxed);
        let why = format!("{}: {}", error.failure.code, error.failure.message);
        let feedback = Feedback::Faulted { why };
        if held.attempts >= self.max_tries {
            let Failure { code, message } = error.failure.clone();
            let description =
                format!("{} tries, the last one ended with {code}: {message}", held.attempts);
            held.last_error = Some(error);
            let finished = Finished::dead(held, "RetriesExhausted", description);
            self.finish(finished, permit, feedback).await;
            return;
        }
        let wait = retry::delay(held.attempts, retry_after, random());
        if wait >= self.postpone_from {
            permit.end(feedback, None);
            let postponed = Postponed::new(held, Timestamp::now() + wait, &error.failure);
            // Closed only when the queue failed for good: then the job is redelivered.
            let _ = self.to_postpone.send(postponed).await;
            return;
        }
        let due = Instant::now() + wait;
        held.last_error = Some(error);
        permit.end(feedback, Some((held, due)));
    }
}
