//! Renders a report as one self-contained page of tables and plots, to be read, sent and printed.

use serde::Serialize;

use super::report::{BenchReport, LatencyDistribution, PhaseReport, SecondCounts, ms};
use report::plot::{self, PlotAxes, PlotCaption, PlotLine};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");

/// Number of points of a latency curve.
const CURVE_POINTS: u64 = 400;

/// Share at which a curve ends: the last thousandth would squeeze all the rest.
const CURVE_END: f64 = 0.999;

/// Data of the page.
#[derive(Serialize)]
struct PageData<'a> {
    style: String,
    deployment: &'a str,
    started: String,
    promptmill: &'a str,
    streaming: bool,
    cacheable: bool,
    retry: &'a str,
    figures: Vec<PageFigure>,
    /// All figures, as the command prints them.
    text: String,
}

/// A plot with its title.
#[derive(Serialize)]
struct PageFigure {
    title: &'static str,
    svg: String,
}

impl BenchReport {
    /// Renders the whole page.
    pub fn to_html(&self) -> String {
        let setup = &self.setup;
        report::html::render(
            PAGE,
            &PageData {
                style: format!("{STYLE}{}", plot::STYLE),
                deployment: &setup.deployment,
                started: self.started_at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
                promptmill: &self.promptmill,
                streaming: setup.streaming,
                cacheable: setup.cacheable,
                retry: &setup.retry,
                figures: self.plots().into_iter().flatten().collect(),
                text: self.to_string(),
            },
        )
    }

    fn plots(&self) -> Vec<Option<PageFigure>> {
        let seconds =
            PlotAxes { x: "seconds", y: "", x_is_log2: false, mark: None, has_legend: true };
        let per_second = PlotAxes { y: "requests a second", ..seconds };
        let per_minute = PlotAxes { y: "tokens a minute", ..seconds };
        let of_all = PlotAxes { x: "milliseconds", y: "share of requests", ..seconds };
        let mut plots = vec![
            draw_plot("Throughput over time", &self.requests_over_time(), per_second),
            draw_plot("Tokens over time", &self.tokens_over_time(), per_minute),
            draw_plot("Latency, cumulative", &self.curves(), of_all),
        ];
        if let Some(knee) = self.knee.filter(|_| self.phases.len() > 1) {
            let mark = Some((knee.concurrency as f64).log2());
            let levels = PlotAxes { x: "concurrency", x_is_log2: true, mark, ..seconds };
            let latencies = PlotAxes { y: "milliseconds", ..levels };
            let throughput = PlotAxes { y: "RPM", ..levels };
            plots.push(draw_plot("TTFT against concurrency", &self.ttft_by_level(), latencies));
            plots.push(draw_plot("E2E against concurrency", &self.e2e_by_level(), latencies));
            plots.push(draw_plot("The saturation knee", &[self.rpm_by_level()], throughput));
        }
        plots
    }

    fn requests_over_time(&self) -> Vec<PlotLine> {
        let line =
            |name: &str, of: fn(&SecondCounts) -> u64| over_time(&self.phases, name, of, 1.0);
        let lines = vec![
            line("succeeded", |second| second.succeeded),
            line("throttled", |second| second.throttled),
            line("failed", |second| second.failed),
        ];
        let happened =
            |line: &PlotLine| line.name == "succeeded" || line.points.iter().any(|p| p.1 > 0.0);
        lines.into_iter().filter(happened).collect()
    }

    fn tokens_over_time(&self) -> Vec<PlotLine> {
        let line =
            |name: &str, of: fn(&SecondCounts) -> u64| over_time(&self.phases, name, of, 60.0);
        vec![
            line("input", |second| second.prompt_tokens),
            line("output", |second| second.output_tokens),
        ]
    }

    /// Returns the latency curves of the only phase, or of the one at the knee.
    fn curves(&self) -> Vec<PlotLine> {
        let at_knee = |phase: &&PhaseReport| {
            self.knee.is_none_or(|knee| phase.concurrency == Some(knee.concurrency))
        };
        let Some(PhaseReport { latency, .. }) = self.phases.iter().find(at_knee) else {
            return Vec::new();
        };
        let kinds = [("E2E", &latency.e2e), ("TTFT", &latency.ttft), ("TBT", &latency.tbt)];
        kinds
            .into_iter()
            .filter_map(|(name, dist)| {
                Some(PlotLine { name: name.into(), points: curve(dist.as_ref()?) })
            })
            .collect()
    }

    fn ttft_by_level(&self) -> Vec<PlotLine> {
        self.latency_by_level(|phase| phase.latency.ttft.as_ref())
    }

    fn e2e_by_level(&self) -> Vec<PlotLine> {
        self.latency_by_level(|phase| phase.latency.e2e.as_ref())
    }

    fn latency_by_level(
        &self,
        of: fn(&PhaseReport) -> Option<&LatencyDistribution>,
    ) -> Vec<PlotLine> {
        let line = |share: f64| {
            let point =
                |phase: &PhaseReport| Some((level(phase)?, of(phase)?.percentile(share)?.ms));
            let points = self.phases.iter().filter_map(point).collect();
            PlotLine { name: format!("p{}", share * 100.0), points }
        };
        [0.5, 0.95].map(line).into()
    }

    fn rpm_by_level(&self) -> PlotLine {
        let point = |phase: &PhaseReport| Some((level(phase)?, phase.rates.rpm.sustained));
        PlotLine {
            name: "sustained RPM".into(),
            points: self.phases.iter().filter_map(point).collect(),
        }
    }
}

/// Draws a plot if there is something to draw.
fn draw_plot(title: &'static str, lines: &[PlotLine], axes: PlotAxes<'_>) -> Option<PageFigure> {
    let names: Vec<_> = lines.iter().map(|line| line.name.as_str()).collect();
    let description = format!("{} {}: {}", axes.y, axes.x, names.join(", "));
    let caption = PlotCaption { title, description: description.trim() };
    plot::lines(lines, axes, caption).map(|svg| PageFigure { title, svg })
}

fn level(phase: &PhaseReport) -> Option<f64> {
    phase.concurrency.map(|concurrency| (concurrency as f64).log2())
}

/// Returns the measured seconds of all phases in a row.
fn over_time(
    phases: &[PhaseReport],
    name: &str,
    of: fn(&SecondCounts) -> u64,
    times: f64,
) -> PlotLine {
    let whole = phases.iter().flat_map(|p| p.series.iter().take((p.seconds as usize).max(1)));
    let points = whole.enumerate().map(|(s, second)| (s as f64, of(second) as f64 * times));
    PlotLine { name: name.into(), points: points.collect() }
}

/// Returns the cumulative distribution: the share of values up to each value.
fn curve(dist: &LatencyDistribution) -> Vec<(f64, f64)> {
    let every = dist.count.div_ceil(CURVE_POINTS).max(1);
    let (mut points, mut seen, mut last_point) = (Vec::new(), 0, 0);
    for (value, count) in &dist.buckets {
        seen += count;
        let share = seen as f64 / dist.count as f64;
        if last_point == 0 || seen >= last_point + every {
            points.push((ms(*value), share));
            last_point = seen;
        }
        if share >= CURVE_END {
            break;
        }
    }
    points
}
