//! The memory of chunks: once written, it serves the next ones of its thread. Asking the
//! allocator for each cost a fifth of the time of a busy link, most of it page faults.

use std::cell::RefCell;

/// Room in a chunk of a busy outbox: for [`CHUNK_BYTES`](super::outbox::CHUNK_BYTES), and for
/// one message with a payload of that size.
pub(super) const CAPACITY: usize = 72 * 1024;
/// The size up to which output to a slow or idle peer stays in memory of its own size, in bytes.
pub(super) const SMALL: usize = 8 * 1024;
/// From here on an outbox is that of a peer that lags: its chunks are as large as what they hold.
pub(super) const BACKLOG: usize = 1024 * 1024;
/// Chunks that a thread keeps for later: 2.25 MiB.
const SPARE_MOST: usize = 32;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty chunk with room for [`CAPACITY`] bytes.
pub(super) fn take() -> Vec<u8> {
    let spare = SPARE.with_borrow_mut(Vec::pop);
    spare.unwrap_or_else(|| Vec::with_capacity(CAPACITY))
}

/// Gives a chunk back that isn't needed any more.
pub(super) fn give(mut chunk: Vec<u8>) {
    if chunk.capacity() == CAPACITY {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_MOST {
                chunk.clear();
                spare.push(chunk);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_empty_and_is_bounded() {
        let mut chunk = take();
        chunk.extend_from_slice(b"abc");
        let memory = chunk.as_ptr();
        give(chunk);
        give(Vec::with_capacity(16));
        let again = take();
        assert_eq!((again.as_ptr(), again.len()), (memory, 0));
        let many: Vec<_> = (0..2 * SPARE_MOST).map(|_| take()).collect();
        many.into_iter().for_each(give);
        assert_eq!(SPARE.with_borrow(Vec::len), SPARE_MOST);
    }
}
