//! Short-lived clients: connect, CONNECT, PING, PONG, close, as fast as two threads can.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::cpu::Meter;
use crate::sample::Sample;
use crate::ways::Site;

/// Short, since closed connections keep their ports for a minute.
const DURATION: Duration = Duration::from_millis(350);
const THREADS: usize = 2;

pub(crate) fn play(site: &Site) -> Sample {
    let (place, count) = (site.near(), AtomicU64::new(0));
    let meter = Meter::start(site);
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while start.elapsed() < DURATION {
                    drop(Client::connect(&place));
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let took = start.elapsed();
    Sample::rate(count.into_inner(), took, meter.stop())
}
