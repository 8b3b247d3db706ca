//! Real client libraries through natsmux, their own reconnect off.
//!
//! What they can do must be what they can do on a broker, and a broker's death must be
//! nothing that they notice.

mod basic;
mod client;
mod https;
mod identity;
mod jetstream;
mod kills;
mod monitoring;
mod outage;
mod rust_client;
#[path = "../support/mod.rs"]
mod support;
mod tls;
