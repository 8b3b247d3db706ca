//! Changes that a reload can't make.

use thiserror::Error;

use super::options::{BusConfig, Config};

/// An option that differs in the new file, but holds until a restart.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NeedsRestart {
    /// An option of the daemon.
    #[error("{0} can't change on reload; restart natsmux")]
    Daemon(&'static str),
    /// An option of a bus that is there before and after.
    #[error(
        "bus {bus}: {option} can't change on reload; restart natsmux or give the bus a new name"
    )]
    Bus {
        /// The bus.
        bus: String,
        /// The option.
        option: &'static str,
    },
}

impl Config {
    /// The first difference between the running configuration and `new` that a
    /// reload can't take over. Then `new` as a whole is refused.
    pub fn needs_restart(&self, new: &Self) -> Option<NeedsRestart> {
        let daemon = [
            (self.name != new.name, "name"),
            (self.http != new.http, "http.listen"),
            (
                self.http_tls.is_some() != new.http_tls.is_some(),
                "http.tls, but for its files,",
            ),
            (self.cors_origins != new.cors_origins, "http.cors_origins"),
            (self.control != new.control, "control.socket"),
            (self.log.format != new.log.format, "log.format"),
        ];
        if let Some((_, option)) = daemon.into_iter().find(|(differs, _)| *differs) {
            return Some(NeedsRestart::Daemon(option));
        }
        self.buses.iter().find_map(|old| {
            let new = new.buses.iter().find(|bus| bus.name == old.name)?;
            let option = fixed_difference(old, new)?;
            Some(NeedsRestart::Bus {
                bus: old.name.clone(),
                option,
            })
        })
    }
}

fn fixed_difference(old: &BusConfig, new: &BusConfig) -> Option<&'static str> {
    let fixed = [
        (old.listen != new.listen, "listen"),
        (old.topology != new.topology, "topology"),
        (old.presence != new.presence, "presence"),
        (old.sharing != new.sharing, "sharing"),
        (old.delivery != new.delivery, "delivery"),
        (
            old.lenient_connect != new.lenient_connect,
            "lenient_connect",
        ),
        (old.admit != new.admit, "admit"),
        (
            listen_mode(old) != listen_mode(new),
            "listen_tls, but for its files,",
        ),
    ];
    let found = fixed.into_iter().find(|(differs, _)| *differs);
    found.map(|(_, option)| option)
}

/// The order and the choice that a listener leaves to components.
fn listen_mode(bus: &BusConfig) -> Option<(bool, bool)> {
    let tls = bus.listen_tls.as_ref()?;
    Some((tls.handshake_first, tls.available))
}
