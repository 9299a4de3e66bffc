//! Random faults and latency of a request.
//!
//! Pure and stateless: each draw is a function of the seed, the prompt and the number of attempts
//! already decided for this prompt. So the same load meets the same faults in any order of arrival,
//! and a retry draws anew. `judge` draws, `audit_ledger` counts.

use std::time::Duration;

use serde::Serialize;

/// Rate of each fault, as a share of requests between 0 and 1. Their sum is at most 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct FaultRates {
    /// Rate of 429 from a busy service, not from the caller's quota. Nothing is booked.
    pub rate_429: f64,
    pub rate_500: f64,
    pub rate_503: f64,
    pub rate_408: f64,
    /// Rate of connection resets before anything is booked or answered.
    pub rate_reset_before: f64,
    /// Rate of connection resets after the work was done and billed: the answer is lost.
    pub rate_reset_after: f64,
    /// Rate of hangs: the work is done and billed, but no byte of the answer ever comes.
    pub rate_hang: f64,
    /// Rate of answers that break off in the middle. They are billed.
    pub rate_truncate: f64,
}

impl FaultRates {
    /// Spreads a total rate evenly over the common faults of a network and a service: 500, 503,
    /// 408, resets before and after the work, and truncated answers. No hangs, because each costs
    /// a client's whole time-out; no 429, because that is no fault of a request.
    pub fn spread(total: f64) -> Self {
        let mut faults = Self::default();
        for fault in Self::SPREAD {
            *faults.rate_mut(fault) = total / Self::SPREAD.len() as f64;
        }
        faults
    }

    /// Faults among which [`FaultRates::spread`] divides the total.
    pub const SPREAD: [InjectedFault; 6] = [
        InjectedFault::Internal,
        InjectedFault::Unavailable,
        InjectedFault::Timeout,
        InjectedFault::ResetBefore,
        InjectedFault::ResetAfter,
        InjectedFault::Truncate,
    ];

    pub fn rate(mut self, fault: InjectedFault) -> f64 {
        *self.rate_mut(fault)
    }

    pub fn rate_mut(&mut self, fault: InjectedFault) -> &mut f64 {
        match fault {
            InjectedFault::Busy => &mut self.rate_429,
            InjectedFault::Internal => &mut self.rate_500,
            InjectedFault::Unavailable => &mut self.rate_503,
            InjectedFault::Timeout => &mut self.rate_408,
            InjectedFault::ResetBefore => &mut self.rate_reset_before,
            InjectedFault::ResetAfter => &mut self.rate_reset_after,
            InjectedFault::Hang => &mut self.rate_hang,
            InjectedFault::Truncate => &mut self.rate_truncate,
        }
    }

    /// Returns true if each rate is from 0 to 1 and their sum is at most 1.
    pub fn are_valid(&self) -> bool {
        let rates = self.table().map(|(rate, _)| rate);
        // Rates that add up to 1 can come to a little more by rounding.
        rates.iter().all(|rate| (0.0..=1.0).contains(rate))
            && rates.iter().sum::<f64>() <= 1.000_001
    }

    fn table(&self) -> [(f64, InjectedFault); 8] {
        [
            (self.rate_429, InjectedFault::Busy),
            (self.rate_500, InjectedFault::Internal),
            (self.rate_503, InjectedFault::Unavailable),
            (self.rate_408, InjectedFault::Timeout),
            (self.rate_reset_before, InjectedFault::ResetBefore),
            (self.rate_reset_after, InjectedFault::ResetAfter),
            (self.rate_hang, InjectedFault::Hang),
            (self.rate_truncate, InjectedFault::Truncate),
        ]
    }
}

/// Kind of injected fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InjectedFault {
    Busy,
    Internal,
    Unavailable,
    Timeout,
    ResetBefore,
    ResetAfter,
    Hang,
    Truncate,
}

impl InjectedFault {
    /// Returns true if it occurs before the quota is checked.
    pub fn is_before_booking(self) -> bool {
        matches!(self, Self::Busy | Self::ResetBefore)
    }

    /// Returns true if the service did the work, and so bills it.
    pub fn is_billed(self) -> bool {
        matches!(self, Self::ResetAfter | Self::Hang | Self::Truncate)
    }
}

/// Number of occurrences of each fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FaultCounts {
    #[serde(rename = "429")]
    pub busy: u64,
    #[serde(rename = "500")]
    pub internal: u64,
    #[serde(rename = "503")]
    pub unavailable: u64,
    #[serde(rename = "408")]
    pub timeout: u64,
    pub reset_before: u64,
    pub reset_after: u64,
    pub hang: u64,
    pub truncate: u64,
}

impl FaultCounts {
    pub fn count(&mut self, fault: InjectedFault) {
        *match fault {
            InjectedFault::Busy => &mut self.busy,
            InjectedFault::Internal => &mut self.internal,
            InjectedFault::Unavailable => &mut self.unavailable,
            InjectedFault::Timeout => &mut self.timeout,
            InjectedFault::ResetBefore => &mut self.reset_before,
            InjectedFault::ResetAfter => &mut self.reset_after,
            InjectedFault::Hang => &mut self.hang,
            InjectedFault::Truncate => &mut self.truncate,
        } += 1;
    }

    pub fn add(&mut self, other: &Self) {
        self.busy += other.busy;
        self.internal += other.internal;
        self.unavailable += other.unavailable;
        self.timeout += other.timeout;
        self.reset_before += other.reset_before;
        self.reset_after += other.reset_after;
        self.hang += other.hang;
        self.truncate += other.truncate;
    }
}

/// Latency of answers: `(base + per token × output tokens)` times a log-normal factor of median 1,
/// which gives the long tail that real services have. All zero answers at once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SimulatedLatency {
    /// Milliseconds before the first token.
    pub base_ms: f64,
    /// Milliseconds for each output token.
    pub per_token_ms: f64,
    /// Standard deviation of the factor's logarithm: 0 is no spread, 0.5 a pronounced tail.
    pub sigma: f64,
}

/// Timing of one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SimulatedTiming {
    pub first_token: Duration,
    /// Time after the first token, spread over the output.
    pub output: Duration,
}

impl SimulatedTiming {
    pub fn total(self) -> Duration {
        self.first_token + self.output
    }
}

/// Deterministic random numbers of one request.
#[derive(Debug, Clone, Copy)]
pub struct PromptRng {
    state: u64,
}

impl PromptRng {
    /// Seeds the generator; `attempt` counts the attempts already decided for this prompt.
    pub fn new(seed: u64, prompt: u64, attempt: u32) -> Self {
        Self { state: mix(mix(seed) ^ prompt) ^ mix(u64::from(attempt)) }
    }

    pub fn fault(&mut self, faults: &FaultRates) -> Option<InjectedFault> {
        let roll = self.unit();
        let mut bound = 0.0;
        faults.table().into_iter().find_map(|(rate, fault)| {
            bound += rate;
            (roll < bound).then_some(fault)
        })
    }

    pub fn timing(&mut self, latency: &SimulatedLatency, output_tokens: u32) -> SimulatedTiming {
        let factor = if latency.sigma > 0.0 { (latency.sigma * self.normal()).exp() } else { 1.0 };
        let ms = |ms: f64| Duration::from_secs_f64((ms * factor / 1_000.0).clamp(0.0, 86_400.0));
        let output = latency.per_token_ms * f64::from(output_tokens);
        SimulatedTiming { first_token: ms(latency.base_ms), output: ms(output) }
    }

    /// Draws an integer from 1 to `most`.
    pub fn one_to(&mut self, most: u32) -> u32 {
        1 + (self.unit() * f64::from(most)) as u32
    }

    fn normal(&mut self) -> f64 {
        // Box and Muller; 1 - unit is never 0, so the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Draws uniformly from 0 to below 1.
    fn unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.state) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Finaliser of SplitMix64: every bit of the input flips about half of the output's.
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn struck(faults: &FaultRates, prompts: u64) -> FaultCounts {
        let mut counts = FaultCounts::default();
        for prompt in 0..prompts {
            if let Some(fault) = PromptRng::new(7, prompt, 0).fault(faults) {
                counts.count(fault);
            }
        }
        counts
    }

    #[test]
    fn faults_strike_at_their_rates() {
        let counts = struck(&FaultRates::spread(0.06), 100_000);
        for (name, count) in [
            ("500", counts.internal),
            ("503", counts.unavailable),
            ("408", counts.timeout),
            ("reset before", counts.reset_before),
            ("reset after", counts.reset_after),
            ("truncate", counts.truncate),
        ] {
            assert!((850..1_150).contains(&count), "{name}: {count} of 1,000 expected");
        }
        assert_eq!((counts.hang, counts.busy), (0, 0));
    }

    #[test]
    fn the_same_seed_gives_the_same_fate_and_a_retry_rolls_anew() {
        let faults = FaultRates::spread(0.5);
        let fates = |seed, attempt| -> Vec<_> {
            (0..1_000).map(|prompt| PromptRng::new(seed, prompt, attempt).fault(&faults)).collect()
        };
        assert_eq!(fates(1, 0), fates(1, 0));
        assert_ne!(fates(1, 0), fates(2, 0));
        let struck_twice = fates(1, 0).into_iter().zip(fates(1, 1));
        let struck_twice = struck_twice.filter(|(a, b)| a.is_some() && b.is_some()).count();
        assert!((200..300).contains(&struck_twice), "a half of a half, not {struck_twice}");
    }

    #[test]
    fn rates_must_leave_room_for_each_other() {
        assert!(FaultRates::spread(1.0).are_valid());
        assert!(!FaultRates::spread(1.5).are_valid());
        assert!(!FaultRates { rate_500: -0.1, ..FaultRates::default() }.are_valid());
        assert!(!FaultRates { rate_500: f64::NAN, ..FaultRates::default() }.are_valid());
    }

    #[test]
    fn latency_grows_with_the_output_and_has_a_tail() {
        let flat = SimulatedLatency { base_ms: 100.0, per_token_ms: 10.0, sigma: 0.0 };
        let pace = PromptRng::new(0, 0, 0).timing(&flat, 50);
        assert_eq!(pace.first_token, Duration::from_millis(100));
        assert_eq!(pace.total(), Duration::from_millis(600));

        let lively = SimulatedLatency { sigma: 0.5, ..flat };
        let mut totals: Vec<_> = (0..10_001)
            .map(|prompt| PromptRng::new(0, prompt, 0).timing(&lively, 50).total())
            .collect();
        totals.sort();
        let (median, p95) = (totals[5_000].as_millis(), totals[9_500].as_millis());
        assert!((580..620).contains(&median), "{median} ms");
        assert!((1_250..1_500).contains(&p95), "e^(0.5 × 1.645) × 600 is 1,366, not {p95} ms");
    }

    #[test]
    fn one_to_covers_its_range_and_no_more() {
        let rolls: Vec<_> =
            (0..1_000).map(|prompt| PromptRng::new(3, prompt, 0).one_to(4)).collect();
        for value in 1..=4 {
            assert!(rolls.contains(&value));
        }
        assert!(rolls.iter().all(|roll| (1..=4).contains(roll)));
    }
}
