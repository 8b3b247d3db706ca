//! How long a SIGKILL silences a publisher at its subscribers.

use std::time::Duration;

use crate::load::Load;
use crate::moves::wait_moved;
use crate::part::{Part, Publishes};
use crate::rig::{Delivery, KNOWN, Rig, SAFE, config, natsmux, pause};
use crate::size::{Dice, figures, number, percentile, spread, turn};
use crate::support::{Cluster, Version};

const FED_EVERY: Duration = Duration::from_millis(2);
const SUBSCRIBERS: usize = 10;
/// Without the compiler's help, and on a machine that does something else, natsmux takes longer.
const GAP_MOST_US: u64 = if cfg!(debug_assertions) {
    100_000
} else {
    50_000
};

#[test]
fn a_kill_silences_nobody_for_long() {
    let _turn = turn();
    let kills = number("gap_kills", [8, 50, 50]);
    let idle = number("gap_idle", [20, 90, 90]);
    let cluster = Cluster::start(Version::V215, KNOWN + 1);
    let natsmux = natsmux(config(
        &cluster.urls()[..KNOWN],
        Delivery::AtMostOnce,
        "",
        "",
    ));
    let parts = one_to_many(&natsmux.address(), idle);
    let mut rig = Rig::with(cluster, natsmux, parts);
    rig.load.publish(true);
    rig.load.wait_flow("at the start");
    let mut dice = Dice::new(5);
    let mut gaps = Vec::new();
    for round in 1..=kills {
        pause(200 + dice.roll(100));
        let victim = rig.active();
        let from = rig.load.now();
        rig.cluster.broker(victim).kill();
        rig.load.wait_flow(&format!("after kill {round}"));
        pause(100);
        let to = rig.load.now();
        gaps.extend((1..=SUBSCRIBERS).map(|part| longest_gap(&rig.load, part, from, to)));
        rig.cluster.restart(victim);
    }
    let outcome = rig.outcome();
    figures(&format!(
        "gap at {kills} kills, {SUBSCRIBERS} subscribers fed every {FED_EVERY:?}, {idle} idle: {}; {outcome}",
        spread(&mut gaps)
    ));
    outcome.check_sum();
    outcome.check_order();
    assert!(percentile(&mut gaps, 99) < GAP_MOST_US, "p99 of the gap");
}

/// Those that another connection feeds hear of a planned move nothing at all; what goes through
/// natsmux waits until the old broker's messages are everywhere.
#[test]
fn a_planned_move_silences_nobody() {
    let _turn = turn();
    let moves = number("gap_moves", [6, 50, 50]);
    for is_direct in [true, false] {
        let cluster = Cluster::start(Version::V215, KNOWN + 1);
        let urls = cluster.urls();
        let text = |only: usize| config(&urls[only..=only], Delivery::AtMostOnce, "", "");
        let natsmux = natsmux(text(0));
        let mut parts = one_to_many(&natsmux.address(), 10);
        if is_direct {
            parts[0].address = cluster.brokers()[SAFE].address();
        }
        let mut rig = Rig::with(cluster, natsmux, parts);
        rig.load.publish(true);
        rig.load.wait_flow("at the start");
        let mut gaps = Vec::new();
        for round in 1..=moves {
            let from = rig.load.now();
            rig.natsmux
                .rewrite_config(&text(usize::from(round % 2 == 1)));
            rig.natsmux.sighup();
            wait_moved(&rig.natsmux, round);
            pause(100);
            let to = rig.load.now();
            gaps.extend((1..=SUBSCRIBERS).map(|part| longest_gap(&rig.load, part, from, to)));
        }
        let outcome = rig.outcome_beside(is_direct.then_some(0));
        figures(&format!(
            "gap at {moves} moves, fed every {FED_EVERY:?} {}: {}; {outcome}",
            if is_direct {
                "directly"
            } else {
                "through natsmux"
            },
            spread(&mut gaps)
        ));
        outcome.check_sum();
        outcome.check_order();
        assert_eq!(outcome.subscribers.missing, 0);
        assert!(percentile(&mut gaps, 99) < GAP_MOST_US, "p99 of the gap");
    }
}

/// A publisher, those it feeds, and some that get nothing.
fn one_to_many(address: &str, idle: u64) -> Vec<Part> {
    let listener = Part {
        address: address.to_owned(),
        subjects: vec!["load.0".to_owned()],
        expects: vec![0],
        ..Part::default()
    };
    let silent = Part {
        subjects: vec!["elsewhere".to_owned()],
        expects: Vec::new(),
        ..listener.clone()
    };
    let publisher = Part {
        publishes: Some(Publishes {
            subject: "load.0".to_owned(),
            interval: FED_EVERY,
            burst: 1,
            size: 100,
        }),
        ..silent.clone()
    };
    let mut parts = vec![publisher];
    parts.extend(vec![listener; SUBSCRIBERS]);
    parts.extend((0..idle).map(|_| silent.clone()));
    parts
}

/// The longest silence that touches `from` to `to`, in microseconds.
fn longest_gap(load: &Load, part: usize, from: u64, to: u64) -> u64 {
    load.with_track(part, |track| {
        let gaps = track.streams.get(&0).map_or(&[][..], |s| &s.gaps);
        let touching = gaps.iter().filter(|gap| gap.to > from && gap.from < to);
        touching.map(|gap| gap.to - gap.from).max().unwrap_or(0)
    })
}
