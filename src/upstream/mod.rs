//! Towards brokers: which of them live, and the trunks that keep sessions attached to one.
//!
//! [`brokers`] is what is known of the brokers, [`bus`] what the trunks of a bus share,
//! [`trunk`] the machine behind one or more sessions, and [`io`] owns the sockets and timers and
//! decides nothing. Nothing here knows that `downstream` exists: a trunk sees its sessions as
//! slots with an outbox.

pub mod brokers;
pub mod bus;
pub mod io;
pub mod trunk;

pub use brokers::liveness::TrunkId;
pub use brokers::roster::{BrokerId, Roster, SteeringError};
pub use bus::{Budget, Budgets, Bus, Settings, Turn};
pub use trunk::{CloseReason, Trunk, may_be_pull};
