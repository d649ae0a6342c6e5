//! The page: each figure's bars beside the paper's points, and the table of all.

use std::fmt::Write;

use neap_sim::figures::{Curve, Figure, Report, Row};

use crate::report::html::escaped;
use crate::report::plot::{self, Series};

const STYLE: &str = include_str!("../report/page.css");
/// What the simulator's page adds to the runs'.
const MORE: &str = ".bar.paper{fill:var(--soft)}.bar.ours{fill:var(--a)}.bar.neap{fill:var(--b)}\
                    .curve.soft{stroke:var(--soft)}.curve.good{stroke:var(--good)}.curve.mark{stroke-dasharray:4 3}";
/// Colours of a figure's curves, in the order of their systems.
const CLASSES: [&str; 4] = ["soft", "good", "a", "b"];
/// The drawing's width, and the height of a row's bars, in its own units.
const WIDTH: f64 = 720.0;
const ROW: f64 = 54.0;
/// Room for names.
const LEFT: f64 = 230.0;
const RIGHT: f64 = 90.0;

/// The whole page, with the curves of figures that have some.
pub fn page(report: &Report, curves: &[(Figure, Vec<Curve>)]) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>neap sim</title>\n\
         <style>\n{STYLE}{MORE}</style>\n</head>\n<body>\n<main>\n<header><h1>neap sim</h1>\
         <p>the papers' figures, in virtual time · seed {} · all of it modelled</p></header>\n",
        report.seed
    );
    let neap = &report.neap;
    out.push_str("<section class=\"tiles\">\n");
    for (value, name, remark) in [
        (format!("{:+.1} %", neap.fifo_percent), "FIFO, 16 CPUs", "over on-host ghOSt; Tide +4.6 %"),
        (format!("{:+.1} %", neap.shinjuku_percent), "Shinjuku, 16 CPUs", "over on-host ghOSt; Tide +1.9 %"),
        (format!("{:.2} µs", neap.switch_ns / 1e3), "a switch", "pre-staged; Tide 3.3 to 4.0 µs"),
        (format!("{}", neap.uncached_reads_per_switch), "uncached reads", "that such a switch waits for"),
    ] {
        let _ = writeln!(
            out,
            "<div class=\"tile\"><b>{value}</b><span>{name}</span><small>{remark}</small></div>"
        );
    }
    out.push_str("</section>\n");
    for figure in Figure::ALL {
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.figure == figure).collect();
        if !rows.is_empty() {
            let _ = writeln!(
                out,
                "<figure><figcaption>{} <em>paper, model, Neap</em></figcaption>\n{}</figure>",
                figure.name(),
                bars(&rows)
            );
        }
        for (_, curves) in curves.iter().filter(|(of, curves)| *of == figure && !curves.is_empty()) {
            let _ = writeln!(
                out,
                "<figure><figcaption>{} <em>the model's curves; dashed, where the paper has a system saturate</em>\
                 </figcaption>\n{}</figure>",
                figure.name(),
                drawn(curves)
            );
        }
    }
    table(&mut out, report);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// Latency over load.
fn drawn(curves: &[Curve]) -> String {
    let coloured = || curves.iter().zip(CLASSES);
    let series: Vec<_> = coloured()
        .map(|(curve, class)| Series { name: curve.system, class, points: &curve.points })
        .collect();
    let marks: Vec<_> = coloured().filter_map(|(curve, class)| Some((curve.paper_khz?, class))).collect();
    plot::loads(&series, &marks)
}

/// Three bars a row: the paper's, the model's, Neap's.
fn bars(rows: &[&Row]) -> String {
    let height = ROW * rows.len() as f64;
    let most = rows.iter().flat_map(|row| [row.paper, row.ours, row.neap.unwrap_or(0.0)]).fold(1.0, f64::max);
    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n");
    for (number, row) in rows.iter().enumerate() {
        let top = ROW * number as f64;
        let _ = writeln!(
            out,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 10.0,
            top + 20.0,
            escaped(&row.row),
            LEFT - 10.0,
            top + 35.0,
            escaped(row.unit)
        );
        let three = [("paper", Some(row.paper)), ("ours", Some(row.ours)), ("neap", row.neap)];
        for (at, (class, value)) in three.into_iter().enumerate() {
            let Some(value) = value else { continue };
            let y = top + 6.0 + 14.0 * at as f64;
            let width = (WIDTH - LEFT - RIGHT) * value / most;
            let _ = writeln!(
                out,
                "<rect class=\"bar {class}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"11\" rx=\"2\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{value:.1}</text>",
                LEFT + width + 6.0,
                y + 10.0
            );
        }
    }
    out.push_str("</svg>\n");
    out
}

fn table(out: &mut String, report: &Report) {
    out.push_str(
        "<table class=\"wide\"><caption>Paper, model, difference</caption><tbody>\n\
         <tr><th></th><th>paper</th><th>model</th><th>difference</th><th>Neap</th></tr>\n",
    );
    for row in &report.rows {
        let _ = writeln!(
            out,
            "<tr><td>{} · {}{}</td><td>{:.1}</td><td>{:.1}</td><td>{:+.1} %</td><td>{}</td></tr>",
            row.figure.name(),
            escaped(&row.row),
            if row.input { " (an input)" } else { "" },
            row.paper,
            row.ours,
            row.difference_percent,
            row.neap.map_or_else(String::new, |neap| format!("{neap:.1}"))
        );
    }
    out.push_str("</tbody></table>\n");
    for row in &report.unexplained {
        let _ = writeln!(
            out,
            "<p class=\"note bad\">Not explained: {} ({:+.1} %). {}</p>",
            escaped(&row.row),
            row.difference_percent,
            escaped(row.reason)
        );
    }
    out.push_str("<table class=\"wide\"><caption>Parameters</caption><tbody>\n");
    for (name, parameter) in &report.parameters {
        let from = serde_json::to_value(parameter.from).unwrap_or_default();
        let _ = writeln!(
            out,
            "<tr><td>{} · {}</td><td>{}</td><td>{}</td></tr>",
            escaped(name),
            escaped(&parameter.source),
            parameter.value,
            from.as_str().unwrap_or_default()
        );
    }
    out.push_str("</tbody></table>\n");
}
