//! Reads a configuration from TOML text.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;

use toml::de::DeTable;

use super::address::{BrokerAddr, ListenAddr};
use super::check::{self, BusLocations, Locations};
use super::error::{ConfigError, Fault, Location};
use super::identity_section::read_identities;
use super::options::{BusConfig, Config};
use super::section::{A_SHORT_NAME, Section, line_of, short_name};
use super::tls_section::{read_http_tls, read_listen_tls, read_tls};
use super::walk;

const A_NAME: &str = "a name of 1 to 255 bytes without blanks, or \"\" for the host's name";
const A_FILE: &str = "the path of a file";
const A_PRESENCE: &str =
    "\"off\" or a subject of 1 to 64 letters, digits, _ and -, with dots between";
const A_LISTEN: &str = "an IP address and a port, such as \"127.0.0.1:4222\" or \"[::1]:4222\"";
const AN_HTTP: &str = "\"off\", or an IP address and a port, such as \"127.0.0.1:8222\"";
const A_SOCKET: &str =
    "\"off\", or the path of a file that is to be made, such as \"/run/natsmux/control.sock\"";
const LISTENS: &str = "a list of 1 to 16 addresses, such as [\"127.0.0.1:4222\"]";
const BROKERS: &str = "a list of 1 to 64 brokers, such as [\"nats://10.0.0.1:4222\"]";
const BUSES: &str = "1 to 64 buses, each under [[bus]]";

const ORIGINS: &str =
    "a list of at most 16 origins of web pages, such as [\"https://dash.example:8443\"]";

/// The most origins that may read what is served over HTTP.
const MAX_ORIGINS: usize = 16;
/// The longest path of a Unix socket, in bytes.
const SOCKET_PATH_MOST: usize = 107;
/// The most buses in one daemon.
const MAX_BUSES: usize = 64;
/// The most listeners of one bus.
const MAX_LISTEN: usize = 16;
/// The most brokers of one bus.
const MAX_BROKERS: usize = 64;

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line, the key and what was expected.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            file: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|error| error.in_file(path))
    }

    /// Reads and checks the text of a file.
    ///
    /// # Errors
    /// [`ConfigError`] names the line, the key and what was expected.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let table = DeTable::parse(text).map_err(|error| syntax(text, &error))?;
        let mut root = Section::root(text, &table);
        let mut config = Self::default();
        let mut locations = Locations::default();
        if let Some((name, location)) = root.text("name", A_NAME)?
            && !name.is_empty()
        {
            config.name = instance_name(name, location)?;
        }
        walk::top(&mut root, &mut config)?;
        let mut http = root.section("http")?;
        if let Some((text, location)) = http.text("listen", AN_HTTP)? {
            config.http = http_listen(text, &location)?;
            locations.http = location;
        }
        if let Some(found) = http.texts("cors_origins", ORIGINS)? {
            if found.len() > MAX_ORIGINS {
                let location = http.location_of("cors_origins");
                return Err(ConfigError::wrong(location, Fault::Expected(ORIGINS)));
            }
            let origins = found
                .into_iter()
                .map(|(text, location)| origin(text, location));
            config.cors_origins = origins.collect::<Result<_, _>>()?;
        }
        config.http_tls = read_http_tls(&mut http)?;
        http.finish()?;
        let mut control = root.section("control")?;
        if let Some((text, location)) = control.text("socket", A_SOCKET)? {
            config.control = control_socket(text, location)?;
        }
        control.finish()?;
        let mut log = root.section("log")?;
        walk::log(&mut log, &mut config.log)?;
        log.finish()?;
        let mut limits = root.section("limits")?;
        walk::limits(&mut limits, &mut config.limits)?;
        limits.finish()?;
        for section in root.sections("bus")? {
            config.buses.push(read_bus(section, &mut locations)?);
        }
        if config.buses.is_empty() || config.buses.len() > MAX_BUSES {
            let location = root.location_of("bus");
            return Err(ConfigError::wrong(location, Fault::Missing(BUSES)));
        }
        root.finish()?;
        check::check(&config, &locations)?;
        Ok(config)
    }
}

fn read_bus(mut section: Section<'_>, locations: &mut Locations) -> Result<BusConfig, ConfigError> {
    let missing = |section: &Section<'_>, key, expected| {
        ConfigError::wrong(section.location_of(key), Fault::Missing(expected))
    };
    let (name, name_location) = section
        .text("name", A_SHORT_NAME)?
        .ok_or_else(|| missing(&section, "name", A_SHORT_NAME))?;
    let mut bus = BusConfig::new(short_name(name, &name_location)?, Vec::new());
    let mut listen_locations = vec![section.location_of("listen"); bus.listen.len()];
    if let Some(found) = section.texts("listen", LISTENS)? {
        let location = section.location_of("listen");
        (bus.listen, listen_locations) = listen_list(found, &location)?;
    }
    let found = section
        .texts("brokers", BROKERS)?
        .ok_or_else(|| missing(&section, "brokers", BROKERS))?;
    let location = section.location_of("brokers");
    let broker_locations;
    (bus.brokers, broker_locations) = broker_list(found, &location)?;
    walk::bus(&mut section, &mut bus)?;
    if let Some((text, location)) = section.text("presence", A_PRESENCE)? {
        bus.presence = presence(text, location)?;
    }
    if let Some((text, _)) = section.text("presence_key_file", A_FILE)? {
        bus.presence_key_file = Some(text)
            .filter(|text| !text.is_empty())
            .map(PathBuf::from);
    }
    if let Some((text, _)) = section.text("proxy_key_file", A_FILE)? {
        bus.proxy_key_file = Some(text)
            .filter(|text| !text.is_empty())
            .map(PathBuf::from);
    }
    bus.identities = read_identities(&mut section)?;
    bus.tls = read_tls(&mut section)?;
    bus.listen_tls = read_listen_tls(&mut section)?;
    let mut timings = section.section("timings")?;
    walk::timings(&mut timings, &mut bus.timings)?;
    timings.finish()?;
    let mut limits = section.section("limits")?;
    walk::bus_limits(&mut limits, &mut bus.limits)?;
    limits.finish()?;
    locations.buses.push(BusLocations {
        name: name_location,
        listen: listen_locations,
        brokers: broker_locations,
        max_pending: section.location_of("limits.max_pending"),
        publish_buffer: section.location_of("limits.publish_buffer"),
        lenient_buffer: section.location_of("limits.lenient_buffer"),
        outage_publishes: section.location_of("outage_publishes"),
        reveal_outage_after: section.location_of("timings.reveal_outage_after"),
        identity: section.location_of("identity"),
    });
    section.finish()?;
    Ok(bus)
}

/// The listeners of a bus, with the location of each.
pub(super) fn listen_list<'t>(
    found: impl IntoIterator<Item = (&'t str, Location)>,
    list: &Location,
) -> Result<(Vec<ListenAddr>, Vec<Location>), ConfigError> {
    let (addrs, locations) = parse_list(found, |text, location| {
        let parsed: Result<SocketAddr, _> = text.parse();
        parsed.map_err(|_| ConfigError::wrong(location.clone(), Fault::Expected(A_LISTEN)))
    })?;
    if addrs.is_empty() || addrs.len() > MAX_LISTEN {
        return Err(ConfigError::wrong(list.clone(), Fault::Expected(LISTENS)));
    }
    Ok((ListenAddr::list(&addrs), locations))
}

/// The brokers of a bus, with the location of each.
pub(super) fn broker_list<'t>(
    found: impl IntoIterator<Item = (&'t str, Location)>,
    list: &Location,
) -> Result<(Vec<BrokerAddr>, Vec<Location>), ConfigError> {
    let (brokers, locations) = parse_list(found, |text, location| {
        let parsed: Result<BrokerAddr, _> = text.parse();
        parsed.map_err(|fault| ConfigError::wrong(location.clone(), fault))
    })?;
    if brokers.is_empty() || brokers.len() > MAX_BROKERS {
        return Err(ConfigError::wrong(list.clone(), Fault::Expected(BROKERS)));
    }
    Ok((brokers, locations))
}

fn parse_list<'t, T>(
    found: impl IntoIterator<Item = (&'t str, Location)>,
    parse: impl Fn(&str, &Location) -> Result<T, ConfigError>,
) -> Result<(Vec<T>, Vec<Location>), ConfigError> {
    let mut values = Vec::new();
    let mut locations = Vec::new();
    for (text, location) in found {
        values.push(parse(text, &location)?);
        locations.push(location);
    }
    Ok((values, locations))
}

/// `"off"` or an address.
pub(super) fn http_listen(
    text: &str,
    location: &Location,
) -> Result<Option<SocketAddr>, ConfigError> {
    if text == "off" {
        return Ok(None);
    }
    let parsed = text.parse().map(Some);
    parsed.map_err(|_| ConfigError::wrong(location.clone(), Fault::Expected(AN_HTTP)))
}

/// `"off"` or a path: no other directory is meant where natsmux starts elsewhere.
pub(super) fn control_socket(
    text: &str,
    location: Location,
) -> Result<Option<PathBuf>, ConfigError> {
    if text == "off" {
        return Ok(None);
    }
    let path = PathBuf::from(text);
    if !path.is_absolute() || path.as_os_str().len() > SOCKET_PATH_MOST {
        return Err(ConfigError::wrong(location, Fault::Expected(A_SOCKET)));
    }
    Ok(Some(path))
}

/// An origin as browsers write it: `http://host` or `https://host:port`, nothing behind it.
fn origin(text: &str, location: Location) -> Result<String, ConfigError> {
    let host = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:[]".contains(&byte);
    match host {
        Some(host) if !host.is_empty() && host.bytes().all(plain) => Ok(text.to_ascii_lowercase()),
        _ => Err(ConfigError::wrong(location, Fault::Expected(ORIGINS))),
    }
}

/// The name of this instance.
pub(super) fn instance_name(text: &str, location: Location) -> Result<String, ConfigError> {
    let visible = |c: char| !c.is_whitespace() && !c.is_control();
    if text.is_empty() || text.len() > 255 || !text.chars().all(visible) {
        return Err(ConfigError::wrong(location, Fault::Expected(A_NAME)));
    }
    Ok(text.to_owned())
}

/// `"off"`, or a subject of plain tokens.
fn presence(text: &str, location: Location) -> Result<String, ConfigError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let token = |token: &str| !token.is_empty() && token.bytes().all(plain);
    match text {
        "off" => Ok(String::new()),
        text if text.len() <= 64 && text.split('.').all(token) => Ok(text.to_owned()),
        _ => Err(ConfigError::wrong(location, Fault::Expected(A_PRESENCE))),
    }
}

/// A syntax error, with the key of its line. The parser's message is kept only
/// where it can't hold a piece of the file.
fn syntax(text: &str, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map(|span| line_of(text, span.start));
    let written = line.and_then(|line| text.lines().nth(line - 1));
    let key = written.and_then(|line| line.split_once('='));
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let key = key
        .map(|(key, _)| key.trim())
        .filter(|key| key.chars().all(bare));
    let message = error.message();
    let message = if message.contains(['@', '"', '/']) {
        "expected key = value".to_owned()
    } else {
        message.replace('\n', ", ")
    };
    let location = Location {
        file: None,
        line,
        key: key.unwrap_or_default().to_owned(),
    };
    ConfigError::wrong(location, Fault::Syntax(message))
}
