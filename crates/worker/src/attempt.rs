//! One call of one job, and its result: an outcome, another attempt, or back to the queue.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use rand::random;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::allowance::SpendReservation;
use super::batch_handle::BatchDisposition;
use super::channels::StageSenders;
use super::claims::{CallClaims, CallRight};
use super::defer::DeferredJob;
use super::leases::{BoxedJob, LeasedJob};
use super::record::{self, FinishedJob, SettlementGroup};
use super::retry;
use super::settings::{Worker, WorkerTarget};
use admission::deployment::CallFeedback;
use admission::{Booking, DeploymentIndex, PoolMember};
use domain::headers::RateHeaders;
use domain::job::{Job, JobId};
use domain::outcome::JobFailure;
use model::CallResult;
use model::verdict::{ErrorReply, MOST_CALLS_FOR_NO_ANSWER, Verdict};
use store::{Recorded, Store, StoreError};
use telemetry::{CallSpan, WorkerProgress};

/// Wait in the worker of a job whose call its budget did not allow.
pub(super) const BUDGET_WAIT: Duration = Duration::from_secs(2);

/// Shared dependencies of all calls.
pub(super) struct AttemptRunner {
    pub(super) targets: Vec<WorkerTarget>,
    pub(super) max_attempts: u32,
    pub(super) defer_from: Duration,
    pub(super) store: Arc<dyn Store>,
    pub(super) to_defer: mpsc::Sender<DeferredJob>,
    pub(super) to_record: mpsc::Sender<Box<FinishedJob>>,
    pub(super) to_settle: mpsc::Sender<SettlementGroup>,
    pub(super) claims: Arc<CallClaims>,
    pub(super) progress: Arc<WorkerProgress>,
    /// Cancelled when the grace time is over: calls in flight are aborted.
    pub(super) abort: CancellationToken,
    /// For each target: calls that began by this time are given up.
    given_up: Vec<watch::Sender<Option<Instant>>>,
}

/// Reason to wait no longer for a call.
enum CallCut {
    /// The worker ends.
    Aborted,
    /// The deployment is silent.
    GivenUp,
}

/// Call that failed in passing.
struct FailedCall {
    error: ErrorReply,
    retry_after: Option<Duration>,
    feedback: CallFeedback,
}

impl FailedCall {
    fn transient(error: ErrorReply, retry_after: Option<Duration>) -> Self {
        let feedback = CallFeedback::Transient { why: error.words() };
        Self { error, retry_after, feedback }
    }

    fn given_up(name: &str, after: Duration) -> Self {
        let message = format!(
            "deployment {name} answers nothing: the call was given up after {} s",
            after.as_secs()
        );
        let failure = JobFailure { code: "timeout".into(), message };
        let error = ErrorReply { failure, ..ErrorReply::default() };
        Self { error, retry_after: None, feedback: CallFeedback::GivenUp }
    }
}

/// End of a call, as reported to the dispatcher.
pub(super) struct CallEnded {
    pub(super) job: JobId,
    pub(super) booking: Booking,
    pub(super) feedback: CallFeedback,
    /// Rate limits that the response reported for the deployment.
    pub(super) rate_limits: RateHeaders,
    /// The job, if it has no outcome yet.
    pub(super) unfinished: Option<UnfinishedJob>,
    /// The store will not give the job's body; it would not take its outcome either.
    pub(super) store_failed: Option<StoreError>,
}

/// Job that has no outcome yet.
pub(super) struct UnfinishedJob {
    pub(super) held: BoxedJob,
    /// Earliest time of its next admission.
    pub(super) due: Instant,
    /// Refusal that it ended with, if it was one.
    pub(super) refusal: Option<CallRefusal>,
}

/// Refusal of a call by a deployment.
pub(super) struct CallRefusal {
    pub(super) error: ErrorReply,
    /// The deployment will never take the job. Otherwise admission judges.
    pub(super) is_final: bool,
    pub(super) latency: Duration,
}

/// Reports a call's end to the dispatcher, even after a panic: a deployment must not lose room.
pub(super) struct CallPermit {
    job: JobId,
    booking: Booking,
    rate_limits: RateHeaders,
    ended: Option<mpsc::Sender<CallEnded>>,
}

impl CallPermit {
    pub(super) fn new(job: JobId, booking: Booking, ended: mpsc::Sender<CallEnded>) -> Self {
        Self { job, booking, rate_limits: RateHeaders::default(), ended: Some(ended) }
    }

    fn deployment(&self) -> DeploymentIndex {
        self.booking.deployment
    }

    fn end(mut self, feedback: CallFeedback, back: Option<(BoxedJob, Instant)>) {
        let back = back.map(|(held, due)| UnfinishedJob { held, due, refusal: None });
        self.send(feedback, back, None);
    }

    /// Ends with a refusal, of which admission judges whose fault it is unless it is final.
    fn refuse(mut self, feedback: CallFeedback, held: BoxedJob, refusal: CallRefusal) {
        let due = Instant::now();
        self.send(feedback, Some(UnfinishedJob { held, due, refusal: Some(refusal) }), None);
    }

    fn fail(mut self, held: BoxedJob, error: StoreError) {
        let back = UnfinishedJob { held, due: Instant::now(), refusal: None };
        self.send(CallFeedback::Unclear, Some(back), Some(error));
    }

    fn send(
        &mut self,
        feedback: CallFeedback,
        unfinished: Option<UnfinishedJob>,
        store_failed: Option<StoreError>,
    ) {
        let (job, booking, rate_limits) = (self.job, self.booking, self.rate_limits);
        let ended = CallEnded { job, booking, feedback, rate_limits, unfinished, store_failed };
        // The channel has room for one message of every call in flight. It is closed only when
        // nobody counts calls any more.
        if let Some(channel) = self.ended.take() {
            let _ = channel.try_send(ended);
        }
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        self.send(CallFeedback::Unclear, None, None);
    }
}

/// The batch's budget does not allow the call now.
struct BudgetRefusal;

/// Reserves the call's maximum cost, if its batch has a budget.
async fn reserve(
    held: &LeasedJob,
    at: &PoolMember,
) -> Result<Option<SpendReservation>, BudgetRefusal> {
    let Some(allowance) = held.batch.allowance() else { return Ok(None) };
    match allowance.max_cost(&held.delivery.job.model, held.estimate, at) {
        Ok(worst) => allowance.reserve(worst).await.map(Some).ok_or(BudgetRefusal),
        Err(why) => {
            allowance.mark_unusable(why);
            Err(BudgetRefusal)
        }
    }
}

/// Names deployment, job and model beside what the deployment said.
fn words_of(target: &WorkerTarget, job: &Job, why: &str) -> String {
    let WorkerTarget { member, client } = target;
    format!(
        "deployment {} ({}) says to job '{}' of model '{}': {why}",
        member.name,
        client.base(),
        job.custom_id,
        job.model
    )
}

impl AttemptRunner {
    pub(super) fn new(worker: &Worker, claims: Arc<CallClaims>, to: &StageSenders) -> Self {
        Self {
            targets: worker.targets.clone(),
            max_attempts: worker.settings.max_attempts,
            defer_from: worker.settings.defer_from,
            store: worker.store.clone(),
            to_defer: to.deferred.clone(),
            to_record: to.finished.clone(),
            to_settle: to.recorded.clone(),
            claims,
            progress: worker.progress.clone(),
            abort: CancellationToken::new(),
            given_up: worker.targets.iter().map(|_| watch::Sender::new(None)).collect(),
        }
    }

    /// Gives up a deployment's calls that began by this time.
    pub(super) fn give_up(&self, deployment: DeploymentIndex, since: Instant) {
        self.given_up[deployment.0].send_replace(Some(since));
    }

    /// Calls for a job and brings it one step further, unless another message of it is ahead.
    pub(super) async fn attempt(self: Arc<Self>, mut held: BoxedJob, permit: CallPermit) {
        if held.slot.is_lost() {
            // Another worker has it or will; a call now could be paid twice.
            return;
        }
        let is_further = held.is_further();
        let asked = self.claims.ask(&mut held.call, &held.delivery.job, &held.batch, is_further);
        match asked.await {
            Ok(CallRight::Granted) => self.call_for(held, permit).await,
            Ok(CallRight::Known(proof)) => {
                permit.end(CallFeedback::NotSent, None);
                self.settle_known(held, proof).await;
            }
            Ok(CallRight::Claimed) => {
                permit.end(CallFeedback::NotSent, None);
                // Closed only after a permanent queue error: then the job is redelivered.
                let _ = self.to_defer.send(DeferredJob::copy(held)).await;
            }
            Err(error) => permit.fail(held, error),
        }
    }

    async fn call_for(&self, held: BoxedJob, mut permit: CallPermit) {
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
            Err(BudgetRefusal) => {
                return permit
                    .end(CallFeedback::Unclear, Some((held, Instant::now() + BUDGET_WAIT)));
            }
        };
        if held.slot.is_lost() || held.batch.disposition() != BatchDisposition::Run {
            // The lease or the batch changed while we waited for the store. Nothing was sent.
            reserve.into_iter().for_each(|reserve| reserve.settle(0));
            return permit.end(CallFeedback::Unclear, Some((held, Instant::now())));
        }
        let began = Instant::now();
        let observed = CallSpan::begin(&job, (name, &target.client), held.charge, held.attempts);
        let CallResult { verdict, rate_limits: told } = match self.call(&permit, &job).await {
            Ok(called) => called,
            // It may have been paid: its reservation counts as spent. No attempt is counted.
            Err(CallCut::Aborted) => {
                drop(job);
                return permit.end(CallFeedback::Unclear, Some((held, Instant::now())));
            }
            Err(CallCut::GivenUp) => {
                drop(job);
                let failed = FailedCall::given_up(name, began.elapsed());
                return self.retry(held, permit, failed).await;
            }
        };
        observed.end(&verdict);
        // A body from a claim check is kept only while it is needed.
        drop(job);
        permit.rate_limits = told;
        if let (Some(reserve), Some(purse)) = (reserve, held.batch.allowance()) {
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
        self.follow(verdict, held, permit, latency).await;
    }

    /// Has a message settled whose job has its outcome.
    async fn settle_known(&self, held: BoxedJob, proof: Recorded) {
        let obsolete = record::obsolete_payload(&held.delivery, proof);
        record::delete_payloads(self.store.as_ref(), obsolete.into_iter().collect()).await;
        // The settler is gone only after a permanent queue error: then the job is redelivered.
        let _ = self.to_settle.send(SettlementGroup::known(held, proof)).await;
    }

    /// Brings the job one step further after a call that ended so.
    async fn follow(
        &self,
        verdict: Verdict,
        mut held: BoxedJob,
        permit: CallPermit,
        latency: Duration,
    ) {
        let target = &self.targets[permit.deployment().0];
        let name = target.member.name.as_str();
        match verdict {
            Verdict::Answered(reply) => {
                held.attempts += 1;
                let finished = FinishedJob::answered(held, name, reply, latency);
                self.finish(finished, permit, CallFeedback::Responded).await;
            }
            Verdict::Refused(error) => {
                held.attempts += 1;
                held.spent += error.usage;
                let finished = FinishedJob::refused(held, name, error, latency);
                self.finish(finished, permit, CallFeedback::RefusedJob).await;
            }
            Verdict::RefusedHere(error) => {
                let refusal = CallRefusal { error, is_final: true, latency };
                permit.refuse(CallFeedback::RefusedJob, held, refusal);
            }
            Verdict::Denied { error, suspect, why } => {
                self.progress.transient_errors.fetch_add(1, Ordering::Relaxed);
                let why = words_of(target, &held.delivery.job, &why);
                let refusal = CallRefusal { error, is_final: false, latency };
                permit.refuse(CallFeedback::Denied { suspect, why }, held, refusal);
            }
            Verdict::Throttled { error, asked } => {
                self.progress.throttled.fetch_add(1, Ordering::Relaxed);
                held.delivery.job.history.throttled += 1;
                let why = error.words();
                let refusal = CallRefusal { error, is_final: false, latency };
                permit.refuse(CallFeedback::Throttled { asked, why }, held, refusal);
            }
            Verdict::Transient { error, retry_after } => {
                self.retry(held, permit, FailedCall::transient(error, retry_after)).await;
            }
            Verdict::NoAnswer(error) => {
                held.no_answers += 1;
                held.spent += error.usage;
                self.retry(held, permit, FailedCall::transient(error, None)).await;
            }
            Verdict::Unreachable { why } => {
                let why = format!("{}: {why}", target.client.base());
                permit.end(CallFeedback::Unreachable { why }, Some((held, Instant::now())));
            }
            Verdict::Misconfigured { why } => {
                let why = words_of(target, &held.delivery.job, &why);
                permit.end(CallFeedback::Misconfigured { why }, Some((held, Instant::now())));
            }
        }
    }

    /// Makes the call, unless the grace time ends first or the call is given up.
    async fn call(&self, permit: &CallPermit, job: &Job) -> Result<CallResult, CallCut> {
        let index = permit.deployment().0;
        let mut given_up = self.given_up[index].subscribe();
        let is_late = |since: &Option<Instant>| since.is_some_and(|at| permit.booking.at <= at);
        tokio::select! {
            biased;
            called = self.targets[index].client.call(job) => Ok(called),
            () = self.abort.cancelled() => Err(CallCut::Aborted),
            _ = given_up.wait_for(is_late) => Err(CallCut::GivenUp),
        }
    }

    /// Returns the job with its body, fetched if it is a claim check; `None` if it is not there.
    async fn with_body<'j>(&self, job: &'j Job) -> Result<Option<Cow<'j, Job>>, StoreError> {
        let Some(name) = job.payload_name() else { return Ok(Some(Cow::Borrowed(job))) };
        let body = retry::until_reachable(|| self.store.get_payload(&name)).await?;
        Ok(body.and_then(|body| job.with_body(body)).map(Cow::Owned))
    }

    /// Ends a job whose body is missing. If another worker finished the job meanwhile, the body is
    /// gone and the recorded outcome stands.
    async fn give_up_without_body(&self, held: BoxedJob, permit: CallPermit) {
        let name = held.delivery.job.payload_name().unwrap_or_default();
        let description = format!(
            "the request body is a claim check, and the store has no payload '{name}' with that content: \
             enqueue the job again from its input"
        );
        let finished = FinishedJob::dead(held, "PayloadMissing", description);
        let _ = self.to_record.send(finished).await;
        permit.end(CallFeedback::Unclear, None);
    }

    /// Sends an outcome to the recorder; the permit is kept until there is room for it.
    async fn finish(&self, finished: Box<FinishedJob>, permit: CallPermit, feedback: CallFeedback) {
        // The recorder is gone only after a permanent store error: then the job is redelivered.
        let _ = self.to_record.send(finished).await;
        permit.end(feedback, None);
    }

    async fn retry(&self, mut held: BoxedJob, permit: CallPermit, failed: FailedCall) {
        let FailedCall { error, retry_after, feedback } = failed;
        held.attempts += 1;
        held.last_failed_on = Some(permit.deployment());
        self.progress.transient_errors.fetch_add(1, Ordering::Relaxed);
        let is_no_answer = held.no_answers >= MOST_CALLS_FOR_NO_ANSWER;
        if held.attempts >= self.max_attempts || is_no_answer {
            let reason = if is_no_answer { "NoAnswer" } else { "RetriesExhausted" };
            let JobFailure { code, message } = error.failure.clone();
            let description =
                format!("{} attempts, the last one ended with {code}: {message}", held.attempts);
            held.last_error = Some(error);
            let finished = FinishedJob::dead(held, reason, description);
            self.finish(finished, permit, feedback).await;
            return;
        }
        let retry_after = retry::bounded(retry_after, held.attempts);
        let wait = retry::delay(held.attempts, retry_after, random());
        held.last_error = Some(error);
        if wait >= self.defer_from {
            permit.end(feedback, None);
            let deferred = DeferredJob::new(held, Timestamp::now() + wait);
            // Closed only after a permanent queue error: then the job is redelivered.
            let _ = self.to_defer.send(deferred).await;
            return;
        }
        let due = Instant::now() + wait;
        permit.end(feedback, Some((held, due)));
    }
}
