//! What must hold for any input. The fuzz targets call these with what libFuzzer makes up, the
//! test `replay` with the corpora that are kept.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each fuzz target uses one of them"
)]

mod command;
mod credentials;
mod handshake;
mod json;
mod operations;
mod pull;
mod scanners;
mod subscriptions;

pub use command::command;
pub use credentials::credentials;
pub use handshake::handshake;
pub use json::{config, connect, info};
pub use operations::operations;
pub use pull::pull;
pub use scanners::{client, server};
pub use subscriptions::subscriptions;
