//! The configuration: as it was written, in a file or in flags, and as it is meant, checked.
//!
//! `options` holds every option with its meaning and default, `walk` every key
//! with its bounds. `section` and `file` read TOML, `flags` the command line;
//! `check` holds what must be true between options. A [`Config`] that comes out
//! of here is valid by itself; whether a reload may take it over is
//! [`Config::needs_restart`].
//!
//! Nothing here reads a global, opens a socket or resolves a name. No error
//! ever shows a value: it may be a password.

mod address;
mod check;
mod choice;
mod error;
mod file;
mod flags;
mod identity;
mod identity_section;
mod listing;
mod options;
mod reload;
mod section;
#[cfg(test)]
mod tests;
mod tls;
mod tls_section;
mod units;
mod walk;

pub use address::{BrokerAddr, DEFAULT_PORT, ListenAddr};
pub use choice::{
    Admit, Choice, Delivery, Failback, Identical, LogFormat, LogLevel, OutagePublishes, Sharing,
    Signed, TlsMode, TlsVersion, Topology,
};
pub use error::{BrokerFault, ConfigError, Fault, Location};
pub use identity::{CredentialSource, CredentialsConfig, IdentityConfig, MatchConfig};
pub use options::{
    BusConfig, BusLimits, Config, DaemonLimits, Flags, LogConfig, PongHold, Timings, host_name,
};
pub use reload::NeedsRestart;
pub use tls::{ListenTlsConfig, TlsConfig, TlsFiles};
pub(crate) use units::parse_duration;
