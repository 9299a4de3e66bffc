//! Event loop in simulated time: the worker's own admission, with call times from the latency model
//! and headers as the service sends them.
//!
//! It works like the worker's dispatcher: as many jobs in line as a worker holds, one timer, a look
//! at least once a second. The difference: nothing fails and nobody else uses the quota.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, StandardNormal};
use tokio::time::Instant;

use super::count::CountedInput;
use super::latency::{AnswerLengths, CallLatency, LengthSequence};
use super::quota_counter::{MINUTE, QuotaCounter};
use super::spool::{SpoolReader, SpooledJob};
use admission::deployment::CallFeedback;
use admission::{
    Admission, AdmissionDecision, AdmissionTicket, Booking, PoolMember, RoutingGroupIndex,
};
use domain::deployment::ServiceKind;
use domain::headers::RateHeaders;

/// Timer resolution.
const TICK: Duration = Duration::from_millis(1);

/// Longest interval between two looks of the worker at its deployments.
const MAX_IDLE: Duration = Duration::from_secs(1);

/// Response time of a throttled call.
const THROTTLED_LATENCY: Duration = Duration::from_millis(20);

/// Distance between the beginnings of different quotas' minutes, in minutes. Multiples of the
/// golden ratio lie nowhere near each other.
const PHASE_STEP: f64 = 0.618_033_988_749_895;

/// Deployments, limits and jobs of a simulation.
#[derive(Clone)]
pub struct Scenario<'a> {
    pub members: Vec<PoolMember>,
    /// Call times of each of them.
    pub latencies: Vec<CallLatency>,
    pub spill_after: Duration,
    /// Limit of jobs in line and in flight.
    pub max_held: usize,
    /// Calls that all workers together can begin; `None`: any number.
    pub calls_a_second: Option<f64>,
    pub counted: &'a CountedInput,
    pub answers: &'a AnswerLengths,
    /// Start in Unix seconds.
    pub begin: f64,
}

/// One random variation of a scenario.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SimulationTrial {
    /// Part of the service's minute that is over at the beginning.
    pub phase: f64,
    /// Seed of the latencies.
    pub seed: u64,
    /// Assumed slowness of latencies learnt from few answers: the part of cases that are faster.
    pub percentile: f64,
}

/// Result of one trial.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SimulatedRun {
    /// Time until the last job ended.
    pub seconds: f64,
    /// Usage by deployment, then by model.
    pub used: Vec<Vec<SimulatedUsage>>,
    /// Calls throttled (429).
    pub throttled: u64,
    pub turned_away: UncalledJobs,
}

/// Jobs and tokens of one deployment for one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimulatedUsage {
    pub jobs: u64,
    pub prompt: u64,
    pub completion: u64,
    /// Most that it could have answered.
    pub max_output: u64,
}

/// Jobs that were never called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct UncalledJobs {
    /// Larger than a whole minute's quota.
    pub too_large: u64,
    /// Their deadline passed first.
    pub expired: u64,
    /// No deployment serves their model.
    pub not_served: u64,
}

/// Job with the length of its answer.
#[derive(Clone, Copy)]
struct SimulatedJob {
    load: SpooledJob,
    tokens: u32,
}

enum EventKind {
    /// A call ends: answered, or throttled until then.
    End(SimulatedJob, Booking, RateHeaders, Option<Duration>),
    /// A job's `not_before` has come.
    Due(SimulatedJob),
}

struct SimulatedEvent {
    at: Duration,
    number: u64,
    kind: EventKind,
}

struct EventLoop<'a> {
    scenario: &'a Scenario<'a>,
    latencies: Vec<CallLatency>,
    loads: SpoolReader,
    has_more: bool,
    admission: Admission<SimulatedJob>,
    counters: Vec<QuotaCounter>,
    /// Index into `counters` for each deployment.
    quota_of: Vec<usize>,
    /// Lane and answer lengths of each model.
    lanes: Vec<Option<RoutingGroupIndex>>,
    lengths: Vec<LengthSequence<'a>>,
    events: BinaryHeap<Reverse<SimulatedEvent>>,
    numbers: u64,
    rng: SmallRng,
    origin: Instant,
    now: Duration,
    held: usize,
    in_flight: usize,
    /// Time until which the workers are busy with the calls that they began.
    busy_until: Duration,
    result: SimulatedRun,
}

/// Runs one trial to its end.
///
/// # Errors
/// If the temporary file with the jobs fails.
pub fn run(scenario: &Scenario<'_>, trial: SimulationTrial) -> io::Result<SimulatedRun> {
    let mut event_loop = EventLoop::new(scenario, trial)?;
    loop {
        event_loop.pull_jobs()?;
        let wake = event_loop.admit();
        if event_loop.has_more && event_loop.held < scenario.max_held {
            // Some were turned away.
            continue;
        }
        let is_waited_for = event_loop.held > event_loop.in_flight;
        let wake = wake.filter(|_| is_waited_for).map(|at| at.min(event_loop.now + MAX_IDLE));
        let event = event_loop.events.peek().map(|Reverse(event)| event.at);
        let Some(at) = wake.into_iter().chain(event).min() else { break };
        event_loop.now = at;
        event_loop.handle_due_events();
    }
    Ok(event_loop.finish())
}

impl<'a> EventLoop<'a> {
    fn new(scene: &'a Scenario<'a>, trial: SimulationTrial) -> io::Result<Self> {
        let origin = Instant::now();
        let admission = Admission::new(scene.members.clone(), scene.spill_after, origin);
        let models = &scene.counted.models;
        let (counters, quota_of) = counters(&scene.members, trial.phase);
        let luck = |n: usize| normal_at((trial.percentile + PHASE_STEP * n as f64).fract());
        Ok(Self {
            latencies: scene
                .latencies
                .iter()
                .enumerate()
                .map(|(n, line)| line.perturbed(luck(n)))
                .collect(),
            loads: scene.counted.spool.read()?,
            has_more: true,
            lanes: models.iter().map(|asked| admission.group_for(&asked.model)).collect(),
            lengths: models.iter().map(|asked| scene.answers.of(&asked.model)).collect(),
            result: SimulatedRun {
                used: vec![vec![SimulatedUsage::default(); models.len()]; scene.members.len()],
                ..SimulatedRun::default()
            },
            admission,
            counters,
            quota_of,
            events: BinaryHeap::new(),
            numbers: 0,
            rng: SmallRng::seed_from_u64(trial.seed),
            origin,
            now: Duration::ZERO,
            held: 0,
            in_flight: 0,
            busy_until: Duration::ZERO,
            scenario: scene,
        })
    }

    fn instant(&self, at: Duration) -> Instant {
        self.origin + at
    }

    fn push(&mut self, at: Duration, happening: EventKind) {
        self.numbers += 1;
        self.events.push(Reverse(SimulatedEvent { at, number: self.numbers, kind: happening }));
    }

    /// Pulls jobs up to the limit. Jobs whose time has not come wait outside, as they do in the
    /// queue.
    fn pull_jobs(&mut self) -> io::Result<()> {
        while self.has_more && self.held < self.scenario.max_held {
            let Some(load) = self.loads.next()? else {
                self.has_more = false;
                break;
            };
            let lengths = &mut self.lengths[usize::from(load.model)];
            let tokens = lengths.next(load.estimate.max_output);
            let held = SimulatedJob { load, tokens };
            let wait = load.not_before.map_or(0.0, |at| at.unix() - self.scenario.begin);
            match Duration::try_from_secs_f64(wait).unwrap_or_default() {
                due if due > self.now => self.push(due, EventKind::Due(held)),
                _ => self.take(held),
            }
        }
        Ok(())
    }

    fn take(&mut self, held: SimulatedJob) {
        self.held += 1;
        self.offer(held);
    }

    fn offer(&mut self, held: SimulatedJob) {
        let now = self.instant(self.now);
        let SimulatedJob { load, .. } = held;
        let left = |at: super::spool::UnixSecond| {
            Duration::try_from_secs_f64(at.unix() - self.scenario.begin).unwrap_or_default()
        };
        let ticket = AdmissionTicket {
            group: self.lanes[usize::from(load.model)],
            charge: load.estimate.charge(),
            priority: load.priority,
            deadline: load.deadline.map(|at| self.instant(left(at))),
            since: now,
            avoid: None,
            excluded: Default::default(),
            tag: Default::default(),
        };
        self.admission.offer(&ticket, held, now);
    }

    /// Starts every job that may start now; returns when to look again.
    fn admit(&mut self) -> Option<Duration> {
        loop {
            if self.busy_until >= self.now + TICK {
                return Some(self.busy_until);
            }
            match self.admission.next(self.instant(self.now)) {
                AdmissionDecision::Go(held, booking) => self.call(held, booking),
                AdmissionDecision::Wait(at) => {
                    let at = at?.saturating_duration_since(self.origin);
                    let ticks = at.as_nanos().div_ceil(TICK.as_nanos());
                    let at = Duration::from_nanos_u128(TICK.as_nanos() * ticks);
                    return Some(at.max(self.now + TICK));
                }
                AdmissionDecision::Expired(_) => {
                    self.result.turned_away.expired += 1;
                    self.end_job();
                }
                AdmissionDecision::NeverFits(_) => {
                    self.result.turned_away.too_large += 1;
                    self.end_job();
                }
                AdmissionDecision::NotServed(_) | AdmissionDecision::Excluded(_) => {
                    self.result.turned_away.not_served += 1;
                    self.end_job();
                }
            }
        }
    }

    fn call(&mut self, held: SimulatedJob, booking: Booking) {
        self.in_flight += 1;
        if let Some(rate) = self.scenario.calls_a_second {
            self.busy_until = self.busy_until.max(self.now) + Duration::from_secs_f64(1.0 / rate);
        }
        let (n, model) = (booking.deployment.0, usize::from(held.load.model));
        let (verdict, headers) = self.counters[self.quota_of[n]].book(self.now, booking.charge);
        let (takes, until) = match verdict {
            Ok(()) => {
                let used = &mut self.result.used[n][model];
                used.jobs += 1;
                used.prompt += u64::from(held.load.estimate.prompt);
                used.completion += u64::from(held.tokens);
                used.max_output += u64::from(held.load.estimate.max_output);
                let normal = StandardNormal.sample(&mut self.rng);
                let seconds = self.latencies[n].draw(held.tokens, normal);
                (Duration::try_from_secs_f64(seconds).unwrap_or_default(), None)
            }
            Err(wait) => {
                self.result.throttled += 1;
                (THROTTLED_LATENCY, Some(self.now + wait))
            }
        };
        self.push(self.now + takes, EventKind::End(held, booking, headers, until));
    }

    /// Handles all events that are due now.
    fn handle_due_events(&mut self) {
        while self.events.peek().is_some_and(|Reverse(event)| event.at <= self.now) {
            let Some(Reverse(event)) = self.events.pop() else { return };
            match event.kind {
                EventKind::Due(held) => self.take(held),
                EventKind::End(held, booking, headers, until) => {
                    self.in_flight -= 1;
                    let feedback = match until {
                        None => CallFeedback::Responded,
                        Some(until) => CallFeedback::Throttled {
                            asked: Some(until.saturating_sub(self.now)),
                            why: String::new(),
                        },
                    };
                    self.admission.observe(&booking, feedback, &headers, self.instant(self.now));
                    match until {
                        None => self.end_job(),
                        Some(_) => self.offer(held),
                    }
                }
            }
        }
    }

    fn end_job(&mut self) {
        self.held -= 1;
        self.result.seconds = self.now.as_secs_f64();
    }

    /// Ends the run. Tokens that the last answers had no room for count with the others of their
    /// model, as far as those may be longer.
    fn finish(mut self) -> SimulatedRun {
        for (model, lengths) in self.lengths.iter().enumerate() {
            let mut owed = lengths.carry_over();
            for used in self.result.used.iter_mut().map(|used| &mut used[model]) {
                let more = owed.min(used.max_output - used.completion);
                used.completion += more;
                owed -= more;
            }
        }
        self.result
    }
}

/// Returns the standard normal quantile of this probability.
fn normal_at(part: f64) -> f64 {
    let below = |x: f64| libm::erfc(-x / std::f64::consts::SQRT_2) / 2.0;
    let (mut low, mut high) = (-8.0, 8.0);
    while high - low > 1e-6 {
        let middle = (low + high) / 2.0;
        *if below(middle) < part { &mut low } else { &mut high } = middle;
    }
    low
}

/// Returns the service's counters and the index of each deployment's: deployments that share a
/// quota in admission share a counter.
fn counters(members: &[PoolMember], phase: f64) -> (Vec<QuotaCounter>, Vec<usize>) {
    let mut counters = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    let quota_of = members.iter().map(|member| {
        let is_same = !member.quota.is_empty() && member.limits.service != ServiceKind::Provisioned;
        if let Some(same) = known.get(member.quota.as_str()).filter(|_| is_same) {
            return *same;
        }
        let mut limits = member.limits.clone();
        if is_same {
            known.insert(&member.quota, counters.len());
            let lanes = members.iter().filter(|other| other.quota == member.quota);
            for lane in lanes {
                limits.tpm = limits.tpm.or(lane.limits.tpm);
                limits.rpm = limits.rpm.or(lane.limits.rpm);
            }
        }
        let phase = (phase + PHASE_STEP * counters.len() as f64).fract();
        counters.push(QuotaCounter::new(&limits, MINUTE.mul_f64(phase)));
        counters.len() - 1
    });
    let quota_of = quota_of.collect();
    (counters, quota_of)
}

impl PartialEq for SimulatedEvent {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for SimulatedEvent {}

impl PartialOrd for SimulatedEvent {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SimulatedEvent {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
