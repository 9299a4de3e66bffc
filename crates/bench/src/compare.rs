//! Two benchmarks side by side: what differs by more than chance.

use serde::{Deserialize, Serialize};

use super::report::{Dist, PhaseReport, Report, Second};
use super::stats;

/// Differences are called significant at this level.
const ALPHA: f64 = 0.05;

/// The percentiles that are compared.
const SHARES: [f64; 3] = [0.5, 0.95, 0.99];

/// Phases of the same place in two reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    pub load_a: String,
    pub load_b: String,
    pub rows: Vec<Row>,
}

/// One figure in both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub figure: String,
    pub unit: Unit,
    pub a: f64,
    pub b: f64,
    /// The 95 % interval of b - a, where the figure has one.
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// The p-value, where the figure is judged by a test.
    pub p: Option<f64>,
    pub significant: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    PerMinute,
    Milliseconds,
    Share,
}

/// Compares phase by phase. A phase that has no partner is left out.
pub fn compare(a: &Report, b: &Report) -> Vec<Compared> {
    let seed = a.setup.seed ^ b.setup.seed.rotate_left(32);
    a.phases.iter().zip(&b.phases).map(|(a, b)| phase(a, b, seed)).collect()
}

fn phase(a: &PhaseReport, b: &PhaseReport, seed: u64) -> Compared {
    let mut rows = vec![
        rate("RPM", a, b, |second| second.succeeded, seed),
        rate("input TPM", a, b, |second| second.prompt_tokens, seed),
        rate("output TPM", a, b, |second| second.output_tokens, seed),
    ];
    let (la, lb) = (&a.latency, &b.latency);
    for (name, a, b) in
        [("TTFT", &la.ttft, &lb.ttft), ("TBT", &la.tbt, &lb.tbt), ("E2E", &la.e2e, &lb.e2e)]
    {
        if let (Some(a), Some(b)) = (a, b) {
            rows.extend(SHARES.into_iter().filter_map(|share| percentile(name, a, b, share, seed)));
            rows.extend(whole(name, a, b));
        }
    }
    let (ca, cb) = (&a.counts, &b.counts);
    let all = (ca.requests(), cb.requests());
    rows.extend(share("throttled", (ca.throttled, cb.throttled), all));
    rows.extend(share("failed", (ca.failed, cb.failed), all));
    Compared { load_a: a.load.clone(), load_b: b.load.clone(), rows }
}

fn rate(figure: &str, a: &PhaseReport, b: &PhaseReport, of: fn(&Second) -> u64, seed: u64) -> Row {
    let seconds = |phase: &PhaseReport| -> Vec<f64> {
        let whole = phase.series.iter().take((phase.seconds as usize).max(1));
        whole.map(|second| of(second) as f64 * 60.0).collect()
    };
    let (xs, ys) = (seconds(a), seconds(b));
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len().max(1) as f64;
    let (low, high) = stats::mean_difference_interval(&xs, &ys, seed);
    Row {
        figure: figure.to_owned(),
        unit: Unit::PerMinute,
        a: mean(&xs),
        b: mean(&ys),
        low: Some(low),
        high: Some(high),
        p: None,
        significant: low > 0.0 || high < 0.0,
    }
}

fn percentile(name: &str, a: &Dist, b: &Dist, share: f64, seed: u64) -> Option<Row> {
    let (x, y) = (a.percentile(share)?.ms, b.percentile(share)?.ms);
    let interval = stats::quantile_difference_interval(&a.buckets, &b.buckets, share, seed);
    let (low, high) = interval.map(|(low, high)| (low / 1_000.0, high / 1_000.0))?;
    Some(Row {
        figure: format!("{name} p{}", share * 100.0),
        unit: Unit::Milliseconds,
        a: x,
        b: y,
        low: Some(low),
        high: Some(high),
        p: None,
        significant: low > 0.0 || high < 0.0,
    })
}

fn whole(name: &str, a: &Dist, b: &Dist) -> Option<Row> {
    let ranked = stats::mann_whitney(&a.buckets, &b.buckets)?;
    Some(Row {
        figure: format!("{name} as a whole"),
        unit: Unit::Milliseconds,
        a: a.mean_ms,
        b: b.mean_ms,
        low: None,
        high: None,
        p: Some(ranked.p),
        significant: ranked.p < ALPHA,
    })
}

fn share(name: &str, of: (u64, u64), all: (u64, u64)) -> Option<Row> {
    let p = stats::proportions((of.0, all.0), (of.1, all.1))?;
    Some(Row {
        figure: format!("{name} share"),
        unit: Unit::Share,
        a: of.0 as f64 / all.0 as f64,
        b: of.1 as f64 / all.1 as f64,
        low: None,
        high: None,
        p: Some(p),
        significant: p < ALPHA,
    })
}
