//! Builds everything, runs it, reloads it, drains it.
//!
//! Two threads: a *worker* moves all bytes (see `daemon::worker`), and the thread that calls
//! [`run`] handles signals and HTTP and talks to the worker through a small queue of
//! commands. So no HTTP request can slow the data path by more than one snapshot.

mod busy;
mod credential_watch;
mod facts;
mod files;
mod handle;
mod limits;
mod obey;
mod operator;
mod order;
#[cfg(feature = "turmoil")]
pub mod simulated;
mod snapshot;
mod source;
mod worker;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin;
use crate::config::{BusConfig, Config, ConfigError, ListenAddr, LogFormat};
use crate::control::{self, Socket, SocketError};
use crate::identity::load::Fingerprint;
use crate::net::tls::ServerTls;
use crate::net::{self, socket};
use crate::telemetry::{self, LineFormat, LogError, LogGuard};
use credential_watch::CredentialWatch;
use facts::{changes, describe};
pub use files::{FileError, Files, read_files};
use handle::{Handle, Listeners, Start};
use operator::WorkerOperator;
use source::WorkerSource;

/// Why the daemon couldn't start, or ended.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// An address can't be listened on: the operator's fault, or the port is taken.
    #[error("can't listen on {addr} ({what}): {error}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The listener: a bus, or monitoring.
        what: String,
        /// The operating system's word.
        error: io::Error,
    },
    /// A runtime, a thread or a signal handler can't be had: the operating system's fault.
    #[error("can't start: {0}")]
    System(#[from] io::Error),
    /// The control socket can't be made.
    #[error("control.socket: {0}")]
    Control(#[from] SocketError),
    /// A file that holds a secret can't be used.
    #[error("can't start: {0}")]
    File(#[from] FileError),
    /// Logging was set up before in this process.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// How long reading the configuration file may take at a reload.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// Why a reload changed nothing.
#[derive(Debug, Error)]
enum ReloadError {
    #[error("started without -c: there is no file to read again")]
    NoFile,
    #[error("the file couldn't be read within {} s", READ_WITHIN.as_secs())]
    Slow,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Listen(#[from] DaemonError),
    #[error(transparent)]
    File(#[from] FileError),
}

/// Runs natsmux until SIGTERM or SIGINT. `file` is read again on SIGHUP.
///
/// # Errors
/// [`DaemonError`], before any component was accepted.
pub fn run(config: Config, file: Option<PathBuf>) -> Result<(), DaemonError> {
    let log = telemetry::init(line_format(config.log.format), config.log.level.into())?;
    limits::forbid_core_dumps();
    let open_files = limits::raise_open_files();
    let max_connections = limits::max_connections(&config, open_files);
    let mut listeners = Listeners::new();
    for bus in &config.buses {
        listeners.insert(bus.name.clone(), bind_bus(bus)?);
    }
    let http = config.http.map(bind_http).transpose()?;
    let commands = config.control.as_deref().map(Socket::bind).transpose()?;
    if let Some(exposed) = exposed_listener(&config) {
        warn!("{exposed}");
    }
    let seed = RandomState::new().hash_one(&config.name);
    let mut watch = CredentialWatch::default();
    let state = credential_watch::look(&config);
    let files = files::read_files(&config)?;
    watch.note(state, &files);
    let start = Start {
        config: config.clone(),
        files,
        listeners,
        max_connections,
        seed,
    };
    let described = describe(&config, &start.files);
    let http_tls = start.files.http_tls.clone().map(watch::Sender::new);
    info!(
        name = config.name,
        version = env!("CARGO_PKG_VERSION"),
        buses = config.buses.len(),
        open_files,
        max_connections,
        "natsmux starts"
    );
    let (worker, handle) = worker::spawn(start)?;
    limits::yield_to_the_worker();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut control = Control {
        config,
        file,
        handle,
        log,
        open_files,
        seed,
        http_tls,
        watch,
        described,
    };
    let result = runtime.block_on(control.run(http, commands));
    // A configuration file that hangs must not keep the process.
    runtime.shutdown_background();
    drop(control);
    if worker.join().is_err() {
        error!("the worker panicked");
    }
    result
}

/// The life of the control thread.
struct Control {
    config: Config,
    file: Option<PathBuf>,
    handle: Handle,
    log: LogGuard,
    open_files: u64,
    seed: u64,
    /// TLS of the HTTP listener, as of now.
    http_tls: Option<watch::Sender<ServerTls>>,
    watch: CredentialWatch,
    /// The configuration and what its files hold, in words.
    described: Vec<String>,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// SIGUSR1 and SIGUSR2, which would end the process.
    user: [Signal; 2],
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user: [
                signal(SignalKind::user_defined1())?,
                signal(SignalKind::user_defined2())?,
            ],
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl Control {
    async fn run(
        &mut self,
        http: Option<std::net::TcpListener>,
        mut commands: Option<Socket>,
    ) -> Result<(), DaemonError> {
        let mut signals = Signals::new()?;
        let stop = CancellationToken::new();
        let server = http
            .map(tokio::net::TcpListener::from_std)
            .transpose()?
            .map(|listener| {
                let tls = self.http_tls.as_ref().map(watch::Sender::subscribe);
                let events = self.log.events();
                let source = WorkerSource::new(self.handle.clone(), events, tls.clone());
                let origins = self.config.cors_origins.clone();
                let mut access = admin::Access::new(origins);
                access.tls = tls;
                tokio::spawn(admin::serve(
                    listener,
                    Arc::new(source),
                    access,
                    stop.clone(),
                ))
            });
        let source = WorkerSource::new(self.handle.clone(), self.log.events(), None);
        let (operator, mut reloads) = WorkerOperator::new(self.handle.clone(), source);
        let operator = Arc::new(operator);
        if let Some(listener) = commands.as_mut().and_then(Socket::take_listener) {
            let operator = Arc::clone(&operator);
            tokio::spawn(control::serve(listener, operator, stop.clone()));
        }
        let mut look = tokio::time::interval(credential_watch::EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_idle = CredentialWatch::is_idle(&self.config);
            let [first, second] = &mut signals.user;
            tokio::select! {
                biased;
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                () = self.handle.gone() => break,
                _ = first.recv() => info!("SIGUSR1 ignored: the log goes to stderr"),
                _ = second.recv() => info!("SIGUSR2 ignored"),
                _ = look.tick(), if !is_idle => {
                    tokio::select! {
                        biased;
                        () = signals.stop() => break,
                        () = self.renew_credentials() => {}
                    }
                }
                _ = signals.hangup.recv() => {
                    let reloaded = tokio::select! {
                        biased;
                        () = signals.stop() => break,
                        reloaded = self.reload() => reloaded,
                    };
                    note_reload(&reloaded);
                }
                Some(reply) = reloads.recv() => {
                    let reloaded = tokio::select! {
                        biased;
                        () = signals.stop() => break,
                        reloaded = self.reload() => reloaded,
                    };
                    note_reload(&reloaded);
                    // Whoever asked may have gone.
                    let _ = reply.send(reloaded.map_err(|refused| refused.to_string()));
                }
            }
        }
        self.drain(&mut signals).await;
        stop.cancel();
        if let Some(server) = server {
            // Bounded by the server's own time-outs; the process ends here anyway.
            let _ = tokio::time::timeout(Duration::from_millis(500), server).await;
        }
        Ok(())
    }

    async fn drain(&mut self, signals: &mut Signals) {
        info!(
            timeout_ms = self.config.drain_timeout.as_millis() as u64,
            "draining"
        );
        tokio::select! {
            biased;
            () = signals.stop() => warn!("second signal: closing at once"),
            drained = tokio::time::timeout(self.config.drain_timeout, self.handle.drain()) => {
                if drained.is_err() {
                    warn!("drain timed out: closing what is left");
                }
            }
        }
        self.handle.stop();
    }

    /// Reads the files of identities again, where they have changed.
    async fn renew_credentials(&mut self) {
        self.watch.warn_of_ends(SystemTime::now());
        let config = self.config.clone();
        let look = tokio::task::spawn_blocking(move || {
            let state = credential_watch::look(&config);
            (state, config)
        });
        let Ok(Ok((state, config))) = tokio::time::timeout(READ_WITHIN, look).await else {
            return;
        };
        if self.watch.is_current(&state) {
            return;
        }
        let read = tokio::task::spawn_blocking(move || files::read_files(&config));
        match tokio::time::timeout(READ_WITHIN, read).await {
            Ok(Ok(Ok(files))) => {
                self.watch.note(state, &files);
                self.described = describe(&self.config, &files);
                self.handle.renew(files).await;
            }
            // It may be half written, or another file is wrong: they are read again soon.
            Ok(Ok(Err(error))) => {
                if self.watch.is_news(&error.to_string()) {
                    error!(%error, "changed credentials can't be used, the former ones stay");
                }
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }

    /// Reads the file in a thread of its own: one that hangs, a FIFO or a network file system, must
    /// stop neither HTTP nor signals.
    async fn read_again(&self) -> Result<(Config, Files, Vec<Fingerprint>), ReloadError> {
        let file = self.file.clone().ok_or(ReloadError::NoFile)?;
        let running = self.config.clone();
        let read = move || -> Result<_, ReloadError> {
            let new = running.reload(&file)?;
            let state = credential_watch::look(&new);
            let files = files::read_files(&new)?;
            Ok((new, files, state))
        };
        let reading = tokio::task::spawn_blocking(read);
        match tokio::time::timeout(READ_WITHIN, reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => Err(ReloadError::Refused("reading the file panicked".to_owned())),
            Err(_) => Err(ReloadError::Slow),
        }
    }

    /// Takes over the configuration as it is written now. Returns what that changes.
    async fn reload(&mut self) -> Result<Vec<String>, ReloadError> {
        let (new, files, state) = self.read_again().await?;
        if let Some(fixed) = self.config.needs_restart(&new) {
            return Err(ReloadError::Refused(fixed.to_string()));
        }
        let mut listeners = Listeners::new();
        for bus in &new.buses {
            if !self.config.buses.iter().any(|old| old.name == bus.name) {
                listeners.insert(bus.name.clone(), bind_bus(bus)?);
            }
        }
        if let (Some(tls), Some(new)) = (&self.http_tls, &files.http_tls) {
            tls.send_replace(new.clone());
        }
        let described = describe(&new, &files);
        self.watch.note(state, &files);
        self.log.set_level(new.log.level.into());
        let start = Start {
            config: new.clone(),
            files,
            listeners,
            max_connections: limits::max_connections(&new, self.open_files),
            seed: self.seed,
        };
        self.handle.reload(start).await;
        self.config = new;
        let before = std::mem::replace(&mut self.described, described);
        Ok(changes(&before, &self.described))
    }
}

/// Tells the log how a reload ended.
fn note_reload(reloaded: &Result<Vec<String>, ReloadError>) {
    match reloaded {
        Ok(changed) => {
            info!(changes = changed.len(), "configuration reloaded");
            changed.iter().for_each(|line| info!("{line}"));
        }
        Err(refused) => error!(%refused, "reload refused, nothing changed"),
    }
}

/// A warning of the first listener to which other hosts may speak in plain text, though nobody has
/// allowed it.
pub fn exposed_listener(config: &Config) -> Option<String> {
    let mut buses = config.buses.iter();
    buses.find_map(|bus| {
        let addr = bus.plain_listener()?;
        Some(format!(
            "bus {}: other hosts may speak plain text to {addr}; write [bus.listen_tls], or allow_plain = true",
            bus.name
        ))
    })
}

fn bind_bus(bus: &BusConfig) -> Result<Vec<socket::Bound>, DaemonError> {
    let mut listeners = Vec::new();
    for &ListenAddr { addr, optional } in &bus.listen {
        match socket::bind(addr) {
            Ok(listener) => listeners.push(listener),
            Err(error) if optional && lacks_address_family(&error) => {
                warn!(bus = bus.name, %addr, "no IPv6 on this host, skipping this address");
            }
            Err(error) => {
                let what = format!("bus {}", bus.name);
                return Err(DaemonError::Listen { addr, what, error });
            }
        }
    }
    Ok(listeners)
}

fn bind_http(addr: SocketAddr) -> Result<std::net::TcpListener, DaemonError> {
    net::listen(addr).map_err(|error| DaemonError::Listen {
        addr,
        what: "http".to_owned(),
        error,
    })
}

fn lacks_address_family(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error();
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL]
        .iter()
        .any(|lacks| errno == Some(lacks.raw_os_error()))
}

fn line_format(format: LogFormat) -> LineFormat {
    match format {
        LogFormat::Text => LineFormat::Text,
        LogFormat::Json => LineFormat::Json,
    }
}
