//! Plots as inline SVG: their colours are the page's, so that one drawing serves light and dark.

use std::fmt::Write;

/// The drawing's size, in its own units; the page scales it.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
/// Room for the labels: left, right, top, bottom.
const MARGIN: [f64; 4] = [56.0, 24.0, 14.0, 42.0];

/// One line of a plot.
pub struct Series<'a> {
    /// Its name in the legend.
    pub name: &'a str,
    /// CSS class of its colour.
    pub class: &'a str,
    /// Its points, x rising.
    pub points: &'a [(f64, f64)],
}

/// A mark on an axis.
struct Tick {
    at: f64,
    label: String,
}

/// An axis: where values lie along it, and its marks.
struct Axis {
    from: f64,
    to: f64,
    log: bool,
    ticks: Vec<Tick>,
}

impl Axis {
    /// From 0 to a round number at or above `most`.
    fn linear(most: f64, label: impl Fn(f64) -> String) -> Self {
        let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
        let step = round_step(most / 5.0);
        let steps = (most / step).ceil().max(1.0);
        let ticks = (0..=steps as u32).map(|i| f64::from(i) * step);
        let ticks = ticks.map(|at| Tick { at, label: label(at) }).collect();
        Self { from: 0.0, to: steps * step, log: false, ticks }
    }

    /// From a power of ten at or below `least` to a round number at or above `most`, marked at the powers of ten.
    fn decades(least: f64, most: f64, label: impl Fn(f64) -> String) -> Self {
        let low = least.max(1e-3).log10().floor();
        let high = round_step(most.max(1e-3)).log10().max(low + 1.0);
        let ticks = (low as i32..=high.floor() as i32).map(|decade| 10f64.powi(decade));
        let ticks = ticks.map(|at| Tick { at, label: label(at) }).collect();
        Self { from: low, to: high, log: true, ticks }
    }

    /// Where `value` lies, 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let value = if self.log { value.max(1e-3).log10() } else { value };
        ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }
}

/// 1, 2 or 5 times a power of ten, at or (but for a rounding error) above `least`.
fn round_step(least: f64) -> f64 {
    let decade = 10f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * decade).find(|step| *step >= least * 0.999).unwrap_or(decade)
}

/// Cumulative distributions over a logarithmic time axis in µs.
pub fn distributions(series: &[Series<'_>]) -> String {
    let values = || series.iter().flat_map(|s| s.points.iter().map(|p| p.0));
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    let (least, most) = if most > 0.0 { (least, most) } else { (1.0, 1000.0) };
    let x = Axis::decades(least, most, decade_label);
    let y = Axis::linear(1.0, |share| format!("{:.0} %", share * 100.0));
    let curves: String = series
        .iter()
        .map(|s| format!("<path class=\"curve {}\" d=\"{}\"/>", s.class, line(&x, &y, s.points)))
        .collect();
    frame(&x, &y, "latency", "share of all", &legend(series), &curves)
}

/// Latency in µs over load, in thousands a second: a curve for each system, and a mark where it is said to saturate.
pub fn loads(series: &[Series<'_>], marks: &[(f64, &str)]) -> String {
    let points = || series.iter().flat_map(|s| s.points.iter());
    let (least, most) =
        (points().map(|p| p.1).fold(f64::INFINITY, f64::min), points().map(|p| p.1).fold(0.0, f64::max));
    let (least, most) = if most > 0.0 { (least, most) } else { (1.0, 1000.0) };
    let ends = marks.iter().map(|mark| mark.0).chain(points().map(|p| p.0));
    let x = Axis::linear(ends.fold(0.0, f64::max), |khz| format!("{khz} k/s"));
    let y = Axis::decades(least, most, decade_label);
    let mut drawing: String = series
        .iter()
        .map(|s| format!("<path class=\"curve {}\" d=\"{}\"/>", s.class, line(&x, &y, s.points)))
        .collect();
    for &(khz, class) in marks {
        let (at, top) = place(&x, &y, (khz, most));
        let floor = HEIGHT - MARGIN[3];
        let _ = write!(drawing, "<path class=\"curve thin mark {class}\" d=\"M{at:.1} {top:.1}V{floor}\"/>");
    }
    frame(&x, &y, "requests", "p99 of GETs", &legend(series), &drawing)
}

/// A count over time, filled below: (ms, count).
pub fn timeline(points: &[(u64, u64)], seconds: f64) -> String {
    let points = thinned(points, 2 * WIDTH as usize);
    let most = points.iter().map(|p| p.1).fold(0.0, f64::max);
    let end = points.last().map_or(seconds, |p| p.0);
    let mut x = Axis::linear(end, |at| format!("{at} s"));
    // The last second is drawn to its end and no further.
    x.to = end.max(1e-3);
    x.ticks.retain(|tick| tick.at <= x.to * 1.001);
    let y = Axis::linear(most.max(5.0), |depth| format!("{depth}"));
    let mut area = String::new();
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        let floor = place(&x, &y, (0.0, 0.0)).1;
        let (left, right) = (place(&x, &y, *first).0, place(&x, &y, *last).0);
        let path = line(&x, &y, &points);
        let _ = write!(
            area,
            "<path class=\"area a\" d=\"{path}L{right:.1} {floor:.1}L{left:.1} {floor:.1}Z\"/><path class=\"curve thin a\" d=\"{path}\"/>"
        );
    }
    frame(&x, &y, "time since the load began", "tasks that wait", "", &area)
}

/// At most `most` points in seconds: of each run of points the highest, so that no peak is lost.
fn thinned(points: &[(u64, u64)], most: usize) -> Vec<(f64, f64)> {
    let each = points.len().div_ceil(most).max(1);
    let highest = |run: &[(u64, u64)]| run.iter().copied().max_by_key(|p| p.1);
    points.chunks(each).filter_map(highest).map(|(ms, depth)| (ms as f64 / 1e3, depth as f64)).collect()
}

fn decade_label(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{} s", us / 1e6),
        us if us >= 1e3 => format!("{} ms", us / 1e3),
        us => format!("{us} µs"),
    }
}

fn place(x: &Axis, y: &Axis, (px, py): (f64, f64)) -> (f64, f64) {
    let [left, right, top, bottom] = MARGIN;
    (left + x.share(px) * (WIDTH - left - right), HEIGHT - bottom - y.share(py) * (HEIGHT - top - bottom))
}

fn line(x: &Axis, y: &Axis, points: &[(f64, f64)]) -> String {
    let mut path = String::new();
    for (i, point) in points.iter().enumerate() {
        let (px, py) = place(x, y, *point);
        let _ = write!(path, "{}{px:.1} {py:.1}", if i == 0 { 'M' } else { 'L' });
    }
    path
}

fn legend(series: &[Series<'_>]) -> String {
    let mut out = String::new();
    for (i, s) in series.iter().enumerate() {
        let y = MARGIN[2] + 14.0 + 18.0 * i as f64;
        let (from, to) = (MARGIN[0] + 14.0, MARGIN[0] + 34.0);
        let _ = write!(
            out,
            "<path class=\"curve {}\" d=\"M{from} {:.1}L{to} {:.1}\"/><text class=\"name\" x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
            s.class,
            y - 4.0,
            y - 4.0,
            to + 8.0,
            s.name
        );
    }
    out
}

fn frame(x: &Axis, y: &Axis, x_title: &str, y_title: &str, legend: &str, drawing: &str) -> String {
    let [left, right, top, bottom] = MARGIN;
    let (floor, end) = (HEIGHT - bottom, WIDTH - right);
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{y_title} over {x_title}\">\n<g class=\"grid\">"
    );
    for tick in &x.ticks {
        let at = left + x.share(tick.at) * (end - left);
        let _ = write!(
            out,
            "<path d=\"M{at:.1} {top}V{floor}\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            floor + 16.0,
            tick.label
        );
    }
    for tick in &y.ticks {
        let at = floor - y.share(tick.at) * (floor - top);
        let _ = write!(
            out,
            "<path d=\"M{left} {at:.1}H{end}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            at + 4.0,
            tick.label
        );
    }
    let _ = write!(
        out,
        "</g>\n<text class=\"title\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{x_title}</text>\n{drawing}\n{legend}\n</svg>",
        end,
        HEIGHT - 6.0
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_on_round_numbers_and_hold_their_values() {
        for most in [0.3, 1.0, 7.0, 23.0, 99.0, 1234.0] {
            let axis = Axis::linear(most, |v| v.to_string());
            assert!(axis.to >= most && (4..=11).contains(&axis.ticks.len()), "{most}: {}", axis.ticks.len());
            assert!((0.0..=1.0).contains(&axis.share(most)));
        }
        let axis = Axis::decades(3.0, 9200.0, decade_label);
        let labels: Vec<&str> = axis.ticks.iter().map(|tick| tick.label.as_str()).collect();
        assert_eq!(labels, ["1 µs", "10 µs", "100 µs", "1 ms", "10 ms"]);
        assert!((axis.share(100.0) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn thinning_keeps_the_peak() {
        let mut points: Vec<(u64, u64)> = (0..10_000).map(|i| (i, 1)).collect();
        points[7777].1 = 900;
        let thin = thinned(&points, 100);
        assert_eq!(thin.len(), 100);
        assert!(thin.iter().any(|p| p.1 == 900.0));
    }

    #[test]
    fn no_value_draws_outside_or_as_nan() {
        for plot in [
            distributions(&[]),
            distributions(&[Series { name: "a", class: "a", points: &[] }]),
            distributions(&[Series { name: "a", class: "a", points: &[(0.0, 0.0), (5.0, 1.0)] }]),
            loads(&[], &[]),
            loads(&[Series { name: "a", class: "a", points: &[(3.0, 0.0)] }], &[(5.0, "a")]),
            timeline(&[], 10.0),
            timeline(&[(0, 0)], 0.0),
            timeline(&[(0, 3), (10_000, 3)], 10.0),
        ] {
            assert!(plot.starts_with("<svg") && plot.ends_with("</svg>"));
            assert!(!plot.contains("NaN") && !plot.contains("inf"), "{plot}");
        }
    }
}
