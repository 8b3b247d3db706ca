//! INFO: what a broker says of itself, and what natsmux says of its brokers.
//!
//! [`first_info`] is rule R17. It never carries a nonce, `connect_urls` or `ldm`: a component that learns of other
//! addresses, or hears of a broker's shutdown, leaves natsmux.

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::json;
use super::number::decimal;

/// Longest first INFO with `INFO ` and CRLF, in bytes. Node clients up to 0.7 match control lines on the first 512
/// bytes they get, and hang for ever on a longer one.
pub const MAX_FIRST_INFO: usize = 512;

/// A broker's INFO. Missing fields have their defaults; unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Changes at every start of the broker.
    #[serde(deserialize_with = "or_default")]
    pub server_id: String,
    /// Configured name, or the id.
    #[serde(deserialize_with = "or_default")]
    pub server_name: String,
    /// Such as `2.9.10`.
    #[serde(deserialize_with = "or_default")]
    pub version: String,
    /// 1 where the broker sends later INFOs; 0 before gnatsd 0.9.2.
    #[serde(deserialize_with = "or_default")]
    pub proto: i64,
    /// Address that the broker listens on.
    #[serde(deserialize_with = "or_default")]
    pub host: String,
    /// Port that the broker listens on.
    #[serde(deserialize_with = "or_default")]
    pub port: u16,
    /// Whether it supports `HPUB` and `HMSG`.
    #[serde(deserialize_with = "or_default")]
    pub headers: bool,
    /// Whether CONNECT needs credentials.
    #[serde(deserialize_with = "or_default")]
    pub auth_required: bool,
    /// Whether it wants TLS right after INFO.
    #[serde(deserialize_with = "or_default")]
    pub tls_required: bool,
    /// Whether it takes TLS right after INFO.
    #[serde(deserialize_with = "or_default")]
    pub tls_available: bool,
    /// Whether it asks for a certificate there.
    #[serde(deserialize_with = "or_default")]
    pub tls_verify: bool,
    /// Largest payload in bytes, headers included. 1 MiB where the broker names none.
    #[serde(deserialize_with = "max_payload")]
    pub max_payload: usize,
    /// Whether JetStream is enabled.
    #[serde(deserialize_with = "or_default")]
    pub jetstream: bool,
    /// The broker's number for this connection.
    pub client_id: Option<u64>,
    /// The address from which the broker sees this connection.
    #[serde(deserialize_with = "or_default")]
    pub client_ip: String,
    /// To be signed by who uses nkeys or JWTs; of this connection only.
    pub nonce: Option<String>,
    /// Name of the cluster.
    pub cluster: Option<String>,
    /// JetStream domain.
    pub domain: Option<String>,
    /// JetStream API level; since 2.12.
    pub api_lvl: Option<u64>,
    /// `ip:port` of the brokers of the cluster.
    #[serde(deserialize_with = "or_default")]
    pub connect_urls: Vec<String>,
    /// Whether the broker is in lame duck mode.
    #[serde(deserialize_with = "or_default")]
    pub ldm: bool,
    /// Version of Go.
    pub go: Option<String>,
    /// Of a natsmux in a broker's place: the `server_id`s of those behind it, with commas.
    #[serde(deserialize_with = "or_default")]
    pub natsmux_via: String,
}

/// Every natsmux's `server_id` begins with this.
pub const NATSMUX_ID: &str = "NMX";

/// nats-server's default `max_payload`.
const DEFAULT_MAX_PAYLOAD: usize = 1024 * 1024;

impl Default for ServerInfo {
    fn default() -> Self {
        Self {
            server_id: String::new(),
            server_name: String::new(),
            version: String::new(),
            proto: 0,
            host: String::new(),
            port: 0,
            headers: false,
            auth_required: false,
            tls_required: false,
            tls_available: false,
            tls_verify: false,
            max_payload: DEFAULT_MAX_PAYLOAD,
            jetstream: false,
            client_id: None,
            client_ip: String::new(),
            nonce: None,
            cluster: None,
            domain: None,
            api_lvl: None,
            connect_urls: Vec::new(),
            ldm: false,
            go: None,
            natsmux_via: String::new(),
        }
    }
}

/// The peer that answered is no broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum InfoFault {
    /// No JSON object, or a value of the wrong type.
    #[error("INFO is no well-formed JSON object")]
    Malformed,
}

impl ServerInfo {
    /// Whether the broker takes TLS behind this.
    pub fn offers_tls(&self) -> bool {
        self.tls_required || self.tls_available
    }

    /// Parses what stands behind `INFO `.
    pub fn parse(json: &[u8]) -> Result<Self, InfoFault> {
        let json = json::checked(json).map_err(|_| InfoFault::Malformed)?;
        if json.trim_ascii().first() != Some(&b'{') {
            return Err(InfoFault::Malformed);
        }
        serde_json::from_slice(&json).map_err(|_| InfoFault::Malformed)
    }

    /// Whether a broker ignores this INFO when a component sends it. Otherwise it closes.
    pub(super) fn is_acceptable(json: &[u8]) -> bool {
        json.trim_ascii() == b"null" || Self::parse(json).is_ok()
    }

    /// Whether what goes there comes through the natsmux with this `server_id`.
    pub fn comes_through(&self, id: &str) -> bool {
        self.natsmux_via.split(',').any(|through| through == id)
    }

    /// Returns the broker's support for headers.
    pub fn header_support(&self) -> HeaderSupport {
        const FIRST_WITH_HEADERS: [u64; 3] = [2, 2, 0];
        match self.headers {
            true => HeaderSupport::On,
            false if self.version_numbers() < FIRST_WITH_HEADERS => HeaderSupport::Unheard,
            false => HeaderSupport::Off,
        }
    }

    /// The longest control line that the broker takes, in bytes, where that is less than nats-server's 4096: 1024
    /// before gnatsd 1.4, and at the Ruby server, which closes without a word.
    pub fn max_control_line(&self) -> usize {
        const FIRST_WITH_MORE: [u64; 3] = [1, 4, 0];
        // A broker with headers is one of those: no need to look at its version.
        if self.headers || self.version_numbers() >= FIRST_WITH_MORE {
            usize::MAX
        } else {
            1024
        }
    }

    /// Major, minor and patch number of `version`; numbers that are missing or malformed are 0.
    pub fn version_numbers(&self) -> [u64; 3] {
        let mut numbers = [0; 3];
        let parts = self.version.trim_start_matches('v').split(['.', '-', '+']);
        for (number, part) in numbers.iter_mut().zip(parts) {
            *number = part.parse().unwrap_or(0);
        }
        numbers
    }
}

/// `null` counts as missing.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn max_payload<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let number = Option::<i64>::deserialize(deserializer)?;
    // No frame may be larger than what natsmux takes from a broker itself (R34).
    let most = super::server::ServerLimits::default().max_payload;
    Ok(number
        .and_then(|number| usize::try_from(number).ok())
        .map_or(DEFAULT_MAX_PAYLOAD, |number| number.min(most)))
}

/// A broker's support for headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeaderSupport {
    /// It is older than they are (2.2), and ignores options that need them.
    Unheard,
    /// They are switched off: it refuses `no_responders`.
    Off,
    /// It takes `HPUB`.
    On,
}

/// TLS as a listener offers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsOffer {
    /// Whether it takes nothing else.
    pub is_required: bool,
    /// Whether it wants a certificate.
    pub verifies: bool,
}

/// Natsmux's INFO to one component.
#[derive(Debug, Clone, Copy)]
pub struct FirstInfo<'a> {
    /// natsmux's own, the same whatever broker serves.
    pub server_id: &'a str,
    /// natsmux's own. Old Go clients allow no blank in it; it is cut to 32 bytes.
    pub server_name: &'a str,
    /// Where natsmux listens.
    pub host: &'a str,
    /// Where natsmux listens.
    pub port: u16,
    /// The component's address.
    pub client_ip: &'a str,
    /// natsmux's number for the session.
    pub client_id: u64,
    /// Whether it may tell of JetStream, where all brokers have it (R32).
    pub jetstream: bool,
    /// Whether any broker of the bus asks for credentials, in use or not.
    pub auth_required: bool,
    /// The most that the broker in use takes from this component's account, where that is less, in
    /// bytes.
    pub max_payload: usize,
    /// The nonce that components sign that hold a key, where brokers want that.
    pub nonce: &'a str,
    /// Whether natsmux itself wants it signed.
    pub is_signed: bool,
    /// TLS as natsmux offers it; `None`: plain text.
    pub tls: Option<TlsOffer>,
}

/// R17: the first line that a component gets. A later INFO replaces all that an earlier one said, so it is the same. `brokers` are the last INFOs of the brokers in use, or of all that live where none is;
/// empty before any was seen. At most [`MAX_FIRST_INFO`] bytes: fields are left out from the end of R17's list.
pub fn first_info(brokers: &[&ServerInfo], local: &FirstInfo<'_>) -> Vec<u8> {
    let common = Common::of(brokers);
    let mut line = InfoLine::new();
    line.text("server_id", Some(local.server_id));
    line.text("version", Some(cut(common.version, 32)));
    line.number("proto", Some(1));
    line.text("host", Some(local.host));
    line.number("port", Some(u64::from(local.port)));
    let max_payload = common.max_payload.min(local.max_payload);
    line.number("max_payload", Some(max_payload as u64));
    line.flag("headers", common.headers);
    line.flag("auth_required", common.auth_required || local.auth_required);
    line.flag("tls_required", local.tls.is_some_and(|tls| tls.is_required));
    if let Some(tls) = local.tls {
        line.flag("tls_verify", tls.verifies);
        if !tls.is_required {
            line.flag("tls_available", true);
        }
    }
    let via = via(brokers);
    line.text("natsmux_via", Some(&*via).filter(|via| !via.is_empty()));
    let is_signed = local.is_signed || brokers.iter().any(|broker| broker.nonce.is_some());
    line.text("nonce", Some(local.nonce).filter(|_| is_signed));
    line.text("server_name", Some(cut(local.server_name, 32)));
    line.number("client_id", Some(local.client_id));
    line.flag("jetstream", common.jetstream && local.jetstream);
    line.flag("ssl_required", false);
    line.text("go", common.go);
    line.number("api_lvl", common.api_lvl);
    line.text("cluster", common.cluster);
    line.text("domain", common.domain);
    line.text("client_ip", Some(local.client_ip));
    line.finish()
}

/// The natsmux that `brokers` are, or come through: a loop is recognised by them. Few, since each
/// takes room.
fn via(brokers: &[&ServerInfo]) -> String {
    const MOST: usize = 3;
    let mut ids: Vec<&str> = Vec::new();
    for broker in brokers {
        let own = Some(&*broker.server_id).filter(|id| id.starts_with(NATSMUX_ID));
        let through = broker.natsmux_via.split(',').filter(|id| !id.is_empty());
        for id in own.into_iter().chain(through).map(|id| cut(id, 32)) {
            if !ids.contains(&id) && ids.len() < MOST {
                ids.push(id);
            }
        }
    }
    ids.join(",")
}

/// The fields that hold at every broker.
struct Common<'a> {
    version: &'a str,
    max_payload: usize,
    headers: bool,
    auth_required: bool,
    jetstream: bool,
    go: Option<&'a str>,
    api_lvl: Option<u64>,
    cluster: Option<&'a str>,
    domain: Option<&'a str>,
}

impl<'a> Common<'a> {
    fn of(brokers: &[&'a ServerInfo]) -> Self {
        let Some(oldest) = brokers.iter().min_by_key(|broker| broker.version_numbers()) else {
            return Self::unseen();
        };
        let same = |field: fn(&ServerInfo) -> Option<&str>| {
            field(oldest).filter(|value| brokers.iter().all(|broker| field(broker) == Some(value)))
        };
        Self {
            version: if oldest.version.is_empty() {
                Self::unseen().version
            } else {
                &oldest.version
            },
            max_payload: brokers
                .iter()
                .map(|broker| broker.max_payload)
                .min()
                .unwrap_or(DEFAULT_MAX_PAYLOAD),
            headers: brokers.iter().all(|broker| broker.headers),
            auth_required: brokers.iter().any(|broker| broker.auth_required),
            jetstream: brokers.iter().all(|broker| broker.jetstream),
            go: oldest.go.as_deref(),
            api_lvl: brokers.iter().map(|broker| broker.api_lvl).min().flatten(),
            cluster: same(|broker| broker.cluster.as_deref()),
            domain: same(|broker| broker.domain.as_deref()),
        }
    }

    /// Several clients send credentials only where `auth_required` is true.
    fn unseen() -> Self {
        Self {
            version: "2.9.0",
            max_payload: DEFAULT_MAX_PAYLOAD,
            headers: true,
            auth_required: true,
            jetstream: false,
            go: None,
            api_lvl: None,
            cluster: None,
            domain: None,
        }
    }
}

/// An INFO line to which fields are added as long as they fit.
struct InfoLine {
    bytes: Vec<u8>,
    full: bool,
}

const END: &[u8] = b"}\r\n";

impl InfoLine {
    fn new() -> Self {
        let mut bytes = Vec::with_capacity(MAX_FIRST_INFO);
        bytes.extend_from_slice(b"INFO {");
        Self { bytes, full: false }
    }

    /// Writes a field if it fits. Once one didn't, those behind it are left out too: the list is in
    /// order of importance.
    fn field(&mut self, key: &str, value: impl FnOnce(&mut Vec<u8>)) {
        if self.full {
            return;
        }
        let before = self.bytes.len();
        if self.bytes.last() != Some(&b'{') {
            self.bytes.push(b',');
        }
        json::push_string(&mut self.bytes, key);
        self.bytes.push(b':');
        value(&mut self.bytes);
        if self.bytes.len() + END.len() > MAX_FIRST_INFO {
            self.bytes.truncate(before);
            self.full = true;
        }
    }

    fn text(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.field(key, |out| json::push_string(out, value));
        }
    }

    fn number(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.field(key, |out| decimal(out, value));
        }
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.field(key, |out| {
            out.extend_from_slice(if value { b"true" } else { b"false" })
        });
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(END);
        self.bytes
    }
}

/// The first `max` bytes of `text`, or a few less where a character would be cut.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests;
