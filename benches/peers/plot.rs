//! A plot as plain SVG: sizes on a logarithmic axis, cost as a multiple of the echo's, with 95 % intervals.

use std::fmt::Write as _;

use crate::{figures::thousands, trial::Growth};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 52.0;

/// The text of the file.
pub(crate) fn svg(growth: &Growth) -> String {
    let Growth { title, axis, points, .. } = growth;
    let highest = points.iter().map(|(_, cost)| cost.high).fold(1.0, f64::max);
    let top = (highest * 1.15 * 2.0).ceil() / 2.0;
    let logarithms: Vec<_> = points.iter().map(|(size, _)| (*size as f64).log10()).collect();
    let (first, last) = (logarithms.first().copied().unwrap_or(0.0), logarithms.last().copied().unwrap_or(1.0));
    let span = (last - first).max(f64::EPSILON);
    let x = |logarithm: f64| LEFT + (logarithm - first) / span * (WIDTH - LEFT - RIGHT);
    let y = |cost: f64| HEIGHT - BOTTOM - cost / top * (HEIGHT - TOP - BOTTOM);

    let mut marks = String::new();
    let mut tick = 0.0;
    while tick <= top + f64::EPSILON {
        let at = y(tick);
        let _ = writeln!(
            marks,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick:.1}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0
        );
        tick += 0.5;
    }
    let mut line = String::new();
    for ((size, cost), logarithm) in points.iter().zip(&logarithms) {
        let (at, middle) = (x(*logarithm), y(cost.median));
        let _ = write!(line, "{at:.1},{middle:.1} ");
        let _ = writeln!(
            marks,
            "<line class=\"interval\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <circle cx=\"{at:.1}\" cy=\"{middle:.1}\" r=\"3.5\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.2}</text>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            y(cost.low),
            y(cost.high),
            y(cost.high) - 6.0,
            cost.median,
            HEIGHT - BOTTOM + 18.0,
            thousands(*size as u64)
        );
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">
<style>text {{ font: 12px sans-serif; fill: #333 }} .grid {{ stroke: #ddd }} .interval {{ stroke: #1f5fa8; stroke-width: 2 }}
polyline {{ fill: none; stroke: #1f5fa8; stroke-width: 1.5 }} circle {{ fill: #1f5fa8 }}</style>
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>
<text x="{LEFT}" y="24" style="font-size: 14px">{title}</text>
{marks}<polyline points="{}"/>
<text x="{:.1}" y="{:.1}" text-anchor="middle">{axis}</text>
<text x="16" y="{:.1}" text-anchor="middle" transform="rotate(-90 16 {:.1})">CPU, echo = 1</text>
</svg>
"##,
        line.trim_end(),
        LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
        HEIGHT - 10.0,
        HEIGHT / 2.0,
        HEIGHT / 2.0
    )
}
