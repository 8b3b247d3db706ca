//! natsmux in front of a broker answers as that broker does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::broker::{Running, V2_9, V2_15, Version, free_addr, wait_for_info};
use crate::case::{self, Broker, Case};
use crate::{compare, record};

#[test]
fn natsmux_before_2_9_answers_as_2_9_does() {
    natsmux_answers_as_recorded(&V2_9);
}

#[test]
fn natsmux_before_2_15_answers_as_2_15_does() {
    natsmux_answers_as_recorded(&V2_15);
}

/// Plays every case that has no reason to differ through a natsmux per broker.
fn natsmux_answers_as_recorded(version: &Version) {
    let kinds = [Broker::Open, Broker::Auth, Broker::Limits];
    let pairs = kinds.map(|kind| {
        let broker = Running::start(version, kind);
        (kind, Mux::start(broker.addr), broker)
    });
    let addrs: BTreeMap<_, _> = pairs
        .iter()
        .map(|(kind, mux, _)| (*kind, mux.addr))
        .collect();
    let cases: Vec<Case> = case::all()
        .into_iter()
        .filter(|case| case.differs.is_none())
        .collect();
    let differences = compare(&cases, &addrs, &record::read(version));
    assert!(
        differences.is_empty(),
        "{} of {}:\n{}",
        differences.len(),
        cases.len(),
        differences.join("\n")
    );
}

/// A running natsmux, killed when it is dropped.
struct Mux {
    addr: SocketAddr,
    process: Child,
}

impl Mux {
    /// Starts natsmux before `broker` and waits until it sends INFO.
    fn start(broker: SocketAddr) -> Self {
        let addr = free_addr();
        let process = Command::new(env!("CARGO_BIN_EXE_natsmux"))
            .args([
                "run",
                "--listen",
                &addr.to_string(),
                "--broker",
                &format!("nats://{broker}"),
            ])
            .args(["--http", "off", "--log-level", "warn"])
            .stdout(Stdio::null())
            .spawn()
            .expect("cargo built the binary");
        let mux = Self { addr, process };
        wait_for_info(mux.addr);
        mux
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
