//! Admission against the simulator's own accounting, in simulated time: minutes pass in a blink, and
//! no socket is opened.
//!
//! A [`Scene`] has deployments that differ as services do, and always jobs in line. Calls take time
//! to arrive, are judged and booked there in the order of their arrival, and their ends come back
//! in another one.

mod report;
mod run;

use std::time::Duration;

use promptmill::admission::deployment::DeploymentLimits as Told;
use promptmill::simulator::{DutyCycle, MeterRules};

pub use report::{Report, Used};

const WINDOW: Duration = Duration::from_secs(60);

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
    /// How it counts tokens, and what its answers say of it.
    pub rules: MeterRules,
    /// The slice in which it judges requests.
    pub slice: Duration,
    /// The mean part of an estimate that an answer really uses, from half of it to half as much
    /// again. Meters that count estimates ignore it.
    pub used_part: f64,
    /// The mean time of a call.
    pub latency: Duration,
    /// The share of calls that fail, half of them before anything is booked.
    pub faults: f64,
    /// All calls fail between these.
    pub outage: Option<(Duration, Duration)>,
    /// Its quota from then on.
    pub changes: Vec<(Duration, u64)>,
    /// Its rules from then on.
    pub rule_changes: Vec<(Duration, MeterRules)>,
    /// Tokens a second that others book.
    pub others: u64,
    /// When they do.
    pub other_bursts: DutyCycle,
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
            rules: MeterRules::DOCUMENTED,
            slice: Duration::from_secs(1),
            used_part: 0.5,
            latency: Duration::from_secs(2),
            faults: 0.0,
            outage: None,
            changes: Vec::new(),
            rule_changes: Vec::new(),
            others: 0,
            other_bursts: DutyCycle::ALWAYS,
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

/// Services, and what is asked of them.
pub struct Scene {
    pub services: Vec<Service>,
    pub sizes: Sizes,
    pub spill_after: Duration,
    /// The part of each quota that this instance may use, changed at a time.
    pub shares: Vec<(Duration, f64)>,
    /// So many jobs and no more.
    pub jobs: Option<u64>,
}

impl Scene {
    pub fn of(services: Vec<Service>) -> Self {
        let spill_after = Duration::from_secs(5);
        Self { services, sizes: Sizes::Even(1_000), spill_after, shares: Vec::new(), jobs: None }
    }

    pub fn sized(self, sizes: Sizes) -> Self {
        Self { sizes, ..self }
    }

    /// Lets so many minutes pass, or less where its jobs are done before.
    pub fn run(self, minutes: u32) -> Report {
        run::run(self, WINDOW * minutes)
    }
}
