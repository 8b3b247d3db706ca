//! Towards components: the listener, and the session machine with its driver.

pub mod connection;
pub mod frontend;
mod handshake;
mod handshakes;
pub mod identification;
pub mod listener;
pub mod pending_input;
mod read_size;
pub mod registry;
mod relay;
pub mod session;

pub use session::Session;
