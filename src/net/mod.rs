//! Bytes and sockets, no NATS.
//!
//! [`Outbox`] and [`Partial`] are pure and belong to the machines; [`Port`] and the
//! functions of [`socket`] are the only places where a machine's bytes meet a socket.

mod fair;
mod names;
mod outbox;
mod partial;
mod port;
pub mod socket;
mod unacked;

pub use fair::wake_after_io;
pub use names::Names;
pub use outbox::{Outbox, Retention, Unproven};
pub use partial::Partial;
pub use port::{Flush, Port};
