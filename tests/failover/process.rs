//! What the kernel says of a process.

use std::fs;

/// Resident kilobytes.
pub(crate) fn resident_kilobytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.and_then(|line| line.split_whitespace().next());
    words.and_then(|word| word.parse().ok()).expect("VmRSS")
}

/// Open files.
pub(crate) fn open_files(pid: u32) -> usize {
    let files = fs::read_dir(format!("/proc/{pid}/fd"));
    files.expect("a running process").count()
}

/// Hundredths of a second on a processor, as Linux counts them everywhere.
pub(crate) fn cpu_hundredths(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    // The name may hold blanks, but what follows its bracket doesn't.
    let (_, rest) = stat.rsplit_once(')').expect("a name in brackets");
    let words = rest.split_whitespace().skip(11).take(2);
    words.map(|w| w.parse::<u64>().expect("utime, stime")).sum()
}
