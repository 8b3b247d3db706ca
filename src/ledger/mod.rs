//! The memory of a trunk, by which its links can die: pure state, no IO, no clock.
//!
//! [`Subscriptions`] knows who subscribed to what and how much was delivered, [`Pings`]
//! which PONG is owed to whom and what it proves, [`Held`] and [`settle`] which publishes
//! wait, were moved, or are in doubt.

pub mod operations;
mod own_sid;
mod pings;
mod publishes;
mod received;
mod sid;
mod subscriptions;
mod text;

pub use operations::{Operations, TooMany};
pub use pings::{Ping, Pings};
pub use publishes::{Account, Held, Settled, line_of, settle};
pub use received::Received;
pub use sid::{SidText, UpstreamSid};
pub use subscriptions::{
    Carried, Ended, Interest, Rejected, Seen, Spent, Subscribed, Subscription, Subscriptions,
    Unsubscribed,
};

/// A session's place in its trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u32);
