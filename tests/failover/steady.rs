//! Nothing fails that needn't, and nothing grows, however long it goes on.

use std::time::{Duration, Instant};

use crate::load::{Load, ring};
use crate::process::{open_files, resident_kilobytes};
use crate::proxy::{End, Proxy};
use crate::rig::{Delivery, KNOWN, Rig, config, natsmux, pause};
use crate::size::{Dice, figures, number, turn};
use crate::support::{Cluster, Version};

#[test]
fn full_load_makes_no_broker_look_dead() {
    let _turn = turn();
    let seconds = number("load_seconds", [10, 60, 600]);
    let rate = number("load_rate", [5_000, 50_000, 50_000]);
    let sessions = number("load_sessions", [20, 20, 20]);
    let cluster = Cluster::start(Version::V215, KNOWN);
    let natsmux = natsmux(config(&cluster.urls(), Delivery::AtMostOnce, "", ""));
    let burst = (rate / sessions / 50).max(1);
    let mut parts = ring(&natsmux.address(), sessions, rate / burst, 100);
    for part in &mut parts {
        if let Some(publishes) = &mut part.publishes {
            publishes.burst = burst;
        }
    }
    let load = Load::start(parts);
    load.publish(true);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        load.check_faults();
        pause(200);
    }
    let elapsed = begun.elapsed();
    load.settle();
    let everyone = usize::try_from(sessions).expect("few");
    let (verdict, varz) = (load.verdict(0..everyone), natsmux.varz());
    let suspect = varz["suspect_ms"].as_f64().expect("a counter");
    let share = suspect / elapsed.as_secs_f64() / 10.0;
    figures(&format!(
        "{seconds} s of load, {:.0}/s over {sessions}: failovers {}, suspicions {}, suspect \
         {suspect} ms = {share:.4} %; misses {}, doubles {}, late {}; disconnects {}",
        verdict.published as f64 / elapsed.as_secs_f64(),
        varz["failovers"],
        varz["suspicions"],
        verdict.missing,
        verdict.duplicates,
        verdict.late,
        load.faults().len()
    ));
    load.check_faults();
    assert_eq!(varz["failovers"], 0, "R9: false failovers");
    assert_eq!(varz["link_failures"], 0, "R9: links given up");
    assert!(share < 0.1, "R9: {share} % of the time suspect");
    assert_eq!(verdict.missing, 0, "nothing was killed");
    assert_eq!((verdict.duplicates, verdict.late), (0, 0));
}

#[test]
fn failovers_leave_memory_and_open_files_flat() {
    let _turn = turn();
    let failovers = number("failovers", [30, 300, 1_000]);
    let cluster = Cluster::start(Version::V215, KNOWN + 1);
    let brokers = &cluster.brokers()[..KNOWN];
    let proxies: Vec<_> = brokers.iter().map(|b| Proxy::start(&b.address())).collect();
    let urls: Vec<_> = proxies
        .iter()
        .map(|p| format!("nats://{}", p.address()))
        .collect();
    let natsmux = natsmux(config(&urls, Delivery::AtMostOnce, "", ""));
    let parts = ring(&natsmux.address(), 20, 1_000, 100);
    let rig = Rig::with(cluster, natsmux, parts);
    rig.load.publish(true);
    let pid = rig.natsmux.pid();
    let mut dice = Dice::new(6);
    let (mut memory, mut files) = (0, 0);
    for round in 1..=failovers {
        for proxy in &proxies {
            proxy.cut(End::Reset, 1, dice.roll(1 << 16));
        }
        pause(25);
        rig.load.wait_flow(&format!("after failover {round}"));
        if round == failovers / 3 {
            // From here on all buffers have had their size.
            rig.wait_calm();
            (memory, files) = (resident_kilobytes(pid), open_files(pid));
        }
    }
    let outcome = rig.outcome();
    rig.wait_calm();
    let (memory_after, files_after) = (resident_kilobytes(pid), open_files(pid));
    figures(&format!(
        "{failovers} failovers: {memory} kB after a third, {memory_after} kB after all; open files \
         {files}, {files_after}; {outcome}"
    ));
    outcome.check_sum();
    outcome.check_order();
    assert!(outcome.count("failovers") >= failovers);
    assert!(memory_after <= memory + memory / 10 + 1_024, "RSS grows");
    // Probes come and go.
    assert!(files_after <= files + 2, "open files grow");
}
