//! Brokers that know nothing of each other, natsmux on several hosts before them, and
//! components that are subscribed plainly and in queue groups (R26-R32).

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::judge::Verdict;
use crate::load::Load;
use crate::part::{Part, Publishes};
use crate::proxy::Proxy;
use crate::rig::{all_up, natsmux, pause};
use crate::size::{Dice, figures, number, percentile, spread, turn};
use crate::support::{Broker, Cluster, Natsmux, PATIENCE, RawClient, Version, wait_for};

pub(crate) const GROUPS: usize = 3;
/// Short, so that a broker that returns is the target again within a test.
const FAILBACK: Duration = Duration::from_millis(900);
const SETTLING: Duration = Duration::from_millis(500);

/// Two brokers, a natsmux on each of several hosts, and a load over all of them.
struct Rig {
    load: Load,
    hosts: Vec<Natsmux>,
    brokers: Vec<Broker>,
    publishers: Vec<u64>,
    observers: Vec<usize>,
    groups: Vec<Vec<usize>>,
}

impl Rig {
    /// On every host an observer of all, a member of each of three queue groups, and
    /// publishers: `publishers` on all hosts together, with `rate` messages a second.
    fn start(versions: [Version; 2], hosts: usize, publishers: u64, rate: u64) -> Self {
        let brokers: Vec<Broker> = versions.into_iter().map(Broker::start).collect();
        let urls: Vec<String> = brokers.iter().map(Broker::url).collect();
        Self::with(brokers, &vec![urls; hosts], publishers, rate)
    }

    /// The same, where each host reaches the brokers under these URLs.
    fn with(brokers: Vec<Broker>, urls: &[Vec<String>], publishers: u64, rate: u64) -> Self {
        let hosts = urls.iter().enumerate();
        let hosts: Vec<Natsmux> = hosts.map(|(no, urls)| natsmux(config(no, urls))).collect();
        let addresses: Vec<String> = hosts.iter().map(Natsmux::address).collect();
        let Cast {
            parts,
            publishers,
            observers,
            groups,
        } = components(&addresses, publishers, rate);
        let load = Load::start(parts);
        let rig = Self {
            load,
            hosts,
            brokers,
            publishers,
            observers,
            groups,
        };
        rig.wait_up();
        rig
    }

    /// The broker that all hosts publish to, by its place in their configuration.
    fn target(&self) -> usize {
        wait_for("all hosts to use one broker", PATIENCE, || self.targets())
    }

    /// The same, unless they differ now.
    fn targets(&self) -> Option<usize> {
        let mut places = self.hosts.iter().map(|host| {
            let varz = host.varz();
            let bus = &varz["buses"][0];
            let mut brokers = bus["brokers"].as_array()?.iter();
            brokers.position(|broker| broker["addr"] == bus["current"])
        });
        let first = places.next()??;
        places.all(|place| place == Some(first)).then_some(first)
    }

    /// Waits until every host is subscribed on every broker.
    fn wait_up(&self) {
        for host in &self.hosts {
            host.wait_varz("links to all brokers", PATIENCE, |varz| {
                all_up(varz) && varz["links"].as_u64() == varz["trunks"].as_u64().map(|n| 2 * n)
            });
        }
    }

    fn sum(&self, name: &str) -> u64 {
        self.hosts.iter().map(|host| host.counter(name)).sum()
    }

    fn outcome(&self) -> Outcome {
        self.load.settle();
        std::thread::sleep(SETTLING);
        let shared = self
            .groups
            .iter()
            .map(|members| self.load.shared_verdict(members, &self.publishers));
        let mut groups = Verdict::default();
        shared.for_each(|verdict| groups.add(verdict));
        let settled = |varz: &Value| varz["waiting"] == 0;
        for host in &self.hosts {
            host.wait_varz("all publishes to be settled", PATIENCE, settled);
        }
        Outcome {
            published: self.load.published(),
            in_doubt: self.sum("in_doubt"),
            observers: self.load.verdict(self.observers.iter().copied()),
            groups,
            faults: self.load.faults(),
        }
    }
}

pub(crate) fn config(host: usize, urls: &[String]) -> String {
    let mut text = format!(
        "name = \"host{host}\"\n[http]\nlisten = \"{{http}}\"\n[[bus]]\nname = \"default\"\n\
         listen = [\"{{listen}}\"]\nbrokers = {urls:?}\ntopology = \"independent\"\n"
    );
    let _ = writeln!(text, "[bus.timings]\nfailback_delay = \"{FAILBACK:?}\"");
    text
}

/// Who takes part, and as what.
pub(crate) struct Cast {
    pub(crate) parts: Vec<Part>,
    pub(crate) publishers: Vec<u64>,
    pub(crate) observers: Vec<usize>,
    pub(crate) groups: Vec<Vec<usize>>,
}

/// On every host an observer of all, a member of each of three queue groups, and publishers:
/// `publishers` on all hosts together, with `rate` messages a second.
pub(crate) fn components(hosts: &[String], publishers: u64, rate: u64) -> Cast {
    let interval = Duration::from_secs_f64(publishers as f64 / rate as f64);
    let mut parts = Vec::new();
    for no in 0..publishers {
        parts.push(Part {
            address: hosts[no as usize % hosts.len()].clone(),
            publishes: Some(Publishes {
                subject: format!("load.{no}"),
                interval,
                burst: 1,
                size: 100,
            }),
            ping: Some(Duration::from_millis(500)),
            ..Part::default()
        });
    }
    let publishers: Vec<u64> = (0..publishers).collect();
    let listener = |host: &String| Part {
        address: host.clone(),
        subjects: vec!["load.>".to_owned()],
        ..Part::default()
    };
    let mut observers = Vec::new();
    let mut groups = vec![Vec::new(); GROUPS];
    for host in hosts {
        observers.push(parts.len());
        parts.push(Part {
            expects: publishers.clone(),
            ..listener(host)
        });
        for (no, members) in groups.iter_mut().enumerate() {
            members.push(parts.len());
            parts.push(Part {
                group: Some(format!("group{no}")),
                ..listener(host)
            });
        }
    }
    Cast {
        parts,
        publishers,
        observers,
        groups,
    }
}

struct Outcome {
    published: u64,
    in_doubt: u64,
    observers: Verdict,
    groups: Verdict,
    faults: Vec<String>,
}

impl Outcome {
    fn show(&self) -> String {
        let Self {
            published,
            in_doubt,
            observers,
            groups,
            faults,
        } = self;
        format!(
            "published {published}, in doubt {in_doubt}; {} plain deliveries owed: missing {}, \
             double {}, late {}; {} to groups owed: missing {}, double {}; disconnects {}",
            observers.published,
            observers.missing,
            observers.duplicates,
            observers.late,
            groups.published,
            groups.missing,
            groups.duplicates,
            faults.len()
        )
    }

    /// Exactly once, but for what is in doubt.
    fn check(&self, hosts: usize) {
        let none: &[String] = &[];
        assert_eq!(self.faults, none, "disconnects");
        assert_eq!(self.observers.duplicates, 0, "plain, double");
        assert_eq!(self.groups.duplicates, 0, "in a group, double");
        assert_eq!(self.observers.late, 0, "out of order");
        let most = self.in_doubt;
        assert!(
            self.observers.missing <= most * hosts as u64,
            "plain, missing"
        );
        assert!(
            self.groups.missing <= most * GROUPS as u64,
            "in a group, missing"
        );
    }
}

#[test]
fn every_message_comes_once_over_kills_and_returns() {
    let _turn = turn();
    let kills = number("independent_kills", [5, 50, 50]);
    let hosts = number("hosts", [2, 4, 4]) as usize;
    let rate = number("independent_rate", [1_000, 2_000, 2_000]);
    let versions = [Version::V215, Version::V29];
    let mut rig = Rig::start(versions, hosts, 24, rate);
    rig.load.publish(true);
    rig.load.wait_flow("at the start");
    let mut dice = Dice::new(7);
    let mut gaps = Vec::new();
    for round in 1..=kills {
        pause(100 + dice.roll(100));
        let victim = rig.target();
        rig.brokers[victim].kill();
        let first = rig
            .observers
            .clone()
            .into_iter()
            .map(|part| rig.load.first_after(part));
        gaps.push(first.max().unwrap_or_default());
        rig.load.wait_flow(&format!("after kill {round}"));
        rig.brokers[victim].restart();
        rig.wait_up();
        // Every other time it is the target again before the other is killed.
        if round % 2 == 0 {
            let start = Instant::now();
            while rig.target() != 0 {
                assert!(start.elapsed() < PATIENCE, "no way back");
            }
        }
    }
    let outcome = rig.outcome();
    figures(&format!(
        "{kills} kills of independent brokers, {hosts} hosts, {rate}/s: next broker after {}; {}",
        spread(&mut gaps),
        outcome.show()
    ));
    outcome.check(hosts);
    assert!(rig.sum("failovers") >= kills, "a kill is a failover");
    if kills > 5 {
        assert!(percentile(&mut gaps, 99) < 20_000, "the gap");
    }
}

#[test]
fn a_frozen_broker_is_left_and_comes_back() {
    let _turn = turn();
    let freezes = number("independent_freezes", [2, 10, 10]);
    let hosts = number("hosts", [2, 4, 4]) as usize;
    let rate = number("independent_rate", [1_000, 2_000, 2_000]);
    let mut rig = Rig::start([Version::V215; 2], hosts, 24, rate);
    rig.load.publish(true);
    rig.load.wait_flow("at the start");
    let mut silences = Vec::new();
    for round in 1..=freezes {
        pause(200);
        let victim = rig.target();
        rig.brokers[victim].freeze();
        let all = rig.observers.clone();
        let first = all.into_iter().map(|part| rig.load.first_after(part));
        silences.push(first.max().unwrap_or_default());
        rig.load.wait_flow(&format!("after freeze {round}"));
        // Every link that it had is left by then.
        pause(500);
        rig.brokers[victim].thaw();
        rig.wait_up();
    }
    let outcome = rig.outcome();
    figures(&format!(
        "{freezes} freezes of independent brokers, {hosts} hosts, {rate}/s: next broker after {}; {}",
        spread(&mut silences),
        outcome.show()
    ));
    outcome.check(hosts);
    assert!(percentile(&mut silences, 99) < 3_000_000, "R9");
}

#[test]
fn a_host_that_reaches_only_one_broker_takes_all_there() {
    let _turn = turn();
    let brokers: Vec<Broker> = (0..2).map(|_| Broker::start(Version::V215)).collect();
    let proxy = Proxy::start(&brokers[0].address());
    let urls: Vec<String> = brokers.iter().map(Broker::url).collect();
    let through = vec![format!("nats://{}", proxy.address()), urls[1].clone()];
    let mut rig = Rig::with(brokers, &[urls, through], 12, 500);
    assert_eq!(rig.target(), 0);
    rig.load.publish(true);
    rig.load.wait_flow("at the start");

    let (address, broker) = (proxy.address(), rig.brokers[0].address());
    let at_cut = rig.load.counts();
    drop(proxy);
    wait_for("all hosts to leave it", Duration::from_secs(3), || {
        rig.targets().filter(|target| *target == 1)
    });
    pause(3_000);
    let healed = rig.load.counts();
    rig.load.wait_flow("behind the cut");
    pause(1_000);
    let end = rig.load.counts();
    pause(1_000);
    let lost = |from: &[u64], to: &[u64]| {
        let observers = rig.observers.iter();
        observers
            .map(|&part| rig.load.missing_between(part, from, to))
            .sum::<u64>()
    };
    let (before, after) = (lost(&at_cut, &healed), lost(&healed, &end));

    let again = |text: &str| text.parse().expect("an address");
    let _proxy = Proxy::at(again(&address), again(&broker));
    wait_for("all hosts to be back", PATIENCE, || {
        rig.targets().filter(|target| *target == 0)
    });
    rig.load.wait_flow("at the end");
    let outcome = rig.outcome();
    figures(&format!(
        "one host loses one of two brokers: {before} deliveries lost in the first 3 s, {after} \
         later; {}",
        outcome.show()
    ));
    assert_eq!(after, 0, "R29: lost from 3 s after the cut on");
    assert_eq!(outcome.observers.duplicates + outcome.groups.duplicates, 0);
    assert_eq!(outcome.faults, [""; 0], "disconnects");
    rig.brokers[1].kill();
}

#[test]
fn brokers_that_are_routed_after_all_are_used_one_at_a_time() {
    let cluster = Cluster::start(Version::V215, 2);
    let host = natsmux(config(0, &cluster.urls()));
    let mut client = RawClient::ready(&host.address());
    client.send("SUB a 1\r\nPING\r\n");
    client.pong();
    let links = |count: u64| host.wait_varz("links", PATIENCE, |varz| varz["links"] == count);
    links(1);
    let events = host.get("/eventz").expect("an answer").body;
    assert!(events.contains("wrong topology"), "{events}");
    for number in 0..100 {
        client.send(format!("PUB a 3\r\n{number:03}\r\n"));
        assert_eq!(
            client.message(),
            format!("{number:03}").as_bytes(),
            "each once"
        );
    }
    client.send("PING\r\n");
    client.pong();
}

#[test]
fn presence_reaches_no_component() {
    let brokers: Vec<Broker> = (0..2).map(|_| Broker::start(Version::V29)).collect();
    let urls: Vec<String> = brokers.iter().map(Broker::url).collect();
    let hosts: Vec<Natsmux> = (0..2).map(|no| natsmux(config(no, &urls))).collect();
    let mut all = RawClient::ready(&hosts[0].address());
    let mut other = RawClient::ready(&hosts[1].address());
    all.send("SUB > 1\r\nUNSUB 1 2\r\nPING\r\n");
    all.pong();
    // Each host announces itself on both brokers, several times.
    pause(2_500);
    for text in ["one", "two", "three"] {
        other.send(format!("PUB a {}\r\n{text}\r\n", text.len()));
    }
    other.send("PING\r\n");
    other.pong();
    assert_eq!(all.message(), b"one");
    assert_eq!(all.message(), b"two", "R31: its max counts what it got");
    all.send("PING\r\n");
    all.pong();
}

#[test]
fn behind_an_outage_components_are_answered_while_hosts_gather() {
    let mut brokers: Vec<Broker> = (0..2).map(|_| Broker::start(Version::V215)).collect();
    let urls: Vec<String> = brokers.iter().map(Broker::url).collect();
    let mut hosts: Vec<Natsmux> = (0..2).map(|no| natsmux(config(no, &urls))).collect();
    let mut clients: Vec<RawClient> = hosts.iter().map(Natsmux::client).collect();
    for host in &hosts {
        wait_for("each host to see the other", PATIENCE, || {
            let answer: Value = serde_json::from_str(&host.get("/brokerz")?.body).ok()?;
            let all = answer["buses"][0]["brokers"].as_array()?;
            all.iter().all(|one| one["hosts"] == 1).then_some(())
        });
    }
    for broker in &mut brokers {
        broker.kill();
    }
    // This one is never heard of again.
    hosts[1].kill();
    hosts[0].wait_varz("the outage", PATIENCE, |varz| varz["links"] == 0);
    clients[0].send("PUB held 4\r\nheld\r\n");

    brokers[0].restart();
    let mut observer = RawClient::ready(&brokers[0].address());
    observer.send("SUB held 1\r\nPING\r\n");
    observer.pong();
    let since = Instant::now();
    let mut newcomer = hosts[0].client();
    let answered = since.elapsed();
    assert!(answered < Duration::from_millis(1_500), "{answered:?}");
    newcomer.send("PUB held 3\r\nnew\r\n");
    // The broker may ask how its observer is.
    let mut next = || loop {
        let frame = observer.frame();
        if frame.line.starts_with("MSG ") {
            break frame.payload;
        }
    };
    let mut came = [next(), next()];
    let waited = since.elapsed();
    came.sort();
    assert_eq!(came, [b"held".to_vec(), b"new".to_vec()]);
    assert!(waited < Duration::from_secs(5), "{waited:?}");
    figures(&format!(
        "behind an outage, with a host that doesn't come back: a new component is answered after \
         {answered:?}, publishes go on after {waited:?}"
    ));
}
