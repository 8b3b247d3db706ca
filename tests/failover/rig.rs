//! Three routed brokers, natsmux before two of them, and the third for the observer.

use std::fmt;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::judge::Verdict;
use crate::load::{Load, observer, ring};
use crate::part::Part;
use crate::support::{
    Authority, Broker, BrokerOptions, Cluster, KeyKind, Natsmux, NatsmuxOptions, PATIENCE, Version,
    wait_for, write_secret,
};

/// Brokers that natsmux knows.
pub(crate) const KNOWN: usize = 2;
/// The broker that it doesn't know, and that nobody kills.
pub(crate) const SAFE: usize = 2;

/// What happens to publishes in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    AtMostOnce,
    AtLeastOnce,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtMostOnce => "at-most-once",
            Self::AtLeastOnce => "at-least-once",
        })
    }
}

/// How natsmux speaks to brokers. Who observes speaks plain text, and signs nothing.
pub(crate) enum Transport {
    Plain,
    Tls(Authority),
    /// natsmux signs for components that have no credentials.
    Signed(Seed),
}

/// A key, and the file that natsmux reads it from.
pub(crate) struct Seed {
    pair: nkeys::KeyPair,
    file: tempfile::NamedTempFile,
}

impl Transport {
    pub(crate) fn plain() -> Self {
        Self::Plain
    }

    pub(crate) fn tls() -> Self {
        Self::Tls(Authority::new())
    }

    pub(crate) fn signed() -> Self {
        let pair = nkeys::KeyPair::new_user();
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        write_secret(file.path(), &pair.seed().expect("a seed"));
        Self::Signed(Seed { pair, file })
    }

    /// All connections of the broker in use are of natsmux's identity.
    pub(crate) fn assert_signed(&self, broker: &Broker) {
        let Self::Signed(seed) = self else {
            return;
        };
        let connz = broker.monitoring("/connz?auth=1").expect("an answer");
        let key = seed.pair.public_key();
        let connections = connz["connections"].as_array().expect("a list");
        assert!(!connections.is_empty(), "{connz}");
        for one in connections {
            assert_eq!(one["authorized_user"], key, "{one}");
        }
    }

    /// Brokers that take it.
    pub(crate) fn options(&self, version: Version) -> BrokerOptions {
        let mut options = BrokerOptions::new(version);
        if let Self::Signed(seed) = self {
            options.extra = format!(
                "authorization {{ users = [ {{ nkey: {} }}, {{ user: anybody, password: x }} ] }}\n\
                 no_auth_user: anybody\n",
                seed.pair.public_key()
            );
        }
        if let Self::Tls(authority) = self {
            let broker = authority.certify("broker", KeyKind::P256);
            options.extra = broker.broker_tls("timeout: 5") + "\nallow_non_tls: true\n";
        }
        options
    }

    /// A configuration that asks for it.
    pub(crate) fn config(&self, mut text: String) -> String {
        if let Self::Signed(seed) = self {
            text += &format!(
                "[[bus.identity]]\nname = \"load\"\nmatch = {{ anybody = true }}\nnkey_file = {:?}\n",
                seed.file.path()
            );
        }
        if let Self::Tls(authority) = self {
            let ca = authority.ca();
            text += &format!("[bus.tls]\nca = \"{}\"\n", ca.display());
        }
        text
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain text",
            Self::Tls(_) => "TLS",
            Self::Signed(_) => "plain text, signed",
        })
    }
}

/// A configuration before `urls`; `timings` and `limits` are lines of those sections.
pub(crate) fn config(urls: &[String], delivery: Delivery, timings: &str, limits: &str) -> String {
    format!(
        "name = \"failover\"\n[http]\nlisten = \"{{http}}\"\n[[bus]]\nname = \"default\"\n\
         listen = [\"{{listen}}\"]\nbrokers = {urls:?}\ndelivery = \"{delivery}\"\n\
         [bus.timings]\n{timings}\n[bus.limits]\n{limits}\n"
    )
}

/// The same with everything as it is by default, but for sessions that share trunks.
pub(crate) fn shared_config(urls: &[String]) -> String {
    let text = config(urls, Delivery::AtMostOnce, "", "");
    text.replace("[[bus]]", "[[bus]]\nsharing = \"identity\"")
}

/// natsmux with a configuration, healthy already.
pub(crate) fn natsmux(config: String) -> Natsmux {
    let options = NatsmuxOptions {
        config: Some(config),
        ..NatsmuxOptions::default()
    };
    Natsmux::launch(&options).wait_healthy()
}

/// Brokers, natsmux and a load on it.
pub(crate) struct Rig {
    pub(crate) load: Load,
    pub(crate) natsmux: Natsmux,
    pub(crate) cluster: Cluster,
    /// The last of the load, at the broker that nobody kills.
    pub(crate) observer: usize,
}

impl Rig {
    /// A ring of `sessions` components that send `rate` messages a second together.
    pub(crate) fn ring(version: Version, delivery: Delivery, sessions: u64, rate: u64) -> Self {
        Self::ring_over(&Transport::plain(), version, delivery, sessions, rate)
    }

    /// The same over this transport.
    pub(crate) fn ring_over(
        transport: &Transport,
        version: Version,
        delivery: Delivery,
        sessions: u64,
        rate: u64,
    ) -> Self {
        let cluster = Cluster::with(&transport.options(version), KNOWN + 1);
        let text = config(&cluster.urls()[..KNOWN], delivery, "", "");
        let natsmux = natsmux(transport.config(text));
        let parts = ring(&natsmux.address(), sessions, rate, 100);
        Self::with(cluster, natsmux, parts)
    }

    /// These components, and an observer of all that they publish.
    pub(crate) fn with(cluster: Cluster, natsmux: Natsmux, mut parts: Vec<Part>) -> Self {
        let observer_index = parts.len();
        parts.push(observer(&cluster.brokers()[SAFE].address(), &parts));
        Self {
            load: Load::start(parts),
            natsmux,
            cluster,
            observer: observer_index,
        }
    }

    /// The broker in use.
    pub(crate) fn active(&self) -> usize {
        wait_for("a broker in use", PATIENCE, || {
            self.cluster.index_of(&self.natsmux.current_broker()?)
        })
    }

    /// Waits until every trunk has its link and every broker is live.
    pub(crate) fn wait_calm(&self) {
        let what = "every trunk to have a link";
        self.natsmux
            .wait_varz(what, PATIENCE, |varz| varz["links"] == varz["trunks"]);
    }

    /// Waits until natsmux finds every broker alive.
    pub(crate) fn wait_up(&self) {
        let what = "every broker to be up";
        self.natsmux.wait_varz(what, PATIENCE, all_up);
    }

    /// Ends the load and sums up what came of it.
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome_beside([])
    }

    /// The same where these components publish to a broker directly.
    pub(crate) fn outcome_beside(&self, direct: impl IntoIterator<Item = usize>) -> Outcome {
        self.load.settle();
        let direct = direct.into_iter().map(|part| self.load.published_by(part));
        let published = self.load.published() - direct.sum::<u64>();
        let varz = self
            .natsmux
            .wait_varz("all publishes to be settled", PATIENCE, |varz| {
                varz["waiting"] == 0 && varz["published"] == published
            });
        Outcome {
            observer: self.load.verdict([self.observer]),
            subscribers: self.load.verdict(0..self.observer),
            faults: self.load.faults(),
            metrics: self.natsmux.get("/metrics").expect("an answer").body,
            varz,
        }
    }
}

/// What came of a load.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) observer: Verdict,
    pub(crate) subscribers: Verdict,
    pub(crate) faults: Vec<String>,
    metrics: String,
    varz: Value,
}

impl Outcome {
    pub(crate) fn count(&self, name: &str) -> u64 {
        let value = self.varz[name].as_u64();
        value.unwrap_or_else(|| panic!("{name} is no counter of {}", self.varz))
    }

    /// Missing at the observer beyond what is in doubt or dropped.
    pub(crate) fn unproven(&self) -> u64 {
        let explained = self.count("in_doubt") + self.count("dropped");
        self.observer.missing.saturating_sub(explained)
    }

    /// What holds in every scenario: no disconnect, R4's sum.
    pub(crate) fn check_sum(&self) {
        let none: &[String] = &[];
        assert_eq!(self.faults, none, "disconnects");
        let parts = ["confirmed", "in_doubt", "refused", "dropped", "waiting"];
        let sum: u64 = parts.iter().map(|name| self.count(name)).sum();
        assert_eq!(self.count("published"), sum, "R4: the sum of {parts:?}");
        for name in parts.iter().filter(|name| **name != "waiting") {
            let value = self.count(name);
            let line = format!("natsmux_{name}_total{{bus=\"default\"}} {value}\n");
            assert!(self.metrics.contains(&line), "{line} isn't on /metrics");
        }
    }

    pub(crate) fn check_order(&self) {
        assert_eq!(self.observer.duplicates, 0, "duplicates at the observer");
        assert_eq!(self.observer.late, 0, "out of order at the observer");
        assert_eq!(self.subscribers.duplicates, 0, "duplicates at subscribers");
        assert_eq!(self.subscribers.late, 0, "out of order at subscribers");
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "published {}, in doubt {}, moved {}, repeated {}, dropped {}; observer misses {} \
             ({} beyond doubt), doubles {}, late {}; subscribers miss {}, double {}, late {}; \
             disconnects {}",
            self.count("published"),
            self.count("in_doubt"),
            self.count("moved"),
            self.count("repeated"),
            self.count("dropped"),
            self.observer.missing,
            self.unproven(),
            self.observer.duplicates,
            self.observer.late,
            self.subscribers.missing,
            self.subscribers.duplicates,
            self.subscribers.late,
            self.faults.len(),
        )
    }
}

/// True where natsmux finds every broker alive.
pub(crate) fn all_up(varz: &Value) -> bool {
    let brokers = varz["buses"][0]["brokers"].as_array();
    brokers.is_some_and(|brokers| brokers.iter().all(|broker| broker["state"] == "up"))
}

/// Sleeps, to hit a moment that depends on nothing else.
pub(crate) fn pause(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}
