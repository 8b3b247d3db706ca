//! What a nats-server leaf node on each host, the usual tool of today, makes of the same two
//! brokers that know nothing of each other, beside natsmux: same load, same kills and freezes.

use std::time::Duration;

use crate::independent::{GROUPS, components, config};
use crate::judge::Verdict;
use crate::load::Load;
use crate::rig::{all_up, natsmux, pause};
use crate::size::{figures, number, turn};
use crate::support::{Broker, BrokerOptions, Natsmux, PATIENCE, Port, Version};

const HOSTS: usize = 2;
const PUBLISHERS: u64 = 12;
const RATE: u64 = 500;
/// Between two faults: longer than a leaf node takes to find its next broker.
const FAULT_EVERY: Duration = Duration::from_secs(3);
/// How long a broker stays frozen: longer than a leaf node takes to notice.
const FROZEN: Duration = Duration::from_secs(7);

/// What stands on every host between components and brokers.
enum Host {
    Natsmux(Box<Natsmux>),
    Leaf(Box<Broker>),
}

impl Host {
    fn address(&self) -> String {
        match self {
            Self::Natsmux(natsmux) => natsmux.address(),
            Self::Leaf(leaf) => leaf.address(),
        }
    }
}

/// Two brokers that take leaf nodes, and the ports for these.
fn brokers() -> (Vec<Broker>, Vec<Port>) {
    let pairs = (0..2).map(|_| {
        let port = Port::reserve();
        let mut options = BrokerOptions::new(Version::V215);
        options.extra = format!("leafnodes {{ listen: \"{}\" }}", port.address());
        (Broker::with(options), port)
    });
    pairs.unzip()
}

/// A leaf node that tries the brokers in order, and looks after them as often as it can be told.
fn leaf(number: usize, ports: &[Port]) -> Broker {
    let urls: Vec<_> = ports
        .iter()
        .map(|port| format!("nats-leaf://{}", port.address()))
        .collect();
    let mut options = BrokerOptions::new(Version::V215);
    options.extra = format!(
        "ping_interval: \"2s\"\nping_max: 2\n\
         leafnodes {{ reconnect: 1, remotes: [ {{ urls: {urls:?}, no_randomize: true }} ] }}\n\
         cluster {{ name: \"host{number}\" }}"
    );
    Broker::with(options)
}

struct Sum {
    /// Publishes that natsmux counts as in doubt.
    in_doubt: u64,
    disconnects: usize,
    plain: Verdict,
    groups: Verdict,
    /// Of what came to groups, what a member on the publisher's own host got, in percent.
    local: f64,
}

/// Plays the same with whatever `host` makes.
fn play(host: impl Fn(usize, &[Broker], &[Port]) -> Host, kills: u64, freezes: u64) -> Sum {
    let (mut brokers, ports) = brokers();
    let hosts: Vec<Host> = (0..HOSTS).map(|no| host(no, &brokers, &ports)).collect();
    for host in &hosts {
        match host {
            Host::Natsmux(natsmux) => drop(natsmux.wait_varz("brokers", PATIENCE, all_up)),
            // It has no answer for that; its load waits until all of it flows.
            Host::Leaf(_) => pause(1_000),
        }
    }
    let addresses: Vec<String> = hosts.iter().map(Host::address).collect();
    let cast = components(&addresses, PUBLISHERS, RATE);
    let load = Load::start(cast.parts);
    pause(2_000);
    load.publish(true);
    load.wait_flow("at the start");
    for round in 0..kills {
        let victim = (round % 2) as usize;
        brokers[victim].kill();
        std::thread::sleep(FAULT_EVERY / 2);
        brokers[victim].restart();
        std::thread::sleep(FAULT_EVERY / 2);
    }
    for round in 0..freezes {
        let victim = (round % 2) as usize;
        brokers[victim].freeze();
        std::thread::sleep(FROZEN);
        brokers[victim].thaw();
        std::thread::sleep(FAULT_EVERY);
    }
    load.settle();
    pause(1_000);
    let mut groups = Verdict::default();
    for members in &cast.groups {
        groups.add(load.shared_verdict(members, &cast.publishers));
    }
    let counts = load.counts();
    let mut came = [0; 2];
    for members in &cast.groups {
        for (host, &part) in members.iter().enumerate() {
            for &publisher in &cast.publishers {
                let sent = counts[publisher as usize];
                let verdict = load.with_track(part, |track| track.verdict(publisher, sent));
                let own = publisher as usize % HOSTS == host;
                came[usize::from(own)] += verdict.published - verdict.missing;
            }
        }
    }
    let in_doubt = hosts.iter().map(|host| match host {
        Host::Natsmux(natsmux) => natsmux.counter("in_doubt"),
        Host::Leaf(_) => 0,
    });
    Sum {
        in_doubt: in_doubt.sum(),
        local: percent(came[1], came[0] + came[1]),
        disconnects: load.faults().len(),
        plain: load.verdict(cast.observers.iter().copied()),
        groups,
    }
}

#[test]
fn side_by_side_with_a_leaf_node() {
    let _turn = turn();
    let kills = number("leaf_kills", [2, 10, 10]);
    let freezes = number("leaf_freezes", [1, 2, 2]);
    let leaves = play(
        |number, _, ports| Host::Leaf(Box::new(leaf(number, ports))),
        kills,
        freezes,
    );
    let own = play(
        |number, brokers, _| {
            let urls: Vec<_> = brokers.iter().map(Broker::url).collect();
            Host::Natsmux(Box::new(natsmux(config(number, &urls))))
        },
        kills,
        freezes,
    );
    for (name, sum) in [("leaf node", &leaves), ("natsmux", &own)] {
        let Sum {
            disconnects,
            plain,
            groups,
            local,
            in_doubt,
        } = sum;
        figures(&format!(
            "{name}: {HOSTS} hosts, two brokers, {kills} kills and {freezes} freezes of {FROZEN:?}: {} \
             plain deliveries owed: missing {} ({:.2} %), double {}; {} to {GROUPS} groups owed: \
             missing {} ({:.2} %), double {}, {local:.0} % of them on the publisher's host; \
             in doubt {in_doubt}; disconnects {disconnects}",
            plain.published,
            plain.missing,
            percent(plain.missing, plain.published),
            plain.duplicates,
            groups.published,
            groups.missing,
            percent(groups.missing, groups.published),
            groups.duplicates,
        ));
    }
    assert_eq!(own.disconnects, 0);
    assert_eq!((own.plain.duplicates, own.groups.duplicates), (0, 0));
    assert!(own.plain.missing <= own.in_doubt * HOSTS as u64);
    assert!(own.groups.missing <= own.in_doubt * GROUPS as u64);
    assert!(own.plain.missing < leaves.plain.missing);
}

fn percent(part: u64, of: u64) -> f64 {
    100.0 * part as f64 / of as f64
}
