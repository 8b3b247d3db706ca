//! The picture of a moment: what `admin` shows.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::{Counters, Observed};

/// The daemon at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The random id of this process, as in the INFO that components see.
    pub server_id: String,
    /// The instance name.
    pub name: String,
    /// natsmux's own version.
    pub version: String,
    /// When the process started.
    pub start: SystemTime,
    /// When the picture was taken.
    pub now: SystemTime,
    /// Sessions allowed at once.
    pub max_connections: u64,
    /// Sessions open now.
    pub connections: u64,
    /// Sessions accepted since start.
    pub total_connections: u64,
    /// Subscriptions of all sessions.
    pub subscriptions: u64,
    /// The first listener of the first bus.
    pub listen: SocketAddr,
    /// The smallest payload limit that components are told, in bytes.
    pub max_payload: u64,
    /// The part of the time in which the worker had something to do, lately: at 1 it is at its
    /// ceiling.
    pub worker_busy_ratio: f64,
    /// When the certificate ends of the HTTP listener.
    pub http_certificate_ends: Option<SystemTime>,
    /// Summed over all buses.
    pub counters: Counters,
    /// In the order of the configuration.
    pub buses: Vec<BusSnapshot>,
}

/// One bus at one moment.
#[derive(Clone, Debug)]
pub struct BusSnapshot {
    /// The bus's name in the configuration.
    pub name: String,
    /// Whether all its listeners take components.
    pub listening: bool,
    /// Whether a broker has ever answered.
    pub attached: bool,
    /// Whether it has a live broker.
    pub healthy: bool,
    /// For how long no broker has served.
    pub outage: Option<Duration>,
    /// Whether components are disconnected because of that (R37).
    pub outage_revealed: bool,
    /// How long publishes still wait for an operator, if they do (R42).
    pub paused: Option<Duration>,
    /// Trunks that move by plan, or wait for their turn to.
    pub moving: u64,
    /// Its brokers don't know each other as its configuration says (R26).
    pub wrong_topology: bool,
    /// Why it isn't healthy: what is shown behind `no live broker: `, such as
    /// `10.0.0.1:4222: connection refused`. Never a credential.
    pub reason: Option<String>,
    /// Sessions open now.
    pub sessions: u64,
    /// Trunks now.
    pub trunks: u64,
    /// Links now that passed their handshake.
    pub links: u64,
    /// Subscriptions of its sessions.
    pub subscriptions: u64,
    /// Publishes held, or written and not yet fenced on a live link (R4).
    pub waiting: u64,
    /// Bytes of publishes that natsmux holds.
    pub buffered_bytes: u64,
    /// Subscriptions with open requests of JetStream consumers (R44).
    pub pulls_open: u64,
    /// The broker that publishes go to.
    pub current: Option<String>,
    /// In the order in which this host tries them.
    pub brokers: Vec<BrokerSnapshot>,
    /// What natsmux says to brokers in components' place.
    pub identities: Vec<IdentitySnapshot>,
    /// When the certificate ends that natsmux shows to brokers.
    pub certificate_ends: Option<SystemTime>,
    /// When the certificate ends that natsmux shows to components.
    pub listen_certificate_ends: Option<SystemTime>,
    /// The counts of this bus since start.
    pub counters: Counters,
    /// How long things took, and why they happened.
    pub observed: Observed,
}

/// One identity of a bus at one moment. No secret.
#[derive(Clone, Debug)]
pub struct IdentitySnapshot {
    /// Its name in the configuration.
    pub name: String,
    /// Whom brokers know by it: a public key, or a user.
    pub subject: String,
    /// When its credentials expire, if ever.
    pub expires: Option<SystemTime>,
}

/// One broker of a bus at one moment.
#[derive(Clone, Debug)]
pub struct BrokerSnapshot {
    /// `host:port` as in the configuration.
    pub addr: String,
    /// `unknown`, `up`, `suspect`, `lame duck` or `down`.
    pub state: &'static str,
    /// Whether an operator drains it (R42).
    pub drained: bool,
    /// How long it has been in this state.
    pub since: Duration,
    /// The last error of a dial or a link. Never a credential.
    pub last_error: Option<String>,
    /// The version in its last INFO.
    pub version: Option<String>,
    /// The smoothed round trip of fences; without links, what the last probe took from its
    /// dial to the INFO.
    pub round_trip: Option<Duration>,
    /// Links to it now.
    pub links: u64,
    /// Of independent brokers, other hosts that say that they are subscribed there (R29).
    pub hosts: Option<u64>,
    /// Failed probes, dials and links since it last answered; counted anew once no broker is left.
    pub failures: u64,
    /// When the certificate ends that it showed last.
    pub certificate_ends: Option<SystemTime>,
}

/// One session at one moment.
#[derive(Clone, Debug)]
pub struct SessionSnapshot {
    /// The number that the component was told, never used again.
    pub cid: u64,
    /// The bus's name in the configuration.
    pub bus: String,
    /// The component's address.
    pub peer: SocketAddr,
    /// How long ago it was accepted.
    pub uptime: Duration,
    /// How long ago something was last read from it.
    pub idle: Duration,
    /// Messages from the component.
    pub in_msgs: u64,
    /// Bytes of their payloads.
    pub in_bytes: u64,
    /// Messages to the component.
    pub out_msgs: u64,
    /// Bytes of their payloads.
    pub out_bytes: u64,
    /// Bytes that it has not taken yet.
    pub pending_bytes: u64,
    /// Publishes of it that wait for a broker.
    pub held: u64,
    /// Live subscriptions.
    pub subscriptions: u64,
    /// The name in its CONNECT: never a secret.
    pub name: Option<String>,
    /// The language of its client library.
    pub lang: Option<String>,
    /// The version of its client library.
    pub version: Option<String>,
    /// Its user, where it gave one.
    pub user: Option<String>,
    /// The name of the identity that stands in for its credentials.
    pub identity: Option<String>,
    /// The user that its process runs as, where that was asked for.
    pub uid: Option<u32>,
    /// The systemd unit of its process, where that was asked for.
    pub unit: Option<String>,
    /// The trunk that it is on, once there is one.
    pub trunk: Option<u64>,
    /// The broker that its publishes go to.
    pub broker: Option<String>,
}

/// One subscription at one moment.
#[derive(Clone, Debug)]
pub struct SubscriptionSnapshot {
    /// The connection that holds it.
    pub cid: u64,
    /// The subject, wildcards included.
    pub subject: String,
    /// The queue group, if it is a member of one.
    pub queue_group: Option<String>,
    /// The sid, as the component chose it.
    pub sid: String,
    /// Messages delivered since the SUB.
    pub msgs: u64,
    /// The component's UNSUB max, if there is one.
    pub max: Option<u64>,
}
