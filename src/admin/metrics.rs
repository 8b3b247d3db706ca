//! `/metrics` in OpenMetrics text, and the names that the official Grafana board reads, so that
//! it works without the exporter.
//!
//! Every label is a configured name or of a closed set. All values come from one snapshot.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::process::{self, CpuMeter};
use crate::telemetry::{BrokerSnapshot, BusSnapshot, Histogram, Observed, Snapshot, Tally};

/// The content type of the text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// States that a broker may be in: each is a series, and one of them is 1.
const STATES: [&str; 5] = ["unknown", "up", "suspect", "lame duck", "down"];

/// A number of a bus that goes up and down.
type BusGauge = (&'static str, &'static str, fn(&BusSnapshot) -> u64);

const BUS_GAUGES: [BusGauge; 12] = [
    ("sessions", "Components connected now", |bus| bus.sessions),
    ("trunks", "Trunks now", |bus| bus.trunks),
    (
        "links",
        "Connections to brokers that passed their handshake",
        |bus| bus.links,
    ),
    ("subscriptions", "Subscriptions of components now", |bus| {
        bus.subscriptions
    }),
    (
        "waiting",
        "Publishes held, or written and not proven yet",
        |bus| bus.waiting,
    ),
    ("buffered_bytes", "Bytes in buffers, either way", |bus| {
        bus.buffered_bytes
    }),
    (
        "pulls_open",
        "Subscriptions to which JetStream consumers' open pull requests are answered",
        |bus| bus.pulls_open,
    ),
    (
        "wrong_topology",
        "1 while brokers aren't routed to each other as configured",
        |bus| u64::from(bus.wrong_topology),
    ),
    (
        "outage_revealed",
        "1 while components are disconnected because no broker has served for long",
        |bus| u64::from(bus.outage_revealed),
    ),
    (
        "paused",
        "1 while publishes wait because an operator paused the bus",
        |bus| u64::from(bus.paused.is_some()),
    ),
    (
        "moving",
        "Trunks that move to another connection by plan, or wait for their turn to",
        |bus| bus.moving,
    ),
    ("healthy", "1 while the bus has a live broker", |bus| {
        u64::from(bus.healthy)
    }),
];

/// Durations of a bus.
type BusHistogram = (&'static str, &'static str, fn(&Observed) -> &Histogram);

const HISTOGRAMS: [BusHistogram; 5] = [
    (
        "natsmux_fence_seconds",
        "From a fence to its answer, on any link",
        |observed| &observed.fences,
    ),
    (
        "natsmux_detection_seconds",
        "From a broker's last byte to the verdict that it is lost",
        |observed| &observed.detections,
    ),
    (
        "natsmux_failover_seconds",
        "From that verdict until the last component was attached again",
        |observed| &observed.failovers,
    ),
    (
        "natsmux_replay_seconds",
        "From a dead link until its component was live on the next one",
        |observed| &observed.replays,
    ),
    (
        "natsmux_pulls_resume_seconds",
        "From a dead link until a JetStream consumer's open request was asked again",
        |observed| &observed.pulls,
    ),
];

/// Counts of a bus, by a label of a closed set.
type BusTally = (
    &'static str,
    &'static str,
    &'static str,
    fn(&Observed) -> &Tally,
);

const TALLIES: [BusTally; 3] = [
    (
        "natsmux_failovers_by_cause",
        "Failovers of the bus",
        "cause",
        |observed| &observed.failover_causes,
    ),
    (
        "natsmux_dial_failures_by_cause",
        "Dials of components' links that failed",
        "cause",
        |observed| &observed.dial_failures,
    ),
    (
        "natsmux_closes_by_reason",
        "Components' connections that were closed",
        "reason",
        |observed| &observed.closes,
    ),
];

/// The body of `/metrics`.
pub(super) fn metrics(snapshot: Snapshot, cpu: &CpuMeter) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    let picture = Picture {
        snapshot,
        cpu: cpu.percent(),
    };
    registry.register_collector(Box::new(picture));
    let mut body = String::new();
    text::encode(&mut body, &registry)?;
    Ok(body)
}

#[derive(Debug)]
struct Picture {
    snapshot: Snapshot,
    cpu: f64,
}

impl Collector for Picture {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_daemon(&mut encoder)?;
        self.encode_counters(&mut encoder)?;
        for (name, help, read) in BUS_GAUGES {
            let buses = self.snapshot.buses.iter();
            let series = buses.map(|bus| ([("bus", bus.name.as_str())], read(bus)));
            gauges(&mut encoder, &format!("natsmux_{name}"), help, series)?;
        }
        self.encode_observed(&mut encoder)?;
        self.encode_brokers(&mut encoder)?;
        self.encode_board(&mut encoder)
    }
}

fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Picture {
    fn encode_daemon(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = &self.snapshot;
        let version = [("version", snapshot.version.as_str())];
        gauges(
            encoder,
            "natsmux_build_info",
            "natsmux's version",
            [(version, 1)],
        )?;
        let up = snapshot
            .now
            .duration_since(snapshot.start)
            .unwrap_or_default();
        for (name, help, value) in [
            (
                "natsmux_uptime_seconds",
                "Time since natsmux started",
                up.as_secs(),
            ),
            (
                "natsmux_max_connections",
                "Components that natsmux takes at once",
                snapshot.max_connections,
            ),
            (
                "natsmux_resident_memory_bytes",
                "Resident memory",
                process::resident_bytes(),
            ),
        ] {
            let kind = MetricType::Gauge;
            let metric = encoder.encode_descriptor(name, help, None, kind)?;
            ConstGauge::new(signed(value)).encode(metric)?;
        }
        let help = "Part of the time in which the worker had something to do, lately";
        let name = "natsmux_worker_busy_ratio";
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(snapshot.worker_busy_ratio).encode(metric)
    }

    /// Encodes [`Counters`](crate::telemetry::Counters) by bus.
    fn encode_counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(first) = self.snapshot.buses.first() else {
            return Ok(());
        };
        for (at, (name, help, _)) in first.counters.described().enumerate() {
            let help = help.trim().trim_end_matches('.');
            let name = format!("natsmux_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for bus in &self.snapshot.buses {
                let value = bus
                    .counters
                    .described()
                    .nth(at)
                    .map_or(0, |(_, _, value)| value);
                let labels = [("bus", bus.name.as_str())];
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    /// How long things took, and how often for which reason.
    fn encode_observed(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, read) in HISTOGRAMS {
            let kind = MetricType::Histogram;
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for bus in &self.snapshot.buses {
                let histogram = read(&bus.observed);
                let buckets: Vec<_> = histogram.buckets().collect();
                family
                    .encode_family(&[("bus", bus.name.as_str())])?
                    .encode_histogram::<NoLabelSet>(
                        histogram.sum(),
                        histogram.count(),
                        &buckets,
                        None,
                    )?;
            }
        }
        for (name, help, label, read) in TALLIES {
            let kind = MetricType::Counter;
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for bus in &self.snapshot.buses {
                for (reason, count) in read(&bus.observed).iter() {
                    let labels = [("bus", bus.name.as_str()), (label, reason)];
                    ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }

    fn encode_brokers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let brokers = || {
            let buses = self.snapshot.buses.iter();
            buses.flat_map(|bus| bus.brokers.iter().map(move |broker| (bus, broker)))
        };
        let labels = |bus: &BusSnapshot, broker: &BrokerSnapshot| {
            [("bus", bus.name.clone()), ("broker", broker.addr.clone())]
        };
        let links = brokers().map(|(bus, broker)| (labels(bus, broker), broker.links));
        let help = "Connections to this broker that passed their handshake";
        gauges(encoder, "natsmux_broker_links", help, links)?;
        let failures = brokers().map(|(bus, broker)| (labels(bus, broker), broker.failures));
        let help = "Failed probes, dials and links since it last answered";
        gauges(encoder, "natsmux_broker_failures", help, failures)?;
        let used = brokers().map(|(bus, broker)| {
            let used = bus.current.as_deref() == Some(&broker.addr);
            (labels(bus, broker), u64::from(used))
        });
        gauges(
            encoder,
            "natsmux_broker_current",
            "1 for the broker in use",
            used,
        )?;
        let drained = brokers().map(|(bus, broker)| (labels(bus, broker), broker.drained.into()));
        let help = "1 for a broker that an operator drains";
        gauges(encoder, "natsmux_broker_drained", help, drained)?;
        let ends = brokers().filter_map(|(bus, broker)| {
            Some((labels(bus, broker), unix_seconds(broker.certificate_ends?)))
        });
        let help = "When the certificate ends that this broker showed last";
        let name = "natsmux_broker_certificate_expiry_timestamp_seconds";
        gauges(encoder, name, help, ends)?;
        let own = self.snapshot.buses.iter().flat_map(|bus| {
            let sides = [
                ("brokers", bus.certificate_ends),
                ("components", bus.listen_certificate_ends),
            ];
            sides.into_iter().filter_map(|(towards, ends)| {
                let labels = [("bus", bus.name.as_str()), ("towards", towards)];
                Some((labels, unix_seconds(ends?)))
            })
        });
        let http = self.snapshot.http_certificate_ends.map(|ends| {
            let labels = [("bus", ""), ("towards", "http")];
            (labels, unix_seconds(ends))
        });
        let help = "When the certificate ends that natsmux shows";
        gauges(
            encoder,
            "natsmux_certificate_expiry_timestamp_seconds",
            help,
            own.chain(http),
        )?;
        let now = self.snapshot.now;
        let identities = self.snapshot.buses.iter().flat_map(move |bus| {
            bus.identities.iter().filter_map(move |identity| {
                let labels = [("bus", &*bus.name), ("identity", &*identity.name)];
                let left = identity.expires?.duration_since(now);
                Some((labels, left.map_or(0, |left| left.as_secs())))
            })
        });
        let help = "Seconds until the credentials of an identity expire; 0: they have";
        let name = "natsmux_credential_expires_seconds";
        gauges(encoder, name, help, identities)?;
        let states = brokers().flat_map(|(bus, broker)| {
            STATES.map(|state| {
                let [name, addr] = labels(bus, broker);
                let is = u64::from(broker.state == state);
                ([name, addr, ("state", state.to_owned())], is)
            })
        });
        gauges(
            encoder,
            "natsmux_broker_state",
            "1 for the state that it is in",
            states,
        )
    }

    /// Encodes the metrics that `prometheus-nats-exporter` makes of `/varz`, as far as the official
    /// board reads them.
    fn encode_board(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (snapshot, counters) = (&self.snapshot, &self.snapshot.counters);
        let labels = [("server_id", snapshot.server_id.as_str())];
        for (name, value) in [
            ("connections", snapshot.connections),
            ("mem", process::resident_bytes()),
            ("in_bytes", counters.in_bytes),
            ("in_msgs", counters.in_msgs),
            ("out_bytes", counters.out_bytes),
            ("out_msgs", counters.out_msgs),
            ("slow_consumers", counters.slow_consumers),
            ("subscriptions", snapshot.subscriptions),
        ] {
            let name = format!("gnatsd_varz_{name}");
            gauges(
                encoder,
                &name,
                "As the exporter calls it",
                [(labels, value)],
            )?;
        }
        let kind = MetricType::Gauge;
        let mut cpu =
            encoder.encode_descriptor("gnatsd_varz_cpu", "Percent of a core", None, kind)?;
        ConstGauge::new(self.cpu).encode(cpu.encode_family(&labels)?)
    }
}

fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let kind = MetricType::Gauge;
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in series {
        ConstGauge::new(signed(value)).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Gauges are signed: nothing here comes near their bound.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
