//! Brokers that are routed to each other.

use super::broker::{Broker, BrokerOptions, Version};
use super::{PATIENCE, Port, wait_for};

/// A full mesh of brokers. Dropping it kills them.
#[derive(Debug)]
pub struct Cluster {
    brokers: Vec<Broker>,
    _routes: Vec<Port>,
}

impl Cluster {
    /// `size` brokers of one version that are routed already.
    pub fn start(version: Version, size: usize) -> Self {
        Self::with(&BrokerOptions::new(version), size)
    }

    /// `size` brokers with these options that are routed already.
    pub fn with(options: &BrokerOptions, size: usize) -> Self {
        let routes: Vec<_> = (0..size).map(|_| Port::reserve()).collect();
        let brokers = (0..size)
            .map(|i| {
                let name = format!("broker-{}", i + 1);
                Broker::prepare(options.clone(), &name, &membership(&routes, i))
            })
            .collect();
        let mut cluster = Self {
            brokers,
            _routes: routes,
        };
        for broker in &mut cluster.brokers {
            broker.restart();
        }
        cluster.wait_routed();
        cluster
    }

    /// The brokers, in the order in which [`Cluster::urls`] names them.
    pub fn brokers(&self) -> &[Broker] {
        &self.brokers
    }

    /// One broker.
    pub fn broker(&mut self, index: usize) -> &mut Broker {
        &mut self.brokers[index]
    }

    /// The index of the broker that listens on `127.0.0.1:PORT`.
    pub fn index_of(&self, address: &str) -> Option<usize> {
        self.brokers.iter().position(|b| b.address() == address)
    }

    /// `nats://…` of every broker.
    pub fn urls(&self) -> Vec<String> {
        self.brokers.iter().map(Broker::url).collect()
    }

    /// Starts a broker again on its ports and waits until all routes are up.
    pub fn restart(&mut self, index: usize) {
        self.brokers[index].restart();
        self.wait_routed();
    }

    /// Starts a broker that has ended again, as another version on its own data.
    pub fn upgrade(&mut self, index: usize, version: Version) {
        self.brokers[index].set_version(version);
        self.restart(index);
    }

    /// Waits until every running broker has all routes to every other running one.
    pub fn wait_routed(&mut self) {
        let running: Vec<_> = (0..self.brokers.len())
            .filter(|&i| self.brokers[i].is_running())
            .collect();
        for &from in &running {
            for &to in running.iter().filter(|&&to| to != from) {
                let (broker, peer) = (&self.brokers[from], &self.brokers[to]);
                let what = format!("routes from {} to {}", broker.name(), peer.name());
                let routed = || is_routed(broker, peer)?.then_some(());
                wait_for(&what, PATIENCE, routed);
            }
        }
    }
}

fn membership(routes: &[Port], own: usize) -> String {
    let others: Vec<_> = routes
        .iter()
        .enumerate()
        .filter(|(i, _)| *i != own)
        .map(|(_, port)| format!("\"nats://{}\"", port.address()))
        .collect();
    format!(
        "cluster {{ name: test, listen: \"{}\", routes: [{}] }}",
        routes[own].address(),
        others.join(", ")
    )
}

/// 2.15 has a pool of three routes to each peer and one for the system account; an account's
/// messages pass only when its own one is up. A server's id is new at every start, so that a
/// route to the peer's former life doesn't count.
fn is_routed(broker: &Broker, peer: &Broker) -> Option<bool> {
    let wanted = match (broker.version(), peer.version()) {
        (Version::V215, Version::V215) => 4,
        _ => 1,
    };
    let (routez, peer) = (broker.monitoring("/routez")?, peer.monitoring("/routez")?);
    let routes = routez["routes"].as_array()?.iter();
    let up = routes.filter(|route| route["remote_id"] == peer["server_id"]);
    Some(up.count() >= wanted)
}
