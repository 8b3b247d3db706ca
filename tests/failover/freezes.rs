//! Brokers that freeze, and thaw later: connections stay open, nothing is answered.

use std::time::Duration;

use crate::load::Load;
use crate::part::{Part, Publishes};
use crate::rig::{Delivery, KNOWN, Rig, SAFE, Transport, all_up, config, natsmux, pause};
use crate::size::{Dice, figures, number, percentile, spread, turn};
use crate::support::{Cluster, PATIENCE, Version};

const LEFT_WITHIN_US: u64 = 3_000_000;

#[test]
fn a_frozen_broker_is_left_within_3_s_while_components_publish() {
    publishing(&Transport::plain(), Delivery::AtMostOnce, [3, 20, 20]);
}

#[test]
fn a_frozen_broker_that_speaks_tls_is_left_within_3_s() {
    publishing(&Transport::tls(), Delivery::AtMostOnce, [2, 20, 20]);
}

#[test]
fn freezes_lose_nothing_with_at_least_once() {
    publishing(&Transport::plain(), Delivery::AtLeastOnce, [1, 20, 20]);
}

#[test]
fn a_frozen_broker_to_which_natsmux_signs_is_left_within_3_s() {
    publishing(&Transport::signed(), Delivery::AtMostOnce, [1, 20, 20]);
}

fn publishing(transport: &Transport, delivery: Delivery, freezes: [u64; 3]) {
    let _turn = turn();
    let freezes = number("freezes", freezes);
    let rate = number("rate", [1_000, 5_000, 5_000]);
    let sessions = number("sessions", [20, 100, 100]);
    let mut rig = Rig::ring_over(transport, Version::V215, delivery, sessions, rate);
    rig.load.publish(true);
    rig.load.wait_flow("at the start");
    transport.assert_signed(&rig.cluster.brokers()[rig.active()]);
    let mut dice = Dice::new(2);
    let (mut silences, mut worst_doubt) = (Vec::new(), 0);
    for round in 1..=freezes {
        pause(100 + dice.roll(100));
        let doubt = rig.natsmux.counter("in_doubt");
        let victim = rig.active();
        rig.cluster.broker(victim).freeze();
        silences.push(rig.load.first_after(rig.observer));
        rig.load.wait_flow(&format!("after freeze {round}"));
        worst_doubt = worst_doubt.max(rig.natsmux.counter("in_doubt") - doubt);
        pause(dice.roll(300));
        rig.cluster.broker(victim).thaw();
        rig.wait_up();
    }
    let outcome = rig.outcome();
    figures(&format!(
        "{freezes} freezes while publishing, {transport}, {delivery}, {rate}/s over {sessions}: next broker \
         after {}; worst doubt {worst_doubt}; {outcome}",
        spread(&mut silences)
    ));
    outcome.check_sum();
    assert!(percentile(&mut silences, 99) < LEFT_WITHIN_US, "R9");
    match delivery {
        Delivery::AtMostOnce => {
            // R5: only what is in doubt may be missing, or late out of a thawed broker.
            let doubt = outcome.count("in_doubt");
            assert_eq!(outcome.observer.duplicates, 0, "duplicates");
            assert_eq!(outcome.subscribers.duplicates, 0, "duplicates");
            let observer = outcome.observer.missing + outcome.observer.late;
            assert!(observer <= doubt, "R5: {observer} missing or late");
            let late = outcome.subscribers.late;
            assert!(late <= doubt, "R5: {late} late at subscribers");
            assert!(worst_doubt <= rate * 3 / 10, "R5: in doubt after a freeze");
        }
        Delivery::AtLeastOnce => {
            assert_eq!(outcome.observer.missing, 0, "missing");
            assert_eq!(outcome.count("in_doubt"), 0, "nothing is left in doubt");
        }
    }
}

#[test]
fn a_frozen_broker_is_left_within_3_s_while_components_are_idle() {
    let _turn = turn();
    let freezes = number("freezes", [3, 20, 20]);
    let listeners = number("sessions", [20, 100, 100]);
    let mut cluster = Cluster::start(Version::V215, KNOWN + 1);
    let urls = &cluster.urls()[..KNOWN];
    let natsmux = natsmux(config(urls, Delivery::AtMostOnce, "", ""));
    let load = Load::start(fed_from(
        &cluster.brokers()[SAFE].address(),
        &natsmux.address(),
        listeners,
    ));
    load.publish(true);
    load.wait_flow("at the start");
    let mut dice = Dice::new(3);
    let mut silences = Vec::new();
    for round in 1..=freezes {
        // Anywhere between two of the idle sentinel's fences.
        pause(600 + dice.roll(500));
        let current = natsmux.current_broker();
        let victim = current.and_then(|current| cluster.index_of(&current));
        let victim = victim.expect("a broker in use");
        cluster.broker(victim).freeze();
        silences.push(load.first_after(1));
        load.wait_flow(&format!("after freeze {round}"));
        cluster.broker(victim).thaw();
        natsmux.wait_varz("both brokers to be up", PATIENCE, all_up);
    }
    load.settle();
    let verdict = load.verdict(1..=usize::try_from(listeners).expect("few"));
    figures(&format!(
        "{freezes} freezes while idle, {listeners} listeners: next broker after {}; doubles {}, late {}",
        spread(&mut silences),
        verdict.duplicates,
        verdict.late
    ));
    load.check_faults();
    assert_eq!((verdict.duplicates, verdict.late), (0, 0));
    assert!(percentile(&mut silences, 99) < LEFT_WITHIN_US, "R9");
}

/// Listeners behind natsmux, fed by one publisher at a broker that natsmux doesn't know.
fn fed_from(broker: &str, natsmux: &str, listeners: u64) -> Vec<Part> {
    let publisher = Part {
        address: broker.to_owned(),
        publishes: Some(Publishes {
            subject: "load.0".to_owned(),
            interval: Duration::from_millis(5),
            burst: 1,
            size: 100,
        }),
        ..Part::default()
    };
    let listener = Part {
        address: natsmux.to_owned(),
        subjects: vec!["load.0".to_owned()],
        expects: vec![0],
        ..Part::default()
    };
    let listeners = (0..listeners).map(|_| listener.clone());
    [publisher].into_iter().chain(listeners).collect()
}
