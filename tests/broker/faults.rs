//! Faults that were found by looking at natsmux, each with the number that it had in that list.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::setup::{
    MOMENT, SOON, Setup, component, component_as, count, own_connect, round_trip, subscribe,
};
use crate::support::{BrokerLink, Brokers, Flavour, RawClient, message, wait_for};

/// Sends it in front of a PONG that a component has asked for.
fn before_pong(client: &mut RawClient, link: &mut BrokerLink, bytes: &str) {
    client.send("PING\r\n");
    link.expect("PING");
    link.send(format!("{bytes}PONG\r\n"));
}

/// A1: 4,000 sids of nobody's are counted, and take no memory that a replay would show.
#[test]
fn a_broker_that_delivers_to_sids_of_nobody_is_ignored() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "1");
    let strange: String = (0..4_000)
        .map(|number| message("foo", &format!("z{number}"), "x"))
        .collect();
    before_pong(&mut client, &mut link, &strange);
    client.pong();
    natsmux.wait_varz("the strange ones to be counted", SOON, |varz| {
        count(varz, "unknown_sid_msgs") >= 4_000
    });
    link.msg("foo", &sid, "y");
    client.expect(&message("foo", "1", "y"));
}

/// A1: what a broker says ahead of its INFO ends that dial alone.
#[test]
fn a_broker_that_speaks_before_its_info_is_not_believed() {
    use crate::support::Greeting;
    let mut brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers)
        .timing("probe_interval", "100ms")
        .start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    brokers
        .get(1)
        .greet(Greeting::Stay(b"MSG foo 0 1000000\r\nxx".to_vec()));
    natsmux.wait_varz("it to be down", SOON, |varz| {
        varz["buses"][0]["brokers"][1]["state"] == "down"
    });
    round_trip(&mut client, &mut link);
}

/// B8.
#[test]
fn a_broker_that_requires_tls_is_down_and_says_why() {
    let tls = Flavour::v2_15()
        .with("tls_required", true)
        .with("server_id", "TLS");
    let brokers = Brokers::with_flavours(&[tls, Flavour::v2_15()]);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    assert_eq!(link.broker, 1);
    natsmux.wait_varz("the cause", SOON, |varz| {
        let broker = &varz["buses"][0]["brokers"][0];
        broker["state"] == "down" && broker.to_string().contains("tls_required")
    });
    round_trip(&mut client, &mut link);
}

/// B9: who is served stays, and a newcomer hears the broker's words while it still listens.
#[test]
fn a_full_broker_keeps_whom_it_has_and_tells_newcomers() {
    let full = "-ERR 'maximum connections exceeded'\r\n";
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "1");
    let mut newcomer = RawClient::connect(&natsmux.address());
    newcomer.info();
    newcomer.send(format!("{}\r\nPING\r\n", own_connect()));
    let since = Instant::now();
    let words = std::thread::scope(|scope| {
        let heard = scope.spawn(|| newcomer.until_closed());
        while !heard.is_finished() && since.elapsed() < SOON {
            if let Some(mut dial) = brokers.link_within(MOMENT) {
                dial.try_send(full);
            }
        }
        heard.join().expect("it was told")
    });
    assert_eq!(String::from_utf8_lossy(&words), full);
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "a component gives up after 2 s"
    );
    link.msg("foo", &sid, "x");
    client.expect(&message("foo", "1", "x"));
}

/// B13: what a broker tells a connection later of its limit reaches the component.
#[test]
fn a_smaller_max_payload_is_passed_on() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    link.send(Flavour::v2_15().with("max_payload", 2048).line());
    let info = client.info();
    assert_eq!(info["max_payload"], 2048);
    round_trip(&mut client, &mut link);
}

/// D16: a status that an application writes is a message like any other, and counts.
#[test]
fn a_status_without_the_subject_is_an_applications_where_brokers_name_it() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "inbox", "1");
    client.send("UNSUB 1 1\r\nPUB service inbox 0\r\n\r\n");
    link.expect(&format!("UNSUB {sid} 1"));
    link.publish("PUB service inbox 0", "");
    let status = |sid: &str| format!("HMSG inbox {sid} 16 16\r\nNATS/1.0 503\r\n\r\n\r\n");
    link.send(status(&sid));
    client.expect(&status("1"));
    // That was the one: the next broker isn't told of it.
    link.reset();
    let mut link = brokers.link();
    link.accept();
    let received = crate::setup::wait_live(&mut client, &mut link);
    assert!(received.iter().all(|op| op.verb() != "SUB"), "{received:?}");
}

/// D18: a broker that has room for ten, and the twelve that it was told of.
#[test]
fn the_subscriptions_that_were_too_many_are_those_that_the_broker_refused() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let subs: String = (1..=12).map(|no| format!("SUB s.{no} {no}\r\n")).collect();
    client.send(format!(
        "{subs}UNSUB 1\r\nUNSUB 2\r\nSUB s.13 13\r\nSUB s.14 14\r\nPING\r\n"
    ));
    let full = "-ERR 'maximum subscriptions exceeded'\r\n";
    link.until(|op| op.line.starts_with("SUB s.14 "));
    link.send(full);
    link.send(full);
    link.answer_ping();
    client.expect(&format!("{full}{full}PONG\r\n"));
    link.reset();
    let mut link = brokers.link();
    link.accept_replay(&[
        "s.3", "s.4", "s.5", "s.6", "s.7", "s.8", "s.9", "s.10", "s.13", "s.14",
    ]);
    round_trip(&mut client, &mut link);
}

/// A4: each CONNECT that a broker accepts leaves a connection behind, and not for long.
#[test]
fn idle_shared_connections_are_few() {
    const MOST: usize = 16;
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers)
        .bus("sharing", "\"identity\"")
        .timing("trunk_idle_timeout", "1m")
        .start();
    let mut links = Vec::new();
    for no in 0..3 * MOST {
        let connect =
            format!("CONNECT {{\"verbose\":false,\"pedantic\":false,\"user\":\"u{no}\"}}");
        links.push(component_as(&natsmux, &brokers, &connect).1);
    }
    // And those of who waited for it to start.
    let few = |varz: &Value| {
        let all_gone = count(varz, "sessions_closed") >= 3 * MOST as u64;
        all_gone && count(varz, "links") <= MOST as u64 + 1
    };
    natsmux.wait_varz("few links", SOON, few);
}

/// E26: the log names the component that is refused.
#[test]
fn a_refusal_names_the_component() {
    let brokers = Brokers::with_flavours(&[Flavour::v2_15().with_auth()]);
    let natsmux = Setup::new(&brokers).start();
    let mut client = RawClient::connect(&natsmux.address());
    client.info();
    client.send(
        "CONNECT {\"verbose\":false,\"user\":\"u\",\"pass\":\"sesame\",\"name\":\"billing\"}\r\nPING\r\n",
    );
    let mut link = brokers.link();
    link.connecting();
    link.send("-ERR 'Authorization Violation'\r\n");
    link.fin();
    let heard = client.until_closed();
    assert_eq!(heard, b"-ERR 'Authorization Violation'\r\n");
    wait_for("the refusal in the log", SOON, || {
        let log = natsmux.log();
        let line = log
            .lines()
            .find(|line| line.contains("component refused"))?;
        assert!(
            line.contains("billing") && !log.contains("sesame"),
            "{line}"
        );
        Some(())
    });
}

/// D18: where natsmux's own subscription takes the last place, it gives way.
#[test]
fn presence_takes_no_place_from_a_component() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers)
        .bus("topology", "\"independent\"")
        .start();
    // Of an identity of its own, for which it announces.
    let connect = "CONNECT {\"verbose\":false,\"user\":\"own\"}";
    let (mut client, mut link) = component_as(&natsmux, &brokers, connect);
    let mut before = link.until(|op| op.line.starts_with("SUB _NATSMUX.presence."));
    let presence = before.pop().expect("a SUB").line;
    let presence = presence.rsplit(' ').next().expect("a sid").to_owned();
    client.send("SUB a 1\r\nSUB b 2\r\nPING\r\n");
    let full = "-ERR 'maximum subscriptions exceeded'\r\n";
    link.until(|op| op.line.starts_with("SUB b "));
    link.send(full);
    link.send(full);
    let again = link.until(|op| op.line.starts_with("SUB a "));
    let gives_way = format!("UNSUB {presence}");
    assert!(again.iter().any(|op| op.line == gives_way), "{again:?}");
    link.answering(|| client.expect(&format!("{full}PONG\r\n")));
    round_trip(&mut client, &mut link);
}

/// D21: brokers say so alone.
#[test]
fn a_verbose_connect_of_no_protocol_has_no_ok() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let mut client = RawClient::connect(&natsmux.address());
    client.info();
    client.send("CONNECT {\"verbose\":true,\"protocol\":2}\r\nPING\r\n");
    let mut link = brokers.link();
    link.connecting();
    link.try_send("+OK\r\nPONG\r\n");
    let heard = String::from_utf8_lossy(&client.until_closed()).into_owned();
    assert_eq!(heard, "-ERR 'invalid client protocol'\r\n");
}

/// D22, R2: nothing is unconfirmed, so a flush isn't kept waiting for the next broker.
#[test]
fn a_ping_in_flight_at_the_end_of_the_last_broker_is_answered_at_once() {
    let mut brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).timing("pong_hold", "1m").start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    subscribe(&mut client, &mut link, "foo", "1");
    client.send("PING\r\n");
    link.expect("PING");
    brokers.get(0).down();
    link.reset();
    let since = Instant::now();
    client.pong();
    assert!(since.elapsed() < Duration::from_secs(1));
}

/// E23: final for these credentials, in the broker's words; nobody else is touched.
#[test]
fn credentials_that_run_out_end_their_session_and_move_nobody() {
    for text in [
        "User Authentication Expired",
        "User Authentication Revoked",
        "Account Authentication Expired",
    ] {
        let brokers = Brokers::start(2);
        let natsmux = Setup::new(&brokers).start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        let (mut other, mut its_link) = component(&natsmux, &brokers);
        let last = format!("-ERR '{text}'\r\n");
        link.send(&last);
        drop(link.fin());
        let heard = String::from_utf8_lossy(&client.until_closed()).into_owned();
        assert_eq!(heard, last);
        round_trip(&mut other, &mut its_link);
        assert!(brokers.link_within(MOMENT).is_none(), "nobody dials for it");
        let varz = natsmux.varz();
        assert_eq!(count(&varz, "failovers"), 0, "{varz}");
    }
}

/// F30: only natsmux announces, below the prefix of presence.
#[test]
fn a_component_may_not_publish_below_the_prefix_of_presence() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers)
        .bus("topology", "\"independent\"")
        .start();
    let (mut client, mut link) = component_as(&natsmux, &brokers, &own_connect());
    client.send("PUB _NATSMUX.presence.x 2\r\n{}\r\nPUB a 1\r\nx\r\nPING\r\n");
    let received = link.until(|op| op.line == "PUB a 1");
    let forbidden = |line: &str| line.starts_with("PUB _NATSMUX.presence.x");
    assert!(
        !received.iter().any(|op| forbidden(&op.line)),
        "{received:?}"
    );
    client.expect("-ERR 'Permissions Violation for Publish to \"_NATSMUX.presence.x\"'\r\n");
    link.answering(|| client.pong());
}

/// 0, R33: natsmux takes no more from a broker than a component that reads slowly takes.
#[test]
fn a_component_that_reads_later_gets_everything() {
    const MESSAGES: usize = 64;
    let payload = "x".repeat(512 * 1024);
    let brokers = Brokers::start(1);
    // Half of what comes would be too much.
    let natsmux = Setup::new(&brokers)
        .bus("sharing", "\"none\"")
        .limit("max_pending", "\"16MiB\"")
        .start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "1");
    std::thread::scope(|scope| {
        scope.spawn(|| (0..MESSAGES).for_each(|_| link.msg("foo", &sid, &payload)));
        natsmux.wait_varz("natsmux not to read", SOON, |varz| {
            count(varz, "stalls") > 0
        });
        for _ in 0..MESSAGES {
            assert_eq!(client.message().len(), payload.len());
        }
    });
    round_trip(&mut client, &mut link);
    let varz = natsmux.varz();
    assert_eq!(count(&varz, "link_failures"), 0, "{varz}");
}
