//! No broker at all for a while.

use std::time::{Duration, Instant};

use crate::load::{Load, ring};
use crate::part::Part;
use crate::rig::{Delivery, KNOWN, config, natsmux, pause};
use crate::size::{figures, number, turn};
use crate::support::{Cluster, PATIENCE, Version};

#[test]
fn components_live_through_a_time_without_any_broker_and_drops_are_counted() {
    let _turn = turn();
    let seconds = number("outage_seconds", [8, 20, 600]);
    let publishers = number("outage_publishers", [10, 10, 10]);
    // The soak is real time at defaults; else all is scaled down.
    let real = seconds >= 300;
    let (timings, limits, longest_pong) = if real {
        ("", "", Duration::from_secs(15 + 30 + 2))
    } else {
        let timings = "pong_hold = \"2s\"\nblock_for = \"1s\"";
        (
            timings,
            "publish_buffer = \"64KiB\"",
            Duration::from_secs(4),
        )
    };
    let mut cluster = Cluster::start(Version::V215, KNOWN);
    let natsmux = natsmux(config(
        &cluster.urls(),
        Delivery::AtMostOnce,
        timings,
        limits,
    ));
    let parts = with_listeners(ring(
        &natsmux.address(),
        publishers,
        publishers * 100,
        1_000,
    ));
    let everyone = parts.len();
    let load = Load::start(parts);
    for broker in 0..KNOWN {
        cluster.broker(broker).kill();
    }
    natsmux.wait_varz("no link", PATIENCE, |varz| varz["links"] == 0);
    load.publish(true);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        load.check_faults();
        pause(100);
    }
    let dropped = natsmux.counter("dropped");
    cluster.broker(0).restart();
    load.wait_flow("on return");
    cluster.restart(1);
    pause(500);
    load.settle();
    let published = load.published();
    let varz = natsmux.wait_varz("all publishes to be settled", PATIENCE, |varz| {
        varz["waiting"] == 0 && varz["published"] == published
    });
    let verdict = load.verdict(0..everyone);
    let pong = Duration::from_micros(load.longest_pong());
    figures(&format!(
        "{seconds} s without a broker, {publishers} publishers of 100/s: published {published}, \
         dropped {}, in doubt {}, misses {}, doubles {}, late {}; longest PONG {pong:.1?}, \
         unproven PONGs {}; disconnects {}",
        varz["dropped"],
        varz["in_doubt"],
        verdict.missing,
        verdict.duplicates,
        verdict.late,
        varz["pongs_unproven"],
        load.faults().len()
    ));
    load.check_faults();
    assert!(dropped > 0, "the buffers were meant to be full");
    assert_eq!(varz["in_doubt"], 0, "nothing was written to a dying broker");
    assert_eq!(varz["dropped"], verdict.missing, "drops equal the counter");
    assert_eq!((verdict.duplicates, verdict.late), (0, 0));
    assert_eq!(
        varz["confirmed"],
        published - verdict.missing,
        "R4: the sum"
    );
    assert!(pong <= longest_pong, "R3: a PONG after {pong:?}");
}

/// Everybody pings; as many again listen and ping only.
fn with_listeners(mut parts: Vec<Part>) -> Vec<Part> {
    let ping = Some(Duration::from_secs(1));
    let listeners: Vec<_> = parts
        .iter()
        .map(|part| Part {
            address: part.address.clone(),
            subjects: vec!["elsewhere".to_owned()],
            ping,
            ..Part::default()
        })
        .collect();
    for part in &mut parts {
        part.ping = ping;
    }
    parts.extend(listeners);
    parts
}
