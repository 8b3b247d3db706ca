//! The flags of `natsmux run`: one bus named `default`, or changes to a file.

use std::path::Path;

use super::check::{self, BusLocations, Locations};
use super::error::{ConfigError, Fault, Location};
use super::file::{broker_list, control_socket, http_listen, instance_name, listen_list};
use super::options::{BusConfig, Config, Flags};

impl Flags {
    /// The first flag that describes a bus, if there is one.
    fn bus_flag(&self) -> Option<&'static str> {
        [
            (!self.listen.is_empty(), "--listen"),
            (!self.brokers.is_empty(), "--broker"),
            (self.topology.is_some(), "--topology"),
            (self.sharing.is_some(), "--sharing"),
            (self.delivery.is_some(), "--delivery"),
        ]
        .into_iter()
        .find_map(|(given, name)| given.then_some(name))
    }
}

impl Config {
    /// The configuration that flags describe without a file.
    ///
    /// # Errors
    /// [`ConfigError`] names the flag and what was expected, and never shows
    /// what was written: `--broker` may hold a password.
    pub fn from_flags(flags: Flags) -> Result<Self, ConfigError> {
        if flags.brokers.is_empty() {
            let expected = "a broker, such as --broker nats://10.0.0.1:4222, or a file with -c";
            return Err(ConfigError::wrong(
                Location::flag("--broker"),
                Fault::Missing(expected),
            ));
        }
        let mut config = Self::default();
        config.buses.push(BusConfig::new("default", Vec::new()));
        config.with_flags(flags)
    }

    /// Reads a file and lays the flags over it. Flags that describe a bus need
    /// a file with exactly one.
    ///
    /// # Errors
    /// As [`Config::load`] and [`Config::from_flags`].
    pub fn load_with_flags(path: &Path, flags: Flags) -> Result<Self, ConfigError> {
        Self::load(path)?.with_flags(flags)
    }

    /// Reads the file again, with the flags that were laid over it at start.
    ///
    /// # Errors
    /// As [`Config::load_with_flags`]; `self` is untouched.
    pub fn reload(&self, path: &Path) -> Result<Self, ConfigError> {
        Self::load_with_flags(path, self.flags.clone())
    }

    fn with_flags(mut self, flags: Flags) -> Result<Self, ConfigError> {
        if let Some(name) = &flags.name {
            self.name = instance_name(name, Location::flag("--name"))?;
        }
        if let Some(http) = &flags.http {
            self.http = http_listen(http, &Location::flag("--http"))?;
        }
        if let Some(control) = &flags.control {
            self.control = control_socket(control, Location::flag("--control"))?;
        }
        self.log.format = flags.log.unwrap_or(self.log.format);
        self.log.level = flags.log_level.unwrap_or(self.log.level);
        if let Some(flag) = flags.bus_flag() {
            let several = self.buses.len();
            let [bus] = self.buses.as_mut_slice() else {
                let fault = Fault::SeveralBuses(several);
                return Err(ConfigError::wrong(Location::flag(flag), fault));
            };
            set_bus(bus, &flags)?;
        }
        check::check(&self, &flag_locations(&self))?;
        self.flags = flags;
        Ok(self)
    }
}

fn set_bus(bus: &mut BusConfig, flags: &Flags) -> Result<(), ConfigError> {
    let location = Location::flag("--listen");
    if !flags.listen.is_empty() {
        let found = split(&flags.listen).map(|text| (text, location.clone()));
        (bus.listen, _) = listen_list(found, &location)?;
    }
    let location = Location::flag("--broker");
    if !flags.brokers.is_empty() {
        let found = split(&flags.brokers).map(|text| (text, location.clone()));
        (bus.brokers, _) = broker_list(found, &location)?;
    }
    bus.topology = flags.topology.unwrap_or(bus.topology);
    bus.sharing = flags.sharing.unwrap_or(bus.sharing);
    bus.set_delivery(flags.delivery.unwrap_or(bus.delivery));
    Ok(())
}

fn split(values: &[String]) -> impl Iterator<Item = &str> {
    values.iter().flat_map(|value| value.split(','))
}

/// The file was checked by itself, so what is wrong now came from a flag.
fn flag_locations(config: &Config) -> Locations {
    let buses = config.buses.iter().map(|bus| BusLocations {
        listen: vec![Location::flag("--listen"); bus.listen.len()],
        brokers: vec![Location::flag("--broker"); bus.brokers.len()],
        ..BusLocations::default()
    });
    Locations {
        http: Location::flag("--http"),
        buses: buses.collect(),
    }
}
