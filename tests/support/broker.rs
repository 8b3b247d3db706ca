//! One real nats-server on ports that it keeps for life.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{PATIENCE, Port, Process, http_get, target_dir, wait_for};

const ANSWER: Duration = Duration::from_millis(500);

/// The two broker versions that natsmux is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Debian's nats-server 2.9.
    V29,
    /// The pinned nats-server 2.15.
    V215,
}

impl Version {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V29, Self::V215];

    /// The broker's program: `NATS_SERVER_29` or `NATS_SERVER_215`, else where `make test`
    /// puts it.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn program(self) -> PathBuf {
        let (variable, places) = match self {
            Self::V29 => ("NATS_SERVER_29", debian_places()),
            Self::V215 => ("NATS_SERVER_215", vec![wheel_place()]),
        };
        if let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) {
            return path.into();
        }
        let found = places.iter().find(|path| path.is_file());
        found.cloned().unwrap_or_else(|| {
            panic!("no nats-server for {self:?} in {places:?}: run `make test`, which installs it, or set {variable}")
        })
    }
}

fn debian_places() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join("nats-server")).collect()
}

fn wheel_place() -> PathBuf {
    target_dir().join("tools/nats-server-2.15/nats-server")
}

/// How a broker is configured.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// Which program.
    pub version: Version,
    /// The only user and password that are let in; `None`: everybody is.
    pub user: Option<(String, String)>,
    /// Whether JetStream is on, stored in the broker's own temporary folder.
    pub jetstream: bool,
    /// More lines of configuration.
    pub extra: String,
}

impl BrokerOptions {
    /// A broker without authorization and JetStream.
    pub fn new(version: Version) -> Self {
        Self {
            version,
            user: None,
            jetstream: false,
            extra: String::new(),
        }
    }

    /// Lets only this user in.
    #[must_use]
    pub fn user(mut self, user: &str, password: &str) -> Self {
        self.user = Some((user.to_owned(), password.to_owned()));
        self
    }
}

/// A broker. Dropping it kills it.
#[derive(Debug)]
pub struct Broker {
    options: BrokerOptions,
    name: String,
    client: Port,
    monitor: Port,
    /// `None` before the first start. Dropped before the folder that holds its log.
    process: Option<Process>,
    folder: TempDir,
}

impl Broker {
    /// A single broker that answers already.
    pub fn start(version: Version) -> Self {
        Self::with(BrokerOptions::new(version))
    }

    /// A single broker with options that answers already.
    pub fn with(options: BrokerOptions) -> Self {
        let mut broker = Self::prepare(options, "single", "");
        broker.restart();
        broker
    }

    /// A broker that isn't started yet, with its part of a cluster's configuration.
    pub(super) fn prepare(options: BrokerOptions, name: &str, cluster: &str) -> Self {
        let broker = Self {
            options,
            name: name.to_owned(),
            client: Port::reserve(),
            monitor: Port::reserve(),
            folder: TempDir::new().expect("a temporary folder"),
            process: None,
        };
        let text = broker.configuration(cluster);
        fs::write(broker.folder.path().join("broker.conf"), text).expect("a configuration file");
        broker
    }

    fn configuration(&self, cluster: &str) -> String {
        let (client, monitor) = (self.client.address(), self.monitor.address());
        let mut text = format!(
            "server_name: {}\nlisten: \"{client}\"\nhttp: \"{monitor}\"\n{cluster}\n{}\n",
            self.name, self.options.extra
        );
        if let Some((user, password)) = &self.options.user {
            let _ = writeln!(
                text,
                "authorization {{ user: \"{user}\", password: \"{password}\" }}"
            );
        }
        if self.options.jetstream {
            let store = self.folder.path().join("jetstream");
            let _ = writeln!(text, "jetstream {{ store_dir: {store:?} }}");
        }
        text
    }

    /// The name that its INFO tells.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.options.version
    }

    /// Is another program from its next start on.
    pub(super) fn set_version(&mut self, version: Version) {
        self.options.version = version;
    }

    /// `127.0.0.1:PORT` for clients.
    pub fn address(&self) -> String {
        self.client.address()
    }

    /// `nats://127.0.0.1:PORT`, without credentials.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// The client port.
    pub fn port(&self) -> u16 {
        self.client.number()
    }

    /// The running process's id.
    ///
    /// # Panics
    ///
    /// If it was never started.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("a started broker").pid()
    }

    /// A single broker reads other lines of configuration, in place of those that it had.
    pub fn reload(&mut self, extra: &str) {
        extra.clone_into(&mut self.options.extra);
        let text = self.configuration("");
        fs::write(self.folder.path().join("broker.conf"), text).expect("a configuration file");
        self.signal(Signal::HUP);
    }

    /// True until it is killed or ends.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|p| p.ended().is_none())
    }

    /// Starts it again on the same ports (stopping it first if it runs) and waits until it
    /// greets with INFO.
    pub fn restart(&mut self) {
        self.kill();
        let mut command = Command::new(self.options.version.program());
        command
            .arg("-c")
            .arg(self.folder.path().join("broker.conf"));
        let log = self.folder.path().join("broker.log");
        self.process = Some(Process::start(&self.name, &mut command, &log));
        let what = format!("INFO of {} on {}", self.name, self.address());
        wait_for(&what, PATIENCE, || {
            let ended = self.process.as_mut().and_then(Process::ended);
            assert!(ended.is_none(), "{} ended at once: {ended:?}", self.name);
            self.greets().then_some(())
        });
    }

    fn greets(&self) -> bool {
        if self.options.extra.contains("handshake_first: true") {
            // It says nothing in plain text.
            return self.monitoring("/varz").is_some();
        }
        let Ok(mut stream) = TcpStream::connect(self.address()) else {
            return false;
        };
        let mut start = [0; 5];
        stream.set_read_timeout(Some(ANSWER)).is_ok()
            && stream.read_exact(&mut start).is_ok()
            && &start == b"INFO "
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
        if let Some(process) = &mut self.process {
            process.wait();
        }
    }

    /// Lame duck mode, and waits for the end: at once where no client is left. JetStream's leaders
    /// move to other brokers first.
    pub fn retire(&mut self) {
        self.signal(Signal::USR2);
        if let Some(process) = &mut self.process {
            process.wait();
        }
    }

    /// SIGSTOP: connections stay open and nothing is answered.
    pub fn freeze(&mut self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Any other signal (USR2 is lame duck mode).
    pub fn signal(&mut self, signal: Signal) {
        if let Some(process) = &mut self.process {
            process.signal(signal);
        }
    }

    /// Its monitoring answer, such as `/connz`; `None` while it doesn't answer.
    pub fn monitoring(&self, path: &str) -> Option<Value> {
        let answer = http_get(&self.monitor.address(), path).ok()?;
        serde_json::from_str(&answer.body).ok()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }
}
