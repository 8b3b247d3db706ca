//! Which bytes an acknowledged record held, roughly.

use std::collections::VecDeque;

/// Marks that are kept; beyond that, each second one is dropped.
const MARKS: usize = 32;

/// The kernel counts sealed bytes, and who asks counts what they hold.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Sealed bytes that the kernel has taken.
    sealed: u64,
    /// Bytes of plain text in the whole records among them.
    held: u64,
    /// Ends of records: both counts there.
    ends: VecDeque<(u64, u64)>,
}

impl Marks {
    /// The kernel will have taken a record that holds `holds` bytes whole, `ahead` sealed bytes
    /// behind those that are counted.
    pub(super) fn note_record(&mut self, ahead: u64, holds: u64) {
        self.held += holds;
        self.ends.push_back((self.sealed + ahead, self.held));
        if self.ends.len() > MARKS {
            let mut keep = false;
            self.ends.retain(|_| {
                keep = !keep;
                keep
            });
            self.ends.push_back((self.sealed + ahead, self.held));
        }
    }

    /// The kernel has taken so many sealed bytes more.
    pub(super) fn note_sealed(&mut self, count: u64) {
        self.sealed += count;
    }

    /// How many bytes are in `sealed` unacknowledged sealed ones, at least: where the marks are
    /// far from each other, more counts as acknowledged than is.
    pub(super) fn unacked_of(&self, sealed: u64) -> u64 {
        let acked = self.sealed.saturating_sub(sealed);
        let mark = self.ends.iter().find(|(end, _)| *end >= acked);
        self.held - mark.map_or(self.held, |(_, held)| *held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_counts_is_counted_in_the_bytes_that_it_holds() {
        let mut marks = Marks::default();
        assert_eq!(marks.unacked_of(0), 0);
        for _ in 0..3 {
            marks.note_record(128, 100);
            marks.note_sealed(128);
        }
        assert_eq!(marks.unacked_of(0), 0);
        assert_eq!(marks.unacked_of(128), 100);
        assert_eq!(
            marks.unacked_of(129),
            100,
            "of a record in part, nothing is known"
        );
        assert_eq!(marks.unacked_of(384), 200, "at least");
    }

    #[test]
    fn the_marks_are_few_and_the_last_one_is_kept() {
        let mut marks = Marks::default();
        for count in 1..10_000 {
            marks.note_record(28, 6);
            marks.note_sealed(28);
            assert!(marks.ends.len() <= MARKS + 1, "{count}");
            assert_eq!(marks.unacked_of(0), 0);
        }
        let unacked = marks.unacked_of(28 * 5_000);
        assert!(unacked <= 6 * 5_000 && unacked > 0, "{unacked}");
    }
}
