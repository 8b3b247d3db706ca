//! The resources of this process: memory, processor time, cores.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// The kernel shows processor time to programs in 1/100 s, on every machine.
const TICKS_A_SECOND: f64 = 100.0;

/// The shortest time over which a share of a processor means something.
const MIN_SPAN: Duration = Duration::from_secs(1);

/// Measures the share of a processor between two readings.
#[derive(Debug)]
pub(super) struct CpuMeter {
    last: Mutex<Reading>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    ticks: u64,
    percent: f64,
}

impl CpuMeter {
    pub(super) fn new() -> Self {
        let first = Reading {
            at: Instant::now(),
            ticks: cpu_ticks().unwrap_or(0),
            percent: 0.0,
        };
        Self {
            last: Mutex::new(first),
        }
    }

    /// The share since the last reading that is at least a second old, in
    /// percent of one processor, with one digit.
    pub(super) fn percent(&self) -> f64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let span = last.at.elapsed();
        if span < MIN_SPAN {
            return last.percent;
        }
        if let Some(ticks) = cpu_ticks() {
            let used = ticks.saturating_sub(last.ticks) as f64 / TICKS_A_SECOND;
            let percent = (1000.0 * used / span.as_secs_f64()).round() / 10.0;
            *last = Reading {
                at: Instant::now(),
                ticks,
                percent,
            };
        }
        last.percent
    }
}

/// Resident memory in bytes; 0 where the kernel doesn't say.
pub(super) fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_resident_bytes(&status).unwrap_or(0)
}

/// Processors that this process may use.
pub(super) fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

fn cpu_ticks() -> Option<u64> {
    parse_cpu_ticks(&fs::read_to_string("/proc/self/stat").ok()?)
}

fn parse_resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// User and system time, the 14th and 15th field; the second is the program's
/// name in parentheses and may hold anything.
fn parse_cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_texts_are_read_whatever_the_program_is_called() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 31 11 0 0 20 0 4 0 99";
        assert_eq!(parse_cpu_ticks(stat), Some(42));
        assert_eq!(parse_cpu_ticks("7 (a) S 1"), None);
        assert_eq!(
            parse_resident_bytes("VmPeak: 1 kB\nVmRSS:\t    12 kB\n"),
            Some(12_288)
        );
        assert_eq!(parse_resident_bytes("VmRSS: twelve"), None);
    }

    #[test]
    fn this_process_takes_memory() {
        assert!(resident_bytes() > 0);
        assert!(cores() > 0);
        assert!(CpuMeter::new().percent() >= 0.0);
    }
}
