//! Only whole frames pass, both ways, at whatever byte a link dies (R4, R5).

use std::collections::BTreeSet;
use std::thread;

use crate::setup::{
    Setup, assert_books_balance, component, count, finish, published_numbers, round_trip,
    subscribe, wait_live,
};
use crate::support::{BrokerLink, Brokers, message};

const KILLS: [fn(BrokerLink); 2] = [BrokerLink::reset, |link| drop(link.fin())];

fn messages_are_whole_or_absent(frame: fn(&str) -> String) {
    for kill in KILLS {
        let brokers = Brokers::start(1);
        let natsmux = Setup::new(&brokers).start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        let mut sid = subscribe(&mut client, &mut link, "foo", "own");
        for cut in 0..=frame(&sid).len() {
            let bytes = frame(&sid);
            link.send(&bytes[..cut]);
            kill(link);
            link = brokers.link();
            sid = link.accept_replay(&["foo"]).remove(0);
            link.msg("foo", &sid, "after");
            if cut == bytes.len() {
                client.expect(&frame("own"));
            }
            client.expect(&message("foo", "own", "after"));
        }
        round_trip(&mut client, &mut link);
    }
}

#[test]
fn a_msg_cut_at_any_byte_arrives_whole_or_not_at_all() {
    messages_are_whole_or_absent(|sid| message("foo", sid, "PING\r\nMSG foo"));
}

#[test]
fn an_hmsg_cut_at_any_byte_arrives_whole_or_not_at_all() {
    messages_are_whole_or_absent(|sid| {
        let block = "NATS/1.0\r\nA:b\r\n\r\n";
        let size = block.len() + 5;
        format!(
            "HMSG foo {sid} {} {size}\r\n{block}PI\r\nG\r\n",
            block.len()
        )
    });
}

const PUBLISHES: [(&str, &str); 2] = [
    ("PUB a.b 7", "PING\r\nX"),
    ("HPUB a.b re 17 22", "NATS/1.0\r\nA:b\r\n\r\nPUB a"),
];

#[test]
fn a_publish_read_by_a_dying_broker_up_to_any_byte_is_in_doubt_and_not_repeated() {
    for (line, payload) in PUBLISHES {
        let brokers = Brokers::start(1);
        let natsmux = Setup::new(&brokers).start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        subscribe(&mut client, &mut link, "foo", "1");
        let frame = format!("{line}\r\n{payload}\r\n");
        for read in 1..=frame.len() {
            client.send(&frame);
            assert_eq!(link.bytes(read), &frame.as_bytes()[..read]);
            link.reset();
            link = brokers.link();
            link.accept_replay(&["foo"]);
            // A repeated publish would come before this one.
            let received = wait_live(&mut client, &mut link);
            assert_eq!(received.len(), 1, "{received:?}");
            round_trip(&mut client, &mut link);
        }
        let each = frame.len() as u64;
        let varz = assert_books_balance(&natsmux, 2 * each);
        assert_eq!(count(&varz, "in_doubt"), each, "{varz}");
    }
}

#[test]
fn a_publish_during_which_the_link_dies_goes_whole_to_the_next_one() {
    for (line, payload) in PUBLISHES {
        let brokers = Brokers::start(1);
        let natsmux = Setup::new(&brokers).start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        subscribe(&mut client, &mut link, "foo", "1");
        let frame = format!("{line}\r\n{payload}\r\n");
        for cut in 1..frame.len() {
            client.send(&frame[..cut]);
            link.reset();
            link = brokers.link();
            link.accept_replay(&["foo"]);
            client.send(&frame[cut..]);
            link.publish(line, payload);
            round_trip(&mut client, &mut link);
        }
        let published = frame.len() as u64 - 1;
        let varz = assert_books_balance(&natsmux, published);
        assert_eq!(count(&varz, "confirmed"), published, "{varz}");
    }
}

#[test]
fn a_publish_split_at_any_byte_reaches_the_broker_whole() {
    for (line, payload) in PUBLISHES {
        let brokers = Brokers::start(1);
        let natsmux = Setup::new(&brokers).start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        let frame = format!("{line}\r\n{payload}\r\n");
        for cut in 1..frame.len() {
            client.send(&frame[..cut]);
            client.send(&frame[cut..]);
            link.publish(line, payload);
        }
        for byte in frame.as_bytes() {
            client.send([*byte]);
        }
        link.publish(line, payload);
    }
}

#[test]
fn a_message_in_any_two_segments_reaches_the_component_whole() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "own");
    let frame = message("foo", &sid, "PING\r\nMSG foo");
    for cut in 1..frame.len() {
        link.send(&frame[..cut]);
        link.send(&frame[cut..]);
        client.expect(&message("foo", "own", "PING\r\nMSG foo"));
    }
    for byte in frame.as_bytes() {
        link.send([*byte]);
    }
    client.expect(&message("foo", "own", "PING\r\nMSG foo"));
}

const BIG: usize = 8 * 1024;
const COUNT: usize = 300;

#[test]
fn publishes_behind_a_link_that_dies_unread_go_on_in_order_and_none_arrives_twice() {
    let payload = "x".repeat(BIG);
    let frame = format!("PUB 0000 {BIG}\r\n{payload}\r\n");
    // Within a head, in a payload, between frames, and later.
    for read in [
        0,
        1,
        9,
        5000,
        frame.len(),
        3 * frame.len() + 7,
        // Less than what natsmux writes before a fence is answered.
        10 * frame.len() - 1,
    ] {
        let brokers = Brokers::start(1);
        let natsmux = Setup::new(&brokers)
            .limit("fence_bytes", "\"64MiB\"")
            .limit("fence_messages", "1000000")
            .start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        let all: String = (0..COUNT)
            .map(|number| format!("PUB {number:04} {BIG}\r\n{payload}\r\n"))
            .collect();
        // natsmux stops reading while its broker proves nothing.
        let writer = thread::spawn(move || {
            client.send(all);
            client
        });
        link.bytes(frame.len() + read);
        let first = 1 + read / frame.len();
        link.reset();
        let mut next = brokers.link();
        next.accept();
        let last = format!("{:04}", COUNT - 1);
        let received = next.until(|op| op.word(1) == last);
        let sizes = received.iter().map(|op| op.payload.len());
        assert!(sizes.filter(|size| *size > 0).all(|size| size == BIG));
        let moved = published_numbers(&received);
        let start = COUNT - moved.len();
        assert!(start >= first, "{start} came over both links");
        assert_eq!(moved, (start..COUNT).collect::<Vec<_>>());
        let mut client = writer.join().expect("the component's thread");
        finish(&mut client, &mut next);
        let varz = assert_books_balance(&natsmux, COUNT as u64);
        assert_eq!(count(&varz, "in_doubt"), start as u64, "{varz}");
    }
}

#[test]
fn publishes_keep_their_order_over_many_dying_links() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let mut seen = Vec::new();
    for round in 0..20 {
        for number in 0..10 {
            let subject = round * 10 + number;
            client.send(format!("PUB {subject} 1\r\nx\r\n"));
        }
        let first = link.until(|op| op.verb() == "PUB");
        seen.extend(published_numbers(&first));
        link.reset();
        link = brokers.link();
        link.accept();
    }
    seen.extend(published_numbers(&wait_live(&mut client, &mut link)));
    finish(&mut client, &mut link);
    let sorted: BTreeSet<_> = seen.iter().copied().collect();
    assert_eq!(seen, sorted.into_iter().collect::<Vec<_>>());
    assert_books_balance(&natsmux, 201);
}
