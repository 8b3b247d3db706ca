//! Towards components: the listener, and the session machine with its driver.

pub mod connection;
pub mod description;
pub mod frontend;
mod handshake;
mod identification;
pub mod listener;
pub mod pending_input;
mod places;
mod read_size;
pub mod registry;
mod relay;
pub mod session;

pub use session::Session;
