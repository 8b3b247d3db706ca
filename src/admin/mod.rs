//! Health and metrics over HTTP: `/livez`, `/readyz`, `/healthz`, `/varz`, `/connz`, `/subsz`,
//! `/brokerz`, `/eventz` and `/metrics`.
//!
//! Only GET and HEAD, one request a connection, and a bound on everything a
//! client may do: this port must never cost a component anything. It answers
//! from a [`Snapshot`] that the [`Source`] takes; it reads no state of its own
//! and changes none.

mod connz;
mod eventz;
mod hosts;
mod metrics;
mod process;
mod query;
mod routes;
mod server;
#[cfg(test)]
mod tests;
mod time_format;
mod varz;

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use crate::net::tls::ServerTls;
use crate::telemetry::{Event, SessionSnapshot, Snapshot, SubscriptionSnapshot};

pub use server::serve;

/// The clients that may ask, and the origins whose pages may read the answers.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Pages of these origins may read the answers in a browser; those of no other site may.
    pub cors_origins: Vec<String>,
    /// Names of this machine by which it may be asked, besides those of loopback.
    pub hosts: Vec<String>,
    /// How clients are spoken to, as of now; `None`: in plain text.
    pub tls: Option<watch::Receiver<ServerTls>>,
}

impl Access {
    /// For this machine, by its name with and without its domain.
    pub fn new(cors_origins: Vec<String>) -> Self {
        let machine = crate::config::host_name();
        let short = machine.split('.').next().unwrap_or_default().to_owned();
        let hosts = vec![machine, short];
        Self {
            cors_origins,
            hosts,
            tls: None,
        }
    }
}

/// Where the picture comes from: the workers, asked at each request.
pub trait Source: Send + Sync + 'static {
    /// The daemon now, or `None` where a worker doesn't answer. Waited for at
    /// most 2 s.
    fn snapshot(&self) -> impl Future<Output = Option<Snapshot>> + Send;

    /// Returns the events behind number `after` that are still kept, the oldest first.
    fn events(&self, after: u64) -> Vec<Arc<Event>>;

    /// Waits for an event behind number `after`.
    fn event_behind(&self, after: u64) -> impl Future<Output = ()> + Send;

    /// All sessions now, in the order of their numbers. They aren't of one moment: they are
    /// asked for in pages, so that many cost no component anything.
    fn sessions(&self) -> impl Future<Output = Option<Vec<SessionSnapshot>>> + Send;

    /// The first `most` subscriptions of the sessions with these numbers, in their order.
    fn subscriptions(
        &self,
        cids: &[u64],
        most: usize,
    ) -> impl Future<Output = Option<Vec<SubscriptionSnapshot>>> + Send;
}
