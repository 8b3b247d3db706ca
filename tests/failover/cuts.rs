//! Links that are cut while the brokers live: here every number is exact.

use crate::load::ring;
use crate::proxy::{End, Proxy};
use crate::rig::{Delivery, KNOWN, Rig, Transport, config, natsmux, pause};
use crate::size::{Dice, figures, number, turn};
use crate::support::{Cluster, Version, sharing};

#[test]
fn cut_links_lose_no_more_than_what_is_in_doubt() {
    cuts(&Transport::plain(), Delivery::AtMostOnce);
}

#[test]
fn links_that_are_cut_inside_a_record_lose_no_more_than_what_is_in_doubt() {
    cuts(&Transport::tls(), Delivery::AtMostOnce);
}

#[test]
fn links_that_are_cut_inside_a_record_lose_nothing_with_at_least_once() {
    cuts(&Transport::tls(), Delivery::AtLeastOnce);
}

#[test]
fn cut_links_lose_nothing_with_at_least_once() {
    cuts(&Transport::plain(), Delivery::AtLeastOnce);
}

fn cuts(transport: &Transport, delivery: Delivery) {
    let _turn = turn();
    let cuts = number("cuts", [12, 200, 200]);
    let rate = number("rate", [1_000, 5_000, 5_000]);
    let sessions = number("sessions", [20, 100, 100]);
    let cluster = Cluster::with(&transport.options(Version::V215), KNOWN + 1);
    let brokers = &cluster.brokers()[..KNOWN];
    let proxies: Vec<_> = brokers.iter().map(|b| Proxy::start(&b.address())).collect();
    let urls: Vec<_> = proxies
        .iter()
        .map(|p| format!("nats://{}", p.address()))
        .collect();
    let natsmux = natsmux(transport.config(config(&urls, delivery, "", "")));
    let parts = ring(&natsmux.address(), sessions, rate, 100);
    let rig = Rig::with(cluster, natsmux, parts);
    rig.load.publish(true);
    rig.load.wait_flow("at the start");
    let mut dice = Dice::new(4);
    let (mut worst_doubt, mut links) = (0, 0);
    for round in 1..=cuts {
        pause(50 + dice.roll(100));
        let doubt = rig.natsmux.counter("in_doubt");
        let end = [End::Reset, End::Fin][usize::from(round % 2 == 0)];
        // All at once, or every third; there is one where sessions share it.
        let third = dice.roll(2) == 0 && sharing().is_none();
        let each = [1, 3][usize::from(third)];
        for proxy in &proxies {
            proxy.cut(end, each, dice.roll(1 << 16));
        }
        pause(30);
        rig.load.wait_flow(&format!("after cut {round}, {end:?}"));
        worst_doubt = worst_doubt.max(rig.natsmux.counter("in_doubt") - doubt);
        links = proxies.iter().map(Proxy::cuts).sum();
    }
    let outcome = rig.outcome();
    figures(&format!(
        "{cuts} times links cut, {links} links, {transport}, {delivery}, {rate}/s over {sessions}: worst doubt \
         {worst_doubt}; {outcome}"
    ));
    outcome.check_sum();
    assert!(links >= cuts, "links were cut");
    match delivery {
        Delivery::AtMostOnce => {
            outcome.check_order();
            assert_eq!(outcome.unproven(), 0, "R4: missing ≤ in doubt");
            assert!(worst_doubt <= rate / 10, "R5: in doubt after one cut");
        }
        Delivery::AtLeastOnce => {
            assert_eq!(outcome.observer.missing, 0, "R4: missing");
            assert_eq!(outcome.count("in_doubt"), 0, "nothing is left in doubt");
        }
    }
}
