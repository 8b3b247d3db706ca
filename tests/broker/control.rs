//! The control socket's commands (R42), at scripted brokers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::process::Signal;
use serde_json::json;

use crate::reload::move_over;
use crate::setup::{MOMENT, SOON, Setup, component, round_trip, subscribe, wait_count};
use crate::support::{Brokers, message, wait_for};

#[test]
fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let addr = brokers.addresses()[0].clone();
    for (args, code, word) in [
        (&["move", "default"][..], 1, "no other broker is up"),
        (&["move", "other"][..], 1, "the buses are default"),
        (&["move", "default", "--to", "10.0.0.9"][..], 1, &addr),
        (&["move", "default", "--within", "1h"][..], 2, "within"),
        (&["drain", &addr][..], 1, "stays in use"),
        (&["drain", "10.0.0.9:4222"][..], 1, &addr),
        (&["pause", "default", "--for", "soon"][..], 2, "for"),
        (&["kill", "4000000000"][..], 1, "no connection"),
        (
            &["sessions", "--bus", "other"][..],
            1,
            "the buses are default",
        ),
    ] {
        let (status, said) = natsmux.order(args);
        assert_eq!(status.code(), Some(code), "{args:?}: {said}");
        assert!(said.to_string().contains(word), "{args:?}: {said}");
    }
    round_trip(&mut client, &mut link);
}

#[test]
fn a_connection_is_closed_by_command_and_no_other() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start_unwatched();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let (mut doomed, _doomed_link) = component(&natsmux, &brokers);
    let (status, said) = natsmux.order(&["sessions", "--bus", "default"]);
    assert!(status.success(), "{said}");
    let sessions = said["sessions"].as_array().expect("a list");
    assert_eq!(sessions.len(), 2, "{said}");
    let cid = sessions.iter().filter_map(|one| one["cid"].as_u64()).max();
    let cid = cid.expect("numbers").to_string();
    let (status, said) = natsmux.order(&["kill", &cid]);
    assert!(status.success(), "{said}");
    assert_eq!(doomed.until_closed(), b"", "it hears nothing");
    round_trip(&mut client, &mut link);
    wait_for("the reason in the metrics", SOON, || {
        let metrics = natsmux.get("/metrics")?.body;
        metrics.contains("reason=\"killed\"} 1").then_some(())
    });
}

/// R3 holds in a pause: what waits is proven once it went out.
#[test]
fn publishes_wait_in_a_pause_and_deliveries_go_on() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "own");
    let (status, said) = natsmux.order(&["pause", "default", "--for", "1m"]);
    assert!(status.success(), "{said}");
    client.send("PUB bar 2\r\nhi\r\n");
    link.msg("foo", &sid, "deliveries go on");
    client.expect(&message("foo", "own", "deliveries go on"));
    link.expect_silence(MOMENT);
    let (status, said) = natsmux.order(&["resume", "default"]);
    assert!(status.success() && said["was_paused"] == true, "{said}");
    link.publish("PUB bar 2", "hi");
    round_trip(&mut client, &mut link);
    let (_, said) = natsmux.order(&["resume", "default"]);
    assert_eq!(said["was_paused"], false);
}

#[test]
fn a_pause_ends_by_itself_and_before_natsmux_does() {
    let brokers = Brokers::start(1);
    let mut natsmux = Setup::new(&brokers).start_unwatched();
    let (mut client, mut link) = component(&natsmux, &brokers);
    for (lasts, ends_itself) in [("200ms", true), ("10m", false)] {
        let (status, said) = natsmux.order(&["pause", "default", "--for", lasts]);
        assert!(status.success(), "{said}");
        client.send("PUB bar 2\r\nhi\r\n");
        wait_count(&natsmux, "waiting", 1);
        let paused = natsmux.varz()["buses"][0]["paused_seconds"].clone();
        assert!(paused.is_number(), "{paused}");
        if !ends_itself {
            natsmux.signal(Signal::TERM);
        }
        link.until(|op| op.line == "PUB bar 2");
        if ends_itself {
            link.answering(|| wait_count(&natsmux, "waiting", 0));
        }
    }
    link.answering(|| assert!(natsmux.wait().success()));
}

/// Whoever speaks HTTP there hears what is wrong.
#[test]
fn the_socket_refuses_what_is_no_command() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let long = format!("{{\"bus\":\"{}\"}}", "x".repeat(20_000));
    for (request, body, status) in [
        ("GET /drain", "", "405"),
        ("POST /stop", "", "404"),
        ("POST /drain", "{}", "400"),
        ("POST /drain", "nothing", "400"),
        ("POST /drain", r#"{"brokers":"x"}"#, "400"),
        ("POST /pause", &long[..], "400"),
        ("POST /resume", r#"{"bus":"other"}"#, "404"),
    ] {
        let mut stream = UnixStream::connect(natsmux.control()).expect("it listens");
        let len = body.len();
        let text = format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).expect("taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let expected = format!("HTTP/1.1 {status} ");
        assert!(
            answer.starts_with(&expected),
            "{request} {body:.40}: {answer}"
        );
        assert!(answer.contains("\"error\""), "{answer}");
    }
}

#[test]
fn a_drained_broker_is_left_and_serves_where_no_other_can() {
    let mut brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers).start_unwatched();
    let (mut client, mut old) = component(&natsmux, &brokers);
    assert_eq!(old.broker, 0);
    let sid = subscribe(&mut client, &mut old, "foo", "own");
    let addr = brokers.addresses()[0].clone();
    let mut new = thread::scope(|scope| {
        let drain = scope.spawn(|| natsmux.order(&["drain", &addr]));
        let mut new = brokers.link();
        move_over(&mut old, &mut new, &sid);
        old.answer_ping();
        old.until_closed();
        let (status, said) = drain.join().expect("it runs");
        assert!(status.success(), "{said}");
        let bus = &said["buses"][0];
        assert_eq!(
            (&bus["moved"], &bus["left"]),
            (&1.into(), &0.into()),
            "{said}"
        );
        new
    });
    assert_eq!(new.broker, 1);
    new.answering(|| client.flush());
    // A snapshot may be some milliseconds old.
    let wait_drained = |is_drained: bool| {
        natsmux.wait_varz("the broker's state", SOON, |varz| {
            varz["buses"][0]["brokers"][0]["drained"] == is_drained
        })
    };
    wait_drained(true);
    brokers.get(1).down();
    new.reset();
    let mut last = brokers.link();
    assert_eq!(last.broker, 0);
    last.accept_replay(&["foo"]);
    round_trip(&mut client, &mut last);
    let (status, said) = natsmux.order(&["undrain", &addr]);
    assert!(status.success(), "{said}");
    wait_drained(false);
}

#[test]
fn what_a_broker_refuses_in_a_move_stays_where_it_is() {
    let brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers).start_unwatched();
    let (mut client, mut link) = component(&natsmux, &brokers);
    assert_eq!(link.broker, 0);
    thread::scope(|scope| {
        let order = scope.spawn(|| natsmux.order(&["move", "default", "--within", "1s"]));
        let mut refused = 0;
        while !order.is_finished() {
            if let Some(mut new) = brokers.link_within(MOMENT) {
                assert_eq!(new.broker, 1);
                new.connecting();
                new.send("-ERR 'maximum connections exceeded'\r\n");
                new.reset();
                refused += 1;
            }
        }
        assert!(refused > 0);
        let (status, said) = order.join().expect("it runs");
        assert_eq!(status.code(), Some(1));
        let bus = &said["buses"][0];
        let counted = (&bus["moved"], &bus["left"]);
        assert_eq!(counted, (&0.into(), &1.into()), "{said}");
        assert_eq!(bus["to"], brokers.addresses()[1].as_str());
    });
    round_trip(&mut client, &mut link);
}

#[test]
fn a_reload_by_command_says_what_it_changes_or_why_it_does_not() {
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers);
    let natsmux = setup.start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let (status, said) = natsmux.order(&["reload"]);
    assert!(status.success() && said["changed"] == json!([]), "{said}");
    let text = setup.text() + "\n";
    natsmux.rewrite_config(&text.replace("[[bus]]", "[[bus]]\nrebalance = true"));
    let (status, said) = natsmux.order(&["reload"]);
    assert!(status.success(), "{said}");
    let changed = json!([
        "- bus default: rebalance = false",
        "+ bus default: rebalance = true",
    ]);
    assert_eq!(said["changed"], changed);
    natsmux.rewrite_config(&text.replace("[[bus]]", "[[bus]]\nrebalance = 7"));
    let (status, said) = natsmux.order(&["reload"]);
    assert_eq!(status.code(), Some(1));
    assert!(said.to_string().contains("rebalance"), "{said}");
    round_trip(&mut client, &mut link);
}

/// Whoever waits for moves takes no room from other commands.
#[test]
fn a_ninth_move_is_not_waited_for_and_other_commands_are_carried_out() {
    const WAITS: usize = 8;
    let brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let ask = |path: &str, body: &str| {
        let mut stream = UnixStream::connect(natsmux.control()).expect("it listens");
        let len = body.len();
        let text =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).expect("taken");
        stream
    };
    // The other broker answers nobody's CONNECT.
    let other = &brokers.addresses()[1];
    let body = format!(r#"{{"bus":"default","to":"{other}","within":"1m"}}"#);
    let waiting: Vec<UnixStream> = (0..WAITS).map(|_| ask("/move", &body)).collect();
    wait_for("a move that isn't waited for", SOON, || {
        let mut answer = String::new();
        let mut stream = ask("/move", &body);
        let _ = stream.set_read_timeout(Some(MOMENT));
        let _ = stream.read_to_string(&mut answer);
        let is_refused = answer.starts_with("HTTP/1.1 503 ");
        (is_refused && answer.contains("8 moves are waited for already")).then_some(())
    });
    let (status, said) = natsmux.order(&["sessions"]);
    assert!(status.success(), "{said}");
    drop(waiting);
    round_trip(&mut client, &mut link);
}
