//! Bytes and sockets, no NATS.
//!
//! [`Outbox`] and [`Partial`] are pure and belong to the machines; [`Port`] and the
//! functions of [`socket`] are the only places where a machine's bytes meet a socket. With
//! the feature `turmoil`, `simulated` takes the place of [`socket`]: for tests only.

mod chunks;
mod clock;
mod fair;
mod listen;
pub mod names;
mod outbox;
mod partial;
mod port;
#[cfg_attr(feature = "turmoil", path = "simulated.rs")]
pub mod socket;
mod timer;
#[cfg(not(feature = "turmoil"))]
mod unacked;
mod watch;

pub use clock::now;
pub use fair::wake_after_io;
pub use listen::listen;
pub use outbox::{Outbox, Retention, SHARED_LEAST, Unproven};
pub use partial::Partial;
pub use port::{Flush, Port};
pub use timer::Timer;
pub use watch::Watch;
