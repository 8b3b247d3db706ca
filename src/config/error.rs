//! Errors of a configuration, and where they stand.
//!
//! Every fault names its location (file, line, key) and what was expected there.
//! It never repeats the value that was found: a broker's URL may hold a
//! password, and errors end up in logs.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a configuration was refused. The operator's fault, always.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: can't be read: {source}", file.display())]
    Read {
        /// The file that was asked for.
        file: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A value, or the lack of one, at a known location.
    #[error("{location}: {fault}")]
    Wrong {
        /// Where it stands.
        location: Box<Location>,
        /// The fault there.
        fault: Fault,
    },
}

impl ConfigError {
    pub(super) fn wrong(location: Location, fault: impl Into<Fault>) -> Self {
        Self::Wrong {
            location: Box::new(location),
            fault: fault.into(),
        }
    }

    /// Adds the name of the file that the error was found in.
    pub(super) fn in_file(self, path: &Path) -> Self {
        match self {
            Self::Read { .. } => self,
            Self::Wrong {
                mut location,
                fault,
            } => {
                location.file = Some(path.to_owned());
                Self::Wrong { location, fault }
            }
        }
    }
}

/// Where a value was written: a line and a key of a file, or a flag.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// The file; `None` for flags and for text that came from no file.
    pub file: Option<PathBuf>,
    /// The line, counted from 1; `None` where nothing was written.
    pub line: Option<usize>,
    /// The key with the tables it stands in (`bus.timings.fence_interval`), or
    /// the flag (`--broker`). Empty where the text is no TOML.
    pub key: String,
}

impl Location {
    /// The location of a flag of the command line.
    pub(super) fn flag(name: &str) -> Self {
        Self {
            key: name.to_owned(),
            ..Self::default()
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            separator = ": ";
        }
        if let Some(line) = self.line {
            write!(f, "{separator}line {line}")?;
            separator = ": ";
        }
        if !self.key.is_empty() {
            write!(f, "{separator}{}", self.key)?;
        }
        Ok(())
    }
}

/// A fault at a location.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// The text is no TOML. The parser's words, without what was found.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// A key that natsmux doesn't know.
    #[error("unknown key; expected one of {}", .0.join(", "))]
    UnknownKey(Vec<&'static str>),
    /// A key that must be there is missing.
    #[error("missing; expected {0}")]
    Missing(&'static str),
    /// The value has another type or form.
    #[error("expected {0}")]
    Expected(&'static str),
    /// The value is none of a closed set.
    #[error("expected one of {}", .0.join(", "))]
    Choice(Vec<&'static str>),
    /// The value is outside of its bounds.
    #[error("out of bounds: expected {what} from {min} to {max}")]
    Bounds {
        /// "a duration", "a size" or "a number".
        what: &'static str,
        /// The smallest value allowed, as it would be written.
        min: String,
        /// The largest value allowed, as it would be written.
        max: String,
    },
    /// A limit of one bus or session is above the limit of the daemon.
    #[error("out of bounds: expected at most {total}, which is {key}")]
    AboveTotal {
        /// The daemon's limit.
        key: &'static str,
        /// Its value, as it would be written.
        total: String,
    },
    /// An outage would be told of before brokers had been asked.
    #[error("expected 0s, or at least three times bus.timings.probe_interval")]
    RevealedTooSoon,
    /// At-least-once gives up no publish that it has accepted.
    #[error("expected keep: delivery = at-least-once gives up no publish")]
    DropsAtLeastOnce,
    /// An address of a broker.
    #[error(transparent)]
    Broker(#[from] BrokerFault),
    /// A broker stands twice in one bus.
    #[error("{0} is listed twice")]
    DuplicateBroker(String),
    /// Two buses have one name.
    #[error("two buses are named {0}; expected a name of its own for each")]
    DuplicateBus(String),
    /// Two identities of one bus have one name.
    #[error("two identities are named {0}; expected a name of its own for each")]
    DuplicateIdentity(String),
    /// Whoever reaches a listener would be an identity.
    #[error("expected something that components must prove: {0} is no loopback address")]
    AnybodyAnywhere(SocketAddr),
    /// Two listeners want one address.
    #[error("{0} is listened on twice; expected an address of its own for each listener")]
    DuplicateListen(String),
    /// A broker that is natsmux itself: every message would go round for ever.
    #[error("{0} is natsmux's own listen address; expected the address of a nats-server")]
    Loop(String),
    /// Flags that describe one bus, beside a file that describes several.
    #[error("describes one bus, but the file has {0}; expected it in the file")]
    SeveralBuses(usize),
}

/// A fault of a broker's address. Never shows the address.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BrokerFault {
    /// The URL holds a user, a password or a token.
    #[error(
        "expected nats://host:port without credentials: components' own credentials are passed through"
    )]
    Credentials,
    /// Another scheme, or a path behind the port.
    #[error("expected nats://host:port, tls://host:port, host:port or host")]
    Form,
    /// The host is empty, or neither a name nor an IP address.
    #[error("expected a host name, an IPv4 address or an IPv6 address in brackets before the port")]
    Host,
    /// The port is no number from 1 to 65535.
    #[error("expected a port from 1 to 65535 behind the host")]
    Port,
}
