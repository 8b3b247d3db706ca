//! Which publishes wait, which are proven, and what becomes of the rest when a link dies.
//!
//! Publishes are opaque frames. A [`Held`] keeps those that no broker may get yet; an
//! [`Account`] counts those of one link; [`settle`] reads what a dead link left behind and
//! says which were never written (they move to the next link) and which are in doubt.

use std::collections::{BTreeMap, VecDeque};

use super::SessionId;
use crate::proto::client::{self, ClientLimits, ClientOp, Publish, Scan};

/// Bounds of one chunk of waiting publishes, in bytes and messages: a fence follows each
/// when they are sent.
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNK_MESSAGES: u64 = 256;

/// Publishes that wait for a link, in order. Without any it takes eight bytes.
#[derive(Debug, Default)]
pub struct Held(Option<Box<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    /// Whole frames, and how many.
    chunks: VecDeque<(Vec<u8>, u64)>,
    bytes: usize,
    messages: u64,
}

impl Held {
    /// Number of waiting messages.
    pub fn messages(&self) -> u64 {
        self.0.as_ref().map_or(0, |waiting| waiting.messages)
    }

    /// Number of waiting bytes.
    pub fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |waiting| waiting.bytes)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.messages() == 0
    }

    /// Appends `messages` whole frames.
    pub fn push(&mut self, frames: &[u8], messages: u64) {
        let waiting = self.0.get_or_insert_default();
        waiting.bytes += frames.len();
        waiting.messages += messages;
        match waiting.chunks.back_mut() {
            Some((chunk, count))
                if chunk.len() + frames.len() <= CHUNK_BYTES
                    && *count + messages <= CHUNK_MESSAGES =>
            {
                chunk.extend_from_slice(frames);
                *count += messages;
            }
            _ => waiting.chunks.push_back((frames.to_vec(), messages)),
        }
    }

    /// Takes the oldest chunk: whole frames, and how many.
    pub fn pop(&mut self) -> Option<(Vec<u8>, u64)> {
        let waiting = self.0.as_mut()?;
        let popped = waiting.chunks.pop_front();
        if let Some((chunk, messages)) = &popped {
            waiting.bytes -= chunk.len();
            waiting.messages -= messages;
        }
        if waiting.chunks.is_empty() {
            self.0 = None;
        }
        popped
    }

    /// Puts `other` behind what is here.
    pub fn append(&mut self, other: Self) {
        let Some(mut other) = other.0 else {
            return;
        };
        let waiting = self.0.get_or_insert_default();
        waiting.bytes += other.bytes;
        waiting.messages += other.messages;
        waiting.chunks.append(&mut other.chunks);
    }

    /// Takes out the publishes whose payload is larger than `max_payload`, which a broker
    /// would close a link for again and again, and says how many they were.
    pub fn remove_larger(&mut self, max_payload: usize) -> u64 {
        self.keep(|_, size| size <= max_payload)
    }

    /// Takes out the publishes whose control line has longer arguments than `max_control_line`, in
    /// bytes, likewise.
    pub fn remove_longer(&mut self, max_control_line: usize) -> u64 {
        self.keep(|frame, _| line_of(frame) <= max_control_line)
    }

    /// Keeps the publishes of which `keeps` says so, by their frames and the sizes of their
    /// payloads, and says how many others there were.
    fn keep(&mut self, keeps: impl Fn(&[u8], usize) -> bool) -> u64 {
        let mut all = std::mem::take(self);
        let before = all.messages();
        while let Some((chunk, _)) = all.pop() {
            let mut rest = &chunk[..];
            while let Some((frame, publish)) = next_frame(rest) {
                rest = &rest[frame.len()..];
                if publish.is_some_and(|publish| keeps(frame, publish.size)) {
                    self.push(frame, 1);
                }
            }
        }
        before - self.messages()
    }
}

/// The publishes of one link, counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// Appended to the link's buffer.
    pub appended: u64,
    /// Proven by a fence, or refused by the broker.
    pub settled: u64,
    /// Refused by an `-ERR` since the last fence was answered.
    pub refused: u64,
}

impl Account {
    /// Appended and not proven.
    pub fn unsettled(&self) -> u64 {
        self.appended - self.settled
    }

    /// A fence that followed `appended` publishes was answered. Returns how many of them are
    /// confirmed and how many the broker refused.
    pub fn prove(&mut self, appended: u64) -> (u64, u64) {
        let proven = appended.saturating_sub(self.settled);
        self.settled += proven;
        let refused = self.refused.min(proven);
        self.refused -= refused;
        (proven - refused, refused)
    }
}

/// The fate of a dead link's unproven publishes.
#[derive(Debug, Default)]
pub struct Settled {
    /// To be sent on the next link, in order.
    pub waiting: Held,
    /// Publishes in doubt whose session is known: they go in front of those that wait there.
    pub owned: BTreeMap<SessionId, Held>,
    /// How many of these were never written.
    pub moved: u64,
    /// How many of these were written and may arrive twice.
    pub repeated: u64,
}

impl Settled {
    /// Publishes that wait.
    pub fn messages(&self) -> u64 {
        let owned: u64 = self.owned.values().map(Held::messages).sum();
        self.waiting.messages() + owned
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        let owned: usize = self.owned.values().map(Held::bytes).sum();
        self.waiting.bytes() + owned
    }

    /// See [`Held::remove_longer`].
    pub fn remove_longer(&mut self, max_control_line: usize) -> u64 {
        let owned = self.owned.values_mut();
        let owned: u64 = owned.map(|held| held.remove_longer(max_control_line)).sum();
        self.waiting.remove_longer(max_control_line) + owned
    }

    /// See [`Held::remove_larger`].
    pub fn remove_larger(&mut self, max_payload: usize) -> u64 {
        let owned = self.owned.values_mut();
        let owned: u64 = owned.map(|held| held.remove_larger(max_payload)).sum();
        self.waiting.remove_larger(max_payload) + owned
    }
}

/// Sorts what a dead link left: `chunks` hold whole frames, looked at from offset `start` of
/// the first on; `written` bytes, counted from the first byte of the first chunk, reached
/// the socket. A frame that was written in part can't have been processed, so it moves.
/// With `repeat` those written whole wait again too (at-least-once). `is_own` says which are
/// natsmux's own, by the offset behind a publish and its subject: nobody waits for them. `owner`
/// says whose a publish is, by the offset behind it.
pub fn settle(
    chunks: impl IntoIterator<Item = Vec<u8>>,
    start: usize,
    written: usize,
    repeat: bool,
    is_own: impl Fn(usize, &[u8]) -> bool,
    owner: impl Fn(usize) -> Option<SessionId>,
) -> Settled {
    let mut settled = Settled::default();
    let mut chunk_start = 0;
    let mut at = start;
    for chunk in chunks {
        while let Some((frame, publish)) = next_frame(&chunk[at..]) {
            at += frame.len();
            let was_written = chunk_start + at <= written;
            let is_wanted =
                publish.is_some_and(|publish| !is_own(chunk_start + at, publish.subject));
            if !is_wanted || (was_written && !repeat) {
                continue;
            }
            match owner(chunk_start + at) {
                Some(session) => settled.owned.entry(session).or_default().push(frame, 1),
                None => settled.waiting.push(frame, 1),
            }
            if was_written {
                settled.repeated += 1;
            } else {
                settled.moved += 1;
            }
        }
        chunk_start += chunk.len();
        at = 0;
    }
    settled
}

/// The length of a control line's arguments, which is what brokers bound, in bytes.
pub fn line_of(frame: &[u8]) -> usize {
    let line = memchr::memchr(b'\r', frame).unwrap_or(frame.len());
    let verb = memchr::memchr(b' ', &frame[..line]).map_or(line, |blank| blank + 1);
    line - verb
}

/// The frame at the start, and what it publishes.
fn next_frame(bytes: &[u8]) -> Option<(&[u8], Option<Publish<'_>>)> {
    // natsmux wrote these bytes, so no limit applies and no fault can occur.
    match client::scan(bytes, &ClientLimits::NONE) {
        Scan::Op { op, len } => match op {
            ClientOp::Publish(publish) => Some((&bytes[..len], Some(publish))),
            _ => Some((&bytes[..len], None)),
        },
        Scan::Incomplete { .. } | Scan::Fault(_) => {
            debug_assert!(bytes.is_empty(), "a link's buffer holds whole frames");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"SUB a 1\r\nPUB a 1\r\nx\r\nPING\r\nPUB b 2\r\nyy\r\nPUB c 0\r\n\r\n";

    fn waiting(settled: &mut Settled) -> Vec<u8> {
        std::iter::from_fn(|| settled.waiting.pop())
            .flat_map(|(chunk, _)| chunk)
            .collect()
    }

    #[test]
    fn at_every_cut_a_publish_moves_or_is_in_doubt() {
        for written in 0..=STREAM.len() {
            let mut settled = settle([STREAM.to_vec()], 0, written, false, |_, _| false, |_| None);
            let whole = [21, 40, 51].iter().filter(|end| **end <= written).count() as u64;
            assert_eq!((settled.moved, settled.repeated), (3 - whole, 0));
            let rest: &[u8] = match whole {
                0 => b"PUB a 1\r\nx\r\nPUB b 2\r\nyy\r\nPUB c 0\r\n\r\n",
                1 => b"PUB b 2\r\nyy\r\nPUB c 0\r\n\r\n",
                2 => b"PUB c 0\r\n\r\n",
                _ => b"",
            };
            assert_eq!(waiting(&mut settled), rest, "cut at {written}");
        }
    }

    #[test]
    fn larger_publishes_than_a_broker_takes_are_taken_out() {
        let mut held = settle([STREAM.to_vec()], 0, 0, false, |_, _| false, |_| None).waiting;
        assert_eq!(held.remove_larger(1), 1);
        let kept: Vec<_> = std::iter::from_fn(|| held.pop()).collect();
        assert_eq!(kept, [(b"PUB a 1\r\nx\r\nPUB c 0\r\n\r\n".to_vec(), 2)]);
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn publishes_with_longer_lines_than_a_broker_takes_are_taken_out() {
        let mut held = Held::default();
        held.push(
            b"PUB aaa 1\r\nx\r\nHPUB a 12 12\r\nNATS/1.0\r\n\r\n\r\nPUB a 1\r\nx\r\n",
            3,
        );
        assert_eq!(
            [line_of(b"PUB aaa 1\r\nx\r\n"), line_of(b"HPUB a 12 12\r\n")],
            [5, 7]
        );
        assert_eq!(held.remove_longer(4), 2);
        let kept: Vec<_> = std::iter::from_fn(|| held.pop()).collect();
        assert_eq!(kept, [(b"PUB a 1\r\nx\r\n".to_vec(), 1)]);
    }

    #[test]
    fn at_least_once_repeats_what_was_written() {
        let settled = settle([STREAM.to_vec()], 21, 40, true, |_, _| false, |_| None);
        assert_eq!((settled.moved, settled.repeated), (1, 1));
        assert_eq!(settled.waiting.messages(), 2);
    }

    #[test]
    fn what_natsmux_publishes_itself_is_nobodys() {
        let is_own = |end: usize, subject: &[u8]| end == 40 && subject == b"b";
        let settled = settle([STREAM.to_vec()], 0, 0, true, is_own, |_| None);
        assert_eq!((settled.moved, settled.repeated), (2, 0));
        assert_eq!(settled.waiting.messages(), 2);
    }

    #[test]
    fn chunks_are_counted_through() {
        let chunks = [b"PUB a 1\r\nx\r\n".to_vec(), b"PUB b 1\r\ny\r\n".to_vec()];
        let settled = settle(chunks, 0, 12, false, |_, _| false, |_| None);
        assert_eq!(settled.moved, 1);
    }

    #[test]
    fn what_waits_is_counted_through_pushing_taking_and_joining() {
        let mut held = Held::default();
        assert!(held.is_empty());
        held.push(b"PUB a 0\r\n\r\n", 1);
        held.push(b"PUB b 1\r\nx\r\nPUB b 1\r\ny\r\n", 2);
        assert_eq!((held.bytes(), held.messages()), (35, 3));
        assert!(!held.is_empty());
        let mut other = Held::default();
        other.push(b"PUB c 0\r\n\r\nPUB d 0\r\n\r\n", 2);
        held.append(other);
        assert_eq!((held.bytes(), held.messages()), (57, 5));
        let first = held.pop();
        assert_eq!(first.map(|(_, messages)| messages), Some(3), "in its order");
        assert_eq!((held.bytes(), held.messages()), (22, 2));
        let second = b"PUB c 0\r\n\r\nPUB d 0\r\n\r\n".to_vec();
        assert_eq!(held.pop(), Some((second, 2)));
        assert_eq!((held.pop(), held.bytes()), (None, 0));
    }

    #[test]
    fn a_chunk_takes_what_fits_and_no_byte_more() {
        let mut held = Held::default();
        held.push(&vec![b'x'; CHUNK_BYTES - 10], 1);
        held.push(&[b'y'; 10], 1);
        held.push(b"z", 1);
        let chunks: Vec<_> = std::iter::from_fn(|| held.pop()).collect();
        let lens: Vec<_> = chunks.iter().map(|(chunk, _)| chunk.len()).collect();
        assert_eq!(lens, [CHUNK_BYTES, 1]);
        held.push(b"a", CHUNK_MESSAGES - 2);
        held.push(b"b", 2);
        held.push(b"c", 1);
        let counts: Vec<_> = std::iter::from_fn(|| held.pop()).map(|(_, n)| n).collect();
        assert_eq!(counts, [CHUNK_MESSAGES, 1]);
    }

    #[test]
    fn two_of_three_larger_publishes_are_counted() {
        let stream = b"PUB a 3\r\nxxx\r\nPUB b 1\r\ny\r\nPUB c 2\r\nzz\r\n";
        let mut held = settle([stream.to_vec()], 0, 0, false, |_, _| false, |_| None).waiting;
        assert_eq!(held.remove_larger(1), 2);
        assert_eq!(held.messages(), 1);
    }

    #[test]
    fn a_link_owes_what_was_appended_and_not_proven() {
        let mut account = Account {
            appended: 10,
            ..Account::default()
        };
        account.prove(4);
        assert_eq!(account.unsettled(), 6);
        assert_eq!(account.prove(3), (0, 0), "proven before");
        assert_eq!(account.unsettled(), 6);
    }

    #[test]
    fn a_fence_proves_what_came_before_less_what_was_refused() {
        let mut account = Account {
            appended: 10,
            ..Account::default()
        };
        account.refused = 2;
        assert_eq!(account.prove(6), (4, 2));
        assert_eq!(account.prove(10), (4, 0));
        assert_eq!(account.unsettled(), 0);
    }

    #[test]
    fn waiting_publishes_are_cut_into_chunks_that_a_fence_can_follow() {
        let mut held = Held::default();
        for _ in 0..600 {
            held.push(b"PUB a 0\r\n\r\n", 1);
        }
        let counts: Vec<u64> = std::iter::from_fn(|| held.pop()).map(|(_, n)| n).collect();
        assert_eq!(counts, [256, 256, 88]);
        assert_eq!((held.bytes(), held.messages()), (0, 0));
    }

    #[test]
    fn what_waits_goes_back_to_whom_it_is_known_to_be_from() {
        let owner = |end| (end > 12 && end < 41).then_some(SessionId(7));
        let settled = settle([STREAM.to_vec()], 0, 0, false, |_, _| false, owner);
        let owned = &settled.owned[&SessionId(7)];
        assert_eq!((owned.messages(), settled.waiting.messages()), (2, 1));
        assert_eq!((settled.messages(), settled.bytes()), (3, 36));
        let mut settled = settled;
        assert_eq!(settled.remove_larger(0), 2);
        assert_eq!(settled.messages(), 1);
    }
}
