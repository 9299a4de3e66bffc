//! One call of one job, and what it leads to: an outcome, another try, or back in line.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::random;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::held::Held;
use super::record::Finished;
use super::{Progress, Target, retry};
use crate::admission::deployment::Feedback;
use crate::admission::{Booking, DeploymentIndex};
use crate::model::Called;
use crate::model::headers::RateHeaders;
use crate::model::verdict::{ErrorReply, Verdict};
use crate::outcome::Failure;

/// What every call needs.
pub(super) struct Caller {
    pub(super) targets: Vec<Target>,
    pub(super) max_tries: u32,
    pub(super) to_record: mpsc::Sender<Finished>,
    pub(super) progress: Arc<Progress>,
}

/// The end of a call, as the conductor hears it.
pub(super) struct Ended {
    pub(super) booking: Booking,
    pub(super) feedback: Feedback,
    /// What the response told of the deployment's limits.
    pub(super) told: RateHeaders,
    /// The job, if it has no outcome yet, and when it may go in line again.
    pub(super) back: Option<(Held, Instant)>,
}

/// Tells the conductor of a call's end, also if the call panics: a deployment must not lose room.
pub(super) struct Permit {
    booking: Booking,
    told: RateHeaders,
    ended: Option<mpsc::Sender<Ended>>,
}

impl Permit {
    pub(super) fn new(booking: Booking, ended: mpsc::Sender<Ended>) -> Self {
        Self { booking, told: RateHeaders::default(), ended: Some(ended) }
    }

    fn deployment(&self) -> DeploymentIndex {
        self.booking.deployment
    }

    fn end(mut self, feedback: Feedback, back: Option<(Held, Instant)>) {
        self.send(feedback, back);
    }

    fn send(&mut self, feedback: Feedback, back: Option<(Held, Instant)>) {
        let ended = Ended { booking: self.booking, feedback, told: self.told, back };
        // The channel has room for one message of every call in flight. It is closed only when
        // nobody counts calls any more.
        if let Some(channel) = self.ended.take() {
            let _ = channel.try_send(ended);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.send(Feedback::Unclear, None);
    }
}

impl Caller {
    /// Calls for a job and brings it one step further.
    pub(super) async fn attempt(self: Arc<Self>, mut held: Held, mut permit: Permit) {
        if held.place.is_lost() {
            // Somebody else has it or will; a call now could be paid twice.
            return;
        }
        let target = &self.targets[permit.deployment().0];
        let name = target.member.name.as_str();
        let began = Instant::now();
        let Called { verdict, told } = target.client.call(&held.delivery.job).await;
        permit.told = told;
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

    /// Hands an outcome to the recorder; the permit is kept until there is room for it.
    async fn finish(&self, finished: Finished, permit: Permit, feedback: Feedback) {
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
        let due = Instant::now() + retry::delay(held.attempts, retry_after, random());
        held.last_error = Some(error);
        permit.end(feedback, Some((held, due)));
    }
}
