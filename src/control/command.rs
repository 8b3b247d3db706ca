//! Commands as they are written: a path, and JSON.

use std::fmt::{self, Display};
use std::time::Duration;

use humantime::format_duration;
use serde::Deserialize;
use serde_json::from_slice;

use super::Refusal;
use crate::config::parse_duration;

/// The longest that publishes may be paused for, and for how long they are where nothing is said.
const PAUSE_MOST: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_secs(30);
/// The longest that a move may be waited for, and for how long it is where nothing is said.
const WAIT_MOST: Duration = Duration::from_secs(600);
const WAIT: Duration = Duration::from_secs(60);

/// An operator's command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Move a bus to another broker of its cluster.
    Move {
        /// The bus.
        bus: String,
        /// The broker; else the next one that is up.
        to: Option<String>,
        /// How long to wait for it.
        within: Duration,
    },
    /// Leave a broker, and don't come back.
    Drain {
        /// The broker.
        broker: String,
        /// Of this bus only.
        bus: Option<String>,
        /// How long to wait for it.
        within: Duration,
    },
    /// Use a broker again.
    Undrain {
        /// The broker.
        broker: String,
        /// Of this bus only.
        bus: Option<String>,
    },
    /// Let publishes wait.
    Pause {
        /// The bus.
        bus: String,
        /// For how long at most.
        lasts: Duration,
    },
    /// Let publishes go on.
    Resume {
        /// The bus.
        bus: String,
    },
    /// List sessions.
    Sessions {
        /// Of this bus only.
        bus: Option<String>,
    },
    /// Close the connection of a component.
    Kill {
        /// Its number.
        cid: u64,
    },
    /// Read the configuration again.
    Reload,
}

/// The keys of all commands.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Keys {
    bus: Option<String>,
    broker: Option<String>,
    to: Option<String>,
    cid: Option<u64>,
    r#for: Option<String>,
    within: Option<String>,
}

impl Command {
    /// Reads a command.
    ///
    /// # Errors
    /// [`Refusal::Unknown`] for another path, [`Refusal::BadRequest`] for other keys.
    pub fn read(path: &str, body: &[u8]) -> Result<Self, Refusal> {
        let keys: Keys = match body {
            [] => Keys::default(),
            body => from_slice(body).map_err(|error| Refusal::BadRequest(error.to_string()))?,
        };
        let Keys {
            bus,
            broker,
            to,
            cid,
            r#for: lasts,
            within,
        } = keys;
        let given = |key: &str, value: Option<String>| {
            value.ok_or_else(|| Refusal::BadRequest(format!("{path} needs {key:?}")))
        };
        let wait = || duration("within", within.as_deref(), WAIT, WAIT_MOST);
        Ok(match path {
            "/move" => Self::Move {
                bus: given("bus", bus)?,
                to,
                within: wait()?,
            },
            "/drain" => Self::Drain {
                broker: given("broker", broker)?,
                bus,
                within: wait()?,
            },
            "/undrain" => Self::Undrain {
                broker: given("broker", broker)?,
                bus,
            },
            "/pause" => Self::Pause {
                bus: given("bus", bus)?,
                lasts: duration("for", lasts.as_deref(), PAUSE, PAUSE_MOST)?,
            },
            "/resume" => Self::Resume {
                bus: given("bus", bus)?,
            },
            "/sessions" => Self::Sessions { bus },
            "/kill" => Self::Kill {
                cid: cid.ok_or_else(|| Refusal::BadRequest("/kill needs \"cid\"".to_owned()))?,
            },
            "/reload" => Self::Reload,
            _ => return Err(Refusal::Unknown(format!("no command {path}"))),
        })
    }

    /// Whether it changes nothing.
    pub fn only_tells(&self) -> bool {
        matches!(self, Self::Sessions { .. })
    }
}

impl Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |f: &mut fmt::Formatter<'_>, bus: &Option<String>| match bus {
            Some(bus) => write!(f, " of bus {bus}"),
            None => Ok(()),
        };
        match self {
            Self::Move { bus, to: None, .. } => write!(f, "move {bus}"),
            Self::Move {
                bus, to: Some(to), ..
            } => write!(f, "move {bus} to {to}"),
            Self::Drain { broker, bus, .. } => {
                write!(f, "drain {broker}")?;
                at(f, bus)
            }
            Self::Undrain { broker, bus } => {
                write!(f, "undrain {broker}")?;
                at(f, bus)
            }
            Self::Pause { bus, lasts } => {
                write!(f, "pause {bus} for {}", format_duration(*lasts))
            }
            Self::Resume { bus } => write!(f, "resume {bus}"),
            Self::Sessions { bus } => {
                write!(f, "sessions")?;
                at(f, bus)
            }
            Self::Kill { cid } => write!(f, "kill {cid}"),
            Self::Reload => write!(f, "reload"),
        }
    }
}

fn duration(
    key: &str,
    text: Option<&str>,
    default: Duration,
    most: Duration,
) -> Result<Duration, Refusal> {
    let Some(text) = text else {
        return Ok(default);
    };
    let parsed = parse_duration(text).filter(|duration| !duration.is_zero() && *duration <= most);
    parsed.ok_or_else(|| {
        let most = format_duration(most);
        Refusal::BadRequest(format!(
            "{key}: expected a duration up to {most}, such as 30s"
        ))
    })
}
