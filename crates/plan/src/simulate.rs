//! The wheel in simulated time: the worker's own admission, with calls that end when the latency model
//! says so and headers as the service sends them.
//!
//! It turns as the worker's conductor does: as many jobs in line as a worker holds, one timer, a look at
//! least once a second. What differs is that nothing fails and nobody else uses the quota.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, StandardNormal};
use tokio::time::Instant;

use super::count::Counted;
use super::latency::{Answers, Lengths, Line};
use super::service::{Counter, MINUTE};
use super::spool::{Load, Loads};
use admission::deployment::{Feedback, Service};
use admission::{Admission, Booking, LaneIndex, Member, Next, Ticket};
use domain::headers::RateHeaders;

/// Timers are no finer than this.
const TICK: Duration = Duration::from_millis(1);

/// The worker looks at its deployments as often, whatever happens.
const LOOK: Duration = Duration::from_secs(1);

/// How long a refusal takes to come back.
const REFUSAL: Duration = Duration::from_millis(20);

/// Where several quotas are, their minutes begin at different moments: this far from each other, in
/// minutes. Multiples of the golden ratio lie nowhere near each other.
const APART: f64 = 0.618_033_988_749_895;

/// Who works on what.
#[derive(Clone)]
pub struct Scene<'a> {
    pub members: Vec<Member>,
    /// What calls take at each of them.
    pub lines: Vec<Line>,
    pub spill_after: Duration,
    /// Jobs in line and in flight at a time.
    pub held: usize,
    /// Calls that all workers together can begin; `None`: any number.
    pub calls_a_second: Option<f64>,
    pub counted: &'a Counted,
    pub answers: &'a Answers,
    /// When it begins, in Unix seconds.
    pub begin: f64,
}

/// One of the ways in which it can go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// The part of the service's minute that is over at the beginning.
    pub phase: f64,
    /// Of the latencies.
    pub seed: u64,
    /// How slow what was learnt of few answers may be in truth: the part of all cases that are faster.
    pub luck: f64,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Course {
    /// Until the last job ended.
    pub seconds: f64,
    /// By deployment, then by model.
    pub used: Vec<Vec<Used>>,
    /// Calls refused for want of quota.
    pub refused: u64,
    pub turned_away: TurnedAway,
}

/// What one deployment did for one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Used {
    pub jobs: u64,
    pub prompt: u64,
    pub completion: u64,
    /// The most that it could have answered.
    pub max_output: u64,
}

/// Jobs that were never called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct TurnedAway {
    /// Larger than a whole minute's quota.
    pub too_large: u64,
    /// Their deadline passed first.
    pub expired: u64,
    /// No deployment serves their model.
    pub not_served: u64,
}

/// A job, and how long its answer will be.
#[derive(Clone, Copy)]
struct Held {
    load: Load,
    tokens: u32,
}

enum Happening {
    /// A call ends: answered, or refused until then.
    End(Held, Booking, RateHeaders, Option<Duration>),
    /// A job's time has come.
    Due(Held),
}

struct Event {
    at: Duration,
    number: u64,
    happening: Happening,
}

struct Wheel<'a> {
    scene: &'a Scene<'a>,
    lines: Vec<Line>,
    loads: Loads,
    has_more: bool,
    admission: Admission<Held>,
    counters: Vec<Counter>,
    /// The counter of each deployment.
    quota_of: Vec<usize>,
    /// Of each model: its lane, and how long its answers are.
    lanes: Vec<Option<LaneIndex>>,
    lengths: Vec<Lengths<'a>>,
    events: BinaryHeap<Reverse<Event>>,
    numbers: u64,
    dice: SmallRng,
    origin: Instant,
    now: Duration,
    held: usize,
    in_flight: usize,
    /// Until when the workers are busy with the calls that they began.
    busy_until: Duration,
    course: Course,
}

/// Lets one trial run to its end.
///
/// # Errors
/// If the temporary file with the jobs fails.
pub fn run(scene: &Scene<'_>, trial: Trial) -> io::Result<Course> {
    let mut wheel = Wheel::new(scene, trial)?;
    loop {
        wheel.fill()?;
        let wake = wheel.admit();
        if wheel.has_more && wheel.held < scene.held {
            // Some were turned away.
            continue;
        }
        let is_waited_for = wheel.held > wheel.in_flight;
        let wake = wake.filter(|_| is_waited_for).map(|at| at.min(wheel.now + LOOK));
        let event = wheel.events.peek().map(|Reverse(event)| event.at);
        let Some(at) = wake.into_iter().chain(event).min() else { break };
        wheel.now = at;
        wheel.happen();
    }
    Ok(wheel.end())
}

impl<'a> Wheel<'a> {
    fn new(scene: &'a Scene<'a>, trial: Trial) -> io::Result<Self> {
        let origin = Instant::now();
        let admission = Admission::new(scene.members.clone(), scene.spill_after, origin);
        let models = &scene.counted.models;
        let (counters, quota_of) = counters(&scene.members, trial.phase);
        let luck = |n: usize| normal_at((trial.luck + APART * n as f64).fract());
        Ok(Self {
            lines: scene.lines.iter().enumerate().map(|(n, line)| line.as_well(luck(n))).collect(),
            loads: scene.counted.spool.read()?,
            has_more: true,
            lanes: models.iter().map(|asked| admission.lane_for(&asked.model)).collect(),
            lengths: models.iter().map(|asked| scene.answers.of(&asked.model)).collect(),
            course: Course {
                used: vec![vec![Used::default(); models.len()]; scene.members.len()],
                ..Course::default()
            },
            admission,
            counters,
            quota_of,
            events: BinaryHeap::new(),
            numbers: 0,
            dice: SmallRng::seed_from_u64(trial.seed),
            origin,
            now: Duration::ZERO,
            held: 0,
            in_flight: 0,
            busy_until: Duration::ZERO,
            scene,
        })
    }

    fn instant(&self, at: Duration) -> Instant {
        self.origin + at
    }

    fn push(&mut self, at: Duration, happening: Happening) {
        self.numbers += 1;
        self.events.push(Reverse(Event { at, number: self.numbers, happening }));
    }

    /// Takes as many jobs as there is room for. Those whose time has not come wait outside, as they do
    /// in the queue.
    fn fill(&mut self) -> io::Result<()> {
        while self.has_more && self.held < self.scene.held {
            let Some(load) = self.loads.next()? else {
                self.has_more = false;
                break;
            };
            let lengths = &mut self.lengths[usize::from(load.model)];
            let tokens = lengths.next(load.estimate.max_output);
            let held = Held { load, tokens };
            let wait = load.not_before.map_or(0.0, |at| at.unix() - self.scene.begin);
            match Duration::try_from_secs_f64(wait).unwrap_or_default() {
                due if due > self.now => self.push(due, Happening::Due(held)),
                _ => self.take(held),
            }
        }
        Ok(())
    }

    fn take(&mut self, held: Held) {
        self.held += 1;
        self.offer(held);
    }

    fn offer(&mut self, held: Held) {
        let now = self.instant(self.now);
        let Held { load, .. } = held;
        let left = |at: super::spool::Second| {
            Duration::try_from_secs_f64(at.unix() - self.scene.begin).unwrap_or_default()
        };
        let ticket = Ticket {
            lane: self.lanes[usize::from(load.model)],
            charge: load.estimate.charge(),
            priority: load.priority,
            deadline: load.deadline.map(|at| self.instant(left(at))),
            since: now,
            avoid: None,
        };
        self.admission.offer(&ticket, held, now);
    }

    /// Starts all that may go now; returns when to look again.
    fn admit(&mut self) -> Option<Duration> {
        loop {
            if self.busy_until >= self.now + TICK {
                return Some(self.busy_until);
            }
            match self.admission.next(self.instant(self.now)) {
                Next::Go(held, booking) => self.call(held, booking),
                Next::Wait(at) => {
                    let at = at?.saturating_duration_since(self.origin);
                    let ticks = at.as_nanos().div_ceil(TICK.as_nanos());
                    let at = Duration::from_nanos_u128(TICK.as_nanos() * ticks);
                    return Some(at.max(self.now + TICK));
                }
                Next::Expired(_) => {
                    self.course.turned_away.expired += 1;
                    self.leave();
                }
                Next::NeverFits(_) => {
                    self.course.turned_away.too_large += 1;
                    self.leave();
                }
                Next::NotServed(_) => {
                    self.course.turned_away.not_served += 1;
                    self.leave();
                }
            }
        }
    }

    fn call(&mut self, held: Held, booking: Booking) {
        self.in_flight += 1;
        if let Some(rate) = self.scene.calls_a_second {
            self.busy_until = self.busy_until.max(self.now) + Duration::from_secs_f64(1.0 / rate);
        }
        let (n, model) = (booking.deployment.0, usize::from(held.load.model));
        let (verdict, told) = self.counters[self.quota_of[n]].book(self.now, booking.charge);
        let (takes, until) = match verdict {
            Ok(()) => {
                let used = &mut self.course.used[n][model];
                used.jobs += 1;
                used.prompt += u64::from(held.load.estimate.prompt);
                used.completion += u64::from(held.tokens);
                used.max_output += u64::from(held.load.estimate.max_output);
                let normal = StandardNormal.sample(&mut self.dice);
                let seconds = self.lines[n].draw(held.tokens, normal);
                (Duration::try_from_secs_f64(seconds).unwrap_or_default(), None)
            }
            Err(wait) => {
                self.course.refused += 1;
                (REFUSAL, Some(self.now + wait))
            }
        };
        self.push(self.now + takes, Happening::End(held, booking, told, until));
    }

    /// All that is due now.
    fn happen(&mut self) {
        while self.events.peek().is_some_and(|Reverse(event)| event.at <= self.now) {
            let Some(Reverse(event)) = self.events.pop() else { return };
            match event.happening {
                Happening::Due(held) => self.take(held),
                Happening::End(held, booking, told, until) => {
                    self.in_flight -= 1;
                    let feedback = match until {
                        None => Feedback::Responded,
                        Some(until) => Feedback::Throttled { until: self.instant(until) },
                    };
                    self.admission.observe(&booking, feedback, &told, self.instant(self.now));
                    match until {
                        None => self.leave(),
                        Some(_) => self.offer(held),
                    }
                }
            }
        }
    }

    fn leave(&mut self) {
        self.held -= 1;
        self.course.seconds = self.now.as_secs_f64();
    }

    /// Some tokens may be left that the very last answers had no room for: they count with the others
    /// of their model, as far as those may be longer.
    fn end(mut self) -> Course {
        for (model, lengths) in self.lengths.iter().enumerate() {
            let mut owed = lengths.owed();
            for used in self.course.used.iter_mut().map(|used| &mut used[model]) {
                let more = owed.min(used.max_output - used.completion);
                used.completion += more;
                owed -= more;
            }
        }
        self.course
    }
}

/// The number that this part of all normally distributed ones lies below.
fn normal_at(part: f64) -> f64 {
    let below = |x: f64| libm::erfc(-x / std::f64::consts::SQRT_2) / 2.0;
    let (mut low, mut high) = (-8.0, 8.0);
    while high - low > 1e-6 {
        let middle = (low + high) / 2.0;
        *if below(middle) < part { &mut low } else { &mut high } = middle;
    }
    low
}

/// The service's counters and which of them each deployment uses: what is one quota to admission is
/// one there.
fn counters(members: &[Member], phase: f64) -> (Vec<Counter>, Vec<usize>) {
    let mut counters = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    let quota_of = members.iter().map(|member| {
        let is_same = !member.quota.is_empty() && member.limits.service != Service::Provisioned;
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
        let phase = (phase + APART * counters.len() as f64).fract();
        counters.push(Counter::new(&limits, MINUTE.mul_f64(phase)));
        counters.len() - 1
    });
    let quota_of = quota_of.collect();
    (counters, quota_of)
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
