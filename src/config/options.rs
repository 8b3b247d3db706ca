//! Every option, with its meaning, its default and whether a reload changes it.
//!
//! Bounds stand in `walk.rs`, beside the key, and are repeated here for readers.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::address::{BrokerAddr, ListenAddr};
use super::choice::{
    Admit, Delivery, Failback, Identical, LogFormat, LogLevel, OutagePublishes, Sharing, Signed,
    TlsMode, Topology,
};
use super::identity::IdentityConfig;
use super::tls::{ListenTlsConfig, TlsConfig, TlsFiles};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Everything that the daemon is told at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The name of this instance, 1 to 255 bytes without blanks. Brokers are
    /// tried in an order that depends on it (R13), so that hosts spread.
    /// Default: the host's name (`""` in the file). Changes on reload: no.
    pub name: String,
    /// Where health and metrics are served; `None` is `"off"`.
    /// Default: `127.0.0.1:8222`. Changes on reload: no.
    pub http: Option<SocketAddr>,
    /// TLS of that listener: `cert`, `key`, `client_ca` (the authorities of the certificates that
    /// clients must have) and `min_version`. Default: none. Changes on reload: the files are read
    /// again.
    pub http_tls: Option<TlsFiles>,
    /// Origins of web pages that may read what is served there, such as a
    /// dashboard's `https://dash.example:8443`; at most 16. Default: none.
    /// Changes on reload: no.
    pub cors_origins: Vec<String>,
    /// The Unix socket on which an operator's commands come in, for natsmux's own user and root
    /// alone (R42); `None` is `"off"`. Default: off. Changes on reload: no.
    pub control: Option<PathBuf>,
    /// The log: level and format.
    pub log: LogConfig,
    /// How long SIGTERM waits for what is on its way before closing.
    /// Default: 2 s, from 10 ms to 10 min. Changes on reload: yes.
    pub drain_timeout: Duration,
    /// Limits of the whole daemon.
    pub limits: DaemonLimits,
    /// The buses, 1 to 64, in the order of the file.
    /// Changes on reload: buses may be added and removed.
    pub buses: Vec<BusConfig>,
    /// The flags that were laid over the file, kept so that a reload lays them
    /// over the new one.
    pub flags: Flags,
}

impl Default for Config {
    /// All defaults, and no bus.
    fn default() -> Self {
        Self {
            name: host_name(),
            http: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8222))),
            http_tls: None,
            cors_origins: Vec::new(),
            control: None,
            log: LogConfig::default(),
            drain_timeout: Duration::from_secs(2),
            limits: DaemonLimits::default(),
            buses: Vec::new(),
            flags: Flags::default(),
        }
    }
}

/// The log's level and format. Lines go to stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// Text or JSON. Default: text. Changes on reload: no.
    pub format: LogFormat,
    /// The level. Default: info. Changes on reload: yes.
    pub level: LogLevel,
}

/// Limits of the whole daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DaemonLimits {
    /// Sessions at once, over all buses; 0 derives it from the limit of open
    /// files. Default: 0, at most 1,000,000. Changes on reload: yes.
    pub max_connections: usize,
    /// Publishes that wait for a broker, over all sessions, in bytes (R6).
    /// Default: 256 MiB, from 64 KiB to 64 GiB. Changes on reload: yes.
    pub publish_buffer_total: usize,
    /// Bytes that wait for slow components, over all sessions (R25).
    /// Default: 512 MiB, from 64 KiB to 64 GiB. Changes on reload: yes.
    pub max_pending_total: usize,
    /// Operations read before CONNECT, over all sessions, in bytes (R21).
    /// Default: 64 MiB, from 64 KiB to 64 GiB. Changes on reload: yes.
    pub lenient_buffer_total: usize,
}

impl Default for DaemonLimits {
    fn default() -> Self {
        Self {
            max_connections: 0,
            publish_buffer_total: 256 * MIB,
            max_pending_total: 512 * MIB,
            lenient_buffer_total: 64 * MIB,
        }
    }
}

/// Where hosts announce themselves unless the file says otherwise.
const PRESENCE: &str = "_NATSMUX.presence";

/// One local listener and the brokers behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusConfig {
    /// The name in logs and metrics, unique, 1 to 32 of `a-z 0-9 _ -`. No
    /// default; flags describe the bus `default`. Changes on reload: no, another
    /// name is another bus.
    pub name: String,
    /// Where components connect, 1 to 16 addresses.
    /// Default: `127.0.0.1:4222` and `[::1]:4222`. Changes on reload: no.
    pub listen: Vec<ListenAddr>,
    /// The brokers, 1 to 64, in the order of preference. No default.
    /// Changes on reload: yes.
    pub brokers: Vec<BrokerAddr>,
    /// TLS towards brokers. Default: none.
    pub tls: Option<TlsConfig>,
    /// TLS towards components. Default: none.
    pub listen_tls: Option<ListenTlsConfig>,
    /// What natsmux says to brokers in components' place; the first that matches a component is
    /// its identity, and where none does, its own credentials pass through. At most 256. Default:
    /// none. Changes on reload: yes.
    pub identities: Vec<IdentityConfig>,
    /// The fate of a component that signs with a key that natsmux doesn't hold (R40). Default:
    /// relay. Changes on reload: yes, for new connections.
    pub signed: Signed,
    /// A file with the seed of an nkey that brokers trust as a proxy's (ADR-55): with it natsmux
    /// signs the nonce of every link. Not readable by everybody. Default: none. Changes on reload:
    /// yes, and the file is read again.
    pub proxy_key_file: Option<PathBuf>,
    /// Whether components may speak plain text to an address that isn't loopback: `natsmux check`
    /// refuses it otherwise, and `natsmux run` warns. Default: false. Changes on reload: yes.
    pub allow_plain: bool,
    /// How the brokers know each other. Default: cluster. Changes on reload: no.
    pub topology: Topology,
    /// Whether publishes go back to an independent broker that returned (R30).
    /// Default: auto. Changes on reload: yes.
    pub failback: Failback,
    /// Whether the sessions of a host go back to its own broker of a cluster, the first of its
    /// order (R13), once that has been well for `failback_delay`. Default: false. Changes on
    /// reload: yes.
    pub rebalance: bool,
    /// The subjects below which the natsmux of all hosts tell each other, through independent
    /// brokers, where they are (R29): 1 to 64 letters, digits, `_`, `-` and dots between tokens.
    /// Empty where it is `"off"`. Default: `_NATSMUX.presence`. Changes on reload: no.
    pub presence: String,
    /// A file with the key (16 to 4,096 bytes, the same on all hosts) with which announcements are
    /// authenticated (R29): others are ignored then. Not readable by everybody. Empty: none.
    /// Default: none. Changes on reload: yes, and the file is read again.
    pub presence_key_file: Option<PathBuf>,
    /// Which sessions share a connection to the broker. Default: none.
    /// Changes on reload: no.
    pub sharing: Sharing,
    /// With `sharing = "identity"`, the connections that the sessions of one identity are spread
    /// over. Default: 1, from 1 to 64. Changes on reload: yes, for new sessions.
    pub trunks_per_identity: usize,
    /// Delivery of publishes in doubt. Default: at-most-once. Changes on reload: no.
    pub delivery: Delivery,
    /// Whether operations before CONNECT are kept until it comes (R21); `false`
    /// is nats-server's exact behaviour. Default: true. Changes on reload: no.
    pub lenient_connect: bool,
    /// The components that may start while no broker is alive (R16). Default: known. Changes on
    /// reload: no.
    pub admit: Admit,
    /// Whether publishes that wait for a broker are kept once `reveal_outage_after` has passed
    /// (R37). `drop` needs at-most-once. Default: keep. Changes on reload: yes.
    pub outage_publishes: OutagePublishes,
    /// The meaning of two byte-identical messages that come while both links of a planned move are
    /// subscribed (R41). Default: `once`. Changes on reload: yes, for later moves.
    pub move_identical: Identical,
    /// Whether open pull requests of JetStream consumers are asked again behind a failover (R44).
    /// Default: true. Changes on reload: yes, for later requests.
    pub resume_pulls: bool,
    /// Deadlines and intervals. Changes on reload: yes, all of them.
    pub timings: Timings,
    /// Limits of each session and link. Changes on reload: yes, all of them;
    /// buffers above a lowered limit are left to drain.
    pub limits: BusLimits,
}

impl BusConfig {
    /// A bus with these brokers, and defaults for the rest.
    pub fn new(name: impl Into<String>, brokers: Vec<BrokerAddr>) -> Self {
        Self {
            name: name.into(),
            listen: ListenAddr::defaults(),
            brokers,
            tls: None,
            listen_tls: None,
            identities: Vec::new(),
            proxy_key_file: None,
            signed: Signed::default(),
            allow_plain: false,
            topology: Topology::default(),
            failback: Failback::default(),
            rebalance: false,
            presence: PRESENCE.to_owned(),
            presence_key_file: None,
            sharing: Sharing::default(),
            trunks_per_identity: 1,
            delivery: Delivery::default(),
            lenient_connect: true,
            admit: Admit::default(),
            outage_publishes: OutagePublishes::default(),
            move_identical: Identical::default(),
            resume_pulls: true,
            timings: Timings::default(),
            limits: BusLimits::default(),
        }
    }

    /// A listener to which other hosts may speak, in plain text, though nobody has allowed it.
    pub fn plain_listener(&self) -> Option<SocketAddr> {
        let is_plain = self.listen_tls.as_ref().is_none_or(|tls| tls.available);
        let mut addrs = self.listen.iter().map(|listen| listen.addr);
        let exposed = addrs.find(|addr| !addr.ip().is_loopback());
        exposed.filter(|_| is_plain && !self.allow_plain)
    }

    /// How brokers are spoken to that are written without `tls://`.
    pub fn tls_mode(&self) -> TlsMode {
        self.tls.as_ref().map_or(TlsMode::Off, |tls| tls.mode)
    }

    /// Whether any identity shows a certificate of its own to brokers.
    pub fn identities_have_certificates(&self) -> bool {
        let own = |identity: &IdentityConfig| identity.credentials.pair.is_some();
        self.identities.iter().any(own)
    }

    /// Whether natsmux has a certificate to show to brokers.
    pub fn has_certificate(&self) -> bool {
        if self.identities_have_certificates() {
            return true;
        }
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.files.pair.is_some())
    }

    /// Whether any broker is spoken to in TLS.
    pub fn needs_tls(&self) -> bool {
        let plain = |broker| self.tls_mode().towards(broker) == TlsMode::Off;
        !self.brokers.iter().all(plain)
    }

    /// Changes the delivery, and with it the default that hangs on it: a PONG
    /// is proof with at-least-once (R1), so it isn't released without one (R3).
    pub(super) fn set_delivery(&mut self, delivery: Delivery) {
        if self.timings.pong_hold == PongHold::default_for(self.delivery) {
            self.timings.pong_hold = PongHold::default_for(delivery);
        }
        self.delivery = delivery;
    }
}

/// The flags as they were written; `None` or empty where one wasn't.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--listen`, each an address.
    pub listen: Vec<String>,
    /// `--http`, an address or `off`.
    pub http: Option<String>,
    /// `--control`, a path or `off`.
    pub control: Option<String>,
    /// `--broker`, each one broker or several with commas.
    pub brokers: Vec<String>,
    /// `--topology`.
    pub topology: Option<Topology>,
    /// `--sharing`.
    pub sharing: Option<Sharing>,
    /// `--delivery`.
    pub delivery: Option<Delivery>,
    /// `--name`.
    pub name: Option<String>,
    /// `--log`.
    pub log: Option<LogFormat>,
    /// `--log-level`.
    pub log_level: Option<LogLevel>,
}

/// How long a PONG waits for what it would confirm (R3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PongHold {
    /// At most this long; then it is sent and counted as not proven.
    After(Duration),
    /// For ever.
    Never,
}

impl PongHold {
    /// 15 s, or never with at-least-once.
    pub fn default_for(delivery: Delivery) -> Self {
        match delivery {
            Delivery::AtMostOnce => Self::After(Duration::from_secs(15)),
            Delivery::AtLeastOnce => Self::Never,
        }
    }
}

/// Deadlines and intervals of one bus. Changes on reload: yes, all of them,
/// for what starts afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    /// TCP connect to a broker. Default: 1 s, from 10 ms to 1 min.
    pub connect_timeout: Duration,
    /// From a TCP connect to the broker's INFO (R12). Default: 700 ms, from
    /// 10 ms to 1 min.
    pub info_timeout: Duration,
    /// The TLS handshake with a broker. Default: 5 s, from 100 ms to 1 min.
    pub tls_timeout: Duration,
    /// From INFO to the PONG behind CONNECT, and the age of an unanswered fence
    /// at which a broker is dead (R9). Default: 2 s, from 100 ms to 5 min.
    pub link_timeout: Duration,
    /// Between probes of a broker without a link (R11). Default: 3 s, from
    /// 100 ms to 5 min.
    pub probe_interval: Duration,
    /// The longest that a publish stays without a fence behind it (R7).
    /// Default: 50 ms, from 1 ms to 10 s.
    pub fence_interval: Duration,
    /// Between fences of an idle link, with jitter (R7). Default: 30 s, from
    /// 100 ms to 1 h.
    pub idle_fence_interval: Duration,
    /// How long a PONG waits for what it would confirm (R3). Default: 15 s, or
    /// `"never"` with at-least-once; from 1 ms to 1 h.
    pub pong_hold: PongHold,
    /// How long the publishes of a bus wait after a failover for the slowest
    /// replay (R14). Default: 250 ms, from 1 ms to 30 s.
    pub replay_barrier: Duration,
    /// How long a session whose publish buffer is full isn't read (R6).
    /// Default: 30 s, from 1 ms to 1 h.
    pub block_for: Duration,
    /// How long a component has for its CONNECT where one is required (R21).
    /// Default: 2 s, from 10 ms to 10 min.
    pub auth_timeout: Duration,
    /// Between natsmux's own PINGs to a component. Default: 2 min, from 10 ms
    /// to 1 h.
    pub ping_interval: Duration,
    /// How long a component may take nothing of what waits for it.
    /// Default: 10 s, from 10 ms to 10 min.
    pub write_deadline: Duration,
    /// How long the brokers of a bus have to accept an identity that another
    /// refused, before the session hears of it (R15). Default: 5 s, from 10 ms
    /// to 10 min.
    pub refusal_window: Duration,
    /// How long an independent broker that returned only gets subscriptions, before
    /// publishes go back to it (R30); and how long a host's own broker of a cluster must be well,
    /// with `rebalance` (R13). Default: 10 s, from 10 ms to 1 h.
    pub failback_delay: Duration,
    /// How long publishes wait behind the last fence on an independent broker before they
    /// go to another, where both live (R30). Default: 100 ms, from 1 ms to 30 s.
    pub switch_settle: Duration,
    /// How long both links of a planned move to another broker of a cluster are subscribed: longer
    /// than a message takes from broker to broker (R41). Default: 50 ms, from 1 ms to 1 s.
    pub move_overlap: Duration,
    /// How long a shared connection without sessions stays open; 0 keeps it.
    /// Default: 1 min, from 0 to 1 d.
    pub trunk_idle_timeout: Duration,
    /// How long a bus may be without a live broker before its components are disconnected, and
    /// rejected until one serves (R37). 0 hides an outage for ever. Default: 0, from 0 to
    /// 1 h, and at least three times `probe_interval`.
    pub reveal_outage_after: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            info_timeout: Duration::from_millis(700),
            tls_timeout: Duration::from_secs(5),
            link_timeout: Duration::from_secs(2),
            probe_interval: Duration::from_secs(3),
            fence_interval: Duration::from_millis(50),
            idle_fence_interval: Duration::from_secs(30),
            pong_hold: PongHold::default_for(Delivery::default()),
            replay_barrier: Duration::from_millis(250),
            block_for: Duration::from_secs(30),
            auth_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(120),
            write_deadline: Duration::from_secs(10),
            refusal_window: Duration::from_secs(5),
            failback_delay: Duration::from_secs(10),
            switch_settle: Duration::from_millis(100),
            move_overlap: Duration::from_millis(50),
            trunk_idle_timeout: Duration::from_secs(60),
            reveal_outage_after: Duration::ZERO,
        }
    }
}

/// Limits of each session and link of one bus. Changes on reload: yes, all of
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusLimits {
    /// The longest operation line of a component, in bytes.
    /// Default: 4 KiB, from 512 to 1 MiB.
    pub max_control_line: usize,
    /// The most that waits for one slow component, in bytes (R25). Default: 64 MiB, from 64 KiB to
    /// 4 GiB, at most `max_pending_total`.
    pub max_pending: usize,
    /// Publishes of one session that wait for a broker, in bytes (R6).
    /// Default: 8 MiB, from 4 KiB to 4 GiB, at most `publish_buffer_total`.
    pub publish_buffer: usize,
    /// Operations of one session before its CONNECT, in bytes (R21).
    /// Default: 4 MiB, from 4 KiB to 4 GiB, at most `lenient_buffer_total`.
    pub lenient_buffer: usize,
    /// Unfenced bytes on a link that call for a fence (R7).
    /// Default: 64 KiB, from 1 KiB to 64 MiB.
    pub fence_bytes: usize,
    /// Unfenced messages on a link that call for a fence (R7).
    /// Default: 256, from 1 to 1,000,000.
    pub fence_messages: usize,
    /// natsmux's PINGs that a component may leave unanswered before it is
    /// stale. Default: 2, from 1 to 100.
    pub ping_max: usize,
}

impl Default for BusLimits {
    fn default() -> Self {
        Self {
            max_control_line: 4 * KIB,
            max_pending: 64 * MIB,
            publish_buffer: 8 * MIB,
            lenient_buffer: 4 * MIB,
            fence_bytes: 64 * KIB,
            fence_messages: 256,
            ping_max: 2,
        }
    }
}

/// The machine's name, or `natsmux` where it has none.
pub fn host_name() -> String {
    let uname = rustix::system::uname();
    match uname.nodename().to_str() {
        Ok(name) if !name.is_empty() => name.to_owned(),
        _ => "natsmux".to_owned(),
    }
}
