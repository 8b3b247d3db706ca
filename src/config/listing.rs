//! A configuration in words for an operator (`natsmux check`).

use std::fmt::{self, Display};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::address::ListenAddr;
use super::choice::{Choice, Topology};
use super::error::ConfigError;
use super::identity::{CredentialSource, IdentityConfig};
use super::options::{BusConfig, Config, PongHold, Timings};
use super::tls::TlsFiles;
use super::units::{show_duration, show_size};
use super::walk::{self, Visitor};

impl Config {
    /// Describes the configuration for people: each bus with its listeners, its brokers in order,
    /// its modes, and all that isn't a default.
    pub fn describe(&self) -> impl Display {
        Description(self)
    }
}

struct Description<'c>(&'c Config);

impl Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = self.0;
        writeln!(f, "name      {}", config.name)?;
        match config.http {
            Some(addr) => writeln!(f, "http      {addr}")?,
            None => writeln!(f, "http      off")?,
        }
        if let Some(files) = &config.http_tls {
            describe_files(f, "http.tls.", "client_ca", files)?;
        }
        for origin in &config.cors_origins {
            writeln!(f, "          read by pages of {origin}")?;
        }
        if let Some(path) = &config.control {
            writeln!(f, "control   {}", path.display())?;
        }
        let (format, level) = (config.log.format.word(), config.log.level.word());
        writeln!(f, "log       {format}, {level}")?;
        let default = Config::default();
        differences(
            f,
            "",
            |v| walk::top(v, &mut config.clone()),
            |v| walk::top(v, &mut default.clone()),
        )?;
        let (mut set, mut unset) = (config.limits, default.limits);
        differences(
            f,
            "limits.",
            |v| walk::limits(v, &mut set),
            |v| walk::limits(v, &mut unset),
        )?;
        config.buses.iter().try_for_each(|bus| describe_bus(f, bus))
    }
}

fn describe_bus(f: &mut fmt::Formatter<'_>, bus: &BusConfig) -> fmt::Result {
    writeln!(f, "\nbus {}", bus.name)?;
    for (index, listen) in bus.listen.iter().enumerate() {
        let label = if index == 0 { "listen" } else { "" };
        writeln!(f, "  {label:<10}{}", ShownListen(listen))?;
    }
    for (index, broker) in bus.brokers.iter().enumerate() {
        let label = if index == 0 { "brokers" } else { "" };
        writeln!(f, "  {label:<10}{}. {broker}", index + 1)?;
    }
    let mut modes = Listing::default();
    walk::bus(&mut modes, &mut bus.clone()).map_err(|_| fmt::Error)?;
    for (key, value) in modes.0 {
        writeln!(f, "  {key} = {value}")?;
    }
    if bus.topology == Topology::Independent {
        let presence = Some(&bus.presence[..]).filter(|prefix| !prefix.is_empty());
        writeln!(f, "  presence = {}", presence.unwrap_or("off"))?;
        if let Some(file) = &bus.presence_key_file {
            writeln!(f, "  presence_key_file = {}", file.display())?;
        }
    }
    if let Some(file) = &bus.proxy_key_file {
        writeln!(f, "  proxy_key_file = {}", file.display())?;
    }
    for identity in &bus.identities {
        describe_identity(f, identity)?;
    }
    if let Some(tls) = &bus.tls {
        writeln!(f, "  tls.mode = {}", tls.mode.word())?;
        describe_files(f, "tls.", "ca", &tls.files)?;
        if let Some(name) = &tls.server_name {
            writeln!(f, "  tls.server_name = {name}")?;
        }
    }
    if let Some(tls) = &bus.listen_tls {
        describe_files(f, "listen_tls.", "client_ca", &tls.files)?;
        writeln!(f, "  listen_tls.handshake_first = {}", tls.handshake_first)?;
        writeln!(f, "  listen_tls.available = {}", tls.available)?;
    }
    let (mut set, mut unset) = (bus.timings, default_timings(bus));
    differences(
        f,
        "  timings.",
        |v| walk::timings(v, &mut set),
        |v| walk::timings(v, &mut unset),
    )?;
    let (mut set, mut unset) = (bus.limits, super::BusLimits::default());
    differences(
        f,
        "  limits.",
        |v| walk::bus_limits(v, &mut set),
        |v| walk::bus_limits(v, &mut unset),
    )
}

fn describe_identity(f: &mut fmt::Formatter<'_>, identity: &IdentityConfig) -> fmt::Result {
    let source = match &identity.credentials.source {
        CredentialSource::Nothing => "no credentials".to_owned(),
        CredentialSource::Creds(file) => format!("creds {}", file.display()),
        CredentialSource::Nkey(file) => format!("nkey {}", file.display()),
        CredentialSource::User(user, file) => {
            format!("user {user}, password {}", file.display())
        }
        CredentialSource::Token(file) => format!("token {}", file.display()),
        CredentialSource::Jwt(file) => format!("bearer JWT {}", file.display()),
    };
    writeln!(f, "  identity  {}: {source}", identity.name)?;
    if let Some((cert, key)) = &identity.credentials.pair {
        writeln!(
            f,
            "            cert {}, key {}",
            cert.display(),
            key.display()
        )?;
    }
    let who = &identity.matches;
    let mut asked = Vec::new();
    if who.same_key {
        asked.push("signs with the same key".to_owned());
    }
    if let Some(key) = &who.nkey {
        asked.push(format!("signs with {key}"));
    }
    if let Some((user, file)) = &who.user {
        asked.push(format!("is user {user}, password {}", file.display()));
    }
    if let Some(file) = &who.token_file {
        asked.push(format!("has the token of {}", file.display()));
    }
    if let Some(uid) = &who.uid {
        asked.push(format!("runs as {uid}"));
    }
    if let Some(unit) = &who.unit {
        asked.push(format!("belongs to {unit}"));
    }
    if let Some(name) = &who.certificate {
        asked.push(format!("shows a certificate of {name}"));
    }
    if who.anybody {
        asked.push("connects".to_owned());
    }
    writeln!(f, "            for who {}", asked.join(" and "))
}

fn describe_files(
    f: &mut fmt::Formatter<'_>,
    table: &str,
    ca: &str,
    files: &TlsFiles,
) -> fmt::Result {
    if let Some(path) = &files.ca {
        writeln!(f, "  {table}{ca} = {}", path.display())?;
    }
    if let Some((cert, key)) = &files.pair {
        writeln!(f, "  {table}cert = {}", cert.display())?;
        writeln!(f, "  {table}key = {}", key.display())?;
    }
    writeln!(f, "  {table}min_version = {}", files.min_version.word())
}

fn default_timings(bus: &BusConfig) -> Timings {
    Timings {
        pong_hold: PongHold::default_for(bus.delivery),
        ..Timings::default()
    }
}

struct ShownListen<'l>(&'l ListenAddr);

impl Display for ShownListen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let note = if self.0.optional {
            " (where the host has IPv6)"
        } else {
            ""
        };
        write!(f, "{}{note}", self.0)
    }
}

/// Writes a line for each option that has another value than its default.
fn differences(
    f: &mut fmt::Formatter<'_>,
    prefix: &str,
    set: impl FnOnce(&mut Listing) -> Result<(), ConfigError>,
    unset: impl FnOnce(&mut Listing) -> Result<(), ConfigError>,
) -> fmt::Result {
    let (mut found, mut defaults) = (Listing::default(), Listing::default());
    set(&mut found).map_err(|_| fmt::Error)?;
    unset(&mut defaults).map_err(|_| fmt::Error)?;
    for ((key, value), (_, default)) in found.0.iter().zip(&defaults.0) {
        if value != default {
            writeln!(f, "{prefix}{key} = {value} (default {default})")?;
        }
    }
    Ok(())
}

/// Options as `(key, value)`, in the order of the walk, without changing them.
#[derive(Debug, Default)]
pub(super) struct Listing(pub(super) Vec<(&'static str, String)>);

impl Visitor for Listing {
    fn duration(
        &mut self,
        key: &'static str,
        value: &mut Duration,
        _: RangeInclusive<Duration>,
    ) -> Result<(), ConfigError> {
        self.0.push((key, show_duration(*value)));
        Ok(())
    }

    fn pong_hold(
        &mut self,
        key: &'static str,
        value: &mut PongHold,
        _: RangeInclusive<Duration>,
    ) -> Result<(), ConfigError> {
        let shown = match *value {
            PongHold::After(duration) => show_duration(duration),
            PongHold::Never => "never".to_owned(),
        };
        self.0.push((key, shown));
        Ok(())
    }

    fn size(
        &mut self,
        key: &'static str,
        value: &mut usize,
        _: RangeInclusive<u64>,
    ) -> Result<(), ConfigError> {
        let bytes = u64::try_from(*value).unwrap_or(u64::MAX);
        self.0.push((key, show_size(bytes)));
        Ok(())
    }

    fn count(
        &mut self,
        key: &'static str,
        value: &mut usize,
        _: RangeInclusive<u64>,
    ) -> Result<(), ConfigError> {
        self.0.push((key, value.to_string()));
        Ok(())
    }

    fn choice<T: Choice>(&mut self, key: &'static str, value: &mut T) -> Result<(), ConfigError> {
        self.0.push((key, value.word().to_owned()));
        Ok(())
    }

    fn flag(&mut self, key: &'static str, value: &mut bool) -> Result<(), ConfigError> {
        self.0.push((key, value.to_string()));
        Ok(())
    }
}
