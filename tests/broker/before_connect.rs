//! Operations before CONNECT (R21).

use std::time::{Duration, Instant};

use crate::setup::{MOMENT, Setup, assert_books_balance, count, round_trip};
use crate::support::{Brokers, Flavour, Natsmux, RawClient, message};

const CONNECT: &str = r#"CONNECT {"verbose":false,"pedantic":false,"user":"u","pass":"p"}"#;

fn with_auth() -> Brokers {
    Brokers::with_flavours(&[Flavour::v2_15().with_auth()])
}

fn greeted(natsmux: &Natsmux) -> RawClient {
    let mut client = RawClient::connect(&natsmux.address());
    client.info();
    client
}

fn closed_with(client: &mut RawClient, text: &str) {
    let last = client.until_closed();
    let expected = match text {
        "" => String::new(),
        text => format!("-ERR '{text}'\r\n"),
    };
    assert_eq!(String::from_utf8_lossy(&last), expected);
}

/// What the Ruby client of 2012 sends after a reconnect, blanks included.
const RUBY: &str = "PUB a  1\r\nx\r\nSUB b  2\r\nPUB a reply 2\r\nyz\r\nUNSUB 2 3\r\n";

#[test]
fn what_came_before_connect_reaches_a_broker_behind_the_accepted_connect() {
    let brokers = with_auth();
    let natsmux = Setup::new(&brokers).start();
    let mut client = greeted(&natsmux);
    client.send(RUBY);
    assert!(brokers.link_within(MOMENT).is_none());
    client.send(format!("{CONNECT}\r\nPUB c 0\r\n\r\nPING\r\n"));
    let mut link = brokers.link();
    link.connecting();
    assert_eq!(link.connect["user"], "u");
    link.expect_silence(MOMENT);
    link.send("PONG\r\n");
    link.publish("PUB a  1", "x");
    let sid = link.sub("b");
    link.publish("PUB a reply 2", "yz");
    link.expect(&format!("UNSUB {sid} 3"));
    link.publish("PUB c 0", "");
    link.answering(|| client.pong());
    link.msg("b", &sid, "x");
    client.expect(&message("b", "2", "x"));
    round_trip(&mut client, &mut link);
}

#[test]
fn what_came_before_a_refused_connect_reaches_no_broker() {
    let brokers = with_auth();
    let natsmux = Setup::new(&brokers).start();
    let mut client = greeted(&natsmux);
    client.send(format!("{RUBY}{CONNECT}\r\nPING\r\n"));
    let mut link = brokers.link();
    link.connecting();
    link.send("-ERR 'Authorization Violation'\r\n");
    assert_eq!(link.fin(), []);
    closed_with(&mut client, "Authorization Violation");
    let varz = assert_books_balance(&natsmux, 2);
    assert_eq!(count(&varz, "refused"), 2, "{varz}");
}

#[test]
fn a_broker_that_dies_before_its_verdict_takes_nothing_along() {
    let brokers =
        Brokers::with_flavours(&[Flavour::v2_15().with_auth(), Flavour::v2_15().with_auth()]);
    let natsmux = Setup::new(&brokers).start();
    let mut client = greeted(&natsmux);
    client.send(format!("{RUBY}{CONNECT}\r\nPING\r\n"));
    let mut link = brokers.link();
    link.connecting();
    link.reset();
    let mut link = brokers.link();
    link.accept();
    link.publish("PUB a  1", "x");
    let sid = link.sub("b");
    link.publish("PUB a reply 2", "yz");
    link.expect(&format!("UNSUB {sid} 3"));
    link.answering(|| client.pong());
}

#[test]
fn without_lenient_connect_the_first_operation_must_be_connect() {
    let brokers = with_auth();
    let natsmux = Setup::new(&brokers).bus("lenient_connect", "false").start();
    for early in ["PUB a 0\r\n\r\n", "SUB a 1\r\n", "UNSUB 1\r\n", "PING\r\n"] {
        let mut client = greeted(&natsmux);
        client.send(early);
        closed_with(&mut client, "Authorization Violation");
    }
    let mut client = greeted(&natsmux);
    client.send(format!("{CONNECT}\r\nPING\r\n"));
    brokers.link().accept();
    client.pong();
}

#[test]
fn a_connect_that_does_not_come_is_waited_for_two_seconds() {
    let brokers = with_auth();
    let natsmux = Setup::new(&brokers).start();
    for early in ["", "PUB a 0\r\n\r\n", "PING\r\n", "CONNECT {\"user\":"] {
        let mut client = greeted(&natsmux);
        let since = Instant::now();
        client.try_send(early).expect("natsmux reads");
        client.set_patience(Duration::from_secs(10));
        closed_with(&mut client, "Authentication Timeout");
        assert!(since.elapsed() > Duration::from_millis(1900), "{early:?}");
    }
}

#[test]
fn what_is_no_operation_closes_at_once() {
    let brokers = with_auth();
    let natsmux = Setup::new(&brokers).timing("auth_timeout", "1m").start();
    for garbage in ["GET / HTTP/1.1\r\n", "\r\n", "PUB a 0\r\n\r\n{}\r\n"] {
        let mut client = greeted(&natsmux);
        client.send(garbage);
        closed_with(&mut client, "Unknown Protocol Operation");
    }
    for silent in [
        "PUB a x\r\n",
        "CONNECT {]\r\n",
        "CONNECT {\"verbose\":\"no\"}\r\n",
    ] {
        let mut client = greeted(&natsmux);
        client.send(silent);
        closed_with(&mut client, "");
    }
}

#[test]
fn what_comes_before_connect_is_bounded_for_each_session() {
    let brokers = with_auth();
    let natsmux = Setup::new(&brokers)
        .limit("lenient_buffer", "\"4KiB\"")
        .start();
    let frame = format!("PUB a 1000\r\n{}\r\n", "x".repeat(1000));
    let mut client = greeted(&natsmux);
    client.send(frame.repeat(4));
    let mut greedy = greeted(&natsmux);
    greedy.send(frame.repeat(5));
    closed_with(&mut greedy, "");
    client.send(format!("{CONNECT}\r\nPING\r\n"));
    let mut link = brokers.link();
    link.accept();
    for _ in 0..4 {
        assert_eq!(link.receive().line, "PUB a 1000");
    }
    link.answering(|| client.pong());
}

#[test]
fn where_no_broker_asks_for_credentials_connect_may_be_missing() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).timing("auth_timeout", "100ms").start();
    let mut client = greeted(&natsmux);
    client.send("PING\r\n");
    client.pong();
    // Without a deadline either.
    client.expect_silence(Duration::from_millis(200));
    client.send("SUB foo 1\r\nPUB a 0\r\n\r\nPING\r\n");
    let mut link = brokers.link();
    link.accept();
    assert_eq!(link.connect["verbose"], true);
    assert_eq!(link.connect["pedantic"], true);
    link.sub("foo");
    link.publish("PUB a 0", "");
    link.send("+OK\r\n");
    link.answering(|| client.expect("+OK\r\n+OK\r\nPONG\r\n"));
}

#[test]
fn a_connect_that_comes_before_info_was_read_is_no_error() {
    let brokers = with_auth();
    let natsmux = Setup::new(&brokers).start();
    let mut client = RawClient::connect(&natsmux.address());
    client.send(format!("{CONNECT}\r\nSUB foo 1\r\nPING\r\n"));
    let mut link = brokers.link();
    link.accept();
    link.sub("foo");
    client.info();
    link.answering(|| client.pong());
}
