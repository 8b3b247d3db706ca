//! Output to one socket, as a list of bounded chunks.
//!
//! A chunk always begins at a frame boundary, and a frame never spans two chunks.
//! So the chunk that a dying socket was in the middle of still tells where its frames
//! begin, without any book-keeping per frame. With [`Retention::UntilConfirmed`] a
//! written chunk stays until the peer's answer proves that it was processed.

use std::io::IoSlice;
use std::ops::Deref;
use std::rc::Rc;

use smallvec::SmallVec;

use super::chunks;

/// Size that a chunk grows to before the next one is started, in bytes. One frame or one
/// run of frames that is larger has a chunk of its own.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

/// How long written bytes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// A chunk is freed once its last byte is written.
    UntilWritten,
    /// A chunk is freed once [`Outbox::confirm`] has passed its last byte.
    UntilConfirmed,
}

/// Bytes from which on what several peers get is kept once.
pub const SHARED_LEAST: usize = 32 * 1024;

/// Bytes of one peer's, or what is the same for several.
#[derive(Debug)]
enum Chunk {
    Own(Vec<u8>),
    Shared(Rc<[u8]>),
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

impl Chunk {
    /// Its memory, of which others have their part.
    fn memory(&self) -> usize {
        match self {
            Self::Own(bytes) => bytes.len(),
            Self::Shared(bytes) => bytes.len() / Rc::strong_count(bytes),
        }
    }

    fn give(self) {
        if let Self::Own(bytes) = self {
            chunks::give(bytes);
        }
    }

    fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(bytes) => bytes.to_vec(),
        }
    }
}

/// Mostly there is one, which takes no memory besides its own.
type Chunks = SmallVec<[Chunk; 1]>;

/// An ordered list of whole frames, partly written.
#[derive(Debug)]
pub struct Outbox {
    /// Invariant: no chunk is empty, and each begins at a frame boundary, but for a shared one.
    chunks: Chunks,
    /// Stream offset of the first byte of the first chunk.
    base: u64,
    /// Stream offset up to which bytes were handed to the socket.
    written: u64,
    /// Stream offset behind the last byte.
    end: u64,
    /// Stream offset up to which the peer has proven that it processed the bytes.
    confirmed: u64,
    /// Index of the chunk that holds `written`; `chunks.len()` when nothing waits.
    next: usize,
    retention: Retention,
}

/// The rest of an outbox whose socket is dead: see [`Outbox::into_unproven`].
#[derive(Debug)]
pub struct DeadOutbox {
    /// Chunks that hold at least one byte that is unwritten (or unconfirmed, where kept).
    pub chunks: SmallVec<[Vec<u8>; 1]>,
    /// Offset in the first chunk of the first frame to look at.
    pub start: usize,
    /// How many bytes, counted from the first byte of the first chunk, were written.
    pub written: usize,
    /// Stream offset of the first byte of the first chunk.
    pub base: u64,
}

impl Outbox {
    /// An empty outbox. Allocates nothing.
    pub fn new(retention: Retention) -> Self {
        Self {
            chunks: Chunks::new(),
            base: 0,
            written: 0,
            end: 0,
            confirmed: 0,
            next: 0,
            retention,
        }
    }

    /// Appends whole frames, copying them.
    pub fn push(&mut self, frames: &[u8]) {
        self.push_parts(&[frames]);
    }

    /// Appends one frame (or several whole ones) given in parts, copying them.
    pub fn push_parts(&mut self, parts: &[&[u8]]) {
        let len = parts.iter().map(|part| part.len()).sum();
        if len == 0 {
            return;
        }
        let chunk = self.room_for(len);
        for part in parts {
            chunk.extend_from_slice(part);
        }
        self.end += len as u64;
    }

    /// Appends a chunk of whole frames without copying it.
    pub fn push_chunk(&mut self, chunk: Vec<u8>) {
        if !chunk.is_empty() {
            self.end += chunk.len() as u64;
            self.chunks.push(Chunk::Own(chunk));
        }
    }

    /// Appends the rest of a frame, which other outboxes have as well, without copying it. Not for
    /// an outbox whose frames are looked at once its socket is dead.
    #[cold]
    pub fn push_shared(&mut self, rest: Rc<[u8]>) {
        if !rest.is_empty() {
            self.end += rest.len() as u64;
            self.chunks.push(Chunk::Shared(rest));
        }
    }

    /// Number of bytes that wait to be written.
    pub fn pending_bytes(&self) -> usize {
        (self.end - self.written) as usize
    }

    /// Bytes of memory that the waiting ones take: of what others wait for as well, a part.
    pub fn waiting_memory(&self) -> usize {
        let pending = self.pending_bytes();
        if pending < SHARED_LEAST {
            return pending;
        }
        let waiting = self.chunks[self.next..].iter().map(Chunk::memory);
        waiting.sum::<usize>().min(pending)
    }

    /// Number of bytes in memory, written ones that are kept included.
    pub fn held_bytes(&self) -> usize {
        (self.end - self.base) as usize
    }

    /// Whether nothing waits to be written.
    pub fn is_empty(&self) -> bool {
        self.end == self.written
    }

    /// Stream offset behind the last byte that was written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Stream offset behind the last appended byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The bytes to write next, where they are in one piece.
    pub fn only_slice(&self) -> Option<&[u8]> {
        let last = self.chunks.len().checked_sub(1)?;
        (self.next == last).then(|| &self.chunks[last][self.written_in_next()..])
    }

    /// Fills `slices` with the bytes to write next and returns how many were filled.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        let mut skip = self.written_in_next();
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks[self.next..]) {
            *slice = IoSlice::new(&chunk[skip..]);
            skip = 0;
            filled += 1;
        }
        filled
    }

    /// Notes that the socket took the next `count` bytes.
    pub fn advance(&mut self, count: usize) {
        debug_assert!(count <= self.pending_bytes());
        let mut left = self.written_in_next() + count;
        while let Some(chunk) = self.chunks.get(self.next) {
            if left < chunk.len() {
                break;
            }
            left -= chunk.len();
            self.next += 1;
        }
        self.written += count as u64;
        self.release();
    }

    /// Notes that the peer has processed everything before the stream offset `offset`,
    /// which is a frame boundary.
    pub fn confirm(&mut self, offset: u64) {
        debug_assert!(offset <= self.end);
        self.confirmed = self.confirmed.max(offset);
        self.release();
    }

    /// The frames in memory from the stream offset `from` on, which is a frame boundary, in
    /// runs of whole frames, each with its own offset.
    pub fn frames_from(&self, from: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let mut start = self.base;
        self.chunks.iter().filter_map(move |chunk| {
            let (at, end) = (start.max(from), start + chunk.len() as u64);
            let skip = at.saturating_sub(start) as usize;
            start = end;
            (at < end).then(|| (at, &chunk[skip..]))
        })
    }

    /// Forgets everything that waits.
    pub fn clear(&mut self) {
        *self = Self {
            base: self.end,
            written: self.end,
            end: self.end,
            confirmed: self.end,
            ..Self::new(self.retention)
        };
    }

    /// Takes what is left when the socket is dead.
    pub fn into_unproven(self) -> DeadOutbox {
        let start = match self.retention {
            Retention::UntilWritten => 0,
            Retention::UntilConfirmed => self.confirmed.saturating_sub(self.base) as usize,
        };
        DeadOutbox {
            start,
            written: (self.written - self.base) as usize,
            base: self.base,
            chunks: self.chunks.into_iter().map(Chunk::into_bytes).collect(),
        }
    }

    fn room_for(&mut self, len: usize) -> &mut Vec<u8> {
        let fits = self.chunks.last().is_some_and(
            |chunk| matches!(chunk, Chunk::Own(bytes) if bytes.len() + len <= CHUNK_BYTES),
        );
        // Under `UntilWritten` the last chunk is unwritten or partly written, or it would
        // have been released; under `UntilConfirmed` a written chunk may grow again.
        if !fits {
            let large = !self.chunks.is_empty() || len > chunks::SMALL;
            let busy = large && self.held_bytes() < chunks::BACKLOG;
            self.chunks
                .push(Chunk::Own(if busy && len <= chunks::CAPACITY {
                    chunks::take()
                } else {
                    Vec::with_capacity(len)
                }));
        } else if self.next == self.chunks.len() {
            self.next -= 1;
        }
        let Some(Chunk::Own(chunk)) = self.chunks.last_mut() else {
            unreachable!("pushed above when there was none");
        };
        let needed = chunk.len() + len;
        if needed > chunk.capacity() && needed > chunks::SMALL {
            let mut larger = chunks::take();
            larger.extend_from_slice(chunk);
            *chunk = larger;
        }
        chunk
    }

    fn written_in_next(&self) -> usize {
        let before = self.chunks[..self.next].iter().map(|chunk| chunk.len());
        let before: usize = before.sum();
        (self.written - self.base) as usize - before
    }

    fn release(&mut self) {
        let limit = match self.retention {
            Retention::UntilWritten => self.written,
            Retention::UntilConfirmed => self.confirmed.min(self.written),
        };
        let mut released = 0;
        for chunk in &self.chunks[..self.next] {
            let chunk_end = self.base + chunk.len() as u64;
            if chunk_end > limit {
                break;
            }
            self.base = chunk_end;
            released += 1;
        }
        self.next -= released;
        if released < self.chunks.len() {
            self.chunks.drain(..released).for_each(Chunk::give);
            return;
        }
        while let Some(chunk) = self.chunks.pop() {
            chunk.give();
        }
        if self.chunks.spilled() {
            self.chunks = Chunks::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(outbox: &Outbox) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 16];
        let filled = outbox.slices(&mut slices);
        slices[..filled]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect()
    }

    #[test]
    fn bytes_leave_in_the_order_they_came() {
        let mut outbox = Outbox::new(Retention::UntilWritten);
        outbox.push_parts(&[b"ab", b"c"]);
        outbox.push(b"def");
        outbox.advance(4);
        assert_eq!(waiting(&outbox), b"ef");
        outbox.push_chunk(b"gh".to_vec());
        assert_eq!(waiting(&outbox), b"efgh");
        outbox.advance(4);
        assert!(outbox.is_empty());
        assert_eq!(outbox.held_bytes(), 0);
    }

    #[test]
    fn a_frame_never_spans_two_chunks() {
        let mut outbox = Outbox::new(Retention::UntilWritten);
        let frame = vec![b'x'; CHUNK_BYTES - 10];
        outbox.push(&frame);
        outbox.push(&[b'y'; 20]);
        assert_eq!(outbox.chunks.len(), 2);
        outbox.advance(CHUNK_BYTES - 10 + 7);
        let unproven = outbox.into_unproven();
        assert_eq!((unproven.start, unproven.written), (0, 7));
        assert_eq!(unproven.chunks[0], [b'y'; 20]);
    }

    #[test]
    fn written_bytes_stay_until_confirmed_where_asked() {
        let mut outbox = Outbox::new(Retention::UntilConfirmed);
        outbox.push(b"aaaa");
        outbox.push_chunk(b"bbbb".to_vec());
        outbox.push_chunk(b"cccc".to_vec());
        outbox.advance(9);
        assert_eq!(outbox.held_bytes(), 12);
        outbox.confirm(4);
        assert_eq!(outbox.held_bytes(), 8);
        let unproven = outbox.into_unproven();
        assert_eq!((unproven.start, unproven.written), (0, 5));
        assert_eq!(unproven.chunks.len(), 2);
    }

    #[test]
    fn a_written_chunk_that_is_kept_can_grow() {
        let mut outbox = Outbox::new(Retention::UntilConfirmed);
        outbox.push(b"aa");
        outbox.advance(2);
        outbox.push(b"bb");
        assert_eq!(waiting(&outbox), b"bb");
        outbox.advance(2);
        outbox.confirm(2);
        assert_eq!(outbox.into_unproven().start, 2);
    }

    #[test]
    fn what_is_in_memory_can_be_read_again_from_any_frame_on() {
        let mut outbox = Outbox::new(Retention::UntilConfirmed);
        for frames in [b"aabb", b"ccdd", b"eeff"] {
            outbox.push_chunk(frames.to_vec());
        }
        outbox.advance(12);
        outbox.confirm(4);
        let from = |offset| outbox.frames_from(offset).collect::<Vec<_>>();
        assert_eq!(from(0), [(4, &b"ccdd"[..]), (8, b"eeff")]);
        assert_eq!(from(6), [(6, &b"dd"[..]), (8, b"eeff")]);
        assert_eq!(from(10), [(10, &b"ff"[..])]);
        assert_eq!(from(12), []);
    }

    #[test]
    fn what_several_get_is_in_memory_once() {
        let payload: Rc<[u8]> = vec![b'x'; SHARED_LEAST].into();
        let mut outboxes = [(); 4].map(|()| Outbox::new(Retention::UntilWritten));
        for (sid, outbox) in outboxes.iter_mut().enumerate() {
            outbox.push(format!("MSG a {sid} 32766\r\n").as_bytes());
            outbox.push_shared(Rc::clone(&payload));
            outbox.push(b"PONG\r\n");
        }
        drop(payload);
        let heads = "MSG a 0 32766\r\nPONG\r\n".len();
        for outbox in &outboxes {
            assert_eq!(outbox.pending_bytes(), heads + SHARED_LEAST);
            assert_eq!(outbox.waiting_memory(), heads + SHARED_LEAST / 4);
        }
        let all = waiting(&outboxes[1]);
        assert!(all.starts_with(b"MSG a 1 32766\r\nxx") && all.ends_with(b"xPONG\r\n"));
        let [one, others @ ..] = &mut outboxes;
        for outbox in others {
            outbox.advance(outbox.pending_bytes());
        }
        assert_eq!(
            one.waiting_memory(),
            heads + SHARED_LEAST,
            "the last one has it alone"
        );
    }

    #[test]
    fn clearing_keeps_the_stream_offset() {
        let mut outbox = Outbox::new(Retention::UntilWritten);
        outbox.push(b"abc");
        outbox.advance(1);
        outbox.clear();
        assert!(outbox.is_empty());
        outbox.push(b"d");
        assert_eq!((outbox.end(), waiting(&outbox)), (4, b"d".to_vec()));
    }
}
