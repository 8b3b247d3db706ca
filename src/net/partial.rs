//! The unfinished frame at the end of a read, kept until its rest arrives.
//!
//! Most reads end at a frame boundary or shortly behind one, so frames are parsed in the
//! read buffer itself; only the one that is cut by the end of a read is copied here, once.

/// An unfinished frame. Owns no memory while there is none.
#[derive(Debug, Default)]
pub struct Partial {
    bytes: Vec<u8>,
    /// Total length of the frame, once its head was seen; 0 while unknown.
    need: usize,
}

impl Partial {
    /// Whether there is no unfinished frame.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns the part of the frame that has arrived.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Keeps `rest`, the beginning of a frame whose total length is `need` if known.
    pub fn keep(&mut self, rest: &[u8], need: Option<usize>) {
        debug_assert!(self.bytes.is_empty());
        self.bytes.extend_from_slice(rest);
        self.need = need.unwrap_or(0);
    }

    /// Puts back what [`Partial::take`] took out: it wasn't whole after all. `need` is the
    /// frame's total length, if known.
    pub fn restore(&mut self, bytes: Vec<u8>, need: Option<usize>) {
        debug_assert!(self.bytes.is_empty());
        self.bytes = bytes;
        self.need = need.unwrap_or(0);
    }

    /// Takes from `input` what the frame lacks, as far as that is known (up to its length,
    /// else up to the end of the line), and returns how many bytes it took. Memory grows
    /// with what has arrived, never with what a peer announced.
    pub fn fill(&mut self, input: &[u8]) -> usize {
        let take = if self.need > 0 {
            (self.need - self.bytes.len()).min(input.len())
        } else {
            memchr::memchr(b'\n', input).map_or(input.len(), |at| at + 1)
        };
        self.bytes.extend_from_slice(&input[..take]);
        take
    }

    /// Total length of the frame in bytes; 0 while unknown, and where there is none.
    pub fn need(&self) -> usize {
        self.need
    }

    /// Whether all bytes that are known to be needed are there.
    pub fn is_filled(&self) -> bool {
        self.need == 0 || self.bytes.len() >= self.need
    }

    /// Takes the frame out and frees its memory.
    pub fn take(&mut self) -> Vec<u8> {
        self.need = 0;
        std::mem::take(&mut self.bytes)
    }

    /// Number of bytes in memory.
    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_filled_up_to_its_end() {
        let mut partial = Partial::default();
        partial.keep(b"PI", None);
        assert_eq!(partial.fill(b"NG\r\nPING"), 4);
        assert_eq!(partial.bytes(), b"PING\r\n");
    }

    #[test]
    fn a_frame_of_known_length_is_filled_to_that_length() {
        let mut partial = Partial::default();
        partial.keep(b"PUB a 3\r\n", Some(14));
        assert_eq!(partial.fill(b"x\n"), 2);
        assert!(!partial.is_filled());
        assert_eq!(partial.fill(b"z\r\nPING"), 3);
        assert!(partial.is_filled());
        assert_eq!(partial.take(), b"PUB a 3\r\nx\nz\r\n");
        assert!(partial.is_empty());
    }
}
