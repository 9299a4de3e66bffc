//! Call times and answer lengths: assumed or learnt.
//!
//! A call takes `first + per_token × tokens of the answer` seconds on average and spreads around
//! that by a lognormal factor, by deployment. Answers are as long as those of the same model were,
//! or a share of what they may be. `learn` fills this in from past outcomes,
//! [`CallProfile::learn_bench`] from a benchmark.

use std::collections::BTreeMap;

use serde::Serialize;

use bench::pipeline::PipelineReport;
use bench::report::{BenchReport, LatencyDistribution, PhaseReport};

/// Assumed answer length as a share of the longest, where nothing is known.
pub const ASSUMED_OUTPUT_SHARE: f64 = 0.5;

/// Assumed call time where nothing is known: half a second until the first token, then 50 tokens a
/// second, and one call in twenty takes 1.6 times as long as the median.
pub const ASSUMED_LATENCY: CallLatency =
    CallLatency { first: 0.5, per_token: 0.02, spread: 0.3, error: 0.0 };

/// 95 % quantile of the normal distribution.
const Z95: f64 = 1.645;

/// Linear model of a call's time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CallLatency {
    /// Seconds regardless of the answer's length.
    pub first: f64,
    /// Seconds for each of its tokens.
    pub per_token: f64,
    /// The standard deviation of the factor's logarithm.
    pub spread: f64,
    /// Standard error of the mean as a part of it: few answers were seen.
    pub error: f64,
}

impl CallLatency {
    /// Returns the mean in seconds.
    pub fn mean(self, tokens: u32) -> f64 {
        self.first + self.per_token * f64::from(tokens)
    }

    /// Returns the model shifted within its error by a standard normal number.
    pub fn perturbed(self, normal: f64) -> Self {
        let factor = (1.0 + self.error * normal).max(0.0);
        Self { first: self.first * factor, per_token: self.per_token * factor, ..self }
    }

    /// Returns the seconds of a call, drawn by a standard normal number.
    pub fn draw(self, tokens: u32, normal: f64) -> f64 {
        let Self { spread, .. } = self;
        self.mean(tokens) * (spread * normal - spread * spread / 2.0).exp()
    }
}

/// Call times of each deployment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LatencyModel {
    pub by_deployment: BTreeMap<String, CallLatency>,
    /// Call time of all others.
    pub others: CallLatency,
}

impl LatencyModel {
    pub fn of(&self, deployment: &str) -> CallLatency {
        self.by_deployment.get(deployment).copied().unwrap_or(self.others)
    }
}

/// Answer lengths of each model.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerLengths {
    /// Lengths that were seen, in random order, by the jobs' model.
    pub by_model: BTreeMap<String, Vec<u32>>,
    /// Length for models without any.
    pub others: AssumedLength,
}

/// Assumed length of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AssumedLength {
    /// Share of the longest that is allowed.
    Share(f64),
    /// Number of tokens, if they are allowed.
    Tokens(u32),
}

/// Answer lengths of one model, one after the other.
#[derive(Debug, Clone)]
pub struct LengthSequence<'a> {
    seen: &'a [u32],
    others: AssumedLength,
    next_index: usize,
    /// Tokens that the jobs so far had no room for.
    carry_over: u64,
}

impl AnswerLengths {
    pub fn of(&self, model: &str) -> LengthSequence<'_> {
        let seen = self.by_model.get(model).map_or(&[][..], Vec::as_slice);
        LengthSequence { seen, others: self.others, next_index: 0, carry_over: 0 }
    }
}

impl LengthSequence<'_> {
    /// Returns the length of the next answer, at most `max_output`. The lengths that were seen
    /// repeat, and tokens that one job has no room for carry over to the next: so a batch like the
    /// one that was seen gets its very sum.
    pub fn next(&mut self, max_output: u32) -> u32 {
        let Some(seen) = self.seen.get(self.next_index % self.seen.len().max(1)) else {
            return self.others.of(max_output).min(max_output);
        };
        self.next_index += 1;
        let wanted = self.carry_over + u64::from(*seen);
        let length = u32::try_from(wanted).unwrap_or(u32::MAX).min(max_output);
        self.carry_over = wanted - u64::from(length);
        length
    }

    /// Returns the tokens for which no job had room.
    pub fn carry_over(&self) -> u64 {
        self.carry_over
    }
}

impl AssumedLength {
    fn of(self, max_output: u32) -> u32 {
        match self {
            Self::Share(share) => (f64::from(max_output) * share).round() as u32,
            Self::Tokens(tokens) => tokens,
        }
    }
}

impl std::fmt::Display for AssumedLength {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Share(share) => {
                write!(f, "{:.0} % of the tokens that are allowed", share * 100.0)
            }
            Self::Tokens(tokens) => write!(f, "{tokens} tokens, where that many are allowed"),
        }
    }
}

/// Call times, answer lengths and worker throughput, with their sources.
#[derive(Debug, Clone, PartialEq)]
pub struct CallProfile {
    pub latency: LatencyModel,
    pub answers: AnswerLengths,
    /// Calls a second that one worker can begin and record; `None`: more than anything else allows.
    pub calls_a_second: Option<f64>,
    /// Learnt facts and their sources, one sentence each.
    pub learnt: Vec<String>,
}

impl Default for CallProfile {
    /// Returns assumptions only.
    fn default() -> Self {
        Self {
            latency: LatencyModel { by_deployment: BTreeMap::new(), others: ASSUMED_LATENCY },
            answers: AnswerLengths {
                by_model: BTreeMap::new(),
                others: AssumedLength::Share(ASSUMED_OUTPUT_SHARE),
            },
            calls_a_second: None,
            learnt: Vec::new(),
        }
    }
}

impl CallProfile {
    /// Learns call times from a benchmark. Returns false if it has no answers.
    pub fn learn_bench(&mut self, report: &BenchReport, from: &str) -> bool {
        let Some(line) = latency_of(report) else { return false };
        let deployment = &report.setup.deployment;
        // If nothing else is known of the others, they are like the one that was measured.
        if self.latency.others == ASSUMED_LATENCY {
            self.latency.others = line;
        }
        self.latency.by_deployment.insert(deployment.clone(), line);
        self.learnt.push(format!("{line} at {deployment}, by the benchmark {from}"));
        true
    }

    /// Learns the throughput of one worker from a benchmark of the whole pipeline.
    pub fn learn_pipeline(&mut self, report: &PipelineReport, from: &str) {
        let rate = report.worked.jobs_per_second;
        if rate > 0.0 {
            self.calls_a_second = Some(rate);
            self.learnt
                .push(format!("a worker does {rate:.0} jobs a second, by the benchmark {from}"));
        }
    }
}

impl std::fmt::Display for CallLatency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first, per_token, spread, .. } = self;
        let token_ms = per_token * 1e3;
        write!(f, "calls take {first:.2} s and {token_ms:.1} ms a token, spread {spread:.2}")
    }
}

/// Fits call times to the phase with the most throughput and no throttling; if all were throttled,
/// to the first.
fn latency_of(report: &BenchReport) -> Option<CallLatency> {
    let answered = || report.phases.iter().filter(|phase| phase.latency.e2e.is_some());
    let within = answered().filter(|phase| phase.counts.refused_calls == 0);
    let rpm = |phase: &PhaseReport| phase.rates.rpm.mean;
    let best = within.max_by(|a, b| rpm(a).total_cmp(&rpm(b)));
    let phase = best.or_else(|| answered().next())?;
    let e2e = phase.latency.e2e.as_ref()?;
    let mean = e2e.mean_ms / 1e3;
    let tokens = phase.counts.output_tokens as f64 / phase.counts.succeeded.max(1) as f64;
    let (first, per_token) = match &phase.latency.ttft {
        // The time after the first token depends on the answer's length.
        Some(ttft) if tokens > 1.0 => {
            let first = (ttft.mean_ms / 1e3).min(mean);
            let per_token = (mean - first) / (tokens - 1.0);
            ((first - per_token).max(0.0), per_token)
        }
        // Whole answers give one sum: it is taken to grow with the length, as it mostly does.
        None if tokens > 0.0 => (0.0, mean / tokens),
        _ => (mean, 0.0),
    };
    let spread = spread_of(e2e);
    let error = spread / (phase.counts.succeeded.max(1) as f64).sqrt();
    Some(CallLatency { first, per_token, spread, error })
}

fn spread_of(dist: &LatencyDistribution) -> f64 {
    let at = |share| dist.percentile(share).map(|percentile| percentile.ms);
    match (at(0.5), at(0.95)) {
        (Some(p50), Some(p95)) if p50 > 0.0 => ((p95 / p50).ln() / Z95).clamp(0.0, 2.0),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_night_like_the_last_one_gets_its_very_sum() {
        let answers = AnswerLengths {
            by_model: BTreeMap::from([("m".to_owned(), vec![80, 10, 60, 30])]),
            others: AssumedLength::Share(0.5),
        };
        let mut lengths = answers.of("m");
        let given: Vec<u32> = [40, 100, 40, 100].map(|most| lengths.next(most)).into();
        assert_eq!(given, [40, 50, 40, 50], "what one has no room for goes to the next");
        assert_eq!((given.iter().sum::<u32>(), lengths.carry_over()), (180, 0));
        let mut unseen = answers.of("another");
        assert_eq!([41, 0].map(|most| unseen.next(most)), [21, 0]);
    }
}
