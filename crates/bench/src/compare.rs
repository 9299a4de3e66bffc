//! Compares two benchmarks: which differences are more than chance.

use serde::{Deserialize, Serialize};

use super::report::{BenchReport, LatencyDistribution, PhaseReport, SecondCounts};
use super::stats;

/// Significance level.
const ALPHA: f64 = 0.05;

/// The percentiles that are compared.
const COMPARED_PERCENTILES: [f64; 3] = [0.5, 0.95, 0.99];

/// Comparison of the phases at the same position in two reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseComparison {
    pub load_a: String,
    pub load_b: String,
    pub rows: Vec<ComparisonRow>,
}

/// One figure of both reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparisonRow {
    pub figure: String,
    pub unit: FigureUnit,
    pub a: f64,
    pub b: f64,
    /// 95 % interval of b - a, where the figure has one.
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// The p-value, where a test judges the figure.
    pub p: Option<f64>,
    pub significant: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FigureUnit {
    PerMinute,
    Milliseconds,
    Share,
}

/// Compares phase by phase. A phase without a counterpart is left out.
pub fn compare(a: &BenchReport, b: &BenchReport) -> Vec<PhaseComparison> {
    let seed = a.setup.seed ^ b.setup.seed.rotate_left(32);
    a.phases.iter().zip(&b.phases).map(|(a, b)| compare_phase(a, b, seed)).collect()
}

fn compare_phase(a: &PhaseReport, b: &PhaseReport, seed: u64) -> PhaseComparison {
    let mut rows = vec![
        rate_row("RPM", a, b, |second| second.succeeded, seed),
        rate_row("input TPM", a, b, |second| second.prompt_tokens, seed),
        rate_row("output TPM", a, b, |second| second.output_tokens, seed),
    ];
    let (la, lb) = (&a.latency, &b.latency);
    for (name, a, b) in
        [("TTFT", &la.ttft, &lb.ttft), ("TBT", &la.tbt, &lb.tbt), ("E2E", &la.e2e, &lb.e2e)]
    {
        if let (Some(a), Some(b)) = (a, b) {
            rows.extend(
                COMPARED_PERCENTILES
                    .into_iter()
                    .filter_map(|share| percentile_row(name, a, b, share, seed)),
            );
            rows.extend(distribution_row(name, a, b));
        }
    }
    let (ca, cb) = (&a.counts, &b.counts);
    let all = (ca.requests(), cb.requests());
    rows.extend(proportion_row("throttled", (ca.throttled, cb.throttled), all));
    rows.extend(proportion_row("failed", (ca.failed, cb.failed), all));
    PhaseComparison { load_a: a.load.clone(), load_b: b.load.clone(), rows }
}

fn rate_row(
    figure: &str,
    a: &PhaseReport,
    b: &PhaseReport,
    of: fn(&SecondCounts) -> u64,
    seed: u64,
) -> ComparisonRow {
    let seconds = |phase: &PhaseReport| -> Vec<f64> {
        let whole = phase.series.iter().take((phase.seconds as usize).max(1));
        whole.map(|second| of(second) as f64 * 60.0).collect()
    };
    let (xs, ys) = (seconds(a), seconds(b));
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len().max(1) as f64;
    let (low, high) = stats::mean_difference_interval(&xs, &ys, seed);
    ComparisonRow {
        figure: figure.to_owned(),
        unit: FigureUnit::PerMinute,
        a: mean(&xs),
        b: mean(&ys),
        low: Some(low),
        high: Some(high),
        p: None,
        significant: low > 0.0 || high < 0.0,
    }
}

fn percentile_row(
    name: &str,
    a: &LatencyDistribution,
    b: &LatencyDistribution,
    share: f64,
    seed: u64,
) -> Option<ComparisonRow> {
    let (x, y) = (a.percentile(share)?.ms, b.percentile(share)?.ms);
    let interval = stats::quantile_difference_interval(&a.buckets, &b.buckets, share, seed);
    let (low, high) = interval.map(|(low, high)| (low / 1_000.0, high / 1_000.0))?;
    Some(ComparisonRow {
        figure: format!("{name} p{}", share * 100.0),
        unit: FigureUnit::Milliseconds,
        a: x,
        b: y,
        low: Some(low),
        high: Some(high),
        p: None,
        significant: low > 0.0 || high < 0.0,
    })
}

fn distribution_row(
    name: &str,
    a: &LatencyDistribution,
    b: &LatencyDistribution,
) -> Option<ComparisonRow> {
    let ranked = stats::mann_whitney(&a.buckets, &b.buckets)?;
    Some(ComparisonRow {
        figure: format!("{name} as a whole"),
        unit: FigureUnit::Milliseconds,
        a: a.mean_ms,
        b: b.mean_ms,
        low: None,
        high: None,
        p: Some(ranked.p),
        significant: ranked.p < ALPHA,
    })
}

fn proportion_row(name: &str, of: (u64, u64), all: (u64, u64)) -> Option<ComparisonRow> {
    let p = stats::two_proportion_test((of.0, all.0), (of.1, all.1))?;
    Some(ComparisonRow {
        figure: format!("{name} share"),
        unit: FigureUnit::Share,
        a: of.0 as f64 / all.0 as f64,
        b: of.1 as f64 / all.1 as f64,
        low: None,
        high: None,
        p: Some(p),
        significant: p < ALPHA,
    })
}
