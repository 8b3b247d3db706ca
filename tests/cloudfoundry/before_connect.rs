//! What hung Cloud Foundry in 2012 (R21): a component whose connection is new queues what it
//! says ahead of its CONNECT, and a broker that wants credentials turns it away, each time.

use crate::support::{
    Broker, BrokerOptions, Natsmux, NatsmuxOptions, RawClient, RubyServer, Version, message,
};

const USER: &str = r#""user":"nats","pass":"nats""#;

/// The bytes of the Ruby client 0.4.22 behind a reconnect, blanks included: what it was to send
/// in the meantime, CONNECT, and then all subscriptions again.
fn reconnect() -> String {
    format!(
        "PUB dea.heartbeat  5\r\nhello\r\nSUB dea.discover  3\r\nUNSUB 3 5\r\n\
         CONNECT {{\"verbose\":false,\"pedantic\":false,{USER}}}\r\nSUB dea.start cc 2\r\nPING\r\n"
    )
}

/// What a broker itself says to these bytes.
fn assert_turned_away(broker: &str, text: &str) {
    let mut client = RawClient::connect(broker);
    client.info();
    client.send(reconnect());
    let last = String::from_utf8_lossy(&client.until_closed()).into_owned();
    assert_eq!(last, format!("-ERR '{text}'\r\n"));
}

/// The same bytes, once natsmux was restarted between a component and this broker.
fn assert_let_in(broker: &str) {
    let mut natsmux = Natsmux::launch(&NatsmuxOptions {
        brokers: vec![broker.to_owned()],
        ..NatsmuxOptions::default()
    })
    .wait_healthy();
    let mut listener = RawClient::connect(broker);
    listener.info();
    listener.send(format!(
        "CONNECT {{\"verbose\":false,{USER}}}\r\nSUB dea.heartbeat 1\r\nPING\r\n"
    ));
    listener.pong();

    for _ in 0..3 {
        natsmux.kill();
        natsmux.restart();
        natsmux = natsmux.wait_healthy();
        let mut client = RawClient::connect(&natsmux.address());
        client.info();
        client.send(reconnect());
        client.pong();
        assert_eq!(listener.message(), b"hello", "what was queued, once");
        listener.send("PUB dea.discover 1\r\nx\r\nPUB dea.start 1\r\ny\r\n");
        client.expect(&message("dea.discover", "3", "x"));
        client.expect(&message("dea.start", "2", "y"));
        client.flush();
        listener.flush();
    }
}

#[test]
fn at_the_server_of_2012() {
    let server = RubyServer::start(Some(("nats", "nats")));
    assert_turned_away(&server.address(), "Authorization is required");
    assert_let_in(&server.address());
    let lines = server.lines();
    let connects = lines.iter().filter(|line| line.starts_with("CONNECT"));
    assert!(
        connects.count() >= 4,
        "a listener, and a link each time: {lines:?}"
    );
}

#[test]
fn at_brokers_of_today() {
    for version in Version::ALL {
        let broker = Broker::with(BrokerOptions::new(version).user("nats", "nats"));
        assert_turned_away(&broker.address(), "Authorization Violation");
        assert_let_in(&broker.address());
    }
}
