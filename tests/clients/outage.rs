//! Components that start while no broker is alive (R16), with the libraries that they use.

use std::thread;
use std::time::Duration;

use crate::client::{Client, Kind, Mode};
use crate::support::{BrokerOptions, Cluster, Natsmux, PATIENCE, RawClient, Version};

/// Clients with their defaults give up when the way from INFO to PONG takes longer.
const GIVES_UP_AFTER_MS: u64 = 2_000;
/// How long the outage goes on with everybody started.
const OUTAGE: Duration = Duration::from_secs(3);

#[test]
fn nats_py_starts_in_an_outage() {
    starts_in_an_outage(Kind::Python);
}

#[test]
fn npm_nats_starts_in_an_outage() {
    starts_in_an_outage(Kind::Node);
}

#[test]
fn async_nats_starts_in_an_outage() {
    starts_in_an_outage(Kind::Rust);
}

fn starts_in_an_outage(kind: Kind) {
    let mut options = BrokerOptions::new(Version::V215);
    options.extra = "authorization { users: [\
        { user: seen, password: one }, { user: unseen, password: two } ] }"
        .to_owned();
    let mut cluster = Cluster::with(&options, 2);
    let natsmux = Natsmux::start(&cluster);
    RawClient::ready_with(&natsmux.address(), r#""user":"seen","pass":"one""#);
    for broker in 0..2 {
        cluster.broker(broker).kill();
    }
    natsmux.wait_varz("no broker to be up", PATIENCE, |varz| {
        let brokers = varz["buses"][0]["brokers"].as_array();
        brokers.is_some_and(|all| all.iter().all(|broker| broker["state"] != "up"))
    });

    let start = |credentials: &str, mode| {
        let url = format!("nats://{credentials}@{}", natsmux.address());
        let prefix = credentials.replace(':', "-");
        Client::start(kind, &url, &prefix, mode)
    };
    let mut known = start("seen:one", Mode::Start);
    let mut unknown = start("unseen:two", Mode::Start);
    let mut wrong = start("seen:wrong", Mode::Refused);
    let admitted = known.next_event(PATIENCE).expect("R16: admitted at once");
    assert_eq!(admitted["event"], "connected");
    let took = admitted["ms"].as_u64().expect("milliseconds");
    assert!(took < GIVES_UP_AFTER_MS, "R16: known, but after {took} ms");
    thread::sleep(OUTAGE);
    let early = [&mut known, &mut unknown, &mut wrong].map(|c| c.next_event(Duration::ZERO));
    assert_eq!(early, [None, None, None], "R16: no verdict yet");

    cluster.broker(0).restart();
    for (client, name) in [(known, "known"), (unknown, "unknown")] {
        let (events, content) = client.finish();
        assert!(content, "{name}: its message comes back: {events:?}");
    }
    let (events, content) = wrong.finish();
    assert!(content, "wrong credentials are refused: {events:?}");
}
