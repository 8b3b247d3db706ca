//! SIGKILLs in a row under load.

use crate::rig::{Delivery, Outcome, Rig, pause};
use crate::size::{Dice, figures, number, turn};
use crate::support::Version;

#[test]
fn kills_in_a_row_cost_nothing_but_what_is_in_doubt() {
    kills(Version::V215, Delivery::AtMostOnce);
}

#[test]
fn kills_in_a_row_of_a_2_9_broker_cost_nothing_but_what_is_in_doubt() {
    kills(Version::V29, Delivery::AtMostOnce);
}

#[test]
fn kills_in_a_row_cost_nothing_with_at_least_once() {
    kills(Version::V215, Delivery::AtLeastOnce);
}

fn kills(version: Version, delivery: Delivery) {
    let _turn = turn();
    let kills = number("kills", [5, 50, 50]);
    let rate = number("rate", [1_000, 5_000, 5_000]);
    let sessions = number("sessions", [20, 100, 100]);
    let mut rig = Rig::ring(version, delivery, sessions, rate);
    rig.load.publish(true);
    rig.load.wait_flow("at the start");
    let mut dice = Dice::new(1);
    let mut worst_doubt = 0;
    for round in 1..=kills {
        pause(100 + dice.roll(50));
        let doubt = rig.natsmux.counter("in_doubt");
        let victim = rig.active();
        rig.cluster.broker(victim).kill();
        rig.load.wait_flow(&format!("after kill {round}"));
        worst_doubt = worst_doubt.max(rig.natsmux.counter("in_doubt") - doubt);
        rig.cluster.restart(victim);
    }
    let outcome = rig.outcome();
    figures(&format!(
        "{kills} kills, {version:?}, {delivery}, {rate}/s over {sessions}: worst doubt {worst_doubt}; {outcome}"
    ));
    check(&outcome, delivery, kills, rate, worst_doubt);
}

fn check(outcome: &Outcome, delivery: Delivery, kills: u64, rate: u64, worst_doubt: u64) {
    outcome.check_sum();
    // R4: what a killed broker had confirmed and queued for its routes and for subscribers dies
    // with it: what it sends in 20 ms, as long as a busy machine may keep it from writing.
    let unproven = kills * (rate / 50);
    match delivery {
        Delivery::AtMostOnce => {
            outcome.check_order();
            assert!(outcome.unproven() <= unproven, "R4: confirmed but missing");
            assert!(worst_doubt <= rate / 10, "R5: in doubt after one kill");
        }
        Delivery::AtLeastOnce => {
            assert!(outcome.observer.missing <= unproven, "R4: missing");
            assert!(outcome.subscribers.missing <= unproven, "R4: missing");
            assert_eq!(outcome.count("in_doubt"), 0, "nothing is left in doubt");
        }
    }
    assert!(outcome.count("failovers") >= kills, "a kill is a failover");
}
