//! What was measured, and what it comes to: medians, spread, and ratios within a round.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::sample::Sample;
use crate::scenarios::{Scenario, Unit};
use crate::ways::Way;

/// Everything, by scenario and way, one sample for each round.
#[derive(Debug, Default)]
pub(crate) struct Results {
    samples: BTreeMap<(&'static str, Way), Vec<Sample>>,
}

impl Results {
    pub(crate) fn add(&mut self, scenario: &'static str, way: Way, sample: Sample) {
        self.samples
            .entry((scenario, way))
            .or_default()
            .push(sample);
    }

    fn of(&self, scenario: &'static str, way: Way) -> &[Sample] {
        self.samples
            .get(&(scenario, way))
            .map_or(&[], Vec::as_slice)
    }

    /// The median over all rounds of what `figure` takes from a sample.
    fn median(&self, scenario: &'static str, way: Way, figure: fn(&Sample) -> f64) -> Option<f64> {
        median(self.of(scenario, way).iter().map(figure))
    }

    /// The median of what a scenario is about.
    pub(crate) fn median_value(&self, scenario: &'static str, way: Way) -> Option<f64> {
        self.median(scenario, way, |sample| sample.value)
    }

    /// The median of what the proxy needed for a message, in microseconds of processor time.
    pub(crate) fn proxy_microseconds(&self, scenario: &'static str, way: Way) -> Option<f64> {
        self.median(scenario, way, |sample| {
            sample.per_million(sample.used.proxy)
        })
    }

    /// The median of the ratios to `base` within each round, and the least and the most.
    pub(crate) fn ratio(
        &self,
        scenario: &'static str,
        way: Way,
        base: Way,
        figure: fn(&Sample) -> f64,
    ) -> Option<[f64; 3]> {
        let pairs = self.of(scenario, way).iter().zip(self.of(scenario, base));
        let mut ratios: Vec<f64> = pairs
            .map(|(one, other)| figure(one) / figure(other))
            .filter(|ratio| ratio.is_finite())
            .collect();
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (*ratios.first()?, *ratios.last()?);
        Some([median(ratios.iter().copied())?, least, most])
    }

    /// One row for each scenario and way.
    pub(crate) fn table(&self, scenarios: &[&Scenario]) -> String {
        let mut text = String::from(
            "| scenario | way | median | of direct | of HAProxy (least-most) | p99 of HAProxy | \
             proxy CPU, s/million | broker CPU | generator busy | lost, misplaced |\n\
             |---|---|---|---|---|---|---|---|---|---|\n",
        );
        for scenario in scenarios {
            for way in Way::ALL {
                if !self.of(scenario.name, way).is_empty() {
                    self.row(&mut text, scenario, way);
                }
            }
        }
        text
    }

    fn row(&self, text: &mut String, scenario: &Scenario, way: Way) {
        let name = scenario.name;
        let figure = |figure: fn(&Sample) -> f64| self.median(name, way, figure).unwrap_or(0.0);
        let value = figure(|sample| sample.value);
        let value = match scenario.unit {
            Unit::PerSecond => format!("{}/s", thousands(value)),
            Unit::Microseconds => {
                let p99 = figure(|sample| sample.p99.unwrap_or(0.0));
                format!("{value:.0} µs, p99 {p99:.0}")
            }
            Unit::Bytes => format!("{value:.0} B"),
        };
        let short = |ratio: Option<[f64; 3]>| {
            ratio.map_or("-".to_owned(), |[median, ..]| format!("{median:.2}"))
        };
        let direct = short(self.ratio(name, way, Way::Direct, |sample| sample.value));
        let haproxy = self.ratio(name, way, Way::Haproxy, |sample| sample.value);
        let haproxy = haproxy.map_or("-".to_owned(), |[median, least, most]| {
            format!("{median:.2} ({least:.2}-{most:.2})")
        });
        let p99 = |sample: &Sample| sample.p99.unwrap_or(f64::NAN);
        let p99 = short(self.ratio(name, way, Way::Haproxy, p99));
        let proxy = figure(|sample| sample.per_million(sample.used.proxy));
        let broker = figure(|sample| sample.per_million(sample.used.broker));
        let busy = figure(|sample| {
            let took = sample.took.as_nanos() as f64;
            if took > 0.0 {
                100.0 * sample.used.generator as f64 / took
            } else {
                0.0
            }
        });
        let sum = |figure: fn(&Sample) -> u64| self.of(name, way).iter().map(figure).sum::<u64>();
        let (lost, misplaced) = (sum(|sample| sample.lost), sum(|sample| sample.misplaced));
        let _ = writeln!(
            text,
            "| {name} | {} | {value} | {direct} | {haproxy} | {p99} | {proxy:.2} | {broker:.2} | \
             {busy:.0} % | {lost}, {misplaced} |",
            way.name()
        );
    }

    /// Every sample.
    pub(crate) fn json(&self, scenarios: &[&Scenario]) -> String {
        let rows: Vec<Value> = scenarios
            .iter()
            .flat_map(|scenario| Way::ALL.map(|way| (scenario, way)))
            .map(|(scenario, way)| {
                let samples = self.of(scenario.name, way).iter();
                let samples: Vec<Value> = samples
                    .map(|sample| {
                        json!({
                            "value": sample.value,
                            "p99": sample.p99,
                            "messages": sample.messages,
                            "generator_ns": sample.used.generator,
                            "broker_ns": sample.used.broker,
                            "proxy_ns": sample.used.proxy,
                            "lost": sample.lost,
                            "misplaced": sample.misplaced,
                        })
                    })
                    .collect();
                json!({
                    "scenario": scenario.name,
                    "unit": format!("{:?}", scenario.unit),
                    "way": way.name(),
                    "samples": samples,
                })
            })
            .collect();
        format!("{:#}\n", Value::from(rows))
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn thousands(value: f64) -> String {
    match value {
        value if value >= 100_000.0 => format!("{:.0}k", value / 1_000.0),
        value if value >= 10_000.0 => format!("{:.1}k", value / 1_000.0),
        _ => format!("{value:.0}"),
    }
}
