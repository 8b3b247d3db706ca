//! Sessions that share a link (R20, R22-R25): who does, and that none of them can tell.

use std::time::Duration;

use crate::setup::{MOMENT, SOON, Setup, component_as, count, round_trip, subscribe};
use crate::support::{
    BrokerLink, Brokers, Flavour, Natsmux, RawClient, message, no_responders, wait_for,
};

fn connect(options: &str) -> String {
    format!("CONNECT {{\"verbose\":false,\"pedantic\":false,\"protocol\":1{options}}}")
}

/// natsmux with shared links that stay for a while.
fn setup(brokers: &Brokers) -> Setup {
    Setup::new(brokers)
        .bus("sharing", "\"identity\"")
        .timing("trunk_idle_timeout", "1m")
}

/// A session with these options that shares a link which is there already.
fn sharer(natsmux: &Natsmux, options: &str) -> RawClient {
    let mut client = RawClient::connect(&natsmux.address());
    client.info();
    client.send(format!("{}\r\nPING\r\n", connect(options)));
    // What it asks for was accepted before: natsmux answers.
    client.pong();
    client
}

/// Two sessions on one link.
fn pair(natsmux: &Natsmux, brokers: &Brokers) -> (RawClient, RawClient, BrokerLink) {
    let (first, link) = component_as(natsmux, brokers, &connect(""));
    (first, sharer(natsmux, ""), link)
}

#[test]
fn every_field_of_connect_shares_or_separates() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let base = ",\"user\":\"u\",\"pass\":\"p\"";
    let (_first, _link) = component_as(&natsmux, &brokers, &connect(base));
    for equal in [
        "",
        ",\"name\":\"other\"",
        ",\"lang\":\"other\"",
        ",\"version\":\"9\"",
        ",\"protocol\":0",
        ",\"tls_required\":true",
        ",\"echo\":true",
        ",\"headers\":false",
        ",\"no_responders\":false",
        ",\"unheard_of\":1",
        ",\"auth_token\":\"\"",
    ] {
        sharer(&natsmux, &format!("{base}{equal}"));
        assert!(brokers.link_within(MOMENT).is_none(), "{equal} shares");
    }
    let mut links = Vec::new();
    for separate in [
        ",\"user\":\"v\"",
        ",\"pass\":\"q\"",
        ",\"auth_token\":\"t\"",
        ",\"jwt\":\"j\"",
        ",\"nkey\":\"k\"",
        ",\"headers\":true",
        ",\"headers\":true,\"no_responders\":true",
    ] {
        let options = connect(&format!("{base}{separate}"));
        links.push(component_as(&natsmux, &brokers, &options));
        sharer(&natsmux, &format!("{base}{separate}"));
        assert!(
            brokers.link_within(MOMENT).is_none(),
            "two of {separate} share"
        );
    }
    for never in [",\"echo\":false", ",\"verbose\":true", ",\"pedantic\":true"] {
        for _ in 0..2 {
            let options = connect(&format!("{base}{never}"));
            links.push(component_as(&natsmux, &brokers, &options));
        }
    }
}

#[test]
fn a_broker_is_told_the_trunk_and_monitoring_the_session() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let named = connect(",\"name\":\"first\",\"lang\":\"c\",\"version\":\"3\"");
    let (_first, link) = component_as(&natsmux, &brokers, &named);
    let name = link.connect["name"].as_str().expect("a name");
    let mut parts = name.split(':');
    assert_eq!(parts.next(), Some("natsmux"));
    assert!(
        parts.next().is_some_and(|host| host.starts_with("host-")),
        "{name}"
    );
    assert_eq!(parts.next(), Some("default"));
    assert!(
        parts
            .next()
            .is_some_and(|trunk| trunk.parse::<u64>().is_ok())
    );
    assert_eq!(link.connect["lang"], "natsmux");
    let _second = sharer(&natsmux, ",\"name\":\"second\"");
    let connz = natsmux.get("/connz").expect("an answer").body;
    for shown in ["\"first\"", "\"second\"", "\"c\""] {
        assert!(connz.contains(shown), "{shown} in {connz}");
    }
}

#[test]
fn equal_subscriptions_are_one_upstream_from_behind_the_joiners_ping() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let (mut first, mut second, mut link) = pair(&natsmux, &brokers);
    let sid = subscribe(&mut first, &mut link, "foo", "1");
    second.send("SUB foo 007\r\n");
    link.expect("PING");
    link.msg("foo", &sid, "before");
    first.expect(&message("foo", "1", "before"));
    second.expect_silence(MOMENT);
    link.send("PONG\r\n");
    link.msg("foo", &sid, "behind");
    first.expect(&message("foo", "1", "behind"));
    second.expect(&message("foo", "007", "behind"));
    // The one that came first goes first.
    first.send("UNSUB 1\r\n");
    link.expect("PING");
    link.msg("foo", &sid, "last");
    first.expect(&message("foo", "1", "last"));
    second.expect(&message("foo", "007", "last"));
    link.send("PONG\r\n");
    link.msg("foo", &sid, "alone");
    second.expect(&message("foo", "007", "alone"));
    first.expect_silence(MOMENT);
    drop(second);
    link.expect(&format!("UNSUB {sid}"));
    round_trip(&mut first, &mut link);
}

#[test]
fn one_ping_marks_the_place_of_all_that_join_or_leave_between_two_publishes() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let (mut first, mut second, mut link) = pair(&natsmux, &brokers);
    let subjects = ["foo", "bar", "baz"];
    let sids = subjects.map(|subject| subscribe(&mut first, &mut link, subject, subject));
    for (operations, hears) in [
        ("SUB foo 1\r\nSUB bar 2\r\nSUB baz 3\r\n", true),
        ("UNSUB 1\r\nUNSUB 2\r\nUNSUB 3\r\n", false),
    ] {
        second.send(format!("{operations}PUB foo 1\r\nx\r\n"));
        link.expect("PING");
        link.expect("PUB foo 1");
        // What it published itself comes behind the place, and counts.
        link.send("PONG\r\n");
        link.msg("foo", &sids[0], "x");
        first.expect(&message("foo", "foo", "x"));
        if hears {
            second.expect(&message("foo", "1", "x"))
        } else {
            second.expect_silence(MOMENT)
        }
    }
}

#[test]
fn each_member_of_a_queue_group_has_a_subscription_of_its_own() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let (mut first, mut second, mut link) = pair(&natsmux, &brokers);
    let one = subscribe(&mut first, &mut link, "foo q", "1");
    let two = subscribe(&mut second, &mut link, "foo q", "1");
    assert_ne!(one, two);
    link.msg("foo", &two, "x");
    second.expect(&message("foo", "1", "x"));
    first.expect_silence(MOMENT);
}

#[test]
fn violations_reach_who_caused_them_in_the_order_of_operations() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let (mut first, mut second, mut link) = pair(&natsmux, &brokers);
    let publish = "-ERR 'Permissions Violation for Publish to \"no\"'\r\n";
    second.send("PUB no 1\r\n2\r\n");
    link.publish("PUB no 1", "2");
    first.send("PUB no 1\r\n1\r\nPUB yes 0\r\n\r\n");
    link.publish("PUB no 1", "1");
    link.publish("PUB yes 0", "");
    link.send(publish);
    second.expect(publish);
    first.expect_silence(MOMENT);
    link.send(publish);
    first.expect(publish);
    second.expect_silence(MOMENT);
    let subscription =
        "-ERR 'Permissions Violation for Subscription to \"no\" using queue \"q\"'\r\n";
    second.send("SUB no q 1\r\n");
    link.sub("no q");
    first.send("SUB no q 1\r\n");
    link.sub("no q");
    link.send(subscription);
    second.expect(subscription);
    first.expect_silence(MOMENT);
    link.send(subscription);
    first.expect(subscription);
    for client in [&mut first, &mut second] {
        client.send("SUB a..b 5\r\n");
        link.expect("SUB a..b -");
        link.send("-ERR 'Invalid Subject'\r\n");
        client.expect("-ERR 'Invalid Subject'\r\n");
    }
    round_trip(&mut first, &mut link);
    round_trip(&mut second, &mut link);
    let varz = natsmux.varz();
    assert_eq!(count(&varz, "refused"), 2, "{varz}");
}

#[test]
fn a_permission_that_a_reload_took_is_told_to_all_who_shared_it_with_their_own_sids() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let (mut first, mut second, mut link) = pair(&natsmux, &brokers);
    let sid = subscribe(&mut first, &mut link, "foo", "1");
    second.send("SUB foo two\r\nPING\r\n");
    link.answering(|| second.pong());
    let text = "Permissions Violation for Subscription to \"foo\" (sid \"{}\")";
    let line = |sid: &str| format!("-ERR '{}'\r\n", text.replace("{}", sid));
    link.send(line(&sid));
    first.expect(&line("1"));
    second.expect(&line("two"));
}

#[test]
fn a_request_without_responders_is_answered_to_who_asked() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let options = ",\"headers\":true,\"no_responders\":true";
    let (mut first, mut link) = component_as(&natsmux, &brokers, &connect(options));
    let mut second = sharer(&natsmux, options);
    let all = subscribe(&mut first, &mut link, "_INBOX.>", "1");
    subscribe(&mut second, &mut link, "_INBOX.b.*", "7");
    second.send("PUB nobody _INBOX.b.1 0\r\n\r\n");
    link.publish("PUB nobody _INBOX.b.1 0", "");
    // The broker takes the first of the connection's subscriptions that match.
    link.send(no_responders("_INBOX.b.1", &all, "nobody"));
    second.expect(&no_responders("_INBOX.b.1", "7", "nobody"));
    first.expect_silence(MOMENT);
    first.send("PUB nobody _INBOX.c.1 0\r\n\r\n");
    link.publish("PUB nobody _INBOX.c.1 0", "");
    link.send(no_responders("_INBOX.c.1", &all, "nobody"));
    first.expect(&no_responders("_INBOX.c.1", "1", "nobody"));
    second.expect_silence(MOMENT);
}

#[test]
fn where_a_broker_takes_no_more_subscriptions_a_session_goes_to_another_link() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let (mut first, mut second, mut link) = pair(&natsmux, &brokers);
    subscribe(&mut first, &mut link, "foo", "1");
    let own = subscribe(&mut second, &mut link, "own", "1");
    second.send("SUB more 2\r\nPUB a 0\r\n\r\nPING\r\n");
    let more = link.sub("more");
    link.publish("PUB a 0", "");
    link.expect("PING");
    link.send("-ERR 'maximum subscriptions exceeded'\r\nPONG\r\n");
    second.pong();
    for sid in [&own, &more] {
        link.expect(&format!("UNSUB {sid}"));
    }
    link.msg("own", &own, "on its way");
    second.expect(&message("own", "1", "on its way"));
    second.send("PUB b 0\r\n\r\nPING\r\n");
    link.answer_ping();
    let mut other = brokers.link();
    let sids = other.accept_replay(&["own", "more"]);
    other.publish("PUB b 0", "");
    other.answering(|| second.pong());
    other.msg("more", &sids[1], "x");
    second.expect(&message("more", "2", "x"));
    round_trip(&mut first, &mut link);
    round_trip(&mut second, &mut other);
    // Alone there, it hears of the limit itself.
    second.send("SUB third 3\r\n");
    other.sub("third");
    other.send("-ERR 'maximum subscriptions exceeded'\r\n");
    // The fence tells that it was this one.
    other.answer_ping();
    second.expect("-ERR 'maximum subscriptions exceeded'\r\n");
}

#[test]
fn where_every_link_has_its_limit_a_third_one_is_opened() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let (mut first, mut second, mut link) = pair(&natsmux, &brokers);
    let mut third = sharer(&natsmux, "");
    subscribe(&mut first, &mut link, "foo", "1");
    let full = "-ERR 'maximum subscriptions exceeded'\r\n";
    let mut moved = Vec::new();
    for client in [&mut second, &mut third] {
        client.send("SUB own 1\r\n");
        let own = link.sub("own");
        link.send(full);
        link.answer_ping();
        link.expect(&format!("UNSUB {own}"));
        link.answer_ping();
        if moved.is_empty() {
            let mut other = brokers.link();
            other.accept_replay(&["own"]);
            moved.push(other);
        }
    }
    // The second link has the same subject: the third session shares it there.
    moved[0].answer_ping();
    third.send("SUB more 2\r\n");
    let more = moved[0].sub("more");
    moved[0].send(full);
    moved[0].answer_ping();
    moved[0].expect(&format!("UNSUB {more}"));
    moved[0].answer_ping();
    let mut last = brokers.link();
    last.accept_replay(&["own", "more"]);
    for (client, link) in [(&mut first, &mut link), (&mut second, &mut moved[0])] {
        round_trip(client, link);
    }
    round_trip(&mut third, &mut last);
    assert!(brokers.link_within(MOMENT).is_none(), "and all is well");
}

/// Takes all upstream sids of one letter: the next one is longer.
fn take_short_sids(client: &mut RawClient, link: &mut BrokerLink) {
    for no in 0..62 {
        client.send(format!("SUB s.{no} {no}\r\n"));
        link.sub(&format!("s.{no}"));
    }
}

#[test]
fn a_line_that_is_too_long_with_the_sid_upstream_ends_its_session_alone() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let (mut first, mut second, mut link) = pair(&natsmux, &brokers);
    take_short_sids(&mut first, &mut link);
    // 4096 bytes with a sid of one, and one more with natsmux's.
    let subject = "s".repeat(4096 - 2);
    second.send(format!("SUB {subject} 1\r\n"));
    let last = link.answering(|| second.until_closed());
    let last = String::from_utf8_lossy(&last);
    assert_eq!(last, "-ERR 'maximum control line exceeded'\r\n");
    round_trip(&mut first, &mut link);
}

#[test]
fn a_line_too_long_for_a_sid_in_use_leaves_nothing_at_the_broker() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let (mut first, mut second, mut link) = pair(&natsmux, &brokers);
    take_short_sids(&mut first, &mut link);
    let own = subscribe(&mut second, &mut link, "own", "1");
    second.send(format!("SUB {} 1\r\n", "s".repeat(4096 - 2)));
    // What it had before is ended where it is, and its last words come behind the proof.
    link.until(|op| op.line == format!("UNSUB {own}"));
    let last = link.answering(|| second.until_closed());
    let last = String::from_utf8_lossy(&last);
    assert_eq!(last, "-ERR 'maximum control line exceeded'\r\n");
    round_trip(&mut first, &mut link);
}

#[test]
fn a_broker_with_a_shorter_line_ends_who_sent_the_longest_and_nobody_else() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let (mut first, mut second, mut link) = pair(&natsmux, &brokers);
    subscribe(&mut first, &mut link, "foo", "1");
    let long = "s".repeat(700);
    second.send(format!("SUB {long} 1\r\n"));
    link.sub(&long);
    link.send("-ERR 'maximum control line exceeded'\r\n");
    link.fin();
    let last = second.until_closed();
    let last = String::from_utf8_lossy(&last);
    assert_eq!(last, "-ERR 'maximum control line exceeded'\r\n");
    let mut next = brokers.link();
    next.accept_replay(&["foo"]);
    round_trip(&mut first, &mut next);
}

#[test]
fn a_second_connect_gives_a_session_a_link_of_its_own() {
    let brokers = Brokers::with_flavours(&[Flavour::v2_9()]);
    let natsmux = setup(&brokers).start();
    let (mut first, mut second, mut link) = pair(&natsmux, &brokers);
    let sid = subscribe(&mut first, &mut link, "foo", "1");
    second
        .send("SUB foo 2\r\nPUB a 0\r\n\r\nCONNECT {\"verbose\":true}\r\nPUB b 0\r\n\r\nPING\r\n");
    link.answer_ping();
    link.publish("PUB a 0", "");
    link.msg("foo", &sid, "to both");
    let mut own = link.answering(|| {
        first.expect(&message("foo", "1", "to both"));
        let mut own = brokers.link();
        own.connecting();
        own
    });
    assert_eq!(own.connect["verbose"], true);
    own.send("+OK\r\nPONG\r\n");
    let kept = own.sub("foo");
    own.answer_ping();
    own.publish("PUB b 0", "");
    own.send("+OK\r\n");
    own.answer_ping();
    second.expect(&message("foo", "2", "to both"));
    second.expect("+OK\r\n+OK\r\nPONG\r\n");
    own.msg("foo", &kept, "x");
    second.expect(&message("foo", "2", "x"));
    link.msg("foo", &sid, "y");
    first.expect(&message("foo", "1", "y"));
    second.expect_silence(MOMENT);
    round_trip(&mut first, &mut link);
}

#[test]
fn a_link_without_sessions_stays_for_the_next_one_and_not_for_ever() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers)
        .timing("trunk_idle_timeout", "500ms")
        .start_unwatched();
    let (first, mut link) = component_as(&natsmux, &brokers, &connect(""));
    drop(first);
    for _ in 0..3 {
        // A short-lived program: no broker hears of its CONNECT.
        let mut client = sharer(&natsmux, "");
        client.send("PUB a 0\r\n\r\nPING\r\n");
        link.publish("PUB a 0", "");
        link.answering(|| client.pong());
    }
    assert!(brokers.link_within(Duration::ZERO).is_none());
    link.until_closed();
    natsmux.wait_varz("the trunk to end", SOON, |varz| varz["trunks"] == 0);
    component_as(&natsmux, &brokers, &connect(""));
}

#[test]
fn with_a_timeout_of_0_a_link_without_sessions_stays() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers)
        .timing("trunk_idle_timeout", "0s")
        .start_unwatched();
    let (first, mut link) = component_as(&natsmux, &brokers, &connect(""));
    drop(first);
    natsmux.wait_varz("the session to end", SOON, |varz| {
        varz["sessions_closed"] == 1
    });
    link.expect_silence(Duration::from_millis(300));
    let mut next = sharer(&natsmux, "");
    round_trip(&mut next, &mut link);
}

#[test]
fn who_joins_in_an_outage_waits_for_a_broker_where_nobody_is_admitted_without() {
    let mut brokers = Brokers::start(1);
    let natsmux = setup(&brokers)
        .bus("admit", "\"verified\"")
        .start_unwatched();
    let (mut first, link) = component_as(&natsmux, &brokers, &connect(""));
    brokers.get(0).down();
    link.reset();
    wait_for("an outage", SOON, || (!natsmux.is_healthy()).then_some(()));
    let mut second = RawClient::connect(&natsmux.address());
    second.info();
    second.send(format!("{}\r\nPING\r\n", connect("")));
    second.expect_silence(Duration::from_millis(200));
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept();
    link.answering(|| second.pong());
    round_trip(&mut first, &mut link);
}

#[test]
fn a_link_that_dies_gives_each_session_its_own_publishes_and_pongs_back() {
    let brokers = Brokers::start(2);
    let natsmux = setup(&brokers).start();
    let (mut first, mut second, mut link) = pair(&natsmux, &brokers);
    subscribe(&mut first, &mut link, "foo", "1");
    second.send("SUB foo 2\r\nPING\r\n");
    link.answering(|| second.pong());
    first.send("PUB a 0\r\n\r\nPING\r\n");
    second.send("PUB b 0\r\n\r\nPING\r\n");
    link.until(|op| op.line == "PUB b 0");
    link.reset();
    let mut next = brokers.link();
    let sids = next.accept_replay(&["foo"]);
    // In doubt: not repeated, and counted. The PONGs are asked for again.
    next.answering(|| {
        first.pong();
        second.pong();
    });
    next.msg("foo", &sids[0], "x");
    first.expect(&message("foo", "1", "x"));
    second.expect(&message("foo", "2", "x"));
    let varz = natsmux.wait_varz("the books", SOON, |varz| count(varz, "waiting") == 0);
    let (doubt, confirmed) = (count(&varz, "in_doubt"), count(&varz, "confirmed"));
    assert!(doubt >= 1 && doubt + confirmed == 2, "{varz}");
    assert_eq!(count(&varz, "replayed_subscriptions"), 1, "merged: {varz}");
}

#[test]
fn garbage_and_sudden_death_disturb_nobody_on_the_link() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).limit("max_pending", "\"256KiB\"").start();
    let (mut neighbour, mut link) = component_as(&natsmux, &brokers, &connect(""));
    let sid = subscribe(&mut neighbour, &mut link, "foo", "1");
    for bad in [
        "HELLO\r\n".to_owned(),
        "PUB foo\r\n".to_owned(),
        "PUB foo 99999999\r\n".to_owned(),
        "HPUB foo 9 9\r\n123456789\r\n".to_owned(),
        "PUB foo 5\r\nhalf".to_owned(),
        format!("SUB {} 1\r\n", "s".repeat(5_000)),
        (0..10_000)
            .map(|no| format!("SUB s.{no} {no}\r\n"))
            .collect(),
    ] {
        let mut client = sharer(&natsmux, "");
        let _ = client.try_send(&bad);
        drop(client);
        neighbour.send("PUB mark 0\r\n\r\n");
        link.until(|op| op.line == "PUB mark 0");
        link.msg("foo", &sid, "still here");
        neighbour.expect(&message("foo", "1", "still here"));
    }
    let left = |natsmux: &Natsmux| natsmux.varz()["buses"][0]["subscriptions"].as_u64();
    wait_for("the subscriptions of the dead to end", SOON, || {
        neighbour.send("PUB mark 0\r\n\r\n");
        link.until(|op| op.line == "PUB mark 0");
        (left(&natsmux) == Some(1)).then_some(())
    });
    assert!(
        brokers.link_within(Duration::ZERO).is_none(),
        "one link for all"
    );
}

/// Sends 4 MiB to one sid, reads what the component gets of it, and closes as on a slow consumer.
fn flood_and_close(client: &mut RawClient, mut link: BrokerLink, upstream: &str, sid: &str) {
    let payload = "x".repeat(1024 * 1024);
    for _ in 0..4 {
        link.msg("fire", upstream, &payload);
        client.expect(&message("fire", sid, &payload));
    }
    drop(link.fin());
}

#[test]
fn one_that_gets_too_much_for_a_shared_link_has_its_own_after_the_second_time() {
    let brokers = Brokers::start(1);
    let natsmux = setup(&brokers).start();
    let (mut greedy, mut other, mut link) = pair(&natsmux, &brokers);
    let sid = subscribe(&mut greedy, &mut link, "fire", "7");
    subscribe(&mut other, &mut link, "foo", "1");
    flood_and_close(&mut greedy, link, &sid, "7");
    let mut link = brokers.link();
    let sids = link.accept_replay(&["fire", "foo"]);
    round_trip(&mut other, &mut link);
    flood_and_close(&mut greedy, link, &sids[0], "7");
    // Each has a link now.
    let mut links = [brokers.link(), brokers.link()].map(|mut link| {
        link.accept();
        let subject = link.receive();
        let sid = subject.word(2).to_owned();
        link.answer_ping();
        (subject.word(1).to_owned(), sid, link)
    });
    links.sort_by(|one, other| one.0.cmp(&other.0));
    let [(fire, its_sid, mut its_link), (foo, sid, mut link)] = links;
    assert_eq!((&fire[..], &foo[..]), ("fire", "foo"));
    its_link.msg("fire", &its_sid, "y");
    greedy.expect(&message("fire", "7", "y"));
    link.msg("foo", &sid, "z");
    other.expect(&message("foo", "1", "z"));
    round_trip(&mut greedy, &mut its_link);
    round_trip(&mut other, &mut link);
}
