//! Two hosts, two buses, two brokers on each bus that know nothing of each other. Each broker
//! in turn is killed, frozen and moved to another port. Nobody exits, no route is pruned, each
//! message to a queue group is handled once.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::books::{Books, Kind};
use crate::roles::{
    CloudController, Dea, HealthManager, Pace, Router, ServiceGateway, ServiceNode,
};
use crate::stand_in::StandIn;
use crate::support::{
    Broker, BrokerOptions, Natsmux, NatsmuxOptions, PATIENCE, Port, Version, wait_for,
};

/// User and password, as the releases of the time had them.
const NATS: &str = "nats";
const HOSTS: usize = 2;
const BUSES: [&str; 2] = ["control", "services"];

/// The pace of 2012 with `CLOUDFOUNDRY=full`, which takes about eight minutes; else all of it
/// twenty times as fast.
fn pace() -> Pace {
    let full = env::var("CLOUDFOUNDRY").is_ok_and(|value| value == "full");
    let seconds = |count: u64| {
        if full {
            Duration::from_secs(count)
        } else {
            Duration::from_secs(count) / 20
        }
    };
    Pace {
        register: seconds(20),
        prune: seconds(120),
        heartbeat: seconds(10),
        request: Duration::from_millis(20),
    }
}

/// A host: a natsmux with a listener for each bus.
struct Host {
    natsmux: Natsmux,
    services: Port,
}

struct Rig {
    hosts: Vec<Host>,
    /// Of each bus.
    brokers: [Vec<Broker>; 2],
    components: Vec<StandIn>,
    books: Books,
    pace: Pace,
}

fn broker(version: Version) -> Broker {
    Broker::with(BrokerOptions::new(version).user(NATS, NATS))
}

fn config(host: usize, services: &Port, brokers: &[Vec<Broker>; 2]) -> String {
    let mut text = format!("name = \"host{host}\"\n[http]\nlisten = \"{{http}}\"\n");
    let listens = ["{listen}".to_owned(), services.address()];
    for ((name, listen), brokers) in BUSES.iter().zip(listens).zip(brokers) {
        let urls: Vec<_> = brokers.iter().map(Broker::url).collect();
        let _ = writeln!(
            text,
            "[[bus]]\nname = \"{name}\"\nlisten = [\"{listen}\"]\nbrokers = {urls:?}\n\
             topology = \"independent\"\n[bus.timings]\nfailback_delay = \"1s\""
        );
    }
    text
}

impl Rig {
    fn start() -> Self {
        let brokers = [(); 2].map(|()| vec![broker(Version::V29), broker(Version::V215)]);
        let hosts = (0..HOSTS).map(|host| {
            let services = Port::reserve();
            let natsmux = Natsmux::launch(&NatsmuxOptions {
                config: Some(config(host, &services, &brokers)),
                ..NatsmuxOptions::default()
            });
            Host {
                natsmux: natsmux.wait_healthy(),
                services,
            }
        });
        let mut rig = Self {
            hosts: hosts.collect(),
            brokers,
            components: Vec::new(),
            books: Books::default(),
            pace: pace(),
        };
        rig.start_components();
        rig.wait_up();
        rig
    }

    /// Who handles something before who sends it.
    fn start_components(&mut self) {
        let (books, pace) = (self.books.clone(), self.pace);
        let mbus: Vec<_> = self
            .hosts
            .iter()
            .map(|host| host.natsmux.address())
            .collect();
        let services: Vec<_> = self
            .hosts
            .iter()
            .map(|host| host.services.address())
            .collect();
        let components = &mut self.components;
        for (host, (mbus, services)) in mbus.iter().zip(&services).enumerate() {
            let name = |what: &str| format!("{what}{host}");
            let router = Router {
                books: books.clone(),
                pace,
                routes: BTreeMap::new(),
            };
            components.push(StandIn::start(&name("router"), mbus, NATS, router));
            let controller = CloudController {
                books: books.clone(),
                offers: BTreeSet::new(),
            };
            components.push(StandIn::start(&name("cc"), mbus, NATS, controller));
            let node = ServiceNode {
                books: books.clone(),
            };
            components.push(StandIn::start(&name("node"), services, NATS, node));
        }
        self.wait_up();
        let components = &mut self.components;
        for (host, (mbus, services)) in mbus.iter().zip(&services).enumerate() {
            let name = |what: &str| format!("{what}{host}");
            let manager = HealthManager::new(&books, pace);
            components.push(StandIn::start(&name("hm"), mbus, NATS, manager));
            let gateway = ServiceGateway::new(&books, pace);
            components.push(StandIn::start(&name("gateway"), services, NATS, gateway));
        }
        self.wait_up();
        let components = &mut self.components;
        for (host, mbus) in mbus.iter().enumerate() {
            for number in 0..2 {
                let id = format!("dea{host}{number}");
                components.push(StandIn::start(&id, mbus, NATS, Dea::new(&id, &books, pace)));
            }
        }
    }

    /// Waits until every component is subscribed on every broker.
    fn wait_up(&self) {
        for host in &self.hosts {
            host.natsmux
                .wait_varz("links to all brokers", PATIENCE, |varz| {
                    varz["links"].as_u64() == varz["trunks"].as_u64().map(|trunks| 2 * trunks)
                });
        }
    }

    /// Waits until all hosts publish to one broker of a bus, and returns its place.
    fn target(&self, bus: usize) -> usize {
        let place = |varz: &Value| {
            let bus = &varz["buses"][bus];
            let brokers = bus["brokers"].as_array()?;
            brokers.iter().position(|b| b["addr"] == bus["current"])
        };
        wait_for("all hosts to use one broker", PATIENCE, || {
            let mut places = self.hosts.iter().map(|host| place(&host.natsmux.varz()));
            let first = places.next()??;
            places.all(|other| other == Some(first)).then_some(first)
        })
    }

    fn wait_target(&self, bus: usize, place: usize) {
        let start = Instant::now();
        while self.target(bus) != place {
            assert!(start.elapsed() < PATIENCE, "bus {bus} isn't on {place}");
        }
    }

    /// The broker stops, comes up on other ports, and the operator tells natsmux so.
    fn move_broker(&mut self, bus: usize, place: usize) {
        let version = self.brokers[bus][place].version();
        self.brokers[bus][place].kill();
        self.brokers[bus][place] = broker(version);
        for (number, host) in self.hosts.iter_mut().enumerate() {
            let text = config(number, &host.services, &self.brokers);
            host.natsmux.rewrite_config(&text);
            host.natsmux.sighup();
        }
        let address = self.brokers[bus][place].address();
        for host in &self.hosts {
            host.natsmux
                .wait_varz("the broker's new place", PATIENCE, |varz| {
                    let brokers = varz["buses"][bus]["brokers"].as_array();
                    brokers.is_some_and(|all| all.iter().any(|one| one["addr"] == *address))
                });
        }
        self.wait_up();
    }

    fn check(&self, when: &str) {
        let exits: Vec<_> = self.components.iter().filter_map(StandIn::exit).collect();
        assert_eq!(exits, [""; 0], "components that exited, {when}");
        let (_, pruned) = self.books.routes();
        assert_eq!(pruned, 0, "routes pruned, {when}");
    }

    /// Waits until something new was handled on both buses.
    fn wait_flow(&self, when: &str) {
        let handled = |kind| {
            let sum = self.books.sum(kind);
            sum.sent - sum.missing
        };
        for kind in [
            Kind::Heartbeat,
            Kind::StartRequest,
            Kind::Start,
            Kind::Provisioned,
        ] {
            let before = handled(kind);
            wait_for(&format!("{kind:?} {when}"), PATIENCE, || {
                self.check(when);
                (handled(kind) > before).then_some(())
            });
        }
    }
}

#[test]
fn nobody_exits_while_each_broker_is_killed_frozen_and_moved() {
    let mut rig = Rig::start();
    rig.wait_flow("at the start");
    let mut changes = 0;
    for (bus, name) in BUSES.into_iter().enumerate() {
        for place in 0..2 {
            let when = |what: &str| format!("{what} broker {place} of {name}");
            // The first is used when it is there; the second only while that isn't.
            if place == 1 {
                rig.brokers[bus][0].kill();
                changes += 1;
            }
            rig.wait_target(bus, place);

            rig.brokers[bus][place].kill();
            if place == 0 {
                rig.wait_flow(&when("killed"));
            } else {
                // No broker at all for a second.
                thread::sleep(Duration::from_secs(1));
                rig.check(&when("killed"));
            }
            rig.brokers[bus][place].restart();
            rig.wait_target(bus, place);
            rig.wait_flow(&when("restarted"));

            rig.brokers[bus][place].freeze();
            thread::sleep(Duration::from_secs(3));
            if place == 0 {
                rig.wait_flow(&when("frozen"));
            }
            rig.brokers[bus][place].thaw();
            if place == 1 {
                rig.brokers[bus][0].restart();
            }
            rig.wait_up();
            rig.wait_flow(&when("thawed"));

            rig.wait_target(bus, 0);
            rig.move_broker(bus, place);
            rig.wait_target(bus, 0);
            rig.wait_flow(&when("moved"));
            changes += 3;
        }
    }
    // At the pace of 2012 a route that was lost would be pruned by now.
    thread::sleep(rig.pace.prune + rig.pace.register);
    rig.wait_flow("at the end");
    finish(&rig, changes);
}

fn finish(rig: &Rig, changes: u32) {
    rig.check("at the end");
    rig.books.close();
    thread::sleep(Duration::from_secs(1));
    let sum = |name| -> u64 {
        let counts = rig.hosts.iter().map(|host| host.natsmux.counter(name));
        counts.sum()
    };
    assert_eq!((sum("dropped"), sum("refused")), (0, 0));
    let in_doubt: u64 = rig
        .hosts
        .iter()
        .map(|host| host.natsmux.counter("in_doubt"))
        .sum();
    let (registered, pruned) = rig.books.routes();
    let mut line = format!(
        "{changes} brokers killed, frozen or moved; {} components, 0 exited; routes heard of \
         {registered} times, pruned {pruned}; in doubt {in_doubt}",
        rig.components.len()
    );
    let kinds = [
        Kind::Heartbeat,
        Kind::StartRequest,
        Kind::Start,
        Kind::Provision,
        Kind::Provisioned,
    ];
    let sums = || kinds.map(|kind| (kind, rig.books.sum(kind)));
    let missing: u64 = sums().iter().map(|(_, sum)| sum.missing).sum();
    for (kind, sum) in sums() {
        let _ = write!(line, "; {kind:?} {}", sum.sent);
        let _ = write!(line, " (missing {}, double {})", sum.missing, sum.double);
        assert_eq!(sum.double, 0, "{kind:?} handled twice: {sum:?}");
    }
    let _ = writeln!(io::stdout(), "cloudfoundry: {line}");
    assert!(
        missing <= in_doubt,
        "{missing} weren't handled, {in_doubt} in doubt"
    );
}
