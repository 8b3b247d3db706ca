//! What an operator orders under load: nothing missing, nothing double, nothing late (R42).

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::moves::{check, started, started_with};
use crate::process::{open_files, resident_kilobytes};
use crate::rig::{Delivery, KNOWN, Rig, config, pause};
use crate::size::{figures, number, turn};
use crate::support::{Cluster, Version};

/// Load through natsmux over brokers of one cluster.
fn over_a_cluster(version: Version) -> Rig {
    let cluster = Cluster::start(version, KNOWN + 1);
    let text = config(&cluster.urls()[..KNOWN], Delivery::AtMostOnce, "", "");
    started(cluster, text)
}

/// Carries a command out that moves the bus, and returns the broker in use from then on.
fn order(rig: &Rig, args: &[&str]) -> usize {
    let (status, said) = rig.natsmux.order(args);
    assert!(status.success(), "{args:?}: {said}");
    let bus = &said["buses"][0];
    assert_eq!(bus["left"], 0, "{args:?}: {said}");
    let to = bus["to"].as_str().expect("a broker");
    rig.cluster.index_of(to).expect("one of the cluster")
}

/// Moves before memory is looked at, and how much more may be in use behind the others, in kB.
const WARM: u64 = 4;
const GROWTH_KB: u64 = 8 * 1024;

fn moves_by_command(version: Version) {
    let _turn = turn();
    let rounds = number("moves", [6, 20, 200]);
    let rig = over_a_cluster(version);
    let mut used = rig
        .cluster
        .index_of(&rig.natsmux.current_broker().expect("one"));
    let (mut before, pid) = (0, rig.natsmux.pid());
    for round in 0..rounds {
        let to = order(&rig, &["move", "default"]);
        assert_ne!(Some(to), used);
        used = Some(to);
        pause(100);
        if round < WARM {
            before = resident_kilobytes(pid);
        }
    }
    let after = resident_kilobytes(pid);
    figures(&format!("memory: {before} kB became {after} kB"));
    assert!(after < before + GROWTH_KB, "{before} kB became {after} kB");
    check(&rig, &format!("a move by command at {version:?}"), rounds);
}

#[test]
fn moves_by_command_at_2_15_are_noticed_by_nobody() {
    moves_by_command(Version::V215);
}

#[test]
fn moves_by_command_at_2_9_are_noticed_by_nobody() {
    moves_by_command(Version::V29);
}

/// Each broker that natsmux knows is drained, restarted and used again, one after the other.
fn restarts_of_drained_brokers(version: Version) {
    let _turn = turn();
    let rounds = number("drains", [2, 10, 100]);
    let mut rig = over_a_cluster(version);
    for round in 0..rounds {
        let drained = usize::try_from(round).expect("few") % KNOWN;
        let addr = rig.cluster.brokers()[drained].address();
        let to = order(&rig, &["drain", &addr]);
        assert_ne!(to, drained);
        assert_ne!(rig.natsmux.current_broker(), Some(addr.clone()));
        rig.cluster.broker(drained).terminate();
        rig.cluster.restart(drained);
        let (status, said) = rig.natsmux.order(&["undrain", &addr]);
        assert!(status.success(), "{said}");
        assert_eq!(said["undrained"][0], "default");
        let bus = |varz: &serde_json::Value| varz["buses"][0]["brokers"].clone();
        rig.natsmux
            .wait_varz("it to be up", Duration::from_secs(20), |varz| {
                let brokers = bus(varz);
                let mut all = brokers.as_array().into_iter().flatten();
                all.any(|broker| broker["addr"] == addr.as_str() && broker["state"] == "up")
            });
    }
    check(
        &rig,
        &format!("drain, restart, undrain at {version:?}"),
        rounds,
    );
}

#[test]
fn restarts_of_drained_2_15_brokers_are_noticed_by_nobody() {
    restarts_of_drained_brokers(Version::V215);
}

#[test]
fn restarts_of_drained_2_9_brokers_are_noticed_by_nobody() {
    restarts_of_drained_brokers(Version::V29);
}

/// Few at once have a second link: descriptors of natsmux and connections of brokers suffice.
#[test]
fn a_crowd_moves_in_turns() {
    const AT_ONCE: usize = 256;
    let _turn = turn();
    let sessions = number("crowd", [600, 3_000, 9_000]);
    let cluster = Cluster::start(Version::V215, KNOWN + 1);
    let text = config(&cluster.urls()[..KNOWN], Delivery::AtMostOnce, "", "");
    let rig = started_with(cluster, text, sessions, 2_000);
    let pid = rig.natsmux.pid();
    let before = open_files(pid);
    let is_over = AtomicBool::new(false);
    let begun = Instant::now();
    let most = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !is_over.load(Ordering::Relaxed) {
                most = most.max(open_files(pid));
                thread::sleep(Duration::from_millis(5));
            }
            most
        });
        order(&rig, &["move", "default"]);
        is_over.store(true, Ordering::Relaxed);
        watch.join().expect("it counts")
    });
    figures(&format!(
        "{sessions} sessions moved in {} ms, with {} descriptors more",
        begun.elapsed().as_millis(),
        most - before
    ));
    // The command's own connection, and HTTP.
    assert!(
        most <= before + AT_ONCE + 8,
        "{before} descriptors became {most}"
    );
    check(&rig, "a move of a crowd", 1);
}

/// Publishes that wait arrive, in order; and a pause ends by itself.
#[test]
fn a_pause_loses_nothing() {
    let _turn = turn();
    let rig = over_a_cluster(Version::V215);
    for args in [
        &["pause", "default", "--for", "300ms"][..],
        &["pause", "default", "--for", "10m"][..],
    ] {
        let (status, said) = rig.natsmux.order(args);
        assert!(status.success(), "{said}");
        let varz = rig.natsmux.varz();
        assert!(varz["buses"][0]["paused_seconds"].is_number());
        pause(400);
    }
    let waiting = rig.natsmux.counter("waiting");
    assert!(waiting > 0, "nothing waits in a pause");
    let (status, said) = rig.natsmux.order(&["resume", "default"]);
    assert!(status.success() && said["was_paused"] == true, "{said}");
    figures(&format!(
        "{waiting} publishes waited for the end of a pause"
    ));
    rig.load.wait_flow("behind a pause");
    check(&rig, "a pause", 2);
}
