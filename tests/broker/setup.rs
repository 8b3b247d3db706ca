//! natsmux with a configuration file whose time-outs suit tests, and components on it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    BrokerLink, Brokers, Natsmux, NatsmuxOptions, RawClient, Received, WATCHER, sharing, wait_for,
};

/// How long something may take that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// How long silence is listened to.
pub(crate) const MOMENT: Duration = Duration::from_millis(60);

/// What a modern client sends.
pub(crate) const CONNECT: &str = r#"CONNECT {"verbose":false,"pedantic":false,"protocol":1,"headers":true,"no_responders":true,"lang":"raw","version":"1"}"#;

/// A configuration file to be.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    name: String,
    brokers: Vec<String>,
    daemon: BTreeMap<String, String>,
    daemon_limits: BTreeMap<String, String>,
    bus: BTreeMap<String, String>,
    timings: BTreeMap<String, String>,
    limits: BTreeMap<String, String>,
    more: String,
}

impl Setup {
    /// One bus over these brokers, tried in this order. Fences come only where a component
    /// asks for one or the buffers do, nothing is dead by silence, and no component waits
    /// for the replay of another.
    pub(crate) fn new(brokers: &Brokers) -> Self {
        let empty = BTreeMap::new;
        Self {
            name: unrotated_name(brokers.count()),
            brokers: brokers.addresses(),
            daemon: empty(),
            daemon_limits: empty(),
            bus: empty(),
            timings: empty(),
            limits: empty(),
            more: String::new(),
        }
        .timing("fence_interval", "10s")
        .timing("link_timeout", "20s")
        .timing("replay_barrier", "1ms")
        .timing("info_timeout", "5s")
        .timing("trunk_idle_timeout", "1ms")
    }

    /// These brokers instead.
    pub(crate) fn brokers(mut self, addresses: &[String]) -> Self {
        self.brokers = addresses.to_vec();
        self
    }

    /// An option at the top, as TOML.
    pub(crate) fn daemon(mut self, key: &str, value: &str) -> Self {
        self.daemon.insert(key.to_owned(), value.to_owned());
        self
    }

    /// One of the daemon's limits, as TOML.
    pub(crate) fn daemon_limit(mut self, key: &str, value: &str) -> Self {
        self.daemon_limits.insert(key.to_owned(), value.to_owned());
        self
    }

    /// An option of the bus, as TOML.
    pub(crate) fn bus(mut self, key: &str, value: &str) -> Self {
        self.bus.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A timing of the bus, such as `10s`.
    pub(crate) fn timing(mut self, key: &str, value: &str) -> Self {
        self.timings.insert(key.to_owned(), format!("\"{value}\""));
        self
    }

    /// A limit of the bus, as TOML.
    pub(crate) fn limit(mut self, key: &str, value: &str) -> Self {
        self.limits.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Text behind everything else.
    pub(crate) fn more(mut self, text: &str) -> Self {
        self.more.push_str(text);
        self
    }

    /// The file.
    pub(crate) fn text(&self) -> String {
        let lines = |table: &BTreeMap<String, String>| -> String {
            let lines = table
                .iter()
                .map(|(key, value)| format!("{key} = {value}\n"));
            lines.collect()
        };
        let name = &self.name;
        let urls: Vec<_> = self.brokers.iter().map(|b| format!("\"{b}\"")).collect();
        let mut text = format!("name = \"{name}\"\n{}", lines(&self.daemon));
        text += "[http]\nlisten = \"{http}\"\n[log]\nlevel = \"debug\"\n";
        text += &format!("[limits]\n{}", lines(&self.daemon_limits));
        text += "[[bus]]\nname = \"default\"\nlisten = [\"{listen}\"]\n";
        text += &format!("brokers = [{}]\n{}", urls.join(", "), lines(&self.bus));
        text += &format!("[bus.timings]\n{}", lines(&self.timings));
        text += &format!("[bus.limits]\n{}", lines(&self.limits));
        text + &self.more
    }

    /// Starts natsmux, waits until a broker is alive, and has a component on it whose link
    /// natsmux watches, so that no PING comes on others that nobody asked for.
    pub(crate) fn start(&self) -> Daemon {
        let mut daemon = self.start_unwatched();
        let mut watcher = RawClient::connect(&daemon.address());
        watcher.info();
        let name = WATCHER;
        watcher.send(format!(
            "CONNECT {{\"verbose\":false,\"name\":\"{name}\"}}\r\nPING\r\n"
        ));
        watcher.pong();
        daemon._watcher = Some(watcher);
        daemon
    }

    /// Starts natsmux without any component, and waits until a broker is alive.
    pub(crate) fn start_unwatched(&self) -> Daemon {
        Daemon {
            natsmux: self.launch().wait_healthy(),
            _watcher: None,
        }
    }

    /// Starts natsmux with dead brokers, and waits until it serves.
    pub(crate) fn start_in_outage(&self) -> Daemon {
        let natsmux = self.launch();
        wait_for("natsmux to serve", SOON, || natsmux.get("/livez"));
        Daemon {
            natsmux,
            _watcher: None,
        }
    }

    fn launch(&self) -> Natsmux {
        Natsmux::launch(&NatsmuxOptions {
            config: Some(self.text()),
            ..NatsmuxOptions::default()
        })
    }
}

/// A running natsmux and the component whose link it watches.
#[derive(Debug)]
pub(crate) struct Daemon {
    natsmux: Natsmux,
    _watcher: Option<RawClient>,
}

impl Deref for Daemon {
    type Target = Natsmux;

    fn deref(&self) -> &Natsmux {
        &self.natsmux
    }
}

impl DerefMut for Daemon {
    fn deref_mut(&mut self) -> &mut Natsmux {
        &mut self.natsmux
    }
}

/// An instance name whose hash leaves the order of `count` brokers as configured (R13).
fn unrotated_name(count: usize) -> String {
    let rotation = |name: &String| {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        hasher.finish() % count as u64
    };
    let mut names = (0..1000).map(|number| format!("host-{number}"));
    let name = names.find(|name| rotation(name) == 0);
    name.expect("one name in `count` does")
}

/// A component that is past CONNECT and PONG, and its live link, which it has for itself.
pub(crate) fn component(natsmux: &Natsmux, brokers: &Brokers) -> (RawClient, BrokerLink) {
    component_as(natsmux, brokers, &own_connect())
}

/// [`CONNECT`], under a name of its own where those with equal ones share a link.
pub(crate) fn own_connect() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    match sharing() {
        Some(_) => {
            let user = NEXT.fetch_add(1, Ordering::Relaxed);
            CONNECT.replace('}', &format!(",\"user\":\"{user}\"}}"))
        }
        None => CONNECT.to_owned(),
    }
}

/// A component with this CONNECT that is past its PONG, and its live link.
pub(crate) fn component_as(
    natsmux: &Natsmux,
    brokers: &Brokers,
    connect: &str,
) -> (RawClient, BrokerLink) {
    let mut client = RawClient::connect(&natsmux.address());
    client.info();
    client.send(format!("{connect}\r\nPING\r\n"));
    let mut link = brokers.link();
    link.accept();
    if link.connect["verbose"] == true {
        client.expect("+OK\r\n");
    }
    client.pong();
    (client, link)
}

/// Subscribes and waits for the proof; returns the sid upstream. `subscription` is a subject,
/// or subject and queue group.
pub(crate) fn subscribe(
    client: &mut RawClient,
    link: &mut BrokerLink,
    subscription: &str,
    sid: &str,
) -> String {
    client.send(format!("SUB {subscription} {sid}\r\nPING\r\n"));
    let upstream = link.sub(subscription);
    link.answering(|| client.pong());
    upstream
}

/// PING and its PONG, with nothing else in between on either side. natsmux answers by itself
/// while the link isn't live yet.
pub(crate) fn round_trip(client: &mut RawClient, link: &mut BrokerLink) {
    client.send("PING\r\n");
    link.answering(|| client.pong());
}

/// Waits until publishes reach the link, by one more of them. Returns all that came, up to
/// that one, every PING answered.
pub(crate) fn wait_live(client: &mut RawClient, link: &mut BrokerLink) -> Vec<Received> {
    client.send("PUB live 0\r\n\r\n");
    link.until(|op| op.line == "PUB live 0")
}

/// On a live link: everything is proven behind this, and the component gets one PONG and
/// nothing else. Returns all that came, every PING answered.
pub(crate) fn finish(client: &mut RawClient, link: &mut BrokerLink) -> Vec<Received> {
    // By the SUB the broker knows that it has seen the component's PING.
    client.send("PING\r\nSUB end end\r\n");
    let received = link.until(|op| op.line.starts_with("SUB end "));
    client.pong();
    received
}

/// The subjects of the publishes among `received`, as far as they are numbers.
pub(crate) fn published_numbers(received: &[Received]) -> Vec<usize> {
    let publishes = received.iter().filter(|op| op.verb() == "PUB");
    publishes.filter_map(|op| op.word(1).parse().ok()).collect()
}

/// Waits until `/healthz` says that no broker is alive.
pub(crate) fn wait_outage(natsmux: &Natsmux) {
    wait_for("an outage", SOON, || (!natsmux.is_healthy()).then_some(()));
}

/// A counter in an object of `/varz`.
pub(crate) fn count(varz: &Value, name: &str) -> u64 {
    let value = varz[name].as_u64();
    value.unwrap_or_else(|| panic!("{name} is no counter of {varz}"))
}

/// Waits until a counter has this value (a snapshot may be a moment old).
pub(crate) fn wait_count(natsmux: &Natsmux, name: &str, value: u64) -> Value {
    let what = format!("{name} to be {value}");
    natsmux.wait_varz(&what, SOON, |varz| count(varz, name) == value)
}

/// R4: once nothing waits any more, every publish is in exactly one place. Returns `/varz`'s
/// object.
pub(crate) fn assert_books_balance(natsmux: &Natsmux, published: u64) -> Value {
    let settled =
        |varz: &Value| count(varz, "published") >= published && count(varz, "waiting") == 0;
    let varz = natsmux.wait_varz("all publishes to be settled", SOON, settled);
    let places = ["confirmed", "in_doubt", "refused", "dropped"];
    let sum: u64 = places.iter().map(|name| count(&varz, name)).sum();
    assert_eq!(count(&varz, "published"), published, "{varz}");
    assert_eq!(sum, published, "{varz}");
    varz
}
