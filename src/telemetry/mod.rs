//! Telemetry: log lines, counters, and snapshots for monitoring.
//!
//! `counters` names every metric, in one place; `snapshot` is what the workers
//! hand to `admin`; `logging` is where log lines go, and `events` keeps the last of them. Nothing here knows who
//! counts or who reads.

mod counters;
mod events;
mod logging;
mod observed;
mod snapshot;

pub use counters::Counters;
pub use events::{Event, Events};
pub use logging::{LineFormat, LogError, LogGuard, init};
pub use observed::{Histogram, Observed, Tally};
pub use snapshot::{
    BrokerSnapshot, BusSnapshot, IdentitySnapshot, SessionSnapshot, Snapshot, SubscriptionSnapshot,
};
