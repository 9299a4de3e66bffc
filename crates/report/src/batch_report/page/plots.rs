//! Plots of the page, each with a text description of its figures.

use super::super::page_texts::PageTexts;
use super::super::{BatchReport, SeriesPoint, ValueDistribution};
use super::{escape_xml, span, table, with_thousands};
use crate::plot::{self, PlotAxes, PlotCaption, PlotLine};

/// Unit of the time axis: its seconds, and its name.
type TimeUnit = (f64, &'static str);

impl BatchReport {
    pub(super) fn time_section(&self, words: &PageTexts) -> String {
        let points = self.points_without_gaps();
        let Some(first) = points.first() else { return String::new() };
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
            figure(title, plot::lines(lines, axes, told), &legend(lines))
        };
        let jobs = [series.per_minute(words.jobs_per_minute, |point| point.ended)];
        let troubles = [
            series.per_minute("429", |point| point.throttled),
            series.per_minute(words.retries, |point| point.retries),
        ];
        let has_troubles = self.calls.throttled + self.calls.retries > 0;
        format!(
            "<h2>{}</h2>{}{}<p class=\"faint\">{}</p>{}",
            words.over_time,
            figure(words.jobs_per_minute, &jobs),
            figure(words.tokens_per_minute, &self.token_lines(&series, words)),
            words.tokens_note,
            if has_troubles { figure(words.throttled_over_time, &troubles) } else { String::new() },
        )
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

    pub(super) fn distribution_section(&self, words: &PageTexts) -> String {
        let spreads = [
            (words.latency, words.milliseconds, "latency_ms", &self.latency_ms),
            (words.prompt_size, words.tokens, "prompt_tokens", &self.prompt_tokens),
            (words.answer_size, words.tokens, "completion_tokens", &self.completion_tokens),
        ];
        let shown = |(title, unit, key, spread): (&str, &str, &str, &Option<ValueDistribution>)| {
            spread.as_ref().map(|spread| distribution_figure(words, (title, unit, key), spread))
        };
        let shown: String = spreads.into_iter().filter_map(shown).collect();
        if shown.is_empty() {
            return String::new();
        }
        format!("<h2>{}</h2>{shown}", words.distributions)
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

fn legend(lines: &[PlotLine]) -> String {
    let entry = |(n, line): (usize, &PlotLine)| {
        let colour = plot::colour(n);
        let mark = format!("<span aria-hidden=\"true\" style=\"color:{colour}\">■</span>");
        format!("{mark} {}", escape_xml(&peak(line)))
    };
    lines.iter().enumerate().map(entry).collect::<Vec<_>>().join(" &nbsp; ")
}

fn distribution_figure(
    words: &PageTexts,
    (title, unit, key): (&str, &str, &str),
    spread: &ValueDistribution,
) -> String {
    let bar =
        |bar: &super::super::DistributionBar| (bar.from.log2(), bar.to.log2(), bar.count as f64);
    let bars: Vec<plot::PlotBar> = spread.bars.iter().map(bar).collect();
    let axes = PlotAxes { x: unit, y: words.jobs, x_is_log2: true, mark: None, has_legend: false };
    let description = format!("p50 {}, p95 {} {unit}", spread.p50, spread.p95);
    let told = PlotCaption { title, description: &description };
    let figures = [
        (words.least, "min", spread.min),
        ("p50", "p50", spread.p50),
        ("p90", "p90", spread.p90),
        ("p95", "p95", spread.p95),
        ("p99", "p99", spread.p99),
        (words.most, "max", spread.max),
        (words.jobs, "count", spread.count),
    ];
    let cell = |(_, name, value): &(&str, &str, u64)| {
        format!("<td class=\"n\">{}</td>", span(&format!("/{key}/{name}"), *value))
    };
    let mean = format!("<td class=\"n\">{:.1}</td>", spread.mean);
    let cells: String = figures.iter().map(cell).chain([mean]).collect();
    let heads: Vec<&str> = figures.iter().map(|figure| figure.0).chain([words.mean]).collect();
    let heads = [&[""], heads.as_slice()].concat();
    let row = format!("<tr><th scope=\"row\">{}</th>{cells}</tr>", escape_xml(unit));
    // Equal values have no distribution to plot.
    let bars = (spread.min < spread.max).then(|| plot::bars(&bars, axes, told)).flatten();
    let title_alone = format!("<h3>{title}</h3>");
    let figure = bars.map_or(title_alone, |bars| figure(title, Some(bars), ""));
    figure + &table("", &heads, &row)
}

/// Renders a plot, and the HTML under it.
fn figure(caption: &str, svg: Option<String>, under: &str) -> String {
    svg.map_or_else(String::new, |svg| {
        format!(
            "<figure><figcaption>{}</figcaption>{svg}<div class=\"faint\">{under}</div></figure>",
            escape_xml(caption),
        )
    })
}
