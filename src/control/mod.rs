//! The control socket: an operator's commands, as HTTP on a Unix socket (R42).
//!
//! The HTTP port only tells. Whatever changes something comes in here, where the mode of a file
//! says who may: natsmux's own user, and root.

mod command;
mod server;
mod socket;
#[cfg(test)]
mod tests;

use std::future::Future;

use serde_json::Value;
use thiserror::Error;

pub use command::Command;
pub use server::serve;
pub use socket::{Socket, SocketError};

/// Whoever carries commands out: the daemon.
pub trait Operator: Send + Sync + 'static {
    /// Carries a command out, and says what came of it.
    fn run(&self, command: Command) -> impl Future<Output = Result<Value, Refusal>> + Send;
}

/// Why a command was refused: nothing has changed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// It asks for what makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// It names what isn't there.
    #[error("{0}")]
    Unknown(String),
    /// It can't be done as things are.
    #[error("{0}")]
    Conflict(String),
    /// The daemon doesn't answer.
    #[error("{0}")]
    Unavailable(String),
}
