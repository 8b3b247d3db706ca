//! How cost grows with sessions, subscriptions and subscribers: curves.

use std::fmt::Write as _;

use crate::idle;
use crate::messages::{self, Shape};
use crate::plot::colour;
use crate::results::Results;
use crate::scenarios::{ONE_TO_ONE, Scenario, Unit};
use crate::ways::Way;

/// One curve for each way: what is drawn over the numbers.
pub(crate) struct Curve {
    title: &'static str,
    unit: &'static str,
    points: Vec<(usize, Scenario)>,
}

/// A leaf node is another broker, and grows as one.
pub(crate) const WAYS: [Way; 3] = [Way::Natsmux, Way::Shared, Way::Haproxy];

pub(crate) fn all() -> Vec<Curve> {
    let fan_in = |publishers| Shape {
        publishers,
        burst: 1,
        threads: 2,
        ..ONE_TO_ONE
    };
    let fan_out = |receivers| Shape {
        receivers,
        to_all: true,
        ..ONE_TO_ONE
    };
    vec![
        Curve {
            title: "sessions that publish to one",
            unit: "proxy CPU for a message, µs",
            points: vec![
                busy(10, "fan-in of 10", fan_in(10)),
                busy(100, "fan-in of 100", fan_in(100)),
                busy(1_000, "fan-in of 1,000", fan_in(1_000)),
                busy(9_000, "fan-in of 9,000", fan_in(9_000)),
            ],
        },
        Curve {
            title: "subscribers of one that publishes",
            unit: "proxy CPU for a delivery, µs",
            points: vec![
                busy(1, "fan-out to 1", fan_out(1)),
                busy(10, "fan-out to 10", fan_out(10)),
                busy(100, "fan-out to 100", fan_out(100)),
                busy(1_000, "fan-out to 1,000", fan_out(1_000)),
            ],
        },
        Curve {
            title: "idle sessions with 10 subscriptions",
            unit: "memory of a session, kB",
            points: vec![
                at_rest(100, "100 idle sessions", 100, 10),
                at_rest(1_000, "1,000 idle sessions", 1_000, 10),
                at_rest(9_000, "9,000 idle sessions", 9_000, 10),
            ],
        },
        Curve {
            title: "subscriptions of each of 1,000 idle sessions",
            unit: "memory of a session, kB",
            points: vec![
                at_rest(1, "1 subscription each", 1_000, 1),
                at_rest(10, "10 subscriptions each", 1_000, 10),
                at_rest(100, "100 subscriptions each", 1_000, 100),
            ],
        },
    ]
}

impl Curve {
    pub(crate) fn scenarios(&self) -> impl Iterator<Item = &Scenario> {
        self.points.iter().map(|(_, scenario)| scenario)
    }
}

fn busy(number: usize, name: &'static str, shape: Shape) -> (usize, Scenario) {
    let play = move |site: &_| messages::play(site, &site.near(), &site.near(), &shape);
    let scenario = Scenario {
        name,
        unit: Unit::PerSecond,
        play: Box::new(play),
    };
    (number, scenario)
}

fn at_rest(
    number: usize,
    name: &'static str,
    sessions: usize,
    subscriptions: usize,
) -> (usize, Scenario) {
    let scenario = Scenario {
        name,
        unit: Unit::Bytes,
        play: Box::new(move |site| idle::grow(site, sessions, subscriptions)),
    };
    (number, scenario)
}

const WIDTH: f64 = 320.0;
const HEIGHT: f64 = 170.0;
const MARGIN: f64 = 50.0;
const PANEL: f64 = HEIGHT + 2.0 * MARGIN;

/// An SVG: a panel for each curve, the number of things on a logarithmic axis.
pub(crate) fn draw(results: &Results, curves: &[Curve]) -> String {
    let (columns, rows) = (2, curves.len().div_ceil(2));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        columns as f64 * (WIDTH + 2.0 * MARGIN),
        rows as f64 * PANEL + 20.0
    );
    for (number, way) in WAYS.into_iter().enumerate() {
        let at = MARGIN + 100.0 * number as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{at}\" y=\"8\" width=\"11\" height=\"11\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"18\">{}</text>",
            colour(way),
            at + 16.0,
            way.name()
        );
    }
    for (number, curve) in curves.iter().enumerate() {
        let left = MARGIN + (number % columns) as f64 * (WIDTH + 2.0 * MARGIN);
        let top = 20.0 + MARGIN + (number / columns) as f64 * PANEL;
        panel(&mut svg, results, curve, (left, top));
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, results: &Results, curve: &Curve, (left, top): (f64, f64)) {
    let value = |scenario: &Scenario, way| match scenario.unit {
        Unit::Bytes => results
            .median_value(scenario.name, way)
            .map(|bytes| bytes / 1_000.0),
        _ => results.proxy_microseconds(scenario.name, way),
    };
    let values = |way| {
        let of_way = move |(at, scenario): &(usize, Scenario)| Some((*at, value(scenario, way)?));
        curve.points.iter().filter_map(of_way).collect::<Vec<_>>()
    };
    let all = WAYS.into_iter().flat_map(values);
    let most = all.map(|(_, value)| value).fold(0.0, f64::max).max(0.001) * 1.1;
    let ends = (curve.points.first(), curve.points.last());
    let (Some((least, _)), Some((last, _))) = ends else {
        return;
    };
    let (low, high) = ((*least as f64).ln(), (*last as f64).ln());
    let x = |number: usize| left + WIDTH * ((number as f64).ln() - low) / (high - low).max(0.1);
    let y = |value: f64| top + HEIGHT * (1.0 - value / most);
    let (bottom, right) = (top + HEIGHT, left + WIDTH);
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>\
         <text x=\"{left}\" y=\"{}\" fill=\"#666666\">{}</text>\
         <path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#999999\"/>",
        top - 22.0,
        curve.title,
        top - 8.0,
        curve.unit
    );
    for (number, _) in &curve.points {
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{}\" text-anchor=\"middle\">{number}</text>",
            x(*number),
            bottom + 16.0
        );
    }
    for way in WAYS {
        let points = values(way);
        let line: Vec<String> = points
            .iter()
            .map(|(number, value)| format!("{:.0},{:.0}", x(*number), y(*value)))
            .collect();
        let fill = colour(way);
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{fill}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        for (number, value) in points {
            let (x, y) = (x(number), y(value));
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.0}\" cy=\"{y:.0}\" r=\"3\" fill=\"{fill}\"/>\
                 <text x=\"{x:.0}\" y=\"{:.0}\" font-size=\"10\" fill=\"{fill}\">{value:.2}</text>",
                y - 6.0
            );
        }
    }
}
