//! The event loop of a scene.

use std::collections::BTreeMap;
use std::time::Duration;

use promptmill::admission::deployment::CallFeedback;
use promptmill::admission::{
    Admission, AdmissionDecision, AdmissionTicket, Booking, DeploymentIndex, PoolMember,
};
use promptmill::headers::RateHeaders;
use promptmill::simulator::bucket::LeakyBucket;
use promptmill::simulator::quota::ServiceQuota;
use promptmill::simulator::quota_status::{QuotaLimits, QuotaVerdict};
use promptmill::simulator::rate_report::{RateReport, ReportedEnd};
use promptmill::simulator::{ForeignTraffic, MeterKind, MeterRules};
use tokio::time::Instant;

use super::{Report, Scene, Service, Sizes, Used, WINDOW};

/// The way to a service.
const NETWORK: Duration = Duration::from_millis(15);

/// Timers are no finer than this.
const TICK: Duration = Duration::from_millis(1);

/// Jobs in line at any time.
const IN_LINE: usize = 500;

/// Lets a scene happen until then.
pub fn run(scene: Scene, until: Duration) -> Report {
    let mut run = Run::new(scene);
    run.fill();
    run.admit();
    while let Some((at, event)) = run.next_event() {
        if at > until || run.report.succeeded >= run.scene.jobs.unwrap_or(u64::MAX) {
            break;
        }
        run.now = at;
        run.happen(event);
        run.admit();
    }
    run.report()
}

/// What a client reads of the headers.
fn headers(report: &RateReport) -> RateHeaders {
    let count = |number: Option<i64>| number.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
    RateHeaders {
        limit_tokens: count(report.limit_tokens),
        limit_requests: count(report.limit_requests),
        remaining_tokens: count(report.remaining_tokens),
        reset_tokens: count(report.reset_tokens).map(Duration::from_secs),
        utilisation: None,
    }
}

enum Event {
    Wake,
    Arrive(Booking, u64),
    End(Booking, u64, CallFeedback, RateHeaders),
    Retry(u64, usize),
    Quota(usize, u64),
    Rules(usize, MeterRules),
    Share(f64),
}

struct Run {
    scene: Scene,
    start: Instant,
    now: Duration,
    admission: Admission<u64>,
    quotas: Vec<ServiceQuota>,
    buckets: Vec<LeakyBucket>,
    /// Admitted of our own calls on lanes that share a quota, by service and window.
    charged: Vec<BTreeMap<u64, u64>>,
    /// When each window of a service was seen first.
    seen: Vec<BTreeMap<u64, Duration>>,
    events: BTreeMap<(Duration, u64), Event>,
    numbers: u64,
    /// The one timer.
    wake: Option<(Duration, u64)>,
    dice: u64,
    offered: u64,
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
            let limits = QuotaLimits { tpm: Some(s.tpm), rpm: s.rpm };
            let mut quota = ServiceQuota::new(limits, WINDOW, s.slice);
            quota.set_rules(s.phase, s.rules);
            let others = ForeignTraffic { tpm: s.others * 60, bursts: s.other_bursts };
            quota.set_foreign_traffic(s.phase, (s.others > 0).then_some(others));
            quota
        };
        let bucket = |s: &Service| LeakyBucket::new(s.phase, s.tpm, Duration::from_secs(10));
        let mut run = Self {
            admission: Admission::new(members, scene.spill_after, start),
            quotas: scene.services.iter().map(quota).collect(),
            buckets: scene.services.iter().map(bucket).collect(),
            charged: scene.services.iter().map(|_| BTreeMap::new()).collect(),
            seen: scene.services.iter().map(|_| BTreeMap::new()).collect(),
            start,
            now: Duration::ZERO,
            events: BTreeMap::new(),
            numbers: 0,
            wake: None,
            dice: 7,
            offered: 0,
            waiting: 0,
            under_way: 0,
            report: Report::default(),
            scene,
        };
        for n in 0..run.scene.services.len() {
            for (at, rules) in run.scene.services[n].rule_changes.clone() {
                run.plan(at, Event::Rules(n, rules));
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
        while self.waiting < IN_LINE && self.scene.jobs.is_none_or(|jobs| self.offered < jobs) {
            self.offered += 1;
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
            excluded: Default::default(),
            tag: Default::default(),
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
            Event::End(booking, charge, feedback, mut told) => {
                self.under_way -= 1;
                let n = booking.deployment.0;
                let service = &self.scene.services[n];
                if feedback == CallFeedback::Responded && service.rules.reports_at_the_end() {
                    let at = self.now + service.phase;
                    told = headers(&self.quotas[n].report(at, ReportedEnd::Success));
                }
                let back = match &feedback {
                    CallFeedback::Responded => {
                        self.report.succeeded += 1;
                        self.report.ended = self.now;
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
            Event::Rules(n, rules) => {
                let phase = self.scene.services[n].phase;
                self.scene.services[n].rules = rules;
                self.quotas[n].set_rules(self.now + phase, rules);
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
        let end = match verdict {
            QuotaVerdict::Admitted => ReportedEnd::Success,
            QuotaVerdict::GatewayFull { .. } => ReportedEnd::ThrottledByGateway,
            _ => ReportedEnd::Throttled,
        };
        let told = if service.ptu {
            let utilisation = Some(self.buckets[n].utilization(at));
            RateHeaders { utilisation, ..RateHeaders::default() }
        } else {
            headers(&self.quotas[booked_at].report(at, end))
        };
        let counted = self.quotas[booked_at].windows().last().map(|window| window.index);
        let by_clock = at.as_secs() / WINDOW.as_secs();
        let window = counted.filter(|_| !service.ptu).unwrap_or(by_clock);
        self.seen[n].entry(window).or_insert(self.now);
        match verdict {
            QuotaVerdict::Admitted => {
                *self.charged[n].entry(window).or_default() += cost;
                let part = self.scene.services[n].used_part * (0.5 + speed.fract());
                let used = (cost as f64 * part.min(1.0)) as u64;
                self.quotas[booked_at].settle(at, at + latency, cost, used);
                self.report.most_in_flight =
                    self.report.most_in_flight.max(self.admission.in_flight());
                let answer = (CallFeedback::Responded, told);
                let failed = fault < self.scene.services[n].faults;
                let (feedback, told) =
                    if failed { (faulted, RateHeaders::default()) } else { answer };
                self.plan(self.now + latency, Event::End(booking, charge, feedback, told));
            }
            QuotaVerdict::TokensFull { retry_after }
            | QuotaVerdict::GatewayFull { retry_after }
            | QuotaVerdict::RequestsFull { retry_after } => {
                self.report.refused += u64::from(!no_room);
                let throttled =
                    CallFeedback::Throttled { asked: Some(retry_after), why: String::new() };
                let end = Event::End(booking, charge, throttled, told);
                self.plan(self.now + NETWORK, end);
            }
        }
    }

    /// What was used of a service. The first and the last window are not whole, but those that
    /// begin with the first request are, but for the last.
    fn used(&mut self, n: usize) -> Used {
        let service = &self.scene.services[n];
        let lanes = service.flex.map_or(n, |flex| flex.quota_of);
        let mut lanes_of_it = self.scene.services.iter().filter_map(|other| other.flex);
        let is_shared = service.flex.is_some() || lanes_of_it.any(|flex| flex.quota_of == n);
        let is_own = service.ptu || is_shared;
        let by_first = service.rules.kind == MeterKind::FirstRequestWindow;
        self.quotas[lanes].status(self.now + service.phase);
        let windows: BTreeMap<u64, _> =
            self.quotas[lanes].windows().map(|w| (w.index, w.clone())).collect();
        let last = match by_first {
            true => windows.keys().last().copied().unwrap_or(0),
            false => (self.now + service.phase).as_secs() / WINDOW.as_secs(),
        };
        let mut used = Used { windows: Vec::new(), tokens: Vec::new(), seen: Vec::new() };
        for index in u64::from(!by_first)..last.max(1) {
            let quota = windows.get(&index).and_then(|w| w.quota).unwrap_or(service.tpm);
            let own = self.charged[n].get(&index).copied().unwrap_or(0);
            let counted = windows.get(&index).map_or(0, |w| w.charged);
            let tokens = if is_own { own } else { counted };
            used.windows.push(tokens as f64 / quota as f64);
            used.tokens.push(tokens);
            used.seen.push(self.seen[n].get(&index).copied().unwrap_or_default());
        }
        used
    }

    fn report(mut self) -> Report {
        for n in 0..self.scene.services.len() {
            let used = self.used(n);
            self.report.services.push(used);
        }
        let here = (self.admission.drain().len() + self.admission.in_flight()) as i64;
        let retries = self.events.values().filter(|e| matches!(e, Event::Retry(..))).count() as i64;
        self.report.lost = self.waiting as i64 + self.under_way - here - retries;
        self.report
    }
}
