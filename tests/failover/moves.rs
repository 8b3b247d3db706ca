//! Planned moves under load: nothing missing, nothing double, nothing late (R41).

use std::fmt::Write;

use crate::load::ring;
use crate::rig::{Delivery, KNOWN, Rig, SAFE, config, natsmux, pause};
use crate::size::{figures, number, turn};
use crate::support::{BrokerOptions, Cluster, Natsmux, PATIENCE, Version, write_secret};

/// One of so many components is connected to a broker directly.
const DIRECT_EACH: usize = 5;

/// Components that publish, each to the next.
pub(crate) fn started(cluster: Cluster, text: String) -> Rig {
    let rate = number("rate", [1_000, 5_000, 5_000]);
    let sessions = number("sessions", [20, 100, 100]);
    started_with(cluster, text, sessions, rate)
}

/// So many of them, that publish so many messages a second in all.
pub(crate) fn started_with(cluster: Cluster, text: String, sessions: u64, rate: u64) -> Rig {
    let natsmux = natsmux(text);
    let mut parts = ring(&natsmux.address(), sessions, rate, 100);
    let safe = cluster.brokers()[SAFE].address();
    for part in parts.iter_mut().step_by(DIRECT_EACH) {
        part.address.clone_from(&safe);
    }
    let rig = Rig::with(cluster, natsmux, parts);
    rig.load.publish(true);
    rig.load.wait_flow("at the start");
    rig
}

/// Changes one thing for the other and back, and waits each time until every trunk has moved.
fn move_in_turn(rig: &mut Rig, rounds: u64, mut change: impl FnMut(&Natsmux, usize)) {
    for round in 1..=rounds {
        change(&rig.natsmux, usize::from(round % 2 == 1));
        rig.natsmux.sighup();
        wait_moved(&rig.natsmux, round);
        pause(100);
    }
}

/// Waits until every trunk has moved once more.
pub(crate) fn wait_moved(natsmux: &Natsmux, round: u64) {
    natsmux.wait_varz("every trunk to have moved", PATIENCE, |varz| {
        let count = |name: &str| varz[name].as_u64().unwrap_or_default();
        count("gapless_moves") >= round * count("trunks")
    });
}

/// What holds for moves of whatever kind.
pub(crate) fn check(rig: &Rig, what: &str, rounds: u64) {
    let outcome = rig.outcome_beside((0..rig.observer).step_by(DIRECT_EACH));
    let moves = outcome.count("gapless_moves");
    figures(&format!("{rounds} times {what}, {moves} moves: {outcome}"));
    outcome.check_sum();
    outcome.check_order();
    assert_eq!(outcome.count("in_doubt"), 0);
    assert_eq!(outcome.observer.missing, 0, "missing at the observer");
    assert_eq!(outcome.subscribers.missing, 0, "missing at subscribers");
    assert_eq!(outcome.count("link_failures"), 0);
    assert_eq!(outcome.count("moves_cut_short"), 0);
    assert_eq!(outcome.count("moves_ambiguous"), 0);
}

/// The brokers of a bus change by reload.
fn between_brokers(version: Version) {
    let _turn = turn();
    let rounds = number("moves", [6, 20, 200]);
    let cluster = Cluster::start(version, KNOWN + 1);
    let urls = cluster.urls();
    let text = |only: usize| config(&urls[only..=only], Delivery::AtMostOnce, "", "");
    let mut rig = started(cluster, text(0));
    let change = |natsmux: &Natsmux, at| natsmux.rewrite_config(&text(at));
    move_in_turn(&mut rig, rounds, change);
    check(&rig, &format!("another broker of {version:?}"), rounds);
}

#[test]
fn moves_between_2_15_brokers_are_noticed_by_nobody() {
    between_brokers(Version::V215);
}

#[test]
fn moves_between_2_9_brokers_are_noticed_by_nobody() {
    between_brokers(Version::V29);
}

/// Credentials change, of which the broker takes both.
fn within_one_broker(version: Version) {
    let _turn = turn();
    let rounds = number("moves", [6, 20, 200]);
    let pairs = [0, 1].map(|_| nkeys::KeyPair::new_user());
    let mut users = String::new();
    for pair in &pairs {
        let _ = write!(users, "{{ nkey: {} }}, ", pair.public_key());
    }
    let options = BrokerOptions {
        extra: format!(
            "authorization {{ users = [ {users} {{ user: anybody, password: x }} ] }}\n\
             no_auth_user: anybody\n"
        ),
        ..BrokerOptions::new(version)
    };
    let cluster = Cluster::with(&options, KNOWN + 1);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let write = |pair: &nkeys::KeyPair| write_secret(file.path(), &pair.seed().expect("a seed"));
    write(&pairs[0]);
    let text = config(&cluster.urls()[..KNOWN], Delivery::AtMostOnce, "", "");
    let identity = format!(
        "[[bus.identity]]\nname = \"load\"\nmatch = {{ anybody = true }}\nnkey_file = {:?}\n",
        file.path()
    );
    let mut rig = started(cluster, text + &identity);
    move_in_turn(&mut rig, rounds, |_, at| write(&pairs[at]));
    check(&rig, &format!("other credentials at {version:?}"), rounds);
}

#[test]
fn moves_within_a_2_15_broker_are_noticed_by_nobody() {
    within_one_broker(Version::V215);
}

#[test]
fn moves_within_a_2_9_broker_are_noticed_by_nobody() {
    within_one_broker(Version::V29);
}
