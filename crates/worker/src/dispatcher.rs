//! Event loop around admission: jobs arrive, calls start, calls end, one timer.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::attempt::{
    AttemptRunner, BUDGET_WAIT, CallEnded, CallPermit, CallRefusal, UnfinishedJob,
};
use super::batch_handle::BatchDisposition;
use super::batch_registry::BatchRegistry;
use super::command::DispatcherCommand;
use super::defer::DeferredJob;
use super::exit::{WorkerError, WorkerExit};
use super::leases::{BoxedJob, LeasedJob};
use super::record::FinishedJob;
use super::settings::{Worker, WorkerSettings};
use super::stage_end::{DispatchEnd, StageEnd};
use admission::deployment::CallFeedback;
use admission::{
    Admission, AdmissionDecision, AdmissionTicket, Booking, DeploymentIndex, RefusalRuling, shares,
};
use domain::job::{BatchId, JobId};
use domain::outcome::OutcomeStatus;
use model::verdict::ErrorReply;
use store::StoreError;
use telemetry::WorkerProgress;

/// Patience with an endpoint that never answered: short, since it is likely misspelt.
const UNREACHABLE_AT_START: Duration = Duration::from_secs(10);

/// Interval at which silent deployments are looked for and the deployments' state is published.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

/// Time for aborted calls to end: at once, or with their task if they wait for the store.
const ABORT_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) struct Dispatcher {
    pub(super) admission: Admission<BoxedJob>,
    pub(super) caller: Arc<AttemptRunner>,
    pub(super) settings: WorkerSettings,
    pub(super) progress: Arc<WorkerProgress>,
    pub(super) inbox: DispatcherInbox,
    pub(super) call_ends: mpsc::Receiver<CallEnded>,
    pub(super) call_end_sender: mpsc::Sender<CallEnded>,
    calls: JoinSet<()>,
    /// Jobs that wait for their next attempt, by due time.
    pub(super) retries: BinaryHeap<Reverse<PendingRetry>>,
    retry_sequence: u64,
    /// Jobs whose batches may not run, until the channels to other tasks have room for them.
    parked: Vec<BoxedJob>,
    batches: Arc<BatchRegistry>,
    /// Calls under way, for `promptmill why`.
    pub(super) in_flight: HashMap<JobId, InFlightCall>,
    any_reached: bool,
    any_answered: bool,
    /// Jobs that ended by a refusal, until they are passed on to the recorder.
    #[expect(clippy::vec_box, reason = "the recorder's channel takes them boxed")]
    refused: Vec<Box<FinishedJob>>,
    store_failed: Option<StoreError>,
    next_tick_at: Instant,
}

/// Channels from other tasks to the dispatcher.
pub(super) struct DispatcherInbox {
    pub(super) jobs: mpsc::Receiver<Vec<BoxedJob>>,
    /// From the tasks that watch quota shares and batches.
    pub(super) commands: mpsc::Receiver<DispatcherCommand>,
}

pub(super) struct PendingRetry {
    pub(super) due: (Instant, u64),
    pub(super) held: BoxedJob,
}

/// Job whose call is under way.
pub(super) struct InFlightCall {
    pub(super) batch: BatchId,
    pub(super) attempts: u32,
    pub(super) last_error: Option<String>,
    pub(super) deadline: Option<Timestamp>,
    pub(super) deployment: DeploymentIndex,
    pub(super) since: Instant,
}

impl InFlightCall {
    fn of(held: &LeasedJob, booking: &Booking) -> Self {
        Self {
            batch: held.delivery.job.batch_id.clone(),
            attempts: held.attempts,
            last_error: held.last_error(),
            deadline: held.delivery.job.deadline,
            deployment: booking.deployment,
            since: booking.at,
        }
    }
}

impl Dispatcher {
    pub(super) fn new(
        worker: &Worker,
        batches: Arc<BatchRegistry>,
        inbox: DispatcherInbox,
        caller: AttemptRunner,
    ) -> Self {
        let members = worker.targets.iter().map(|target| target.member.clone()).collect();
        // Room for the end of every call that can be in flight, so that reporting never waits.
        let (call_end_sender, call_ends) = mpsc::channel(worker.max_calls().max(1));
        Self {
            admission: Admission::new(members, worker.settings.spill_after, Instant::now()),
            caller: Arc::new(caller),
            settings: worker.settings.clone(),
            progress: worker.progress.clone(),
            inbox,
            call_ends,
            call_end_sender,
            calls: JoinSet::new(),
            retries: BinaryHeap::new(),
            retry_sequence: 0,
            parked: Vec::new(),
            batches,
            in_flight: HashMap::new(),
            any_reached: false,
            any_answered: false,
            refused: Vec::new(),
            store_failed: None,
            next_tick_at: Instant::now(),
        }
    }

    /// Runs until no job is left to come, an exit condition, or a permanent store error; returns
    /// the jobs that have no outcome.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<StageEnd, WorkerError> {
        if self.settings.shared {
            // Until the siblings' heartbeats have been read.
            self.apply_shares(&vec![shares::floor(1); self.caller.targets.len()]);
        }
        let exit = self.run_until_exit(&stop).await;
        let unfinished = self.wind_down(&exit).await;
        let exit = self.store_failed.map_or(Ok(exit), |error| Err(error.into()));
        Ok(StageEnd::Dispatched(DispatchEnd { exit, unfinished }))
    }

    async fn run_until_exit(&mut self, stop: &CancellationToken) -> WorkerExit {
        let mut ends = Vec::new();
        let mut is_fed = true;
        loop {
            let wake = self.admit(stop).await;
            if self.store_failed.is_some() {
                return WorkerExit::Stopped;
            }
            if !is_fed && self.admission.in_flight() == 0 {
                return if stop.is_cancelled() { WorkerExit::Stopped } else { WorkerExit::Drained };
            }
            if let Some(exit) = self.should_halt() {
                return exit;
            }
            let next_tick_at = self.tick();
            let wake = wake.map_or(next_tick_at, |wake| wake.min(next_tick_at));
            tokio::select! {
                () = stop.cancelled() => return WorkerExit::Stopped,
                _ = self.call_ends.recv_many(&mut ends, 64) => {
                    ends.drain(..).for_each(|ended| self.on_call_ended(ended));
                }
                arrived = self.inbox.jobs.recv(), if is_fed => match arrived {
                    Some(jobs) => jobs.into_iter().for_each(|job| self.enqueue_for_admission(job)),
                    // On a stop the puller may end before we see the stop.
                    None if stop.is_cancelled() => return WorkerExit::Stopped,
                    // By itself it ends only when everything is settled; the ends of the last calls
                    // may still be on their way to us.
                    None => is_fed = false,
                },
                Some(command) = self.inbox.commands.recv() => self.handle_command(command),
                () = wait_for_room(&self.caller, self.parked.last()), if !self.parked.is_empty() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
            while self.calls.try_join_next().is_some() {}
        }
    }

    /// Looks for silent deployments and publishes the deployments' state, at intervals; returns the
    /// time of the next tick.
    fn tick(&mut self) -> Instant {
        let now = Instant::now();
        if now >= self.next_tick_at {
            for (deployment, since) in self.admission.close_silent(now) {
                self.caller.give_up(deployment, since);
            }
            self.progress.deployments.send_replace(self.admission.snapshot(now));
            self.next_tick_at = now + TICK_INTERVAL;
        }
        self.next_tick_at
    }

    /// Starts all calls that may start now; returns when to look again.
    async fn admit(&mut self, stop: &CancellationToken) -> Option<Instant> {
        let now = Instant::now();
        while let Some(finished) = self.refused.pop() {
            stop.run_until_cancelled(self.caller.to_record.send(finished)).await?.ok();
        }
        self.drain_parked();
        while self.retries.peek().is_some_and(|Reverse(retry)| retry.due.0 <= now) {
            if let Some(Reverse(retry)) = self.retries.pop() {
                self.enqueue_for_admission(retry.held);
            }
        }
        let next_retry = self.retries.peek().map(|Reverse(retry)| retry.due.0);
        loop {
            let (held, ending, code, message) = match self.admission.next(now) {
                AdmissionDecision::Wait(at) => {
                    return [at, next_retry].into_iter().flatten().min();
                }
                AdmissionDecision::Go(held, booking) => {
                    self.progress.charged.fetch_add(held.charge, Ordering::Relaxed);
                    let job = held.delivery.job.id;
                    self.in_flight.insert(job, InFlightCall::of(&held, &booking));
                    let permit = CallPermit::new(job, booking, self.call_end_sender.clone());
                    self.calls.spawn(self.caller.clone().attempt(held, permit));
                    continue;
                }
                AdmissionDecision::Expired(held) => {
                    let message = "its deadline passed before a deployment had room for it";
                    (held, OutcomeStatus::Expired, "deadline_passed", message.to_owned())
                }
                AdmissionDecision::NeverFits(held) => {
                    let message = format!(
                        "the request may take {} tokens, more than a whole minute's quota: \
                         lower its max_tokens or raise the quota",
                        held.charge
                    );
                    (held, OutcomeStatus::Failed, "charge_exceeds_quota", message)
                }
                AdmissionDecision::Excluded(mut held) => {
                    let error = held.last_error.take().unwrap_or_default();
                    let at = held.last_failed_on;
                    let finished = self.refused_by(held, at, error, Duration::ZERO);
                    stop.run_until_cancelled(self.caller.to_record.send(finished)).await?.ok();
                    continue;
                }
                AdmissionDecision::NotServed(held) => {
                    let model = &held.delivery.job.model;
                    let message = format!("no deployment serves the model '{model}'");
                    (held, OutcomeStatus::Failed, "model_not_served", message)
                }
            };
            let finished = FinishedJob::turned_away(held, ending, code, message);
            // A store that is away must not keep us from a stop; the job is handed out again then.
            stop.run_until_cancelled(self.caller.to_record.send(finished)).await?.ok();
        }
    }

    /// Sends the parked jobs away, as far as there is room.
    fn drain_parked(&mut self) {
        while let Some(job) = self.parked.pop() {
            match job.batch.disposition() {
                // It was paused and is not any more.
                BatchDisposition::Run => self.enqueue_for_admission(job),
                BatchDisposition::Park => {
                    let Ok(room) = self.caller.to_defer.try_reserve() else {
                        return self.parked.push(job);
                    };
                    room.send(DeferredJob::new(job, self.batches.next_recheck_at()));
                }
                BatchDisposition::Cancel => {
                    let Ok(room) = self.caller.to_record.try_reserve() else {
                        return self.parked.push(job);
                    };
                    room.send(FinishedJob::cancelled(job));
                }
            }
        }
    }

    /// Takes the jobs of batches that may not run any more out of all wait queues.
    fn recheck(&mut self) {
        let stays = |held: &BoxedJob| held.batch.disposition() == BatchDisposition::Run;
        self.parked.extend(self.admission.extract(|held| !stays(held)));
        let (stay, go): (Vec<_>, Vec<_>) =
            self.retries.drain().partition(|Reverse(retry)| stays(&retry.held));
        self.retries = stay.into();
        self.parked.extend(go.into_iter().map(|Reverse(retry)| retry.held));
    }

    fn enqueue_for_admission(&mut self, held: BoxedJob) {
        if held.batch.disposition() != BatchDisposition::Run {
            self.parked.push(held);
            return;
        }
        let now = Instant::now();
        if held.batch.allowance().is_some_and(|purse| purse.is_short()) {
            self.schedule_retry(held, now + BUDGET_WAIT);
            return;
        }
        if let Some(at) = held.waits_until().filter(|at| *at > now) {
            self.schedule_retry(held, at);
            return;
        }
        let job = &held.delivery.job;
        let left = |at: Timestamp| {
            Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
        };
        let ticket = AdmissionTicket {
            group: self.admission.group_for(&job.model),
            charge: held.charge,
            priority: job.priority,
            deadline: job.deadline.map(|at| now + left(at)),
            since: held.received_at,
            avoid: held.last_failed_on,
            excluded: held.excluded,
            tag: held.tag,
        };
        self.admission.offer(&ticket, held, now);
    }

    fn on_call_ended(&mut self, ended: CallEnded) {
        let now = Instant::now();
        self.store_failed = self.store_failed.take().or(ended.store_failed);
        self.in_flight.remove(&ended.job);
        self.any_reached |= !matches!(
            ended.feedback,
            CallFeedback::Unreachable { .. } | CallFeedback::Unclear | CallFeedback::NotSent
        );
        self.any_answered |= matches!(ended.feedback, CallFeedback::Responded);
        let CallEnded { booking, feedback, rate_limits, unfinished, .. } = ended;
        let ruling = self.admission.observe(&booking, feedback, &rate_limits, now);
        let Some(UnfinishedJob { held, due, refusal }) = unfinished else { return };
        match (refusal, ruling) {
            (Some(refusal), ruling)
                if refusal.is_final || ruling == Some(RefusalRuling::JobAtFault) =>
            {
                self.send_elsewhere(held, booking.deployment, refusal);
            }
            (Some(refusal), Some(RefusalRuling::AskAgain { after })) => {
                self.ask_again(held, booking.deployment, refusal, now + after);
            }
            _ if due <= now || held.batch.disposition() != BatchDisposition::Run => {
                self.enqueue_for_admission(held);
            }
            _ => self.schedule_retry(held, due),
        }
    }

    /// Sends a job that a deployment will never take to another one, or ends it.
    fn send_elsewhere(&mut self, mut held: BoxedJob, at: DeploymentIndex, refusal: CallRefusal) {
        let CallRefusal { error, latency, .. } = refusal;
        held.attempts += 1;
        held.last_failed_on = Some(at);
        let group = self.admission.group_for(&held.delivery.job.model);
        let is_kept = held.excluded.insert(at);
        if is_kept && self.admission.may_serve(group, held.excluded) {
            held.last_error = Some(error);
            self.enqueue_for_admission(held);
            return;
        }
        let finished = self.refused_by(held, Some(at), error, latency);
        self.refused.push(finished);
    }

    fn refused_by(
        &self,
        held: BoxedJob,
        at: Option<DeploymentIndex>,
        error: ErrorReply,
        latency: Duration,
    ) -> Box<FinishedJob> {
        let name = at.map(|at| self.caller.targets[at.0].member.name.as_str());
        FinishedJob::refused(held, name.unwrap_or_default(), error, latency)
    }

    /// Has a job wait that may be at fault, or its deployment. While nothing was ever answered its
    /// like wait too, so that jobs of other kinds find out.
    fn ask_again(
        &mut self,
        mut held: BoxedJob,
        at: DeploymentIndex,
        refusal: CallRefusal,
        due: Instant,
    ) {
        if !self.any_answered {
            let kind = held.tag.kind;
            for other in self.admission.extract(|other| other.tag.kind == kind) {
                self.schedule_retry(other, due);
            }
        }
        held.last_error = Some(refusal.error);
        held.last_failed_on = Some(at);
        self.schedule_retry(held, due);
    }

    fn schedule_retry(&mut self, held: BoxedJob, due: Instant) {
        self.retry_sequence += 1;
        self.retries.push(Reverse(PendingRetry { due: (due, self.retry_sequence), held }));
    }

    fn handle_command(&mut self, order: DispatcherCommand) {
        match order {
            DispatcherCommand::UseShares(fractions) => self.apply_shares(&fractions),
            DispatcherCommand::Recheck => self.recheck(),
            // A closed receiver asks again.
            DispatcherCommand::Report(answer) => {
                drop(answer.send(self.admission.demand_snapshots(Instant::now())))
            }
            DispatcherCommand::Explain(question, answer) => {
                drop(answer.send(self.explain(&question, Instant::now())));
            }
        }
    }

    fn apply_shares(&mut self, fractions: &[f64]) {
        let now = Instant::now();
        for (index, fraction) in fractions.iter().enumerate() {
            self.admission.set_share(DeploymentIndex(index), *fraction, now);
        }
    }

    fn should_halt(&self) -> Option<WorkerExit> {
        let stranded = || self.admission.stranded().filter(|_| self.retries.is_empty());
        if let Some(why) = self.admission.all_retired().or_else(stranded) {
            return Some(WorkerExit::NoDeployment { why: why.to_owned() });
        }
        let patience =
            if self.any_reached { self.settings.unreachable_after } else { UNREACHABLE_AT_START };
        let (outage, why) = self.admission.all_unreachable(Instant::now())?;
        (outage >= patience).then(|| WorkerExit::Unreachable { why: why.to_owned() })
    }

    /// Lets calls in flight finish within the grace time; returns all jobs without an outcome.
    async fn wind_down(&mut self, exit: &WorkerExit) -> Vec<BoxedJob> {
        let mut back = self.admission.drain();
        back.extend(self.retries.drain().map(|Reverse(retry)| retry.held));
        back.append(&mut self.parked);
        if *exit != WorkerExit::Drained {
            self.drain_calls(Instant::now() + self.settings.shutdown_grace, &mut back).await;
            self.progress.aborted_calls.store(self.admission.in_flight() as u64, Ordering::Relaxed);
            self.caller.abort.cancel();
            self.drain_calls(Instant::now() + ABORT_TIMEOUT, &mut back).await;
        }
        self.calls.shutdown().await;
        self.inbox.jobs.close();
        while let Some(jobs) = self.inbox.jobs.recv().await {
            back.extend(jobs);
        }
        back
    }

    /// Processes ends of calls until the deadline; collects the jobs without an outcome.
    async fn drain_calls(&mut self, deadline: Instant, back: &mut Vec<BoxedJob>) {
        let mut ends = Vec::new();
        while self.admission.in_flight() > 0 {
            let heard = self.call_ends.recv_many(&mut ends, 64);
            if tokio::time::timeout_at(deadline, heard).await.is_err() {
                return;
            }
            for ended in ends.drain(..) {
                let CallEnded { booking, feedback, rate_limits: told, .. } = ended;
                self.admission.observe(&booking, feedback, &told, Instant::now());
                back.extend(ended.unfinished.map(|unfinished| unfinished.held));
            }
        }
    }
}

/// Waits until the channel that takes the parked job next has room, or is closed.
async fn wait_for_room(caller: &AttemptRunner, parked: Option<&BoxedJob>) {
    match parked.map(|job| job.batch.disposition()) {
        Some(BatchDisposition::Park) => drop(caller.to_defer.reserve().await),
        Some(BatchDisposition::Cancel) => drop(caller.to_record.reserve().await),
        Some(BatchDisposition::Run) | None => {}
    }
}

impl PartialEq for PendingRetry {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for PendingRetry {}

impl PartialOrd for PendingRetry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PendingRetry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}
