//! Small charts as inline SVG: lines over steps, bars against an expectation, and a heat map.
//!
//! Colours are classes of the page's style sheet, so that light and dark themes both read well. Every chart carries a
//! `<title>` with its message in words.

use maud::{Markup, html};

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 26.0;

/// One line of a chart.
pub(crate) struct Line<'a> {
    /// CSS class that gives the colour.
    pub(crate) class: &'a str,
    /// Points, x ascending; points that are not finite are left out.
    pub(crate) points: Vec<(f64, f64)>,
    /// Marks each point with a dot.
    pub(crate) dots: bool,
}

/// A line chart over update steps.
pub(crate) fn lines(title: &str, lines: &[Line], expectation: Option<f64>) -> Markup {
    let points = || lines.iter().flat_map(|line| &line.points).filter(|(x, y)| x.is_finite() && y.is_finite());
    let x_max = points().map(|p| p.0).fold(1.0, f64::max);
    let y_values: Vec<f64> = points().map(|p| p.1).chain(expectation).collect();
    let Some((low, high)) = bounds(&y_values) else {
        return html! { p.muted { "no points yet" } };
    };
    let x_at = |x: f64| LEFT + x / x_max * (WIDTH - LEFT - RIGHT);
    let y_at = |y: f64| TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM);
    let ticks = ticks(low, high, 4);
    html! {
        svg.chart viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" {
            title { (title) }
            @for tick in &ticks {
                line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(fixed(y_at(*tick))) y2=(fixed(y_at(*tick))) {}
                text.tick x=(LEFT - 6.0) y=(fixed(y_at(*tick) + 4.0)) text-anchor="end" { (label(*tick, high - low)) }
            }
            @for tick in self::ticks(0.0, x_max, 5) {
                text.tick x=(fixed(x_at(tick))) y=(HEIGHT - 8.0) text-anchor="middle" { (label(tick, x_max)) }
            }
            @if let Some(expected) = expectation {
                line.expected x1=(LEFT) x2=(WIDTH - RIGHT) y1=(fixed(y_at(expected))) y2=(fixed(y_at(expected))) {}
                text.tick.expected-label x=(WIDTH - RIGHT) y=(fixed(y_at(expected) - 4.0)) text-anchor="end" { "expected" }
            }
            @for line in lines {
                @let shown: Vec<_> = line.points.iter().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
                polyline class=(format!("line {}", line.class))
                    points=(shown.iter().map(|(x, y)| format!("{},{}", fixed(x_at(*x)), fixed(y_at(*y)))).collect::<Vec<_>>().join(" ")) {}
                @if line.dots {
                    @for (x, y) in shown { circle class=(format!("dot {}", line.class)) cx=(fixed(x_at(*x))) cy=(fixed(y_at(*y))) r="3.5" {} }
                }
            }
        }
    }
}

/// One row of a bar chart.
pub(crate) struct Bar {
    /// The row's name.
    pub(crate) name: String,
    /// CSS class that gives the colour.
    pub(crate) class: &'static str,
    /// The value; bars start at 0.
    pub(crate) value: f64,
}

/// Horizontal bars from 0 to 1 (or to the largest value).
pub(crate) fn bars(title: &str, bars: &[Bar]) -> Markup {
    const ROW: f64 = 26.0;
    const NAME: f64 = 170.0;
    let height = ROW * bars.len() as f64 + 4.0;
    let largest = bars.iter().map(|bar| bar.value).filter(|v| v.is_finite()).fold(1.0, f64::max);
    html! {
        svg.chart viewBox=(format!("0 0 {WIDTH} {height}")) role="img" {
            title { (title) }
            @for (index, bar) in bars.iter().enumerate() {
                @let y = ROW * index as f64 + 4.0;
                @let width = (bar.value.max(0.0) / largest * (WIDTH - NAME - 60.0)).max(0.0);
                text.bar-name x=(NAME - 8.0) y=(fixed(y + 15.0)) text-anchor="end" { (bar.name) }
                rect class=(format!("bar {}", bar.class)) x=(NAME) y=(fixed(y)) width=(fixed(width)) height=(ROW - 6.0) rx="2" {}
                text.tick x=(fixed(NAME + width + 6.0)) y=(fixed(y + 15.0)) { (crate::number::score(bar.value)) }
            }
        }
    }
}

/// A heat map of shares in [0, 1]: one row a layer, one column an adapter, the number in each cell.
pub(crate) fn heat_map(title: &str, columns: &[String], rows: &[Vec<f64>]) -> Markup {
    html! {
        table.heat aria-label=(title) {
            thead { tr { th { "layer" } @for column in columns { th { (column) } } } }
            tbody {
                @for (layer, row) in rows.iter().enumerate() {
                    tr {
                        th { (layer) }
                        @for value in row {
                            td style=(format!("--share:{:.0}%", (value.clamp(0.0, 1.0) * 100.0))) { (format!("{value:.2}")) }
                        }
                    }
                }
            }
        }
    }
}

/// Low and high with a margin; `None` without a finite value.
fn bounds(values: &[f64]) -> Option<(f64, f64)> {
    let finite = || values.iter().copied().filter(|value| value.is_finite());
    let (low, high) = (finite().reduce(f64::min)?, finite().reduce(f64::max)?);
    let margin = ((high - low) * 0.08).max(high.abs() * 1e-3).max(1e-6);
    Some((low - margin, high + margin))
}

/// Round numbers inside a range, about `count` of them.
fn ticks(low: f64, high: f64, count: u32) -> Vec<f64> {
    let raw = (high - low) / f64::from(count);
    let power = 10_f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= raw);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step).ceil();
    (0..20).map(|index| (first + f64::from(index)) * step).take_while(|tick| *tick <= high).collect()
}

fn label(value: f64, range: f64) -> String {
    match range {
        r if r >= 10.0 => format!("{value:.0}"),
        r if r >= 1.0 => format!("{value:.1}"),
        r if r >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A coordinate with one digit, so that pages stay small and equal views give equal bytes.
fn fixed(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 1.0, 4), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert!(ticks(0.813, 0.867, 4).iter().all(|tick| (0.813..=0.867).contains(tick)));
    }

    #[test]
    fn a_value_that_is_not_a_number_is_not_drawn() {
        let line = Line { class: "a", points: vec![(0.0, f64::NAN), (1.0, 2.0), (2.0, 3.0)], dots: false };
        let svg = lines("t", &[line], None).into_string();
        assert!(!svg.contains("NaN") && svg.matches(',').count() == 2, "{svg}");
    }
}
