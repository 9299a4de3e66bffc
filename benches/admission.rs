//! What admission costs a job, on the thread that owns it: with 100,000 jobs in line and twenty
//! deployments, a job comes in, one goes out, and one call ends.

use std::hint::black_box;
use std::time::Duration;

use cpu_time::ThreadTime;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use promptmill::admission::deployment::{CallFeedback, DeploymentLimits};
use promptmill::admission::{Admission, AdmissionDecision, AdmissionTicket, Booking, PoolMember};
use promptmill::headers::RateHeaders;
use tokio::time::Instant;

const IN_LINE: u64 = 100_000;
const DEPLOYMENTS: usize = 20;

/// Simulated time between two jobs.
const STEP: Duration = Duration::from_micros(500);

/// Calls under way at any time.
const IN_FLIGHT: usize = 400;

struct Wheel {
    admission: Admission<u64>,
    ticket: AdmissionTicket,
    now: Instant,
    under_way: std::collections::VecDeque<Booking>,
    jobs: u64,
}

impl Wheel {
    /// `tpm`: the quota of each deployment.
    fn new(tpm: Option<u64>) -> Self {
        let limits = DeploymentLimits { tpm, concurrency: 64, ..DeploymentLimits::default() };
        let member = |n: usize| PoolMember {
            name: format!("d{n}"),
            tier: (n % 2) as u8,
            limits: limits.clone(),
            ..PoolMember::default()
        };
        let now = Instant::now();
        let members = (0..DEPLOYMENTS).map(member).collect();
        let admission = Admission::new(members, Duration::ZERO, now);
        let ticket = AdmissionTicket {
            group: admission.group_for("gpt-4.1"),
            charge: 0,
            priority: 0,
            deadline: None,
            since: now,
            avoid: None,
            excluded: Default::default(),
            tag: Default::default(),
        };
        let under_way = std::collections::VecDeque::new();
        let mut wheel = Self { admission, ticket, now, under_way, jobs: 0 };
        (0..IN_LINE).for_each(|_| wheel.offer());
        wheel
    }

    fn offer(&mut self) {
        self.jobs += 1;
        self.ticket.charge = 50 + self.jobs.wrapping_mul(0x9E37_79B9) % 7_950;
        self.ticket.since = self.now;
        self.admission.offer(&self.ticket, self.jobs, self.now);
    }

    fn end_one(&mut self) {
        if let Some(booking) = self.under_way.pop_front() {
            let told = RateHeaders {
                limit_tokens: Some(6_000_000),
                remaining_tokens: Some(3_000_000),
                reset_tokens: Some(Duration::from_secs(30)),
                ..RateHeaders::default()
            };
            self.admission.observe(&booking, CallFeedback::Responded, black_box(&told), self.now);
        }
    }

    /// Until one job went.
    fn turn(&mut self) {
        loop {
            self.now += STEP;
            if self.under_way.len() >= IN_FLIGHT {
                self.end_one();
            }
            match self.admission.next(self.now) {
                AdmissionDecision::Go(job, booking) => {
                    black_box(job);
                    self.under_way.push_back(booking);
                    return self.offer();
                }
                AdmissionDecision::Wait(at) => {
                    self.now = at.unwrap_or(self.now);
                    self.end_one();
                }
                _ => unreachable!("every job fits"),
            }
        }
    }
}

fn admission(c: &mut Criterion) {
    let mut group = c.benchmark_group("admission, 100,000 jobs in line, 20 deployments");
    group.throughput(Throughput::Elements(1));
    for (name, tpm) in [("quota to spare", Some(600_000_000)), ("quota used up", Some(6_000_000))] {
        let mut wheel = Wheel::new(tpm);
        group.bench_function(name, |b| {
            b.iter_custom(|turns| {
                // Whatever else the machine does.
                let began = ThreadTime::now();
                (0..turns).for_each(|_| wheel.turn());
                began.elapsed()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, admission);
criterion_main!(benches);
