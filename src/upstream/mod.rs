//! Towards brokers: which of them live, and the trunks that keep sessions attached to one.
//!
//! [`Bus`] and [`Trunk`] are pure machines; [`driver`], [`pool`] and [`probe`] own the
//! sockets and timers and decide nothing. Nothing here knows that `downstream` exists: a
//! trunk sees its sessions as slots with an outbox.

pub mod admission;
pub mod backoff;
pub mod barrier;
mod broker;
pub mod bus;
mod connects;
mod dial_queue;
pub mod driver;
pub mod failover;
mod noted;
pub mod pool;
pub mod presence;
mod probe;
mod repeats;
mod resolve;
pub mod roster;
pub mod sharers;
pub mod trouble;
pub mod trunk;
pub mod watch;

pub use bus::{Budget, Budgets, Bus, Settings};
pub use roster::{BrokerId, Roster};
pub use trunk::{CloseReason, Trunk};
pub use watch::TrunkId;
