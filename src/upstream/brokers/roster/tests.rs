use super::*;
use crate::proto::info::ServerInfo;
use crate::upstream::brokers::liveness::TrunkId;
use crate::upstream::brokers::trouble::IdentityDigest;

const ID: IdentityDigest = 7;
const A: BrokerId = BrokerId(0);
const B: BrokerId = BrokerId(1);

fn roster(now: Instant) -> Roster {
    let addrs = ["10.0.0.1", "10.0.0.2"].map(|host| BrokerAddr {
        host: host.to_owned(),
        port: 4222,
        tls: false,
    });
    Roster::new(&addrs, Placement::default(), Duration::from_secs(3), 1, now)
}

fn info() -> ServerInfo {
    ServerInfo::parse(br#"{"server_id":"x","version":"2.9.10","max_payload":1048576}"#)
        .expect("valid")
}

fn info_of(id: BrokerId) -> ServerInfo {
    ServerInfo {
        server_id: format!("{id:?}"),
        ..info()
    }
}

#[test]
fn two_names_of_one_independent_broker_are_one() {
    let now = Instant::now();
    let second = Duration::from_secs(1);
    for (placement, doubled) in [
        (Placement::default(), false),
        (Placement::First(Some(second)), true),
    ] {
        let mut roster = roster(now);
        let addrs = [A, B].map(|id| roster.broker(id).addr().clone());
        roster.configure(&addrs, placement, second, now);
        roster.handle_info(A, info(), now);
        roster.handle_info(B, info(), now);
        assert_eq!(roster.has_doubles(), doubled);
        assert_eq!(roster.serves(B), !doubled);
        roster.handle_info(B, info_of(B), now);
        assert!(!roster.has_doubles(), "the name was mended");
    }
}

#[test]
fn all_trunks_move_on_together_when_the_hosts_broker_is_down() {
    let now = Instant::now();
    let mut roster = roster(now);
    assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
    roster.handle_failure(A, Failure::ConnectionRefused, now);
    assert_eq!(roster.pick(ID, &[], now), Pick::Dial(B));
    roster.handle_info(A, info(), now);
    assert_eq!(roster.pick(ID, &[], now), Pick::Dial(B), "no move back");
}

#[test]
fn a_reload_that_changes_the_offer_is_news() {
    let now = Instant::now();
    let mut roster = roster(now);
    let small = ServerInfo {
        max_payload: 65_536,
        ..info()
    };
    roster.handle_info(A, info(), now);
    roster.handle_info(B, small, now);
    let addrs: Vec<_> = roster
        .brokers()
        .map(|(_, broker)| broker.addr().clone())
        .collect();
    let mut reload = |addrs: &[BrokerAddr]| {
        roster.take_offer_changed();
        let interval = Duration::from_secs(3);
        roster.configure(addrs, Placement::default(), interval, now);
        (roster.take_offer_changed(), roster.offer().max_payload)
    };
    assert_eq!(reload(&addrs), (false, 65_536));
    assert_eq!(reload(&addrs[..1]), (true, 1_048_576));
    assert_eq!(reload(&addrs), (true, 65_536), "known from before");
}

#[test]
fn the_choice_moves_on_when_the_probe_finds_the_broker_dead() {
    let now = Instant::now();
    let mut roster = roster(now);
    roster.handle_info(A, info(), now);
    roster.handle_info(B, info(), now);
    // Its trunks may have left it already, and will not ask again.
    roster.handle_failure(A, Failure::ConnectionRefused, now);
    assert_eq!(roster.current(), B);
}

#[test]
fn a_lame_duck_with_links_stays_one_whatever_comes_late() {
    let now = Instant::now();
    let mut roster = roster(now);
    roster.handle_info(A, info(), now);
    roster.broker_mut(A).liveness.attach(TrunkId(1));
    roster.handle_lame_duck(A, now);
    roster.handle_info(A, info(), now);
    assert_eq!(roster.broker(A).health(), Health::LameDuck);
    // It takes no dials, and answers on the links that it has.
    roster.handle_trunk_failure(A, Failure::ConnectionRefused, now);
    assert_eq!(roster.broker(A).health(), Health::Down);
    roster.handle_answer(A, now);
    assert_eq!(roster.broker(A).health(), Health::LameDuck);
    roster.broker_mut(A).liveness.detach(TrunkId(1));
    roster.handle_info(A, info(), now);
    assert_eq!(roster.broker(A).health(), Health::Up);
}

#[test]
fn many_trunks_that_find_a_broker_dead_dont_put_off_its_probe() {
    let now = Instant::now();
    let mut roster = roster(now);
    roster.handle_info(A, info(), now);
    roster.handle_trunk_failure(A, Failure::ConnectionRefused, now);
    let probe = roster.poll_timeout();
    for _ in 0..1_000 {
        roster.handle_trunk_failure(A, Failure::ConnectionRefused, now);
        roster.handle_trunk_failure(A, Failure::Silent, now);
    }
    assert_eq!(roster.poll_timeout(), probe);
    assert_eq!(roster.broker(A).failures(), 1);
    assert!(roster.is_frozen(A), "one found it silent");
}

#[test]
fn when_the_last_broker_dies_the_others_are_asked_at_once() {
    let now = Instant::now();
    let mut roster = roster(now);
    roster.handle_info(A, info(), now);
    roster.attach(A, TrunkId(1));
    let mut later = now;
    for _ in 0..10 {
        roster.handle_failure(B, Failure::ConnectionRefused, later);
        later = roster.poll_timeout().expect("a probe is planned");
    }
    roster.handle_failure(B, Failure::ConnectionRefused, later);
    let soon = later + Duration::from_secs(1);
    assert_eq!(roster.poll_probe(soon), None, "others live: every 10 s");
    roster.detach(A, TrunkId(1), soon);
    roster.handle_failure(A, Failure::ConnectionRefused, soon);
    assert_eq!(roster.poll_probe(soon), Some(B));
}

#[test]
fn a_trunk_that_is_refused_goes_elsewhere_alone() {
    let now = Instant::now();
    let mut roster = roster(now);
    assert_eq!(roster.pick(ID, &[A], now), Pick::Dial(B));
    assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
    assert_eq!(roster.pick(ID, &[A, B], now), Pick::Wait);
}

#[test]
fn a_dead_broker_is_left_to_the_probe() {
    let now = Instant::now();
    let mut roster = roster(now);
    for id in [A, B] {
        assert_eq!(roster.poll_probe(now), Some(id));
        roster.handle_failure(id, Failure::ConnectionRefused, now);
    }
    assert_eq!(roster.pick(ID, &[], now), Pick::Wait);
    assert_eq!(roster.poll_probe(now), None);
    let due = roster.poll_timeout().expect("a probe is planned");
    assert!(due <= now + Duration::from_millis(100));
    assert!(roster.poll_probe(due).is_some());
}

#[test]
fn a_flapping_broker_is_passed_over_only_while_another_lives() {
    let now = Instant::now();
    let mut roster = roster(now);
    roster.handle_info(A, info(), now);
    roster.handle_failure(A, Failure::ConnectionRefused, now);
    roster.handle_info(A, info(), now);
    roster.handle_info(B, info(), now);
    assert_eq!(roster.pick(ID, &[], now), Pick::Dial(B));
    roster.handle_failure(B, Failure::ConnectionRefused, now);
    assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
}

#[test]
fn dials_in_flight_are_bounded() {
    let now = Instant::now();
    let mut roster = roster(now);
    for _ in 0..roster.broker(A).dial_limit {
        assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
    }
    assert_eq!(roster.pick(ID, &[], now), Pick::Queue);
    roster.dial_ended(A);
    assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
}

#[test]
fn hosts_spread_over_brokers_by_name() {
    let now = Instant::now();
    let addrs = ["10.0.0.1", "10.0.0.2"].map(|host| BrokerAddr {
        host: host.to_owned(),
        port: 4222,
        tls: false,
    });
    let first = |rotation| {
        Roster::new(
            &addrs,
            Placement::Spread {
                rotation,
                back: None,
            },
            Duration::from_secs(3),
            1,
            now,
        )
        .current()
    };
    assert_eq!((first(0), first(1)), (A, B));
}

#[test]
fn a_removed_broker_is_named_and_never_picked() {
    let now = Instant::now();
    let mut roster = roster(now);
    let only_b = [roster.broker(B).addr().clone()];
    assert_eq!(
        roster.configure(&only_b, Placement::default(), Duration::from_secs(3), now),
        [A]
    );
    assert_eq!(roster.pick(ID, &[], now), Pick::Dial(B));
    assert_eq!(roster.pick(ID, &[B], now), Pick::Wait);
}

#[test]
fn an_independent_broker_that_froze_is_back_a_second_after_its_first_word() {
    let now = Instant::now();
    let mut roster = roster(now);
    let addrs = [A, B].map(|id| roster.broker(id).addr().clone());
    let second = Duration::from_secs(1);
    let placement = Placement::First(Some(10 * second));
    roster.configure(&addrs, placement, 3 * second, now);
    for id in [A, B] {
        roster.handle_info(id, info_of(id), now);
    }
    roster.handle_failure(A, Failure::Silent, now);
    assert_eq!(roster.current(), B);
    roster.handle_info(A, info_of(A), now);
    assert_eq!(roster.broker(A).health(), Health::Down);
    assert_eq!(roster.broker(A).probe_due(), Some(now + second));
    roster.handle_info(A, info_of(A), now + second);
    assert_eq!(roster.broker(A).health(), Health::Up);
    assert_eq!(roster.current(), B, "it gets publishes later");
    let back = now + 11 * second;
    roster.poll_probe(back);
    assert_eq!(roster.current(), A);

    roster.handle_failure(A, Failure::Silent, back);
    roster.handle_failure(A, Failure::ConnectionRefused, back);
    roster.handle_info(A, info_of(A), back);
    assert_eq!(roster.broker(A).health(), Health::Up, "another process");
}

#[test]
fn a_broker_that_never_introduced_itself_is_taken_for_another() {
    let now = Instant::now();
    let mut roster = roster(now);
    assert!(roster.info_like(B).is_none());
    roster.handle_info(A, info(), now);
    assert_eq!(
        roster.info_like(B).map(|info| info.version.as_str()),
        Some("2.9.10")
    );
}

#[test]
fn the_broker_that_most_hosts_reach_is_chosen() {
    let now = Instant::now();
    let mut roster = roster(now);
    let addrs = [A, B].map(|id| roster.broker(id).addr().clone());
    let placement = Placement::First(None);
    roster.configure(&addrs, placement, Duration::from_secs(3), now);
    for id in [A, B] {
        roster.handle_info(id, info_of(id), now);
    }
    assert_eq!(roster.current(), A);
    roster.weigh(A, 1);
    roster.review(now);
    assert_eq!(roster.current(), B);
    roster.weigh(B, 1);
    roster.review(now);
    assert_eq!(roster.current(), B, "no reason to change");
    roster.weigh(A, 0);
    roster.review(now);
    assert_eq!(roster.current(), A);
}

#[test]
fn credentials_are_asked_for_until_a_broker_says_otherwise() {
    let now = Instant::now();
    let mut roster = roster(now);
    assert!(roster.auth_required());
    roster.handle_info(A, info(), now);
    assert!(!roster.auth_required());
    assert!(!roster.no_auth_anywhere());
    roster.handle_info(B, info(), now);
    assert!(roster.no_auth_anywhere());
}

#[test]
fn dials_in_flight_follow_the_time_that_verdicts_take() {
    let mut now = Instant::now();
    let mut roster = roster(now);
    roster.handle_info(A, info(), now);
    let limit = |roster: &Roster| roster.broker(A).dial_limit;
    let mut verdict = |roster: &mut Roster, accepted, took| {
        now += Duration::from_secs(1);
        if accepted {
            roster.note_acceptance(A, ID, Duration::from_millis(took), now);
        } else {
            roster.note_refusal(A, now);
        }
    };
    let first = limit(&roster);
    for _ in 0..1_000 {
        verdict(&mut roster, true, 1);
    }
    assert_eq!(limit(&roster), 128);
    verdict(&mut roster, false, 900);
    assert_eq!(limit(&roster), 128, "some take their time to refuse");
    for _ in 0..20 {
        verdict(&mut roster, true, 900);
    }
    assert_eq!(limit(&roster), 8);
    let other = ServerInfo {
        server_id: "another process".to_owned(),
        ..info()
    };
    roster.handle_info(A, other, now);
    assert_eq!(limit(&roster), first);
}

#[test]
fn a_broker_that_requires_tls_or_is_natsmux_itself_is_down() {
    let now = Instant::now();
    let mut roster = roster(now);
    roster.know_own_id("NMX1");
    let tls = ServerInfo {
        tls_required: true,
        ..info()
    };
    let itself = ServerInfo {
        server_id: "NMX1".to_owned(),
        ..info()
    };
    let through = ServerInfo {
        server_id: "NMX2".to_owned(),
        natsmux_via: "NMX3,NMX1".to_owned(),
        ..info()
    };
    for (said, failure) in [
        (tls, Failure::TlsRequired),
        (itself, Failure::Loop),
        (through, Failure::Loop),
    ] {
        roster.handle_info(A, info(), now);
        assert!(roster.serves(A));
        roster.handle_info(A, said, now);
        assert!(!roster.serves(A) && !roster.is_alive());
        assert_eq!(roster.broker(A).last_failure(), Some(failure));
    }
}

#[test]
fn a_broker_that_is_full_lives_and_serves_nobody() {
    let now = Instant::now();
    let mut roster = roster(now);
    roster.handle_info(A, info(), now);
    roster.handle_failure(B, Failure::ConnectionRefused, now);
    roster.turn_away(A, None, Failure::Full, b"full", now);
    assert!(!roster.is_alive() && roster.takes_newcomers());
    assert_eq!(roster.pick(ID, &[B], now), Pick::Wait);
    let (trouble, all_full) = roster.turned_away(ID).map_or_else(
        || panic!("B was never heard of"),
        |(trouble, all_full)| (trouble.text.clone(), all_full),
    );
    assert_eq!((&*trouble, all_full), (&b"full"[..], true));
    let later = roster.poll_timeout().expect("it is asked again") + Duration::from_secs(1);
    roster.poll_probe(later);
    assert_eq!(roster.pick(ID, &[B], later), Pick::Dial(A));
    assert_eq!(roster.pick(ID, &[B], later), Pick::Wait, "one at a time");
    roster.note_acceptance(A, ID, Duration::ZERO, later);
    assert!(roster.is_alive());
}

#[test]
fn each_address_of_a_name_is_a_broker() {
    let now = Instant::now();
    let addr = BrokerAddr {
        host: "nats.example".to_owned(),
        port: 4222,
        tls: false,
    };
    let spread = Placement::default();
    let mut roster = Roster::new(
        std::slice::from_ref(&addr),
        spread,
        Duration::from_secs(3),
        1,
        now,
    );
    assert_eq!(roster.names(), std::slice::from_ref(&addr));
    assert_eq!(roster.pick(ID, &[], now), Pick::Wait, "no address yet");
    assert_eq!(roster.poll_probe(now), None);
    let slow = roster.name_failed(&addr, Failure::NameTimeout, now);
    assert_eq!(slow, Some(Failure::NameTimeout));
    assert_eq!(
        roster.name_failed(&addr, Failure::NameTimeout, now),
        None,
        "said once"
    );
    let ips = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
    assert!(roster.set_addresses(&addr, &ips[..2], now));
    assert!(
        !roster.set_addresses(&addr, &[ips[1], ips[0]], now),
        "the same"
    );
    let labels: Vec<_> = roster.brokers().map(|(_, one)| one.label()).collect();
    let expected = [
        "nats.example:4222 (10.0.0.1)",
        "nats.example:4222 (10.0.0.2)",
    ];
    assert_eq!(labels, expected);
    for id in [A, B] {
        roster.handle_info(id, info_of(id), now);
    }
    assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
    roster.handle_failure(A, Failure::Silent, now);
    assert_eq!(
        roster.pick(ID, &[], now),
        Pick::Dial(B),
        "the other address"
    );
    // The first has gone for good, and another one has come.
    assert!(roster.set_addresses(&addr, &ips[1..], now));
    let found: Vec<_> = roster.brokers().map(|(_, one)| one.ips()[0]).collect();
    assert_eq!(found, ips[1..]);
    // One that lives is left once it isn't named for a while.
    for times in 1..=UNNAMED_MOST {
        roster.set_addresses(&addr, &ips[2..], now);
        assert_eq!(roster.broker(B).is_removed(), times == UNNAMED_MOST);
    }
}

#[test]
fn a_host_of_both_families_is_one_broker() {
    let [v4, v6]: [IpAddr; 2] = [[127, 0, 0, 1].into(), [0, 0, 0, 0, 0, 0, 0, 1].into()];
    assert_eq!(addresses(&[v4, v6]).len(), 1);
    assert_eq!(addresses(&[v4, [127, 0, 0, 2].into()]).len(), 2);
    assert_eq!(addresses(&[v4, [127, 0, 0, 2].into(), v6]).len(), 3);
}

/// Between probes.
const INTERVAL: Duration = Duration::from_secs(3);

/// A roster of independent brokers, and their addresses.
fn independent(addrs: [&str; 2], now: Instant) -> (Roster, [BrokerAddr; 2]) {
    let addrs = addrs.map(|addr| addr.parse().expect("an address"));
    let roster = Roster::new(&addrs, Placement::First(None), INTERVAL, 1, now);
    (roster, addrs)
}

/// Nor by a dial, which the machine's tests show.
#[test]
fn a_broker_that_throttles_a_probe_is_not_down_for_it() {
    let now = Instant::now();
    let (mut roster, _) = independent(["tls://10.0.0.1", "tls://10.0.0.2"], now);
    let info = ServerInfo {
        tls_required: true,
        ..ServerInfo::default()
    };
    roster.handle_info(A, info, now);
    roster.handle_failure(A, Failure::Throttled, now);
    assert!(roster.broker(A).health() == Health::Up && roster.is_alive());
    assert_eq!(roster.broker(A).last_failure(), Some(Failure::Throttled));
}

#[test]
fn handshakes_with_a_broker_are_few_at_once() {
    let now = Instant::now();
    let (mut roster, _) = independent(["tls://10.0.0.1", "10.0.0.2"], now);
    let (secured, plain) = (BrokerId(0), BrokerId(1));
    assert_eq!(roster.tls_mode(secured), TlsMode::Required);
    assert_eq!(roster.tls_mode(plain), TlsMode::Off);
    for _ in 0..HANDSHAKES_MOST {
        assert!(roster.has_turn(secured));
        roster.pick_all(0, &[], now);
    }
    assert!(!roster.has_turn(secured) && roster.has_turn(plain));
}

#[test]
fn after_a_renewal_each_broker_is_another_one() {
    let now = Instant::now();
    let (mut roster, addrs) = independent(["tls://10.0.0.1", "tls://10.0.0.2"], now);
    roster.liveness_mut(BrokerId(0)).attach(TrunkId(7));
    roster.renew();
    let removed = roster.configure(&addrs, Placement::First(None), INTERVAL, now);
    assert!(removed.contains(&BrokerId(0)), "{removed:?}");
    assert!(
        roster.broker(BrokerId(0)).is_removed(),
        "its link is left for another"
    );
    let ids: Vec<BrokerId> = roster.brokers().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 2);
    assert!(!ids.contains(&BrokerId(0)), "{ids:?}");
    assert_eq!(roster.broker(ids[0]).addr(), &addrs[0]);
}

/// A roster whose brokers are up.
fn roster_up(now: Instant) -> Roster {
    let mut roster = roster(now);
    roster.handle_info(A, info_of(A), now);
    roster.handle_info(B, info_of(B), now);
    roster
}

const NAME_A: &str = "10.0.0.1:4222";
const NAME_B: &str = "10.0.0.2:4222";

#[test]
fn a_drained_broker_is_left_and_used_where_no_other_can_be() {
    let now = Instant::now();
    let mut roster = roster_up(now);
    roster.drain(NAME_A, now).expect("B is up");
    assert_eq!(
        (roster.current(), roster.must_leave(A)),
        (B, Some(Departure::Drained))
    );
    assert_eq!(roster.pick(ID, &[], now), Pick::Dial(B));
    assert_eq!(
        roster.drain(NAME_B, now),
        Err(SteeringError::Alone(NAME_B.to_owned()))
    );
    roster.handle_trunk_failure(B, Failure::ConnectionRefused, now);
    assert_eq!((roster.current(), roster.must_leave(A)), (A, None));
    assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
    assert!(roster.take_steered());
    roster.handle_info(B, info_of(B), now);
    assert!(roster.take_steered(), "it may be left again");
    assert_eq!(roster.must_leave(A), Some(Departure::Drained));
    assert_eq!(roster.undrain(NAME_A, now), Ok(true));
    assert_eq!(roster.undrain(NAME_A, now), Ok(false));
    assert_eq!(roster.must_leave(A), None);
}

#[test]
fn a_broker_stays_drained_over_a_reload_that_keeps_it() {
    let now = Instant::now();
    let mut roster = roster_up(now);
    roster.drain(NAME_A, now).expect("B is up");
    let interval = Duration::from_secs(3);
    let placement = roster.placement;
    let both = roster.addrs.clone();
    // As with other certificates: all brokers are others then.
    roster.renew();
    roster.configure(&both, placement, interval, now);
    let drained = |roster: &Roster| {
        let brokers = roster.brokers().map(|(id, broker)| (broker.label(), id));
        let mut brokers = brokers.filter(|(label, _)| label == NAME_A);
        brokers.any(|(_, id)| roster.is_drained(id))
    };
    assert!(drained(&roster));
    roster.configure(&both[1..], placement, interval, now);
    roster.configure(&both, placement, interval, now);
    assert!(!drained(&roster), "it is another one");
}

#[test]
fn a_move_ends_with_its_broker_or_after_a_while() {
    let now = Instant::now();
    let mut roster = roster_up(now);
    assert!(matches!(
        roster.steer(Some("10.0.0.9:4222"), now),
        Err(SteeringError::Unknown(..))
    ));
    assert_eq!(roster.steer(None, now), Ok(B));
    assert_eq!((roster.current(), roster.wanted()), (B, Some(B)));
    assert_eq!(roster.must_leave(A), Some(Departure::Moved));
    let due = roster.steering_due().expect("an end");
    roster.poll_probe(due);
    assert_eq!((roster.current(), roster.must_leave(A)), (B, None));
    roster.steer(Some(NAME_A), now).expect("up");
    roster.handle_trunk_failure(A, Failure::ConnectionRefused, now);
    assert_eq!((roster.current(), roster.must_leave(B)), (B, None));
    let down = roster.steer(Some(NAME_A), now).expect_err("down");
    assert_eq!(
        down.to_string(),
        format!("{NAME_A} is down (connection_refused)")
    );
}

#[test]
fn a_host_goes_back_to_its_own_broker_unless_it_was_moved() {
    let mut now = Instant::now();
    let delay = Duration::from_secs(10);
    let mut roster = roster_up(now);
    roster.placement = Placement::Spread {
        rotation: 0,
        back: Some(delay),
    };
    now += Duration::from_secs(60);
    roster.handle_trunk_failure(A, Failure::ConnectionRefused, now);
    roster.handle_info(A, info_of(A), now);
    assert_eq!(roster.current(), B);
    let due = roster.steering_due().expect("well by then");
    assert!(due >= now + delay && due <= now + delay.mul_f64(1.2));
    roster.poll_probe(due - Duration::from_millis(1));
    assert_eq!(roster.current(), B);
    roster.poll_probe(due);
    assert_eq!(
        (roster.current(), roster.must_leave(B)),
        (A, Some(Departure::Rebalanced))
    );
    roster.steer(Some(NAME_B), due).expect("up");
    roster.poll_probe(due + 10 * delay);
    assert_eq!(roster.current(), B, "an operator has said so");
}

#[test]
fn a_broker_that_refuses_some_stays_the_one_that_all_move_to() {
    let now = Instant::now();
    let mut roster = roster_up(now);
    roster.steer(Some(NAME_B), now).expect("up");
    roster.turn_away(B, None, Failure::Full, b"maximum connections exceeded", now);
    assert_eq!((roster.current(), roster.wanted()), (B, Some(B)));
    assert_eq!(roster.must_leave(A), Some(Departure::Moved));
    let due = now + Duration::from_secs(60);
    roster.poll_probe(due);
    assert_eq!(roster.wanted(), None);
}

#[test]
fn a_drained_address_of_a_name_is_undrained_though_it_is_gone() {
    let now = Instant::now();
    let name = |host: &str| BrokerAddr {
        host: host.to_owned(),
        port: 4222,
        tls: false,
    };
    let mut roster = roster_up(now);
    let addrs = [name("nats"), name("10.0.0.2")];
    let placement = roster.placement;
    roster.configure(&addrs, placement, Duration::from_secs(3), now);
    let ips = |last: &[u8]| -> Vec<IpAddr> {
        last.iter()
            .map(|last| IpAddr::from([10, 0, 1, *last]))
            .collect()
    };
    roster.set_addresses(&addrs[0], &ips(&[1, 2]), now);
    let drained = |roster: &Roster| -> Vec<String> {
        let brokers = roster.brokers();
        let drained = brokers.filter(|(id, _)| roster.is_drained(*id));
        drained.map(|(_, broker)| broker.label()).collect()
    };
    let one = "nats:4222 (10.0.1.1)";
    roster.drain(one, now).expect("another one is up");
    assert_eq!(drained(&roster), [one]);
    for _ in 0..4 {
        roster.set_addresses(&addrs[0], &ips(&[2, 3]), now);
    }
    assert!(drained(&roster).is_empty());
    assert_eq!(roster.undrain(one, now), Ok(true));
    roster.drain("nats:4222", now).expect("another one is up");
    roster.set_addresses(&addrs[0], &ips(&[2, 3, 4]), now);
    assert_eq!(drained(&roster).len(), 3, "later addresses too");
    assert_eq!(roster.undrain("nats:4222", now), Ok(true));
    assert!(drained(&roster).is_empty());
    assert!(roster.undrain("other:4222", now).is_err());
}

#[test]
fn a_broker_with_links_is_asked_what_it_offers_and_nothing_else() {
    let now = Instant::now();
    let mut roster = roster_up(now);
    let trunk = TrunkId(1);
    roster.attach(A, trunk);
    let after = |seconds| now + Duration::from_secs(seconds);
    let looks_at = |roster: &mut Roster, at| {
        let looked = std::iter::from_fn(|| roster.poll_probe(at));
        looked.take(2).any(|id| id == A)
    };
    assert!(!looks_at(&mut roster, after(59)), "links tell how it is");
    assert!(looks_at(&mut roster, after(60)));
    // It says nothing of how the broker is if that can't be asked.
    roster.handle_probe(A, Err(Failure::ConnectTimeout), after(61));
    assert_eq!(roster.broker(A).health(), Health::Up);
    assert!(!looks_at(&mut roster, after(120)));
    assert!(looks_at(&mut roster, after(121)));
    let larger = |id: &str| ServerInfo {
        server_id: id.to_owned(),
        max_payload: 2 << 20,
        ..info()
    };
    // Another process has the name.
    roster.handle_probe(A, Ok(larger("other")), after(121));
    assert_eq!(roster.take_revised(), []);
    assert!(looks_at(&mut roster, after(181)));
    roster.handle_probe(A, Ok(larger(&format!("{A:?}"))), after(181));
    assert_eq!(roster.take_revised(), [trunk]);
    assert_eq!(roster.take_revised(), [], "once");
    // It says something else each time: links don't move for that more than once a minute.
    let told = (182..302).filter(|at| {
        let info = ServerInfo {
            max_payload: 1 << (20 + at % 2),
            ..info_of(A)
        };
        roster.handle_info(A, info, after(*at));
        !roster.take_revised().is_empty()
    });
    assert_eq!(told.collect::<Vec<u64>>(), [242]);
    // A look on its way keeps nobody from asking once no link is left.
    assert!(looks_at(&mut roster, after(361)));
    assert!(!looks_at(&mut roster, after(600)));
    roster.detach(A, trunk, after(600));
    assert!(looks_at(&mut roster, after(600)));
}
