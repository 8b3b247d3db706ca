//! R10: what a dead link still holds is delivered and counted before the replay.

use crate::setup::{Setup, assert_books_balance, component, count, finish, subscribe, wait_live};
use crate::support::{BrokerLink, Brokers, message};

const KILLS: [fn(BrokerLink); 2] = [BrokerLink::reset, |link| drop(link.fin())];

#[test]
fn messages_and_pongs_sent_right_before_the_end_count_before_the_replay() {
    for kill in KILLS {
        let brokers = Brokers::start(1);
        let natsmux = Setup::new(&brokers).start();
        let (mut client, mut link) = component(&natsmux, &brokers);
        let sid = subscribe(&mut client, &mut link, "foo", "1");
        client.send("UNSUB 1 10\r\nPUB a 0\r\n\r\nPING\r\nPUB b 0\r\n\r\nPING\r\n");
        link.expect(&format!("UNSUB {sid} 10"));
        link.publish("PUB a 0", "");
        link.expect("PING");
        link.publish("PUB b 0", "");
        link.expect("PING");
        let last_words = message("foo", &sid, "x").repeat(3) + "PONG\r\n";
        link.send(last_words);
        kill(link);
        client.expect(&message("foo", "1", "x").repeat(3));
        client.pong();

        let mut link = brokers.link();
        link.accept();
        let sid = link.sub("foo");
        link.expect(&format!("UNSUB {sid} 7"));
        link.answer_ping();
        // Without a broker, natsmux answered the second one: what came before it is in doubt (R2).
        client.pong();
        let varz = assert_books_balance(&natsmux, 2);
        assert_eq!(count(&varz, "confirmed"), 1, "{varz}");
        assert_eq!(count(&varz, "in_doubt"), 1, "{varz}");
    }
}

#[test]
fn a_link_that_dies_of_a_write_is_read_to_its_end() {
    // No more than natsmux's kernel takes at once: a reset throws the rest away.
    const MESSAGES: usize = 1000;
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "1");
    link.send(message("foo", &sid, "x").repeat(MESSAGES));
    link.reset();
    client.send("PUB a 0\r\n\r\n".repeat(100));
    for _ in 0..MESSAGES {
        assert_eq!(client.message(), b"x");
    }
    let mut link = brokers.link();
    let sid = link.accept_replay(&["foo"]).remove(0);
    link.msg("foo", &sid, "next");
    client.expect(&message("foo", "1", "next"));
    wait_live(&mut client, &mut link);
    finish(&mut client, &mut link);
    assert_books_balance(&natsmux, 101);
}
