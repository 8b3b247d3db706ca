//! The harness that integration tests share: real brokers, a real natsmux, a raw client.
//!
//! Everything listens on loopback, every wait has a deadline that panics with what was
//! awaited, and every process is stopped by its handle when its owner is dropped.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test binary includes this module and uses a part of it"
)]

mod broker;
mod certificates;
mod cluster;
mod http;
mod natsmux;
mod operator;
mod ports;
mod process;
mod raw;
mod ruby;
mod scripted;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

pub use broker::{Broker, BrokerOptions, Version};
pub use certificates::{Authority, Certificate, KeyKind};
pub use cluster::Cluster;
pub use http::{HttpAnswer, http_get};
pub use natsmux::{Natsmux, NatsmuxOptions, sharing};
pub use operator::{Operator, User, write_secret};
pub use ports::Port;
pub use process::Process;
pub use raw::{Frame, RawClient};
pub use ruby::RubyServer;
pub use scripted::{
    BrokerLink, Brokers, Flavour, Greeting, Received, ScriptedBroker, WATCHER, message,
    no_responders,
};

/// How long a process may take to start, stop or answer before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(15);

const POLL: Duration = Duration::from_millis(10);

/// Polls `test` until it returns something, and panics with `what` after `patience`.
pub fn wait_for<T>(what: &str, patience: Duration, mut test: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = test() {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "waited {patience:?} in vain for {what}"
        );
        thread::sleep(POLL);
    }
}

/// Cargo's target folder, where `make test` puts the tools that tests need.
pub fn target_dir() -> PathBuf {
    let tmp = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().map_or_else(|| tmp.clone(), PathBuf::from)
}
