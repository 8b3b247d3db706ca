//! The picture of a moment: what `admin` shows.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::Counters;

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
    /// Whether it has a live broker.
    pub healthy: bool,
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
    /// The broker that publishes go to.
    pub current: Option<String>,
    /// In the order of the configuration.
    pub brokers: Vec<BrokerSnapshot>,
    /// What was counted on this bus since start.
    pub counters: Counters,
}

/// One broker of a bus at one moment.
#[derive(Clone, Debug)]
pub struct BrokerSnapshot {
    /// `host:port` as in the configuration.
    pub addr: String,
    /// One word of a closed set, such as `live` or `dead`.
    pub state: &'static str,
    /// How long it has been in this state.
    pub since: Duration,
    /// The last error of a dial or a link. Never a credential.
    pub last_error: Option<String>,
    /// The version in its last INFO.
    pub version: Option<String>,
    /// Links to it now.
    pub links: u64,
    /// Links that died and dials that failed, since start.
    pub failures: u64,
}
