//! The wheel around admission: jobs come in, calls go out, ends come back, one timer.

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

use super::attempt::{Caller, Ended, Permit, UNFUNDED};
use super::held::{Held, InHand};
use super::postpone::Postponed;
use super::record::Finished;
use super::shares::Order;
use super::states::{Course, States};
use super::{Halt, Settings};
use admission::{Admission, Booking, DeploymentIndex, Next, Ticket, shares};
use domain::job::{BatchId, JobId};
use domain::outcome::Ending;
use store::StoreError;
use telemetry::Progress;

/// An endpoint that never answered is given up sooner than one that did: it is likely misspelt.
const UNREACHABLE_AT_START: Duration = Duration::from_secs(10);

/// How often the deployments' state is shown.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// How soon there may be room for jobs that may not go, when there was none.
const ASIDE_AGAIN: Duration = Duration::from_millis(20);

/// A call that is broken off ends at once; one that waits for the store, rather with its task.
const BROKEN_OFF_WITHIN: Duration = Duration::from_millis(500);

pub(super) struct Conductor {
    pub(super) admission: Admission<Held>,
    pub(super) caller: Arc<Caller>,
    pub(super) settings: Settings,
    pub(super) progress: Arc<Progress>,
    pub(super) inbox: Inbox,
    pub(super) ended: mpsc::Receiver<Ended>,
    pub(super) ended_sender: mpsc::Sender<Ended>,
    calls: JoinSet<()>,
    /// Jobs that wait for their next try, by when it is due.
    pub(super) retries: BinaryHeap<Reverse<Retry>>,
    next_retry: u64,
    /// Jobs whose batches may not go, until the others have room for them.
    aside: Vec<Held>,
    states: Arc<States>,
    /// Calls under way, for people who ask.
    pub(super) flights: HashMap<JobId, Flight>,
    reached: bool,
    store_failed: Option<StoreError>,
    show_at: Instant,
}

/// What comes to the conductor from other tasks.
pub(super) struct Inbox {
    pub(super) arriving: mpsc::Receiver<Vec<Held>>,
    /// From the tasks that know of shares and states.
    pub(super) orders: mpsc::Receiver<Order>,
}

pub(super) struct Retry {
    pub(super) due: (Instant, u64),
    pub(super) held: Held,
}

/// A job whose call is under way.
pub(super) struct Flight {
    pub(super) batch: BatchId,
    pub(super) tries: u32,
    pub(super) last_error: Option<String>,
    pub(super) deadline: Option<Timestamp>,
    pub(super) deployment: DeploymentIndex,
    pub(super) since: Instant,
}

impl Flight {
    fn of(held: &InHand, booking: &Booking) -> Self {
        Self {
            batch: held.delivery.job.batch_id.clone(),
            tries: held.attempts,
            last_error: held.last_error(),
            deadline: held.delivery.job.deadline,
            deployment: booking.deployment,
            since: booking.at,
        }
    }
}

impl Conductor {
    pub(super) fn new(
        admission: Admission<Held>,
        caller: Arc<Caller>,
        settings: Settings,
        progress: Arc<Progress>,
        states: Arc<States>,
        inbox: Inbox,
    ) -> Self {
        // Room for the end of every call that can be in flight, so that telling never waits.
        let calls = caller.targets.iter().map(|t| t.member.limits.concurrency).sum::<usize>();
        let (ended_sender, ended) = mpsc::channel(calls.max(1));
        Self {
            admission,
            caller,
            settings,
            progress,
            inbox,
            ended,
            ended_sender,
            calls: JoinSet::new(),
            retries: BinaryHeap::new(),
            next_retry: 0,
            aside: Vec::new(),
            states,
            flights: HashMap::new(),
            reached: false,
            store_failed: None,
            show_at: Instant::now(),
        }
    }

    /// Runs until there is nothing left to come, a halt, or a failure of the store; returns what was
    /// not started.
    pub(super) async fn run(
        mut self,
        stop: &CancellationToken,
    ) -> (Result<Halt, StoreError>, Vec<Held>) {
        if self.settings.shared {
            // Until the siblings have been heard.
            self.use_shares(&vec![shares::floor(1); self.caller.targets.len()]);
        }
        let mut ends = Vec::new();
        let mut is_fed = true;
        let halt = loop {
            let wake = self.admit().await;
            if self.store_failed.is_some() {
                break Halt::Stopped;
            }
            if !is_fed && self.admission.in_flight() == 0 {
                break if stop.is_cancelled() { Halt::Stopped } else { Halt::Drained };
            }
            if let Some(halt) = self.should_halt() {
                break halt;
            }
            let shown_at = self.show();
            let wake = wake.map_or(shown_at, |wake| wake.min(shown_at));
            tokio::select! {
                () = stop.cancelled() => break Halt::Stopped,
                _ = self.ended.recv_many(&mut ends, 64) => {
                    ends.drain(..).for_each(|ended| self.hear(ended));
                }
                arrived = self.inbox.arriving.recv(), if is_fed => match arrived {
                    Some(jobs) => jobs.into_iter().for_each(|held| self.line_up(held)),
                    // Told to stop the puller may be gone before we hear of the stop.
                    None if stop.is_cancelled() => break Halt::Stopped,
                    // By itself it ends only when everything is settled; that the last calls have
                    // ended may still be on its way to us.
                    None => is_fed = false,
                },
                Some(order) = self.inbox.orders.recv() => self.obey(order),
                () = tokio::time::sleep_until(wake) => {}
            }
            while self.calls.try_join_next().is_some() {}
        };
        let back = self.wind_down(&halt).await;
        (self.store_failed.map_or(Ok(halt), Err), back)
    }

    /// Shows the deployments' state from time to time; returns when to show it again.
    fn show(&mut self) -> Instant {
        let now = Instant::now();
        if now >= self.show_at {
            self.progress.deployments.send_replace(self.admission.snapshot(now));
            self.show_at = now + SHOW_EVERY;
        }
        self.show_at
    }

    /// Starts all that may go now; returns when to look again.
    async fn admit(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let next_look = self.clear_aside(now);
        while self.retries.peek().is_some_and(|Reverse(retry)| retry.due.0 <= now) {
            if let Some(Reverse(retry)) = self.retries.pop() {
                self.line_up(retry.held);
            }
        }
        let next_retry = self.retries.peek().map(|Reverse(retry)| retry.due.0);
        loop {
            let (held, ending, code, message) = match self.admission.next(now) {
                Next::Wait(at) => {
                    return [at, next_retry, next_look].into_iter().flatten().min();
                }
                Next::Go(held, booking) => {
                    self.progress.charged.fetch_add(held.charge, Ordering::Relaxed);
                    let job = held.delivery.job.id;
                    self.flights.insert(job, Flight::of(&held, &booking));
                    let permit = Permit::new(job, booking, self.ended_sender.clone());
                    self.calls.spawn(self.caller.clone().attempt(held, permit));
                    continue;
                }
                Next::Expired(held) => {
                    let message = "its deadline passed before a deployment had room for it";
                    (held, Ending::Expired, "deadline_passed", message.to_owned())
                }
                Next::NeverFits(held) => {
                    let message = format!(
                        "the request may take {} tokens, more than a whole minute's quota: \
                         lower its max_tokens or raise the quota",
                        held.charge
                    );
                    (held, Ending::Failed, "charge_exceeds_quota", message)
                }
                Next::NotServed(held) => {
                    let model = &held.delivery.job.model;
                    let message = format!("no deployment serves the model '{model}'");
                    (held, Ending::Failed, "model_not_served", message)
                }
            };
            let finished = Finished::turned_away(held, ending, code, message);
            let _ = self.caller.to_record.send(finished).await;
        }
    }

    /// Sends away the jobs that may not go, as far as there is room; returns when to try again.
    fn clear_aside(&mut self, now: Instant) -> Option<Instant> {
        let later = Some(now + ASIDE_AGAIN);
        while let Some(held) = self.aside.pop() {
            match held.batch.course() {
                // It was paused and is not any more.
                Course::Go => self.line_up(held),
                Course::Wait => {
                    let Ok(room) = self.caller.to_postpone.try_reserve() else {
                        self.aside.push(held);
                        return later;
                    };
                    room.send(Postponed::of_paused(held, self.states.again()));
                }
                Course::End => {
                    let Ok(room) = self.caller.to_record.try_reserve() else {
                        self.aside.push(held);
                        return later;
                    };
                    room.send(Finished::cancelled(held));
                }
            }
        }
        None
    }

    /// Takes those jobs out of all lines whose batches may not go any more.
    fn recheck(&mut self) {
        let stays = |held: &Held| held.batch.course() == Course::Go;
        self.aside.extend(self.admission.extract(|held| !stays(held)));
        let (stay, go): (Vec<_>, Vec<_>) =
            self.retries.drain().partition(|Reverse(retry)| stays(&retry.held));
        self.retries = stay.into();
        self.aside.extend(go.into_iter().map(|Reverse(retry)| retry.held));
    }

    fn line_up(&mut self, held: Held) {
        if held.batch.course() != Course::Go {
            self.aside.push(held);
            return;
        }
        let now = Instant::now();
        if held.batch.purse().is_some_and(|purse| purse.is_short()) {
            self.wait(held, now + UNFUNDED);
            return;
        }
        let job = &held.delivery.job;
        let left = |at: Timestamp| {
            Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
        };
        let ticket = Ticket {
            lane: self.admission.lane_for(&job.model),
            charge: held.charge,
            priority: job.priority,
            deadline: job.deadline.map(|at| now + left(at)),
            since: held.since,
            avoid: held.failed_at,
        };
        self.admission.offer(&ticket, held, now);
    }

    fn hear(&mut self, ended: Ended) {
        use admission::deployment::Feedback;
        let now = Instant::now();
        self.store_failed = self.store_failed.take().or(ended.store_failed);
        self.flights.remove(&ended.job);
        self.reached |= !matches!(ended.feedback, Feedback::Unreachable { .. } | Feedback::Unclear);
        self.admission.observe(&ended.booking, ended.feedback, &ended.told, now);
        if let Some((held, due)) = ended.back {
            if due <= now || held.batch.course() != Course::Go {
                self.line_up(held);
            } else {
                self.wait(held, due);
            }
        }
    }

    fn wait(&mut self, held: Held, due: Instant) {
        self.next_retry += 1;
        self.retries.push(Reverse(Retry { due: (due, self.next_retry), held }));
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Use(fractions) => self.use_shares(&fractions),
            Order::Recheck => self.recheck(),
            // Who does not wait any more asks again.
            Order::Report(answer) => drop(answer.send(self.admission.standings(Instant::now()))),
            Order::Explain(question, answer) => {
                drop(answer.send(self.explain(&question, Instant::now())));
            }
        }
    }

    fn use_shares(&mut self, fractions: &[f64]) {
        let now = Instant::now();
        for (index, fraction) in fractions.iter().enumerate() {
            self.admission.set_share(DeploymentIndex(index), *fraction, now);
        }
    }

    fn should_halt(&self) -> Option<Halt> {
        let stranded = || self.admission.stranded().filter(|_| self.retries.is_empty());
        if let Some(why) = self.admission.all_retired().or_else(stranded) {
            return Some(Halt::NoDeployment { why: why.to_owned() });
        }
        let patience =
            if self.reached { self.settings.unreachable_after } else { UNREACHABLE_AT_START };
        let (outage, why) = self.admission.all_unreachable(Instant::now())?;
        (outage >= patience).then(|| Halt::Unreachable { why: why.to_owned() })
    }

    /// Lets the calls in flight finish within the grace time; returns all jobs without an outcome.
    async fn wind_down(&mut self, halt: &Halt) -> Vec<Held> {
        let mut back = self.admission.drain();
        back.extend(self.retries.drain().map(|Reverse(retry)| retry.held));
        back.append(&mut self.aside);
        if !matches!(halt, Halt::Drained) {
            self.let_end(Instant::now() + self.settings.shutdown_grace, &mut back).await;
            self.progress.cut_off.store(self.admission.in_flight() as u64, Ordering::Relaxed);
            self.caller.cut.cancel();
            self.let_end(Instant::now() + BROKEN_OFF_WITHIN, &mut back).await;
        }
        self.calls.shutdown().await;
        self.inbox.arriving.close();
        while let Some(jobs) = self.inbox.arriving.recv().await {
            back.extend(jobs);
        }
        back
    }

    /// Hears of calls that end until then; keeps the jobs that have no outcome.
    async fn let_end(&mut self, deadline: Instant, back: &mut Vec<Held>) {
        let mut ends = Vec::new();
        while self.admission.in_flight() > 0 {
            let heard = self.ended.recv_many(&mut ends, 64);
            if tokio::time::timeout_at(deadline, heard).await.is_err() {
                return;
            }
            for ended in ends.drain(..) {
                let Ended { booking, feedback, told, .. } = ended;
                self.admission.observe(&booking, feedback, &told, Instant::now());
                back.extend(ended.back.map(|(held, _)| held));
            }
        }
    }
}

impl PartialEq for Retry {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Retry {}

impl PartialOrd for Retry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Retry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}
