//! Brokers' errors: which of them a component hears, and when (R15).

use std::time::Instant;

use crate::setup::{
    CONNECT, SOON, Setup, assert_books_balance, component, component_as, count, round_trip,
    subscribe,
};
use crate::support::{BrokerLink, Brokers, Flavour, Greeting, Natsmux, RawClient, message};

const REFUSALS: [&str; 5] = [
    "Authorization Violation",
    "Authorization failed",
    "User Authentication Expired",
    "User Authentication Revoked",
    "Account Authentication Expired",
];

const OTHERS: [&str; 6] = [
    "maximum connections exceeded",
    "maximum account active connections exceeded",
    "Stale Connection",
    "Connection throttling is active. Please try again later.",
    "Authentication Timeout",
    "Something that nobody has heard of",
];

fn error(text: &str) -> String {
    format!("-ERR '{text}'\r\n")
}

/// The broker refuses a link that waits for its answer.
fn refuse(mut link: BrokerLink, text: &str) {
    link.connecting();
    link.send(error(text));
    link.fin();
}

fn connecting(natsmux: &Natsmux) -> RawClient {
    let mut client = RawClient::connect(&natsmux.address());
    client.info();
    client.send(format!("{CONNECT}\r\nPING\r\n"));
    client
}

fn closed_with(mut client: RawClient, text: &str) {
    let last = client.until_closed();
    assert_eq!(String::from_utf8_lossy(&last), error(text));
}

#[test]
fn a_refusal_of_the_first_connect_reaches_the_component_verbatim() {
    for text in REFUSALS {
        let brokers =
            Brokers::with_flavours(&[Flavour::v2_15().with_auth(), Flavour::v2_15().with_auth()]);
        let natsmux = Setup::new(&brokers).start();
        let client = connecting(&natsmux);
        refuse(brokers.link(), text);
        closed_with(client, text);
        // Others are judged for themselves.
        component(&natsmux, &brokers);
    }
}

#[test]
fn any_other_error_at_the_first_connect_is_not_shown_and_the_next_broker_is_asked() {
    let brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers).start();
    for text in OTHERS {
        let mut client = connecting(&natsmux);
        refuse(brokers.link(), text);
        let mut link = brokers.link();
        link.accept();
        client.pong();
        round_trip_of_new(&mut client, &mut link);
    }
}

/// The component hears nothing but what it should.
fn round_trip_of_new(client: &mut RawClient, link: &mut BrokerLink) {
    subscribe(client, link, "foo", "1");
    round_trip(client, link);
}

#[test]
fn an_error_about_the_link_moves_it_and_is_not_shown() {
    for text in OTHERS {
        let brokers = Brokers::start(2);
        let natsmux = Setup::new(&brokers).start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        subscribe(&mut client, &mut link, "foo", "1");
        client.send("PING\r\n");
        link.expect("PING");
        link.send(error(text));
        let mut next = brokers.link();
        next.accept_replay(&["foo"]);
        next.answer_ping();
        client.pong();
        round_trip(&mut client, &mut next);
    }
}

#[test]
fn brokers_that_greet_wrongly_are_passed_over_unseen() {
    let info = Flavour::v2_15().line();
    let full = format!("{info}{}", error("maximum connections exceeded"));
    let huge = format!("INFO {{\"a\":\"{}", "x".repeat(200_000));
    let greetings = [
        Greeting::Silent,
        Greeting::Reset(Vec::new()),
        Greeting::Close(Vec::new()),
        Greeting::Reset(info.clone().into_bytes()),
        Greeting::Close(info.clone().into_bytes()),
        Greeting::Close(full.into_bytes()),
        Greeting::Close(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        Greeting::Stay(b"\x16\x03\x01\x00\xff\x00\r\n".to_vec()),
        Greeting::Stay(b"INFO {]\r\n".to_vec()),
        Greeting::Stay(b"INFO []\r\n".to_vec()),
        Greeting::Stay(b"PING\r\n".to_vec()),
        Greeting::Stay(huge.into_bytes()),
        Greeting::Stay(info.as_bytes()[..50].to_vec()),
        Greeting::Stay(Flavour::v2_15().with("tls_required", true).line().into()),
    ];
    for greeting in greetings {
        let good = Greeting::Info(Flavour::v2_15());
        let shown = format!("{greeting:.80?}");
        let brokers = Brokers::greeting(&[greeting, good]);
        let natsmux = Setup::new(&brokers)
            .timing("info_timeout", "300ms")
            .timing("link_timeout", "1s")
            .start();
        let mut client = connecting(&natsmux);
        let mut link = brokers.link();
        assert_eq!(link.broker, 1, "{shown}");
        link.accept();
        client.pong();
        round_trip_of_new(&mut client, &mut link);
    }
}

#[test]
fn brokers_that_greet_wrongly_after_a_failover_are_passed_over_unseen() {
    let full = Flavour::v2_15().line() + &error("maximum connections exceeded");
    for greeting in [
        Greeting::Silent,
        Greeting::Reset(Vec::new()),
        Greeting::Reset(Flavour::v2_15().line().into_bytes()),
        Greeting::Close(full.into_bytes()),
        Greeting::Stay(b"garbage\r\n".to_vec()),
    ] {
        let mut brokers = Brokers::start(3);
        let natsmux = Setup::new(&brokers)
            .timing("info_timeout", "300ms")
            .timing("probe_interval", "1m")
            .start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        subscribe(&mut client, &mut link, "foo", "1");
        client.send("PING\r\n");
        link.expect("PING");
        brokers.get(1).greet(greeting);
        let before = brokers.get(1).accepted();
        brokers.get(0).down();
        link.reset();
        let mut link = brokers.link();
        assert_eq!(link.broker, 2);
        brokers.get(1).wait_accepted(before);
        link.accept_replay(&["foo"]);
        link.answer_ping();
        client.pong();
    }
}

#[test]
fn garbage_on_a_live_link_is_the_end_of_the_link_only() {
    for garbage in [
        "MSG foo\r\n",
        "HELLO\r\n",
        "MSG foo 0 x\r\n\r\n",
        "MSG foo 0 1\r\nab\r\n",
    ] {
        let brokers = Brokers::start(2);
        let natsmux = Setup::new(&brokers).start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        let sid = subscribe(&mut client, &mut link, "foo", "1");
        link.send(message("foo", &sid, "good") + garbage);
        client.expect(&message("foo", "1", "good"));
        let mut next = brokers.link();
        next.accept_replay(&["foo"]);
        round_trip(&mut client, &mut next);
    }
}

#[test]
fn a_refusal_on_the_replay_is_not_shown_while_another_broker_accepts() {
    for text in REFUSALS {
        let brokers = Brokers::start(2);
        let natsmux = Setup::new(&brokers).start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        subscribe(&mut client, &mut link, "foo", "1");
        client.send("PING\r\n");
        link.expect("PING");
        link.reset();
        let other = brokers.link();
        assert_eq!(other.broker, 1);
        refuse(other, text);
        let mut link = brokers.link();
        assert_eq!(link.broker, 0);
        // Without a broker, a PING behind which nothing is unconfirmed is natsmux's (R2).
        client.pong();
        link.accept_replay(&["foo"]);
        round_trip(&mut client, &mut link);
    }
}

#[test]
fn a_refusal_on_the_replay_by_every_broker_reaches_the_component_at_once() {
    let brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers).timing("refusal_window", "1m").start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    subscribe(&mut client, &mut link, "foo", "1");
    let (mut neighbour, mut other) = component(&natsmux, &brokers);
    client.send("PUB a 0\r\n\r\n");
    link.publish("PUB a 0", "");
    link.reset();
    client.send("PUB b 0\r\n\r\n");
    refuse(brokers.link(), "Authorization Violation");
    refuse(brokers.link(), "Authorization Violation");
    closed_with(client, "Authorization Violation");
    subscribe(&mut neighbour, &mut other, "foo", "1");
    let varz = assert_books_balance(&natsmux, 2);
    assert_eq!(count(&varz, "refused_sessions"), 1, "{varz}");
}

#[test]
fn a_refusal_on_the_replay_waits_for_unreachable_brokers_only_so_long() {
    let mut brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers)
        .timing("refusal_window", "500ms")
        .start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    subscribe(&mut client, &mut link, "foo", "1");
    // Takes connections, but answers no CONNECT.
    let mute = Greeting::Stay(Flavour::v2_15().line().into_bytes());
    brokers.get(0).greet(mute);
    link.reset();
    let since = Instant::now();
    refuse(brokers.link(), "Authorization Violation");
    closed_with(client, "Authorization Violation");
    assert!(since.elapsed() < SOON);
}

#[test]
fn a_user_that_one_broker_removed_is_served_by_another_that_accepts() {
    let brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    subscribe(&mut client, &mut link, "foo", "1");
    link.send(error("Authorization Violation"));
    let mut next = brokers.link();
    next.accept_replay(&["foo"]);
    round_trip(&mut client, &mut next);
}

#[test]
fn a_publish_violation_reaches_the_component_and_is_counted_as_refused() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let cases = [
        (
            "PUB secret 0",
            "Permissions Violation for Publish to \"secret\"",
        ),
        (
            "PUB any $JS.ACK.x 0",
            "Permissions Violation for Publish with Reply of \"$JS.ACK.x\"",
        ),
    ];
    for (refused, text) in cases {
        client.send(format!("{refused}\r\n\r\nPUB open 0\r\n\r\nPING\r\n"));
        link.publish(refused, "");
        link.send(error(text));
        link.publish("PUB open 0", "");
        link.answer_ping();
        client.expect(&error(text));
        client.pong();
    }
    let varz = assert_books_balance(&natsmux, 4);
    assert_eq!(count(&varz, "refused"), 2, "{varz}");
    assert_eq!(count(&varz, "confirmed"), 2, "{varz}");
}

#[test]
fn a_refused_subscription_is_told_to_the_component_and_not_replayed() {
    let brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let cases = [
        ("no", "Permissions Violation for Subscription to \"no\""),
        (
            "no q",
            "Permissions Violation for Subscription to \"no\" using queue \"q\"",
        ),
        // Brokers quote as Go's %q does.
        (
            "n\"o\\ q\"",
            "Permissions Violation for Subscription to \"n\\\"o\\\\\" using queue \"q\\\"\"",
        ),
    ];
    for (index, (subscription, text)) in cases.iter().enumerate() {
        client.send(format!(
            "SUB {subscription} {index}\r\nSUB yes y{index}\r\nPING\r\n"
        ));
        link.sub(subscription);
        link.send(error(text));
        link.sub("yes");
        link.answer_ping();
        client.expect(&error(text));
        client.pong();
    }
    link.reset();
    let mut link = brokers.link();
    link.accept_replay(&["yes"; 3]);
    round_trip(&mut client, &mut link);
}

#[test]
fn a_permission_taken_away_names_the_components_own_sid_and_is_not_replayed() {
    for queue in ["", " using queue \"q\""] {
        let brokers = Brokers::start(2);
        let natsmux = Setup::new(&brokers).start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        subscribe(&mut client, &mut link, "yes", "y");
        let group = if queue.is_empty() { "" } else { " q" };
        let sid = subscribe(&mut client, &mut link, &format!("foo{group}"), "abc-77");
        let text = |sid: &str| {
            error(&format!(
                "Permissions Violation for Subscription to \"foo\"{queue} (sid \"{sid}\")"
            ))
        };
        link.send(text(&sid));
        client.expect(&text("abc-77"));
        link.reset();
        let mut link = brokers.link();
        link.accept_replay(&["yes"]);
        round_trip(&mut client, &mut link);
    }
}

#[test]
fn an_invalid_subject_is_told_and_the_session_goes_on() {
    let brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    client.send("SUB foo..bar 1\r\nSUB foo 2\r\nPING\r\n");
    assert!(link.receive().line.starts_with("SUB foo..bar "));
    link.send(error("Invalid Subject"));
    link.sub("foo");
    link.answer_ping();
    client.expect(&error("Invalid Subject"));
    client.pong();
    link.reset();
    let mut link = brokers.link();
    link.accept_replay(&["foo"]);
    round_trip(&mut client, &mut link);
}

#[test]
fn a_payload_over_the_next_brokers_lower_limit_closes_that_session_only() {
    let mut brokers = Brokers::start(2);
    let small = Flavour::v2_15().with("max_payload", 100);
    brokers.get(1).down();
    brokers.get(1).greet(Greeting::Info(small));
    let natsmux = Setup::new(&brokers).start();
    let named = |name: &str| format!(r#"CONNECT {{"verbose":false,"name":"{name}"}}"#);
    let (mut client, link) = component_as(&natsmux, &brokers, &named("a"));
    let (mut neighbour, other) = component_as(&natsmux, &brokers, &named("b"));
    brokers.get(0).down();
    brokers.get(1).up();
    link.reset();
    other.reset();
    let mut links = [brokers.link(), brokers.link()];
    for link in &mut links {
        assert_eq!(link.broker, 1);
        link.accept();
    }
    links.sort_by_key(|link| link.connect["name"].to_string());
    let [mut link, mut other] = links;
    // Once a publish has arrived, the link is live and its limit known.
    let exactly = "x".repeat(100);
    client.send(format!("PUB fits 100\r\n{exactly}\r\n"));
    link.until(|op| op.payload.len() == 100);
    client.send(format!("PUB big 101\r\n{exactly}x\r\n"));
    link.answering(|| closed_with(client, "Maximum Payload Violation"));
    let rest = link.until_closed();
    assert!(rest.iter().all(|op| op.line == "PING"), "{rest:?}");
    neighbour.send("PUB on 0\r\n\r\n");
    other.publish("PUB on 0", "");
}
