//! Faults of the network: packets that vanish, both ways, one way or here and there, and a
//! name that means another host now. Each in a network namespace of its own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::load::ring;
use crate::namespace::{Names, alone, drop_packets};
use crate::proxy::Proxy;
use crate::rig::{Delivery, KNOWN, Rig, config, natsmux, pause};
use crate::size::{figures, number, percentile, spread, turn};
use crate::support::{Cluster, PATIENCE, RawClient, Version, wait_for};

const LEFT_WITHIN_US: u64 = 3_000_000;
/// R9: a broker that hears nothing may still be heard for a while, and has three times
/// `link_timeout` then.
const DEAF_LEFT_WITHIN_US: u64 = 7_000_000;
/// R12: with one of two brokers out of reach.
const FIRST_PONG_WITHIN: Duration = Duration::from_millis(1_500);
const NAME: &str = "broker.test";

/// Which packets of a broker's connections vanish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hole {
    All,
    ToBroker,
    FromBroker,
}

impl Hole {
    fn rules(self, port: u16) -> Vec<String> {
        let to = format!("tcp dport {port}");
        let from = format!("tcp sport {port}");
        match self {
            Self::All => vec![to, from],
            Self::ToBroker => vec![to],
            Self::FromBroker => vec![from],
        }
    }
}

#[test]
fn a_broker_in_a_black_hole_is_left_within_3_s() {
    alone(
        "network::a_broker_in_a_black_hole_is_left_within_3_s",
        || {
            holes(Hole::All);
        },
    );
}

#[test]
fn a_broker_that_hears_nothing_is_left_within_7_s() {
    alone(
        "network::a_broker_that_hears_nothing_is_left_within_7_s",
        || {
            holes(Hole::ToBroker);
        },
    );
}

#[test]
fn a_broker_that_is_heard_no_more_is_left_within_3_s() {
    alone(
        "network::a_broker_that_is_heard_no_more_is_left_within_3_s",
        || {
            holes(Hole::FromBroker);
        },
    );
}

fn holes(hole: Hole) {
    let _turn = turn();
    let times = number("holes", [2, 10, 10]);
    let rate = number("rate", [1_000, 5_000, 5_000]);
    let sessions = number("sessions", [20, 100, 100]);
    let rig = Rig::ring(Version::V215, Delivery::AtMostOnce, sessions, rate);
    rig.load.publish(true);
    rig.load.wait_flow("at the start");
    let (mut silences, mut worst_doubt, mut first_pong) = (Vec::new(), 0, Duration::ZERO);
    for round in 1..=times {
        pause(150);
        let doubt = rig.natsmux.counter("in_doubt");
        let port = rig.cluster.brokers()[rig.active()].port();
        drop_packets(&hole.rules(port));
        // At a component: what a broker that is heard no more is told still comes to others.
        silences.push(rig.load.first_after(0));
        rig.load.wait_flow(&format!("after hole {round}"));
        worst_doubt = worst_doubt.max(rig.natsmux.counter("in_doubt") - doubt);
        let begun = Instant::now();
        RawClient::ready(&rig.natsmux.address());
        first_pong = first_pong.max(begun.elapsed());
        drop_packets(&[]);
        rig.wait_up();
    }
    let outcome = rig.outcome();
    figures(&format!(
        "{times} holes, {hole:?}, {rate}/s over {sessions}: next broker after {}; worst doubt \
         {worst_doubt}; longest first PONG meanwhile {first_pong:.1?}; {outcome}",
        spread(&mut silences)
    ));
    outcome.check_sum();
    let within = match hole {
        Hole::ToBroker => DEAF_LEFT_WITHIN_US,
        Hole::All | Hole::FromBroker => LEFT_WITHIN_US,
    };
    assert!(percentile(&mut silences, 99) < within, "R9");
    assert!(first_pong < FIRST_PONG_WITHIN, "R12: {first_pong:?}");
    // R5: only what is in doubt may be missing, or late once packets pass again.
    let doubt = outcome.count("in_doubt");
    assert_eq!(outcome.observer.duplicates, 0, "duplicates");
    assert_eq!(outcome.subscribers.duplicates, 0, "duplicates");
    let observer = outcome.observer.missing + outcome.observer.late;
    assert!(observer <= doubt, "R5: {observer} missing or late");
    assert!(worst_doubt <= rate * 3 / 10, "R5: in doubt after a hole");
}

#[test]
fn a_lossy_network_makes_no_broker_look_dead() {
    alone("network::a_lossy_network_makes_no_broker_look_dead", || {
        let _turn = turn();
        let seconds = number("lossy_seconds", [10, 120, 600]);
        let rate = number("rate", [1_000, 5_000, 5_000]);
        let rig = Rig::ring(Version::V215, Delivery::AtMostOnce, 20, rate);
        let ports = rig.cluster.brokers()[..KNOWN].iter().map(|b| b.port());
        let one_in_a_hundred = |port: u16| {
            ["dport", "sport"].map(|side| format!("tcp {side} {port} numgen random mod 100 < 1"))
        };
        drop_packets(&ports.flat_map(one_in_a_hundred).collect::<Vec<_>>());
        rig.load.publish(true);
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            rig.load.check_faults();
            pause(100);
        }
        let outcome = rig.outcome();
        figures(&format!("{seconds} s at 1 % loss, {rate}/s: {outcome}"));
        outcome.check_sum();
        outcome.check_order();
        assert_eq!(outcome.count("failovers"), 0, "R9: false failovers");
        assert_eq!(outcome.observer.missing, 0, "nothing died");
    });
}

#[test]
fn a_name_that_means_another_host_is_asked_again_at_every_dial() {
    alone(
        "network::a_name_that_means_another_host_is_asked_again_at_every_dial",
        || {
            let _turn = turn();
            let names = Names::new();
            names.point(NAME, "127.0.0.1");
            let mut cluster = Cluster::start(Version::V215, KNOWN + 1);
            let url = format!("nats://{NAME}:{}", cluster.brokers()[0].port());
            let natsmux = natsmux(config(&[url], Delivery::AtMostOnce, "", ""));
            let parts = ring(&natsmux.address(), 20, 1_000, 100);
            let port = cluster.brokers()[0].port();
            let successor: SocketAddr = cluster.brokers()[1].address().parse().expect("an address");
            cluster.broker(0).kill();
            wait_for("no broker to be up", PATIENCE, || {
                (!natsmux.is_healthy()).then_some(())
            });
            // The operator moves the name to another host, where a broker listens on that port.
            let _successor = Proxy::at(SocketAddr::from(([127, 0, 0, 9], port)), successor);
            names.point(NAME, "127.0.0.9");
            let moved = Instant::now();
            let rig = Rig::with(cluster, natsmux, parts);
            let took = moved.elapsed();
            rig.load.publish(true);
            rig.load.wait_flow("at the name's new host");
            let outcome = rig.outcome();
            figures(&format!(
                "20 sessions at the name's new host after {took:.1?}: {outcome}"
            ));
            outcome.check_sum();
            assert_eq!(outcome.observer.missing, 0, "nothing died");
        },
    );
}
