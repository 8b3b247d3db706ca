//! What monitoring says, beside what nats-server says of the same client.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Broker, Cluster, Natsmux, Port, RawClient, Version};

/// Where natsmux and a broker have the same key, its type is the same: nats-top refuses a
/// whole reply for one that isn't, and the Prometheus exporter may panic.
fn same_types(path: &str, natsmux: &Value, broker: &Value) -> usize {
    match (natsmux, broker) {
        (Value::Object(natsmux), Value::Object(broker)) => {
            let shared = natsmux.iter().filter_map(|(key, value)| {
                let theirs = broker.get(key)?;
                Some(1 + same_types(&format!("{path}/{key}"), value, theirs))
            });
            shared.sum()
        }
        (Value::Array(natsmux), Value::Array(broker)) => natsmux
            .iter()
            .zip(broker)
            .map(|(value, theirs)| same_types(&format!("{path}[]"), value, theirs))
            .sum(),
        (Value::String(_), Value::String(_)) | (Value::Bool(_), Value::Bool(_)) => 0,
        (Value::Number(natsmux), Value::Number(broker)) => {
            // A whole float has no point at nats-server.
            let is_float = ["cpu", "cache_hit_rate", "avg_fanout"];
            let whole = !broker.is_f64() && !is_float.iter().any(|key| path.ends_with(key));
            assert!(
                !whole || !natsmux.is_f64(),
                "{path}: {natsmux}, a broker has {broker}"
            );
            0
        }
        (natsmux, broker) => panic!("{path}: {natsmux}, a broker has {broker}"),
    }
}

fn answer(natsmux: &Natsmux, path: &str) -> Value {
    let answer = natsmux.get(path).expect("natsmux's answer");
    assert_eq!(answer.status, 200, "{path}");
    serde_json::from_str(&answer.body).expect("JSON")
}

fn client(address: &str) -> RawClient {
    let mut client = RawClient::ready_with(
        address,
        "\"verbose\":false,\"name\":\"de\\\"a\\u0007\",\"lang\":\"ruby\",\"version\":\"0.4.22\"",
    );
    client.send("SUB a.* 1\r\nSUB b workers 007\r\nUNSUB 1 9\r\nPUB a.x 5\r\nhello\r\nPING\r\n");
    assert_eq!(client.message(), b"hello");
    client.pong();
    client
}

#[test]
fn listings_have_the_types_and_the_counts_of_a_broker() {
    for version in Version::ALL {
        let broker = Broker::start(version);
        let cluster = Cluster::start(version, 1);
        let natsmux = Natsmux::start(&cluster);
        let _direct = client(&broker.address());
        let _through = client(&natsmux.address());
        natsmux.wait_varz("a session", Duration::from_secs(5), |varz| {
            varz["sessions"] == 1
        });
        for (path, least) in [
            ("/varz", 25),
            ("/connz?auth=1", 15),
            ("/connz?subs=1", 20),
            ("/connz?subs=detail", 25),
            ("/subsz", 8),
            ("/subsz?subs=1", 10),
            ("/healthz", 1),
        ] {
            let theirs = broker.monitoring(path).expect("a broker's answer");
            let ours = answer(&natsmux, path);
            let shared = same_types(path, &ours, &theirs);
            assert!(shared >= least, "{path}: {shared} keys in common: {ours}");
        }
        let connection = |listing: &Value| listing["connections"][0].clone();
        let path = "/connz?subs=detail";
        let theirs = connection(&broker.monitoring(path).expect("a broker's answer"));
        let ours = connection(&answer(&natsmux, path));
        for key in [
            "kind",
            "type",
            "ip",
            "in_msgs",
            "out_msgs",
            "in_bytes",
            "out_bytes",
            "subscriptions",
            "name",
            "lang",
            "version",
            "pending_bytes",
        ] {
            assert_eq!(ours[key], theirs[key], "{key} at {version:?}");
        }
        let subjects = |listing: &Value| {
            let list = listing["subscriptions_list_detail"].as_array().cloned();
            let mut list: Vec<_> = list
                .unwrap_or_default()
                .iter()
                .map(|sub| {
                    [
                        &sub["subject"],
                        &sub["qgroup"],
                        &sub["sid"],
                        &sub["msgs"],
                        &sub["max"],
                    ]
                    .map(Value::to_string)
                })
                .collect();
            list.sort();
            list
        };
        assert_eq!(subjects(&ours), subjects(&theirs), "{version:?}");
        assert_eq!(ours["natsmux"]["bus"], "default");
        assert_eq!(
            ours["natsmux"]["broker"],
            cluster.brokers()[0].address().as_str()
        );
    }
}

/// What the program says, and its exit code.
fn natsmux_program(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_natsmux"))
        .args(args)
        .output()
        .expect("natsmux starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("text"))
}

#[test]
fn the_terminal_shows_a_broker_that_dies() {
    let mut cluster = Cluster::start(Version::V215, 1);
    let natsmux = Natsmux::start(&cluster);
    let _client = client(&natsmux.address());
    let http = natsmux.http_address();
    natsmux.wait_varz("a session", Duration::from_secs(5), |varz| {
        varz["sessions"] == 1
    });
    let (code, page) = natsmux_program(&["status", "--http", &http]);
    assert_eq!(code, Some(0), "{page}");
    let broker = cluster.brokers()[0].address();
    let line = |page: &str, start: &str| {
        let mut lines = page.lines().map(str::to_owned);
        lines.find(|line| line.contains(start)).unwrap_or_default()
    };
    assert!(line(&page, &broker).contains("up"), "{page}");
    assert!(line(&page, "default  ok").contains('1'), "{page}");

    let (code, page) = natsmux_program(&["top", "--http", &http, "--every", "1", "--rounds", "2"]);
    assert_eq!(code, Some(0));
    assert_eq!(page.matches("LAST ERROR").count(), 2, "{page}");
    assert!(!page.contains('\x1b'), "this is no terminal: {page}");

    cluster.broker(0).kill();
    natsmux.wait_varz("no live broker", Duration::from_secs(5), |varz| {
        varz["healthy_buses"] == 0
    });
    let (code, page) = natsmux_program(&["status", "--http", &http]);
    assert_eq!(code, Some(1), "{page}");
    assert!(page.contains("NO BROKER"), "{page}");
    let (code, json) = natsmux_program(&["status", "--http", &http, "--json"]);
    let varz: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((code, &varz["connections"]), (Some(1), &1.into()));

    let events = answer(&natsmux, "/eventz?bus=default");
    let events = events["events"].as_array().expect("a list").iter();
    let said: Vec<_> = events.filter_map(|event| event["event"].as_str()).collect();
    for event in ["broker lost, failing over", "bus has no live broker"] {
        assert!(said.contains(&event), "{event}: {said:?}");
    }

    let free = Port::reserve().address();
    let (code, text) = natsmux_program(&["status", "--http", &free]);
    assert_eq!(code, Some(1));
    assert!(text.starts_with("natsmux: no natsmux answers at"), "{text}");
    let (code, text) = natsmux_program(&["status", "--http", &natsmux.address()]);
    assert_eq!(code, Some(1), "a port for components: {text}");
}
