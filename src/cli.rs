//! The command line: what was asked for, and how faults in it are shown.
//!
//! Values that may hold a secret are taken as text and judged by `config`,
//! which never repeats them. clap does repeat what it refuses, so its messages
//! pass through [`hide_secrets`].

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use natsmux::config::{Choice, Config, ConfigError, Delivery, Flags, LogFormat, LogLevel};
use natsmux::config::{Sharing, TlsFiles, Topology};
use natsmux::net::tls::{ClientTls, TlsFileError};
use thiserror::Error;

/// Keeps local NATS sessions alive while the brokers behind them come and go.
#[derive(Debug, Parser)]
#[command(name = "natsmux", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The command to run.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve components until SIGTERM. SIGHUP reloads the file of -c
    Run(Box<RunArgs>),
    /// Check a file and print what it means
    Check(CheckArgs),
    /// Show the state of a running natsmux
    Status(StatusArgs),
    /// Show the state repeatedly, with rates
    Top(TopArgs),
    /// Move a bus to another broker of its cluster
    Move(MoveArgs),
    /// Leave a broker and don't come back: before it is upgraded
    Drain(DrainArgs),
    /// Use a broker again that was drained
    Undrain(UndrainArgs),
    /// Let publishes wait; deliveries go on
    Pause(PauseArgs),
    /// Let publishes go on
    Resume(ResumeArgs),
    /// List the connections of components
    Sessions(SessionsArgs),
    /// Close the connection of a component
    Kill(KillArgs),
    /// Read the configuration again, and say what changed
    Reload(ReloadArgs),
}

/// Flags of `natsmux run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Configuration file; flags override it
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    file: Option<PathBuf>,

    /// Address that components connect to; may be repeated [default: 127.0.0.1:4222 and [::1]:4222]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,

    /// Address of health and metrics, or "off" [default: 127.0.0.1:8222]
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,

    /// Unix socket for an operator's commands, or "off" [default: off]
    #[arg(long, value_name = "PATH")]
    control: Option<String>,

    /// Broker URL (nats://host:port); several with commas, or repeated
    #[arg(long = "broker", value_name = "URL")]
    brokers: Vec<String>,

    /// How the brokers are related [default: cluster]
    #[arg(long, value_name = "TOPOLOGY", value_parser = word::<Topology>())]
    topology: Option<Topology>,

    /// Which components share a connection to the broker [default: none]
    #[arg(long, value_name = "SHARING", value_parser = word::<Sharing>())]
    sharing: Option<Sharing>,

    /// Delivery of publishes in doubt [default: at-most-once]
    #[arg(long, value_name = "DELIVERY", value_parser = word::<Delivery>())]
    delivery: Option<Delivery>,

    /// Name of this instance [default: the host's name]
    #[arg(long)]
    name: Option<String>,

    /// Log format [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = word::<LogFormat>())]
    log: Option<LogFormat>,

    /// Log level [default: info]
    #[arg(long, value_name = "LEVEL", value_parser = word::<LogLevel>())]
    log_level: Option<LogLevel>,
}

/// Flags of `natsmux check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Configuration file
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// Flags of `natsmux status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Address of its health and metrics
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8222")]
    pub(crate) http: SocketAddr,

    #[command(flatten)]
    pub(crate) tls: HttpTlsArgs,

    /// Print everything, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `natsmux top`.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Address of its health and metrics
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8222")]
    pub(crate) http: SocketAddr,

    #[command(flatten)]
    pub(crate) tls: HttpTlsArgs,

    /// Seconds between updates
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) every: u64,

    /// Stop after this many updates [default: never]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rounds: Option<u64>,
}

/// Flags about the control socket.
#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    /// Its control socket
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/natsmux/control.sock",
        conflicts_with = "file"
    )]
    socket: PathBuf,

    /// Its configuration file, which says where the control socket is
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    file: Option<PathBuf>,

    /// Print the answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl ControlArgs {
    /// The path of the control socket.
    pub(crate) fn into_socket(self) -> Result<PathBuf, InputError> {
        let Some(file) = self.file else {
            return Ok(self.socket);
        };
        let control = Config::load(&file)?.control;
        control.ok_or(InputError::NoControl(file))
    }
}

/// Flags of `natsmux move`.
#[derive(Debug, Args)]
pub(crate) struct MoveArgs {
    /// The bus
    pub(crate) bus: String,

    /// The broker (host:port) [default: the next that is up]
    #[arg(long, value_name = "BROKER")]
    pub(crate) to: Option<String>,

    /// How long to wait for it, up to 10m
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub(crate) within: String,

    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

/// Flags of `natsmux drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The broker (host:port)
    pub(crate) broker: String,

    /// Of this bus only [default: all buses that have it]
    #[arg(long)]
    pub(crate) bus: Option<String>,

    /// How long to wait for it, up to 10m
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub(crate) within: String,

    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

/// Flags of `natsmux undrain`.
#[derive(Debug, Args)]
pub(crate) struct UndrainArgs {
    /// The broker (host:port)
    pub(crate) broker: String,

    /// Of this bus only [default: all buses that have it]
    #[arg(long)]
    pub(crate) bus: Option<String>,

    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

/// Flags of `natsmux pause`.
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// The bus
    pub(crate) bus: String,

    /// For how long at most, up to 10m
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub(crate) r#for: String,

    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

/// Flags of `natsmux resume`.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// The bus
    pub(crate) bus: String,

    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

/// Flags of `natsmux sessions`.
#[derive(Debug, Args)]
pub(crate) struct SessionsArgs {
    /// Of this bus only
    #[arg(long)]
    pub(crate) bus: Option<String>,

    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

/// Flags of `natsmux kill`.
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// The number of the connection, as `natsmux sessions` shows it
    pub(crate) cid: u64,

    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

/// Flags of `natsmux reload`.
#[derive(Debug, Args)]
pub(crate) struct ReloadArgs {
    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

/// Flags about TLS of the HTTP listener.
#[derive(Debug, Args)]
pub(crate) struct HttpTlsArgs {
    /// Speak TLS, and trust the authorities in this file
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// The certificate to show, where `client_ca` asks for one
    #[arg(long, value_name = "FILE", requires_all = ["ca", "key"])]
    cert: Option<PathBuf>,

    /// Its key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,

    /// The name in natsmux's certificate [default: the address]
    #[arg(long, value_name = "NAME", requires = "ca")]
    server_name: Option<String>,
}

impl HttpTlsArgs {
    /// Reads the files; `None`: natsmux is asked in plain text.
    pub(crate) fn load(&self) -> Result<Option<ClientTls>, InputError> {
        if self.ca.is_none() {
            return Ok(None);
        }
        let files = TlsFiles {
            ca: self.ca.clone(),
            pair: self.cert.clone().zip(self.key.clone()),
            ..TlsFiles::default()
        };
        Ok(Some(ClientTls::load(&files, self.server_name.as_deref())?))
    }
}

/// Why the command line or the file was refused. The operator's fault.
#[derive(Debug, Error)]
pub(crate) enum InputError {
    /// A wrong value.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no control socket.
    #[error("{}: no [control] socket there", .0.display())]
    NoControl(PathBuf),
    /// A certificate, or its key.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
}

impl RunArgs {
    /// The configuration that these flags describe, and the file to read again.
    pub(crate) fn into_config(self) -> Result<(Config, Option<PathBuf>), InputError> {
        let flags = Flags {
            listen: self.listen,
            http: self.http,
            control: self.control,
            brokers: self.brokers,
            topology: self.topology,
            sharing: self.sharing,
            delivery: self.delivery,
            name: self.name,
            log: self.log,
            log_level: self.log_level,
        };
        let config = match &self.file {
            Some(file) => Config::load_with_flags(file, flags)?,
            None => Config::from_flags(flags)?,
        };
        Ok((config, self.file))
    }
}

impl CheckArgs {
    /// The configuration in the file.
    pub(crate) fn into_config(self) -> Result<Config, InputError> {
        Ok(Config::load(&self.file)?)
    }
}

/// Reads the command line, or gives the text to show instead of doing anything.
pub(crate) fn parse(args: &[OsString]) -> Result<Cli, Refusal> {
    Cli::try_parse_from(args).map_err(|error| Refusal {
        is_fault: !matches!(
            error.kind(),
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
        ),
        text: hide_secrets(&error.render().to_string(), args),
    })
}

/// A text to show instead of doing anything.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Whether the command line is wrong; else help or the version was asked for.
    pub(crate) is_fault: bool,
    /// The text.
    pub(crate) text: String,
}

fn word<T: Choice>() -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(T::words()).try_map(|word| T::from_word(&word).ok_or("unknown"))
}

/// Takes every argument out of a message that could hold credentials.
fn hide_secrets(message: &str, args: &[OsString]) -> String {
    let mut shown = message.to_owned();
    for arg in args.iter().filter_map(|arg| arg.to_str()) {
        let value = arg.split_once('=').map(|(_, value)| value);
        for text in [Some(arg), value].into_iter().flatten() {
            if text.contains(['@', ':']) {
                shown = shown.replace(text, "(hidden)");
            }
        }
    }
    let leaks = |line: &&str| !line.contains('@');
    shown
        .lines()
        .filter(leaks)
        .map(|line| format!("{line}\n"))
        .collect()
}
