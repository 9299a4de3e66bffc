//! The dice: what goes wrong with a request, and how long its answer takes.
//!
//! Pure and without state: each roll is a function of the seed, the prompt and how often this
//! prompt has had its fate decided before. So the same load meets the same faults in whatever
//! order it arrives, and a retry rolls anew. `judge` rolls them, `books` count.

use std::time::Duration;

use serde::Serialize;

/// How often each thing goes wrong, as a share of requests between 0 and 1. Their sum is at most 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// 429 because the service is busy, not because of the caller's quota. Nothing is booked.
    pub rate_429: f64,
    pub rate_500: f64,
    pub rate_503: f64,
    pub rate_408: f64,
    /// The connection is reset before anything is booked or answered.
    pub rate_reset_before: f64,
    /// The connection is reset after the work was done and billed: the answer is lost.
    pub rate_reset_after: f64,
    /// The work is done and billed, and no byte of the answer ever comes.
    pub rate_hang: f64,
    /// The answer breaks off in the middle. It was billed.
    pub rate_truncate: f64,
}

impl Faults {
    /// Spreads a total rate evenly over everything that a network and a service do on a bad day:
    /// 500, 503, 408, resets before and after the work, and truncated answers. No hangs, for those
    /// cost a client's whole time-out; no 429, for that is no fault of a request.
    pub fn spread(total: f64) -> Self {
        let mut faults = Self::default();
        for fault in Self::SPREAD {
            *faults.rate_mut(fault) = total / Self::SPREAD.len() as f64;
        }
        faults
    }

    /// The faults among which [`Faults::spread`] spreads.
    pub const SPREAD: [Fault; 6] = [
        Fault::Internal,
        Fault::Unavailable,
        Fault::Timeout,
        Fault::ResetBefore,
        Fault::ResetAfter,
        Fault::Truncate,
    ];

    pub fn rate(mut self, fault: Fault) -> f64 {
        *self.rate_mut(fault)
    }

    pub fn rate_mut(&mut self, fault: Fault) -> &mut f64 {
        match fault {
            Fault::Busy => &mut self.rate_429,
            Fault::Internal => &mut self.rate_500,
            Fault::Unavailable => &mut self.rate_503,
            Fault::Timeout => &mut self.rate_408,
            Fault::ResetBefore => &mut self.rate_reset_before,
            Fault::ResetAfter => &mut self.rate_reset_after,
            Fault::Hang => &mut self.rate_hang,
            Fault::Truncate => &mut self.rate_truncate,
        }
    }

    /// Whether each rate is a share and they leave room for each other.
    pub fn are_rates(&self) -> bool {
        let rates = self.table().map(|(rate, _)| rate);
        // A little over 1 is what adding rates that make up 1 can come to.
        rates.iter().all(|rate| (0.0..=1.0).contains(rate))
            && rates.iter().sum::<f64>() <= 1.000_001
    }

    fn table(&self) -> [(f64, Fault); 8] {
        [
            (self.rate_429, Fault::Busy),
            (self.rate_500, Fault::Internal),
            (self.rate_503, Fault::Unavailable),
            (self.rate_408, Fault::Timeout),
            (self.rate_reset_before, Fault::ResetBefore),
            (self.rate_reset_after, Fault::ResetAfter),
            (self.rate_hang, Fault::Hang),
            (self.rate_truncate, Fault::Truncate),
        ]
    }
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Busy,
    Internal,
    Unavailable,
    Timeout,
    ResetBefore,
    ResetAfter,
    Hang,
    Truncate,
}

impl Fault {
    /// Whether it strikes before the quota is asked.
    pub fn is_before_booking(self) -> bool {
        matches!(self, Self::Busy | Self::ResetBefore)
    }

    /// Whether the service did the work, and so bills it.
    pub fn is_billed(self) -> bool {
        matches!(self, Self::ResetAfter | Self::Hang | Self::Truncate)
    }
}

/// How often each fault struck.
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
    pub fn count(&mut self, fault: Fault) {
        *match fault {
            Fault::Busy => &mut self.busy,
            Fault::Internal => &mut self.internal,
            Fault::Unavailable => &mut self.unavailable,
            Fault::Timeout => &mut self.timeout,
            Fault::ResetBefore => &mut self.reset_before,
            Fault::ResetAfter => &mut self.reset_after,
            Fault::Hang => &mut self.hang,
            Fault::Truncate => &mut self.truncate,
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

/// How long answers take: `(base + per token × output tokens)` times a log-normal factor of median
/// 1, which gives the long tail that real services have. All zero answers at once.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Latency {
    /// Milliseconds before the first token.
    pub base_ms: f64,
    /// Milliseconds for each output token.
    pub per_token_ms: f64,
    /// Standard deviation of the factor's logarithm: 0 is none, 0.5 a lively tail.
    pub sigma: f64,
}

/// How long one answer takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    pub first_token: Duration,
    /// The rest, spread over the output.
    pub output: Duration,
}

impl Pace {
    pub fn total(self) -> Duration {
        self.first_token + self.output
    }
}

/// The roll of one request.
#[derive(Debug, Clone, Copy)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// `attempt` counts the fates this prompt has had already.
    pub fn new(seed: u64, prompt: u64, attempt: u32) -> Self {
        Self { state: mix(mix(seed) ^ prompt) ^ mix(u64::from(attempt)) }
    }

    pub fn fault(&mut self, faults: &Faults) -> Option<Fault> {
        let roll = self.unit();
        let mut bound = 0.0;
        faults.table().into_iter().find_map(|(rate, fault)| {
            bound += rate;
            (roll < bound).then_some(fault)
        })
    }

    pub fn pace(&mut self, latency: &Latency, output_tokens: u32) -> Pace {
        let factor = if latency.sigma > 0.0 { (latency.sigma * self.normal()).exp() } else { 1.0 };
        let ms = |ms: f64| Duration::from_secs_f64((ms * factor / 1_000.0).clamp(0.0, 86_400.0));
        let output = latency.per_token_ms * f64::from(output_tokens);
        Pace { first_token: ms(latency.base_ms), output: ms(output) }
    }

    /// A whole number from 1 to `most`.
    pub fn one_to(&mut self, most: u32) -> u32 {
        1 + (self.unit() * f64::from(most)) as u32
    }

    fn normal(&mut self) -> f64 {
        // Box and Muller; 1 - unit is never 0, so the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Evenly from 0 to below 1.
    fn unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.state) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The finaliser of SplitMix64: every bit of the input moves about half of the output's.
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn struck(faults: &Faults, prompts: u64) -> FaultCounts {
        let mut counts = FaultCounts::default();
        for prompt in 0..prompts {
            if let Some(fault) = Dice::new(7, prompt, 0).fault(faults) {
                counts.count(fault);
            }
        }
        counts
    }

    #[test]
    fn faults_strike_at_their_rates() {
        let counts = struck(&Faults::spread(0.06), 100_000);
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
        let faults = Faults::spread(0.5);
        let fates = |seed, attempt| -> Vec<_> {
            (0..1_000).map(|prompt| Dice::new(seed, prompt, attempt).fault(&faults)).collect()
        };
        assert_eq!(fates(1, 0), fates(1, 0));
        assert_ne!(fates(1, 0), fates(2, 0));
        let struck_twice = fates(1, 0).into_iter().zip(fates(1, 1));
        let struck_twice = struck_twice.filter(|(a, b)| a.is_some() && b.is_some()).count();
        assert!((200..300).contains(&struck_twice), "a half of a half, not {struck_twice}");
    }

    #[test]
    fn rates_must_leave_room_for_each_other() {
        assert!(Faults::spread(1.0).are_rates());
        assert!(!Faults::spread(1.5).are_rates());
        assert!(!Faults { rate_500: -0.1, ..Faults::default() }.are_rates());
        assert!(!Faults { rate_500: f64::NAN, ..Faults::default() }.are_rates());
    }

    #[test]
    fn latency_grows_with_the_output_and_has_a_tail() {
        let flat = Latency { base_ms: 100.0, per_token_ms: 10.0, sigma: 0.0 };
        let pace = Dice::new(0, 0, 0).pace(&flat, 50);
        assert_eq!(pace.first_token, Duration::from_millis(100));
        assert_eq!(pace.total(), Duration::from_millis(600));

        let lively = Latency { sigma: 0.5, ..flat };
        let mut totals: Vec<_> =
            (0..10_001).map(|prompt| Dice::new(0, prompt, 0).pace(&lively, 50).total()).collect();
        totals.sort();
        let (median, p95) = (totals[5_000].as_millis(), totals[9_500].as_millis());
        assert!((580..620).contains(&median), "{median} ms");
        assert!((1_250..1_500).contains(&p95), "e^(0.5 × 1.645) × 600 is 1,366, not {p95} ms");
    }

    #[test]
    fn one_to_covers_its_range_and_no_more() {
        let rolls: Vec<_> = (0..1_000).map(|prompt| Dice::new(3, prompt, 0).one_to(4)).collect();
        for value in 1..=4 {
            assert!(rolls.contains(&value));
        }
        assert!(rolls.iter().all(|roll| (1..=4).contains(roll)));
    }
}
