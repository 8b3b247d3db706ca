//! The machine on scripted brokers: one trunk, two brokers, a clock that the test moves.

use std::hash::RandomState;
use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;

use super::link::{FAIR_BYTES, OPERATION_BYTES, Phase};
use super::*;
use crate::config::{Admit, BrokerAddr, PongHold, Timings, TlsMode};
use crate::proto::info::ServerInfo;
use crate::upstream::brokers::admission::Admission;
use crate::upstream::brokers::presence::Presence;
use crate::upstream::brokers::roster::{Failure, Health, Placement, Roster};
use crate::upstream::bus::Turn;
use crate::upstream::bus::{Budgets, Charge, Settings};

const INFO: &[u8] =
    b"INFO {\"server_id\":\"x\",\"version\":\"2.9.10\",\"headers\":true,\"max_payload\":1048576,\"proto\":1}\r\n";

pub(super) struct Bench {
    pub(super) trunk: Trunk,
    pub(super) bus: Bus,
    pub(super) session: SessionId,
    pub(super) link: LinkId,
    pub(super) now: Instant,
    /// The bytes written to the broker since the last look.
    sent: String,
}

impl Bench {
    /// A trunk whose session is attached, and dials. `options` is the component's CONNECT.
    fn new(options: &str) -> Self {
        Self::with(options, Delivery::AtMostOnce)
    }

    pub(super) fn with(options: &str, delivery: Delivery) -> Self {
        let now = Instant::now();
        let settings = Settings {
            timings: Timings {
                pong_hold: PongHold::After(Duration::from_millis(300)),
                ..Timings::default()
            },
            delivery,
            admit: Admit::Always,
            ..Settings::default()
        };
        let addrs = ["10.0.0.1", "10.0.0.2"].map(|host| BrokerAddr {
            host: host.to_owned(),
            port: 4222,
            tls: false,
        });
        let roster = Roster::new(&addrs, Placement::default(), Duration::from_secs(3), 1, now);
        let budgets = Budgets::new(1 << 20, 1 << 20, 1 << 20);
        let admission = Admission::new(RandomState::new());
        let mut bus = Bus::new(settings, roster, admission, budgets, now);
        let connect = ConnectInfo::parse(options.as_bytes()).expect("options");
        let mut trunk = Trunk::new(TrunkId(0), Rc::new(connect));
        let out = Outbox::new(Retention::UntilWritten);
        let session = trunk.attach(out, true, &mut Turn::new(now, &mut bus));
        let mut bench = Self {
            trunk,
            bus,
            session,
            link: LinkId(0),
            now,
            sent: String::new(),
        };
        bench.take_dial();
        bench
    }

    /// Returns a trunk with a live link.
    pub(super) fn live(options: &str) -> Self {
        let mut bench = Self::new(options);
        bench.join();
        bench
    }

    /// Notes the link that the trunk dials now.
    pub(super) fn take_dial(&mut self) {
        while let Some(action) = self.trunk.poll_action() {
            if let Action::Dial { link, .. } = action {
                self.link = link;
            }
        }
    }

    /// Answers the dialled link up to the verdict, and the replay if there is one.
    pub(super) fn join(&mut self) {
        self.trunk
            .handle_connected(self.link, &mut Turn::new(self.now, &mut self.bus));
        self.broker(INFO);
        self.broker(if self.trunk.connect.verbose {
            b"+OK\r\nPONG\r\n"
        } else {
            b"PONG\r\n"
        });
        self.wake();
    }

    fn wake(&mut self) {
        self.trunk
            .handle_wake(&mut Turn::new(self.now, &mut self.bus));
    }

    /// The session ends, once its answers are there.
    fn finish(&mut self, reason: CloseReason) {
        let (session, now) = (self.session, self.now);
        self.trunk
            .finish(session, reason, &mut Turn::new(now, &mut self.bus));
    }

    /// The broker has read all that was for it, and says this.
    pub(super) fn broker(&mut self, bytes: &[u8]) {
        self.flush();
        self.trunk
            .handle_link_bytes(self.link, bytes, &mut Turn::new(self.now, &mut self.bus));
    }

    pub(super) fn lose(&mut self) {
        self.trunk.handle_link_failed(
            self.link,
            Failure::Closed,
            &mut Turn::new(self.now, &mut self.bus),
        );
        self.take_dial();
    }

    fn publish(&mut self, frame: &[u8]) {
        self.trunk.publish(
            self.session,
            frame,
            1,
            &mut Turn::new(self.now, &mut self.bus),
        );
    }

    fn ping(&mut self) {
        self.trunk
            .ping(self.session, &mut Turn::new(self.now, &mut self.bus));
    }

    pub(super) fn subscribe(&mut self, subject: &[u8], sid: &[u8]) {
        let (session, now) = (self.session, self.now);
        self.trunk.subscribe(
            session,
            subject,
            None,
            sid,
            &mut Turn::new(now, &mut self.bus),
        );
    }

    pub(super) fn reconnect(&mut self, options: &str) {
        let connect = ConnectInfo::parse(options.as_bytes()).expect("options");
        let (session, now) = (self.session, self.now);
        self.trunk.reconnect(
            session,
            Rc::new(connect),
            false,
            &mut Turn::new(now, &mut self.bus),
        );
        self.take_dial();
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.trunk
            .handle_timeout(&mut Turn::new(self.now, &mut self.bus));
    }

    /// Returns the bytes sent to the component since the last look.
    pub(super) fn heard(&mut self) -> String {
        take(self.trunk.out(self.session).expect("attached"))
    }

    /// Returns the bytes sent to the broker since the last look.
    pub(super) fn told(&mut self) -> String {
        self.flush();
        std::mem::take(&mut self.sent)
    }

    fn flush(&mut self) {
        if let Some(out) = self.trunk.link_out(self.link) {
            self.sent += &take(out);
        }
    }
}

fn take(out: &mut Outbox) -> String {
    let mut slices = [IoSlice::new(&[]); 64];
    let filled = out.slices(&mut slices);
    let bytes: Vec<u8> = slices[..filled]
        .iter()
        .flat_map(|slice| slice.to_vec())
        .collect();
    out.advance(bytes.len());
    String::from_utf8(bytes).expect("text")
}

const PLAIN: &str = r#"{"verbose":false,"pedantic":false}"#;
const VERBOSE: &str = r#"{"verbose":true,"pedantic":false}"#;

#[test]
fn pongs_that_are_released_take_those_before_them_along() {
    let mut bench = Bench::live(PLAIN);
    bench.publish(b"PUB a 0\r\n\r\n");
    bench.ping();
    bench.pass(Duration::from_millis(200));
    assert!(
        bench.bus.watch(BrokerId(0)).suspect_since().is_some(),
        "the fence waits for too long"
    );
    bench.publish(b"PUB b 0\r\n\r\n");
    bench.ping();
    bench.pass(Duration::from_millis(400));
    assert_eq!(bench.heard(), "PONG\r\nPONG\r\n");
    assert_eq!(bench.bus.counters().pongs_unproven, 2);
    bench.broker(b"PONG\r\n");
    assert_eq!(
        bench.heard(),
        "",
        "or the component took it for its next PING"
    );
}

#[test]
fn a_verbose_session_hears_nothing_of_a_replay() {
    let mut bench = Bench::live(VERBOSE);
    bench.subscribe(b"deny", b"1");
    bench.told();
    bench.heard();
    bench.lose();
    bench.join();
    assert!(bench.told().contains("SUB deny 0\r\n"));
    bench.broker(b"-ERR 'Permissions Violation for Subscription to \"deny\"'\r\n");
    assert_eq!(bench.heard(), "");
    bench.broker(b"PONG\r\n");
    assert_eq!(bench.heard(), "+OK\r\n", "one answer for one SUB");
}

#[test]
fn publishes_that_wait_are_answered_as_they_were_asked_to_be() {
    let mut bench = Bench::live(VERBOSE);
    bench.lose();
    bench.heard();
    bench.publish(b"PUB a 0\r\n\r\n");
    bench.reconnect(PLAIN);
    bench.join();
    assert_eq!(bench.heard(), "+OK\r\n", "for the publish");

    let mut bench = Bench::live(PLAIN);
    bench.lose();
    bench.publish(b"PUB a 0\r\n\r\n");
    bench.reconnect(VERBOSE);
    bench.join();
    assert_eq!(bench.heard(), "+OK\r\n", "for CONNECT");
    bench.broker(b"+OK\r\n");
    assert_eq!(bench.heard(), "", "the publish asked for none");
}

#[test]
fn an_invalid_sub_without_a_broker_has_one_answer() {
    for (options, at_once, later) in [
        (PLAIN, "-ERR 'Invalid Subject'\r\n", ""),
        (VERBOSE, "", "+OK\r\n"),
    ] {
        let mut bench = Bench::live(options);
        bench.heard();
        bench.lose();
        bench.subscribe(b"a..b", b"1");
        assert_eq!(bench.heard(), at_once);
        bench.join();
        assert_eq!(bench.heard(), later);
    }
}

#[test]
fn a_component_that_is_not_read_is_not_stale() {
    let mut bench = Bench::live(PLAIN);
    let frame = [b"PUB a 600000\r\n", &[b'x'; 600_000][..], b"\r\n"].concat();
    bench.publish(&frame);
    let (session, now) = (bench.session, bench.now);
    assert!(!bench.trunk.is_parked(session));
    assert!(
        !bench
            .trunk
            .wants_read(session, &Turn::new(now, &mut bench.bus))
    );
    assert!(bench.trunk.is_parked(session));
}

#[test]
fn a_publish_that_is_repeated_is_answered_once() {
    let mut bench = Bench::with(VERBOSE, Delivery::AtLeastOnce);
    bench.join();
    bench.heard();
    bench.publish(b"PUB a 0\r\n\r\n");
    bench.publish(b"PUB b 0\r\n\r\n");
    bench.told();
    bench.broker(b"+OK\r\n");
    bench.lose();
    bench.join();
    assert!(bench.told().contains("PUB a 0\r\n\r\nPUB b 0\r\n\r\n"));
    bench.broker(b"-ERR 'Permissions Violation for Publish to \"a\"'\r\n+OK\r\n");
    assert_eq!(bench.heard(), "+OK\r\n+OK\r\n");
}

#[test]
fn a_pong_waits_for_the_oks_of_what_came_before() {
    let mut bench = Bench::live(VERBOSE);
    bench.heard();
    bench.publish(b"PUB a 0\r\n\r\n");
    bench.told();
    bench.lose();
    bench.ping();
    assert_eq!(
        bench.heard(),
        "",
        "the publish is in doubt, but not answered"
    );
    bench.join();
    assert_eq!(bench.heard(), "+OK\r\n");
    bench.broker(b"PONG\r\n");
    assert_eq!(bench.heard(), "PONG\r\n");
}

#[test]
fn a_second_sub_of_a_limited_sid_does_not_reach_a_broker_that_may_have_ended_the_first() {
    let mut bench = Bench::live(PLAIN);
    let (session, now) = (bench.session, bench.now);
    bench.subscribe(b"a", b"1");
    bench
        .trunk
        .unsubscribe(session, b"1", Some(1), &mut Turn::new(now, &mut bench.bus));
    bench.told();
    bench.subscribe(b"b", b"1");
    assert_eq!(bench.told(), "");
}

#[test]
fn a_sentinel_fences_although_the_rate_is_used_up() {
    let mut bench = Bench::live(PLAIN);
    bench.bus.settings_mut().fences_per_second = 0;
    bench.publish(b"PUB a 0\r\n\r\n");
    bench.told();
    bench.pass(Duration::from_millis(60));
    assert_eq!(bench.told(), "PING\r\n");
    let due = bench.trunk.poll_timeout(&bench.bus).expect("a timer");
    assert!(due > bench.now, "it is not asked for again at once");
}

#[test]
fn an_error_that_a_pong_explains_has_a_fence_at_once_within_the_rate() {
    let mut bench = Bench::live(PLAIN);
    bench.subscribe(b"a", b"1");
    bench.broker(b"-ERR 'maximum subscriptions exceeded'\r\n");
    assert!(bench.trunk.poll_timeout(&bench.bus).expect("due") <= bench.now);
    bench.bus.settings_mut().fences_per_second = 0;
    let due = bench.trunk.poll_timeout(&bench.bus).expect("a timer");
    assert!(due > bench.now, "what is put off isn't asked for at once");
}

#[test]
fn a_broker_that_is_away_for_a_moment_may_still_accept() {
    let mut bench = Bench::live(PLAIN);
    bench.pass(Duration::from_millis(1500));
    bench
        .bus
        .roster_mut()
        .handle_failure(BrokerId(1), Failure::Silent, bench.now);
    bench.broker(b"-ERR 'Authorization Violation'\r\n");
    bench.take_dial();
    bench
        .trunk
        .handle_connected(bench.link, &mut Turn::new(bench.now, &mut bench.bus));
    bench.broker(INFO);
    bench.broker(b"-ERR 'Authorization Violation'\r\n");
    assert_eq!(bench.heard(), "");
    assert!(bench.trunk.closing(bench.session).is_none());
    bench.pass(Duration::from_secs(6));
    assert!(bench.trunk.closing(bench.session).is_some());
}

#[test]
fn what_a_link_took_before_it_was_live_is_answered_if_it_dies() {
    let mut bench = Bench::live(VERBOSE);
    bench.heard();
    bench.subscribe(b"a", b"1");
    bench.broker(b"+OK\r\n");
    assert_eq!(bench.heard(), "+OK\r\n");
    bench.lose();
    bench.join();
    bench.subscribe(b"b", b"2");
    bench.lose();
    assert_eq!(bench.heard(), "");
    bench.pass(Duration::from_millis(100));
    bench.take_dial();
    bench.join();
    bench.broker(b"+OK\r\n+OK\r\nPONG\r\n");
    assert_eq!(bench.heard(), "+OK\r\n");
}

#[test]
fn a_second_connect_is_tried_again_when_every_broker_turned_it_away() {
    let mut bench = Bench::live(PLAIN);
    bench.reconnect(r#"{"verbose":false,"pedantic":false,"echo":false}"#);
    for _ in 0..2 {
        bench
            .trunk
            .handle_connected(bench.link, &mut Turn::new(bench.now, &mut bench.bus));
        bench.broker(INFO);
        bench.broker(b"-ERR 'maximum connections exceeded'\r\n");
        bench.take_dial();
    }
    let before = bench.link;
    bench.pass(Duration::from_secs(1));
    bench.bus.roster_mut().poll_probe(bench.now);
    bench.wake();
    bench.take_dial();
    assert_ne!(bench.link, before, "it dials again");
}

/// The old link's own end, and not before, is an outage for whom no broker has judged.
#[test]
fn a_second_connect_that_no_broker_takes_is_admitted_once_the_old_link_is_gone() {
    let mut bench = Bench::live(PLAIN);
    let broker = bench.trunk.broker().expect("live");
    let refused = Failure::ConnectionRefused;
    for id in [0, 1].map(BrokerId) {
        let roster = bench.bus.roster_mut();
        roster.handle_failure(id, refused, bench.now);
    }
    bench.reconnect(r#"{"verbose":true,"pedantic":false}"#);
    let session = bench.session;
    assert_eq!(bench.heard(), "", "no +OK while a broker may judge it");
    assert!(!bench.trunk.is_ready(session));
    bench.link = LinkId(0);
    bench.lose();
    assert_eq!(bench.heard(), "+OK\r\n");
    assert!(bench.trunk.is_ready(session), "R16");
    assert_eq!(bench.trunk.broker(), None, "{broker:?} is gone");
}

#[test]
fn a_ping_that_the_last_broker_took_along_is_answered_where_nothing_is_unconfirmed() {
    for publishes in [false, true] {
        let mut bench = Bench::live(PLAIN);
        bench.subscribe(b"a", b"1");
        bench.broker(b"");
        bench.pass(Duration::from_millis(60));
        bench.broker(b"PONG\r\n");
        bench.ping();
        bench.flush();
        if publishes {
            bench.publish(b"PUB a 0\r\n\r\n");
        }
        bench.heard();
        for id in [0, 1] {
            let refused = Failure::ConnectionRefused;
            bench
                .bus
                .roster_mut()
                .handle_failure(BrokerId(id), refused, bench.now);
        }
        bench.lose();
        let heard = if publishes { "" } else { "PONG\r\n" };
        assert_eq!(bench.heard(), heard);
    }
}

#[test]
fn a_replay_that_gets_on_is_no_silence() {
    let mut bench = Bench::live(PLAIN);
    let long = "x".repeat(1000);
    for number in 0..200 {
        bench.subscribe(format!("{long}.{number}").as_bytes(), b"1");
        bench.subscribe(
            format!("{long}.{number}").as_bytes(),
            number.to_string().as_bytes(),
        );
    }
    bench.lose();
    bench.pass(Duration::from_millis(100));
    bench.take_dial();
    bench
        .trunk
        .handle_connected(bench.link, &mut Turn::new(bench.now, &mut bench.bus));
    bench.broker(INFO);
    bench.flush();
    bench.told();
    bench.broker(b"PONG\r\n");
    let fences = bench.told().matches("PING\r\n").count();
    assert!(fences > 3, "{fences}");
    let link = bench.link;
    for _ in 1..fences {
        // Each is slower than `link_timeout` allows for all of them, three times over.
        bench.pass(Duration::from_millis(1900));
        bench.broker(b"PONG\r\n");
        assert!(bench.trunk.has_link(link));
        assert_eq!(bench.trunk.broker(), None, "not before the last");
    }
    bench.broker(b"PONG\r\n");
    assert!(bench.trunk.broker().is_some());
}

#[test]
fn a_control_line_that_a_broker_closes_for_is_not_repeated_and_learned() {
    let mut bench = Bench::with(PLAIN, Delivery::AtLeastOnce);
    bench.join();
    let long = format!("PUB {} 1\r\nx\r\n", "y".repeat(2000));
    bench.publish(b"PUB short 1\r\nx\r\n");
    bench.publish(long.as_bytes());
    bench.broker(b"-ERR 'maximum control line exceeded'\r\n");
    bench.told();
    bench.lose();
    let (session, now) = (bench.session, bench.now);
    bench
        .trunk
        .detach(session, &mut Turn::new(now, &mut bench.bus));
    bench.pass(Duration::from_millis(100));
    bench.take_dial();
    bench.join();
    let told = bench.told();
    assert!(
        told.contains("PUB short 1") && !told.contains("yyy"),
        "{told}"
    );
    assert_eq!(bench.bus.counters().refused, 1);
    assert_eq!(bench.bus.roster().max_control_line(), 2001);
    let later = bench.now + Duration::from_secs(3600);
    bench.bus.roster_mut().poll_probe(later);
    assert_eq!(
        bench.bus.roster().max_control_line(),
        usize::MAX,
        "for a while"
    );
}

#[test]
fn credentials_that_ran_out_are_told_once_in_the_brokers_words() {
    let mut bench = Bench::live(PLAIN);
    bench.pass(Duration::from_millis(1500));
    bench.broker(b"-ERR 'User Authentication Expired'\r\n");
    assert_eq!(bench.heard(), "-ERR 'User Authentication Expired'\r\n");
    assert!(bench.trunk.closing(bench.session).is_some());
    let reports = std::iter::from_fn(|| bench.trunk.poll_action());
    let lost = |action: &Action| {
        matches!(
            action,
            Action::Dial { .. } | Action::Report(Report::Lost { .. })
        )
    };
    assert!(!reports.into_iter().any(|action| lost(&action)));
    assert_eq!(bench.bus.roster().broker(BrokerId(0)).links(), 0);
}

#[test]
fn a_newcomer_at_a_full_broker_hears_its_words_soon_and_others_later() {
    for (accepted, patience) in [(false, 1), (true, 5)] {
        let mut bench = if accepted {
            Bench::live(PLAIN)
        } else {
            Bench::new(PLAIN)
        };
        let down = Failure::ConnectionRefused;
        bench
            .bus
            .roster_mut()
            .handle_failure(BrokerId(1), down, bench.now);
        if accepted {
            bench.pass(Duration::from_millis(1500));
            bench.lose();
        }
        bench
            .trunk
            .handle_connected(bench.link, &mut Turn::new(bench.now, &mut bench.bus));
        bench.broker(INFO);
        bench.broker(b"-ERR 'maximum connections exceeded'\r\n");
        assert!(!bench.bus.roster().is_alive());
        bench.pass(Duration::from_secs(patience) - Duration::from_millis(1));
        assert_eq!(bench.heard(), "", "{accepted}");
        bench.pass(Duration::from_millis(1));
        assert_eq!(
            bench.heard(),
            "-ERR 'maximum connections exceeded'\r\n",
            "{accepted}"
        );
    }
}

#[test]
fn a_broker_without_a_verdict_is_left_soon_where_another_lives() {
    let mut bench = Bench::new(PLAIN);
    let info = ServerInfo::parse(&INFO[5..]).expect("an INFO");
    bench
        .bus
        .roster_mut()
        .handle_info(BrokerId(1), info, bench.now);
    bench
        .trunk
        .handle_connected(bench.link, &mut Turn::new(bench.now, &mut bench.bus));
    bench.broker(INFO);
    let first = bench.link;
    bench.pass(Duration::from_millis(999));
    bench.take_dial();
    assert_eq!(bench.link, first);
    bench.pass(Duration::from_millis(1));
    bench.take_dial();
    assert_ne!(bench.link, first);
    assert!(!bench.bus.roster().serves(BrokerId(0)));
    bench.join();
    assert_eq!(bench.trunk.broker(), Some(BrokerId(1)));
}

#[test]
fn a_broker_that_gives_others_their_verdicts_is_waited_for() {
    let mut bench = Bench::new(PLAIN);
    bench
        .trunk
        .handle_connected(bench.link, &mut Turn::new(bench.now, &mut bench.bus));
    bench.broker(INFO);
    let first = bench.link;
    for _ in 0..12 {
        bench.pass(Duration::from_secs(2));
        bench.bus.roster_mut().note_refusal(BrokerId(0), bench.now);
    }
    bench.take_dial();
    assert_eq!(bench.link, first);
    bench.broker(b"PONG\r\n");
    assert_eq!(bench.trunk.broker(), Some(BrokerId(0)));
}

#[test]
fn a_refusal_of_a_move_that_is_off_closes_nobody_later() {
    let mut bench = Bench::live(PLAIN);
    let first = bench.link;
    bench.broker(b"INFO {\"server_id\":\"x\",\"max_payload\":1048576,\"ldm\":true}\r\n");
    bench.take_dial();
    assert_ne!(bench.link, first, "R19: another link");
    bench
        .trunk
        .handle_connected(bench.link, &mut Turn::new(bench.now, &mut bench.bus));
    bench.broker(INFO);
    bench.broker(b"-ERR 'Authorization Violation'\r\n");
    bench.take_dial();
    bench.pass(Duration::from_secs(60));
    bench.link = first;
    bench.lose();
    assert!(bench.trunk.closing(bench.session).is_none(), "R15");
    assert_ne!(bench.link, first, "the next handshake decides");
    assert_eq!(bench.heard(), "");
}

#[test]
fn a_move_that_another_broker_turned_down_is_tried_again() {
    let mut bench = Bench::live(PLAIN);
    let duck = bench.link;
    bench.broker(b"INFO {\"server_id\":\"x\",\"max_payload\":1048576,\"ldm\":true}\r\n");
    bench.take_dial();
    let tried = bench.link;
    bench
        .trunk
        .handle_connected(tried, &mut Turn::new(bench.now, &mut bench.bus));
    bench.broker(INFO);
    bench.broker(b"-ERR 'maximum connections exceeded'\r\n");
    bench.take_dial();
    for _ in 0..10 {
        bench.pass(Duration::from_millis(100));
        bench.wake();
        bench.take_dial();
    }
    assert!(bench.link > tried && bench.trunk.has_link(duck), "R19");
}

#[test]
fn a_broker_that_hangs_up_soon_is_not_dialled_in_a_tight_loop() {
    let mut bench = Bench::live(PLAIN);
    for _ in 0..100 {
        bench.lose();
        if !bench.trunk.has_link(bench.link) {
            break;
        }
        bench.join();
    }
    assert!(
        !bench.trunk.has_link(bench.link),
        "every broker hung up: a pause"
    );
    assert!(bench.link < LinkId(5), "after each had its turn");
    bench.pass(Duration::from_secs(3));
    bench.take_dial();
    assert!(bench.trunk.has_link(bench.link), "and then again");
}

#[test]
fn a_component_that_pings_without_end_is_not_read_on() {
    let mut bench = Bench::live(PLAIN);
    bench.subscribe(b"a", b"1");
    let mut pings = 0;
    while bench
        .trunk
        .wants_read(bench.session, &Turn::new(bench.now, &mut bench.bus))
    {
        bench.ping();
        pings += 1;
        assert!(pings <= 10_000, "each takes memory");
    }
    bench.told();
    bench.broker(b"PONG\r\n");
    bench
        .trunk
        .unpark(&Turn::new(Instant::now(), &mut bench.bus));
    assert!(bench.trunk.take_released(bench.session));
}

#[test]
fn no_pong_overtakes_publishes_that_suspicion_held() {
    let mut bench = Bench::live(PLAIN);
    let (broker, now) = (bench.trunk.broker().expect("live"), bench.now);
    bench.bus.suspect(broker, now);
    bench.publish(b"PUB a 1\r\nx\r\n");
    bench.now += Duration::from_millis(1);
    let (id, now) = (bench.trunk.id(), bench.now);
    // The sentinel was answered; this trunk has not been woken yet.
    bench.bus.fence_answered(id, broker, now, now);
    bench.ping();
    let told = bench.told();
    let publish = told.find("PUB a").expect("resumed");
    assert!(
        told.rfind("PING").is_some_and(|ping| ping > publish),
        "R1: {told}"
    );
    assert_eq!(bench.heard(), "");
}

#[test]
fn a_sub_over_the_brokers_limit_is_not_replayed() {
    let mut bench = Bench::live(PLAIN);
    bench.subscribe(b"kept", b"1");
    bench.subscribe(b"refused", b"2");
    bench.pass(Duration::from_millis(60));
    bench.broker(b"-ERR 'maximum subscriptions exceeded'\r\nPONG\r\n");
    assert_eq!(bench.heard(), "-ERR 'maximum subscriptions exceeded'\r\n");
    bench.pass(Duration::from_secs(2));
    bench.told();
    bench.lose();
    bench.join();
    let told = bench.told();
    assert!(
        told.contains("SUB kept") && !told.contains("refused"),
        "{told}"
    );
}

#[test]
fn what_a_broker_finds_too_large_is_not_repeated_for_ever() {
    let mut bench = Bench::with(PLAIN, Delivery::AtLeastOnce);
    bench
        .trunk
        .handle_connected(bench.link, &mut Turn::new(bench.now, &mut bench.bus));
    bench.broker(b"INFO {\"server_id\":\"x\",\"max_payload\":1,\"headers\":true,\"proto\":1}\r\n");
    bench.broker(b"PONG\r\n");
    bench.wake();
    bench.publish(b"PUB a 1\r\nx\r\n");
    bench.publish(b"PUB b 2\r\nyy\r\n");
    bench.told();
    bench.broker(b"-ERR 'Maximum Payload Violation'\r\n");
    bench.pass(Duration::from_secs(2));
    bench.lose();
    bench.join();
    let told = bench.told();
    assert!(
        told.contains("PUB a 1") && !told.contains("PUB b"),
        "{told}"
    );
    let counters = &bench.bus.counters();
    assert_eq!(
        (counters.refused, counters.repeated, counters.in_doubt),
        (1, 1, 0)
    );
}

#[test]
fn a_pong_to_a_ping_that_was_not_written_ends_the_link() {
    let mut bench = Bench::live(PLAIN);
    bench.publish(b"PUB a 1\r\nx\r\n");
    bench.ping();
    let (link, now) = (bench.link, bench.now);
    bench
        .trunk
        .handle_link_bytes(link, b"PONG\r\n", &mut Turn::new(now, &mut bench.bus));
    assert!(!bench.trunk.has_link(link));
    assert_eq!(bench.bus.counters().confirmed, 0);
}

#[test]
fn what_came_behind_a_second_connect_is_not_for_the_old_link() {
    let mut bench = Bench::live(VERBOSE);
    let (old, broker) = (bench.link, bench.trunk.broker().expect("live"));
    bench.told();
    bench.now += Duration::from_millis(1);
    bench.bus.suspect(broker, bench.now);
    bench.wake();
    bench.reconnect(PLAIN);
    bench.publish(b"PUB a 1\r\nx\r\n");
    // The broker of the old link thaws before the new link is there.
    bench.now += Duration::from_millis(1);
    bench.link = old;
    bench.broker(b"PONG\r\n");
    let told = bench.told();
    assert!(told.contains("PING"), "its suspicion is over: {told}");
    assert!(!told.contains("PUB"), "R20: {told}");
}

#[test]
fn no_info_follows_a_components_last_words() {
    let mut bench = Bench::live(r#"{"verbose":false,"protocol":1}"#);
    bench.ping();
    bench.broker(b"PONG\r\n");
    assert!(bench.trunk.takes_info(bench.session), "R17");
    bench.trunk.close_session(bench.session, CloseReason::Stale);
    assert!(!bench.trunk.takes_info(bench.session));
}

#[test]
fn a_half_closed_component_has_its_pong_from_the_next_broker() {
    let mut bench = Bench::live(PLAIN);
    bench.subscribe(b"a", b"1");
    bench.ping();
    let session = bench.session;
    bench.finish(CloseReason::ComponentClosed);
    bench.lose();
    assert_eq!(bench.trunk.closing(session), None, "R1");
    bench.told();
    bench.join();
    assert!(
        !bench.told().contains("SUB"),
        "it wants no messages any more"
    );
    assert_eq!(bench.heard(), "");
    bench.broker(b"PONG\r\nPONG\r\nPONG\r\n");
    assert_eq!(bench.heard(), "PONG\r\n");
    assert_eq!(
        bench.trunk.closing(session),
        Some(&CloseReason::ComponentClosed)
    );
}

#[test]
fn a_half_closed_component_is_not_kept_for_longer_than_pong_hold() {
    let mut bench = Bench::live(PLAIN);
    bench.publish(b"PUB a 1\r\nx\r\n");
    bench.flush();
    bench.ping();
    let session = bench.session;
    bench.finish(CloseReason::ComponentClosed);
    bench.lose();
    bench.pass(Duration::from_millis(299));
    assert_eq!(bench.trunk.closing(session), None);
    bench.pass(Duration::from_millis(2));
    assert_eq!(bench.heard(), "PONG\r\n", "R3");
    assert_eq!(
        bench.trunk.closing(session),
        Some(&CloseReason::ComponentClosed)
    );
}

#[test]
fn a_component_that_is_gone_in_an_outage_is_not_kept_for_its_length() {
    let mut bench = Bench::live(PLAIN);
    bench.bus.settings_mut().timings.pong_hold = PongHold::Never;
    // Never written: it waits for the next broker.
    bench.publish(b"PUB a 1\r\nx\r\n");
    bench.ping();
    let session = bench.session;
    bench.finish(CloseReason::ComponentClosed);
    bench.lose();
    bench.pass(FINISH_WITHIN - Duration::from_millis(1));
    assert_eq!(bench.trunk.closing(session), None);
    bench.pass(Duration::from_millis(2));
    assert!(bench.trunk.closing(session).is_some());
    assert_eq!(bench.heard(), "", "no PONG that proves nothing (R3)");
}

#[test]
fn a_link_that_dies_under_a_session_that_natsmux_ends_ends_it() {
    let mut bench = Bench::live(PLAIN);
    bench.publish(b"PUB a 1\r\nx\r\n");
    bench.flush();
    bench.ping();
    let session = bench.session;
    bench.finish(CloseReason::Stale);
    assert_eq!(bench.trunk.closing(session), None);
    bench.lose();
    assert_eq!(bench.trunk.closing(session), Some(&CloseReason::Stale));
}

#[test]
fn a_half_closed_component_has_the_pong_that_suspicion_held() {
    let mut bench = Bench::live(PLAIN);
    bench.subscribe(b"a", b"1");
    bench.broker(b"PONG\r\n");
    let broker = bench.trunk.broker().expect("live");
    bench.now += Duration::from_millis(1);
    bench.bus.suspect(broker, bench.now);
    bench.wake();
    bench.ping();
    let session = bench.session;
    bench.finish(CloseReason::ComponentClosed);
    assert_eq!(bench.trunk.closing(session), None, "R2");
    bench.now += Duration::from_millis(1);
    bench.broker(b"PONG\r\n");
    assert_eq!(bench.heard(), "");
    bench.broker(b"PONG\r\nPONG\r\n");
    assert_eq!(bench.heard(), "PONG\r\n");
    assert!(bench.trunk.closing(session).is_some());
}

#[test]
fn a_session_that_finishes_during_a_move_closes_with_its_last_pong() {
    let mut bench = Bench::live(PLAIN);
    let old = bench.link;
    let duck = String::from_utf8_lossy(INFO).replace("\"proto\"", "\"ldm\":true,\"proto\"");
    bench.subscribe(b"a", b"1");
    bench.broker(duck.as_bytes());
    bench.take_dial();
    assert_ne!(bench.link, old, "R19");
    let session = bench.session;
    bench.finish(CloseReason::Stale);
    assert_eq!(bench.trunk.closing(session), None);
    bench.join();
    bench.link = old;
    bench.broker(b"PONG\r\nPONG\r\n");
    assert_eq!(bench.trunk.closing(session), Some(&CloseReason::Stale));
}

#[test]
fn a_component_that_half_closes_behind_a_second_connect_has_its_pongs() {
    let mut bench = Bench::live(PLAIN);
    let old = bench.link;
    bench.subscribe(b"a", b"1");
    bench.ping();
    bench.reconnect(PLAIN);
    let session = bench.session;
    bench.finish(CloseReason::ComponentClosed);
    assert_eq!(bench.trunk.closing(session), None, "R1");
    // The old link answers, and is left.
    bench.link = old;
    bench.broker(b"PONG\r\nPONG\r\n");
    assert_eq!(bench.heard(), "PONG\r\n");
    bench.take_dial();
    bench.join();
    bench.link = old;
    bench.broker(b"PONG\r\n");
    bench.take_dial();
    assert!(bench.trunk.has_link(LinkId(1)), "the new one is on its way");
    bench.link = LinkId(1);
    bench.broker(b"PONG\r\nPONG\r\nPONG\r\n");
    assert_eq!(
        bench.trunk.closing(session),
        Some(&CloseReason::ComponentClosed)
    );
}

#[test]
fn a_link_that_is_left_is_waited_for_while_the_component_is_full() {
    let mut bench = Bench::live(PLAIN);
    let old = bench.link;
    bench.subscribe(b"a", b"1");
    bench.reconnect(PLAIN);
    bench.link = old;
    bench.broker(b"PONG\r\nPONG\r\n");
    bench.take_dial();
    let new = bench.link;
    bench.join();
    bench.pass(Duration::from_millis(5));
    bench.broker(b"PONG\r\n");
    assert_eq!(bench.trunk.links[new].phase, Phase::Overlapping);
    bench.pass(Duration::from_millis(5));
    bench.link = old;
    let message = [b"MSG a 0 300000\r\n", &[b'x'; 300_000][..], b"\r\n"].concat();
    bench.broker(&message);
    let reads = |bench: &mut Bench| {
        bench
            .trunk
            .wants_link_read(old, &mut Turn::new(bench.now, &mut bench.bus))
    };
    assert!(!reads(&mut bench));
    bench.pass(Duration::from_secs(10));
    assert!(bench.trunk.has_link(old), "it isn't read");
    let due = bench.trunk.poll_timeout(&bench.bus);
    assert!(due.is_none_or(|due| due > bench.now), "no timer spins");
    assert_eq!(bench.heard().len(), message.len());
    assert!(reads(&mut bench));
    bench.pass(Duration::from_millis(1));
    assert!(bench.trunk.has_link(old), "it has time to answer");
    bench.broker(b"PONG\r\n");
    assert!(!bench.trunk.has_link(old));
}

#[test]
fn a_lame_duck_that_was_replaced_says_nothing_of_its_successor() {
    let mut bench = Bench::live(PLAIN);
    let later = ServerInfo::parse(b"{\"server_id\":\"later\"}").expect("INFO");
    let broker = bench.bus.roster().current();
    bench.bus.roster_mut().handle_info(broker, later, bench.now);
    bench.broker(b"INFO {\"server_id\":\"x\",\"ldm\":true}\r\n");
    assert_eq!(bench.bus.roster().broker(broker).health(), Health::Up);
    bench.broker(b"INFO {\"server_id\":\"later\",\"ldm\":true}\r\n");
    assert_eq!(bench.bus.roster().broker(broker).health(), Health::LameDuck);
}

#[test]
fn what_a_frozen_brokers_kernel_takes_is_no_sign_of_life() {
    let half = Duration::from_millis(500);
    // As many subscriptions as it likes, behind a fence that the kernel has acknowledged.
    let mut bench = Bench::live(r#"{"verbose":false}"#);
    bench.publish(b"PUB a 0\r\n\r\n");
    bench.pass(Duration::from_millis(50));
    assert!(bench.told().ends_with("PING\r\n"));
    for tick in 0..4_u64 {
        assert!(bench.trunk.has_link(bench.link), "{tick}");
        bench.subscribe(b"b", format!("{tick}").as_bytes());
        bench.flush();
        // Ever more of it is acknowledged, but the last few bytes.
        bench.trunk.handle_unacked(bench.link, 8 - tick, bench.now);
        bench.pass(half);
    }
    assert!(!bench.trunk.has_link(bench.link), "dead after link_timeout");

    // Where the fence itself is on its way, each byte that arrives is one.
    let mut bench = Bench::live(r#"{"verbose":false}"#);
    bench.publish(&[&b"PUB a 1000\r\n"[..], &[b'x'; 1000], b"\r\n"].concat());
    bench.pass(Duration::from_millis(50));
    bench.flush();
    for tick in 0..8 {
        let unacked = 1000 - 100 * tick;
        bench.trunk.handle_unacked(bench.link, unacked, bench.now);
        bench.pass(half);
    }
    assert!(
        bench.trunk.has_link(bench.link),
        "a slow way, not a dead one"
    );
}

/// Two sessions on a shared trunk with a live link.
pub(super) fn sharers() -> (Bench, [SessionId; 2]) {
    let mut bench = Bench::new(PLAIN);
    let connect = Rc::clone(&bench.trunk.connect);
    bench.trunk = Trunk::shared(TrunkId(0), &connect, "shared".to_owned());
    let sessions = [(); 2].map(|()| {
        let out = Outbox::new(Retention::UntilWritten);
        let cx = &mut Turn::new(bench.now, &mut bench.bus);
        bench.trunk.join(out, &connect, cx)
    });
    bench.session = sessions[0];
    bench.take_dial();
    bench.join();
    (bench, sessions)
}

#[test]
fn subs_and_unsubs_are_paced_beside_one_that_writes() {
    let (mut bench, sessions) = sharers();
    let churn = |bench: &mut Bench, count: usize| {
        for _ in 0..count / 2 {
            bench.subscribe(b"a", b"1");
            let (session, now) = (bench.session, bench.now);
            bench
                .trunk
                .unsubscribe(session, b"1", None, &mut Turn::new(now, &mut bench.bus));
        }
        bench.pass(Duration::ZERO);
        while bench.told().contains("PING\r\n") {
            bench.broker(b"PONG\r\n");
        }
    };
    let wants = |bench: &mut Bench, at: usize| {
        let session = sessions[at];
        bench
            .trunk
            .wants_read(session, &Turn::new(bench.now, &mut bench.bus))
    };
    // Alone, as many as the broker takes.
    churn(&mut bench, 10_000);
    assert!(wants(&mut bench, 0));
    let cx = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.publish(sessions[1], b"PUB b 0\r\n\r\n", 1, cx);
    churn(&mut bench, 4_000);
    assert!(wants(&mut bench, 0));
    churn(&mut bench, 200);
    assert!(!wants(&mut bench, 0) && wants(&mut bench, 1));
    bench.pass(Duration::from_millis(2));
    assert!(wants(&mut bench, 0), "it has earned some");
}

#[test]
fn one_that_floods_beside_others_waits_for_its_pong_and_no_longer() {
    const PLENTY: usize = 2 * FAIR_BYTES / OPERATION_BYTES;
    let (mut bench, sessions) = sharers();
    let connect = Rc::clone(&bench.trunk.connect);
    let reads = |bench: &mut Bench| {
        sessions.map(|session| {
            bench
                .trunk
                .wants_read(session, &Turn::new(bench.now, &mut bench.bus))
        })
    };
    let flood = |bench: &mut Bench| {
        for sid in 0..PLENTY {
            bench.subscribe(b"flood", format!("{}", 1 + sid).as_bytes());
        }
    };
    assert_eq!(reads(&mut bench), [true, true]);
    flood(&mut bench);
    assert_eq!(reads(&mut bench), [false, true]);
    bench.pass(Duration::ZERO);
    assert!(bench.told().ends_with("PING\r\n"), "at once");
    bench.broker(b"PONG\r\n");
    assert_eq!(reads(&mut bench), [true, true]);

    // Elsewhere, nothing of it is left: the PINGs there have other numbers.
    flood(&mut bench);
    let cx = &mut Turn::new(bench.now, &mut bench.bus);
    let moved = bench.trunk.take_out(sessions[0], cx).expect("its place");
    let mut next = Trunk::shared(TrunkId(1), &connect, "next".to_owned());
    let session = next.take_in(moved, &connect, false, cx);
    let unproven = &next.sessions[session].unproven;
    assert_eq!(unproven.bytes(0), 0);
}

#[test]
fn a_session_that_ends_on_its_way_is_subscribed_nowhere_else() {
    for ends in [false, true] {
        let (mut bench, sessions) = sharers();
        let connect = Rc::clone(&bench.trunk.connect);
        let session = sessions[0];
        bench.subscribe(b"a", b"1");
        let cx = &mut Turn::new(bench.now, &mut bench.bus);
        assert!(bench.trunk.must_depart(session, cx), "behind a PONG");
        if ends {
            let reason = CloseReason::ComponentClosed;
            bench.trunk.finish(session, reason, cx);
        }
        let record = bench.trunk.take_out(session, cx).expect("its place");
        let mut next = Trunk::new(TrunkId(1), connect.clone());
        let session = next.take_in(record, &connect, true, cx);
        let view = next.view(session).expect("it is there");
        assert_eq!(view.subscription_count, usize::from(!ends));
    }
}

/// Trunks in all sorts of states.
fn trunks_to_give_up() -> Vec<(&'static str, Bench)> {
    let live = || Bench::live(PLAIN);
    let publish = |mut bench: Bench| {
        bench.publish(b"PUB a 0\r\n\r\n");
        bench
    };
    let lose = |mut bench: Bench| {
        bench.told();
        bench.lose();
        bench
    };
    let replay = |mut bench: Bench| {
        let (link, now) = (bench.link, bench.now);
        bench
            .trunk
            .handle_connected(link, &mut Turn::new(now, &mut bench.bus));
        bench.broker(INFO);
        bench
    };
    let leave = |mut bench: Bench| {
        let (session, now) = (bench.session, bench.now);
        bench
            .trunk
            .detach(session, &mut Turn::new(now, &mut bench.bus));
        bench
    };
    let wait = |mut bench: Bench| {
        bench.told();
        bench.pass(Duration::from_millis(200));
        bench
    };
    let receive = |mut bench: Bench| {
        bench.subscribe(b"a", b"1");
        bench.broker(b"MSG a 0 1\r\nx\r\n");
        bench.trunk.account(bench.session, &bench.bus);
        assert!(bench.bus.budgets().pending.used() > 0);
        bench
    };
    vec![
        ("dials", Bench::new(PLAIN)),
        ("waits for a verdict", replay(Bench::new(PLAIN))),
        ("is idle", live()),
        ("published without proof", publish(live())),
        (
            "suspects its broker, and holds",
            publish(wait(publish(live()))),
        ),
        ("holds without a broker", publish(lose(publish(live())))),
        ("replays", publish(replay(lose(live())))),
        ("was left with something unproven", leave(publish(live()))),
        ("was left with what waits", leave(publish(lose(live())))),
        ("has a component that doesn't read", receive(live())),
    ]
}

#[test]
fn a_trunk_that_is_given_up_leaves_nothing_with_the_bus() {
    for (state, mut bench) in trunks_to_give_up() {
        let (trunk, bus, now) = (&mut bench.trunk, &mut bench.bus, bench.now);
        // Once is enough, and twice does no harm.
        trunk.give_up(&mut Turn::new(now, bus));
        trunk.give_up(&mut Turn::new(now, bus));
        assert_eq!(trunk.gauges(), Gauges::default(), "{state}");
        let actions: Vec<_> = std::iter::from_fn(|| trunk.poll_action()).collect();
        assert!(matches!(actions[..], [Action::Done]), "{state}");
        for (id, broker) in bus.roster().brokers() {
            assert_eq!((broker.dialing, broker.links()), (0, 0), "{state}");
            assert_eq!(bus.watch(id).attached(), 0, "{state}");
        }
        assert_eq!(bus.barrier_opens_at(now), None, "{state}");
        let budgets = &bus.budgets();
        assert_eq!(
            (budgets.held.used(), budgets.pending.used()),
            (0, 0),
            "{state}"
        );
        let failover = bus.poll_failover(now);
        assert!(failover.is_none_or(|failover| failover.complete), "{state}");
        let counters = &bus.counters();
        assert_eq!(
            counters.published,
            counters.in_doubt + counters.dropped,
            "{state}"
        );
    }
}

#[test]
fn a_large_message_waits_for_room_in_the_budget() {
    const ROOM: usize = 1024 * 1024;
    let mut bench = Bench::live(PLAIN);
    bench.subscribe(b"foo", b"1");
    bench.told();
    bench.bus.budgets().pending.set_total(2 * ROOM);
    let budget = Rc::clone(&bench.bus.budgets().pending);
    let others = Charge::new(Rc::clone(&budget), ROOM);
    let part = [&b"MSG foo 0 500000\r\n"[..], &[b'x'; 1000]].concat();
    bench.broker(&part);
    let wants = |bench: &mut Bench| {
        let (link, now) = (bench.link, bench.now);
        bench
            .trunk
            .wants_link_read(link, &mut Turn::new(now, &mut bench.bus))
    };
    assert!(!wants(&mut bench), "half of the budget is used");
    assert!(bench.trunk.poll_timeout(&bench.bus).expect("due") > bench.now);
    bench.pass(Duration::from_millis(100));
    assert!(!wants(&mut bench));
    bench.bus.take_woken();
    drop(others);
    bench.bus.wake_awaiting_room();
    assert_eq!(bench.bus.take_woken(), [TrunkId(0)]);
    assert!(wants(&mut bench));
    assert!(budget.used() >= 500_000, "its message has its room");
    bench.broker(&vec![b'x'; 499_000]);
    bench.broker(b"\r\n");
    assert_eq!(budget.used(), 0, "until it is whole");
}

#[test]
fn a_link_that_ends_leaves_its_room_and_its_place_to_others() {
    let mut bench = Bench::live(PLAIN);
    bench.subscribe(b"foo", b"1");
    bench.bus.budgets().pending.set_total(1024 * 1024);
    let budget = Rc::clone(&bench.bus.budgets().pending);
    let wants = |bench: &mut Bench| {
        let (link, now) = (bench.link, bench.now);
        bench
            .trunk
            .wants_link_read(link, &mut Turn::new(now, &mut bench.bus))
    };
    bench.broker(b"MSG foo 0 500000\r\nx");
    assert!(wants(&mut bench));
    bench.lose();
    assert_eq!(budget.used(), 0);
    bench.join();
    bench.broker(b"PONG\r\n");
    let others = Charge::new(Rc::clone(&budget), 1024 * 1024);
    bench.broker(b"MSG foo 0 500000\r\nx");
    assert!(!wants(&mut bench));
    bench.lose();
    bench.bus.take_woken();
    drop(others);
    bench.bus.wake_awaiting_room();
    assert_eq!(bench.bus.take_woken(), [], "nobody waits");
}

#[test]
fn a_large_message_waits_for_four_seconds_at_most() {
    let mut bench = Bench::live(PLAIN);
    bench.subscribe(b"foo", b"1");
    bench.bus.budgets().pending.set_total(1024 * 1024);
    let spent = Charge::new(Rc::clone(&bench.bus.budgets().pending), 1024 * 1024);
    bench.broker(b"MSG foo 0 500000\r\nx");
    let (link, start) = (bench.link, bench.now);
    for (after, takes) in [(0, false), (250, false), (3_999, false), (4_000, true)] {
        let now = start + Duration::from_millis(after);
        let wants = bench
            .trunk
            .wants_link_read(link, &mut Turn::new(now, &mut bench.bus));
        assert_eq!(wants, takes, "after {after} ms");
    }
    drop(spent);
}

#[test]
fn the_oldest_of_many_identities_announce() {
    let mut bench = Bench::new("{}");
    let (bus, now) = (&mut bench.bus, bench.now);
    *bus.presence_mut() = Presence::new("host", "_P");
    // Their digests say nothing of their age.
    let identity = |age: u64| 1_000 - age;
    for age in 0..100 {
        bus.attached(TrunkId(age), identity(age), BrokerId(0), now);
    }
    bus.take_woken();
    bus.begin_announcing(now);
    let woken = bus.take_woken();
    let carriers: Vec<u64> = (0..100)
        .filter(|age| bus.is_carrier(TrunkId(*age), identity(*age), now))
        .collect();
    assert_eq!(carriers, (0..8).collect::<Vec<_>>());
    assert!(carriers.iter().all(|age| woken.contains(&TrunkId(*age))));
}

/// R36: it is the credentials that have run out, and no other broker's word.
#[test]
fn credentials_that_run_out_during_a_replay_end_their_session() {
    let mut bench = Bench::live(PLAIN);
    bench.subscribe(b"a", b"1");
    bench.lose();
    bench.join();
    assert!(bench.told().contains("SUB a "), "it replays");
    assert!(!bench.trunk.links.any_attached());
    bench.broker(b"-ERR 'User Authentication Expired'\r\n");
    assert_eq!(bench.heard(), "-ERR 'User Authentication Expired'\r\n");
    assert!(bench.trunk.closing(bench.session).is_some());
}

/// A trunk whose broker has been asked for a TLS handshake, behind its INFO.
fn securing() -> Bench {
    let mut bench = Bench::new(r#"{"user":"u","pass":"secret"}"#);
    bench.bus.roster_mut().set_tls(TlsMode::Required);
    let turn = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.handle_connected(bench.link, turn);
    bench.broker(br#"INFO {"server_id":"a","max_payload":1024,"tls_required":true}"#);
    bench.broker(b"\r\n");
    let link = bench.link;
    let secures =
        |action: &Action| matches!(action, Action::Secure { link: asked, .. } if *asked == link);
    assert!(
        bench
            .trunk
            .poll_action()
            .is_some_and(|action| secures(&action))
    );
    bench
}

#[test]
fn connect_comes_behind_the_handshake() {
    let mut bench = securing();
    assert_eq!(bench.told(), "", "nothing in plain text");
    let turn = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.handle_secured(bench.link, turn);
    let told = bench.told();
    assert!(
        told.starts_with("CONNECT {") && told.contains("secret"),
        "{told}"
    );
}

#[test]
fn a_handshake_has_its_time() {
    let mut bench = securing();
    let timeout = bench.bus.settings().timings.tls_timeout;
    bench.pass(timeout - Duration::from_millis(1));
    assert!(bench.trunk.links.has(bench.link));
    bench.pass(Duration::from_millis(1));
    assert!(!bench.trunk.links.has(LinkId(0)));
    let failure = bench.bus.roster().broker(BrokerId(0)).last_failure();
    assert_eq!(failure, Some(Failure::TlsTimeout));
}

/// Whoever stands between can write it: the session lives on, and the broker isn't down for it.
#[test]
fn what_is_said_in_plain_text_ends_the_link_alone() {
    for (words, failure, is_down) in [
        (
            "-ERR 'Authorization Violation'\r\n",
            Failure::TlsHandshake,
            true,
        ),
        (
            "-ERR 'User Authentication Expired'\r\n",
            Failure::TlsHandshake,
            true,
        ),
        ("+OK\r\nPONG\r\n", Failure::Garbage, true),
        (
            "-ERR 'Connection throttling is active. Please try again later.'\r\n",
            Failure::Throttled,
            false,
        ),
    ] {
        let mut bench = securing();
        bench.broker(words.as_bytes());
        assert!(!bench.trunk.links.has(LinkId(0)), "{words}");
        assert!(bench.trunk.closing(bench.session).is_none(), "{words}");
        assert_eq!(bench.heard(), "", "{words}");
        let broker = bench.bus.roster().broker(BrokerId(0));
        assert_eq!(broker.health() == Health::Down, is_down, "{words}");
        let counted = bench.bus.observed().dial_failures.clone();
        assert!(
            format!("{counted:?}").contains(failure.as_str()),
            "{counted:?}"
        );
    }
}

#[test]
fn nothing_but_info_is_believed_before_a_handshake_that_comes_behind_it() {
    let mut bench = Bench::new(r#"{"user":"u","pass":"secret"}"#);
    bench.bus.roster_mut().set_tls(TlsMode::Required);
    let turn = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.handle_connected(bench.link, turn);
    bench.broker(b"-ERR 'Authorization Violation'\r\n");
    assert!(!bench.trunk.links.has(LinkId(0)));
    assert!(bench.trunk.closing(bench.session).is_none());
    assert!(bench.trunk.route.attempts.refused_since().is_none());
}

/// It is asked again behind a pause that grows, and the others first.
#[test]
fn a_broker_that_throttles_is_not_dialled_again_at_once() {
    let mut bench = securing();
    let mut dialled = vec![BrokerId(0)];
    for _ in 0..2 {
        bench.broker(b"-ERR 'Connection throttling is active. Please try again later.'\r\n");
        while let Some(action) = bench.trunk.poll_action() {
            if let Action::Dial { link, broker } = action {
                bench.link = link;
                dialled.push(broker);
                let turn = &mut Turn::new(bench.now, &mut bench.bus);
                bench.trunk.handle_connected(link, turn);
                bench.broker(b"INFO {\"server_id\":\"b\",\"tls_required\":true}\r\n");
            }
        }
    }
    assert_eq!(dialled, [BrokerId(0), BrokerId(1)]);
    let retry = bench.trunk.route.attempts.retry_at();
    assert!(retry.is_some_and(|at| at > bench.now));
}

#[test]
fn a_broker_that_verifies_gets_no_handshake_without_a_certificate() {
    let mut bench = Bench::new("{}");
    bench.bus.roster_mut().set_tls(TlsMode::Required);
    let turn = &mut Turn::new(bench.now, &mut bench.bus);
    bench.trunk.handle_connected(bench.link, turn);
    bench.broker(b"INFO {\"server_id\":\"a\",\"tls_required\":true,\"tls_verify\":true}\r\n");
    let failure = bench.bus.roster().broker(BrokerId(0)).last_failure();
    assert_eq!(failure, Some(Failure::CertificateRefused));
}

/// R37: who is served stays, though no broker takes anybody else.
#[test]
fn no_outage_is_revealed_while_a_link_lives() {
    let mut bench = Bench::live("{}");
    bench.bus.settings_mut().timings.reveal_outage_after = Duration::from_secs(60);
    for broker in [BrokerId(0), BrokerId(1)] {
        let roster = bench.bus.roster_mut();
        roster.handle_failure(broker, Failure::CertificateExpired, bench.now);
    }
    assert!(!bench.bus.roster().is_alive());
    let start = bench.now;
    for second in 0..=70 {
        bench.bus.review(start + Duration::from_secs(second));
        assert!(!bench.bus.reveals_outage(), "after {second} s");
    }
    bench.lose();
    for second in 70..=131 {
        bench.bus.review(start + Duration::from_secs(second));
    }
    assert!(bench.bus.reveals_outage());
}
