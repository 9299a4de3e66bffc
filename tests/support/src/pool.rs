//! Admission against the simulator's own accounting, in simulated time: minutes pass in a blink, and
//! no socket is opened.
//!
//! A [`Scene`] has deployments that differ as services do, and always jobs in line. Calls take time
//! to arrive, are judged and booked there in the order of their arrival, and their ends come back
//! in another one.

use std::collections::BTreeMap;
use std::time::Duration;

use promptmill::admission::deployment::{CallFeedback, DeploymentLimits as Told};
use promptmill::admission::{
    Admission, AdmissionDecision, AdmissionTicket, Booking, DeploymentIndex, PoolMember,
};
use promptmill::headers::RateHeaders;
use promptmill::simulator::bucket::LeakyBucket;
use promptmill::simulator::quota::{QuotaLimits, QuotaVerdict, ServiceQuota};
use tokio::time::Instant;

const WINDOW: Duration = Duration::from_secs(60);
const SLICE: Duration = Duration::from_secs(1);

/// The way to a service.
const NETWORK: Duration = Duration::from_millis(15);

/// Timers are no finer than this.
const TICK: Duration = Duration::from_millis(1);

/// Jobs in line at any time.
const IN_LINE: usize = 500;

/// One service behind a deployment.
pub struct Service {
    /// What promptmill is told of it.
    pub told: Told,
    pub tier: u8,
    pub tpm: u64,
    pub rpm: Option<u64>,
    /// Its charge for one token of ours.
    pub factor: f64,
    /// Provisioned: a bucket that leaks so fast, of 10 s.
    pub ptu: bool,
    /// Its answers say what it knows.
    pub headers: bool,
    /// The mean time of a call.
    pub latency: Duration,
    /// The share of calls that fail, half of them before anything is booked.
    pub faults: f64,
    /// All calls fail between these.
    pub outage: Option<(Duration, Duration)>,
    /// Its quota from then on.
    pub changes: Vec<(Duration, u64)>,
    /// Tokens a second that others book.
    pub others: u64,
    /// How far its window is when the scene begins.
    pub phase: Duration,
    /// The flex tier: room for so long of each period, and the service whose quota it uses.
    pub flex: Option<Flex>,
}

#[derive(Clone, Copy)]
pub struct Flex {
    pub room: Duration,
    pub period: Duration,
    pub quota_of: usize,
}

impl Flex {
    fn has_room(self, at: Duration) -> bool {
        at.as_nanos() % self.period.as_nanos() < self.room.as_nanos()
    }
}

impl Default for Service {
    fn default() -> Self {
        Self {
            told: Told { tpm: Some(300_000), ..Told::default() },
            tier: 0,
            tpm: 300_000,
            rpm: None,
            factor: 1.0,
            ptu: false,
            headers: true,
            latency: Duration::from_secs(2),
            faults: 0.0,
            outage: None,
            changes: Vec::new(),
            others: 0,
            phase: Duration::from_millis(17_300),
            flex: None,
        }
    }
}

/// What jobs are charged.
#[derive(Clone, Copy)]
pub enum Sizes {
    Even(u64),
    /// From the first to the second, as many small as large by their logarithm.
    Mixed(u64, u64),
}

/// What came of a scene.
#[derive(Debug, Default)]
pub struct Report {
    pub services: Vec<Used>,
    pub succeeded: u64,
    /// Calls throttled (429).
    pub refused: u64,
    /// Calls refused for want of room on a flex tier.
    pub no_room: u64,
    /// Jobs that were offered and are neither done nor anywhere.
    pub lost: i64,
}

/// What was used of one service.
#[derive(Debug, Clone)]
pub struct Used {
    /// The part of the quota that our calls booked, by whole window.
    pub windows: Vec<f64>,
}

impl Used {
    /// The mean over whole windows, from one of them on.
    pub fn from(&self, first: usize) -> f64 {
        let windows = &self.windows[first..];
        windows.iter().sum::<f64>() / windows.len() as f64
    }
}

impl Report {
    /// Refusals by success.
    pub fn refusals(&self) -> f64 {
        self.refused as f64 / self.succeeded as f64
    }
}

/// Services, and what is asked of them.
pub struct Scene {
    pub services: Vec<Service>,
    pub sizes: Sizes,
    pub spill_after: Duration,
    /// The part of each quota that this instance may use, changed at a time.
    pub shares: Vec<(Duration, f64)>,
}

impl Scene {
    pub fn of(services: Vec<Service>) -> Self {
        let spill_after = Duration::from_secs(5);
        Self { services, sizes: Sizes::Even(1_000), spill_after, shares: Vec::new() }
    }

    pub fn sized(self, sizes: Sizes) -> Self {
        Self { sizes, ..self }
    }

    /// Lets so many minutes pass.
    pub fn run(self, minutes: u32) -> Report {
        let until = WINDOW * minutes;
        let mut run = Run::new(self);
        run.fill();
        while let Some((at, event)) = run.next_event() {
            if at > until {
                break;
            }
            run.now = at;
            run.happen(event);
            run.admit();
        }
        run.report()
    }
}

enum Event {
    Wake,
    Arrive(Booking, u64),
    End(Booking, u64, CallFeedback, RateHeaders),
    Retry(u64, usize),
    Others(usize),
    Quota(usize, u64),
    Share(f64),
}

struct Run {
    scene: Scene,
    start: Instant,
    now: Duration,
    admission: Admission<u64>,
    quotas: Vec<ServiceQuota>,
    buckets: Vec<LeakyBucket>,
    /// Charged by our own calls, by service and window.
    charged: Vec<BTreeMap<u64, (u64, u64)>>,
    events: BTreeMap<(Duration, u64), Event>,
    numbers: u64,
    /// The one timer.
    wake: Option<(Duration, u64)>,
    dice: u64,
    waiting: usize,
    under_way: i64,
    report: Report,
}

impl Run {
    fn new(scene: Scene) -> Self {
        let start = Instant::now();
        let member = |(n, s): (usize, &Service)| PoolMember {
            name: format!("d{n}"),
            tier: s.tier,
            limits: s.told.clone(),
            quota: format!("q{}", s.flex.map_or(n, |flex| flex.quota_of)),
            ..PoolMember::default()
        };
        let members = scene.services.iter().enumerate().map(member).collect();
        let quota = |s: &Service| {
            ServiceQuota::new(QuotaLimits { tpm: Some(s.tpm), rpm: s.rpm }, WINDOW, SLICE)
        };
        let bucket = |s: &Service| LeakyBucket::new(s.phase, s.tpm, Duration::from_secs(10));
        let mut run = Self {
            admission: Admission::new(members, scene.spill_after, start),
            quotas: scene.services.iter().map(quota).collect(),
            buckets: scene.services.iter().map(bucket).collect(),
            charged: scene.services.iter().map(|_| BTreeMap::new()).collect(),
            start,
            now: Duration::ZERO,
            events: BTreeMap::new(),
            numbers: 0,
            wake: None,
            dice: 7,
            waiting: 0,
            under_way: 0,
            report: Report::default(),
            scene,
        };
        for n in 0..run.scene.services.len() {
            if run.scene.services[n].others > 0 {
                run.plan(Duration::ZERO, Event::Others(n));
            }
            for (at, tpm) in run.scene.services[n].changes.clone() {
                run.plan(at, Event::Quota(n, tpm));
            }
        }
        for (at, share) in run.scene.shares.clone() {
            run.plan(at, Event::Share(share));
        }
        run.plan(Duration::ZERO, Event::Wake);
        run
    }

    fn plan(&mut self, at: Duration, event: Event) {
        self.numbers += 1;
        self.events.insert((at.max(self.now), self.numbers), event);
    }

    fn next_event(&mut self) -> Option<(Duration, Event)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }

    /// From 0 to 1.
    fn roll(&mut self) -> f64 {
        self.dice = self.dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn fill(&mut self) {
        while self.waiting < IN_LINE {
            let charge = match self.scene.sizes {
                Sizes::Even(charge) => charge,
                Sizes::Mixed(least, most) => {
                    let (least, most) = (least as f64, most as f64);
                    (least * (most / least).powf(self.roll())) as u64
                }
            };
            self.offer(charge, None);
        }
    }

    fn offer(&mut self, charge: u64, avoid: Option<usize>) {
        let now = self.start + self.now;
        let ticket = AdmissionTicket {
            group: self.admission.group_for("m"),
            charge,
            priority: 0,
            deadline: None,
            since: now,
            avoid: avoid.map(DeploymentIndex),
        };
        self.waiting += 1;
        self.admission.offer(&ticket, charge, now);
    }

    fn admit(&mut self) {
        loop {
            match self.admission.next(self.start + self.now) {
                AdmissionDecision::Go(charge, booking) => {
                    self.waiting -= 1;
                    self.under_way += 1;
                    let jitter = NETWORK.mul_f64(self.roll());
                    self.plan(self.now + NETWORK + jitter, Event::Arrive(booking, charge));
                    self.fill();
                }
                AdmissionDecision::Wait(Some(at)) => {
                    let at = at.saturating_duration_since(self.start).max(self.now);
                    let ticks = at.as_nanos().div_ceil(TICK.as_nanos()) as u32;
                    let at = (TICK * ticks).max(self.now + TICK);
                    if let Some(set) = self.wake.take() {
                        self.events.remove(&set);
                    }
                    self.plan(at, Event::Wake);
                    self.wake = Some((at, self.numbers));
                    return;
                }
                AdmissionDecision::Wait(None) => return,
                other => panic!("{other:?}"),
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.start + self.now;
        match event {
            Event::Wake => {}
            Event::Arrive(booking, charge) => self.arrive(booking, charge),
            Event::End(booking, charge, feedback, told) => {
                self.under_way -= 1;
                let back = match &feedback {
                    CallFeedback::Responded => {
                        self.report.succeeded += 1;
                        None
                    }
                    CallFeedback::Throttled { .. } => Some((Duration::ZERO, usize::MAX)),
                    _ => Some((Duration::from_secs(1), booking.deployment.0)),
                };
                self.admission.observe(&booking, feedback, &told, now);
                match back {
                    None => {}
                    Some((wait, avoid)) => {
                        self.under_way += 1;
                        self.plan(self.now + wait, Event::Retry(charge, avoid));
                    }
                }
            }
            Event::Retry(charge, avoid) => {
                self.under_way -= 1;
                self.offer(charge, (avoid != usize::MAX).then_some(avoid));
            }
            Event::Others(n) => {
                let phase = self.scene.services[n].phase;
                self.quotas[n].admit(self.now + phase, self.scene.services[n].others / 4);
                self.plan(self.now + Duration::from_millis(250), Event::Others(n));
            }
            Event::Quota(n, tpm) => {
                let limits = QuotaLimits { tpm: Some(tpm), rpm: self.scene.services[n].rpm };
                self.scene.services[n].tpm = tpm;
                let phase = self.scene.services[n].phase;
                self.quotas[n].set_limits(self.now + phase, limits);
            }
            Event::Share(share) => {
                for n in 0..self.scene.services.len() {
                    self.admission.set_share(DeploymentIndex(n), share, now);
                }
            }
        }
    }

    /// The service judges a call.
    fn arrive(&mut self, booking: Booking, charge: u64) {
        let n = booking.deployment.0;
        let (fault, speed) = (self.roll(), 0.5 + self.roll() + self.roll().powi(8) * 3.0);
        let at = self.now + self.scene.services[n].phase;
        let service = &self.scene.services[n];
        let down = service.outage.is_some_and(|(from, to)| (from..to).contains(&self.now));
        let faulted = CallFeedback::Transient { why: "503".into() };
        if down || fault < service.faults / 2.0 {
            let end = Event::End(booking, charge, faulted, RateHeaders::default());
            return self.plan(self.now + NETWORK * 2, end);
        }
        let cost = (charge as f64 * service.factor).ceil() as u64;
        let (flex, latency) = (service.flex, service.latency.mul_f64(speed));
        let no_room = flex.is_some_and(|flex| !flex.has_room(self.now));
        let booked_at = flex.map_or(n, |flex| flex.quota_of);
        let verdict = if no_room {
            self.report.no_room += 1;
            QuotaVerdict::TokensFull { retry_after: Duration::ZERO }
        } else if service.ptu {
            match self.buckets[n].admit(at, cost) {
                Ok(()) => QuotaVerdict::Admitted,
                Err(retry_after) => QuotaVerdict::TokensFull { retry_after },
            }
        } else {
            self.quotas[booked_at].admit(at, cost)
        };
        let standing = self.quotas[booked_at].status(at);
        let told = RateHeaders {
            limit_tokens: standing.limits.tpm,
            limit_requests: standing.limits.rpm,
            remaining_tokens: standing.remaining_tokens.filter(|left| *left > 0),
            reset_tokens: Some(Duration::from_secs(
                standing.reset_tokens.as_secs_f64().ceil() as u64
            )),
            utilisation: None,
        };
        let told = match (service.ptu, service.headers) {
            (true, _) => RateHeaders {
                utilisation: Some(self.buckets[n].utilization(at)),
                ..RateHeaders::default()
            },
            (false, true) => told,
            (false, false) => RateHeaders::default(),
        };
        match verdict {
            QuotaVerdict::Admitted => {
                let window = (at.as_nanos() / WINDOW.as_nanos()) as u64;
                let charged = self.charged[n].entry(window).or_default();
                *charged = (charged.0 + cost, self.scene.services[n].tpm);
                let answer = (CallFeedback::Responded, told);
                let failed = fault < self.scene.services[n].faults;
                let (feedback, told) =
                    if failed { (faulted, RateHeaders::default()) } else { answer };
                self.plan(self.now + latency, Event::End(booking, charge, feedback, told));
            }
            QuotaVerdict::TokensFull { retry_after }
            | QuotaVerdict::RequestsFull { retry_after } => {
                self.report.refused += u64::from(!no_room);
                let until = self.start + self.now + NETWORK + retry_after;
                let end = Event::End(booking, charge, CallFeedback::Throttled { until }, told);
                self.plan(self.now + NETWORK, end);
            }
        }
    }

    fn report(mut self) -> Report {
        for (n, charged) in self.charged.iter().enumerate() {
            let last = ((self.now + self.scene.services[n].phase).as_secs() / 60).max(1);
            // The first and the last window are not whole.
            let windows = (1..last).map(|window| {
                let (charged, quota) = charged.get(&window).copied().unwrap_or((0, 1));
                charged as f64 / quota as f64
            });
            self.report.services.push(Used { windows: windows.collect() });
        }
        let here = (self.admission.drain().len() + self.admission.in_flight()) as i64;
        let retries = self.events.values().filter(|e| matches!(e, Event::Retry(..))).count() as i64;
        self.report.lost = self.waiting as i64 + self.under_way - here - retries;
        self.report
    }
}
