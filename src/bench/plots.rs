//! Plots as SVG. The only file that knows `plotters`.

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::drawing::{DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::PathElement;
use plotters::series::LineSeries;
use plotters::style::{BLACK, Color, RGBColor, WHITE};

const SIZE: (u32, u32) = (760, 320);

/// Told apart in grey too, and by those who do not see all colours (Okabe and Ito's palette).
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
];

/// One line of a plot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Axes of a plot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axes<'a> {
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    /// The points' x are binary logarithms.
    pub(super) x_is_log2: bool,
    /// Marked by an upright line.
    pub(super) mark: Option<f64>,
}

/// Draws lines; `None` if there is nothing to be drawn.
pub(super) fn svg(lines: &[Line], axes: Axes<'_>) -> Option<String> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let edge =
        |of: fn(&(f64, f64)) -> f64, pick: fn(f64, f64) -> f64| points().map(of).reduce(pick);
    let (low, high) = (edge(|p| p.0, f64::min)?, edge(|p| p.0, f64::max)?);
    let top = edge(|p| p.1, f64::max)?;
    let high = if high > low { high } else { low + 1.0 };
    let top = if top > 0.0 { top * 1.05 } else { 1.0 };
    let mut out = String::new();
    draw(&mut out, lines, axes, (low..high, 0.0..top)).ok()?;
    Some(out)
}

type Ranges = (std::ops::Range<f64>, std::ops::Range<f64>);

fn draw(
    out: &mut String,
    lines: &[Line],
    axes: Axes<'_>,
    (x, y): Ranges,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let area = SVGBackend::with_string(out, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let top = y.end;
    // The powers of two alone, where those are the levels.
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
        .light_line_style(WHITE)
        .x_desc(axes.x)
        .y_desc(axes.y)
        .x_labels(ticks)
        .x_label_formatter(&label_x)
        .y_label_formatter(&label_y)
        .label_style(("sans-serif", 13))
        .draw()?;
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
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
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 13))
        .draw()?;
    area.present()
}

/// A number as short as it can be read.
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

    const AXES: Axes<'_> = Axes { x: "seconds", y: "RPM", x_is_log2: false, mark: Some(1.0) };

    #[test]
    fn a_plot_has_its_names_and_needs_nothing_else() {
        let line = Line { name: "succeeded".into(), points: vec![(0.0, 5.0), (1.0, 7.0)] };
        let drawn = svg(&[line], AXES).unwrap();
        for text in ["<svg", "succeeded", "seconds", "RPM", "<polyline"] {
            assert!(drawn.contains(text), "{text}");
        }
        assert!(!drawn.contains("href"), "nothing from elsewhere");
    }

    #[test]
    fn what_is_flat_or_empty_does_not_fail() {
        let line = |points| Line { name: "n".into(), points };
        assert_eq!(svg(&[line(vec![])], AXES), None);
        assert!(svg(&[line(vec![(3.0, 0.0)])], AXES).is_some());
    }

    #[test]
    fn ticks_are_short() {
        let ticks = [0.0, 0.5, 20.0, 1_500.0, 12_000.0, 2.5e6].map(tick);
        assert_eq!(ticks, ["0", "0.5", "20", "1500", "12k", "2.5M"]);
    }
}
