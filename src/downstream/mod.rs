//! Towards components: the listener, and the session machine with its driver.

pub mod card;
pub mod driver;
pub mod early;
pub mod listener;
mod read_size;
pub mod session;
pub mod shared;

pub use session::Session;
