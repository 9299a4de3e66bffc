//! The plots of the page, each with its figures in words.

use super::super::words::Words;
use super::super::{Account, Point, Spread};
use super::{escaped, grouped, span, table};
use crate::plot::{self, Axes, Line, Told};

/// A unit of time: seconds, in which the axis is marked, and its name.
type Unit = (f64, &'static str);

impl Account {
    pub(super) fn time_section(&self, words: &Words) -> String {
        let points = self.filled();
        let Some(first) = points.first() else { return String::new() };
        let start = first.at.as_second();
        let span_s = self.over_time.seconds_a_point * points.len() as i64;
        let unit = unit(span_s, words);
        let since =
            format!("{} {} {}", unit.1, words.since, first.at.strftime("%Y-%m-%d %H:%M:%S UTC"));
        let series =
            OverTime { points: &points, start, unit, width: self.over_time.seconds_a_point };
        let figure = |title: &str, lines: &[Line]| {
            let axes = Axes { x: &since, y: "", x_is_log2: false, mark: None, has_legend: false };
            let description = lines.iter().map(peak).collect::<Vec<_>>().join(", ");
            let told = Told { title, description: &description };
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

    /// The tokens of each deployment, and the quota of all together where it is known.
    fn token_lines(&self, series: &OverTime<'_>, words: &Words) -> Vec<Line> {
        let deployments = self.over_time.deployments.iter().enumerate();
        let called = deployments.filter(|(_, name)| !name.is_empty());
        let line = |(place, name): (usize, &String)| {
            series.per_minute(name, |point| point.tokens_by_deployment[place])
        };
        let mut lines: Vec<Line> = called.map(line).collect();
        lines.extend(self.quota().map(|tpm| Line {
            name: words.quota.to_owned(),
            points: series.points.iter().map(|point| (series.x(point), tpm as f64)).collect(),
        }));
        lines
    }

    /// Of all deployments that took part; unknown if that of one is.
    fn quota(&self) -> Option<u64> {
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

    /// The points with those in which nothing ended.
    fn filled(&self) -> Vec<Point> {
        let width = jiff::SignedDuration::from_secs(self.over_time.seconds_a_point);
        let mut filled: Vec<Point> = Vec::new();
        for point in &self.over_time.points {
            while let Some(last) = filled.last()
                && last.at + width < point.at
            {
                filled.push(Point {
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

    pub(super) fn spread_section(&self, words: &Words) -> String {
        let spreads = [
            (words.latency, words.milliseconds, "latency_ms", &self.latency_ms),
            (words.prompt_size, words.tokens, "prompt_tokens", &self.prompt_tokens),
            (words.answer_size, words.tokens, "completion_tokens", &self.completion_tokens),
        ];
        let shown = |(title, unit, key, spread): (&str, &str, &str, &Option<Spread>)| {
            spread.as_ref().map(|spread| spread_figure(words, (title, unit, key), spread))
        };
        let shown: String = spreads.into_iter().filter_map(shown).collect();
        if shown.is_empty() {
            return String::new();
        }
        format!("<h2>{}</h2>{shown}", words.distributions)
    }
}

struct OverTime<'a> {
    points: &'a [Point],
    /// Unix seconds.
    start: i64,
    unit: Unit,
    /// Seconds.
    width: i64,
}

impl OverTime<'_> {
    fn x(&self, point: &Point) -> f64 {
        (point.at.as_second() - self.start) as f64 / self.unit.0
    }

    fn per_minute(&self, name: &str, of: impl Fn(&Point) -> u64) -> Line {
        let times = 60.0 / self.width as f64;
        let point = |point: &Point| (self.x(point), of(point) as f64 * times);
        Line { name: name.to_owned(), points: self.points.iter().map(point).collect() }
    }
}

fn unit(span_s: i64, words: &Words) -> Unit {
    match span_s {
        ..300 => (1.0, words.seconds),
        300..18_000 => (60.0, words.minutes),
        _ => (3_600.0, words.hours),
    }
}

/// A line's name and largest value, for those who don't see it.
fn peak(line: &Line) -> String {
    let most = line.points.iter().map(|point| point.1).fold(0.0, f64::max);
    format!("{} ≤ {}", line.name, grouped(most.round() as u64))
}

fn legend(lines: &[Line]) -> String {
    let entry = |(n, line): (usize, &Line)| {
        let colour = plot::colour(n);
        let mark = format!("<span aria-hidden=\"true\" style=\"color:{colour}\">■</span>");
        format!("{mark} {}", escaped(&peak(line)))
    };
    lines.iter().enumerate().map(entry).collect::<Vec<_>>().join(" &nbsp; ")
}

fn spread_figure(words: &Words, (title, unit, key): (&str, &str, &str), spread: &Spread) -> String {
    let bar = |bar: &super::super::Bar| (bar.from.log2(), bar.to.log2(), bar.count as f64);
    let bars: Vec<plot::Bar> = spread.bars.iter().map(bar).collect();
    let axes = Axes { x: unit, y: words.jobs, x_is_log2: true, mark: None, has_legend: false };
    let description = format!("p50 {}, p95 {} {unit}", spread.p50, spread.p95);
    let told = Told { title, description: &description };
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
    let row = format!("<tr><th scope=\"row\">{}</th>{cells}</tr>", escaped(unit));
    // Of equal values there is nothing to be seen.
    let bars = (spread.min < spread.max).then(|| plot::bars(&bars, axes, told)).flatten();
    let title_alone = format!("<h3>{title}</h3>");
    let figure = bars.map_or(title_alone, |bars| figure(title, Some(bars), ""));
    figure + &table("", &heads, &row)
}

/// A plot, and what stands under it, as HTML.
fn figure(caption: &str, svg: Option<String>, under: &str) -> String {
    svg.map_or_else(String::new, |svg| {
        format!(
            "<figure><figcaption>{}</figcaption>{svg}<div class=\"faint\">{under}</div></figure>",
            escaped(caption),
        )
    })
}
