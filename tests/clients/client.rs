//! One client program behind one contract, whatever it is written in.
//!
//! A program gets URL, subject prefix and mode, prints one JSON object a line, stops
//! mode `steady` at a line on stdin, and ends with 0 only if all was as it expected. The
//! Rust client keeps the same contract on a thread of its own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::rust_client;
use crate::support::{PATIENCE, target_dir, wait_for};

/// Messages after which mode `steady` stops by itself: 200 s of them.
const STEADY_MOST: u32 = 100_000;
const TRANSCRIPT_PATIENCE: Duration = Duration::from_secs(60);

/// The client libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Python,
    Node,
    C,
    Rust,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Python, Self::Node, Self::C, Self::Rust];

    fn command(self) -> Command {
        match self {
            Self::Python => python("python/client.py"),
            Self::Node => node("node/client.cjs"),
            Self::C => Command::new(c_program(&source("c"))),
            Self::Rust => unreachable!("the Rust client is a thread"),
        }
    }
}

/// A file or folder beside this one.
fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(path)
}

fn node(program: &str) -> Command {
    let modules = needed(target_dir().join("tools/npm/node_modules"));
    let mut command = Command::new("node");
    command.arg(source(program));
    command.env("NODE_PATH", modules);
    command
}

fn python(program: &str) -> Command {
    let python = target_dir().join("tools/venv/bin/python");
    let mut command = Command::new(needed(python));
    command.arg(source(program));
    command
}

fn needed(path: PathBuf) -> PathBuf {
    assert!(
        path.exists(),
        "{} is missing: run `make test`, which installs it",
        path.display()
    );
    path
}

/// Compiles the C client, once per test process.
fn c_program(sources: &Path) -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c-client");
        let fresh = program.with_extension(std::process::id().to_string());
        let status = Command::new("cc")
            .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&fresh)
            .args([sources.join("client.c"), sources.join("steady.c")])
            .args(["-lnats", "-lpthread"])
            .status()
            .expect("cc runs: `make test` installs it");
        assert!(
            status.success(),
            "the C client compiles: `make test` installs libnats-dev"
        );
        fs::rename(&fresh, &program).expect("the compiled C client can be put in place");
        program
    })
}

/// What the client is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Basic,
    Refused,
    Start,
    Steady,
}

impl Mode {
    fn args(self) -> Vec<String> {
        match self {
            Self::Basic => vec!["basic".to_owned()],
            Self::Refused => vec!["refused".to_owned()],
            Self::Start => vec!["start".to_owned()],
            Self::Steady => vec!["steady".to_owned(), STEADY_MOST.to_string()],
        }
    }
}

enum Worker {
    Program {
        child: Child,
        stdin: Option<ChildStdin>,
    },
    Thread {
        stop: Option<oneshot::Sender<()>>,
        lines: Option<UnboundedSender<&'static str>>,
        handle: Option<JoinHandle<bool>>,
    },
}

/// A running client. Dropping it ends it.
pub(crate) struct Client {
    pub(crate) kind: Kind,
    events: Receiver<Value>,
    worker: Worker,
    /// The newest `published` and `received` of mode `steady`.
    pub(crate) published: u64,
    pub(crate) received: u64,
}

impl Client {
    pub(crate) fn start(kind: Kind, url: &str, prefix: &str, mode: Mode) -> Self {
        let (sender, events) = mpsc::channel();
        let worker = match kind {
            Kind::Rust => start_thread(url, prefix, mode, sender),
            _ => start_program(kind, url, prefix, mode, sender),
        };
        Self {
            kind,
            events,
            worker,
            published: 0,
            received: 0,
        }
    }

    /// The component of `python/jetstream.py`.
    pub(crate) fn jetstream(url: &str, name: &str, again: bool) -> Self {
        let (sender, events) = mpsc::channel();
        let command = python("python/jetstream.py");
        Self {
            kind: Kind::Python,
            events,
            worker: spawn(named(command, url, name, again), sender),
            published: 0,
            received: 0,
        }
    }

    /// The pull consumers of `pulls`, in each library that has some.
    pub(crate) fn pulls(kind: Kind, url: &str, name: &str, again: bool) -> Self {
        let (sender, events) = mpsc::channel();
        let worker = match kind {
            Kind::Python => spawn(named(python("python/pulls.py"), url, name, again), sender),
            Kind::Node => spawn(named(node("node/pulls.cjs"), url, name, again), sender),
            Kind::Rust => {
                let (url, name) = (url.to_owned(), name.to_owned());
                let (lines, said) = unbounded_channel();
                let pulls =
                    async move |events| rust_client::pulls(&url, &name, again, said, events).await;
                let handle = thread::spawn(move || runtime().block_on(pulls(sender)));
                Worker::Thread {
                    stop: None,
                    lines: Some(lines),
                    handle: Some(handle),
                }
            }
            Kind::C => unreachable!("the C client has no pulls"),
        };
        Self {
            kind,
            events,
            worker,
            published: 0,
            received: 0,
        }
    }

    /// Says a line to a client that listens for some.
    pub(crate) fn say(&mut self, line: &'static str) {
        match &mut self.worker {
            Worker::Program { stdin, .. } => {
                let stdin = stdin.as_mut().expect("it is not told to stop");
                writeln!(stdin, "{line}").expect("the client listens");
            }
            Worker::Thread { lines, .. } => {
                let lines = lines.as_ref().expect("it listens");
                lines.send(line).expect("the client listens");
            }
        }
    }

    /// The next event of this name: progress is passed over.
    pub(crate) fn await_event(&mut self, name: &str) -> Value {
        let what = format!("`{name}` of {:?}", self.kind);
        wait_for(&what, PATIENCE, || {
            self.events.try_iter().find(|event| event["event"] == name)
        })
    }

    /// Takes in the progress that was reported so far.
    pub(crate) fn refresh(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            assert_eq!(event["event"], "progress", "{:?} ended: {event}", self.kind);
            self.published = event["published"].as_u64().unwrap_or(self.published);
            self.received = event["received"].as_u64().unwrap_or(self.received);
        }
    }

    /// The next event, if one comes within `patience`.
    pub(crate) fn next_event(&mut self, patience: Duration) -> Option<Value> {
        self.events.recv_timeout(patience).ok()
    }

    /// Tells mode `steady` to finish.
    pub(crate) fn stop(&mut self) {
        match &mut self.worker {
            Worker::Program { stdin, .. } => {
                if let Some(mut stdin) = stdin.take() {
                    // A program that has ended shows in its events and exit code.
                    let _ = stdin.write_all(b"stop\n");
                }
            }
            Worker::Thread { stop, lines, .. } => drop((stop.take(), lines.take())),
        }
    }

    /// All events until the end, and whether the client found all as it expected.
    pub(crate) fn finish(mut self) -> (Vec<Value>, bool) {
        let deadline = Instant::now() + TRANSCRIPT_PATIENCE;
        let mut events = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) => events.push(event),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{:?} does not end; so far: {events:#?}", self.kind)
                }
            }
        }
        let content = match &mut self.worker {
            Worker::Program { child, .. } => {
                wait_for("a client's end", PATIENCE, || child.try_wait().ok()?).success()
            }
            Worker::Thread { handle, .. } => {
                handle.take().is_some_and(|h| h.join().unwrap_or(false))
            }
        };
        (events, content)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
        if let Worker::Program { child, .. } = &mut self.worker {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_program(kind: Kind, url: &str, prefix: &str, mode: Mode, events: Sender<Value>) -> Worker {
    let mut command = kind.command();
    command.args([url, prefix]).args(mode.args());
    spawn(command, events)
}

fn spawn(mut command: Command, events: Sender<Value>) -> Worker {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: run `make test`, which installs it"));
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().expect("stdout is piped");
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
            if events.send(event).is_err() {
                return;
            }
        }
    });
    Worker::Program { child, stdin }
}

fn start_thread(url: &str, prefix: &str, mode: Mode, events: Sender<Value>) -> Worker {
    let (stop, stopped) = oneshot::channel();
    let (url, prefix) = (url.to_owned(), prefix.to_owned());
    let handle = thread::spawn(move || {
        runtime().block_on(async {
            match mode {
                Mode::Basic => rust_client::basic(&url, &prefix, events).await,
                Mode::Refused => rust_client::refused(&url, events).await,
                Mode::Start => rust_client::start(&url, &prefix, events).await,
                Mode::Steady => {
                    rust_client::steady(&url, &prefix, STEADY_MOST, stopped, events).await
                }
            }
        })
    });
    Worker::Thread {
        stop: Some(stop),
        lines: None,
        handle: Some(handle),
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn named(mut command: Command, url: &str, name: &str, again: bool) -> Command {
    command.args([url, name]).args(again.then_some("again"));
    command
}
