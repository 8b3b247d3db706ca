//! How much of what a component sends is read at once.

use crate::net::socket::READ_BYTES;
use crate::upstream::trunk::ReadAtMost;

/// At the least, in bytes: some 300 operations, for which a worker needs less than a millisecond.
const LEAST: usize = 4 * 1024;
/// The bound of a read beside others on a link, in bytes, behind a read of little but operations: a broker needs as
/// long for these 40 as for a large publish.
const LEAST_BESIDE_OTHERS: usize = 512;
/// Operations in a read, publishes apart, beyond which the next one is the least.
const OPERATIONS_MOST: u32 = 64;
/// A read of one operation, publishes apart, in fewer bytes than this has little else.
const BYTES_PER_OPERATION: usize = 64;

/// The bound of the next read. A publish costs the worker little more than its copy; a SUB, as
/// much as thirty of them. So it grows while reads are full of publishes, and others don't wait
/// for a buffer full of SUBs.
#[derive(Debug)]
pub(super) struct ReadSize {
    most: usize,
    /// Whether the last read had little but operations.
    is_dense: bool,
}

impl Default for ReadSize {
    fn default() -> Self {
        Self {
            most: LEAST,
            is_dense: false,
        }
    }
}

impl ReadSize {
    /// In bytes, where the trunk takes so much.
    pub(super) fn most(&self, of_trunk: ReadAtMost) -> usize {
        match of_trunk {
            ReadAtMost::Any => self.most,
            ReadAtMost::Fair(_) if self.is_dense => LEAST_BESIDE_OTHERS,
            ReadAtMost::Fair(most) => self.most.min(most),
        }
    }

    /// A read brought this much.
    pub(super) fn note(&mut self, bytes: usize, operations: u32) {
        self.is_dense = operations as usize * BYTES_PER_OPERATION > bytes;
        if operations > OPERATIONS_MOST {
            self.most = LEAST;
        } else if bytes >= self.most {
            self.most = (2 * self.most).min(READ_BYTES);
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
        let most = |size: &ReadSize| size.most(ReadAtMost::Any);
        assert_eq!(most(&size), LEAST, "a read that isn't full says nothing");
        for _ in 0..10 {
            size.note(most(&size), OPERATIONS_MOST);
        }
        assert_eq!(most(&size), READ_BYTES);
        size.note(100, 0);
        assert_eq!(most(&size), READ_BYTES);
        size.note(100, OPERATIONS_MOST + 1);
        assert_eq!(most(&size), LEAST);
    }

    #[test]
    fn beside_others_reads_of_little_but_operations_are_short() {
        let fair = ReadAtMost::Fair(2 * LEAST);
        let mut size = ReadSize::default();
        assert_eq!(size.most(fair), LEAST);
        size.note(512, 36);
        assert_eq!(size.most(fair), LEAST_BESIDE_OTHERS);
        assert_eq!(size.most(ReadAtMost::Any), LEAST);
        // Publishes, among them a SUB.
        (0..4).for_each(|_| size.note(READ_BYTES, 1));
        assert_eq!(size.most(fair), 2 * LEAST);
    }
}
