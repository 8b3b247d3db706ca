//! The daemon under test.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{Cluster, HttpAnswer, PATIENCE, Port, Process, RawClient, http_get, wait_for};

const CONFIG_FILE: &str = "natsmux.toml";
const SOCKET: &str = "control.sock";

/// The variable that says how the sessions of all tests share trunks, where they don't say so
/// themselves: a word of `--sharing`.
const SHARING: &str = "TEST_SHARING";

/// What [`SHARING`] says, unless that is the default.
pub fn sharing() -> Option<String> {
    std::env::var(SHARING).ok().filter(|word| word != "none")
}

/// How natsmux is started.
#[derive(Debug, Clone, Default)]
pub struct NatsmuxOptions {
    /// URLs of its brokers.
    pub brokers: Vec<String>,
    /// More arguments of `run`.
    pub args: Vec<String>,
    /// A configuration file instead of `--listen` and `--broker`; `{listen}` and `{http}`
    /// in it become the addresses.
    pub config: Option<String>,
    /// The hard limit of its open files, if not the test's own.
    pub open_files: Option<u64>,
}

/// A running natsmux. Dropping it kills it; its log is printed when the test panics.
#[derive(Debug)]
pub struct Natsmux {
    command: Command,
    listen: Port,
    http: Port,
    /// Dropped before the folder that holds its log.
    process: Process,
    folder: TempDir,
}

/// A file whose buses share as all tests do.
fn shared(text: &str) -> String {
    match sharing().filter(|_| !text.contains("sharing")) {
        Some(word) => text.replace("[[bus]]", &format!("[[bus]]\nsharing = \"{word}\"")),
        None => text.to_owned(),
    }
}

impl Natsmux {
    /// natsmux in front of `cluster`, healthy already.
    pub fn start(cluster: &Cluster) -> Self {
        let natsmux = Self::launch(&NatsmuxOptions {
            brokers: cluster.urls(),
            ..NatsmuxOptions::default()
        });
        natsmux.wait_healthy()
    }

    /// natsmux with options, started but not waited for (its brokers may be dead).
    pub fn launch(options: &NatsmuxOptions) -> Self {
        let (listen, http) = (Port::reserve(), Port::reserve());
        let folder = TempDir::new().expect("a temporary folder");
        let mut command = program(options.open_files);
        command.arg("run");
        match &options.config {
            Some(text) => {
                let path = folder.path().join(CONFIG_FILE);
                let text = fill(text, &listen, &http);
                fs::write(&path, text).expect("a configuration file");
                command.arg("-c").arg(path);
            }
            None => {
                command.args(["--listen", &listen.address()]);
                command.args(["--http", &http.address()]);
                command.args(["--broker", &options.brokers.join(",")]);
                let says = options.args.iter().any(|arg| arg == "--sharing");
                if let Some(word) = sharing().filter(|_| !says) {
                    command.args(["--sharing", &word]);
                }
            }
        }
        command.arg("--control").arg(folder.path().join(SOCKET));
        command.args(&options.args);
        let process = Process::start("natsmux", &mut command, &folder.path().join("natsmux.log"));
        Self {
            command,
            listen,
            http,
            folder,
            process,
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, as it was started before, once it has ended.
    pub fn restart(&mut self) {
        self.process.wait();
        let log = self.folder.path().join("natsmux.log");
        self.process = Process::start("natsmux", &mut self.command, &log);
    }

    /// Waits until `/healthz` answers 200.
    ///
    /// # Panics
    ///
    /// If it doesn't in time, or natsmux ends.
    #[must_use]
    pub fn wait_healthy(mut self) -> Self {
        wait_for("natsmux to be healthy", PATIENCE, || {
            let ended = self.process.ended();
            assert!(ended.is_none(), "natsmux ended at once: {ended:?}");
            self.is_healthy().then_some(())
        });
        self
    }

    /// The path of its control socket.
    pub fn control(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    /// Carries out a command of an operator: `natsmux drain …`. Returns how it ended, and its JSON
    /// or the error.
    pub fn order(&self, args: &[&str]) -> (ExitStatus, Value) {
        let mut command = program(None);
        command.args(args).arg("--json");
        command.arg("--socket").arg(self.control());
        let output = command.output().expect("natsmux runs");
        let said = match &output.stdout[..] {
            [] => Value::from(String::from_utf8_lossy(&output.stderr).into_owned()),
            json => serde_json::from_slice(json).expect("JSON"),
        };
        (output.status, said)
    }

    /// True while `/healthz` answers 200.
    pub fn is_healthy(&self) -> bool {
        self.get("/healthz")
            .is_some_and(|answer| answer.status == 200)
    }

    /// `127.0.0.1:PORT` for components.
    pub fn address(&self) -> String {
        self.listen.address()
    }

    /// `nats://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// `127.0.0.1:PORT` of its HTTP side.
    pub fn http_address(&self) -> String {
        self.http.address()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// An answer of its HTTP side, `None` while it doesn't answer.
    pub fn get(&self, path: &str) -> Option<HttpAnswer> {
        http_get(&self.http.address(), path).ok()
    }

    /// The object `natsmux` of `/varz`.
    ///
    /// # Panics
    ///
    /// If `/varz` doesn't answer with one.
    pub fn varz(&self) -> Value {
        let answer = self.get("/varz").expect("an answer of /varz");
        let mut varz: Value = serde_json::from_str(&answer.body).expect("/varz is JSON");
        assert!(varz["natsmux"].is_object(), "no natsmux in {varz}");
        varz["natsmux"].take()
    }

    /// One counter of `/varz`.
    pub fn counter(&self, name: &str) -> u64 {
        let varz = self.varz();
        let value = varz[name].as_u64();
        value.unwrap_or_else(|| panic!("{name} is no counter of {varz}"))
    }

    /// `host:port` of the broker that the first bus uses.
    pub fn current_broker(&self) -> Option<String> {
        self.varz()["buses"][0]["current"]
            .as_str()
            .map(str::to_owned)
    }

    /// Waits until `test` holds for `/varz`, and returns that.
    pub fn wait_varz(
        &self,
        what: &str,
        patience: Duration,
        test: impl Fn(&Value) -> bool,
    ) -> Value {
        wait_for(what, patience, || Some(self.varz()).filter(&test))
    }

    /// A raw client that has read INFO and is past CONNECT and PONG.
    pub fn client(&self) -> RawClient {
        RawClient::ready(&self.address())
    }

    /// Rewrites the configuration file; `{listen}` and `{http}` become the addresses.
    pub fn rewrite_config(&self, text: &str) {
        let path = self.folder.path().join(CONFIG_FILE);
        fs::write(path, fill(text, &self.listen, &self.http)).expect("a configuration file");
    }

    /// SIGHUP: reload.
    pub fn sighup(&mut self) {
        self.process.signal(Signal::HUP);
    }

    /// Puts a FIFO in place of the configuration file: who reads it waits for a writer.
    pub fn hang_config(&self) {
        let path = self.folder.path().join(CONFIG_FILE);
        fs::remove_file(&path).expect("a configuration file");
        let made = Command::new("mkfifo").arg(&path).status();
        assert!(made.expect("mkfifo").success());
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGTERM; returns how it ended.
    pub fn terminate(&mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.process.wait()
    }

    /// How it ended, `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

fn program(open_files: Option<u64>) -> Command {
    let natsmux = env!("CARGO_BIN_EXE_natsmux");
    let Some(open_files) = open_files else {
        return Command::new(natsmux);
    };
    let mut command = Command::new("sh");
    let limited = format!("ulimit -n {open_files}; exec \"$0\" \"$@\"");
    command.args(["-c", &limited, natsmux]);
    command
}

fn fill(text: &str, listen: &Port, http: &Port) -> String {
    let text = shared(text);
    text.replace("{listen}", &listen.address())
        .replace("{http}", &http.address())
}
