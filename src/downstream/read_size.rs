//! How much of what a component sends is read at once.

use crate::net::socket::READ_BYTES;

/// At the least, in bytes: some 300 operations, for which a worker needs less than a millisecond.
const LEAST: usize = 4 * 1024;
/// Operations in a read, publishes apart, beyond which the next one is the least.
const OPERATIONS_MOST: u32 = 64;

/// The bound of the next read. A publish costs the worker little more than its copy; a SUB, as
/// much as thirty of them. So it grows while reads are full of publishes, and others don't wait
/// for a buffer full of SUBs.
#[derive(Debug)]
pub(super) struct ReadSize(usize);

impl Default for ReadSize {
    fn default() -> Self {
        Self(LEAST)
    }
}

impl ReadSize {
    /// In bytes.
    pub(super) fn most(&self) -> usize {
        self.0
    }

    /// A read brought this much.
    pub(super) fn note(&mut self, bytes: usize, operations: u32) {
        if operations > OPERATIONS_MOST {
            self.0 = LEAST;
        } else if bytes >= self.0 {
            self.0 = (2 * self.0).min(READ_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_reads_of_publishes_grow_and_many_operations_shrink() {
        let mut size = ReadSize::default();
        size.note(100, 1);
        assert_eq!(size.most(), LEAST, "a read that isn't full says nothing");
        for _ in 0..10 {
            size.note(size.most(), OPERATIONS_MOST);
        }
        assert_eq!(size.most(), READ_BYTES);
        size.note(100, 0);
        assert_eq!(size.most(), READ_BYTES);
        size.note(100, OPERATIONS_MOST + 1);
        assert_eq!(size.most(), LEAST);
    }
}
