//! Each client's transcript through natsmux equals its transcript on a broker.

use serde_json::Value;

use crate::client::{Client, Kind, Mode};
use crate::support::{BrokerOptions, Cluster, Natsmux, Version};

const USER: &str = "component";
const PASSWORD: &str = "secret";

#[test]
fn nats_py_behaves_as_on_a_broker() {
    behaves_as_on_a_broker(Kind::Python);
}

#[test]
fn npm_nats_behaves_as_on_a_broker() {
    behaves_as_on_a_broker(Kind::Node);
}

#[test]
fn libnats_behaves_as_on_a_broker() {
    behaves_as_on_a_broker(Kind::C);
}

#[test]
fn async_nats_behaves_as_on_a_broker() {
    behaves_as_on_a_broker(Kind::Rust);
}

fn behaves_as_on_a_broker(kind: Kind) {
    for version in Version::ALL {
        let open = BrokerOptions::new(version);
        compare(kind, &open, "nats://", Mode::Basic);
        let closed = open.user(USER, PASSWORD);
        let right = format!("nats://{USER}:{PASSWORD}@");
        compare(kind, &closed, &right, Mode::Basic);
        let wrong = format!("nats://{USER}:wrong@");
        compare(kind, &closed, &wrong, Mode::Refused);
    }
}

fn compare(kind: Kind, options: &BrokerOptions, scheme: &str, mode: Mode) {
    let cluster = Cluster::with(options, 2);
    let natsmux = Natsmux::start(&cluster);
    let direct = format!("{scheme}{}", cluster.brokers()[0].address());
    let through = format!("{scheme}{}", natsmux.address());
    let (direct, through) = (
        transcript(kind, &direct, mode),
        transcript(kind, &through, mode),
    );
    assert_eq!(
        through, direct,
        "{kind:?} on {:?}, {mode:?}",
        options.version
    );
}

fn transcript(kind: Kind, url: &str, mode: Mode) -> Vec<Value> {
    let client = Client::start(kind, url, "basic", mode);
    let (events, content) = client.finish();
    let lines: Vec<_> = events.iter().map(Value::to_string).collect();
    let lines = lines.join("\n");
    assert!(content, "{kind:?} {mode:?} on {url}:\n{lines}");
    assert!(!events.is_empty(), "{kind:?} {mode:?} says nothing");
    events
}
