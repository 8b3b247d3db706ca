//! `/varz` in nats-server's shape, so that nats-top, the Prometheus exporter
//! and dashboards read it, with natsmux's own numbers under `natsmux`.
//!
//! nats-top refuses a whole reply for one known key of the wrong type, so the
//! types here are nats-server's. The exporter turns each number of nested
//! objects into a metric, but no array: buses and brokers are arrays, since
//! their names needn't be names of metrics.

use serde_json::{Map, Value, json};

use super::process::{self, CpuMeter};
use super::time_format::{nats_duration, rfc3339};
use crate::telemetry::{BrokerSnapshot, BusSnapshot, Counters, Snapshot};

/// The body of `/varz`. `requests` are the HTTP requests by path.
pub(super) fn varz(snapshot: &Snapshot, cpu: &CpuMeter, requests: Value) -> Value {
    let counters = &snapshot.counters;
    let uptime = snapshot.now.duration_since(snapshot.start);
    let links: u64 = snapshot.buses.iter().map(|bus| bus.links).sum();
    json!({
        "server_id": snapshot.server_id,
        "server_name": snapshot.name,
        "version": snapshot.version,
        "proto": 1,
        "go": "",
        "host": snapshot.listen.ip().to_string(),
        "port": snapshot.listen.port(),
        "max_connections": snapshot.max_connections,
        "max_payload": snapshot.max_payload,
        "start": rfc3339(snapshot.start),
        "now": rfc3339(snapshot.now),
        "uptime": nats_duration(uptime.unwrap_or_default()),
        "mem": process::resident_bytes(),
        "cores": process::cores(),
        "gomaxprocs": process::cores(),
        "cpu": cpu.percent(),
        "connections": snapshot.connections,
        "total_connections": snapshot.total_connections,
        "routes": 0,
        "remotes": links,
        "leafnodes": 0,
        "in_msgs": counters.in_msgs,
        "out_msgs": counters.out_msgs,
        "in_bytes": counters.in_bytes,
        "out_bytes": counters.out_bytes,
        "slow_consumers": counters.slow_consumers,
        "stale_connections": counters.stale_sessions,
        "subscriptions": snapshot.subscriptions,
        "http_req_stats": requests,
        "natsmux": natsmux(snapshot),
    })
}

/// The body of `/brokerz`: every broker of every bus.
pub(super) fn brokerz(snapshot: &Snapshot) -> Value {
    let buses = snapshot.buses.iter().map(|bus| {
        let brokers: Vec<Value> = bus.brokers.iter().map(broker).collect();
        json!({
            "bus": bus.name,
            "healthy": bus.healthy,
            "reason": bus.reason,
            "current": bus.current,
            "brokers": brokers,
        })
    });
    json!({
        "server_id": snapshot.server_id,
        "now": rfc3339(snapshot.now),
        "buses": buses.collect::<Vec<_>>(),
    })
}

fn natsmux(snapshot: &Snapshot) -> Value {
    let sum = |gauge: fn(&BusSnapshot) -> u64| snapshot.buses.iter().map(gauge).sum::<u64>();
    let mut object = counted(&snapshot.counters);
    for (name, value) in [
        ("sessions", sum(|bus| bus.sessions)),
        ("trunks", sum(|bus| bus.trunks)),
        ("links", sum(|bus| bus.links)),
        ("waiting", sum(|bus| bus.waiting)),
        ("buffered_bytes", sum(|bus| bus.buffered_bytes)),
        ("healthy_buses", sum(|bus| u64::from(bus.healthy))),
    ] {
        object.insert(name.to_owned(), value.into());
    }
    object.insert(
        "worker_busy_ratio".to_owned(),
        snapshot.worker_busy_ratio.into(),
    );
    object.insert(
        "http_certificate_ends".to_owned(),
        json!(snapshot.http_certificate_ends.map(rfc3339)),
    );
    let buses = snapshot.buses.iter().map(bus).collect();
    object.insert("buses".to_owned(), Value::Array(buses));
    Value::Object(object)
}

fn bus(bus: &BusSnapshot) -> Value {
    let mut object = counted(&bus.counters);
    let brokers: Vec<Value> = bus.brokers.iter().map(broker).collect();
    let identities = bus.identities.iter().map(|identity| {
        json!({
            "name": identity.name,
            "subject": identity.subject,
            "expires": identity.expires.map(rfc3339),
        })
    });
    let identities = identities.collect();
    for (name, value) in [
        ("name", json!(bus.name)),
        ("healthy", json!(bus.healthy)),
        ("wrong_topology", json!(bus.wrong_topology)),
        (
            "outage_seconds",
            json!(bus.outage.map(|outage| outage.as_secs_f64())),
        ),
        ("outage_revealed", json!(bus.outage_revealed)),
        (
            "paused_seconds",
            json!(bus.paused.map(|left| left.as_secs_f64())),
        ),
        ("moving", json!(bus.moving)),
        ("reason", json!(bus.reason)),
        ("sessions", json!(bus.sessions)),
        ("trunks", json!(bus.trunks)),
        ("links", json!(bus.links)),
        ("subscriptions", json!(bus.subscriptions)),
        ("waiting", json!(bus.waiting)),
        ("buffered_bytes", json!(bus.buffered_bytes)),
        ("pulls_open", json!(bus.pulls_open)),
        ("fences_answered", json!(bus.observed.fences.count())),
        ("fence_seconds", json!(bus.observed.fences.sum())),
        ("current", json!(bus.current)),
        ("certificate_ends", json!(bus.certificate_ends.map(rfc3339))),
        (
            "listen_certificate_ends",
            json!(bus.listen_certificate_ends.map(rfc3339)),
        ),
        ("identities", Value::Array(identities)),
        ("brokers", Value::Array(brokers)),
    ] {
        object.insert(name.to_owned(), value);
    }
    Value::Object(object)
}

fn broker(broker: &BrokerSnapshot) -> Value {
    json!({
        "addr": broker.addr,
        "state": broker.state,
        "drained": broker.drained,
        "since_seconds": broker.since.as_secs_f64(),
        "last_error": broker.last_error,
        "version": broker.version,
        "certificate_ends": broker.certificate_ends.map(rfc3339),
        "round_trip_seconds": broker.round_trip.map(|round_trip| round_trip.as_secs_f64()),
        "links": broker.links,
        "hosts": broker.hosts,
        "failures": broker.failures,
    })
}

fn counted(counters: &Counters) -> Map<String, Value> {
    let pairs = counters.iter();
    pairs
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect()
}
