//! How long a call takes, and how long its answer is: assumed, or learnt.
//!
//! A call takes `first + per_token × tokens of the answer` seconds on average and spreads around that
//! by a lognormal factor, by deployment. Answers are as long as those of the same model were, or a part
//! of what they may be. `learn` fills this in from past outcomes, [`Experience::hear_bench`] from a
//! benchmark.

use std::collections::BTreeMap;

use serde::Serialize;

use bench::pipeline::PipeReport;
use bench::report::{Dist, PhaseReport, Report};

/// The part of the longest answer that is taken for its length, where nothing is known.
pub const USUAL_SHARE: f64 = 0.5;

/// What is taken for a call's time where nothing is known: half a second until the first token, 50
/// tokens a second then, and one call in twenty that takes 1.6 times as long as the middle one.
pub const USUAL: Line = Line { first: 0.5, per_token: 0.02, spread: 0.3, error: 0.0 };

/// The normal distribution's 95 % quantile.
const Z95: f64 = 1.645;

/// What calls take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Line {
    /// Seconds whatever the answer's length.
    pub first: f64,
    /// Seconds for each of its tokens.
    pub per_token: f64,
    /// The standard deviation of the factor's logarithm.
    pub spread: f64,
    /// How far the mean may be off because few answers were seen: its standard error as a part of it.
    pub error: f64,
}

impl Line {
    /// Seconds on average.
    pub fn mean(self, tokens: u32) -> f64 {
        self.first + self.per_token * f64::from(tokens)
    }

    /// The line that it may as well be, by a number that is normally distributed.
    pub fn as_well(self, normal: f64) -> Self {
        let factor = (1.0 + self.error * normal).max(0.0);
        Self { first: self.first * factor, per_token: self.per_token * factor, ..self }
    }

    /// Seconds of a call, by a number that is normally distributed.
    pub fn draw(self, tokens: u32, normal: f64) -> f64 {
        let Self { spread, .. } = self;
        self.mean(tokens) * (spread * normal - spread * spread / 2.0).exp()
    }
}

/// What calls take at each deployment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LatencyModel {
    pub by_deployment: BTreeMap<String, Line>,
    /// Of all others.
    pub others: Line,
}

impl LatencyModel {
    pub fn of(&self, deployment: &str) -> Line {
        self.by_deployment.get(deployment).copied().unwrap_or(self.others)
    }
}

/// How long answers are.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    /// Lengths that were seen, in no order, by the jobs' model.
    pub by_model: BTreeMap<String, Vec<u32>>,
    /// Of models that were not.
    pub others: Length,
}

/// How long an answer is taken to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// A part of the longest that is allowed.
    Share(f64),
    /// So many tokens, if they are allowed.
    Tokens(u32),
}

/// The answers of one model, one after the other.
#[derive(Debug, Clone)]
pub struct Lengths<'a> {
    seen: &'a [u32],
    others: Length,
    given: usize,
    /// Tokens that the jobs so far had no room for.
    owed: u64,
}

impl Answers {
    pub fn of(&self, model: &str) -> Lengths<'_> {
        let seen = self.by_model.get(model).map_or(&[][..], Vec::as_slice);
        Lengths { seen, others: self.others, given: 0, owed: 0 }
    }
}

impl Lengths<'_> {
    /// The length of the next answer, which may be so long. The lengths that were seen are gone through
    /// again and again, and what one job has no room for goes to the next: so a batch that is like the
    /// one that was seen gets its very sum.
    pub fn next(&mut self, max_output: u32) -> u32 {
        let Some(seen) = self.seen.get(self.given % self.seen.len().max(1)) else {
            return self.others.of(max_output).min(max_output);
        };
        self.given += 1;
        let wanted = self.owed + u64::from(*seen);
        let length = u32::try_from(wanted).unwrap_or(u32::MAX).min(max_output);
        self.owed = wanted - u64::from(length);
        length
    }

    /// What is left without a job that has room for it.
    pub fn owed(&self) -> u64 {
        self.owed
    }
}

impl Length {
    fn of(self, max_output: u32) -> u32 {
        match self {
            Self::Share(share) => (f64::from(max_output) * share).round() as u32,
            Self::Tokens(tokens) => tokens,
        }
    }
}

impl std::fmt::Display for Length {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Share(share) => write!(f, "{:.0} % of the tokens that they may", share * 100.0),
            Self::Tokens(tokens) => write!(f, "{tokens} tokens, where they may"),
        }
    }
}

/// All that is known of how the service answers, and from where.
#[derive(Debug, Clone, PartialEq)]
pub struct Experience {
    pub latency: LatencyModel,
    pub answers: Answers,
    /// Calls a second that one worker can begin and record; `None`: more than anything else allows.
    pub calls_a_second: Option<f64>,
    /// What was learnt from where, one sentence each.
    pub learnt: Vec<String>,
}

impl Default for Experience {
    /// Nothing but assumptions.
    fn default() -> Self {
        Self {
            latency: LatencyModel { by_deployment: BTreeMap::new(), others: USUAL },
            answers: Answers { by_model: BTreeMap::new(), others: Length::Share(USUAL_SHARE) },
            calls_a_second: None,
            learnt: Vec::new(),
        }
    }
}

impl Experience {
    /// Learns what calls take from a benchmark. False if it has no answers.
    pub fn hear_bench(&mut self, report: &Report, from: &str) -> bool {
        let Some(line) = line_of(report) else { return false };
        let deployment = &report.setup.deployment;
        // Where nothing else is known of the others, they are like the one that was measured.
        if self.latency.others == USUAL {
            self.latency.others = line;
        }
        self.latency.by_deployment.insert(deployment.clone(), line);
        self.learnt.push(format!("{line} at {deployment}, by the benchmark {from}"));
        true
    }

    /// Learns what one worker can do from a benchmark of the whole pipe.
    pub fn hear_pipeline(&mut self, report: &PipeReport, from: &str) {
        let rate = report.worked.jobs_per_second;
        if rate > 0.0 {
            self.calls_a_second = Some(rate);
            self.learnt
                .push(format!("a worker does {rate:.0} jobs a second, by the benchmark {from}"));
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first, per_token, spread, .. } = self;
        let token_ms = per_token * 1e3;
        write!(f, "calls take {first:.2} s and {token_ms:.1} ms a token, spread {spread:.2}")
    }
}

/// The phase that gave the most without being refused tells what calls take under load; of several
/// that were all refused, the first.
fn line_of(report: &Report) -> Option<Line> {
    let answered = || report.phases.iter().filter(|phase| phase.latency.e2e.is_some());
    let within = answered().filter(|phase| phase.counts.refused_calls == 0);
    let rpm = |phase: &PhaseReport| phase.rates.rpm.mean;
    let best = within.max_by(|a, b| rpm(a).total_cmp(&rpm(b)));
    let phase = best.or_else(|| answered().next())?;
    let e2e = phase.latency.e2e.as_ref()?;
    let mean = e2e.mean_ms / 1e3;
    let tokens = phase.counts.output_tokens as f64 / phase.counts.succeeded.max(1) as f64;
    let (first, per_token) = match &phase.latency.ttft {
        // What comes after the first token is the answer's length.
        Some(ttft) if tokens > 1.0 => {
            let first = (ttft.mean_ms / 1e3).min(mean);
            let per_token = (mean - first) / (tokens - 1.0);
            ((first - per_token).max(0.0), per_token)
        }
        // Whole answers tell one sum: it is taken to grow with the length, as it mostly does.
        None if tokens > 0.0 => (0.0, mean / tokens),
        _ => (mean, 0.0),
    };
    let spread = spread_of(e2e);
    let error = spread / (phase.counts.succeeded.max(1) as f64).sqrt();
    Some(Line { first, per_token, spread, error })
}

fn spread_of(dist: &Dist) -> f64 {
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
        let answers = Answers {
            by_model: BTreeMap::from([("m".to_owned(), vec![80, 10, 60, 30])]),
            others: Length::Share(0.5),
        };
        let mut lengths = answers.of("m");
        let given: Vec<u32> = [40, 100, 40, 100].map(|most| lengths.next(most)).into();
        assert_eq!(given, [40, 50, 40, 50], "what one has no room for goes to the next");
        assert_eq!((given.iter().sum::<u32>(), lengths.owed()), (180, 0));
        let mut unseen = answers.of("another");
        assert_eq!([41, 0].map(|most| unseen.next(most)), [21, 0]);
    }
}
