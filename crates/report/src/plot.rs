//! Plots as SVG, for embedding in a page. The only file that knows `plotters`.
//!
//! A plot has no background of its own, and [`STYLE`] gives it the page's colours, so that it is
//! readable on light and dark pages and in print. Screen readers get its title and description.

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::drawing::{DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{PathElement, Rectangle};
use plotters::series::LineSeries;
use plotters::style::{BLACK, Color, RGBColor, TRANSPARENT, WHITE};

/// Rules for the page's style sheet: black strokes take the page's ink, white fills its paper.
pub const STYLE: &str = "svg{max-width:100%;height:auto}svg text{fill:var(--ink)}\
svg [stroke=\"#000000\"]{stroke:var(--ink)}svg [fill=\"#FFFFFF\"]{fill:var(--paper)}";

const SIZE: (u32, u32) = (760, 320);

/// Distinguishable in grey too, and for colour-blind readers (Okabe and Ito's palette).
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
];

/// One line of a plot.
#[derive(Debug, Clone, PartialEq)]
pub struct PlotLine {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// One bar of a plot: start, end, height.
pub type PlotBar = (f64, f64, f64);

/// Axes of a plot.
#[derive(Debug, Clone, Copy)]
pub struct PlotAxes<'a> {
    pub x: &'a str,
    pub y: &'a str,
    /// The points' x are binary logarithms.
    pub x_is_log2: bool,
    /// Marked by a vertical line.
    pub mark: Option<f64>,
    /// Line names stand in the plot, not beside it.
    pub has_legend: bool,
}

/// Text alternative for screen readers.
#[derive(Debug, Clone, Copy)]
pub struct PlotCaption<'a> {
    pub title: &'a str,
    pub description: &'a str,
}

/// Draws lines; `None` if there is nothing to draw.
pub fn lines(lines: &[PlotLine], axes: PlotAxes<'_>, caption: PlotCaption<'_>) -> Option<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let edge =
        |of: fn(&(f64, f64)) -> f64, pick: fn(f64, f64) -> f64| points().map(of).reduce(pick);
    let (low, high) = (edge(|p| p.0, f64::min)?, edge(|p| p.0, f64::max)?);
    let top = edge(|p| p.1, f64::max)?;
    let high = if high > low { high } else { low + 1.0 };
    render(&PlotShapes { lines, bars: &[] }, axes, (low..high, 0.0..with_headroom(top)), caption)
}

/// Draws bars side by side; `None` if there are none.
pub fn bars(bars: &[PlotBar], axes: PlotAxes<'_>, caption: PlotCaption<'_>) -> Option<String> {
    let (low, high) = (bars.first()?.0, bars.last()?.1);
    let top = bars.iter().map(|bar| bar.2).reduce(f64::max)?;
    render(&PlotShapes { lines: &[], bars }, axes, (low..high, 0.0..with_headroom(top)), caption)
}

fn with_headroom(top: f64) -> f64 {
    if top > 0.0 { top * 1.05 } else { 1.0 }
}

/// Returns the colour of the n-th line, for a legend beside its plot.
pub fn colour(n: usize) -> String {
    let RGBColor(red, green, blue) = COLOURS[n % COLOURS.len()];
    format!("#{red:02x}{green:02x}{blue:02x}")
}

struct PlotShapes<'a> {
    lines: &'a [PlotLine],
    bars: &'a [PlotBar],
}

type AxisRanges = (std::ops::Range<f64>, std::ops::Range<f64>);

fn render(
    shapes: &PlotShapes<'_>,
    axes: PlotAxes<'_>,
    ranges: AxisRanges,
    caption: PlotCaption<'_>,
) -> Option<String> {
    let mut svg = String::new();
    draw(&mut svg, shapes, axes, ranges).ok()?;
    let begin = svg.find("<svg ")? + "<svg ".len();
    let content = begin + svg[begin..].find('>')? + 1;
    let PlotCaption { title, description } = caption;
    let told =
        format!("<title>{}</title><desc>{}</desc>", escape_xml(title), escape_xml(description));
    svg.insert_str(content, &told);
    let label = format!("role=\"img\" aria-label=\"{}\" ", escape_xml(title));
    svg.insert_str(begin, &label);
    Some(svg)
}

fn draw(
    out: &mut String,
    shapes: &PlotShapes<'_>,
    axes: PlotAxes<'_>,
    (x, y): AxisRanges,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let area = SVGBackend::with_string(out, SIZE).into_drawing_area();
    let top = y.end;
    // Only the powers of two, where those are the levels.
    let ticks = if axes.x_is_log2 { (x.end - x.start).ceil() as usize + 1 } else { 10 };
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)?;
    let label_x = |x: &f64| tick(if axes.x_is_log2 { x.exp2() } else { *x });
    let label_y = |y: &f64| tick(*y);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(axes.x)
        .y_desc(axes.y)
        .x_labels(ticks)
        .x_label_formatter(&label_x)
        .y_label_formatter(&label_y)
        .label_style(("sans-serif", 13))
        .draw()?;
    let bar = |(from, to, height): &PlotBar| {
        Rectangle::new([(*from, 0.0), (*to, *height)], COLOURS[0].mix(0.7).filled())
    };
    chart.draw_series(shapes.bars.iter().map(bar))?;
    for (line, colour) in shapes.lines.iter().zip(COLOURS.iter().cycle()) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    if let Some(at) = axes.mark {
        let style = BLACK.mix(0.5).stroke_width(1);
        chart.draw_series(LineSeries::new([(at, 0.0), (at, top)], style))?;
    }
    if axes.has_legend {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .label_font(("sans-serif", 13))
            .draw()?;
    }
    area.present()
}

/// Escapes text for HTML and XML, between tags and in attributes.
pub fn escape_xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Formats a number as short as it can be read.
fn tick(value: f64) -> String {
    match value.abs() {
        large if large >= 1e6 => format!("{}M", short(value / 1e6)),
        large if large >= 1e4 => format!("{}k", short(value / 1e3)),
        _ => short(value),
    }
}

fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: PlotCaption<'_> = PlotCaption { title: "Throughput", description: "a < b" };
    const AXES: PlotAxes<'_> =
        PlotAxes { x: "seconds", y: "RPM", x_is_log2: false, mark: Some(1.0), has_legend: true };

    #[test]
    fn a_plot_has_its_names_and_needs_nothing_else() {
        let line = PlotLine { name: "succeeded".into(), points: vec![(0.0, 5.0), (1.0, 7.0)] };
        let drawn = lines(&[line], AXES, TOLD).unwrap();
        for text in ["<svg", "succeeded", "seconds", "RPM", "<polyline", "<desc>a &lt; b</desc>"] {
            assert!(drawn.contains(text), "{text}");
        }
        assert!(!drawn.contains("href"), "nothing from elsewhere");
    }

    #[test]
    fn what_is_flat_or_empty_does_not_fail() {
        let line = |points| PlotLine { name: "n".into(), points };
        assert_eq!(lines(&[line(vec![])], AXES, TOLD), None);
        assert!(lines(&[line(vec![(3.0, 0.0)])], AXES, TOLD).is_some());
        const BARE: PlotAxes<'_> = PlotAxes { has_legend: false, ..AXES };
        assert_eq!(bars(&[], BARE, TOLD), None);
        assert!(bars(&[(0.0, 1.0, 3.0), (1.0, 2.0, 0.0)], BARE, TOLD).is_some());
    }

    #[test]
    fn ticks_are_short() {
        let ticks = [0.0, 0.5, 20.0, 1_500.0, 12_000.0, 2.5e6].map(tick);
        assert_eq!(ticks, ["0", "0.5", "20", "1500", "12k", "2.5M"]);
    }
}
