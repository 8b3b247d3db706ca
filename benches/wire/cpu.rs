//! Processor time and memory of a process, from /proc.

use std::fs;

/// Nanoseconds that all threads of a process have run.
pub(crate) fn nanoseconds(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks
        .filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_ascii_whitespace().next()?.parse::<u64>().ok()
        })
        .sum()
}

/// The same for this process, threads included that are gone; to 10 ms.
fn own_nanoseconds() -> u64 {
    const TICK: u64 = 10_000_000;
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in parentheses, may hold anything.
    let fields = text.rsplit(')').next().unwrap_or_default();
    let fields = fields.split_ascii_whitespace().skip(11).take(2);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks * TICK
}

/// Resident memory in bytes.
pub(crate) fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
    1024 * kilobytes.unwrap_or(0)
}

/// What the processes of a site used while something was played.
pub(crate) struct Meter {
    own: u64,
    broker: (u32, u64),
    proxy: Option<(u32, u64)>,
}

/// In nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Used {
    pub(crate) generator: u64,
    pub(crate) broker: u64,
    pub(crate) proxy: u64,
}

impl Meter {
    pub(crate) fn start(site: &crate::ways::Site) -> Self {
        let now = |pid| (pid, nanoseconds(pid));
        Self {
            own: own_nanoseconds(),
            broker: now(site.broker_pid()),
            proxy: site.proxy_pid().map(now),
        }
    }

    pub(crate) fn stop(self) -> Used {
        let since = |(pid, before): (u32, u64)| nanoseconds(pid).saturating_sub(before);
        Used {
            generator: own_nanoseconds().saturating_sub(self.own),
            broker: since(self.broker),
            proxy: self.proxy.map_or(0, since),
        }
    }
}
