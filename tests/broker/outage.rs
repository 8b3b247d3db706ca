//! No broker is alive: what waits, what is answered, what is dropped (R2, R3, R6).

use std::thread;
use std::time::{Duration, Instant};

use crate::setup::{
    Daemon, MOMENT, SOON, Setup, assert_books_balance, component, count, finish, published_numbers,
    round_trip, subscribe, wait_count, wait_live, wait_outage,
};
use crate::support::{Brokers, RawClient, wait_for};

/// A component whose only broker dies.
fn in_outage(setup: &Setup, brokers: &mut Brokers, subjects: &[&str]) -> (Daemon, RawClient) {
    let natsmux = setup.start();
    let (mut client, mut link) = component(&natsmux, brokers);
    for (sid, subject) in subjects.iter().enumerate() {
        subscribe(&mut client, &mut link, subject, &sid.to_string());
    }
    brokers.get(0).down();
    link.reset();
    wait_outage(&natsmux);
    (natsmux, client)
}

/// Log lines are written by a thread of their own.
fn assert_logged_once(natsmux: &Daemon, text: &str) {
    let count = || natsmux.log().matches(text).count();
    wait_for(text, SOON, || (count() > 0).then_some(()));
    assert_eq!(count(), 1, "{text}");
}

#[test]
fn a_ping_of_a_session_that_owes_nothing_is_answered_at_once() {
    let mut brokers = Brokers::start(1);
    let setup = Setup::new(&brokers);
    let (natsmux, mut client) = in_outage(&setup, &mut brokers, &["foo"]);
    client.flush();
    client.send("PING\r\nPING\r\n");
    client.pong();
    client.pong();
    assert_eq!(natsmux.counter("pongs_unproven"), 0);
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept_replay(&["foo"]);
    round_trip(&mut client, &mut link);
}

#[test]
fn a_pong_waits_for_waiting_operations_as_long_as_pong_hold_and_is_counted() {
    for operation in ["PUB a 0\r\n\r\n", "SUB bar 2\r\n", "UNSUB 0\r\n"] {
        let mut brokers = Brokers::start(1);
        let setup = Setup::new(&brokers).timing("pong_hold", "300ms");
        let (natsmux, mut client) = in_outage(&setup, &mut brokers, &["foo"]);
        let since = Instant::now();
        client.send(format!("{operation}PING\r\nPING\r\n"));
        client.pong();
        client.pong();
        let took = since.elapsed();
        assert!(took >= Duration::from_millis(300), "{took:?} {operation}");
        wait_count(&natsmux, "pongs_unproven", 2);
        assert_logged_once(&natsmux, "without proof");
        // They were released: the next broker owes none of them.
        brokers.get(0).up();
        let mut link = brokers.link();
        link.accept();
        wait_live(&mut client, &mut link);
        finish(&mut client, &mut link);
        round_trip(&mut client, &mut link);
    }
}

#[test]
fn a_strict_pong_hold_waits_for_the_next_broker() {
    let mut brokers = Brokers::start(1);
    let setup = Setup::new(&brokers).timing("pong_hold", "never");
    let (natsmux, mut client) = in_outage(&setup, &mut brokers, &[]);
    client.send("PUB a 0\r\n\r\nPING\r\n");
    client.expect_silence(Duration::from_millis(300));
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept();
    link.publish("PUB a 0", "");
    link.answer_ping();
    link.expect("PING");
    client.expect_silence(MOMENT);
    link.send("PONG\r\n");
    client.pong();
    assert_eq!(natsmux.counter("pongs_unproven"), 0);
}

#[test]
fn a_pong_after_an_outage_waits_until_what_was_held_is_proven() {
    let mut brokers = Brokers::start(1);
    let setup = Setup::new(&brokers);
    let (natsmux, mut client) = in_outage(&setup, &mut brokers, &[]);
    client.send("PUB a 0\r\n\r\n");
    wait_count(&natsmux, "published", 1);
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept();
    link.publish("PUB a 0", "");
    client.send("PING\r\n");
    client.expect_silence(MOMENT);
    link.answer_ping();
    link.answer_ping();
    client.pong();
    // With nothing unproven and no subscription natsmux answers by itself.
    client.flush();
}

#[test]
fn a_full_buffer_blocks_then_drops_and_the_drops_are_counted() {
    const SENT: usize = 4000;
    let mut brokers = Brokers::start(1);
    let setup = Setup::new(&brokers)
        .timing("block_for", "400ms")
        .timing("pong_hold", "100ms")
        .limit("publish_buffer", "\"64KiB\"");
    let (natsmux, mut client) = in_outage(&setup, &mut brokers, &[]);
    let payload = "x".repeat(1000);
    let all: String = (0..SENT)
        .map(|number| format!("PUB {number} 1000\r\n{payload}\r\n"))
        .collect();
    let since = Instant::now();
    let writer = thread::spawn(move || {
        client.set_patience(SOON);
        client.send(all);
        // Served again once publishes are dropped, and the next sessions too.
        client.send("SUB foo 1\r\nPING\r\n");
        client.pong();
        client
    });
    let full = natsmux.wait_varz("a full buffer", SOON, |varz| {
        count(varz, "waiting") > 0 && count(varz, "dropped") == 0
    });
    assert!(count(&full, "published") < SENT as u64);
    let mut client = writer.join().expect("the component's thread");
    assert!(since.elapsed() >= Duration::from_millis(400));
    let varz = natsmux.wait_varz("all to be read", SOON, |varz| {
        count(varz, "published") == SENT as u64
    });
    let (waiting, dropped) = (count(&varz, "waiting"), count(&varz, "dropped"));
    assert_eq!(waiting + dropped, SENT as u64);
    assert!(dropped > 0);
    assert_logged_once(&natsmux, "buffer full");

    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept();
    link.sub("foo");
    link.answer_ping();
    let last = (waiting - 1).to_string();
    let numbers = published_numbers(&link.until(|op| op.word(1) == last));
    finish(&mut client, &mut link);
    assert_eq!(numbers, (0..waiting as usize).collect::<Vec<_>>());
    let varz = assert_books_balance(&natsmux, SENT as u64);
    assert_eq!(count(&varz, "dropped"), dropped);
}

#[test]
fn a_broker_that_comes_back_in_time_loses_nothing_of_a_full_buffer() {
    const SENT: usize = 2000;
    let mut brokers = Brokers::start(1);
    let setup = Setup::new(&brokers)
        .timing("block_for", "1m")
        .limit("publish_buffer", "\"64KiB\"");
    let (natsmux, mut client) = in_outage(&setup, &mut brokers, &[]);
    let payload = "x".repeat(1000);
    let all: String = (0..SENT)
        .map(|number| format!("PUB {number} 1000\r\n{payload}\r\n"))
        .collect();
    let writer = thread::spawn(move || {
        client.send(all);
        client
    });
    natsmux.wait_varz("a full buffer", SOON, |varz| {
        count(varz, "buffered_bytes") > 64 * 1024
    });
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept();
    let last = (SENT - 1).to_string();
    let numbers = published_numbers(&link.until(|op| op.word(1) == last));
    assert_eq!(numbers, (0..SENT).collect::<Vec<_>>());
    let mut client = writer.join().expect("the component's thread");
    finish(&mut client, &mut link);
    let varz = assert_books_balance(&natsmux, SENT as u64);
    assert_eq!(count(&varz, "dropped"), 0, "{varz}");
}

#[test]
fn publishes_of_a_component_that_left_in_an_outage_are_still_delivered() {
    let mut brokers = Brokers::start(1);
    let setup = Setup::new(&brokers);
    let (natsmux, mut client) = in_outage(&setup, &mut brokers, &["foo"]);
    client.send("PUB a 1\r\n1\r\nPUB b 1\r\n2\r\n");
    wait_count(&natsmux, "published", 2);
    drop(client);
    wait_count(&natsmux, "sessions_closed", 1);
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept();
    link.publish("PUB a 1", "1");
    link.publish("PUB b 1", "2");
    link.answer_ping();
    link.until_closed();
    let varz = assert_books_balance(&natsmux, 2);
    assert_eq!(count(&varz, "confirmed"), 2, "{varz}");
}

#[test]
fn many_outages_in_a_row_are_survived_by_one_connection() {
    let mut brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    subscribe(&mut client, &mut link, "foo", "1");
    for round in 0..5 {
        for index in 0..2 {
            brokers.get(index).down();
        }
        link.reset();
        wait_outage(&natsmux);
        client.send(format!("PUB {round} 0\r\n\r\nPING\r\n"));
        brokers.get(round % 2).up();
        link = brokers.link();
        assert_eq!(link.broker, round % 2);
        link.accept_replay(&["foo"]);
        link.publish(&format!("PUB {round} 0"), "");
        link.answer_ping();
        link.answer_ping();
        client.pong();
    }
    assert_books_balance(&natsmux, 5);
}

/// A natsmux that tells components of an outage after 600 ms.
fn revealing(brokers: &Brokers) -> Setup {
    Setup::new(brokers)
        .timing("probe_interval", "200ms")
        .timing("reveal_outage_after", "600ms")
}

#[test]
fn an_outage_that_lasts_disconnects_everybody_and_lets_nobody_in() {
    let mut brokers = Brokers::start(1);
    let (natsmux, mut client) = in_outage(&revealing(&brokers), &mut brokers, &["foo"]);
    client.send("PUB kept 1\r\nx\r\n");
    let mut silent = RawClient::connect(&natsmux.address());
    silent.info();
    client.expect_silence(Duration::from_millis(200));
    assert_eq!(client.until_closed(), b"", "no -ERR");
    assert_eq!(silent.until_closed(), b"", "nor who sent nothing yet");
    let mut newcomer = RawClient::connect(&natsmux.address());
    assert_eq!(newcomer.until_closed(), b"", "no INFO");
    let ready = natsmux.get("/readyz").expect("an answer");
    assert!(ready.status == 503 && ready.body.contains("components are turned away"));
    let metrics = natsmux.get("/metrics").expect("an answer").body;
    assert!(metrics.contains("natsmux_outage_revealed{bus=\"default\"} 1"));
    assert_logged_once(&natsmux, "outage revealed");
    let varz = natsmux.varz();
    assert_eq!(count(&varz, "outage_rejections"), 1);
    assert_eq!(count(&varz, "outages_revealed"), 1);
    assert!(varz["buses"][0]["outage_seconds"].as_f64() > Some(0.5));

    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept();
    link.publish("PUB kept 1", "x");
    link.expect("PING");
    link.send("PONG\r\n");
    natsmux.wait_varz("its end", SOON, |varz| {
        varz["buses"][0]["outage_revealed"] == false
    });
    let (mut client, mut link) = component(&natsmux, &brokers);
    round_trip(&mut client, &mut link);
    assert_eq!(natsmux.get("/readyz").expect("an answer").status, 200);
    assert_books_balance(&natsmux, 1);
}

#[test]
fn publishes_are_dropped_and_counted_where_an_outage_is_to_drop_them() {
    let mut brokers = Brokers::start(1);
    let setup = revealing(&brokers).bus("outage_publishes", "\"drop\"");
    let (natsmux, mut client) = in_outage(&setup, &mut brokers, &[]);
    client.send("PUB a 1\r\nx\r\n");
    natsmux.wait_varz("it to wait", SOON, |varz| varz["waiting"] == 1);
    // Publishes that it leaves behind are dropped as well.
    let mut gone = RawClient::connect(&natsmux.address());
    gone.info();
    gone.send("CONNECT {\"verbose\":false}\r\nPUB b 1\r\ny\r\n");
    natsmux.wait_varz("both to wait", SOON, |varz| varz["waiting"] == 2);
    drop(gone);
    assert_eq!(client.until_closed(), b"");
    wait_count(&natsmux, "dropped", 2);
    brokers.get(0).up();
    natsmux.wait_varz("its end", SOON, |varz| varz["buses"][0]["healthy"] == true);
    let (mut client, mut link) = component(&natsmux, &brokers);
    round_trip(&mut client, &mut link);
    assert_books_balance(&natsmux, 2);
}

#[test]
fn a_short_outage_is_told_to_nobody() {
    let mut brokers = Brokers::start(1);
    let setup = revealing(&brokers).timing("reveal_outage_after", "3s");
    let (natsmux, mut client) = in_outage(&setup, &mut brokers, &["foo"]);
    client.expect_silence(Duration::from_secs(1));
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept_replay(&["foo"]);
    wait_live(&mut client, &mut link);
    client.expect_silence(Duration::from_secs(3));
    round_trip(&mut client, &mut link);
    assert_eq!(natsmux.counter("outages_revealed"), 0);
}
