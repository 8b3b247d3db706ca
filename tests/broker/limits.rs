//! Limits: they close the session that breaks them, and nobody else notices (R25).

use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::setup::{
    SOON, Setup, component, count, finish, own_connect, round_trip, subscribe, wait_count,
};
use crate::support::{BrokerLink, Brokers, Flavour, RawClient, message};

const BIG: usize = 64 * 1024;
/// More than the kernel keeps for a component that doesn't read.
const FLOOD: usize = 400;

/// Sends messages until natsmux has had enough of it.
fn flood(link: &mut BrokerLink, sid: &str) {
    let big = message("foo", sid, &"x".repeat(BIG));
    for _ in 0..FLOOD {
        link.try_send(&big);
    }
}

fn closed_with(client: &mut RawClient, text: &str) {
    let last = client.until_closed();
    let last = String::from_utf8_lossy(&last);
    assert_eq!(last, format!("-ERR '{text}'\r\n"));
}

#[test]
fn a_component_that_does_not_read_is_closed_alone() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers)
        .limit("max_pending", "\"256KiB\"")
        .timing("write_deadline", "1s")
        .start();
    let (mut slow, mut link) = component(&natsmux, &brokers);
    let (mut neighbour, mut other) = component(&natsmux, &brokers);
    let sid = subscribe(&mut slow, &mut link, "foo", "1");
    let own = subscribe(&mut neighbour, &mut other, "foo", "1");
    flood(&mut link, &sid);
    wait_count(&natsmux, "slow_consumers", 1);
    // The neighbour gets as much, and reads it.
    for _ in 0..20 {
        other.msg("foo", &own, &"y".repeat(BIG));
        neighbour.expect(&message("foo", "1", &"y".repeat(BIG)));
    }
    round_trip(&mut neighbour, &mut other);
    // Whole frames, until they end: what was written to the socket stays.
    let got = slow.until_closed();
    let whole = message("foo", "1", &"x".repeat(BIG));
    assert!(got.len() < FLOOD * whole.len());
    let all = whole.as_bytes().iter().cycle();
    assert!(got.iter().zip(all).all(|(got, sent)| got == sent));
}

#[test]
fn a_component_that_takes_nothing_within_write_deadline_is_closed() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers)
        .timing("write_deadline", "300ms")
        .start();
    let (mut slow, mut link) = component(&natsmux, &brokers);
    let (mut neighbour, mut other) = component(&natsmux, &brokers);
    let sid = subscribe(&mut slow, &mut link, "foo", "1");
    subscribe(&mut neighbour, &mut other, "foo", "1");
    flood(&mut link, &sid);
    wait_count(&natsmux, "slow_consumers", 1);
    round_trip(&mut neighbour, &mut other);
    slow.until_closed();
}

/// Fault 34: the time in which natsmux didn't run doesn't count (R9).
#[test]
fn a_component_is_not_closed_for_what_a_stopped_natsmux_did_not_write() {
    const MESSAGES: usize = 400;
    let brokers = Brokers::start(1);
    let mut natsmux = Setup::new(&brokers)
        .timing("write_deadline", "500ms")
        .start();
    let (mut slow, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut slow, &mut link, "foo", "1");
    let all = message("foo", "1", &"x".repeat(BIG));
    thread::scope(|scope| {
        // It blocks while natsmux is stopped, and while nobody reads.
        scope.spawn(|| flood(&mut link, &sid));
        thread::sleep(Duration::from_millis(200));
        natsmux.signal(Signal::STOP);
        scope.spawn(|| {
            thread::sleep(Duration::from_secs(1));
            natsmux.signal(Signal::CONT);
        });
        for _ in 0..MESSAGES {
            slow.expect(&all);
        }
    });
    assert_eq!(count(&natsmux.varz(), "slow_consumers"), 0);
}

#[test]
fn a_control_line_over_its_limit_closes_the_session_alone() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut neighbour, mut other) = component(&natsmux, &brokers);
    subscribe(&mut neighbour, &mut other, "foo", "1");
    let (mut client, mut link) = component(&natsmux, &brokers);
    let fits = format!("{} 1", "s".repeat(4096 - 2));
    client.send(format!("SUB {fits}\r\nPING\r\n"));
    let line = link.receive().line;
    assert_eq!(line.len(), fits.len() + 4);
    link.answer_ping();
    client.pong();
    client.send(format!("SUB s{fits}\r\n"));
    closed_with(&mut client, "maximum control line exceeded");
    let rest = link.until_closed();
    assert!(
        rest.iter()
            .all(|op| op.line.len() < fits.len() || op.verb() == "UNSUB")
    );
    round_trip(&mut neighbour, &mut other);
}

#[test]
fn a_control_line_that_never_ends_closes_the_session() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, _link) = component(&natsmux, &brokers);
    client.send(format!("PUB {}", "s".repeat(5000)));
    closed_with(&mut client, "maximum control line exceeded");
}

#[test]
fn a_payload_over_max_payload_closes_the_session_alone_and_unread() {
    let flavour = Flavour::v2_15().with("max_payload", 1000);
    let brokers = Brokers::with_flavours(&[flavour]);
    let natsmux = Setup::new(&brokers).start();
    let (mut neighbour, mut other) = component(&natsmux, &brokers);
    subscribe(&mut neighbour, &mut other, "foo", "1");
    for (fits, over) in [
        ("PUB a 1000", "PUB a 1001"),
        ("HPUB a 12 1000", "HPUB a 12 1001"),
    ] {
        let (mut client, mut link) = component(&natsmux, &brokers);
        let payload = "x".repeat(1000);
        client.send(format!("{fits}\r\n{payload}\r\n"));
        link.publish(fits, &payload);
        // At the head: the payload need not come.
        client.send(format!("{over}\r\n"));
        link.answering(|| closed_with(&mut client, "Maximum Payload Violation"));
        let rest = link.until_closed();
        assert!(rest.iter().all(|op| op.line == "PING"), "{rest:?}");
    }
    round_trip(&mut neighbour, &mut other);
    wait_count(&natsmux, "protocol_errors", 2);
}

#[test]
fn garbage_closes_the_session_alone_and_reaches_no_broker() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut neighbour, mut other) = component(&natsmux, &brokers);
    subscribe(&mut neighbour, &mut other, "foo", "1");
    let (mut client, mut link) = component(&natsmux, &brokers);
    client.send("PUB good 0\r\n\r\nMSG foo 1 0\r\n\r\n");
    link.publish("PUB good 0", "");
    link.answering(|| closed_with(&mut client, "Unknown Protocol Operation"));
    let rest = link.until_closed();
    assert!(rest.iter().all(|op| op.line == "PING"), "{rest:?}");
    round_trip(&mut neighbour, &mut other);
}

#[test]
fn a_component_over_max_connections_hears_so_and_others_stay() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers)
        .daemon_limit("max_connections", "2")
        .start_unwatched();
    let (first, mut its_link) = component(&natsmux, &brokers);
    let (mut second, mut link) = component(&natsmux, &brokers);
    let mut third = RawClient::connect(&natsmux.address());
    third.info();
    closed_with(&mut third, "maximum connections exceeded");
    subscribe(&mut second, &mut link, "foo", "1");
    drop(first);
    its_link.until_closed();
    wait_count(&natsmux, "sessions_closed", 1);
    component(&natsmux, &brokers);
}

#[test]
fn a_component_that_answers_no_ping_is_closed_as_stale() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers)
        .timing("ping_interval", "100ms")
        .start_unwatched();
    let (mut client, _link) = component(&natsmux, &brokers);
    client.expect("PING\r\nPING\r\n");
    closed_with(&mut client, "Stale Connection");
    wait_count(&natsmux, "stale_sessions", 1);
}

#[test]
fn a_component_that_answers_pings_stays() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers)
        .timing("ping_interval", "100ms")
        .limit("ping_max", "10")
        .start_unwatched();
    let (mut client, _link) = component(&natsmux, &brokers);
    for _ in 0..15 {
        client.expect("PING\r\n");
        client.send("PONG\r\n");
    }
    assert_eq!(natsmux.counter("stale_sessions"), 0);
}

#[test]
fn a_half_closed_component_gets_what_it_still_waits_for() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "1");
    client.send("PUB foo 1\r\nx\r\nPING\r\n");
    client.half_close();
    link.publish("PUB foo 1", "x");
    link.msg("foo", &sid, "x");
    link.until(|op| op.verb() == "PING");
    client.expect(&message("foo", "1", "x"));
    client.pong();
    link.until_closed();
    assert_eq!(client.until_closed(), b"");
}

#[test]
fn a_full_link_holds_up_its_own_component_only() {
    let mut brokers = Brokers::dead(1);
    brokers.get(0).set_receive_buffer(4096);
    brokers.get(0).up();
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "1");
    let (mut neighbour, mut other) = component(&natsmux, &brokers);
    subscribe(&mut neighbour, &mut other, "foo", "1");
    let frame = format!("PUB big {BIG}\r\n{}\r\n", "x".repeat(BIG));
    std::thread::scope(|scope| {
        let address = natsmux.address();
        let writer = scope.spawn(move || {
            let mut client = RawClient::connect(&address);
            client.info();
            client.send(format!("{}\r\nPING\r\n", own_connect()));
            client.pong();
            client.send(frame.repeat(FLOOD) + "PUB end 0\r\n\r\n");
            client
        });
        let mut full = brokers.link();
        full.accept();
        natsmux.wait_varz("publishes", SOON, |varz| count(varz, "published") > 0);
        std::thread::sleep(std::time::Duration::from_millis(200));
        // Its broker proves nothing, so natsmux reads no further.
        assert!(count(&natsmux.varz(), "published") < FLOOD as u64);
        // What comes the other way, and the neighbour, go on.
        link.msg("foo", &sid, "x");
        client.expect(&message("foo", "1", "x"));
        round_trip(&mut neighbour, &mut other);
        let sent = full.until(|op| op.line == "PUB end 0");
        let whole = sent.iter().filter(|op| op.payload.len() == BIG).count();
        assert_eq!(whole, FLOOD);
        let mut client = writer.join().expect("the component's thread");
        finish(&mut client, &mut full);
    });
}
