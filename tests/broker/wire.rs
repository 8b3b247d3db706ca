//! What crosses natsmux, and what is between it and a broker only.

use crate::setup::{
    CONNECT, Setup, assert_books_balance, component, component_as, count, round_trip, subscribe,
    wait_count, wait_live,
};
use crate::support::{Brokers, Flavour, Greeting, RawClient, message, no_responders};

#[test]
fn a_brokers_ping_is_answered_by_natsmux() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "1");
    link.send("PING\r\n");
    link.expect("PONG");
    link.msg("foo", &sid, "x");
    client.expect(&message("foo", "1", "x"));
}

#[test]
fn an_info_that_changes_nothing_for_components_stays_with_natsmux() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "1");
    let news = Flavour::v2_15()
        .with("connect_urls", vec!["10.0.0.1:4222"])
        .with("client_id", 99)
        .with("nonce", "bGVuZ3RoIG9mIDE1");
    link.send(news.line());
    link.msg("foo", &sid, "x");
    client.expect(&message("foo", "1", "x"));
    round_trip(&mut client, &mut link);
}

#[test]
fn a_component_of_protocol_0_is_told_nothing_of_lame_duck_but_moved() {
    let brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers).start();
    let old_client = r#"CONNECT {"verbose":false}"#;
    let (mut client, mut old) = component_as(&natsmux, &brokers, old_client);
    assert_eq!(old.connect["protocol"], 1);
    let sid = subscribe(&mut client, &mut old, "foo", "1");
    old.send(Flavour::v2_15().with("ldm", true).line());
    let mut new = brokers.link();
    new.accept();
    let moved = new.sub("foo");
    new.answer_ping();
    old.expect(&format!("UNSUB {sid}"));
    old.answer_ping();
    new.msg("foo", &moved, "x");
    client.expect(&message("foo", "1", "x"));
}

#[test]
fn a_broker_of_2012_gets_a_connect_that_it_understands() {
    let brokers = Brokers::with_flavours(&[Flavour::ruby()]);
    let natsmux = Setup::new(&brokers).start();
    let old_client = r#"CONNECT {"verbose":false,"pedantic":false,"user":"u","pass":"p"}"#;
    let (mut client, mut link) = component_as(&natsmux, &brokers, old_client);
    assert_eq!(link.connect["protocol"], 0);
    assert_eq!(link.connect["user"], "u");
    // It says +OK to a CONNECT that asked for none; nobody hears of it.
    link.send("+OK\r\n");
    let sid = subscribe(&mut client, &mut link, "foo", "2");
    link.msg("foo", &sid, "x");
    client.expect(&message("foo", "2", "x"));
}

/// D21: Go servers close with `Parser Error`.
#[test]
fn a_broker_of_2012_stays_open_where_connect_is_no_json() {
    const INVALID: &str =
        "-ERR 'Invalid config, valid JSON required for connection configuration'\r\n";
    let brokers = Brokers::with_flavours(&[Flavour::ruby()]);
    let natsmux = Setup::new(&brokers).start();
    let mut client = RawClient::connect(&natsmux.address());
    client.info();
    client.send("CONNECT {verbose:false}\r\n");
    client.expect(INVALID);
    client.send("CONNECT {\"verbose\":false,\"pedantic\":false}\r\n");
    let mut link = brokers.link();
    link.accept();
    let sid = subscribe(&mut client, &mut link, "foo", "2");
    client.send("CONNECT nonsense\r\n");
    link.answering(|| client.expect(INVALID));
    link.msg("foo", &sid, "x");
    client.expect(&message("foo", "2", "x"));
}

#[test]
fn a_session_with_headers_lives_on_at_a_broker_without_them() {
    let mut brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, link) = component_as(&natsmux, &brokers, CONNECT);
    assert_eq!(link.connect["headers"], true);
    let plain = Flavour::v2_15().with("headers", false);
    brokers.get(0).greet(Greeting::Info(plain));
    brokers.get(0).down();
    link.reset();
    let frame = "HPUB a 12 14\r\nNATS/1.0\r\n\r\nok\r\n";
    // One that waits for a broker, and one that doesn't.
    client.send(frame);
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept();
    for field in ["headers", "no_responders"] {
        assert_ne!(link.connect[field], true, "it would refuse {field}");
    }
    link.publish("PUB a 2", "ok");
    link.answer_ping();
    client.send(frame);
    link.publish("PUB a 2", "ok");
    round_trip(&mut client, &mut link);
    wait_count(&natsmux, "headers_stripped", 2);
}

#[test]
fn a_no_responders_status_does_not_count_towards_a_max() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "inbox", "1");
    client.send("UNSUB 1 1\r\nPUB nobody inbox 0\r\n\r\n");
    link.expect(&format!("UNSUB {sid} 1"));
    link.publish("PUB nobody inbox 0", "");
    link.expect("PING");
    let status = |sid: &str| no_responders("inbox", sid, "nobody");
    link.send(status(&sid));
    client.expect(&status("1"));
    link.reset();
    let mut link = brokers.link();
    link.accept();
    let sid = link.sub("inbox");
    link.expect(&format!("UNSUB {sid} 1"));
    link.answer_ping();
    link.msg("inbox", &sid, "x");
    client.expect(&message("inbox", "1", "x"));
    link.reset();
    // Now it is used up.
    let mut link = brokers.link();
    link.accept();
    let received = wait_live(&mut client, &mut link);
    assert!(received.iter().all(|op| op.verb() != "SUB"), "{received:?}");
}

#[test]
fn a_sid_in_use_keeps_its_first_subject() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "1");
    client.send("SUB bar 1\r\nPING\r\n");
    // The broker judges permissions first, so it sees this one too, under the same sid.
    assert_eq!(link.sub("bar"), sid);
    link.answering(|| client.pong());
    link.reset();
    let mut link = brokers.link();
    link.accept_replay(&["foo"]);
    round_trip(&mut client, &mut link);
}

#[test]
fn thousands_of_subscriptions_are_replayed_each_once() {
    const SUBSCRIPTIONS: usize = 5000;
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let subs: String = (0..SUBSCRIPTIONS)
        .map(|number| format!("SUB s.{number} q{number} {number}\r\n"))
        .collect();
    client.send(subs + "PING\r\n");
    // Fences come in between, where natsmux reads in several pieces.
    let subs = link.until(|op| op.line.starts_with("SUB s.4999 "));
    let subs = subs.iter().filter(|op| op.verb() == "SUB").count();
    assert_eq!(subs, SUBSCRIPTIONS);
    link.answering(|| client.pong());
    for _ in 0..2 {
        link.reset();
        link = brokers.link();
        link.accept();
        let replay = link.until(|op| op.line.starts_with("SUB s.4999 "));
        let subs = replay.iter().filter(|op| op.verb() == "SUB");
        let mut sids: Vec<_> = (subs.enumerate())
            .map(|(number, op)| {
                assert_eq!(op.word(1), format!("s.{number}"));
                assert_eq!(op.word(2), format!("q{number}"));
                op.word(3).to_owned()
            })
            .collect();
        link.answer_ping();
        link.msg("s.4999", &sids[4999], "x");
        client.expect(&message("s.4999", "4999", "x"));
        sids.sort();
        sids.dedup();
        assert_eq!(sids.len(), SUBSCRIPTIONS);
    }
}

#[test]
fn publishes_cross_byte_for_byte_whatever_they_hold() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let every_byte: Vec<u8> = (0..=255).collect();
    let protocol = b"\r\nPING\r\nPUB a 5\r\nhello\r\n-ERR 'x'\r\n".to_vec();
    for payload in [every_byte, protocol, Vec::new(), vec![0; 100_000]] {
        let line = format!("PUB a.b reply {}", payload.len());
        client.send([line.as_bytes(), b"\r\n", &payload, b"\r\n"].concat());
        link.until(|op| op.line == line && op.payload == payload);
    }
    // Digits are passed on as they came.
    client.send("PUB a 0002\r\nhi\r\n");
    link.until(|op| op.line == "PUB a 0002" && op.payload == b"hi");
}

#[test]
fn refused_publishes_of_a_dead_link_are_not_in_doubt() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    client.send("PUB no 0\r\n\r\nPUB yes 0\r\n\r\n");
    link.publish("PUB no 0", "");
    link.publish("PUB yes 0", "");
    let refusal = "-ERR 'Permissions Violation for Publish to \"no\"'\r\n";
    link.send(refusal);
    link.reset();
    client.expect(refusal);
    let mut link = brokers.link();
    link.accept();
    let varz = wait_count(&natsmux, "in_doubt", 1);
    assert_eq!(count(&varz, "refused"), 1, "{varz}");
    assert_books_balance(&natsmux, 2);
}

#[test]
fn sessions_do_not_hear_each_other() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut first, mut one) = component(&natsmux, &brokers);
    let (mut second, mut two) = component(&natsmux, &brokers);
    let of_first = subscribe(&mut first, &mut one, "foo", "1");
    let of_second = subscribe(&mut second, &mut two, "foo", "1");
    one.msg("foo", &of_first, "first");
    two.msg("foo", &of_second, "second");
    first.expect(&message("foo", "1", "first"));
    second.expect(&message("foo", "1", "second"));
    first.send("PUB x 0\r\n\r\n");
    one.publish("PUB x 0", "");
    one.send("-ERR 'Permissions Violation for Publish to \"x\"'\r\n");
    first.expect("-ERR 'Permissions Violation for Publish to \"x\"'\r\n");
    round_trip(&mut second, &mut two);
}
