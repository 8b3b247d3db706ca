//! Ports that no other test takes, in this process or another.
//!
//! They lie below the range that the kernel hands to outgoing connections, so a port
//! stays ours while its broker is dead. A lock on a file per port keeps other test
//! processes away; the kernel drops it when this process ends, however it ends.

use std::fs::{self, File};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 12_000;
const COUNT: u32 = 20_000;
const STRIDE: u32 = 97;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A loopback port that is reserved until this value is dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Reserves a port on which nothing listens.
    ///
    /// # Panics
    ///
    /// If all ports of the range are taken, or the folder of locks can't be written.
    pub fn reserve() -> Self {
        let folder = std::env::temp_dir().join("natsmux-test-ports");
        fs::create_dir_all(&folder).expect("a folder for port locks");
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let start = std::process::id().wrapping_mul(STRIDE);
            let number = FIRST + start.wrapping_add(step) % COUNT;
            let number = u16::try_from(number).expect("FIRST + COUNT is below 65,536");
            let lock = File::create(folder.join(number.to_string())).expect("a port lock");
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self {
                    number,
                    _lock: lock,
                };
            }
        }
        panic!("all of the {COUNT} ports from {FIRST} are taken");
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}
