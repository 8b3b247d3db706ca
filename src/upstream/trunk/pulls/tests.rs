//! Open requests on scripted brokers.

use std::time::Duration;

use super::super::tests::{Bench, sharers};
use crate::config::Delivery;
use crate::ledger::SessionId;
use crate::proto::client::{ClientLimits, ClientOp, Scan, scan};
use crate::upstream::brokers::roster::Failure;
use crate::upstream::bus::Turn;
use crate::upstream::trunk::link::LinkId;

const OPTIONS: &str = r#"{"verbose":false,"headers":true,"no_responders":true}"#;
const NEXT: &str = "$JS.API.CONSUMER.MSG.NEXT.S.C";
const INFO: &str = "$JS.API.CONSUMER.INFO.S.C";

/// The bytes of a request.
fn request(reply: &str, body: &str) -> String {
    format!("PUB {NEXT} {reply} {}\r\n{body}\r\n", body.len())
}

/// A session publishes a frame, as its component sent it.
fn publish_as(bench: &mut Bench, session: SessionId, frame: &str) {
    let Scan::Op {
        op: ClientOp::Publish(publish),
        ..
    } = scan(frame.as_bytes(), &ClientLimits::NONE)
    else {
        panic!("{frame}");
    };
    let cx = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.publish(session, frame.as_bytes(), 1, cx);
    bench.trunk.note_pull(session, &publish, cx);
}

fn publish(bench: &mut Bench, frame: &str) {
    publish_as(bench, bench.session, frame);
}

/// A component with the inbox `in` under the sid `7`, which asked for messages.
fn asking(body: &str) -> Bench {
    let mut bench = Bench::live(OPTIONS);
    bench.subscribe(b"in", b"7");
    publish(&mut bench, &request("in", body));
    bench.told();
    bench
}

/// The broker has answered what was asked, a while ago.
fn prove(bench: &mut Bench) {
    bench.pass(Duration::from_millis(100));
    let pings = bench.told().matches("PING\r\n").count();
    bench.broker("PONG\r\n".repeat(pings).as_bytes());
    bench.pass(Duration::from_millis(200));
    bench.told();
}

/// The link dies, and the next one is live, but for what the brokers are asked.
fn fail_over(bench: &mut Bench) -> String {
    bench.lose();
    bench.join();
    // It has a PONG for the replay, where there is one.
    bench.broker(b"PONG\r\n");
    bench.told()
}

/// The sid of natsmux's question in what a broker was told.
fn question(told: &str) -> String {
    let line = told
        .lines()
        .find(|line| line.starts_with("SUB ") && line.contains(" -q"));
    let line = line.unwrap_or_else(|| panic!("a question in {told}"));
    line.split(' ').next_back().expect("a sid").to_owned()
}

fn answer(bench: &mut Bench, sid: &str, body: &str) {
    bench.broker(format!("MSG in.natsmux {sid} {}\r\n{body}\r\n", body.len()).as_bytes());
}

fn status(line: &str) -> String {
    let head = format!("NATS/1.0 {line}\r\n\r\n");
    format!("HMSG in 0 {0} {0}\r\n{head}\r\n", head.len())
}

fn resumed(bench: &Bench) -> u64 {
    bench.bus.counters().pulls_resumed
}

#[test]
fn the_brokers_are_asked_first_and_the_rest_of_a_request_follows_its_sub() {
    let mut bench = asking(r#"{"batch":5,"expires":60000000000}"#);
    bench.broker(b"MSG s 0 ack 1\r\nx\r\nMSG s 0 ack 1\r\ny\r\n");
    bench.heard();
    bench.now += Duration::from_secs(10);
    let told = fail_over(&mut bench);
    let sid = question(&told);
    assert!(
        told.contains(&format!(
            "SUB in.natsmux {sid}\r\nPUB {INFO} in.natsmux 0\r\n"
        )),
        "{told}"
    );
    assert!(!told.contains("SUB in 0"), "{told}");
    answer(&mut bench, &sid, r#"{"config":{},"num_waiting":3}"#);
    let told = bench.told();
    let body = r#"{"batch":3,"expires":50000000000}"#;
    let expected = format!("UNSUB {sid}\r\nSUB in 0\r\n{}", request("in", body));
    assert!(told.starts_with(&expected), "{told}");
    assert_eq!((bench.heard(), resumed(&bench)), (String::new(), 1));
}

#[test]
fn publishes_wait_for_the_answer_and_no_longer_than_its_time() {
    let mut bench = asking("5");
    fail_over(&mut bench);
    publish(&mut bench, "PUB a 1\r\nx\r\n");
    assert!(!bench.told().contains("PUB a"));
    bench.pass(Duration::from_millis(251));
    let told = bench.told();
    let (sub, publish) = (told.find("SUB in 0"), told.find("PUB a 1"));
    assert!(sub.is_some() && sub < publish, "{told}");
    // Nobody leads the consumer: they are asked again.
    assert_eq!(resumed(&bench), 0);
    let pings = told.matches("PING\r\n").count();
    bench.broker("PONG\r\n".repeat(pings).as_bytes());
    bench.pass(Duration::from_millis(251));
    let sid = question(&bench.told());
    answer(&mut bench, &sid, r#"{"config":{},"num_waiting":0}"#);
    assert!(bench.told().contains(&request("in", "5")));
}

#[test]
fn a_request_that_was_not_written_goes_on_by_itself() {
    let mut bench = asking("5");
    publish(&mut bench, &request("in", "2"));
    // Its bytes are still in the link's buffer.
    bench.lose();
    bench.join();
    bench.broker(b"PONG\r\n");
    let told = bench.told();
    let sid = question(&told);
    answer(&mut bench, &sid, r#"{"config":{},"num_waiting":0}"#);
    let told = bench.told();
    assert_eq!(told.matches(NEXT).count(), 2, "{told}");
    assert!(
        told.contains(&request("in", "5")) && told.contains(&request("in", "2")),
        "{told}"
    );
}

#[test]
fn what_is_over_is_not_asked_for_again() {
    let ended = status("408 Request Timeout\r\nNats-Pending-Messages: 5");
    for end in [
        ended,
        status("404 No Messages"),
        status("409 Consumer Deleted"),
    ] {
        let mut bench = asking("5");
        bench.broker(end.as_bytes());
        assert!(!bench.heard().is_empty(), "the component's: {end}");
        assert!(!fail_over(&mut bench).contains(INFO), "{end}");
    }
    let mut bench = asking(r#"{"batch":5,"expires":1000000000}"#);
    bench.now += Duration::from_secs(2);
    let told = fail_over(&mut bench);
    assert!(
        !told.contains(INFO) && !told.contains(NEXT),
        "expired: {told}"
    );
    let mut bench = asking("5");
    let cx = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.unsubscribe(bench.session, b"7", None, cx);
    assert!(!fail_over(&mut bench).contains(INFO), "unsubscribed");
    let mut bench = asking("1");
    bench.broker(b"MSG s 0 ack 1\r\nx\r\n");
    assert!(!fail_over(&mut bench).contains(INFO), "served");
}

#[test]
fn a_question_that_is_forbidden_is_heard_by_nobody_and_silence_decides() {
    let mut bench = asking("5");
    fail_over(&mut bench);
    let text = format!("-ERR 'Permissions Violation for Publish to \"{INFO}\"'\r\n");
    bench.broker(text.as_bytes());
    assert_eq!(bench.heard(), "");
    assert!(bench.told().contains("SUB in 0\r\n"));
    bench.pass(Duration::from_millis(999));
    assert_eq!(resumed(&bench), 0);
    bench.pass(Duration::from_millis(1));
    assert_eq!(
        (resumed(&bench), bench.bus.counters().pulls_repeated),
        (1, 1)
    );
    // The same with a message in time: the old request lives.
    let mut bench = asking("5");
    fail_over(&mut bench);
    bench.broker(text.as_bytes());
    bench.broker(b"MSG s 0 ack 1\r\nx\r\n");
    bench.pass(Duration::from_secs(2));
    assert_eq!(resumed(&bench), 0);
    // A component's own violation is its own.
    let pings = bench.told().matches("PING\r\n").count();
    bench.broker("PONG\r\n".repeat(pings).as_bytes());
    bench.broker(text.as_bytes());
    assert!(bench.heard().contains("Permissions Violation"));
}

#[test]
fn a_new_leader_is_asked_at_once_and_once() {
    let mut bench = asking("5");
    prove(&mut bench);
    bench.broker(status("409 Leadership Change").as_bytes());
    assert!(bench.told().contains(&request("in", "5")));
    // It tells each of the old requests.
    bench.broker(status("409 Leadership Change").as_bytes());
    assert_eq!((bench.heard(), resumed(&bench)), (String::new(), 1));
    // It isn't there yet: the brokers are asked until it is.
    bench.broker(status("503").as_bytes());
    assert_eq!(bench.heard(), "");
    bench.pass(Duration::from_millis(251));
    let sid = question(&bench.told());
    answer(&mut bench, &sid, r#"{"config":{},"num_waiting":0}"#);
    assert_eq!(resumed(&bench), 2);
}

#[test]
fn what_was_asked_of_the_new_leader_is_not_asked_again() {
    let mut bench = asking("5");
    prove(&mut bench);
    publish(&mut bench, &request("in", "2"));
    bench.told();
    bench.broker(status("409 Leadership Change").as_bytes());
    assert!(bench.told().contains(&request("in", "5")));
    // What is there now, and all that was asked, is seven.
    bench.broker("MSG s 0 ack 1\r\nx\r\n".repeat(6).as_bytes());
    assert_eq!(bench.trunk.gauges().pulls, 1);
    bench.broker(b"MSG s 0 ack 1\r\nx\r\n");
    assert_eq!(bench.trunk.gauges().pulls, 0);
}

#[test]
fn a_components_own_503_is_its_own() {
    let mut bench = asking("5");
    bench.broker(status("503").as_bytes());
    assert!(bench.heard().contains("503"));
    assert!(!fail_over(&mut bench).contains(INFO));
}

#[test]
fn a_consumer_that_is_gone_is_asked_for_nothing() {
    let mut bench = asking("5");
    let sid = question(&fail_over(&mut bench));
    answer(&mut bench, &sid, r#"{"error":{"code":404}}"#);
    let told = bench.told();
    assert!(
        told.contains("SUB in 0\r\n") && !told.contains(NEXT),
        "{told}"
    );
}

#[test]
fn a_question_that_was_not_written_is_not_published_by_the_next_link() {
    let mut bench = asking("5");
    bench.lose();
    bench.join();
    // The replay is proven, and the question is still in the buffer when the link dies.
    let cx = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.handle_link_bytes(bench.link, b"PONG\r\n", cx);
    // A link that ends so soon isn't dialled again at once.
    bench.now += Duration::from_secs(10);
    let told = fail_over(&mut bench);
    assert_eq!(told.matches(INFO).count(), 1, "{told}");
    assert_eq!(bench.bus.counters().moved, 0);
}

#[test]
fn an_unsub_in_front_of_the_answer_follows_its_sub() {
    let mut bench = asking("5");
    let sid = question(&fail_over(&mut bench));
    let cx = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.unsubscribe(bench.session, b"7", None, cx);
    let told = bench.told();
    assert!(told.contains("SUB in 0\r\nUNSUB 0\r\n"), "{told}");
    answer(&mut bench, &sid, r#"{"config":{},"num_waiting":0}"#);
    assert!(!bench.told().contains(NEXT));
}

#[test]
fn a_reply_of_another_session_is_nobodys() {
    let (mut bench, [one, other]) = sharers();
    let cx = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.subscribe(one, b"in", None, b"7", cx);
    publish_as(&mut bench, other, &request("in", "5"));
    assert_eq!(bench.trunk.gauges().pulls, 0);
    publish_as(&mut bench, one, &request("in", "5"));
    assert_eq!(bench.trunk.gauges().pulls, 1);
    let cx = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.detach(one, cx);
    assert_eq!(bench.trunk.gauges().pulls, 0);
}

#[test]
fn a_question_ends_with_its_link() {
    let mut bench = asking("5");
    fail_over(&mut bench);
    let old = bench.link;
    publish(&mut bench, "PUB a 1\r\nx\r\n");
    // A second CONNECT leaves the link while the brokers are asked.
    bench.reconnect(OPTIONS);
    let (mut joined, mut told) = (old, String::new());
    for _ in 0..100 {
        bench.take_dial();
        if bench.link != joined {
            joined = bench.link;
            bench.join();
        }
        for link in [old, joined] {
            let said = told_to(&mut bench, link);
            let pongs = "PONG\r\n".repeat(said.matches("PING\r\n").count());
            let cx = &mut Turn::new(bench.now, &mut bench.bus);
            bench.trunk.handle_link_bytes(link, pongs.as_bytes(), cx);
            if link != old {
                told += &said;
            }
        }
        bench.pass(Duration::from_millis(2));
    }
    assert!(bench.trunk.broker_of(old).is_none(), "the old link is left");
    // What the old link was asked isn't waited for.
    assert!(told.contains("PUB a 1\r\n"), "{told}");
}

fn told_to(bench: &mut Bench, link: LinkId) -> String {
    let last = std::mem::replace(&mut bench.link, link);
    let told = bench.told();
    bench.link = last;
    told
}

#[test]
fn what_has_expired_is_no_part_of_what_is_asked_again() {
    let mut bench = asking(r#"{"batch":100,"expires":1000000000}"#);
    bench.lose();
    bench.now += Duration::from_secs(2);
    // The component asks again by itself, and that waits for a link.
    publish(
        &mut bench,
        &request("in", r#"{"batch":100,"expires":1000000000}"#),
    );
    bench.join();
    bench.broker(b"PONG\r\n");
    assert_eq!(bench.told().matches(NEXT).count(), 1);
    assert_eq!(resumed(&bench), 0);
}

#[test]
fn a_status_that_ends_a_request_ends_what_was_lost_of_it() {
    let mut bench = asking(r#"{"batch":100,"expires":60000000000}"#);
    // 40 of 100 went into a broker that was frozen.
    bench.broker("MSG s 0 ack 1\r\nx\r\n".repeat(30).as_bytes());
    let ended = status("408 Request Timeout\r\nNats-Pending-Messages: 30");
    bench.broker(ended.as_bytes());
    assert_eq!(bench.trunk.gauges().pulls, 0);
}

#[test]
fn each_reply_has_its_own_word_of_a_new_leader() {
    let mut bench = Bench::live(OPTIONS);
    bench.subscribe(b"in.*", b"7");
    publish(&mut bench, &request("in.1", "5"));
    publish(&mut bench, &request("in.2", "3"));
    prove(&mut bench);
    let changed = |reply: &str| {
        status("409 Leadership Change").replace("HMSG in ", &format!("HMSG {reply} "))
    };
    bench.broker(changed("in.1").as_bytes());
    let told = bench.told();
    assert!(
        told.contains(&request("in.1", "5")) && !told.contains("in.2"),
        "{told}"
    );
    bench.broker(changed("in.2").as_bytes());
    assert!(bench.told().contains(&request("in.2", "3")));
    bench.broker(changed("in.2").as_bytes());
    prove(&mut bench);
    bench.pass(Duration::from_secs(5));
    assert_eq!((bench.heard(), resumed(&bench)), (String::new(), 2));
}

#[test]
fn an_unsub_of_another_reply_subscribes_nobody() {
    let mut bench = asking("5");
    bench.subscribe(b"other", b"8");
    fail_over(&mut bench);
    let cx = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.unsubscribe(bench.session, b"8", None, cx);
    assert!(!bench.told().contains("SUB in 0"));
}

#[test]
fn both_refusals_of_a_question_are_heard_by_nobody() {
    let mut bench = asking("5");
    fail_over(&mut bench);
    for what in [
        "Subscription to \"in.natsmux\"",
        &format!("Publish to \"{INFO}\""),
    ] {
        bench.broker(format!("-ERR 'Permissions Violation for {what}'\r\n").as_bytes());
    }
    assert_eq!(
        (bench.heard(), bench.bus.counters().refused),
        (String::new(), 0)
    );
}

#[test]
fn with_at_least_once_a_request_is_asked_again_and_not_repeated() {
    let mut bench = Bench::with(OPTIONS, Delivery::AtLeastOnce);
    bench.join();
    bench.subscribe(b"in", b"7");
    // A subscription with a max has requests fenced at once.
    bench.subscribe(b"max", b"8");
    let cx = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.unsubscribe(bench.session, b"8", Some(5), cx);
    publish(&mut bench, &request("in", "5"));
    bench.told();
    let told = fail_over(&mut bench);
    let sid = question(&told);
    answer(&mut bench, &sid, r#"{"config":{},"num_waiting":0}"#);
    assert_eq!((told + &bench.told()).matches(NEXT).count(), 1);
    assert_eq!(bench.bus.counters().repeated, 0);
}

#[test]
fn more_consumers_than_are_asked_about_at_once_take_turns() {
    let mut bench = Bench::live(OPTIONS);
    for number in 0..100 {
        bench.subscribe(
            format!("in{number}").as_bytes(),
            number.to_string().as_bytes(),
        );
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.S.C{number}");
        publish(&mut bench, &format!("PUB {subject} in{number} 1\r\n1\r\n"));
    }
    prove(&mut bench);
    let mut told = fail_over(&mut bench);
    assert_eq!(told.matches(".CONSUMER.INFO.").count(), 64);
    for _ in 0..100 {
        let sid = question(&told);
        told = told.replacen(&format!(" {sid}\r\n"), "\r\n", 1);
        answer(&mut bench, &sid, r#"{"config":{},"num_waiting":1}"#);
        told += &bench.told();
    }
    assert_eq!(resumed(&bench), 100);
}

#[test]
fn nothing_is_kept_where_it_is_turned_off() {
    let mut bench = Bench::live(OPTIONS);
    bench.bus.settings_mut().resume_pulls = false;
    bench.subscribe(b"in", b"7");
    publish(&mut bench, &request("in", "5"));
    assert_eq!(bench.trunk.gauges().pulls, 0);
    assert!(!fail_over(&mut bench).contains(INFO));
}

#[test]
fn an_answer_that_a_component_would_hear_is_not_asked_for() {
    let mut bench = asking("5");
    bench.subscribe(b"in.>", b"8");
    let told = fail_over(&mut bench);
    assert!(
        told.contains("SUB in 0\r\n") && !told.contains(INFO),
        "{told}"
    );
    bench.pass(Duration::from_secs(1));
    assert_eq!((bench.heard(), resumed(&bench)), (String::new(), 1));
}

#[test]
fn a_reply_of_several_consumers_and_odd_numbers_are_left_alone() {
    let mut bench = asking("5");
    let other = NEXT.replace("S.C", "S.D");
    publish(&mut bench, &format!("PUB {other} in 1\r\n3\r\n"));
    let most = u64::MAX;
    publish(
        &mut bench,
        &request("in", &format!("{{\"batch\":{most},\"expires\":{most}}}")),
    );
    for reply in ["in.*", "in\\"] {
        publish(&mut bench, &request(reply, "1"));
    }
    prove(&mut bench);
    let sid = question(&fail_over(&mut bench));
    answer(&mut bench, &sid, r#"{"config":{},"num_waiting":0}"#);
    let told = bench.told();
    assert!(
        told.contains(&request("in", "5")) && !told.contains("S.D"),
        "{told}"
    );
    assert_eq!(resumed(&bench), 2);
}

#[test]
fn the_newest_requests_of_a_reply_are_kept() {
    let mut bench = asking("1");
    for batch in 2..=40 {
        publish(&mut bench, &request("in", &batch.to_string()));
    }
    prove(&mut bench);
    let sid = question(&fail_over(&mut bench));
    answer(&mut bench, &sid, r#"{"config":{},"num_waiting":0}"#);
    let told = bench.told();
    assert_eq!(resumed(&bench), 32);
    assert!(
        told.contains(&request("in", "40")) && !told.contains(&request("in", "8")),
        "{told}"
    );
}

/// A broker answers PINGs for so long. Returns what else it was told.
fn answer_pings(bench: &mut Bench, time: Duration) -> String {
    const STEP: Duration = Duration::from_millis(50);
    let mut told = String::new();
    for _ in 0..time.as_millis() / STEP.as_millis() {
        bench.pass(STEP);
        let said = bench.told();
        let pings = said.matches("PING\r\n").count();
        bench.broker("PONG\r\n".repeat(pings).as_bytes());
        told += &said;
    }
    told
}

/// The broker froze: its leader may still see interest there, and give messages to nobody.
#[test]
fn a_request_that_may_live_is_looked_at_behind_each_silence() {
    let mut bench = asking("5");
    prove(&mut bench);
    let cx = &mut Turn::new(bench.now, &mut bench.bus);
    bench
        .trunk
        .handle_link_failed(bench.link, Failure::Silent, cx);
    bench.take_dial();
    bench.join();
    let silence = Duration::from_millis(1100);
    let waits = |messages| format!(r#"{{"config":{{}},"num_waiting":1,"num_pending":{messages}}}"#);
    let sid = question(&bench.told());
    answer(&mut bench, &sid, &waits(0));
    for _ in 0..2 {
        // A message comes, and then nothing, while the consumer has none.
        bench.broker(b"MSG s 0 ack 1\r\nx\r\n");
        let told = answer_pings(&mut bench, silence);
        answer(&mut bench, &question(&told), &waits(0));
        assert_eq!(resumed(&bench), 0);
    }
    let told = answer_pings(&mut bench, silence);
    answer(&mut bench, &question(&told), &waits(7));
    assert!(bench.told().contains(&request("in", "3")));
    assert_eq!(
        (resumed(&bench), bench.bus.counters().pulls_repeated),
        (1, 1)
    );
}

#[test]
fn a_question_over_the_brokers_limit_is_heard_by_nobody() {
    let mut bench = asking("5");
    fail_over(&mut bench);
    bench.pass(Duration::from_millis(251));
    let told = bench.told();
    assert!(told.contains(INFO), "asked again, beside its SUB: {told}");
    bench.broker(b"-ERR 'maximum subscriptions exceeded'\r\n");
    assert_eq!(bench.heard(), "");
}
