//! The ways from a client to the broker, each with its processes.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::Resumption;
use tempfile::TempDir;

use crate::client::Client;
use crate::stream::Place;
use crate::support::{
    Authority, Broker, BrokerOptions, KeyKind, Natsmux, NatsmuxOptions, PATIENCE, Port, Process,
    Version, wait_for,
};

/// What stands between a client and the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Direct,
    Natsmux,
    /// natsmux, with `sharing = "identity"`.
    Shared,
    Haproxy,
    Leaf,
}

impl Way {
    pub(crate) const ALL: [Self; 5] = [
        Self::Direct,
        Self::Natsmux,
        Self::Shared,
        Self::Haproxy,
        Self::Leaf,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Natsmux => "natsmux",
            Self::Shared => "shared",
            Self::Haproxy => "haproxy",
            Self::Leaf => "leaf",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.name() == name)
    }
}

/// Those that can speak TLS to a broker, INFO first.
pub(crate) const IN_TLS: [Way; 3] = [Way::Direct, Way::Natsmux, Way::Shared];

/// A broker, and what stands before it.
pub(crate) struct Site {
    broker: Broker,
    proxy: Proxy,
    tls: Option<(Authority, Arc<ClientConfig>)>,
}

enum Proxy {
    None,
    Natsmux(Box<Natsmux>),
    Haproxy(Haproxy),
    Leaf(Box<Broker>),
}

struct Haproxy {
    port: Port,
    process: Process,
    _folder: TempDir,
}

/// Nothing is on that costs anything.
const HAPROXY: &str = include_str!("haproxy.cfg");

impl Site {
    pub(crate) fn start(way: Way, tls: Option<KeyKind>) -> Self {
        let leaf_port = Port::reserve();
        let mut options = BrokerOptions::new(Version::V215);
        let tls = tls.map(|kind| {
            assert!(IN_TLS.contains(&way), "{} speaks no TLS here", way.name());
            let authority = Authority::new();
            options.extra = authority.certify("broker", kind).broker_tls("timeout: 5");
            let mut config = authority.client_config();
            // Who connects for the first time has no session to resume.
            config.resumption = Resumption::disabled();
            (authority, Arc::new(config))
        });
        if way == Way::Leaf {
            options.extra = format!("leafnodes {{ listen: \"{}\" }}", leaf_port.address());
        }
        let broker = Broker::with(options);
        let proxy = match way {
            Way::Direct => Proxy::None,
            Way::Natsmux | Way::Shared => {
                let natsmux = Natsmux::launch(&NatsmuxOptions {
                    config: Some(config(&broker, way, tls.as_ref().map(|(ca, _)| ca))),
                    open_files: Some(20_000),
                    ..NatsmuxOptions::default()
                });
                Proxy::Natsmux(Box::new(natsmux.wait_healthy()))
            }
            Way::Haproxy => Proxy::Haproxy(Haproxy::start(&broker.address())),
            Way::Leaf => {
                let mut options = BrokerOptions::new(Version::V215);
                let remote = format!("nats-leaf://{}", leaf_port.address());
                options.extra = format!("leafnodes {{ remotes: [ {{ url: \"{remote}\" }} ] }}");
                Proxy::Leaf(Box::new(Broker::with(options)))
            }
        };
        let site = Self { broker, proxy, tls };
        site.wait_through();
        site
    }

    /// Waits until a message passes from the broker's side to the proxy's.
    fn wait_through(&self) {
        let mut near = Client::connect(&self.near());
        near.subscribe("ready", 1);
        near.flush();
        let mut far = Client::connect(&self.far());
        wait_for("a message through the proxy", PATIENCE, || {
            far.send(b"PUB ready 1\r\nx\r\n");
            near.message_within(Duration::from_millis(100))
                .then_some(())
        });
    }

    /// Where clients connect that go this way.
    pub(crate) fn near(&self) -> Place {
        let address = match &self.proxy {
            Proxy::None => return self.far(),
            Proxy::Natsmux(natsmux) => natsmux.address(),
            Proxy::Haproxy(haproxy) => haproxy.port.address(),
            Proxy::Leaf(leaf) => leaf.address(),
        };
        Place { address, tls: None }
    }

    /// The broker itself.
    pub(crate) fn far(&self) -> Place {
        Place {
            address: self.broker.address(),
            tls: self.tls.as_ref().map(|(_, config)| Arc::clone(config)),
        }
    }

    pub(crate) fn broker_pid(&self) -> u32 {
        self.broker.pid()
    }

    pub(crate) fn proxy_pid(&self) -> Option<u32> {
        match &self.proxy {
            Proxy::None => None,
            Proxy::Natsmux(natsmux) => Some(natsmux.pid()),
            Proxy::Haproxy(haproxy) => Some(haproxy.process.pid()),
            Proxy::Leaf(leaf) => Some(leaf.pid()),
        }
    }
}

/// natsmux before this broker.
fn config(broker: &Broker, way: Way, authority: Option<&Authority>) -> String {
    let sharing = match way {
        Way::Shared => "identity",
        _ => "none",
    };
    let tls = authority.map_or(String::new(), |authority| {
        format!("[bus.tls]\nca = \"{}\"\n", authority.ca().display())
    });
    format!(
        "[http]\nlisten = \"{{http}}\"\n[[bus]]\nname = \"default\"\nlisten = [\"{{listen}}\"]\n\
         brokers = [\"{}\"]\nsharing = \"{sharing}\"\n{tls}",
        broker.url()
    )
}

impl Haproxy {
    fn start(broker: &str) -> Self {
        let (port, folder) = (Port::reserve(), TempDir::new().expect("a temporary folder"));
        let path = folder.path().join("haproxy.cfg");
        let text = HAPROXY
            .replace("{listen}", &port.address())
            .replace("{broker}", broker);
        std::fs::write(&path, text).expect("a configuration file");
        // One process, which stays in the foreground.
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&path);
        let process = Process::start("haproxy", &mut command, &folder.path().join("haproxy.log"));
        wait_for("haproxy to listen", PATIENCE, || {
            std::net::TcpStream::connect(port.address()).ok()
        });
        Self {
            port,
            process,
            _folder: folder,
        }
    }
}
