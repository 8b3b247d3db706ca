//! Real brokers on free loopback ports, killed when they are dropped.

use std::env;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::case::Broker;

/// A version of nats-server whose answers are on record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Version {
    /// As `nats-server --version` says it.
    pub(crate) number: &'static str,
    /// The record of its answers.
    pub(crate) record: &'static str,
    /// The environment variable that says where the binary is.
    variable: &'static str,
    /// Where it is otherwise, on the PATH or below Cargo's target folder; the first that is of this version.
    places: &'static [&'static str],
}

/// Debian's.
pub(crate) const V2_9: Version = Version {
    number: "2.9.10",
    record: "recorded-2.9.10.toml",
    variable: "NATS_SERVER_29",
    places: &["nats-server", "/usr/sbin/nats-server"],
};

/// The newest when this was recorded.
pub(crate) const V2_15: Version = Version {
    number: "2.15.1",
    record: "recorded-2.15.1.toml",
    variable: "NATS_SERVER_215",
    places: &["tools/nats-server-2.15/nats-server"],
};

impl Version {
    fn binary(&self) -> PathBuf {
        let says_its_version = |path: &Path| {
            let output = Command::new(path).arg("--version").output().ok()?;
            String::from_utf8_lossy(&output.stdout)
                .contains(self.number)
                .then(|| path.to_owned())
        };
        let given = env::var_os(self.variable).map(PathBuf::from);
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
        let target = target.expect("Cargo's folder for tests is below its target folder");
        let below_target = |place: &str| Some(target.join(place)).filter(|path| path.exists());
        let places = (self.places.iter())
            .map(|place| below_target(place).unwrap_or_else(|| PathBuf::from(place)));
        given
            .into_iter()
            .chain(places)
            .find_map(|path| says_its_version(&path))
            .unwrap_or_else(|| {
                panic!(
                    "no nats-server {}: set {} to its path",
                    self.number, self.variable
                );
            })
    }
}

/// A running nats-server.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    process: Child,
    _files: TempDir,
}

impl Running {
    /// Starts a broker and waits until it sends INFO.
    pub(crate) fn start(version: &Version, kind: Broker) -> Self {
        let files = tempfile::tempdir().expect("a temporary directory");
        let addr = free_addr();
        let config = files.path().join("broker.conf");
        std::fs::write(&config, configuration(addr, kind)).expect("a configuration file");
        let process = Command::new(version.binary())
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary was just run");
        let running = Self {
            addr,
            process,
            _files: files,
        };
        wait_for_info(running.addr);
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The authorization timeout is below the two seconds after which a broker may PING whoever is silent.
fn configuration(addr: SocketAddr, kind: Broker) -> String {
    let more = match kind {
        Broker::Open => "",
        Broker::Auth => {
            r#"authorization {
                timeout: 0.5
                users: [
                    { user: u, password: p }
                    { user: limited, password: p, permissions: {
                        publish: { deny: "no.>" }, subscribe: { deny: "no.>" }
                    } }
                ]
            }"#
        }
        Broker::Limits => "max_subscriptions: 2\nmax_payload: 100",
    };
    format!("listen: \"{addr}\"\n{more}\n")
}

/// A loopback address on which nothing listens.
pub(crate) fn free_addr() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener
        .local_addr()
        .expect("a bound socket has an address")
}

/// Waits until what listens on `addr` says INFO, at most ten seconds.
pub(crate) fn wait_for_info(addr: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut start = [0; 5];
        let answered = TcpStream::connect(addr).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.read_exact(&mut start)
        });
        if answered.is_ok() && &start == b"INFO " {
            return;
        }
        assert!(Instant::now() < deadline, "no INFO on {addr}: {answered:?}");
        // There is no event to wait for: nothing listens yet.
        std::thread::sleep(Duration::from_millis(20));
    }
}
