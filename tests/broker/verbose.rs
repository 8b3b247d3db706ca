//! Verbose and pedantic sessions: one answer for each operation, over every failover (R20).

use crate::setup::{Setup, assert_books_balance, component_as, count, round_trip, wait_outage};
use crate::support::Brokers;

const VERBOSE: &str = r#"CONNECT {"verbose":true,"pedantic":false}"#;
const PEDANTIC: &str = r#"CONNECT {"verbose":true,"pedantic":true}"#;

#[test]
fn every_operation_has_one_answer_in_order() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component_as(&natsmux, &brokers, VERBOSE);
    client.send("SUB foo 1\r\nPUB no 0\r\n\r\nPUB a 0\r\n\r\nUNSUB 1\r\nUNSUB unknown\r\nPING\r\n");
    let sid = link.sub("foo");
    link.publish("PUB no 0", "");
    link.send("-ERR 'Permissions Violation for Publish to \"no\"'\r\n");
    link.publish("PUB a 0", "");
    link.send("+OK\r\n");
    link.expect(&format!("UNSUB {sid}"));
    link.send("+OK\r\n");
    assert_eq!(link.receive().verb(), "UNSUB");
    link.send("+OK\r\n");
    link.answer_ping();
    client.expect("+OK\r\n-ERR 'Permissions Violation for Publish to \"no\"'\r\n");
    client.expect("+OK\r\n+OK\r\n+OK\r\nPONG\r\n");
    client.flush();
}

#[test]
fn an_operation_whose_answer_died_with_the_link_is_answered_at_the_new_fence() {
    // How many of the three answers the first broker gives.
    for answered in 0..=3 {
        let brokers = Brokers::start(1);
        let natsmux = Setup::new(&brokers).start();
        let (mut client, mut link) = component_as(&natsmux, &brokers, VERBOSE);
        client.send("SUB foo 1\r\nPUB a 0\r\n\r\nPUB b 0\r\n\r\nPING\r\n");
        assert_eq!(link.receive().verb(), "SUB");
        link.publish("PUB a 0", "");
        link.publish("PUB b 0", "");
        link.expect("PING");
        link.send("+OK\r\n".repeat(answered));
        link.reset();
        client.expect(&"+OK\r\n".repeat(answered));
        let mut link = brokers.link();
        link.accept();
        link.sub("foo");
        link.answer_ping();
        // The one that is owed.
        link.answer_ping();
        client.expect(&"+OK\r\n".repeat(3 - answered));
        client.pong();
        round_trip(&mut client, &mut link);
        let varz = assert_books_balance(&natsmux, 2);
        assert_eq!(count(&varz, "in_doubt"), 2, "{varz}");
    }
}

#[test]
fn answers_of_a_replay_are_nobodys() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component_as(&natsmux, &brokers, VERBOSE);
    client.send("SUB foo 1\r\nUNSUB 1 9\r\nSUB bar 2\r\nPING\r\n");
    let sid = link.sub("foo");
    link.expect(&format!("UNSUB {sid} 9"));
    link.send("+OK\r\n");
    link.sub("bar");
    link.answer_ping();
    client.expect("+OK\r\n+OK\r\n+OK\r\nPONG\r\n");
    for _ in 0..2 {
        link.reset();
        link = brokers.link();
        link.accept();
        let sid = link.sub("foo");
        link.expect(&format!("UNSUB {sid} 9"));
        link.send("+OK\r\n");
        link.sub("bar");
        link.answer_ping();
        round_trip(&mut client, &mut link);
    }
    // And the next operation has its answer.
    client.send("PUB a 0\r\n\r\n");
    link.publish("PUB a 0", "");
    link.send("+OK\r\n");
    client.expect("+OK\r\n");
}

#[test]
fn operations_in_an_outage_have_one_answer_each() {
    let mut brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, link) = component_as(&natsmux, &brokers, VERBOSE);
    brokers.get(0).down();
    link.reset();
    wait_outage(&natsmux);
    client.send("SUB foo 1\r\nPUB a 0\r\n\r\nUNSUB 1\r\nUNSUB nothing\r\nSUB bar 2\r\nPUB b 0\r\n\r\nPING\r\n");
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept();
    link.sub("bar");
    link.answer_ping();
    link.publish("PUB a 0", "");
    link.publish("PUB b 0", "");
    link.send("+OK\r\n+OK\r\n");
    link.answer_ping();
    link.answer_ping();
    client.expect(&"+OK\r\n".repeat(6));
    client.pong();
    round_trip(&mut client, &mut link);
}

#[test]
fn an_invalid_publish_subject_is_told_and_confirmed_to_a_pedantic_session() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component_as(&natsmux, &brokers, PEDANTIC);
    assert_eq!(link.connect["pedantic"], true);
    client.send("PUB a.* 0\r\n\r\nPUB b 0\r\n\r\nPING\r\n");
    link.publish("PUB a.* 0", "");
    link.send("-ERR 'Invalid Publish Subject'\r\n+OK\r\n");
    link.publish("PUB b 0", "");
    link.send("+OK\r\n");
    link.answer_ping();
    client.expect("-ERR 'Invalid Publish Subject'\r\n+OK\r\n+OK\r\nPONG\r\n");
    let varz = assert_books_balance(&natsmux, 2);
    assert_eq!(count(&varz, "confirmed"), 2, "{varz}");
}

#[test]
fn a_refused_subscription_has_its_error_in_place_of_an_ok() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component_as(&natsmux, &brokers, VERBOSE);
    client.send("SUB no 1\r\nSUB yes 2\r\nPING\r\n");
    assert!(link.receive().line.starts_with("SUB no "));
    let refusal = "-ERR 'Permissions Violation for Subscription to \"no\"'\r\n";
    link.send(refusal);
    link.sub("yes");
    link.answer_ping();
    client.expect(&format!("{refusal}+OK\r\nPONG\r\n"));
}

#[test]
fn a_session_that_is_not_verbose_never_hears_an_ok() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let quiet = r#"CONNECT {"verbose":false}"#;
    let (mut client, mut link) = component_as(&natsmux, &brokers, quiet);
    // The Ruby server of 2012 says it even then.
    client.send("PUB a 0\r\n\r\n");
    link.publish("PUB a 0", "");
    link.send("+OK\r\n");
    client.send("PING\r\n");
    link.answer_ping();
    client.pong();
}
