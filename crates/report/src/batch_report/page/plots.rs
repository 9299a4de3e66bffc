//! Plots of the page, each with a text description of its figures.

use serde::Serialize;

use super::super::page_texts::PageTexts;
use super::super::{BatchReport, DistributionBar, SeriesPoint, ValueDistribution};
use crate::html::with_thousands;
use crate::plot::{self, PlotAxes, PlotCaption, PlotLine};

/// Unit of the time axis: its seconds, and its name.
type TimeUnit = (f64, &'static str);

/// A plot with its title and legend.
#[derive(Serialize)]
pub(super) struct PlotFigure {
    title: String,
    /// Absent if there is nothing to draw.
    svg: Option<String>,
    legend: Vec<LegendLine>,
}

#[derive(Serialize)]
struct LegendLine {
    colour: String,
    text: String,
}

/// Plots over time.
#[derive(Serialize)]
pub(super) struct TimeFigures {
    jobs: PlotFigure,
    tokens: PlotFigure,
    /// Absent if nothing was throttled or tried again.
    throttled: Option<PlotFigure>,
}

/// Plot of the distribution that the report has under `key`.
#[derive(Serialize)]
pub(super) struct DistributionFigure {
    key: &'static str,
    unit: &'static str,
    mean: String,
    figure: PlotFigure,
}

impl BatchReport {
    pub(super) fn time_figures(&self, words: &PageTexts) -> Option<TimeFigures> {
        let points = self.points_without_gaps();
        let first = points.first()?;
        let start = first.at.as_second();
        let span_s = self.over_time.seconds_a_point * points.len() as i64;
        let unit = unit(span_s, words);
        let since =
            format!("{} {} {}", unit.1, words.since, first.at.strftime("%Y-%m-%d %H:%M:%S UTC"));
        let series =
            SeriesPlot { points: &points, start, unit, width: self.over_time.seconds_a_point };
        let figure = |title: &str, lines: &[PlotLine]| {
            let axes =
                PlotAxes { x: &since, y: "", x_is_log2: false, mark: None, has_legend: false };
            let description = lines.iter().map(peak).collect::<Vec<_>>().join(", ");
            let told = PlotCaption { title, description: &description };
            let svg = plot::lines(lines, axes, told);
            PlotFigure { title: title.to_owned(), svg, legend: legend(lines) }
        };
        let jobs = [series.per_minute(words.jobs_per_minute, |point| point.ended)];
        let troubles = [
            series.per_minute("429", |point| point.throttled),
            series.per_minute(words.retries, |point| point.retries),
        ];
        let has_troubles = self.calls.throttled + self.calls.retries > 0;
        Some(TimeFigures {
            jobs: figure(words.jobs_per_minute, &jobs),
            tokens: figure(words.tokens_per_minute, &self.token_lines(&series, words)),
            throttled: has_troubles.then(|| figure(words.throttled_over_time, &troubles)),
        })
    }

    /// Returns the tokens of each deployment, and the quota of all together where it is known.
    fn token_lines(&self, series: &SeriesPlot<'_>, words: &PageTexts) -> Vec<PlotLine> {
        let deployments = self.over_time.deployments.iter().enumerate();
        let called = deployments.filter(|(_, name)| !name.is_empty());
        let line = |(place, name): (usize, &String)| {
            series.per_minute(name, |point| point.tokens_by_deployment[place])
        };
        let mut lines: Vec<PlotLine> = called.map(line).collect();
        lines.extend(self.total_quota().map(|tpm| PlotLine {
            name: words.quota.to_owned(),
            points: series.points.iter().map(|point| (series.x(point), tpm as f64)).collect(),
        }));
        lines
    }

    /// Sums the quotas of all deployments that took part; `None` if one of them is unknown.
    fn total_quota(&self) -> Option<u64> {
        let mut deployments: Vec<_> = self
            .lines
            .iter()
            .filter(|line| !line.deployment.is_empty())
            .map(|line| (&line.deployment, line.tpm))
            .collect();
        deployments.sort_unstable();
        deployments.dedup();
        let sum: Option<u64> = deployments.iter().map(|(_, tpm)| *tpm).sum();
        sum.filter(|tpm| *tpm > 0)
    }

    /// Returns the points, including those in which nothing ended.
    fn points_without_gaps(&self) -> Vec<SeriesPoint> {
        let width = jiff::SignedDuration::from_secs(self.over_time.seconds_a_point);
        let mut filled: Vec<SeriesPoint> = Vec::new();
        for point in &self.over_time.points {
            while let Some(last) = filled.last()
                && last.at + width < point.at
            {
                filled.push(SeriesPoint {
                    at: last.at + width,
                    ended: 0,
                    tokens: 0,
                    throttled: 0,
                    retries: 0,
                    tokens_by_deployment: vec![0; self.over_time.deployments.len()],
                });
            }
            filled.push(point.clone());
        }
        filled
    }

    pub(super) fn distribution_figures(&self, words: &PageTexts) -> Vec<DistributionFigure> {
        let figure = |key, title, unit, spread: &Option<ValueDistribution>| {
            spread.as_ref().map(|spread| DistributionFigure {
                key,
                unit,
                mean: format!("{:.1}", spread.mean),
                figure: distribution_plot((title, unit), words.jobs, spread),
            })
        };
        let (ms, tokens) = (words.milliseconds, words.tokens);
        let figures = [
            figure("latency_ms", words.latency, ms, &self.latency_ms),
            figure("prompt_tokens", words.prompt_size, tokens, &self.prompt_tokens),
            figure("completion_tokens", words.answer_size, tokens, &self.completion_tokens),
        ];
        figures.into_iter().flatten().collect()
    }
}

struct SeriesPlot<'a> {
    points: &'a [SeriesPoint],
    /// Unix seconds.
    start: i64,
    unit: TimeUnit,
    /// Seconds.
    width: i64,
}

impl SeriesPlot<'_> {
    fn x(&self, point: &SeriesPoint) -> f64 {
        (point.at.as_second() - self.start) as f64 / self.unit.0
    }

    fn per_minute(&self, name: &str, of: impl Fn(&SeriesPoint) -> u64) -> PlotLine {
        let times = 60.0 / self.width as f64;
        let point = |point: &SeriesPoint| (self.x(point), of(point) as f64 * times);
        PlotLine { name: name.to_owned(), points: self.points.iter().map(point).collect() }
    }
}

fn unit(span_s: i64, words: &PageTexts) -> TimeUnit {
    match span_s {
        ..300 => (1.0, words.seconds),
        300..18_000 => (60.0, words.minutes),
        _ => (3_600.0, words.hours),
    }
}

/// Describes a line by its name and largest value, for readers who can't see the plot.
fn peak(line: &PlotLine) -> String {
    let most = line.points.iter().map(|point| point.1).fold(0.0, f64::max);
    format!("{} ≤ {}", line.name, with_thousands(most.round() as u64))
}

fn legend(lines: &[PlotLine]) -> Vec<LegendLine> {
    let entry =
        |(n, line): (usize, &PlotLine)| LegendLine { colour: plot::colour(n), text: peak(line) };
    lines.iter().enumerate().map(entry).collect()
}

fn distribution_plot(
    (title, unit): (&str, &str),
    jobs: &str,
    spread: &ValueDistribution,
) -> PlotFigure {
    let bar = |bar: &DistributionBar| (bar.from.log2(), bar.to.log2(), bar.count as f64);
    let bars: Vec<plot::PlotBar> = spread.bars.iter().map(bar).collect();
    let axes = PlotAxes { x: unit, y: jobs, x_is_log2: true, mark: None, has_legend: false };
    let description = format!("p50 {}, p95 {} {unit}", spread.p50, spread.p95);
    let told = PlotCaption { title, description: &description };
    // Equal values have no distribution to plot.
    let svg = (spread.min < spread.max).then(|| plot::bars(&bars, axes, told)).flatten();
    PlotFigure { title: title.to_owned(), svg, legend: Vec::new() }
}
