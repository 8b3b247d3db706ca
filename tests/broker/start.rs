//! Components that start while no broker is alive (R16).

use std::time::Duration;

use crate::setup::{MOMENT, Setup, component_as, round_trip, wait_count, wait_outage};
use crate::support::{BrokerLink, Brokers, Flavour, Natsmux, RawClient, message};

fn as_user(user: &str) -> String {
    format!(r#"CONNECT {{"verbose":false,"user":"{user}","pass":"p","name":"{user}"}}"#)
}

fn with_auth() -> Brokers {
    Brokers::with_flavours(&[Flavour::v2_15().with_auth()])
}

fn starting(natsmux: &Natsmux, connect: &str, more: &str) -> RawClient {
    let mut client = RawClient::connect(&natsmux.address());
    client.info();
    client.send(format!("{connect}\r\n{more}PING\r\n"));
    client
}

/// A known user's first component, then the outage.
fn outage_after(brokers: &mut Brokers, natsmux: &Natsmux, user: &str) -> RawClient {
    let (client, link) = component_as(natsmux, brokers, &as_user(user));
    brokers.get(0).down();
    link.reset();
    wait_outage(natsmux);
    client
}

fn refuse(link: &mut BrokerLink) {
    link.send("-ERR 'Authorization Violation'\r\n");
}

fn closed_with_violation(client: &mut RawClient) {
    let last = client.until_closed();
    let last = String::from_utf8_lossy(&last);
    assert_eq!(last, "-ERR 'Authorization Violation'\r\n");
}

#[test]
fn known_credentials_are_admitted_at_once_and_others_wait_for_a_verdict() {
    let mut brokers = with_auth();
    let natsmux = Setup::new(&brokers).start();
    let first = outage_after(&mut brokers, &natsmux, "known");
    let mut known = starting(&natsmux, &as_user("known"), "");
    known.pong();
    let mut unknown = starting(&natsmux, &as_user("unknown"), "");
    let mut wrong = starting(&natsmux, &as_user("wrong"), "");
    unknown.expect_silence(MOMENT);
    wrong.expect_silence(MOMENT);
    brokers.get(0).up();
    let mut links = [(); 4].map(|()| brokers.link());
    for link in &mut links {
        link.connecting();
        match link.connect["user"].as_str() {
            Some("wrong") => refuse(link),
            _ => link.send("PONG\r\n"),
        }
    }
    unknown.pong();
    closed_with_violation(&mut wrong);
    drop(first);
}

#[test]
fn an_admitted_session_gets_nothing_and_publishes_nothing_before_its_verdict() {
    let mut brokers = with_auth();
    let natsmux = Setup::new(&brokers).start();
    let first = outage_after(&mut brokers, &natsmux, "known");
    drop(first);
    let mut client = starting(&natsmux, &as_user("known"), "");
    client.pong();
    client.send("SUB foo 1\r\nPUB a 0\r\n\r\n");
    wait_count(&natsmux, "published", 1);
    brokers.get(0).up();
    let mut link = brokers.link();
    link.connecting();
    link.expect_silence(MOMENT);
    link.send("PONG\r\n");
    let sid = link.sub("foo");
    link.answer_ping();
    link.publish("PUB a 0", "");
    link.answer_ping();
    link.msg("foo", &sid, "x");
    client.expect(&message("foo", "1", "x"));
    round_trip(&mut client, &mut link);
}

#[test]
fn credentials_that_are_refused_later_are_told_so() {
    let mut brokers = with_auth();
    let natsmux = Setup::new(&brokers).start();
    let first = outage_after(&mut brokers, &natsmux, "known");
    drop(first);
    let mut client = starting(&natsmux, &as_user("known"), "");
    client.pong();
    client.send("PUB a 0\r\n\r\n");
    brokers.get(0).up();
    let mut link = brokers.link();
    link.connecting();
    refuse(&mut link);
    closed_with_violation(&mut client);
    wait_count(&natsmux, "refused", 1);
    assert_eq!(link.fin(), []);
}

#[test]
fn refused_credentials_are_unknown_in_the_next_outage() {
    let mut brokers = with_auth();
    let natsmux = Setup::new(&brokers).start();
    let mut refused = starting(&natsmux, &as_user("mallory"), "");
    let mut link = brokers.link();
    link.connecting();
    refuse(&mut link);
    closed_with_violation(&mut refused);
    let _first = outage_after(&mut brokers, &natsmux, "known");
    let mut again = starting(&natsmux, &as_user("mallory"), "");
    let mut password = starting(&natsmux, r#"CONNECT {"user":"known","pass":"q"}"#, "");
    again.expect_silence(MOMENT);
    password.expect_silence(MOMENT);
}

#[test]
fn anybody_is_admitted_where_no_broker_asks_for_credentials() {
    let mut brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers)
        .timing("probe_interval", "100ms")
        .start();
    brokers.get(0).down();
    wait_outage(&natsmux);
    let mut client = starting(&natsmux, r#"CONNECT {"verbose":false}"#, "");
    client.pong();
    let mut verbose = starting(&natsmux, r#"CONNECT {"verbose":true}"#, "");
    verbose.expect("+OK\r\nPONG\r\n");
}

#[test]
fn nobody_is_admitted_before_any_broker_was_seen() {
    let mut brokers = Brokers::dead(1);
    let natsmux = Setup::new(&brokers).start_in_outage();
    let mut client = starting(&natsmux, r#"CONNECT {"verbose":false}"#, "SUB foo 1\r\n");
    client.expect_silence(MOMENT);
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept_replay(&["foo"]);
    link.answer_ping();
    client.pong();
}

#[test]
fn admit_verified_holds_even_known_credentials() {
    let mut brokers = with_auth();
    let natsmux = Setup::new(&brokers).bus("admit", "\"verified\"").start();
    let _first = outage_after(&mut brokers, &natsmux, "known");
    let mut client = starting(&natsmux, &as_user("known"), "");
    client.expect_silence(Duration::from_millis(200));
    brokers.get(0).up();
    let mut links = [(); 2].map(|()| brokers.link());
    for link in &mut links {
        link.accept();
    }
    client.pong();
}

#[test]
fn admit_always_admits_unknown_credentials() {
    let brokers = Brokers::dead(1);
    let natsmux = Setup::new(&brokers)
        .bus("admit", "\"always\"")
        .start_in_outage();
    let mut client = starting(&natsmux, &as_user("unknown"), "");
    client.pong();
    client.flush();
}
