//! Bars, one group for each scenario: how each way compares with the direct connection.

use std::fmt::Write as _;

use crate::results::Results;
use crate::scenarios::{Scenario, Unit};
use crate::ways::Way;

const LABEL: usize = 270;
const BAR: usize = 11;
/// What is compared.
const PROXIES: [Way; 4] = [Way::Natsmux, Way::Shared, Way::Haproxy, Way::Leaf];
const GROUP: usize = PROXIES.len() * BAR + 14;
/// Pixels for a ratio of 1.
const ONE: f64 = 220.0;
const MOST: f64 = 2.2;
const WIDTH: usize = LABEL + (ONE * MOST) as usize + 60;

pub(crate) fn colour(way: Way) -> &'static str {
    match way {
        Way::Direct => "#999999",
        Way::Natsmux => "#0b6e4f",
        Way::Shared => "#62b58f",
        Way::Haproxy => "#d08c30",
        Way::Leaf => "#5b7db1",
    }
}

/// An SVG: for each scenario how much better or worse than direct, more is better.
pub(crate) fn draw(results: &Results, scenarios: &[&Scenario]) -> String {
    let shown: Vec<_> = scenarios
        .iter()
        .filter(|scenario| scenario.unit != Unit::Bytes)
        .collect();
    let height = 50 + GROUP * shown.len();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut at = LABEL;
    for way in PROXIES {
        let (fill, name) = (colour(way), way.name());
        let _ = writeln!(
            svg,
            "<rect x=\"{at}\" y=\"12\" width=\"11\" height=\"11\" fill=\"{fill}\"/>\
             <text x=\"{}\" y=\"22\">{name}</text>",
            at + 16
        );
        at += 90;
    }
    let _ = writeln!(
        svg,
        "<text x=\"10\" y=\"22\">direct = 1, more is better</text>"
    );
    for (number, scenario) in shown.iter().enumerate() {
        let top = 40 + GROUP * number;
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{}\">{}</text>",
            top + 2 * BAR,
            scenario.name
        );
        for (row, way) in PROXIES.into_iter().enumerate() {
            let Some([ratio, ..]) =
                results.ratio(scenario.name, way, Way::Direct, |sample| sample.value)
            else {
                continue;
            };
            let better = match scenario.unit {
                Unit::Microseconds => 1.0 / ratio,
                Unit::PerSecond | Unit::Bytes => ratio,
            };
            let (y, width) = (top + row * BAR, better.min(MOST) * ONE);
            let _ = writeln!(
                svg,
                "<rect x=\"{LABEL}\" y=\"{y}\" width=\"{width:.0}\" height=\"{}\" fill=\"{}\"/>\
                 <text x=\"{:.0}\" y=\"{}\" font-size=\"10\">{better:.2}</text>",
                BAR - 1,
                colour(way),
                LABEL as f64 + width + 4.0,
                y + BAR - 2
            );
        }
    }
    let one = LABEL as f64 + ONE;
    let _ = writeln!(
        svg,
        "<line x1=\"{one}\" x2=\"{one}\" y1=\"30\" y2=\"{}\" stroke=\"{}\"/>\n</svg>",
        height - 10,
        colour(Way::Direct)
    );
    svg
}
