//! Brokers that leave by themselves, come and go, or never speak.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::load::ring;
use crate::rig::{Delivery, KNOWN, Outcome, Rig, Transport, config, natsmux, pause};
use crate::size::{figures, number, percentile, spread, turn};
use crate::support::{Cluster, Natsmux, NatsmuxOptions, PATIENCE, RawClient, Version, wait_for};

const FIRST_PONG_MOST_US: u64 = 1_500_000;

fn started(cluster: Cluster) -> Rig {
    started_over(&Transport::plain(), cluster)
}

fn started_over(transport: &Transport, cluster: Cluster) -> Rig {
    let rate = number("rate", [1_000, 5_000, 5_000]);
    let sessions = number("sessions", [20, 100, 100]);
    let urls = &cluster.urls()[..KNOWN];
    let text = config(urls, Delivery::AtMostOnce, "", "");
    let natsmux = natsmux(transport.config(text));
    let parts = ring(&natsmux.address(), sessions, rate, 100);
    let rig = Rig::with(cluster, natsmux, parts);
    rig.load.publish(true);
    rig.load.wait_flow("at the start");
    rig
}

/// What holds for a broker that goes away `times`, in whatever way but freezing.
fn check(outcome: &Outcome, times: u64) {
    let rate = number("rate", [1_000, 5_000, 5_000]);
    outcome.check_sum();
    outcome.check_order();
    assert!(outcome.count("in_doubt") <= times * rate / 10, "R5");
    assert!(outcome.unproven() <= times * (rate / 50), "R4");
}

#[test]
fn sigterm_costs_nothing_but_what_is_in_doubt() {
    let _turn = turn();
    let times = number("terms", [3, 20, 20]);
    let mut rig = started(Cluster::start(Version::V215, KNOWN + 1));
    for round in 1..=times {
        pause(150);
        let victim = rig.active();
        rig.cluster.broker(victim).terminate();
        rig.load.wait_flow(&format!("after SIGTERM {round}"));
        rig.cluster.restart(victim);
    }
    let outcome = rig.outcome();
    figures(&format!("{times} SIGTERMs: {outcome}"));
    check(&outcome, times);
}

#[test]
fn a_lame_duck_is_left_within_its_grace_without_duplicates() {
    lame_ducks(&Transport::plain());
}

#[test]
fn a_lame_duck_that_speaks_tls_is_left_within_its_grace() {
    lame_ducks(&Transport::tls());
}

#[test]
fn a_lame_duck_to_which_natsmux_signs_is_left_within_its_grace() {
    lame_ducks(&Transport::signed());
}

fn lame_ducks(transport: &Transport) {
    let _turn = turn();
    let times = number("ducks", [2, 10, 10]);
    let mut options = transport.options(Version::V215);
    // 30 s is the shortest that the broker takes. It closes clients from the grace on.
    options.extra += "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"3s\"";
    let mut rig = started_over(transport, Cluster::with(&options, KNOWN + 1));
    let mut left = Vec::new();
    for round in 1..=times {
        pause(200);
        let duck = rig.active();
        transport.assert_signed(&rig.cluster.brokers()[duck]);
        let signalled = Instant::now();
        rig.cluster.broker(duck).signal(Signal::USR2);
        let what = format!("the lame duck of round {round} to have no client");
        wait_for(&what, PATIENCE, || {
            let varz = rig.cluster.brokers()[duck].monitoring("/varz")?;
            (varz["connections"] == 0).then_some(())
        });
        let microseconds = u64::try_from(signalled.elapsed().as_micros());
        left.push(microseconds.expect("short"));
        rig.load.wait_flow(&format!("after lame duck {round}"));
        rig.cluster.restart(duck);
        rig.wait_calm();
    }
    let outcome = rig.outcome();
    figures(&format!(
        "{times} lame ducks, {transport}, left within {}: {outcome}",
        spread(&mut left)
    ));
    outcome.check_sum();
    outcome.check_order();
    assert!(percentile(&mut left, 100) < 3_000_000, "R19: the grace");
    assert_eq!(outcome.count("in_doubt"), 0, "R19: a planned move");
    assert_eq!(outcome.observer.missing, 0, "R19: a planned move");
}

#[test]
fn a_rolling_restart_costs_nothing_but_what_is_in_doubt() {
    let _turn = turn();
    let rounds = number("rolls", [1, 5, 5]);
    let between = number("roll_seconds", [1, 5, 5]);
    let mut rig = started(Cluster::start(Version::V215, KNOWN + 1));
    for round in 1..=rounds {
        for broker in 0..KNOWN {
            rig.cluster.broker(broker).terminate();
            rig.cluster.restart(broker);
            rig.load.wait_flow(&format!("in roll {round}"));
            thread::sleep(Duration::from_secs(between));
        }
    }
    let outcome = rig.outcome();
    let times = rounds * KNOWN as u64;
    figures(&format!(
        "{times} restarts, one each {between} s: {outcome}"
    ));
    check(&outcome, times);
}

#[test]
fn a_flapping_broker_disturbs_no_session() {
    let _turn = turn();
    let flaps = number("flaps", [8, 50, 50]);
    let mut rig = started(Cluster::start(Version::V215, KNOWN + 1));
    let flapping = rig.active();
    for _ in 0..flaps {
        rig.cluster.broker(flapping).kill();
        pause(200);
        rig.cluster.broker(flapping).restart();
        pause(200);
    }
    rig.load.wait_flow("after flapping");
    rig.cluster.wait_routed();
    let outcome = rig.outcome();
    let failovers = outcome.count("failovers");
    figures(&format!(
        "broker flapped {flaps} times, {failovers} failovers of trunks: {outcome}"
    ));
    check(&outcome, flaps);
}

#[test]
fn a_broker_that_accepts_and_never_speaks_delays_no_first_pong() {
    let _turn = turn();
    let rounds = number("mutes", [3, 10, 10]);
    let mut waits = Vec::new();
    for version in [Version::V215, Version::V29] {
        for mute in 0..KNOWN {
            waits.extend(first_pongs(version, mute, rounds));
        }
    }
    figures(&format!(
        "first PONG with one of two brokers frozen before INFO: {}",
        spread(&mut waits)
    ));
    assert!(percentile(&mut waits, 100) < FIRST_PONG_MOST_US, "R12");
}

/// How long first PONGs take, in microseconds, when natsmux starts while `mute` is frozen.
fn first_pongs(version: Version, mute: usize, rounds: u64) -> Vec<u64> {
    let mut cluster = Cluster::start(version, KNOWN);
    cluster.broker(mute).freeze();
    let mut waits = Vec::new();
    for _ in 0..rounds {
        let natsmux = Natsmux::launch(&NatsmuxOptions {
            brokers: cluster.urls(),
            ..NatsmuxOptions::default()
        });
        wait_for("natsmux to listen", PATIENCE, || {
            std::net::TcpStream::connect(natsmux.http_address()).ok()
        });
        let begun = Instant::now();
        let _component = RawClient::ready(&natsmux.address());
        let microseconds = u64::try_from(begun.elapsed().as_micros());
        waits.push(microseconds.expect("short"));
    }
    cluster.broker(mute).thaw();
    waits
}
