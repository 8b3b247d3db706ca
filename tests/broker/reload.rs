//! SIGHUP and SIGTERM: brokers removed (R19), buses added and removed, draining.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::setup::{
    Daemon, MOMENT, SOON, Setup, assert_books_balance, component, component_as, count, round_trip,
    subscribe, wait_count, wait_outage,
};
use crate::support::{BrokerLink, Brokers, Flavour, Natsmux, Port, RawClient, message, wait_for};

const RELOADED: &str = "configuration reloaded";
const REFUSED: &str = "reload refused";

/// Reloads and waits for its outcome in the log.
fn reload(natsmux: &mut Natsmux, text: &str, outcome: &str) {
    let before = natsmux.log().matches(outcome).count();
    natsmux.rewrite_config(text);
    natsmux.sighup();
    wait_for(outcome, SOON, || {
        (natsmux.log().matches(outcome).count() > before).then_some(())
    });
}

/// Two brokers, and a component with a subscription on the first.
fn on_first(setup: &Setup, brokers: &Brokers) -> (Daemon, RawClient, BrokerLink, String) {
    let natsmux = setup.start();
    let (mut client, mut link) = component(&natsmux, brokers);
    assert_eq!(link.broker, 0);
    let sid = subscribe(&mut client, &mut link, "foo", "own");
    (natsmux, client, link, sid)
}

/// Fault 35.
#[test]
fn a_configuration_that_cannot_be_read_hangs_nothing() {
    let brokers = Brokers::start(1);
    let mut natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    natsmux.hang_config();
    natsmux.sighup();
    natsmux.sighup();
    let begun = Instant::now();
    let live = natsmux.get("/livez").expect("an answer");
    assert_eq!(live.status, 200);
    round_trip(&mut client, &mut link);
    assert!(natsmux.terminate().success());
    assert!(begun.elapsed() < SOON);
}

/// Fault 35: brokers reopen their log at it.
#[test]
fn a_brokers_signal_for_its_log_ends_nothing() {
    let brokers = Brokers::start(1);
    let mut natsmux = Setup::new(&brokers).start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    natsmux.signal(Signal::USR1);
    natsmux.signal(Signal::USR1);
    round_trip(&mut client, &mut link);
    assert!(natsmux.ended().is_none());
}

/// Fault 35: what components said in CONNECT is in no core dump.
#[test]
fn there_is_no_core_dump() {
    let brokers = Brokers::start(1);
    let natsmux = Setup::new(&brokers).start();
    let limits = format!("/proc/{}/limits", natsmux.pid());
    let limits = std::fs::read_to_string(limits).expect("its limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let core = core.expect("a limit").split_whitespace().nth(4);
    assert_eq!(core, Some("0"), "{limits}");
}

/// The broker in use is a lame duck. Returns the link that is to replace the one to it.
fn leave(old: &mut BrokerLink, brokers: &Brokers) -> BrokerLink {
    old.send(Flavour::v2_15().with("ldm", true).line());
    brokers.link()
}

/// The new link of a move gets the ledger, and then the old one is to be left.
pub(crate) fn move_over(old: &mut BrokerLink, new: &mut BrokerLink, sid: &str) -> String {
    new.accept();
    let moved = new.sub("foo");
    new.answer_ping();
    old.until(|op| op.line == format!("UNSUB {sid}"));
    moved
}

/// R41: what both links bring comes once, and what only one of them brings comes.
#[test]
fn sessions_on_a_removed_broker_move_without_noticing() {
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers);
    let (mut natsmux, mut client, mut old, sid) = on_first(&setup, &brokers);
    let only_second = setup.brokers(&brokers.addresses()[1..]);
    reload(&mut natsmux, &only_second.text(), RELOADED);

    let mut new = brokers.link();
    assert_eq!(new.broker, 1);
    // Until the new one has accepted, the old one serves.
    round_trip(&mut client, &mut old);
    new.accept();
    let moved = new.sub("foo");
    new.expect("PING");
    old.msg("foo", &sid, "one");
    client.expect(&message("foo", "own", "one"));
    new.msg("foo", &moved, "two");
    new.send("PONG\r\n");
    old.msg("foo", &sid, "two");
    client.expect(&message("foo", "own", "two"));
    old.expect(&format!("UNSUB {sid}"));
    old.expect("PING");
    new.msg("foo", &moved, "three");
    new.msg("foo", &moved, "four");
    old.msg("foo", &sid, "three");
    client.expect(&message("foo", "own", "three"));
    client.send("PUB a 1\r\nx\r\nPING\r\n");
    wait_count(&natsmux, "published", 1);
    new.expect_silence(MOMENT);
    old.send("PONG\r\n");
    assert!(old.until_closed().iter().all(|op| op.verb() != "PUB"));
    client.expect(&message("foo", "own", "four"));
    new.until(|op| op.line == "PUB a 1");
    new.answering(|| client.pong());
    new.msg("foo", &moved, "five");
    client.expect(&message("foo", "own", "five"));
    round_trip(&mut client, &mut new);
    let varz = assert_books_balance(&natsmux, 1);
    assert_eq!(count(&varz, "confirmed"), 1, "{varz}");
    assert!(count(&varz, "gapless_moves") >= 1, "{varz}");
}

/// What the old link has brought may come late on the new one.
#[test]
fn copies_that_come_behind_a_move_are_dropped() {
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers);
    let (_natsmux, mut client, mut old, sid) = on_first(&setup, &brokers);
    let mut new = leave(&mut old, &brokers);
    let moved = move_over(&mut old, &mut new, &sid);
    for text in ["one", "two"] {
        old.msg("foo", &sid, text);
    }
    old.answer_ping();
    old.until_closed();
    for text in ["one", "two", "three"] {
        new.msg("foo", &moved, text);
    }
    for text in ["one", "two", "three"] {
        client.expect(&message("foo", "own", text));
    }
    // Once nothing can be on its way any more, what looks the same is another message.
    new.answer_ping();
    new.expect("PING");
    new.send("PONG\r\n");
    new.msg("foo", &moved, "two");
    client.expect(&message("foo", "own", "two"));
}

/// A SUB, and a max, wait for the end of a move, or for natsmux to count.
#[test]
fn operations_within_a_move_are_carried_out_exactly() {
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers);
    let (_natsmux, mut client, mut old, sid) = on_first(&setup, &brokers);
    let mut new = leave(&mut old, &brokers);
    new.accept();
    let moved = new.sub("foo");
    client.send("UNSUB own 4\r\nSUB late 7\r\nPING\r\n");
    old.until(|op| op.line == format!("UNSUB {sid} 4"));
    old.msg("foo", &sid, "one");
    new.answer_ping();
    new.msg("foo", &moved, "one");
    new.msg("foo", &moved, "two");
    old.until(|op| op.line == format!("UNSUB {sid}"));
    old.msg("foo", &sid, "two");
    old.answer_ping();
    old.until_closed();
    client.expect(&message("foo", "own", "one"));
    client.expect(&message("foo", "own", "two"));
    let late = new.until(|op| op.verb() == "SUB");
    assert!(
        late.last()
            .is_some_and(|op| op.line.starts_with("SUB late "))
    );
    new.answering(|| client.pong());
    // Behind the move the broker has the rest: it has brought two, and two are wanted.
    new.until(|op| op.line == format!("UNSUB {moved} 4"));
    new.answer_ping();
    new.msg("foo", &moved, "three");
    new.msg("foo", &moved, "four");
    client.expect(&message("foo", "own", "three"));
    client.expect(&message("foo", "own", "four"));
    round_trip(&mut client, &mut new);
}

/// A new broker that speaks and never says that it has the ledger: SUBs wait for it only so long.
#[test]
fn a_new_broker_that_proves_nothing_is_given_up() {
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers).timing("link_timeout", "300ms");
    let (natsmux, mut client, mut old, _) = on_first(&setup, &brokers);
    let mut new = leave(&mut old, &brokers);
    new.accept();
    let moved = new.sub("foo");
    new.expect("PING");
    client.send("SUB late 7\r\n");
    let begun = Instant::now();
    // It is heard all the time, so that silence takes three times that (R9).
    thread::scope(|scope| {
        scope.spawn(|| {
            while begun.elapsed() < Duration::from_millis(800) {
                new.try_send(message("foo", &moved, "x"));
                thread::sleep(Duration::from_millis(10));
            }
        });
        old.until(|op| op.line.starts_with("SUB late "));
    });
    let took = begun.elapsed();
    let expected = Duration::from_millis(500)..Duration::from_millis(890);
    assert!(expected.contains(&took), "{took:?}");
    assert_eq!(natsmux.counter("sessions_closed"), 0);
}

/// More than 4 MiB end the overlap early, and nothing of it is lost.
#[test]
fn a_move_that_would_keep_too_much_is_cut_short() {
    const COUNT: usize = 100;
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers).timing("move_overlap", "1s");
    let (natsmux, mut client, mut old, sid) = on_first(&setup, &brokers);
    let mut new = leave(&mut old, &brokers);
    new.accept();
    let moved = new.sub("foo");
    new.answer_ping();
    let begun = Instant::now();
    let text = |at: usize| format!("{at:0>60000}");
    thread::scope(|scope| {
        scope.spawn(|| {
            for at in 0..COUNT {
                new.msg("foo", &moved, &text(at));
            }
        });
        old.until(|op| op.line == format!("UNSUB {sid}"));
        assert!(
            begun.elapsed() < Duration::from_millis(900),
            "{:?}",
            begun.elapsed()
        );
        old.answer_ping();
        for at in 0..COUNT {
            client.expect(&message("foo", "own", &text(at)));
        }
    });
    wait_count(&natsmux, "moves_cut_short", 1);
}

/// With `move_identical = "twice"` rather one message too many than one too few.
#[test]
fn identical_messages_may_be_asked_for_twice() {
    for (choice, times) in [("once", 2), ("twice", 4)] {
        let brokers = Brokers::start(2);
        let setup = Setup::new(&brokers).bus("move_identical", &format!("\"{choice}\""));
        let (natsmux, mut client, mut old, sid) = on_first(&setup, &brokers);
        let mut new = leave(&mut old, &brokers);
        new.accept();
        let moved = new.sub("foo");
        new.expect("PING");
        for _ in 0..2 {
            old.msg("foo", &sid, "beat");
            new.msg("foo", &moved, "beat");
        }
        client.expect(&message("foo", "own", "beat").repeat(2));
        new.send("PONG\r\n");
        old.until(|op| op.line == format!("UNSUB {sid}"));
        old.answer_ping();
        client.expect(&message("foo", "own", "beat").repeat(times - 2));
        new.answering(|| wait_count(&natsmux, "moves_ambiguous", 1));
    }
}

/// A new broker that dies within a move changes nothing; what it held comes from the old one.
#[test]
fn a_new_broker_that_dies_within_a_move_costs_nothing() {
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers);
    let (natsmux, mut client, mut old, sid) = on_first(&setup, &brokers);
    let mut new = leave(&mut old, &brokers);
    new.accept();
    let moved = new.sub("foo");
    new.expect("PING");
    new.msg("foo", &moved, "one");
    client.send("SUB late 7\r\nPING\r\n");
    new.reset();
    old.msg("foo", &sid, "one");
    client.expect(&message("foo", "own", "one"));
    let late = old.sub("late");
    old.answering(|| client.pong());
    old.msg("late", &late, "two");
    client.expect(&message("late", "7", "two"));
    assert_eq!(natsmux.counter("sessions_closed"), 0);
}

#[test]
fn publishes_under_way_on_a_removed_broker_are_proven_there_and_not_repeated() {
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers);
    let (mut natsmux, mut client, mut old, sid) = on_first(&setup, &brokers);
    client.send("PUB a 0\r\n\r\n");
    old.publish("PUB a 0", "");
    let only_second = setup.brokers(&brokers.addresses()[1..]);
    reload(&mut natsmux, &only_second.text(), RELOADED);
    let mut new = brokers.link();
    move_over(&mut old, &mut new, &sid);
    old.answer_ping();
    old.until_closed();
    round_trip(&mut client, &mut new);
    let varz = assert_books_balance(&natsmux, 1);
    assert_eq!(count(&varz, "confirmed"), 1, "{varz}");
    assert_eq!(count(&varz, "in_doubt"), 0, "{varz}");
}

#[test]
fn a_verbose_session_hears_no_ok_of_a_move() {
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers);
    let mut natsmux = setup.start();
    let verbose = r#"CONNECT {"verbose":true,"pedantic":false}"#;
    let (mut client, mut old) = component_as(&natsmux, &brokers, verbose);
    client.send("SUB foo 1\r\nPING\r\n");
    let sid = old.sub("foo");
    old.answer_ping();
    client.expect("+OK\r\nPONG\r\n");
    let only_second = setup.brokers(&brokers.addresses()[1..]);
    reload(&mut natsmux, &only_second.text(), RELOADED);
    let mut new = brokers.link();
    move_over(&mut old, &mut new, &sid);
    old.send("+OK\r\n");
    old.answer_ping();
    client.send("PUB a 0\r\n\r\nPING\r\n");
    new.until(|op| op.verb() == "PUB");
    new.send("+OK\r\n");
    // More than one, where the publish came before natsmux had read the last PONG.
    new.answering(|| client.expect("+OK\r\nPONG\r\n"));
}

#[test]
fn a_broker_in_lame_duck_mode_is_left_the_same_way() {
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers);
    let (_natsmux, mut client, mut old, sid) = on_first(&setup, &brokers);
    let mut new = leave(&mut old, &brokers);
    assert_eq!(new.broker, 1);
    let moved = move_over(&mut old, &mut new, &sid);
    old.msg("foo", &sid, "last");
    old.answer_ping();
    old.until_closed();
    new.msg("foo", &moved, "last");
    new.msg("foo", &moved, "first");
    client.expect(&message("foo", "own", "last"));
    client.expect(&message("foo", "own", "first"));
    round_trip(&mut client, &mut new);
}

#[test]
fn an_old_broker_that_dies_during_the_move_is_a_failover() {
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers);
    let (mut natsmux, mut client, mut old, sid) = on_first(&setup, &brokers);
    client.send("PUB a 0\r\n\r\nPING\r\n");
    old.publish("PUB a 0", "");
    old.expect("PING");
    let only_second = setup.brokers(&brokers.addresses()[1..]);
    reload(&mut natsmux, &only_second.text(), RELOADED);
    let mut new = brokers.link();
    new.accept();
    let moved = new.sub("foo");
    new.answer_ping();
    while old.receive().line != format!("UNSUB {sid}") {}
    for text in ["last", "and one more"] {
        new.msg("foo", &moved, text);
    }
    old.msg("foo", &sid, "last");
    client.expect(&message("foo", "own", "last"));
    old.reset();
    client.expect(&message("foo", "own", "and one more"));
    new.answering(|| client.pong());
    round_trip(&mut client, &mut new);
    let varz = assert_books_balance(&natsmux, 1);
    assert_eq!(count(&varz, "in_doubt"), 1, "{varz}");
}

#[test]
fn sessions_stay_on_a_removed_broker_while_no_other_accepts_them() {
    let mut brokers = Brokers::start(2);
    brokers.get(1).down();
    let setup = Setup::new(&brokers);
    let (mut natsmux, mut client, mut old, sid) = on_first(&setup, &brokers);
    let only_second = setup.brokers(&brokers.addresses()[1..]);
    reload(&mut natsmux, &only_second.text(), RELOADED);
    round_trip(&mut client, &mut old);
    old.msg("foo", &sid, "still here");
    client.expect(&message("foo", "own", "still here"));
    brokers.get(1).up();
    let mut new = brokers.link();
    assert_eq!(new.broker, 1);
    move_over(&mut old, &mut new, &sid);
    old.answer_ping();
    round_trip(&mut client, &mut new);
}

#[test]
fn a_wrong_file_changes_nothing() {
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers);
    let (mut natsmux, mut client, mut old, _) = on_first(&setup, &brokers);
    let only_second = setup.clone().brokers(&brokers.addresses()[1..]);
    let wrong = [
        only_second.clone().bus("unheard_of", "1").text(),
        only_second.clone().timing("pong_hold", "soon").text(),
        only_second.text().replace("[[bus]]", "[[bus"),
        only_second.clone().daemon("drain_timeout", "\"9h\"").text(),
        setup.clone().brokers(&[]).text(),
        String::new(),
    ];
    for text in wrong {
        reload(&mut natsmux, &text, REFUSED);
        round_trip(&mut client, &mut old);
    }
    assert!(brokers.link_within(MOMENT).is_none(), "no session moved");
    // New sessions too come to the first broker.
    let (_client, link) = component(&natsmux, &brokers);
    assert_eq!(link.broker, 0);
    reload(&mut natsmux, &setup.text(), RELOADED);
}

#[test]
fn a_changed_listen_address_is_refused_as_a_whole() {
    let brokers = Brokers::start(2);
    let setup = Setup::new(&brokers);
    let (mut natsmux, mut client, mut old, _) = on_first(&setup, &brokers);
    let elsewhere = Port::reserve();
    let only_second = setup.brokers(&brokers.addresses()[1..]).text();
    let moved = only_second.replace("\"{listen}\"", &format!("\"{}\"", elsewhere.address()));
    reload(&mut natsmux, &moved, REFUSED);
    assert!(natsmux.log().contains("listen can't change on reload"));
    assert!(TcpStream::connect(elsewhere.address()).is_err());
    assert!(brokers.link_within(MOMENT).is_none(), "no session moved");
    round_trip(&mut client, &mut old);
}

#[test]
fn timings_and_limits_change_on_reload() {
    let brokers = Brokers::start(1);
    let setup = Setup::new(&brokers);
    let mut natsmux = setup.start();
    let line = format!("SUB {} 1\r\n", "s".repeat(1000));
    let (mut before, mut link) = component(&natsmux, &brokers);
    before.send(&line);
    link.receive();
    let small = setup.limit("max_control_line", "512");
    reload(&mut natsmux, &small.text(), RELOADED);
    let (mut after, _link) = component(&natsmux, &brokers);
    after.send(&line);
    let last = after.until_closed();
    assert_eq!(
        String::from_utf8_lossy(&last),
        "-ERR 'maximum control line exceeded'\r\n"
    );
}

/// A second bus as text.
fn second_bus(listen: &Port, brokers: &Brokers) -> String {
    format!(
        "[[bus]]\nname = \"second\"\nlisten = [\"{}\"]\nbrokers = [\"{}\"]\n",
        listen.address(),
        brokers.addresses()[0]
    )
}

fn component_at(address: &str, brokers: &Brokers) -> (RawClient, BrokerLink) {
    let mut client = wait_for("the second bus to listen", SOON, || {
        TcpStream::connect(address)
            .is_ok()
            .then(|| RawClient::connect(address))
    });
    client.info();
    client.send("CONNECT {\"verbose\":false}\r\nPING\r\n");
    let mut link = brokers.link();
    link.accept();
    client.pong();
    (client, link)
}

#[test]
fn a_bus_that_is_added_serves_and_one_that_is_removed_drains() {
    let (brokers, others) = (Brokers::start(1), Brokers::start(1));
    let setup = Setup::new(&brokers);
    let mut natsmux = setup.start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    subscribe(&mut client, &mut link, "foo", "1");
    let listen = Port::reserve();
    let two = setup.clone().more(&second_bus(&listen, &others));
    reload(&mut natsmux, &two.text(), RELOADED);
    let (mut second, mut other) = component_at(&listen.address(), &others);
    subscribe(&mut second, &mut other, "foo", "1");
    round_trip(&mut client, &mut link);

    second.send("PUB last 0\r\n\r\n");
    other.publish("PUB last 0", "");
    reload(&mut natsmux, &setup.text(), RELOADED);
    let rest = other.until_closed();
    assert!(rest.iter().all(|op| op.verb() != "PUB"), "{rest:?}");
    assert_eq!(second.until_closed(), b"");
    wait_for("the removed bus to listen no more", SOON, || {
        TcpStream::connect(listen.address()).is_err().then_some(())
    });
    round_trip(&mut client, &mut link);
}

#[test]
fn sigterm_hands_over_what_was_published_and_exits_with_0() {
    const SENT: usize = 500;
    let brokers = Brokers::start(1);
    let setup = Setup::new(&brokers).daemon("drain_timeout", "\"10s\"");
    let mut natsmux = setup.start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    let sid = subscribe(&mut client, &mut link, "foo", "1");
    let (mut neighbour, mut other) = component(&natsmux, &brokers);
    subscribe(&mut neighbour, &mut other, "bar", "1");
    for number in 0..SENT {
        client.send(format!("PUB {number} 0\r\n\r\n"));
    }
    wait_count(&natsmux, "published", SENT as u64);
    link.msg("foo", &sid, "last");
    let serve = |mut link: BrokerLink| thread::spawn(move || link.until_closed());
    let (served, other) = (serve(link), serve(other));
    let since = Instant::now();
    assert_eq!(natsmux.terminate().code(), Some(0));
    assert!(since.elapsed() < Duration::from_secs(8), "drain_timeout");
    let received = served.join().expect("the broker's thread");
    other.join().expect("the neighbour's broker");
    let numbers: Vec<_> = received
        .iter()
        .filter(|op| op.verb() == "PUB")
        .map(|op| op.word(1).parse::<usize>().expect("a number"))
        .collect();
    assert_eq!(numbers, (0..SENT).collect::<Vec<_>>());
    let last = client.until_closed();
    assert_eq!(String::from_utf8_lossy(&last), message("foo", "1", "last"));
    assert_eq!(neighbour.until_closed(), b"");
}

#[test]
fn sigterm_waits_for_a_mute_broker_as_long_as_drain_timeout() {
    let brokers = Brokers::start(1);
    let setup = Setup::new(&brokers).daemon("drain_timeout", "\"500ms\"");
    let mut natsmux = setup.start();
    let (mut client, mut link) = component(&natsmux, &brokers);
    client.send("PUB a 0\r\n\r\n");
    link.publish("PUB a 0", "");
    let since = Instant::now();
    assert_eq!(natsmux.terminate().code(), Some(0));
    let took = since.elapsed();
    assert!(took >= Duration::from_millis(500), "{took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(client.until_closed(), b"");
}

#[test]
fn sigterm_in_an_outage_with_nothing_waiting_ends_at_once() {
    let mut brokers = Brokers::start(1);
    let setup = Setup::new(&brokers).daemon("drain_timeout", "\"10m\"");
    let mut natsmux = setup.start();
    let (mut client, link) = component(&natsmux, &brokers);
    brokers.get(0).down();
    link.reset();
    wait_outage(&natsmux);
    assert_eq!(natsmux.terminate().code(), Some(0));
    assert_eq!(client.until_closed(), b"");
}
