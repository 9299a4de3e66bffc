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
use crate::admission::DeploymentIndex;
use crate::admission::deployment::Feedback;
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
    pub(super) deployment: DeploymentIndex,
    pub(super) feedback: Feedback,
    /// The job, if it has no outcome yet, and when it may go in line again.
    pub(super) back: Option<(Held, Instant)>,
}

/// Tells the conductor of a call's end, also if the call panics: a deployment must not lose room.
pub(super) struct Permit {
    deployment: DeploymentIndex,
    ended: Option<mpsc::Sender<Ended>>,
}

impl Permit {
    pub(super) fn new(deployment: DeploymentIndex, ended: mpsc::Sender<Ended>) -> Self {
        Self { deployment, ended: Some(ended) }
    }

    fn end(mut self, feedback: Feedback, back: Option<(Held, Instant)>) {
        self.send(feedback, back);
    }

    fn send(&mut self, feedback: Feedback, back: Option<(Held, Instant)>) {
        let ended = Ended { deployment: self.deployment, feedback, back };
        // The channel has room for one message of every call in flight. It is closed only when
        // nobody counts calls any more.
        if let Some(channel) = self.ended.take() {
            let _ = channel.try_send(ended);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.send(Feedback::Responded, None);
    }
}

impl Caller {
    /// Calls for a job and brings it one step further.
    pub(super) async fn attempt(self: Arc<Self>, mut held: Held, permit: Permit) {
        if held.place.is_lost() {
            // Somebody else has it or will; a call now could be paid twice.
            return;
        }
        let target = &self.targets[permit.deployment.0];
        let began = Instant::now();
        let verdict = target.client.call(&held.delivery.job).await;
        let latency = began.elapsed();
        debug!(
            job.id = %held.delivery.job.id,
            deployment.name = target.name,
            duration_ms = latency.as_millis(),
            verdict = verdict.name(),
            "call ended"
        );
        match verdict {
            Verdict::Answered(reply) => {
                held.attempts += 1;
                let finished = Finished::answered(held, &target.name, reply, latency);
                self.finish(finished, permit).await;
            }
            Verdict::Refused(error) => {
                held.attempts += 1;
                let finished = Finished::refused(held, &target.name, error, latency);
                self.finish(finished, permit).await;
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
            Verdict::Misconfigured { why } => {
                let why = format!("{} says {why}", target.client.base());
                permit.end(Feedback::Misconfigured { why }, Some((held, Instant::now())));
            }
        }
    }

    /// Hands an outcome to the recorder; the permit is kept until there is room for it.
    async fn finish(&self, finished: Finished, permit: Permit) {
        // The recorder is gone only if the store failed for good: then the job is redelivered.
        let _ = self.to_record.send(finished).await;
        permit.end(Feedback::Responded, None);
    }

    async fn retry(
        &self,
        mut held: Held,
        permit: Permit,
        error: ErrorReply,
        retry_after: Option<Duration>,
    ) {
        held.attempts += 1;
        self.progress.faults.fetch_add(1, Ordering::Relaxed);
        if held.attempts >= self.max_tries {
            let Failure { code, message } = error.failure.clone();
            let description =
                format!("{} tries, the last one ended with {code}: {message}", held.attempts);
            held.last_error = Some(error);
            let finished = Finished::dead(held, "RetriesExhausted", description);
            self.finish(finished, permit).await;
            return;
        }
        let due = Instant::now() + retry::delay(held.attempts, retry_after, random());
        held.last_error = Some(error);
        permit.end(Feedback::Responded, Some((held, due)));
    }
}
