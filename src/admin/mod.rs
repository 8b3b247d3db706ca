//! Health and metrics over HTTP: `/livez`, `/healthz`, `/varz`, `/brokerz` and `/metrics`.
//!
//! Only GET and HEAD, one request a connection, and a bound on everything a
//! client may do: this port must never cost a component anything. It answers
//! from a [`Snapshot`] that the [`Source`] takes; it reads no state of its own
//! and changes none.

mod hosts;
mod metrics;
mod process;
mod routes;
mod server;
#[cfg(test)]
mod tests;
mod varz;

use std::future::Future;

use crate::telemetry::Snapshot;

pub use server::serve;

/// Where the picture comes from: the workers, asked at each request.
pub trait Source: Send + Sync + 'static {
    /// The daemon now, or `None` where a worker doesn't answer. Waited for at
    /// most 2 s.
    fn snapshot(&self) -> impl Future<Output = Option<Snapshot>> + Send;
}
