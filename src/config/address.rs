//! Addresses: where a bus listens, and where its brokers are.
//!
//! A broker's address is kept as it was written (what a name
//! means is asked again and again), so this module also answers, without any look-up, whether a broker
//! would be natsmux itself.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::error::BrokerFault;

/// The port of a broker that is written without one, and of the default listeners.
pub const DEFAULT_PORT: u16 = 4222;

/// The longest host name that DNS allows, in bytes.
const MAX_HOST_BYTES: usize = 253;

/// An address that a bus listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenAddr {
    /// The address; port 0 lets the kernel choose one.
    pub addr: SocketAddr,
    /// Whether it is skipped with a warning where the host can't bind it. True
    /// for `[::1]` where the same bus also listens on `127.0.0.1` with the same
    /// port, as the default does: not every host has IPv6.
    pub optional: bool,
}

impl ListenAddr {
    /// `127.0.0.1:4222` and, where the host has IPv6, `[::1]:4222`.
    pub fn defaults() -> Vec<Self> {
        Self::list(&[
            SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
            SocketAddr::from((Ipv6Addr::LOCALHOST, DEFAULT_PORT)),
        ])
    }

    /// The listeners of one bus, in order, each marked optional or not.
    pub fn list(addrs: &[SocketAddr]) -> Vec<Self> {
        let has_v4_twin = |port| addrs.contains(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        addrs
            .iter()
            .map(|&addr| Self {
                addr,
                optional: addr.ip() == Ipv6Addr::LOCALHOST && has_v4_twin(addr.port()),
            })
            .collect()
    }

    /// Whether both can't be listened on at once.
    pub(super) fn conflicts_with(self, other: Self) -> bool {
        let (a, b) = (self.addr, other.addr);
        let same_family = a.is_ipv4() == b.is_ipv4();
        let wildcard = a.ip().is_unspecified() || b.ip().is_unspecified();
        a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || (same_family && wildcard))
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr.fmt(f)
    }
}

/// The address of a broker. Equal addresses are one broker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BrokerAddr {
    /// A name or an IP address, in lower case, IPv6 without brackets.
    pub host: String,
    /// The port, never 0.
    pub port: u16,
    /// Whether it was written `tls://`.
    pub tls: bool,
}

impl BrokerAddr {
    /// Whether both are one broker, however it is spoken to.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }

    /// Whether a connection to this broker would end at the listener `own`.
    ///
    /// `own_name` is the host's name: with a wildcard listener, every address
    /// of the host is natsmux.
    pub(super) fn reaches(&self, own: SocketAddr, own_name: &str) -> bool {
        if self.port != own.port() {
            return false;
        }
        let own_ip = own.ip().to_canonical();
        match self.host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            // Connecting to the unspecified address reaches the loopback one.
            Ok(ip) if ip.is_unspecified() => own_ip.is_loopback() || own_ip.is_unspecified(),
            Ok(ip) => ip == own_ip || (own_ip.is_unspecified() && ip.is_loopback()),
            Err(_) if is_loopback_name(&self.host) => {
                own_ip == Ipv4Addr::LOCALHOST
                    || own_ip == Ipv6Addr::LOCALHOST
                    || own_ip.is_unspecified()
            }
            Err(_) => own_ip.is_unspecified() && self.host.eq_ignore_ascii_case(own_name),
        }
    }
}

impl fmt::Display for BrokerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for BrokerAddr {
    type Err = BrokerFault;

    /// Reads `nats://host:port`, `tls://host:port`, `host:port`, `host` or the same with an IPv6
    /// address in brackets. Credentials are looked for first, so that no other
    /// fault can be an excuse for showing them.
    fn from_str(text: &str) -> Result<Self, BrokerFault> {
        let text = text.trim();
        if text.contains('@') {
            return Err(BrokerFault::Credentials);
        }
        let rest = match text.split_once("://") {
            None => text,
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("nats") => rest,
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("tls") => rest,
            Some(_) => return Err(BrokerFault::Form),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', ',']) || rest.contains(char::is_whitespace) {
            return Err(BrokerFault::Form);
        }
        let (host, port) = split_port(rest)?;
        let port = port.map_or(Ok(DEFAULT_PORT), parse_port)?;
        let tls = text
            .get(..6)
            .is_some_and(|start| start.eq_ignore_ascii_case("tls://"));
        Ok(Self { host, port, tls })
    }
}

/// Splits host and port, and checks the host.
fn split_port(text: &str) -> Result<(String, Option<&str>), BrokerFault> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or(BrokerFault::Host)?;
        let host: Ipv6Addr = host.parse().map_err(|_| BrokerFault::Host)?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host.to_string(), Some(port))),
            None if after.is_empty() => Ok((host.to_string(), None)),
            None => Err(BrokerFault::Form),
        };
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    if port.is_some_and(|port| port.contains(':')) || !is_host(host) {
        return Err(BrokerFault::Host);
    }
    Ok((host.to_ascii_lowercase(), port))
}

fn parse_port(text: &str) -> Result<u16, BrokerFault> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BrokerFault::Port);
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(BrokerFault::Port),
        Ok(port) => Ok(port),
    }
}

/// A host name or an IPv4 address in its usual form. `127.1` and `2130706433`
/// are refused: resolvers take them for 127.0.0.1, which would hide a loop.
fn is_host(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if text.is_empty() || text.len() > MAX_HOST_BYTES || !text.bytes().all(known) {
        return false;
    }
    let last_label = text.trim_end_matches('.').rsplit('.').next().unwrap_or("");
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let looks_like_ip = digits(last_label) || last_label.starts_with("0x");
    !last_label.is_empty() && (!looks_like_ip || text.parse::<Ipv4Addr>().is_ok())
}

fn is_loopback_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    matches!(
        host,
        "localhost" | "localhost.localdomain" | "ip6-localhost" | "ip6-loopback"
    ) || host.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(text: &str) -> Result<String, BrokerFault> {
        text.parse::<BrokerAddr>().map(|addr| addr.to_string())
    }

    #[test]
    fn brokers_are_read_with_and_without_scheme_and_port() {
        for (text, meaning) in [
            ("nats://10.0.0.1:4301", "10.0.0.1:4301"),
            ("NATS://Broker.Example/", "broker.example:4222"),
            ("broker:1", "broker:1"),
            ("broker", "broker:4222"),
            ("[2001:DB8::1]:4301", "[2001:db8::1]:4301"),
            ("nats://[::1]", "[::1]:4222"),
            ("1broker", "1broker:4222"),
        ] {
            assert_eq!(broker(text), Ok(meaning.to_owned()), "{text}");
        }
    }

    #[test]
    fn malformed_brokers_are_refused_by_what_is_wrong() {
        for (text, fault) in [
            ("nats://user:pass@h:1", BrokerFault::Credentials),
            ("http://user@h", BrokerFault::Credentials),
            ("http://h:1", BrokerFault::Form),
            ("h:1/x", BrokerFault::Form),
            ("[::1]x", BrokerFault::Form),
            ("", BrokerFault::Host),
            ("nats://:4222", BrokerFault::Host),
            ("::1", BrokerFault::Host),
            ("[::1", BrokerFault::Host),
            ("127.1", BrokerFault::Host),
            ("2130706433", BrokerFault::Host),
            ("0x7f000001", BrokerFault::Host),
            ("h:0", BrokerFault::Port),
            ("h:", BrokerFault::Port),
            ("h:+1", BrokerFault::Port),
            ("h:65536", BrokerFault::Port),
        ] {
            assert_eq!(broker(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn a_broker_that_is_natsmux_itself_is_known_by_every_name() {
        for (text, own, expected) in [
            ("127.0.0.1", "127.0.0.1:4222", true),
            ("127.0.0.2", "127.0.0.1:4222", false),
            ("127.0.0.1:4223", "127.0.0.1:4222", false),
            ("localhost", "127.0.0.1:4222", true),
            ("LOCALHOST.", "[::1]:4222", true),
            ("localhost", "10.0.0.1:4222", false),
            ("[::ffff:127.0.0.1]", "127.0.0.1:4222", true),
            ("0.0.0.0", "127.0.0.1:4222", true),
            ("127.0.0.2", "0.0.0.0:4222", true),
            ("localhost", "[::]:4222", true),
            ("host7", "0.0.0.0:4222", true),
            ("host7", "127.0.0.1:4222", false),
            ("host8", "0.0.0.0:4222", false),
        ] {
            let addr: BrokerAddr = text.parse().expect("a good address");
            let own = own.parse().expect("a good address");
            assert_eq!(addr.reaches(own, "host7"), expected, "{text} {own}");
        }
    }

    #[test]
    fn only_the_twin_of_the_ipv4_loopback_is_optional() {
        let optional: Vec<bool> = ListenAddr::defaults().iter().map(|a| a.optional).collect();
        assert_eq!(optional, [false, true]);
        let alone = ListenAddr::list(&[SocketAddr::from((Ipv6Addr::LOCALHOST, 4222))]);
        assert!(!alone[0].optional);
    }
}
