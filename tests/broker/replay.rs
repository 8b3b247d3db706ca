//! What a new link is told, and in which order (R1, DESIGN.md).

use crate::setup::{
    MOMENT, Setup, assert_books_balance, component, component_as, count, round_trip, subscribe,
    wait_count, wait_outage,
};
use crate::support::{Brokers, message};

#[test]
fn a_new_link_hears_connect_then_subscriptions_then_publishes_then_pings() {
    let mut brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let foo = subscribe(&mut client, &mut link, "foo", "1");
    subscribe(&mut client, &mut link, "bar.* workers", "2");
    client.send("UNSUB 1 5\r\nPING\r\n");
    link.expect(&format!("UNSUB {foo} 5"));
    link.msg("foo", &foo, "a");
    link.msg("foo", &foo, "b");
    link.answer_ping();
    client.expect(&(message("foo", "1", "a") + &message("foo", "1", "b")));
    client.pong();

    for index in 0..2 {
        brokers.get(index).down();
    }
    link.reset();
    wait_outage(&natsmux);
    client.send(
        "PUB x 1\r\n1\r\nSUB baz 3\r\nPUB y 1\r\n2\r\nPING\r\nPING\r\nPUB z 0\r\n\r\nPING\r\n",
    );
    wait_count(&natsmux, "published", 3);
    brokers.get(1).up();

    let mut link = brokers.link();
    assert_eq!(link.broker, 1);
    link.connecting();
    link.expect_silence(MOMENT);
    link.send("PONG\r\n");
    let foo = link.sub("foo");
    link.expect(&format!("UNSUB {foo} 3"));
    link.sub("bar.* workers");
    let baz = link.sub("baz");
    link.expect("PING");
    link.expect_silence(MOMENT);
    link.send("PONG\r\n");
    link.publish("PUB x 1", "1");
    link.publish("PUB y 1", "2");
    link.publish("PUB z 0", "");
    // natsmux's own fence behind what waited, and the three that are owed.
    for _ in 0..4 {
        link.answer_ping();
    }
    link.msg("baz", &baz, "new");
    client.expect("PONG\r\nPONG\r\nPONG\r\n");
    client.expect(&message("baz", "3", "new"));
    let varz = assert_books_balance(&natsmux, 3);
    assert_eq!(count(&varz, "confirmed"), 3);
}

#[test]
fn pings_that_a_dead_broker_owed_are_answered_by_the_next_one_each_once() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    subscribe(&mut client, &mut link, "foo", "1");
    client.send("PING\r\nSUB bar 2\r\nPING\r\nPING\r\n");
    link.answer_ping();
    client.pong();
    link.sub("bar");
    link.expect("PING");
    link.reset();
    let mut link = brokers.link();
    let sid = link.accept_replay(&["foo", "bar"]).remove(0);
    link.answer_ping();
    link.answer_ping();
    link.msg("foo", &sid, "x");
    client.expect("PONG\r\nPONG\r\n");
    client.expect(&message("foo", "1", "x"));
}

#[test]
fn unsub_remainders_are_exact_after_any_number_of_deliveries() {
    const MAX: usize = 4;
    for delivered in 0..=MAX {
        let brokers = Brokers::start(1);
        let natsmux = Setup::new(&brokers).start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        let sid = subscribe(&mut client, &mut link, "foo", "1");
        subscribe(&mut client, &mut link, "other", "2");
        client.send(format!("UNSUB 1 {MAX}\r\nPING\r\n"));
        link.expect(&format!("UNSUB {sid} {MAX}"));
        link.answer_ping();
        client.pong();
        for _ in 0..delivered {
            link.msg("foo", &sid, "x");
        }
        link.reset();
        for _ in 0..delivered {
            client.expect(&message("foo", "1", "x"));
        }
        let mut link = brokers.link();
        link.accept();
        if delivered < MAX {
            let sid = link.sub("foo");
            link.expect(&format!("UNSUB {sid} {}", MAX - delivered));
        }
        link.sub("other");
        link.answer_ping();
        round_trip(&mut client, &mut link);
    }
}

#[test]
fn remainders_add_up_over_several_failovers() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let mut sid = subscribe(&mut client, &mut link, "foo", "1");
    client.send("UNSUB 1 6\r\nPING\r\n");
    link.expect(&format!("UNSUB {sid} 6"));
    link.answer_ping();
    client.pong();
    for left in (1..6).rev() {
        link.msg("foo", &sid, "x");
        link.reset();
        link = brokers.link();
        link.accept();
        sid = link.sub("foo");
        link.expect(&format!("UNSUB {sid} {left}"));
        link.answer_ping();
        client.expect(&message("foo", "1", "x"));
    }
    // On a later link too the component's max counts from its SUB.
    client.send("UNSUB 1 8\r\nPING\r\n");
    link.expect(&format!("UNSUB {sid} 3"));
    link.answer_ping();
    client.pong();
}

#[test]
fn a_subscription_made_and_ended_in_an_outage_is_not_replayed() {
    let mut brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    subscribe(&mut client, &mut link, "foo", "1");
    brokers.get(0).down();
    link.reset();
    wait_outage(&natsmux);
    client.send("SUB gone 2\r\nUNSUB 2\r\nSUB stays 3\r\nSUB reused 2\r\nPING\r\n");
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept();
    let mut replayed = [
        link.receive().line,
        link.receive().line,
        link.receive().line,
    ];
    replayed.sort();
    let subjects = replayed.map(|line| line.split(' ').nth(1).map(str::to_owned));
    assert_eq!(
        subjects.each_ref().map(Option::as_deref),
        [Some("foo"), Some("reused"), Some("stays")]
    );
    link.answer_ping();
    link.answer_ping();
    client.pong();
}

#[test]
fn an_unsub_max_that_comes_in_an_outage_counts_what_was_delivered_before() {
    let mut brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let subjects = ["more", "reached", "passed", "ended"];
    for (index, subject) in subjects.iter().enumerate() {
        let sid = subscribe(&mut client, &mut link, subject, &index.to_string());
        for _ in 0..2 {
            link.msg(subject, &sid, "x");
            client.expect(&message(subject, &index.to_string(), "x"));
        }
    }
    brokers.get(0).down();
    link.reset();
    wait_outage(&natsmux);
    client.send("UNSUB 0 5\r\nUNSUB 1 2\r\nUNSUB 2 1\r\nUNSUB 3\r\nPING\r\n");
    brokers.get(0).up();
    let mut link = brokers.link();
    link.accept();
    let sid = link.sub("more");
    link.expect(&format!("UNSUB {sid} 3"));
    link.answer_ping();
    link.answer_ping();
    client.pong();
}

#[test]
fn messages_sent_before_the_unsub_was_processed_come_before_its_pong() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "1");
    client.send("UNSUB 1\r\nPING\r\n");
    link.expect(&format!("UNSUB {sid}"));
    link.expect("PING");
    link.msg("foo", &sid, "late");
    link.send("PONG\r\n");
    link.msg("foo", &sid, "too late");
    client.expect(&message("foo", "1", "late"));
    client.pong();
    client.flush();
    wait_count(&natsmux, "unknown_sid_msgs", 1);
}

#[test]
fn a_late_message_of_a_sid_that_the_component_uses_again_reaches_nobody() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let old = subscribe(&mut client, &mut link, "foo", "1");
    client.send("UNSUB 1\r\nSUB bar 1\r\nPING\r\n");
    link.expect(&format!("UNSUB {old}"));
    let new = link.sub("bar");
    assert_ne!(old, new);
    link.expect("PING");
    link.msg("foo", &old, "late");
    link.msg("bar", &new, "right");
    link.send("PONG\r\n");
    client.expect(&message("bar", "1", "right"));
    client.pong();
    link.msg("foo", &old, "later");
    link.msg("bar", &new, "right again");
    client.expect(&message("bar", "1", "right again"));
}

#[test]
fn sids_are_whatever_the_component_chose() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let long = "s".repeat(300);
    for sid in ["abc-1.x", "0", "18446744073709551616", &long] {
        let upstream = subscribe(&mut client, &mut link, "foo", sid);
        assert!(upstream.len() <= 2, "{upstream} is longer than it must be");
        link.send(format!("MSG foo.bar {upstream} reply 2\r\nhi\r\n"));
        client.expect(&format!("MSG foo.bar {sid} reply 2\r\nhi\r\n"));
        // Two blanks stand where JetStream of 2.9 has no reply.
        link.send(format!("MSG foo {upstream}  2\r\nhi\r\n"));
        let line = client.frame().line;
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        assert_eq!(words, ["MSG", "foo", sid, "2"]);
    }
    link.reset();
    let mut link = brokers.link();
    link.accept_replay(&["foo"; 4]);
    round_trip(&mut client, &mut link);
}

#[test]
fn a_broker_that_takes_the_link_again_at_once_hears_everything_again() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    subscribe(&mut client, &mut link, "foo", "1");
    for _ in 0..3 {
        link.fin();
        link = brokers.link();
        link.accept_replay(&["foo"]);
        round_trip(&mut client, &mut link);
    }
}

#[test]
fn a_link_that_dies_during_the_replay_is_followed_by_a_whole_one() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    subscribe(&mut client, &mut link, "foo", "1");
    client.send("PING\r\n");
    link.expect("PING");
    link.reset();
    // Before CONNECT was read, behind it, behind the SUB, and behind the fence.
    for steps in 0..4 {
        let mut link = brokers.link();
        if steps == 1 {
            link.connecting();
        }
        if steps >= 2 {
            link.accept();
            link.sub("foo");
        }
        if steps == 3 {
            link.answer_ping();
        }
        link.reset();
    }
    let mut link = brokers.link();
    client.pong();
    link.accept_replay(&["foo"]);
    round_trip(&mut client, &mut link);
}

#[test]
fn nobody_publishes_before_the_neighbours_subscriptions_are_in_place() {
    let brokers = Brokers::start(2);
    let natsmux = Setup::new(&brokers).timing("replay_barrier", "20s").start();
    let named = |name: &str| format!(r#"CONNECT {{"verbose":false,"name":"{name}"}}"#);
    let (mut publisher, first) = component_as(&natsmux, &brokers, &named("publisher"));
    let (mut subscriber, mut second) = component_as(&natsmux, &brokers, &named("subscriber"));
    subscribe(&mut subscriber, &mut second, "foo", "1");
    first.reset();
    second.reset();
    let mut links = [brokers.link(), brokers.link()];
    for link in &mut links {
        link.accept();
    }
    links.sort_by_key(|link| link.connect["name"].to_string());
    let [of_publisher, of_subscriber] = &mut links;
    publisher.send("PUB foo 1\r\nx\r\n");
    of_publisher.expect_silence(MOMENT);
    of_subscriber.sub("foo");
    of_subscriber.answer_ping();
    of_publisher.publish("PUB foo 1", "x");
}
