//! Actions that a trunk asks of its driver, and its reports.

use std::time::Duration;

use super::link::LinkId;
use crate::upstream::brokers::roster::{BrokerId, Cause, Failure};

/// Something that only a driver can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a connection and report with
    /// [`handle_connected`](super::Trunk::handle_connected) or
    /// [`handle_link_failed`](super::Trunk::handle_link_failed).
    Dial {
        /// The link that it is for.
        link: LinkId,
        /// Where to.
        broker: BrokerId,
    },
    /// Close a link's socket, or give up its dial. It gets no more input.
    Close {
        /// The link.
        link: LinkId,
        /// With a reset, so that as little as possible of what the broker has not taken
        /// yet arrives late (R5).
        abort: bool,
    },
    /// Begin a TLS handshake on a link's connection, and report with
    /// [`handle_secured`](super::Trunk::handle_secured) or
    /// [`handle_link_failed`](super::Trunk::handle_link_failed).
    Secure {
        /// The link.
        link: LinkId,
        /// Whom its certificate must name.
        broker: BrokerId,
    },
    /// Ask the kernel how many written bytes the broker's host has not acknowledged
    /// (SIOCOUTQ), and report with [`handle_unacked`](super::Trunk::handle_unacked) (R9).
    Measure {
        /// The link.
        link: LinkId,
    },
    /// A relay's broker has said INFO, or won't: tell whoever waits for it.
    Greeted,
    /// Tell the operator.
    Report(Report),
    /// The trunk is done: drop it.
    Done,
}

/// News for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A link went live.
    Attached {
        /// The link.
        link: LinkId,
        /// Its broker.
        broker: BrokerId,
        /// The broker of the link that it replaces, and why that isn't live any more.
        after: Option<(BrokerId, Cause)>,
        /// Subscriptions that were replayed.
        replayed: u64,
        /// Publishes that had waited.
        held: u64,
        /// From the loss of the old link (or the start of the dial) until now.
        took: Duration,
    },
    /// A live link ended.
    Lost {
        /// The link.
        link: LinkId,
        /// Its broker.
        broker: BrokerId,
        /// Why.
        cause: Cause,
        /// Whether it is the first of its bus in this failover.
        first: bool,
    },
    /// A dial failed.
    DialFailed {
        /// The broker.
        broker: BrokerId,
        /// Why.
        failure: Failure,
    },
    /// A broker sent an error about the link, or refused the credentials.
    BrokerError {
        /// The broker.
        broker: BrokerId,
        /// Its text.
        text: Box<[u8]>,
    },
    /// Independent brokers turned out to be routed to each other (R26).
    WrongTopology {
        /// The one that sent what had gone to another.
        broker: BrokerId,
    },
    /// A broker doesn't permit presence (R29).
    PresenceForbidden {
        /// The broker.
        broker: BrokerId,
    },
    /// PONGs were released without proof (R3).
    Unproven {
        /// How many.
        pongs: u64,
    },
    /// A session's buffer stayed full for `block_for`; its publishes are dropped now (R6).
    Dropping {
        /// Bytes that wait.
        held_bytes: usize,
    },
}
