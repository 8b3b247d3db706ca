//! A second CONNECT: a new link under the merged options (R20).

use std::thread;

use serde_json::json;

use crate::setup::{Setup, component_as, round_trip, subscribe, wait_count, wait_outage};
use crate::support::{Brokers, Flavour, message};

const FIRST: &str = r#"CONNECT {"verbose":false,"name":"first","user":"u","pass":"p"}"#;

/// The subscriptions that the new link hears of, before the old one is left.
fn replayed_at(flavour: Flavour) -> Vec<String> {
    let brokers = Brokers::with_flavours(&[flavour]);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut old) = component_as(&natsmux, &brokers, FIRST);
    let sid = subscribe(&mut client, &mut old, "foo", "1");
    client.send("CONNECT {\"name\":\"second\"}\r\nPUB a 0\r\n\r\nPING\r\n");
    let mut new = brokers.link();
    new.accept();
    assert_eq!(new.connect["name"], json!("second"));
    assert_eq!(new.connect["user"], json!("u"));
    assert_eq!(new.connect["verbose"], json!(false));
    let left = thread::spawn(move || old.until_closed());
    let replayed = new.until(|op| op.verb() == "PUB");
    new.answering(|| client.pong());
    let left = left.join().expect("it closes");
    let unsubs = left.iter().filter(|op| op.verb() == "UNSUB");
    let unsubs: Vec<_> = unsubs.map(|op| op.line.clone()).collect();
    assert_eq!(unsubs, [format!("UNSUB {sid}")]);
    let subs = replayed.iter().filter(|op| op.verb() == "SUB");
    subs.map(|op| op.word(1).to_owned()).collect()
}

#[test]
fn a_second_connect_drops_subscriptions_where_the_broker_does() {
    for version in ["2.15.1", "2.14.0", "2.12.8"] {
        let replayed = replayed_at(Flavour::v2_15().with("version", version));
        assert_eq!(replayed, [""; 0], "{version}");
    }
}

#[test]
fn a_second_connect_keeps_subscriptions_where_the_broker_does() {
    for version in ["2.9.10", "2.12.7"] {
        let replayed = replayed_at(Flavour::v2_15().with("version", version));
        assert_eq!(replayed, ["foo"], "{version}");
    }
}

#[test]
fn a_second_connect_misses_nothing_and_hears_nothing_twice() {
    let brokers = Brokers::with_flavours(&[Flavour::v2_9()]);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut old) = component_as(&natsmux, &brokers, FIRST);
    let old_sid = subscribe(&mut client, &mut old, "foo", "1");
    client.send("CONNECT {\"name\":\"second\"}\r\n");
    let mut new = brokers.link();
    new.accept();
    let sid = new.sub("foo");
    assert_eq!(sid, old_sid);
    old.msg("foo", &sid, "before");
    client.expect(&message("foo", "1", "before"));
    for link in [&mut new, &mut old] {
        link.msg("foo", &sid, "both");
    }
    new.answer_ping();
    client.expect(&message("foo", "1", "both"));
    new.msg("foo", &sid, "behind");
    old.expect(&format!("UNSUB {sid}"));
    old.expect("PING");
    old.msg("foo", &sid, "last");
    old.send("PONG\r\n");
    client.expect(&message("foo", "1", "last"));
    client.expect(&message("foo", "1", "behind"));
    round_trip(&mut client, &mut new);
}

#[test]
fn a_second_connect_that_is_refused_closes_the_session() {
    let brokers = Brokers::with_flavours(&[Flavour::v2_15().with_auth()]);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut old) = component_as(&natsmux, &brokers, FIRST);
    subscribe(&mut client, &mut old, "foo", "1");
    client.send("CONNECT {\"pass\":\"wrong\"}\r\nPING\r\n");
    let mut new = brokers.link();
    new.connecting();
    assert_eq!(new.connect["pass"], json!("wrong"));
    new.send("-ERR 'Authorization Violation'\r\n");
    let last = client.until_closed();
    assert_eq!(
        String::from_utf8_lossy(&last),
        "-ERR 'Authorization Violation'\r\n"
    );
}

#[test]
fn a_second_connect_in_an_outage_holds_for_the_next_link() {
    let mut brokers = Brokers::with_flavours(&[Flavour::v2_9()]);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, link) = component_as(&natsmux, &brokers, FIRST);
    brokers.get(0).down();
    link.reset();
    wait_outage(&natsmux);
    client.send("PUB a 0\r\n\r\nCONNECT {\"name\":\"second\"}\r\nSUB foo 1\r\nPING\r\n");
    wait_count(&natsmux, "published", 1);
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept();
    assert_eq!(link.connect["name"], json!("second"));
    assert_eq!(link.connect["user"], json!("u"));
    link.sub("foo");
    link.answer_ping();
    link.publish("PUB a 0", "");
    link.answering(|| client.pong());
    round_trip(&mut client, &mut link);
}

#[test]
fn a_verbose_second_connect_has_its_ok() {
    let brokers = Brokers::with_flavours(&[Flavour::v2_15()]);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut old) = component_as(&natsmux, &brokers, FIRST);
    client.send("CONNECT {\"verbose\":true}\r\nSUB foo 1\r\nPING\r\n");
    let mut new = brokers.link();
    new.accept();
    old.until_closed();
    new.sub("foo");
    new.answering(|| client.expect("+OK\r\n+OK\r\nPONG\r\n"));
}
