//! Bytes and sockets, no NATS.
//!
//! [`Outbox`] and [`Partial`] are pure and belong to the machines; [`Port`] and the
//! functions of [`socket`] are the only places where a machine's bytes meet a socket. With
//! the feature `turmoil`, `simulated` takes the place of [`socket`]: for tests only.

mod chunks;
mod clock;
mod listen;
pub mod names;
mod outbox;
mod partial;
pub mod peer;
mod port;
mod random;
mod readiness;
#[cfg_attr(feature = "turmoil", path = "simulated.rs")]
pub mod socket;
mod timer;
pub mod tls;
#[cfg(not(feature = "turmoil"))]
mod unacked;
mod yield_after_io;

pub use clock::now;
pub use listen::listen;
pub use outbox::{DeadOutbox, Outbox, Retention, SHARED_LEAST};
pub use partial::Partial;
pub use port::{Flush, Port};
pub use random::random_key;
pub use readiness::Readiness;
pub use timer::Timer;
pub use yield_after_io::yield_after_io;
